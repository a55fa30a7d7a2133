//! A recall whose hits are fetched bit by bit.

use std::sync::Arc;

use super::{AsOf, Core, Found, Looked, Reading};
use crate::error::Error;
use crate::index::Near;
use crate::store::{Snapshot, Space};
use crate::types::Generation;

/// A recall whose hits are fetched bit by bit, all of one snapshot; what it pins is released with it.
pub struct RecallStream {
    space: Arc<Space>,
    pub looked: Looked,
    left: std::vec::IntoIter<Near>,
    snapshot: Snapshot,
    pinned: bool,
    as_of: Option<AsOf>,
}

impl Drop for RecallStream {
    fn drop(&mut self) {
        if self.pinned {
            self.space.pins.release(self.snapshot);
        }
    }
}

impl RecallStream {
    /// Whether all hits were fetched.
    pub fn is_over(&self) -> bool {
        self.left.len() == 0
    }
}

impl Core {
    /// Finds the k nearest, to be fetched by `next_hits`.
    pub fn recall_stream(
        &self,
        space: &Arc<Space>,
        query: &[f32],
        k: usize,
        reading: Reading<'_>,
    ) -> Result<RecallStream, Error> {
        let pinned = reading.snapshot.is_none();
        let snapshot = reading.snapshot.map_or_else(|| self.pin(space), Ok)?;
        let looked = Looked { generation: snapshot.generation, absorbed: Generation(0), lag_micros: 0, at: 0 };
        let (space, left, as_of) = (Arc::clone(space), Vec::new().into_iter(), reading.as_of);
        // From here on it releases what it pins, whatever happens.
        let mut stream = RecallStream { space, looked, left, snapshot, pinned, as_of };
        let reading = Reading { snapshot: Some(snapshot), ..reading };
        let (_, looked, near) = self.nearest(&stream.space, query, k, reading)?;
        (stream.looked, stream.left) = (looked, near.into_iter());
        Ok(stream)
    }

    /// The next hits of a stream, at most so many. `SnapshotExpired` if it was left alone for too long.
    pub fn next_hits(&self, stream: &mut RecallStream, most: usize) -> Result<Vec<Found>, Error> {
        let mut hits = Vec::new();
        self.each_hit(stream, most, |found| {
            hits.push(found);
            Ok(true)
        })?;
        Ok(hits)
    }

    /// Hands out the next hits, at most so many. One that is not taken comes again, and no other before it.
    pub(super) fn each_hit(
        &self,
        stream: &mut RecallStream,
        most: usize,
        mut take: impl FnMut(Found) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let reading = Reading { snapshot: Some(stream.snapshot), as_of: stream.as_of, ..Reading::default() };
        let (view, _) = self.view_at(&stream.space, reading)?;
        for _ in 0..most {
            let Some(near) = stream.left.as_slice().first() else { break };
            let found = self.found(&view, &stream.looked, *near).inspect_err(|e| stream.space.note_damage(e))?;
            let gone = || Error::SnapshotExpired { reason: format!("{} is not kept any more", near.generation) };
            if !take(found.ok_or_else(gone)?)? {
                break;
            }
            stream.left.next();
        }
        Ok(())
    }
}
