//! Everything that is not deterministic: clock, files, randomness, scheduling, behind small traits (T4).
//!
//! Real ones are in `real`; `memory` is a disk in RAM that can also be traced; `crash` turns a trace into the images a power cut
//! may leave; `faulty` makes chosen calls fail. Nothing outside this folder may read a clock, a file or a random number: clippy
//! forbids it. Traits are `Sync`; implementations lock inside.

mod crash;
mod faulty;
mod memory;
mod port;
mod real;
mod sites;

use std::io;
use std::sync::Arc;

pub use crash::CrashModel;
pub use faulty::{Action, FaultPlan, FaultyFiles, Operation, Rule};
pub use memory::{DiskState, MemoryFiles, Node, SimClock, SimRandom, Trace, TraceOp};
pub use port::{Done, Job, Output, Port};
pub use real::{RealClock, RealFiles, RealRandom, StepBack, step_back};
pub use sites::Site;

/// Two clocks: one for intervals, one for dates.
pub trait Clock: Send + Sync {
    /// Nanoseconds since some start; never goes back.
    fn monotonic_nanos(&self) -> u64;
    /// Microseconds since 1970; may jump.
    fn wall_micros(&self) -> i64;
}

pub trait Random: Send + Sync {
    fn next_u64(&self) -> u64;
}

/// Whom to wake. Real: threads; simulated: nobody, the simulator polls in seeded order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Writer(usize),
    Io(usize),
    Maintenance,
    Builder,
}

pub trait Scheduler: Send + Sync {
    fn wake(&self, task: Task);
}

/// An open file. Reads and writes carry their position.
pub trait File: Send + Sync {
    /// Writes all chunks one after the other from `offset`.
    fn write_at(&self, offset: u64, chunks: &[&[u8]]) -> io::Result<()>;
    /// The same in small pieces, between which others have the CPU: for what nobody waits for.
    fn write_patiently(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, &[bytes])
    }
    /// Fills `buf` as far as the file reaches; returns the bytes read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Contents and length are durable when this returns Ok (fdatasync).
    fn sync(&self, site: Site) -> io::Result<()>;
    /// The whole file, which must never change again.
    fn map(&self) -> io::Result<Bytes>;
    /// Fault hook: what is dirty stays readable and will never reach the disk, as after a failed fsync.
    fn lose_dirty(&self) {}
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub bytes: u64,
    pub is_dir: bool,
}

/// A data directory. Paths are relative to it, with `/`.
pub trait Files: Send + Sync {
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// Sorted by name; `NotFound` if the directory is absent.
    fn list(&self, dir: &str) -> io::Result<Vec<Entry>>;
    /// A new empty file; an existing one of that name is emptied.
    fn create(&self, path: &str) -> io::Result<Arc<dyn File>>;
    fn open(&self, path: &str) -> io::Result<Arc<dyn File>>;
    fn rename(&self, from: &str, to: &str, site: Site) -> io::Result<()>;
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Entries of the directory are durable when this returns Ok.
    fn sync_dir(&self, dir: &str, site: Site) -> io::Result<()>;
    /// Takes the directory for this process until `unlock` or the process's end (D7).
    fn lock(&self) -> Result<(), LockError>;
    fn unlock(&self);
    /// Names this boot of the machine: what an `os` write survives.
    fn boot_id(&self) -> u64;
    /// The directory as the user knows it, for messages.
    fn root(&self) -> String;

    /// Fault hook: something is about to be done that is not a file's, with these bytes.
    fn reached(&self, _operation: Operation, _what: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
        let n = file.read_at(0, &mut bytes)?;
        bytes.truncate(n);
        Ok(bytes)
    }
}

#[derive(Debug)]
pub enum LockError {
    Held(u32),
    Io(io::Error),
}

/// Immutable bytes: mapped, or held in memory.
#[derive(Clone)]
pub enum Bytes {
    Mapped(Arc<engram_kernels::MappedFile>),
    Memory(Arc<Vec<u8>>),
}

impl Bytes {
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file.as_bytes(),
            Self::Memory(bytes) => bytes,
        }
    }
}

/// One environment: what an engine is opened with.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub files: Arc<dyn Files>,
    pub random: Arc<dyn Random>,
}

impl Env {
    /// A directory on this machine.
    pub fn real(root: &std::path::Path) -> io::Result<Self> {
        Ok(Self {
            clock: Arc::new(RealClock::new()),
            files: Arc::new(RealFiles::new(root)?),
            random: Arc::new(RealRandom),
        })
    }

    /// Real clock and randomness over files in RAM: `engram.open()` without a path.
    pub fn in_memory() -> Self {
        Self { clock: Arc::new(RealClock::new()), files: Arc::new(MemoryFiles::new()), random: Arc::new(RealRandom) }
    }
}
