//! The parts of a running engine, shared by whoever drives them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam::queue::SegQueue;
use parking_lot::Mutex;

use super::catalogue::Catalogue;
use super::ingest::Writer;
use super::levels::Listeners;
use super::maintenance::{Kept, Maintenance};
use super::open::OpenReport;
use super::sessions::Completion;
use crate::env::{Env, Port, Scheduler, Task};
use crate::error::Error;
use crate::queue::{Completions, Pool, Turn};
use crate::store::{Space, Spaces, Tools};
use crate::types::codec::Seed;
use crate::types::{Config, PartitionId, SpaceId};
use crate::wal::Supply;

/// Bytes written since the start, by what they were for.
#[derive(Debug, Default)]
pub struct Written {
    pub log: AtomicU64,
    pub sealed: AtomicU64,
    pub merged: AtomicU64,
    pub checkpoints: AtomicU64,
    pub segments: AtomicU64,
}

/// One log, one writer at a time, and what belongs to them (T1).
pub struct Partition {
    pub id: PartitionId,
    pub index: usize,
    pub dir: String,
    pub port: Arc<Port>,
    pub supply: Arc<Supply>,
    pub(super) writer: Turn<Writer>,
    /// Spaces with something in their lane.
    pub ready: SegQueue<SpaceId>,
    /// Spaces with a forget in their control lane.
    pub controls: SegQueue<SpaceId>,
    /// The maintenance machine waits for everything to be synced.
    pub sync_wanted: AtomicBool,
    pub poisoned: OnceLock<String>,
    pub(super) kept: Mutex<Kept>,
}

pub struct Core {
    pub config: Config,
    pub env: Env,
    pub scheduler: Arc<dyn Scheduler>,
    pub seed: Seed,
    pub directory_id: [u8; 16],
    pub(super) key: [u8; 32],
    pub spaces: Spaces,
    pub partitions: Vec<Partition>,
    pub(super) catalogue: Catalogue,
    pub(super) maintenance: Mutex<Maintenance>,
    pub maintenance_port: Arc<Port>,
    /// Bytes in all queues, and bytes of all spaces that are not sealed.
    pub process_queue: Pool,
    pub process_unsealed: Arc<Pool>,
    /// An image of some index is being written.
    pub(super) writing: AtomicBool,
    /// Bytes of rows that no graph answers for yet, and how many spaces have some, as builders saw it last. Relaxed: an estimate.
    pub(super) unabsorbed: (AtomicU64, AtomicU64),
    /// An admission was refused for what all spaces hold unsealed. Relaxed, like a space's own wish.
    pub(super) wants_room: AtomicBool,
    pub written: Written,
    pub report: OpenReport,
    /// What submitted frames came to.
    pub completions: Arc<Completions<Completion>>,
    /// Recalls of which the batch that was asked for is made.
    pub answered: Completions<u64>,
    pub(super) listeners: Listeners,
    /// Spaces that were dropped: their images go.
    pub(super) dropped: SegQueue<Arc<Space>>,
    pub closing: AtomicBool,
    pub observed: AtomicU64,
    /// Rounds of a thread that panicked, and partitions that another thread than their own took over.
    pub worker_restarts: AtomicU64,
    pub takeovers: AtomicU64,
    /// Observations that could not be applied.
    pub quarantined: AtomicU64,
    /// Batches of those whose bytes could not be kept aside.
    pub quarantine_unkept: AtomicU64,
}

impl Partition {
    /// Looks at the writer. Who came in the meantime left the work to the holder: it is passed on.
    pub(super) fn with_writer<T>(&self, core: &Core, look: impl FnOnce(&mut Writer) -> T) -> T {
        let (seen, due) = self.writer.look(look);
        if due {
            core.scheduler.wake(Task::Writer(self.index));
        }
        seen
    }

    /// There is something for the writer to do; who says so must step it or wake it.
    pub fn announce(&self) {
        self.writer.announce();
    }

    /// Whether there is something to do for the writer that nobody has begun.
    pub fn is_due(&self) -> bool {
        self.writer.is_due()
    }
}

impl Core {
    pub fn now(&self) -> u64 {
        self.env.clock.monotonic_nanos()
    }

