//! The engine's threads: which one runs what, who is woken, who is replaced, and who takes over from whom (T3).
//!
//! One I/O thread a partition, one for the catalogue, one for maintenance; min(partitions, cores) writer threads, each with its own
//! partitions; one for the maintenance machine, max(1, cores - 1) that build indexes with the CPU that others leave, one that writes their images. Whoever holds a partition's mutex is its writer, so that a thread can take over a whole partition by
//! stepping it: an idle one does when much waits there, or for long, and its own thread is busy with another. A round that panics ends, and a new one begins:
//! what the thread held is in the partition, not in the thread. `at` is a hint (Relaxed): wrong, it costs a look, or the wait for the next tick.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use super::core::Core;
use crate::env::{Operation, Port, Scheduler, StepBack, Task, step_back};

const TICK: Duration = Duration::from_millis(40);
const NOWHERE: usize = usize::MAX;
/// What waits so long for a busy thread is taken over, however little it is.
const LEFT_NANOS: u64 = 80_000_000;
const PARTITIONS_MAX: usize = 256;
const BUILDERS_MAX: usize = 32;

thread_local! {
    /// This thread will run the jobs it causes: no need to wake the one whose they are.
    pub(super) static HELPING: Cell<bool> = const { Cell::new(false) };
}

struct Writer {
    thread: OnceLock<Thread>,
    /// The partition it is stepping.
    at: AtomicUsize,
    /// Since when it has seen each partition left alone; 0: it is not.
    left: Vec<AtomicU64>,
}

pub(super) struct Threads {
    io: Vec<OnceLock<Thread>>,
    writers: Vec<Writer>,
    maintenance: OnceLock<Thread>,
    builders: Vec<OnceLock<Thread>>,
    images: OnceLock<Thread>,
    stop: AtomicBool,
}

/// What a thread does.
#[derive(Clone, Copy)]
enum Role {
    Io(usize),
    CatalogueIo(usize),
    MaintenanceIo(usize),
    Writer(usize),
    Maintenance,
    Builder(usize),
    Images,
}

impl Role {
    /// Who asks waits for a chain of threads, each for a moment: on busy cores those that work long would be in front of each of them.
    /// Maintenance does not step back: under pressure writers wait for the room that it makes.
    fn steps_back(self) -> Option<StepBack> {
        match self {
            Self::Builder(_) | Self::Images => Some(StepBack::Far),
            Self::Io(_) => Some(StepBack::Some),
            Self::Writer(_) | Self::CatalogueIo(_) | Self::Maintenance | Self::MaintenanceIo(_) => None,
        }
    }
}

impl Scheduler for Threads {
    fn wake(&self, task: Task) {
        let thread = match task {
            Task::Io(_) if HELPING.get() => None,
            Task::Io(i) => self.io.get(i),
            Task::Writer(i) => {
                let home = &self.writers[i % self.writers.len()];
                if ![NOWHERE, i].contains(&home.at.load(Ordering::Relaxed)) {
                    self.wake_idle();
                }
                Some(&home.thread)
            }
            Task::Maintenance => Some(&self.maintenance),
            Task::Builder => {
                self.builders.iter().skip(1).filter_map(OnceLock::get).for_each(Thread::unpark);
                self.builders.first()
            }
        };
        if let Some(thread) = thread.and_then(OnceLock::get) {
            thread.unpark();
        }
    }
}

impl Threads {
    /// For an engine on so many cores. The directory may have more partitions than asked for; 256 is the most there can be.
    pub(super) fn new(cores: usize) -> Self {
        let left = || (0..PARTITIONS_MAX).map(|_| AtomicU64::new(0)).collect();
        let writer = |_| Writer { thread: OnceLock::new(), at: AtomicUsize::new(NOWHERE), left: left() };
        Self {
            io: (0..PARTITIONS_MAX + 2).map(|_| OnceLock::new()).collect(),
            writers: (0..cores.clamp(1, 64)).map(writer).collect(),
            maintenance: OnceLock::new(),
            builders: (1..cores.clamp(2, BUILDERS_MAX + 1)).map(|_| OnceLock::new()).collect(),
            images: OnceLock::new(),
            stop: AtomicBool::new(false),
        }
    }

    pub(super) fn start(self: &Arc<Self>, core: &Arc<Core>) -> io::Result<Vec<JoinHandle<()>>> {
        let partitions = core.partitions.len();
        let io = (0..partitions).map(|i| (format!("io-{i}"), Role::Io(i)));
        let writers = (0..partitions.min(self.writers.len())).map(|w| (format!("writer-{w}"), Role::Writer(w)));
        let rest = [
            ("io-catalogue", Role::CatalogueIo(partitions)),
            ("io-maintenance", Role::MaintenanceIo(partitions + 1)),
            ("maintenance", Role::Maintenance),
            ("images", Role::Images),
        ];
        let rest = rest.into_iter().map(|(name, role)| (name.to_owned(), role));
        let builders = (0..self.builders.len()).map(|b| (format!("builder-{b}"), Role::Builder(b)));
        io.chain(writers)
            .chain(builders)
            .chain(rest)
            .map(|(name, role)| self.spawn(core, format!("engram-{name}"), role))
            .collect()
    }

