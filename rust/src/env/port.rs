//! Submit and complete: how a step starts I/O without waiting for it (T4).
//!
//! A port is a FIFO of jobs over one `Files`. A machine submits; an I/O thread, a caller that would only wait, or the simulator in
//! seeded order, runs one job at a time; the machine polls what is done. Completions come in submission order: `runner` admits one.
//! Who finds it taken leaves; who lets it go looks for jobs once more, so that none is left lying (`rust/tests/loom.rs`). The lengths are atomics so
//! that a thread can look before it locks: a stale answer only costs one more look, the queues themselves are under their mutexes.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use engram_kernels::sync::{AtomicUsize, Mutex, Ordering};

use super::{Bytes, File, Files, Scheduler, Task};

/// What a job hands back.
pub enum Output {
    Nothing,
    File(Arc<dyn File>),
    Bytes(Bytes),
    Count(u64),
}

pub type Job = Box<dyn FnOnce(&dyn Files) -> io::Result<Output> + Send>;

pub struct Done {
    pub tag: u64,
    pub result: io::Result<Output>,
}

pub struct Port {
    files: Arc<dyn Files>,
    scheduler: Arc<dyn Scheduler>,
    io: Task,
    runner: Mutex<()>,
    jobs: Mutex<VecDeque<(u64, Job)>>,
    done: Mutex<VecDeque<Done>>,
    waiting: AtomicUsize,
    finished: AtomicUsize,
}

impl Port {
    pub fn new(files: Arc<dyn Files>, scheduler: Arc<dyn Scheduler>, io: Task) -> Self {
        Self {
            files,
            scheduler,
            io,
            runner: Mutex::default(),
            jobs: Mutex::default(),
            done: Mutex::default(),
            waiting: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
        }
    }

    pub fn submit(&self, tag: u64, job: Job) {
        self.jobs.lock().push_back((tag, job));
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.scheduler.wake(self.io);
    }

    pub fn has_jobs(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    pub fn poll(&self) -> Option<Done> {
        if self.finished.load(Ordering::Acquire) == 0 {
            return None;
        }
        let done = self.done.lock().pop_front();
        if done.is_some() {
            self.finished.fetch_sub(1, Ordering::AcqRel);
        }
        done
    }

    /// Runs the oldest job, unless another thread is at one. A panicking job counts as a failed one: its machine learns of it.
    pub fn run_one(&self) -> bool {
        let Some(_running) = self.runner.try_lock() else { return false };
        let Some((tag, job)) = self.jobs.lock().pop_front() else { return false };
        let files = &*self.files;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(files)))
            .unwrap_or_else(|_| Err(io::Error::other("an I/O job panicked")));
        self.done.lock().push_back(Done { tag, result });
        self.finished.fetch_add(1, Ordering::Release);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        true
    }
}
