//! The calls that wait, and the engine's beginning and end.
//!
//! After a completion the I/O thread itself steps the writer if nothing else waits for the disk. A caller that has just pushed
//! steps the writer and runs its I/O too, if nobody is at it: alone, an acknowledgement costs no hop between threads. Writer threads take
//! what is left, and the timers (`threads`). All they do a simulator can do (T4). `close` drains, writes clean closing groups, joins everything and
//! returns what went wrong; `Drop` is a backstop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::calls::{Admission, Prepared};
use super::core::Core;
use super::reads::Readers;
use super::threads::{HELPING, Threads};
use crate::env::{Env, Scheduler, Task};
use crate::error::Error;
use crate::queue::{Committed, Ticket};
use crate::store::Space;
use crate::types::{Config, Durability, Generation, Metric, Quota, check_space_name};

pub(super) const SLICE: Duration = Duration::from_millis(20);
/// Between two looks at how far the index is.
const ABSORB_LOOK: Duration = Duration::from_millis(1);
const CLOSE_WAIT_MS: u64 = 30_000;

/// Called while waiting; an error ends the wait (a signal came).
pub type Pulse<'a> = &'a dyn Fn() -> Result<(), Error>;

/// A running engine.
pub struct Engine {
    pub(super) core: Arc<Core>,
    threads: Arc<Threads>,
    pub(super) readers: Arc<Readers>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    closed: Mutex<bool>,
    /// The threads are another process's.
    forgotten: AtomicBool,
}

