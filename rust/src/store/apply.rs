//! A record becomes rows and deaths (D6): from its own bytes and `committed_at`, nothing else. The same functions serve the live path and replay.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::part::{Change, FrameRows};
use super::view::Part;
use crate::error::Error;
use crate::records::{Checked, RowSource};
use crate::types::{Generation, LogPosition};
use crate::wal::{Quarantined, quarantined_with, stand_in};

/// Attempts at an item before it is given up (O7).
const ATTEMPTS: usize = 3;

/// What a group does to one space, published by one swap (O7).
#[derive(Default)]
pub struct Delta {
    pub parts: Vec<Part>,
    /// Generations used, rows or voids: first and last of each range.
    pub ranges: Vec<(Generation, Generation)>,
    /// Who dies, and at which generation.
    pub deaths: Vec<(Generation, Generation)>,
    /// Generations without a row, and when they were committed.
    pub changes: Vec<(Generation, i64)>,
    pub incarnation: Option<u64>,
    /// Rows whose bytes are to be removed, and when they died.
    pub purging: Vec<(Generation, Generation)>,
    /// What died at or before is no longer kept.
    pub history_from: Generation,
    /// What could not be applied: apply goes round it.
    pub quarantined: Arc<Vec<Quarantined>>,
}

/// How much was in a delta.
pub struct Mark([usize; 5]);

/// An observe record's rows: those of a frame, numbered.
pub struct Observed<'a> {
    pub frame: &'a Arc<Vec<u8>>,
    pub checked: &'a Arc<Checked>,
    pub first: Generation,
    /// Items whose key another memory has, and that memory.
    pub supersedes: &'a [(u32, Generation)],
    /// The batch goes on with the next record.
    pub continues: bool,
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How much is in it now.
    pub fn begin(&self) -> Mark {
        Mark([self.parts.len(), self.ranges.len(), self.deaths.len(), self.changes.len(), self.purging.len()])
    }

    /// Takes back what was done to it since.
    pub fn take_back(&mut self, Mark([parts, ranges, deaths, changes, purging]): &Mark) {
        self.parts.truncate(*parts);
        self.ranges.truncate(*ranges);
        self.deaths.truncate(*deaths);
        self.changes.truncate(*changes);
        self.purging.truncate(*purging);
    }

    /// Applies an item, or leaves no trace of it: after a panic or an error it is taken back and tried again. The error says why the last
    /// attempt failed.
    pub fn attempt(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), Error>) -> Result<(), String> {
        let before = self.begin();
        let mut reason = String::new();
        for _ in 0..ATTEMPTS {
            reason = match catch_unwind(AssertUnwindSafe(|| item(self))) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => format!("a panic: {}", panic_text(&*panic)),
            };
            self.take_back(&before);
        }
        Err(reason)
    }

    /// Whether a generation is one of what could not be applied.
    pub fn goes_round(&self, generation: Generation) -> bool {
        quarantined_with(&self.quarantined, generation).is_some()
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of unknown kind")
}

pub fn apply_observe(delta: &mut Delta, observed: &Observed<'_>, position: LogPosition, committed_at: i64) {
    let Observed { frame, checked, first, supersedes, continues } = *observed;
    let rows = FrameRows::new(Arc::clone(frame), Arc::clone(checked), first, committed_at, continues);
    let bytes = rows.heap_bytes();
    delta.ranges.push((first, rows.last()));
    for (item, old) in supersedes {
        let died = stand_in(&delta.quarantined, *old).map(|row| (row, first.plus(u64::from(*item))));
        delta.deaths.extend(died);
    }
    delta.parts.push(Part::new(Arc::new(rows), position, bytes));
}

/// Those of `ids` that live die at `generation` (K3).
pub fn apply_forget(
    delta: &mut Delta,
    ids: &[Generation],
    purge: bool,
    generation: Generation,
    position: LogPosition,
    committed_at: i64,
) {
    delta.ranges.push((generation, generation));
    delta.deaths.extend(ids.iter().map(|id| (*id, generation)));
    if purge {
        delta.purging.extend(ids.iter().map(|id| (*id, generation)));
    }
    delta.changes.push((generation, committed_at));
    let change = Change { first: generation, last: generation, committed_at };
    delta.parts.push(Part::new(Arc::new(change), position, Change::BYTES));
}

/// Generations that hold nothing: items that were not valid, or that could not be applied.
pub fn apply_voids(delta: &mut Delta, first: Generation, count: u64, position: LogPosition, committed_at: i64) {
    let last = Generation(first.0 + count - 1);
    delta.ranges.push((first, last));
    delta.parts.push(Part::new(Arc::new(Change { first, last, committed_at }), position, Change::BYTES));
}
