//! What is near this cue?
//!
//! The flat index scores every row exactly: the oracle of every other (G6). Scores are f32, summed in 32
//! fixed lanes by the kernels, so that they have the same bits on every machine; greater is closer, ties go to the lower id.
//!
//! An [`Index`] answers from codes in memory: a graph over its first rows, and the rest, the tail, looked through row by row; both only propose, exact
//! scores decide. It knows vectors by what they are coded to, and asks its caller for exact scores. It is derived: made from the rows, at any time again.
//!
//! One thread appends (its space's lock); any thread builds, a piece at a time, and any thread searches, without locks.

mod build;
mod calibrate;
mod candidates;
mod check;
mod codec;
mod flat;
mod graph;
mod image;
mod renew;
mod rows;
mod scan;
mod walk;

use parking_lot::Mutex;

use build::{Building, step};
pub use calibrate::TARGET;
use candidates::Candidates;
pub use check::Health;
use codec::{Coded, Draft};
pub use codec::{held_bytes, scanned_bytes};
pub use flat::{Cue, Near, TopK};
use graph::Graph;
pub use image::{BLOCK_HEAD, ImageReader, ImageWriter, Owner};
pub use renew::Renewal;
use rows::Rows;
use scan::Stretch;
pub use scan::{Visible, scan_picos};
use walk::Scratch;

use crate::error::Error;
use crate::types::{Generation, Metric};

/// A walk so much narrower than there are rows costs as much as looking at all of them.
const SCAN_SHARE: usize = 24;

pub struct Index {
    rows: Rows,
    graph: Graph,
    draft: Mutex<Draft>,
    building: Building,
    spare: Mutex<Vec<Room>>,
}

/// How wide to walk.
#[derive(Clone, Copy, Debug, Default)]
pub enum Width {
    /// So that [`TARGET`] of the nearest are found, as far as trials say.
    #[default]
    Default,
    /// So that such a share is found; 1: all rows are looked through.
    Recall(f32),
    /// So many rows are kept in sight.
    Ef(usize),
}

/// Room for a search.
#[derive(Default)]
struct Room {
    scratch: Scratch,
    stretch: Stretch,
}

impl Index {
    /// For vectors of `dim` coordinates; what is random in it comes from the seed.
    pub fn new(dim: u32, metric: Metric, seed: u64) -> Self {
        Self {
            rows: Rows::new(dim as usize, metric, seed),
            graph: Graph::new(seed),
            draft: Mutex::default(),
            building: Building::default(),
            spare: Mutex::default(),
        }
    }

    /// An empty one of the same kind.
    fn another(&self) -> Self {
        let codec = &self.rows.codec;
        Self::new(codec.dim as u32, codec.metric, self.graph.seed)
    }

    /// Rows in it.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Whose vector a row is.
    pub fn generation(&self, row: usize) -> Generation {
        self.rows.generation(row as u32)
    }

    /// Rows in it that died.
    pub fn dead(&self) -> usize {
        self.rows.dead()
    }

    /// Rows in it that died at or before a generation.
    pub fn dead_by(&self, upto: Generation) -> usize {
        let rows = 0..self.rows.len() as u32;
        rows.filter(|row| (1..=upto.0).contains(&self.rows.died(*row).0)).count()
    }

    /// No batch is begun from now on, until `resume`; false if one is still under way.
    pub fn pause(&self) -> bool {
        self.building.pause()
    }

    pub fn resume(&self) {
        self.building.resume();
    }

    /// Rows that the graph answers for.
    pub fn linked(&self) -> usize {
        self.graph.end()
    }

    /// The oldest row that the graph does not answer for.
    pub fn first_unlinked(&self) -> Option<Generation> {
        let linked = self.graph.end();
        (linked < self.rows.len()).then(|| self.rows.generation(linked as u32))
    }

    /// Adds a vector: little-endian bytes, four a coordinate. Generations ascend.
    pub fn append(&self, generation: Generation, vector: &[u8], inverse_norm: f32) {
        self.rows.append(generation, vector, inverse_norm, &mut self.draft.lock());
    }

    /// Has the memory of the next rows ready, for whoever has time for it.
    pub fn ready_ahead(&self) {
        self.rows.ready_ahead();
    }

    /// The row died.
    pub fn kill(&self, generation: Generation, death: Generation) {
        self.rows.kill(generation, death);
    }

    /// Does a piece of work on the graph: links some rows, or looks how good it is; false if there is nothing to do. Any number of threads.
    pub fn build(&self) -> bool {
        step(&self.graph, &self.rows, &self.building)
    }

    /// The k nearest rows that may be returned, by exact score.
    pub fn search(
        &self,
        cue: &Cue,
        k: usize,
        width: Width,
        mut visible: Visible<'_>,
        exact: impl FnMut(Generation) -> Result<f32, Error>,
    ) -> Result<TopK, Error> {
        let query = self.rows.codec.code_query(cue.vector(), cue.inverse_norm());
        let mut room = self.spare.lock().pop().unwrap_or_default();
        let found = self.candidates(&query, k, width, &mut visible, &mut room);
        self.spare.lock().push(room);
        found?.settle(exact)
    }

    fn candidates(
        &self,
        query: &Coded,
        k: usize,
        width: Width,
        visible: &mut Visible<'_>,
        room: &mut Room,
    ) -> Result<Candidates, Error> {
        // Its end first: what is linked meanwhile is found in the tail too.
        let linked = self.graph.end();
        let rows = self.rows.up_to(visible.upto);
        let linked = linked.min(rows);
        let mut found = self.walked(query, k, width, linked, visible, room)?;
        self.rows.scan(query, (linked, rows), visible, &mut room.stretch, &mut found)?;
        Ok(found)
    }

    /// What walks find among the first `linked` rows. If too few of what a walk met may be returned, a wider one follows; if that would cost more
    /// than to look at all rows, they are looked at.
    fn walked(
        &self,
        query: &Coded,
        k: usize,
        width: Width,
        linked: usize,
        visible: &mut Visible<'_>,
        room: &mut Room,
    ) -> Result<Candidates, Error> {
        let target = |target| self.graph.measured().width(target, self.rows.codec.metric, linked);
        let width = match width {
            Width::Default => target(TARGET),
            Width::Recall(share) => target(share),
            Width::Ef(ef) => ef,
        };
        let mut ef = width.max(k + k / 2);
        while ef.saturating_mul(SCAN_SHARE) < linked {
            let Some(from) = room.scratch.descend(&self.graph, &self.rows, query, 0) else {
                break;
            };
            room.scratch.walk(&self.graph, &self.rows, query, &[from], 0, ef);
            let (mut found, mut returned) = (Candidates::new(k), 0);
            for met in room.scratch.beam.iter().filter(|met| (met.row as usize) < linked) {
                returned += usize::from(self.rows.offer(met.row, met.score, query, visible, &mut found)?);
            }
            if returned >= k {
                return Ok(found);
            }
            ef *= (2 * k).div_ceil(returned + 1).max(2);
            (visible.pulse)()?;
        }
        let mut found = Candidates::new(k);
        self.rows.scan(query, (0, linked), visible, &mut room.stretch, &mut found)?;
        Ok(found)
    }
}
