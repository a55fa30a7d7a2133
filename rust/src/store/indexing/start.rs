//! After a start: the index comes to have every row that the view has.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Indexing;
use crate::index::Index;
use crate::store::Space;
use crate::types::Generation;

/// Rows that one step takes.
const STEP_ROWS: usize = 64;

pub(super) struct Filling {
    next: Arc<Index>,
    /// Rows of its image whose deaths are known.
    judged: usize,
    imaged: usize,
    /// Rows up to it are in.
    reached: Generation,
}

impl Space {
    /// What is to be filled: with the rows of an image, or with none. From here on it is told of deaths.
    pub(super) fn begin_filling(&self, next: Arc<Index>) -> Filling {
        let growing = self.growing.lock();
        self.indexing.next.store(Some(Arc::clone(&next)));
        drop(growing);
        let imaged = next.rows();
        let reached = imaged.checked_sub(1).map_or(Generation(0), |last| next.generation(last));
        Filling { next, judged: 0, imaged, reached }
    }

    /// True when the index answers, or never will.
    pub(super) fn fill(&self, work: &mut Filling) -> bool {
        let _growing = self.growing.lock();
        let view = self.view();
        if work.judged < work.imaged {
            let to = work.imaged.min(work.judged + STEP_ROWS);
            // Who is not here any more is dead for all who will ask.
            let dead = |generation: &Generation| !view.lives(*generation);
            for generation in (work.judged..to).map(|row| work.next.generation(row)).filter(dead) {
                work.next.kill(generation, Generation(1));
            }
            work.judged = to;
            return false;
        }
        let (mut reached, mut taken) = (work.reached, 0);
        let walked = view.each_vector(reached, |generation, vector, inverse_norm| {
            if !vector.is_empty() {
                work.next.append(generation, vector, inverse_norm);
                taken += 1;
            }
            reached = generation;
            taken < STEP_ROWS
        });
        work.reached = reached;
        let unfit = match walked {
            Ok(false) => return false,
            // An image may hold rows that the space has lost: no index answers for them (D5).
            Ok(true) => view.first_damage().filter(|_| view.is_damaged_at(view.watermark())),
            Err(error) => Some(error),
        };
        match unfit {
            None => self.indexing.filled(work, view.watermark()),
            Some(error) => self.indexing.give_up(error),
        }
        true
    }
}

impl Indexing {
    fn filled(&self, work: &Filling, watermark: Generation) {
        let rebuilt = work.imaged == 0 && work.next.rows() >= self.graph_rows_min.max(1);
        // Relaxed: statistics.
        self.rebuilt.store(u64::from(rebuilt), Ordering::Relaxed);
        self.imaged.store(work.imaged as u64, Ordering::Relaxed);
        self.replace(&work.next, watermark);
    }
}