    fn spawn(self: &Arc<Self>, core: &Arc<Core>, name: String, role: Role) -> io::Result<JoinHandle<()>> {
        let (core, threads) = (Arc::clone(core), Arc::clone(self));
        let named = name.clone();
        std::thread::Builder::new().name(name).spawn(move || {
            let _ = threads.slot(role).set(std::thread::current());
            if let Some(how) = role.steps_back() {
                step_back(how);
            }
            while !threads.stop.load(Ordering::Acquire) {
                let round = || {
                    let _ = core.env.files.reached(Operation::Work, named.as_bytes());
                    threads.round(&core, role);
                };
                if catch_unwind(AssertUnwindSafe(round)).is_err() {
                    core.worker_restarts.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                std::thread::park_timeout(TICK);
            }
        })
    }

    fn slot(&self, role: Role) -> &OnceLock<Thread> {
        match role {
            Role::Io(i) | Role::CatalogueIo(i) | Role::MaintenanceIo(i) => &self.io[i],
            Role::Writer(w) => &self.writers[w].thread,
            Role::Maintenance => &self.maintenance,
            Role::Builder(b) => &self.builders[b],
            Role::Images => &self.images,
        }
    }

    /// All there is to do now.
    fn round(&self, core: &Core, role: Role) {
        match role {
            Role::Io(i) => serve(core, &core.partitions[i].port, i),
            Role::CatalogueIo(_) => {
                while core.run_catalogue_io() {
                    core.step_catalogue();
                }
            }
            Role::MaintenanceIo(_) => {
                while core.maintenance_port.run_one() {
                    core.scheduler.wake(Task::Maintenance);
                }
            }
            Role::Writer(w) => self.write(core, w),
            Role::Maintenance => while core.step_maintenance() {},
            Role::Builder(_) | Role::Images => loop {
                let step = if matches!(role, Role::Images) { Core::write_images } else { Core::build_indexes };
                if self.stop.load(Ordering::Acquire) || !step(core) {
                    break;
                }
            },
        }
    }

    fn write(&self, core: &Core, w: usize) {
        let (partitions, all) = (core.partitions.len(), self.writers.len());
        for i in (w..partitions).step_by(all) {
            self.step(core, w, i);
        }
        if w == 0 {
            core.step_catalogue();
        }
        for i in (0..partitions).filter(|i| i % all != w) {
            if self.is_left_alone(core, w, i) && self.step(core, w, i) {
                core.takeovers.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Steps a partition as long as there is something to do at once; false if another thread is at it.
    fn step(&self, core: &Core, w: usize, i: usize) -> bool {
        let at = &self.writers[w].at;
        at.store(i, Ordering::Relaxed);
        let mut was_here = false;
        while core.step_partition(i) {
            was_here = true;
            if !core.partitions[i].is_due() {
                break;
            }
        }
        at.store(NOWHERE, Ordering::Relaxed);
        was_here
    }

    /// Much waits in the partition, or for long, and its thread is busy with another.
    fn is_left_alone(&self, core: &Core, w: usize, i: usize) -> bool {
        let (partition, since) = (&core.partitions[i], &self.writers[w].left[i]);
        let home = self.writers[i % self.writers.len()].at.load(Ordering::Relaxed);
        if [NOWHERE, i].contains(&home) || !partition.is_due() {
            since.store(0, Ordering::Relaxed);
            return false;
        }
        let now = core.now();
        let begun = since.load(Ordering::Relaxed);
        if begun == 0 {
            since.store(now, Ordering::Relaxed);
        }
        let waiting = core.spaces.of_partition(partition.id).iter().map(|s| s.depth.observations()).sum::<u64>();
        waiting > core.config.steal_threshold || (begun > 0 && now - begun > LEFT_NANOS)
    }

    fn wake_idle(&self) {
        let idle = self.writers.iter().find(|w| w.at.load(Ordering::Relaxed) == NOWHERE);
        if let Some(thread) = idle.and_then(|w| w.thread.get()) {
            thread.unpark();
        }
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// The I/O thread of a partition: jobs first; with none left, the writer's next step.
fn serve(core: &Core, port: &Port, index: usize) {
    while port.run_one() {
        if port.has_jobs() {
            core.partitions[index].announce();
            core.scheduler.wake(Task::Writer(index));
        } else {
            core.drive(index);
        }
    }
}
