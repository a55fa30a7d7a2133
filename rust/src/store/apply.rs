//! A record becomes rows (D6): from its own bytes and `committed_at`, nothing else. The same function serves the live path and replay.

use std::sync::Arc;

use super::part::FrameRows;
use super::view::Part;
use crate::error::Error;
use crate::records::{Checked, FrameView, RowSource, inverse_norms};
use crate::types::{Generation, LogPosition};

/// What a group does to one space, published by one swap (O7).
#[derive(Default)]
pub struct Delta {
    pub parts: Vec<Part>,
    /// Generations used, rows or voids: first and last of each range.
    pub ranges: Vec<(Generation, Generation)>,
    pub incarnation: Option<u64>,
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// Rows of an observe record. Without `checked` (replay) the frame is read again; its checksum was verified with its group.
pub fn apply_observe(
    delta: &mut Delta,
    frame: Arc<Vec<u8>>,
    checked: Option<Checked>,
    hashes: Vec<u64>,
    first: Generation,
    position: LogPosition,
    committed_at: i64,
) -> Result<(), Error> {
    let (view, inverse_norms) = match checked {
        Some(checked) => (checked.view, checked.inverse_norms),
        None => {
            let view = FrameView::parse(&frame)?;
            let norms = inverse_norms(&view, &frame);
            (view, norms)
        }
    };
    if view.count() != hashes.len() {
        return Err(Error::corrupted("a log group", position.offset, "an observe record and its frame disagree"));
    }
    let rows = FrameRows::new(frame, view, inverse_norms, hashes, first, committed_at);
    let bytes = rows.heap_bytes();
    delta.ranges.push((first, rows.last()));
    delta.parts.push(Part { rows: Arc::new(rows), position, bytes, sound: true });
    Ok(())
}
