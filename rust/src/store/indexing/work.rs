//! What there is to do for a space's index besides linking, one thing at a time, in steps.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::image::{Reading, Writing};
use super::start::Filling;
use super::{Answers, Indexing, Tools};
use crate::index::{Index, Renewal};
use crate::store::Space;
use crate::types::Generation;

/// Rows that one step takes along under `growing`; links that one step makes anew.
const STEP_ROWS: usize = 64;
/// A successor is made when one of so many rows is dead, and so many at least.
const DEAD_SHARE: usize = 4;
const DEAD_MIN: usize = 256;

pub(super) enum Work {
    /// After a start: the image is taken, if there is one, then what the view has besides.
    Reading(Option<Box<Reading>>),
    Filling(Filling),
    Renewing(Box<Renewing>),
    Writing(Box<Writing>),
    Resting(Rest),
}

impl Default for Work {
    fn default() -> Self {
        Self::Reading(None)
    }
}

/// What was seen last, so that it need not be looked at again.
#[derive(Default)]
pub(super) struct Rest {
    /// Before which generation too few were dead, and up to where a purge wanted them gone: what dies later changes neither.
    few: Option<(Generation, u64)>,
    pub(super) image: super::image::Due,
}

pub(super) struct Renewing {
    renewal: Renewal,
    /// What was dead by then is left out.
    before: Generation,
    /// All rows of the old one that there were are copied.
    copied: bool,
    linked: bool,
}

impl Space {
    /// Whether it moved; None: somebody else is at it.
    pub(super) fn work_on_index(&self, tools: &Tools<'_>) -> Option<bool> {
        let mut work = self.indexing.work.try_lock()?;
        Some(self.indexing.unfit.get().is_none() && self.step_work(&mut work, tools))
    }

    fn step_work(&self, work: &mut Work, tools: &Tools<'_>) -> bool {
        match work {
            Work::Reading(reading) => {
                if let Some(filling) = self.read_image(reading, tools) {
                    *work = Work::Filling(filling);
                }
                true
            }
            Work::Filling(filling) => {
                if self.fill(filling) {
                    *work = Work::Resting(Rest::default());
                }
                true
            }
            Work::Renewing(renewing) => {
                if self.renew(renewing) {
                    *work = Work::Resting(Rest::default());
                }
                true
            }
            // A disk may take its time.
            Work::Writing(_) if !tools.writes => false,
            Work::Writing(writing) => {
                if let Some(image) = self.write_image(writing, tools) {
                    *work = Work::Resting(Rest { image, ..Rest::default() });
                }
                true
            }
            Work::Resting(rest) => {
                let Some(answers) = self.indexing.answers.load_full() else { return false };
                if let Some(before) = self.dead_enough(&answers.index, rest, tools) {
                    if let Some(renewing) = self.begin_renewal(&answers.index, before) {
                        *work = Work::Renewing(Box::new(renewing));
                    }
                    return true;
                }
                match self.image_due(&answers.index, &mut rest.image, tools) {
                    Some(writing) => {
                        *work = Work::Writing(Box::new(writing));
                        tools.writing.store(true, Ordering::Release);
                    }
                    None => return false,
                }
                true
            }
        }
    }

    /// Whether so many died that a successor is due: before which generation.
    fn dead_enough(&self, index: &Index, rest: &mut Rest, tools: &Tools<'_>) -> Option<Generation> {
        let (rows, dead, purging) = (index.rows(), index.dead(), self.indexing.purging.load(Ordering::Acquire));
        let enough = |dead: usize| dead * DEAD_SHARE >= rows && dead >= DEAD_MIN;
        if !(enough(dead) || purging > 0) {
            return None;
        }
        // In this order: who pins later pins no less.
        let watermark = self.watermark();
        let before = self.pins.oldest(tools.now, tools.config).map_or(watermark, |pin| pin.min(watermark));
        if rest.few == Some((before, purging)) {
            return None;
        }
        let gone = index.dead_by(before);
        let purges = purging > 0 && before.0 >= purging;
        if purges && gone == 0 {
            self.indexing.purged(before);
        }
        if enough(gone) || purges && gone > 0 {
            return Some(before);
        }
        rest.few = Some((before, purging));
        None
    }

    /// None if somebody is still at the links.
    fn begin_renewal(&self, old: &Arc<Index>, before: Generation) -> Option<Renewing> {
        let renewal = Renewal::begin(Arc::clone(old))?;
        let growing = self.growing.lock();
        self.indexing.next.store(Some(Arc::clone(renewal.successor())));
        drop(growing);
        Some(Renewing { renewal, before, copied: false, linked: false })
    }

    /// True when the successor has taken over.
    fn renew(&self, work: &mut Renewing) -> bool {
        if work.copied && !work.linked {
            work.linked = !work.renewal.relink(STEP_ROWS);
            return false;
        }
        let _growing = self.growing.lock();
        let more = work.renewal.copy(STEP_ROWS, work.before);
        if work.copied && !more {
            self.indexing.replace(work.renewal.successor(), work.before);
            return true;
        }
        work.copied |= !more;
        false
    }
}

impl Indexing {
    /// The next index has all rows, and answers from now on, for whoever looks at `from` or later. Under `growing`.
    pub(super) fn replace(&self, next: &Arc<Index>, from: Generation) {
        let old = self.answers.load_full();
        let first = old.as_ref().map_or(from, |old| old.from.max(from));
        let given = if old.is_none() { next.rows() } else { 0 };
        self.next.store(None);
        self.counted.store(next.linked() as u64, Ordering::Relaxed);
        self.answers.store(Some(Arc::new(Answers { index: Arc::clone(next), from: first, given })));
        self.purged(from);
    }

    /// What died up to it has left the index.
    fn purged(&self, upto: Generation) {
        let purging = self.purging.load(Ordering::Acquire);
        if purging > 0 && purging <= upto.0 {
            // Another purge may have come meanwhile.
            let _ = self.purging.compare_exchange(purging, 0, Ordering::AcqRel, Ordering::Acquire);
        }
    }
}
