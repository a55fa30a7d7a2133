//! Threads that read for callers that do not wait. Made when they are needed, they stay until the engine ends.
//!
//! Spaces take turns, and none has all threads at once: long scans of one leave a thread to the others' short recalls (P6).

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::Error;
use crate::types::SpaceId;

type Job = Box<dyn FnOnce() + Send>;

/// One space's jobs; kept while there are some.
#[derive(Default)]
struct Own {
    waiting: VecDeque<Job>,
    running: usize,
}

#[derive(Default)]
struct Jobs {
    spaces: HashMap<SpaceId, Own>,
    /// Spaces with jobs that wait, by whose turn it is.
    turns: VecDeque<SpaceId>,
    waiting: usize,
    running: usize,
    /// As the last that came said.
    most: usize,
    threads: Vec<JoinHandle<()>>,
    ended: bool,
}

impl Jobs {
    fn push(&mut self, space: SpaceId, job: Job) {
        let own = self.spaces.entry(space).or_default();
        if own.waiting.is_empty() {
            self.turns.push_back(space);
        }
        own.waiting.push_back(job);
        self.waiting += 1;
    }

    /// The next job that may run, of the space whose turn it is.
    fn begin(&mut self) -> Option<(SpaceId, Job)> {
        if self.running >= self.most {
            return None;
        }
        let share = (self.most - self.most / 4).max(1);
        let at = self.turns.iter().position(|space| self.spaces.get(space).is_some_and(|own| own.running < share))?;
        let space = self.turns.remove(at)?;
        let own = self.spaces.get_mut(&space)?;
        let job = own.waiting.pop_front()?;
        own.running += 1;
        if !own.waiting.is_empty() {
            self.turns.push_back(space);
        }
        self.waiting -= 1;
        self.running += 1;
        Some((space, job))
    }

    fn end(&mut self, space: SpaceId) {
        self.running -= 1;
        if let Some(own) = self.spaces.get_mut(&space) {
            own.running -= 1;
            if own.running == 0 && own.waiting.is_empty() {
                self.spaces.remove(&space);
            }
        }
    }
}

#[derive(Default)]
pub(in crate::engine) struct Readers {
    jobs: Mutex<Jobs>,
    more: Condvar,
}

impl Readers {
    /// Has it done after what the space has waiting; from now on at most `most` are done at once.
    pub(super) fn run(self: &Arc<Self>, most: usize, space: SpaceId, job: Job) -> Result<(), Error> {
        let mut jobs = self.jobs.lock();
        if jobs.ended {
            return Err(Error::Closed { what: "the engine".to_owned() });
        }
        jobs.most = most;
        if jobs.waiting + jobs.running >= jobs.threads.len() && jobs.threads.len() < most {
            let (readers, name) = (Arc::clone(self), format!("engram-reader-{}", jobs.threads.len()));
            match std::thread::Builder::new().name(name).spawn(move || readers.work()) {
                Ok(thread) => jobs.threads.push(thread),
                // Those that there are will come to it.
                Err(_) if !jobs.threads.is_empty() => {}
                Err(error) => return Err(Error::io("a thread", &error)),
            }
        }
        jobs.push(space, job);
        self.more.notify_one();
        Ok(())
    }

    fn work(&self) {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some((space, job)) = jobs.begin() {
                // Who waits for a job that panicked is told that there is no answer.
                MutexGuard::unlocked(&mut jobs, || drop(catch_unwind(AssertUnwindSafe(job))));
                jobs.end(space);
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
    fn long_jobs_of_one_space_leave_a_thread_to_others() {
        let (readers, held) = (Arc::new(Readers::default()), Arc::new(Barrier::new(4)));
        let done = Arc::new(Mutex::new(Vec::new()));
        let note = |name: u64| {
            let done = Arc::clone(&done);
            Box::new(move || done.lock().push(name))
        };
        for _ in 0..3 {
            let held = Arc::clone(&held);
            let job = move || {
                held.wait();
            };
            readers.run(4, SpaceId(1), Box::new(job)).unwrap();
        }
        (0..5).for_each(|_| readers.run(4, SpaceId(1), note(1)).unwrap());
        // The first three stand in nobody's way but their own.
        (0..5).for_each(|_| readers.run(4, SpaceId(2), note(2)).unwrap());
        while done.lock().len() < 5 {
            std::thread::yield_now();
        }
        assert_eq!(*done.lock(), [2; 5]);
        held.wait();
        readers.end();
        assert_eq!(done.lock()[5..], [1; 5]);

        let (mut jobs, job) = (Jobs { most: 8, ..Jobs::default() }, || Box::new(|| ()));
        (1..=3).for_each(|space| (0..4 / space).for_each(|_| jobs.push(SpaceId(space), job())));
        let order: Vec<u64> = std::iter::from_fn(|| jobs.begin()).map(|(space, _)| space.0).collect();
        assert_eq!(order, [1, 2, 3, 1, 2, 1, 1]);
        order.iter().for_each(|space| jobs.end(SpaceId(*space)));
        assert!(jobs.spaces.is_empty() && jobs.turns.is_empty() && jobs.running + jobs.waiting == 0);
    }

    #[test]
    fn jobs_are_done_by_few_threads_whatever_becomes_of_others() {
        let (readers, begun) = (Arc::new(Readers::default()), Arc::new(Barrier::new(3)));
        let (done, names) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        readers.run(2, SpaceId(0), Box::new(|| std::panic::resume_unwind(Box::new("on purpose")))).unwrap();
        for _ in 0..2 {
            let begun = Arc::clone(&begun);
            // Each needs the other's thread.
            let job = move || {
                begun.wait();
            };
            readers.run(2, SpaceId(0), Box::new(job)).unwrap();
        }
        begun.wait();
        for _ in 0..50 {
            let (done, names) = (Arc::clone(&done), Arc::clone(&names));
            let job = move || {
                names.lock().push(std::thread::current().name().unwrap_or_default().to_owned());
                done.fetch_add(1, Ordering::SeqCst);
            };
            readers.run(2, SpaceId(0), Box::new(job)).unwrap();
        }
        readers.run(1, SpaceId(0), Box::new(|| ())).unwrap();
        let (now, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..8 {
            let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
            let job = move || {
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::park_timeout(std::time::Duration::from_millis(2));
                now.fetch_sub(1, Ordering::SeqCst);
            };
            readers.run(1, SpaceId(0), Box::new(job)).unwrap();
        }
        readers.end();
        assert_eq!(peak.load(Ordering::SeqCst), 1, "fewer, if fewer are asked for");
        assert_eq!(done.load(Ordering::SeqCst), 50, "what waits is done at the end");
        assert!(names.lock().iter().all(|name| ["engram-reader-0", "engram-reader-1"].contains(&name.as_str())));
        assert_eq!(readers.run(2, SpaceId(0), Box::new(|| ())).unwrap_err().code(), "CLOSED");
    }
}
