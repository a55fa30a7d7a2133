//! A space's index, beside its view: who puts rows into it, and when it may answer (O6).
//!
//! Whoever publishes rows puts them into the index first, under `growing`, so that a reader who has seen a view finds all of its rows. The index that
//! answers is replaced whole: by the first one after a start, and by one without the dead when those are many. The next one is made beside writers, a
//! little at a time, under the same lock where it must be; deaths are told to both. Whoever looks at a generation before an index's first finds what was dead by
//! then missing in it, so for him rows are scored one by one from the view.

mod image;
mod start;
mod work;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

pub use image::{image_id, images_dir};
use work::Work;

use super::space::Space;
use super::view::Part;
use crate::env::Files;
use crate::error::Error;
use crate::index::{Index, held_bytes};
use crate::types::codec::Seed;
use crate::types::{Config, Generation, SpaceOptions};

/// Where so many rows wait for the graph they come fast, and a huge page is full within a second or so: the next one is made ready.
const READY_FROM: u64 = 2_048;

/// A space whose index has nothing to do is looked at again after so long, or when something was written.
const REST_MS: u64 = 250;

/// What the work on indexes needs of the engine.
#[derive(Clone, Copy)]
pub struct Tools<'a> {
    pub files: &'a dyn Files,
    pub seed: Seed,
    /// The partition's directory.
    pub dir: &'a str,
    pub config: &'a Config,
    /// Monotonic nanoseconds.
    pub now: u64,
    /// Who asks is here to write images; others go on without them.
    pub writes: bool,
    /// An image is being written.
    pub writing: &'a AtomicBool,
}

/// An index that answers.
pub struct Answers {
    pub index: Arc<Index>,
    /// For whoever looks at this generation or a later one.
    from: Generation,
    /// Rows that were there when it began to answer: no writer's fault.
    given: usize,
}

pub(super) struct Indexing {
    answers: ArcSwapOption<Answers>,
    /// The one that will: deaths are told to it too. Set and taken under `growing`.
    next: ArcSwapOption<Index>,
    work: Mutex<Work>,
    /// What died up to it must leave the index, and until then there is no image (K3).
    purging: AtomicU64,
    /// Rows that the image on the disk has. Relaxed, like the next: statistics.
    imaged: AtomicU64,
    rebuilt: AtomicU64,
    /// There was nothing to do at this generation, and need not be looked for before this time. Relaxed: wrong, it costs a look, or a moment.
    rests_at: AtomicU64,
    rests_until: AtomicU64,
    /// What was absorbed while there was no graph stays so (O5): it stands still until the graph passes it.
    stood: AtomicU64,
    /// Linked rows that the rate knows of.
    counted: AtomicU64,
    /// Rows cannot be read: it never will answer.
    unfit: OnceLock<Error>,
    graph_rows_min: usize,
}

impl Indexing {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            answers: ArcSwapOption::empty(),
            next: ArcSwapOption::empty(),
            work: Mutex::default(),
            purging: AtomicU64::new(0),
            imaged: AtomicU64::new(0),
            rebuilt: AtomicU64::new(0),
            rests_at: AtomicU64::new(u64::MAX),
            rests_until: AtomicU64::new(0),
            stood: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            unfit: OnceLock::new(),
            graph_rows_min: config.index_graph_rows_min,
        }
    }

    fn empty(options: &SpaceOptions) -> Arc<Index> {
        // A space's id is never used again: its randomness is its own, and the same after every start.
        Arc::new(Index::new(options.dim, options.metric, options.id.0))
    }

    /// New rows, in order. Under `growing`.
    pub(super) fn append(&self, part: &Part) {
        let answers = self.answers.load();
        let Some(answers) = answers.as_ref().filter(|_| part.sound) else { return };
        for row in 0..part.rows.rows() {
            match part.rows.vectors_from(row, 1) {
                Ok(run) if run.bytes.is_empty() => {}
                Ok(run) => answers.index.append(part.rows.generation_at(row), run.bytes, run.inverse_norms[0]),
                // They were checked when they came: whatever this is, the view will say it.
                Err(error) => return self.give_up(error),
            }
        }
    }

    /// Under `growing`.
    pub(super) fn kill(&self, generation: Generation, death: Generation) {
        if let Some(answers) = &*self.answers.load() {
            answers.index.kill(generation, death);
        }
        if let Some(next) = &*self.next.load() {
            next.kill(generation, death);
        }
    }

    fn give_up(&self, error: Error) {
        let _ = self.unfit.set(error);
        self.answers.store(None);
        self.next.store(None);
    }
}

impl Space {
    /// The index, for whoever looks at `upto`; None: none answers for that.
    pub fn index_at(&self, upto: Generation) -> Option<Arc<Answers>> {
        self.indexing.answers.load_full().filter(|answers| answers.from <= upto)
    }

    /// Rows in the index, and those of them that the graph answers for; while none answers, of the one being made.
    pub fn indexed(&self) -> (u64, u64) {
        let answers = self.indexing.answers.load_full().map(|answers| Arc::clone(&answers.index));
        let index = answers.or_else(|| self.indexing.next.load_full());
        // In this order: rows may come, and be linked, in between.
        index.map_or((0, 0), |index| {
            let linked = index.linked() as u64;
            (index.rows() as u64, linked)
        })
    }

