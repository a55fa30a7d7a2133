//! A record becomes rows and deaths (D6): from its own bytes and `committed_at`, nothing else. The same functions serve the live path and replay.

use std::sync::Arc;

use super::part::{Change, FrameRows};
use super::view::Part;
use crate::error::Error;
use crate::records::{FrameView, RowSource, inverse_norms};
use crate::types::{Generation, LogPosition};

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
}

/// An observe record's rows: those of a frame, numbered.
pub struct Observed {
    pub frame: Arc<Vec<u8>>,
    pub hashes: Vec<u64>,
    pub first: Generation,
    /// Items whose key another memory has, and that memory.
    pub supersedes: Vec<(u32, Generation)>,
    /// The batch goes on with the next record.
    pub continues: bool,
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// Without `checked` (replay) the frame is read again; its checksum was verified with its group.
pub fn apply_observe(
    delta: &mut Delta,
    observed: Observed,
    checked: Option<(FrameView, Vec<f32>)>,
    position: LogPosition,
    committed_at: i64,
) -> Result<(), Error> {
    let Observed { frame, hashes, first, supersedes, continues } = observed;
    let (view, inverse_norms) = match checked {
        Some(known) => known,
        None => {
            let view = FrameView::parse(&frame)?;
            let norms = inverse_norms(&view, &frame);
            (view, norms)
        }
    };
    if view.count() != hashes.len() {
        return Err(Error::corrupted("a log group", position.offset, "an observe record and its frame disagree"));
    }
    let rows = FrameRows::new(frame, view, inverse_norms, hashes, first, committed_at, continues);
    let bytes = rows.heap_bytes();
    delta.ranges.push((first, rows.last()));
    delta.deaths.extend(supersedes.into_iter().map(|(item, old)| (old, first.plus(u64::from(item)))));
    delta.parts.push(Part::new(Arc::new(rows), position, bytes));
    Ok(())
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

/// Items of a session's frame that were not valid: they take generations, and nothing else.
pub fn apply_voids(delta: &mut Delta, first: Generation, count: u64, position: LogPosition, committed_at: i64) {
    let last = Generation(first.0 + count - 1);
    delta.ranges.push((first, last));
    delta.parts.push(Part::new(Arc::new(Change { first, last, committed_at }), position, Change::BYTES));
}
