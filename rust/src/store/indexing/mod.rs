//! A space's index, beside its view: who puts rows into it, and when it may answer (O6).
//!
//! Whoever publishes rows puts them into the index first, under `growing`, so that a reader who has seen a view finds all of its rows. After a
//! start the index is empty: it is behind, and a builder brings it up to the view, a little at a time, under the same lock; until then, and for whoever looks
//! at a generation before that moment, rows are scored one by one from the view. Rows that were dead by then are not in it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::space::Space;
use super::view::Part;
use crate::error::Error;
use crate::index::Index;
use crate::types::{Config, Generation, SpaceOptions};

pub(super) struct Indexing {
    index: Index,
    /// Rows up to it are in the index. Under `growing`.
    reached: AtomicU64,
    /// From this generation on the index answers (Release: with all rows up to it).
    from: AtomicU64,
    /// Rows cannot be read: it never will.
    unfit: OnceLock<Error>,
    graph_rows_min: usize,
}

impl Indexing {
    pub(super) fn new(options: &SpaceOptions, config: &Config) -> Self {
        Self {
            // A space's id is never used again: its randomness is its own, and the same after every start.
            index: Index::new(options.dim, options.metric, options.id.0),
            reached: AtomicU64::new(0),
            from: AtomicU64::new(u64::MAX),
            unfit: OnceLock::new(),
            graph_rows_min: config.index_graph_rows_min,
        }
    }

    fn is_behind(&self) -> bool {
        self.from.load(Ordering::Acquire) == u64::MAX
    }

    /// New rows, in order. Under `growing`.
    pub(super) fn append(&self, part: &Part) {
        if self.is_behind() || !part.sound {
            return;
        }
        for row in 0..part.rows.rows() {
            match part.rows.vectors_from(row, 1) {
                Ok(run) if run.bytes.is_empty() => {}
                Ok(run) => self.index.append(part.rows.generation_at(row), run.bytes, run.inverse_norms[0]),
                // They were checked when they came: whatever this is, the view will say it.
                Err(error) => self.give_up(error),
            }
        }
    }

    pub(super) fn kill(&self, generation: Generation, death: Generation) {
        self.index.kill(generation, death);
    }

    fn give_up(&self, error: Error) {
        let _ = self.unfit.set(error);
        self.from.store(u64::MAX, Ordering::Release);
    }
}

impl Space {
    /// The index, for whoever looks at `upto`; None: it does not answer for that.
    pub fn index_at(&self, upto: Generation) -> Option<&Index> {
        (self.indexing.from.load(Ordering::Acquire) <= upto.0).then_some(&self.indexing.index)
    }

    /// Rows in the index, and those of them that the graph answers for.
    pub fn indexed(&self) -> (u64, u64) {
        (self.indexing.index.rows() as u64, self.indexing.index.linked() as u64)
    }

    /// Why the index will never answer, if so: rows cannot be read.
    pub fn index_error(&self) -> Option<&Error> {
        self.indexing.unfit.get()
    }

    /// Up to where the index answers without looking through a tail (O5). A space without a graph counts as absorbed.
    pub fn absorbed(&self) -> Generation {
        let (indexing, watermark) = (&self.indexing, self.watermark());
        if indexing.is_behind() {
            return Generation(0);
        }
        let index = &indexing.index;
        if index.rows() < indexing.graph_rows_min {
            return watermark;
        }
        index.first_unlinked().map_or(watermark, |first| watermark.min(Generation(first.0 - 1)))
    }

    /// Does a piece of work on the index: puts up to `most` rows into it after a start, or some into its graph; false if there is nothing to do.
    pub fn build_index(&self, most: usize) -> bool {
        let indexing = &self.indexing;
        if indexing.is_behind() {
            return indexing.unfit.get().is_none() && self.catch_up(most);
        }
        indexing.index.rows() >= indexing.graph_rows_min && indexing.index.build()
    }

    fn catch_up(&self, most: usize) -> bool {
        let indexing = &self.indexing;
        let growing = self.growing.lock();
        let view = self.view();
        let (mut reached, mut taken) = (Generation(indexing.reached.load(Ordering::Relaxed)), 0);
        let walked = view.each_vector(reached, |generation, vector, inverse_norm| {
            if !vector.is_empty() {
                indexing.index.append(generation, vector, inverse_norm);
                taken += 1;
            }
            reached = generation;
            taken < most
        });
        indexing.reached.store(reached.0, Ordering::Relaxed);
        match walked {
            Ok(true) => indexing.from.store(view.watermark().0, Ordering::Release),
            Ok(false) => {}
            Err(error) => indexing.give_up(error),
        }
        drop(growing);
        true
    }
}