    /// Rows that the image on the disk has, and how often an index had to be made from the rows for want of one.
    pub fn imaged(&self) -> (u64, u64) {
        (self.indexing.imaged.load(Ordering::Relaxed), self.indexing.rebuilt.load(Ordering::Relaxed))
    }

    /// Why the index will never answer, if so: rows cannot be read.
    pub fn index_error(&self) -> Option<&Error> {
        self.indexing.unfit.get()
    }

    /// Up to where the index answers without looking through a tail (O5). A space without a graph counts as absorbed.
    pub fn absorbed(&self) -> Generation {
        let watermark = self.watermark();
        let Some(first) = self.first_unabsorbed() else {
            return Generation(self.indexing.stood.fetch_max(watermark.0, Ordering::AcqRel).max(watermark.0));
        };
        watermark.min(Generation((first.0 - 1).max(self.indexing.stood.load(Ordering::Acquire))))
    }

    /// The first row that the index does not answer for but by looking through its tail; 1 while none answers.
    fn first_unabsorbed(&self) -> Option<Generation> {
        let answers = self.indexing.answers.load();
        let Some(answers) = &*answers else { return Some(Generation(1)) };
        if answers.index.rows() < self.indexing.graph_rows_min { None } else { answers.index.first_unlinked() }
    }

    /// Up to where the index answers, and for how long, in microseconds, the oldest row behind that has been there; 0: there is none (G7).
    pub fn lag(&self, wall_micros: i64) -> (Generation, i64) {
        let absorbed = self.absorbed();
        let view = self.view();
        let waiting = view.next_row(absorbed).filter(|row| *row <= view.watermark());
        let since = waiting.and_then(|row| view.committed_at(row));
        (absorbed, since.map_or(0, |at| (wall_micros - at).max(0)))
    }

    /// The index of a space that has just been made; there is no image of it.
    pub fn index_anew(&self) {
        let mut filling = self.begin_filling(Indexing::empty(&self.options));
        while !self.fill(&mut filling) {}
        *self.indexing.work.lock() = Work::Resting(work::Rest::default());
    }

    /// A step of writing the image, if one is being written; whether one is, or may be: somebody is at the index.
    pub fn write_index(&self, tools: &Tools<'_>) -> bool {
        let writes = self.indexing.work.try_lock().map(|work| matches!(*work, Work::Writing(_)));
        if writes == Some(true) {
            self.work_on_index(tools);
        }
        writes.unwrap_or(true)
    }

    /// Rows that came since the index answers, and that its graph does not answer for.
    pub fn tail_rows(&self) -> u64 {
        let answers = self.indexing.answers.load();
        let Some(answers) = &*answers else { return 0 };
        // In this order: rows may come, and be linked, in between.
        let linked = answers.index.linked().max(answers.given);
        let rows = answers.index.rows();
        if rows < self.indexing.graph_rows_min { 0 } else { (rows - linked) as u64 }
    }

    /// Bytes of those rows in the index.
    pub fn tail_bytes(&self) -> u64 {
        self.tail_rows() * held_bytes(self.options.dim as usize) as u64
    }

    /// Does a piece of work on the index; false if there is nothing to do. Any number of threads: linking is for all, the rest for one at a time.
    pub fn build_index(&self, tools: &Tools<'_>) -> bool {
        let (generation, indexing) = (self.watermark().0, &self.indexing);
        let rests = indexing.rests_at.load(Ordering::Relaxed) == generation;
        if rests && tools.now < indexing.rests_until.load(Ordering::Relaxed) {
            return false;
        }
        let (moved, busy) = self.build_some(tools);
        if !moved && !busy {
            let rest = REST_MS.min(tools.config.index_image_idle_ms.max(1)) * 1_000_000;
            indexing.rests_until.store(tools.now + rest, Ordering::Relaxed);
        }
        indexing.rests_at.store(if moved || busy { u64::MAX } else { generation }, Ordering::Relaxed);
        moved
    }

    /// Whether it moved, and whether somebody else is at it.
    fn build_some(&self, tools: &Tools<'_>) -> (bool, bool) {
        self.count_recalls(tools.now);
        let worked = self.work_on_index(tools);
        let (worked, busy) = (worked.unwrap_or(false), worked.is_none());
        let answers = self.indexing.answers.load_full();
        let Some(answers) = answers.filter(|answers| answers.index.rows() >= self.indexing.graph_rows_min) else {
            return (worked, busy);
        };
        if self.tail_rows() > READY_FROM {
            answers.index.ready_ahead();
        }
        let built = answers.index.build();
        let linked = answers.index.linked() as u64;
        // Relaxed: each row is counted by one of those who linked them; nothing else hangs on it.
        let before = self.indexing.counted.fetch_max(linked, Ordering::Relaxed);
        if linked > before {
            self.flow.linked(tools.now, linked - before);
            if self.flow.is_pressed() {
                self.level(tools.now);
                self.gate.wake();
            }
        }
        (worked | built, busy)
    }
}
