//! Threads that read for callers that do not wait. Made when they are needed, they stay until the engine ends.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::Error;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    running: usize,
    /// As the last that came said.
    most: usize,
    threads: Vec<JoinHandle<()>>,
    ended: bool,
}

#[derive(Default)]
pub(in crate::engine) struct Readers {
    jobs: Mutex<Jobs>,
    more: Condvar,
}

impl Readers {
    /// Has it done after what waits already; from now on at most `most` are done at once.
    pub(super) fn run(self: &Arc<Self>, most: usize, job: Job) -> Result<(), Error> {
        let mut jobs = self.jobs.lock();
        if jobs.ended {
            return Err(Error::Closed { what: "the engine".to_owned() });
        }
        jobs.waiting.push_back(job);
        jobs.most = most;
        if jobs.waiting.len() + jobs.running > jobs.threads.len() && jobs.threads.len() < most {
            let (readers, name) = (Arc::clone(self), format!("engram-reader-{}", jobs.threads.len()));
            match std::thread::Builder::new().name(name).spawn(move || readers.work()) {
                Ok(thread) => jobs.threads.push(thread),
                // Those that there are will come to it.
                Err(_) if !jobs.threads.is_empty() => {}
                Err(error) => {
                    jobs.waiting.pop_back();
                    return Err(Error::io("a thread", &error));
                }
            }
        }
        self.more.notify_one();
        Ok(())
    }

    fn work(&self) {
        let mut jobs = self.jobs.lock();
        loop {
            let job = if jobs.running < jobs.most { jobs.waiting.pop_front() } else { None };
            if let Some(job) = job {
                jobs.running += 1;
                // Who waits for a job that panicked is told that there is no answer.
                MutexGuard::unlocked(&mut jobs, || drop(catch_unwind(AssertUnwindSafe(job))));
                jobs.running -= 1;
            } else if jobs.ended {
                return;
            } else {
                self.more.wait(&mut jobs);
            }
        }
    }

    /// Takes no more; what waits is still done: by a closing engine, with an error.
    pub(in crate::engine) fn end(&self) {
        let mut jobs = self.jobs.lock();
        jobs.ended = true;
        let threads = std::mem::take(&mut jobs.threads);
        drop(jobs);
        self.more.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// In a forked child: the threads are the parent's.
    pub(in crate::engine) fn forget(&self) {
        if let Some(mut jobs) = self.jobs.try_lock() {
            jobs.ended = true;
            std::mem::forget(std::mem::take(&mut jobs.threads));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn jobs_are_done_by_few_threads_whatever_becomes_of_others() {
        let (readers, begun) = (Arc::new(Readers::default()), Arc::new(Barrier::new(3)));
        let (done, names) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        readers.run(2, Box::new(|| std::panic::resume_unwind(Box::new("on purpose")))).unwrap();
        for _ in 0..2 {
            let begun = Arc::clone(&begun);
            // Each needs the other's thread.
            let job = move || {
                begun.wait();
            };
            readers.run(2, Box::new(job)).unwrap();
        }
        begun.wait();
        for _ in 0..50 {
            let (done, names) = (Arc::clone(&done), Arc::clone(&names));
            let job = move || {
                names.lock().push(std::thread::current().name().unwrap_or_default().to_owned());
                done.fetch_add(1, Ordering::SeqCst);
            };
            readers.run(2, Box::new(job)).unwrap();
        }
        readers.run(1, Box::new(|| ())).unwrap();
        let (now, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..8 {
            let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
            let job = move || {
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::park_timeout(std::time::Duration::from_millis(2));
                now.fetch_sub(1, Ordering::SeqCst);
            };
            readers.run(1, Box::new(job)).unwrap();
        }
        readers.end();
        assert_eq!(peak.load(Ordering::SeqCst), 1, "fewer, if fewer are asked for");
        assert_eq!(done.load(Ordering::SeqCst), 50, "what waits is done at the end");
        assert!(names.lock().iter().all(|name| ["engram-reader-0", "engram-reader-1"].contains(&name.as_str())));
        assert_eq!(readers.run(2, Box::new(|| ())).unwrap_err().code(), "CLOSED");
    }
}