    /// The time `ms` from now; one beyond all times is never.
    pub(super) fn after_ms(&self, ms: u64) -> u64 {
        self.now().saturating_add(ms.saturating_mul(1_000_000))
    }

    pub fn check_open(&self) -> Result<(), Error> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::Closed { what: "the engine".to_owned() });
        }
        Ok(())
    }

    /// Says that partition `index` has work, and does a step of it here if no one else is at it.
    pub fn drive(&self, index: usize) {
        let partition = &self.partitions[index];
        partition.announce();
        if self.step_partition(index) && partition.is_due() {
            self.scheduler.wake(Task::Writer(index));
        }
    }

    /// Says that partition `index` has work, for its own thread to do.
    pub fn wake_writer(&self, index: usize) {
        self.partitions[index].announce();
        self.scheduler.wake(Task::Writer(index));
    }

    /// A step of a partition's writer; false if another thread is at it.
    pub fn step_partition(&self, index: usize) -> bool {
        let partition = &self.partitions[index];
        partition.writer.step(|writer| {
            let stepped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.step(self, partition)));
            stepped.unwrap_or_else(|_| {
                writer.poison(partition, "the writer panicked");
                false
            })
        })
    }

    pub fn step_catalogue(&self) {
        let stepped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.catalogue.step(self)));
        if stepped.is_err() {
            self.catalogue.state.lock().panicked();
        }
    }

    /// Runs one job of the catalogue's port; false if there is none.
    pub fn run_catalogue_io(&self) -> bool {
        self.catalogue.port.run_one()
    }

    /// One step of sealing, checkpoints and segments; true if it moved.
    pub fn step_maintenance(&self) -> bool {
        self.tell_levels();
        let Some(mut maintenance) = self.maintenance.try_lock() else {
            return false;
        };
        let stepped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| maintenance.step(self)));
        stepped.unwrap_or_else(|_| {
            maintenance.panicked(self);
            true
        })
    }

    /// A step of building and one of writing images, for who drives everything by himself; true if either moved.
    pub fn step_builder(&self) -> bool {
        self.build_indexes() | self.write_images()
    }

    /// One step of writing images of indexes; true if it moved.
    pub(super) fn write_images(&self) -> bool {
        // Whoever begins one says so; with none there is nothing to look for.
        if !self.writing.swap(false, Ordering::AcqRel) {
            return false;
        }
        let write = |space: &Arc<Space>| space.write_index(&Tools { writes: true, ..self.tools(space) });
        let writes = self.spaces.all().iter().filter(|space| write(space)).count() > 0;
        self.writing.fetch_or(writes, Ordering::AcqRel);
        writes
    }

    /// One step of building indexes, a piece of each space's; true if it moved.
    pub(super) fn build_indexes(&self) -> bool {
        while let Some(space) = self.dropped.pop() {
            space.drop_image(&self.tools(&space));
        }
        // Each has its turn.
        let (mut moved, mut bytes, mut tails) = (false, 0, 0);
        for space in self.spaces.all() {
            moved |= space.build_index(&self.tools(&space));
            let tail = space.tail_bytes();
            (bytes, tails) = (bytes + tail, tails + u64::from(tail > 0));
        }
        self.unabsorbed.0.store(bytes, Ordering::Relaxed);
        self.unabsorbed.1.store(tails, Ordering::Relaxed);
        moved
    }

    /// What work on a space's index needs.
    pub fn tools(&self, space: &Space) -> Tools<'_> {
        let dir = &self.partitions[space.options.partition.0 as usize].dir;
        Tools {
            files: &*self.env.files,
            seed: self.seed,
            dir,
            config: &self.config,
            now: self.now(),
            writes: false,
            writing: &self.writing,
        }
    }

    /// Everything pushed is answered, everything answered is on the disk, and no I/O is under way.
    pub fn is_quiet(&self) -> bool {
        self.partitions.iter().all(|p| {
            !p.port.has_jobs() && p.with_writer(self, |w| w.is_quiet()) && p.ready.is_empty() && p.controls.is_empty()
        }) && self.catalogue.is_quiet()
    }
}