impl Engine {
    pub fn open(env: Env, config: Config, cores: usize) -> Result<Self, Error> {
        engram_kernels::try_level().map_err(|e| Error::invalid("ENGRAM_SIMD", e.to_string()))?;
        let threads = Arc::new(Threads::new(cores));
        let config = Config { cores, ..config };
        let core = Core::open(env, config, Arc::clone(&threads) as Arc<dyn Scheduler>)?;
        let (readers, handles, closed) = (Arc::default(), Mutex::default(), Mutex::new(false));
        let engine = Self { core, threads, readers, handles, closed, forgotten: AtomicBool::new(false) };
        *engine.handles.lock() = engine.threads.start(&engine.core).map_err(|e| Error::io("a thread", &e))?;
        Ok(engine)
    }

    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Makes a space, or opens the one of that name if it has these properties.
    pub fn create_space(
        &self,
        name: &str,
        dim: u32,
        metric: Option<Metric>,
        durability: Option<Durability>,
        pulse: Pulse<'_>,
    ) -> Result<Arc<Space>, Error> {
        check_space_name(name)?;
        Core::check_dim(dim)?;
        loop {
            match self.core.space(name) {
                Ok(space) => return same_properties(space, dim, metric, durability),
                Err(Error::NotFound { .. }) if self.core.spaces.named(name).is_some() => {
                    let message = "it is being dropped".to_owned();
                    return Err(Error::AlreadyExists { what: format!("space {name:?}"), message });
                }
                Err(Error::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
            let ticket = self.core.submit_create(name, dim, metric.unwrap_or(Metric::Cosine), durability);
            self.core.step_catalogue();
            match self.wait(&ticket, pulse) {
                // Another caller was quicker: its space is looked at like any other.
                Err(Error::AlreadyExists { .. }) => {}
                other => {
                    other?;
                }
            }
        }
    }

    /// What the space may hold from now on; durable when it returns.
    pub fn set_quota(&self, space: &Space, quota: Quota, pulse: Pulse<'_>) -> Result<(), Error> {
        self.core.check_open()?;
        let ticket = self.core.submit_quota(space.options.id, quota);
        self.core.step_catalogue();
        self.wait(&ticket, pulse).map(|_| ())
    }

    /// Drops a space and its memories (K4). Waits for what was admitted before.
    pub fn drop_space(&self, name: &str, pulse: Pulse<'_>) -> Result<(), Error> {
        let space = self.core.space(name)?;
        space.fence();
        let dropped = self.drop_fenced(&space, pulse);
        if !matches!(dropped, Ok(()) | Err(Error::Interrupted)) {
            space.unfence();
        }
        dropped
    }

    fn drop_fenced(&self, space: &Arc<Space>, pulse: Pulse<'_>) -> Result<(), Error> {
        while !space.is_drained() {
            self.core.drive(space.options.partition.0 as usize);
            pulse().inspect_err(|_| space.unfence())?;
            space.gate.wait(SLICE, || space.is_drained());
        }
        let ticket = self.core.submit_drop(space.options.id);
        self.core.step_catalogue();
        // Interrupted from here on, the drop may still happen: the space stays fenced until the catalogue has decided.
        self.wait(&ticket, pulse).map(|_| ())
    }

    pub(super) fn wait<T: Clone>(&self, ticket: &Ticket<T>, pulse: Pulse<'_>) -> Result<T, Error> {
        loop {
            if let Some(outcome) = ticket.wait(SLICE) {
                return outcome;
            }
            pulse()?;
        }
    }

    /// Waits for a permit, at most `timeout_ms`, then pushes; the acknowledgement comes by the ticket (P8).
    pub fn submit(
        &self,
        space: &Arc<Space>,
        prepared: Box<Prepared>,
        timeout_ms: u64,
        pulse: Pulse<'_>,
    ) -> Result<Arc<Ticket<Committed>>, Error> {
        let begun = self.core.now();
        let mut prepared = prepared;
        loop {
            let index = space.options.partition.0 as usize;
            let reason = match self.core.admit(space, prepared)? {
                Admission::Admitted(ticket) => {
                    self.help(index, &ticket);
                    return Ok(ticket);
                }
                Admission::Full(back, reason) => {
                    prepared = back;
                    reason
                }
            };
            let waited_ms = (self.core.now() - begun) / 1_000_000;
            if waited_ms >= timeout_ms {
                let full = self.core.maintenance_error().filter(Error::is_disk_full);
                return Err(full.unwrap_or_else(|| self.core.overloaded(space, &prepared, reason)));
            }
            self.core.scheduler.wake(Task::Maintenance);
            self.core.drive(index);
            space.gate.wait(SLICE.min(Duration::from_millis(timeout_ms - waited_ms)), || false);
            pulse()?;
        }
    }

    /// Waits until the index answers, without a tail, for everything that is there now; up to where it does.
    pub fn wait_absorbed(&self, space: &Space, timeout_ms: u64, pulse: Pulse<'_>) -> Result<Generation, Error> {
        let (wanted, until) = (space.watermark(), self.core.after_ms(timeout_ms));
        let mut looked = 0_u64;
        loop {
            self.core.readable(space)?;
            if let Some(error) = space.index_error() {
                return Err(error.clone());
            }
            let absorbed = space.absorbed();
            if absorbed >= wanted && space.index_at(space.watermark()).is_some() {
                return Ok(absorbed);
            }
            if self.core.now() >= until {
                let what = format!("absorbing up to generation {wanted}: it is at {absorbed}");
                return Err(Error::Timeout { what });
            }
            // Who waits helps.
            if !space.build_index(&self.core.tools(space)) {
                self.core.scheduler.wake(Task::Builder);
                std::thread::park_timeout(ABSORB_LOOK);
            }
            looked += 1;
            if looked.is_multiple_of(16) {
                pulse()?;
            }
        }
    }

    /// A caller that would only wait writes and syncs itself, until its answer is there or another thread is at it.
    pub(super) fn help<T: Clone>(&self, index: usize, ticket: &Ticket<T>) {
        let port = &self.core.partitions[index].port;
        HELPING.set(true);
        self.core.drive(index);
        while ticket.outcome().is_none() && port.run_one() {
            self.core.drive(index);
        }
        HELPING.set(false);
        if port.has_jobs() {
            self.core.scheduler.wake(Task::Io(index));
        }
    }

    /// Seals everything and makes both kept checkpoints sharp at the end of the log.
    pub fn checkpoint(&self, pulse: Pulse<'_>) -> Result<(), Error> {
        self.core.check_open()?;
        for i in 0..self.core.partitions.len() {
            let ticket = self.core.submit_checkpoint(i);
            self.wait(&ticket, pulse)?;
        }
        Ok(())
    }

    /// Drains, closes the logs cleanly, ends the threads, gives the directory back. Says what went wrong.
    pub fn close(&self) -> Result<(), Error> {
        if self.forgotten.load(Ordering::Relaxed) {
            return Ok(()); // the logs are another process's
        }
        let mut closed = self.closed.lock();
        if std::mem::replace(&mut *closed, true) {
            return Ok(());
        }
        self.core.closing.store(true, Ordering::SeqCst);
        self.core.listeners.heard.end();
        let drained = self.drain() && self.close_logs();
        self.stop();
        self.core.refuse_checkpoints();
        self.core.env.files.unlock();
        if let Some(cause) = self.core.partitions.iter().find_map(|p| p.poisoned.get()) {
            return Err(Error::Poisoned { cause: cause.clone() });
        }
        if drained { Ok(()) } else { Err(Error::Timeout { what: "closing".to_owned() }) }
    }

    fn drain(&self) -> bool {
        let until = self.core.now() + CLOSE_WAIT_MS * 1_000_000;
        while !self.core.is_quiet() {
            for i in 0..self.core.partitions.len() {
                self.core.drive(i);
            }
            self.core.step_catalogue();
            std::thread::park_timeout(Duration::from_micros(200));
            if self.core.now() > until {
                return false;
            }
        }
        true
    }

    fn close_logs(&self) -> bool {
        let until = self.core.now() + CLOSE_WAIT_MS * 1_000_000;
        for partition in &self.core.partitions {
            let closed = || partition.with_writer(&self.core, |w| !w.needs_clean_close() || w.close(&self.core, true));
            // Room for the closing group may still have to be made.
            while !closed() && partition.supply.error().is_none() && self.core.now() < until {
                self.core.scheduler.wake(Task::Maintenance);
                std::thread::park_timeout(Duration::from_micros(200));
            }
        }
        self.core.catalogue.close(&self.core);
        self.drain()
    }

    fn stop(&self) {
        self.readers.end();
        self.threads.stop();
        for handle in std::mem::take(&mut *self.handles.lock()) {
            handle.thread().unpark();
            let _ = handle.join();
        }
    }

    /// In a forked child: the threads are the parent's. Gives up the child's copy of the lock and touches nothing else.
    pub fn forget_after_fork(&self) {
        // A lock that another thread held at the fork is held for ever here: what cannot be had is left.
        self.core.env.files.unlock();
        self.readers.forget();
        if let Some(mut handles) = self.handles.try_lock() {
            std::mem::forget(std::mem::take(&mut *handles));
        }
        // Relaxed: the child has this thread alone, or ones it started later.
        self.forgotten.store(true, Ordering::Relaxed);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

fn same_properties(
    space: Arc<Space>,
    dim: u32,
    metric: Option<Metric>,
    durability: Option<Durability>,
) -> Result<Arc<Space>, Error> {
    let o = &space.options;
    let differs = |message: String| Err(Error::AlreadyExists { what: format!("space {:?}", o.name), message });
    if o.dim != dim {
        return differs(format!("it has dim {}, not {dim}", o.dim));
    }
    if let Some(metric) = metric.filter(|m| *m != o.metric) {
        return differs(format!("it has metric {:?}, not {:?}", o.metric.name(), metric.name()));
    }
    if let Some(durability) = durability.filter(|d| *d != space.durability) {
        return differs(format!("it has durability {:?}, not {:?}", space.durability.name(), durability.name()));
    }
    Ok(space)
}
