//! The one maintenance machine: makes log segments ready, seals, checkpoints, merges, frees; one job at a time, in steps (T3, T5).
//!
//! A writer may wait for a segment and for sealing, never for a merge: between the steps that write files, segments go before either,
//! and a seal before a merge. From a job's checkpoint to its end nothing goes between.
//!
//! A failed job is given up, reported by `stats()` and `checkpoint()`, and tried again later with new files (D4: a file whose sync failed
//! is never used). A panic counts as a failure of the job. Nothing here is needed for what is acknowledged: the log has it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

mod kept;
mod plan;
mod seal;

pub(in crate::engine) use kept::{Kept, rows_id, rows_path};
use plan::{Goal, merge_goal, rewrite_goal};
use seal::{Progress, SealJob};

use super::core::{Core, Partition};
use crate::env::{Files, Job, Output, Task};
use crate::error::Error;
use crate::queue::{Reply, Ticket};
use crate::records::SealedFile;
use crate::session::{ExpiryGuard, SessionState};
use crate::store::Space;
use crate::types::{Generation, SessionId, SpaceId};
use crate::wal::{SPARES_KEPT, Supply, SupplyWork};

/// Blocks checked in one job, and the pause between jobs: at most 25 MB/s, only when idle.
const SCRUB_BLOCKS: usize = 64;
const SCRUB_PACE_MS: u64 = 40;
/// A merge's turn between two seals is as long as the last seal took, and at most so long.
const MERGE_TURN_NANOS: u64 = 200_000_000;
/// For the process's sake a space is sealed alone if it holds one of so many bytes of the fullest partition: each job has a checkpoint.
const LARGE_SHARE: u64 = 4;
/// Segments behind the older of the two checkpoints, besides what the bytes that make each of them due fill.
const SEGMENTS_MAX: u64 = 8;
/// Between two looks for what expires.
const EXPIRE_PACE_MS: u64 = 60_000;

/// Where the scrub stands: this file is done up to this block; 0 and a path: all of it.
#[derive(Default)]
struct Scrub {
    path: String,
    block: usize,
    next_at: u64,
}

enum Work {
    Supply(Arc<Supply>, SupplyWork),
    Seal(Box<SealJob>),
    Abandon,
    Scrub(Arc<SealedFile>, usize),
}

struct Request {
    partition: usize,
    reply: Reply<()>,
    /// The job at hand was planned for it. One that was under way before seals too little.
    planned: bool,
}

#[derive(Default)]
pub(in crate::engine) struct Maintenance {
    work: Option<Work>,
    /// Jobs and their next steps, held up by something more urgent: a merge by a seal, either by segments.
    paused: Vec<(Box<SealJob>, Job)>,
    /// A merge that waits goes before the next seal until then, and for one step: seals without end must not keep it from ending, nor its steps
    /// those who wait for a seal.
    merge_until: u64,
    merge_owed: bool,
    next_tag: u64,
    requests: VecDeque<Request>,
    retry_at: u64,
    supply_retry_at: u64,
    merge_retry_at: u64,
    pub(in crate::engine) last_error: Option<Error>,
    pub(in crate::engine) failures: u64,
    pub(in crate::engine) seals: u64,
    pub(in crate::engine) scrubbed_blocks: u64,
    scrub: Scrub,
    expiry: ExpiryGuard<(SpaceId, SessionId)>,
    expire_at: u64,
}

impl Maintenance {
    /// True if it moved.
    pub(in crate::engine) fn step(&mut self, core: &Core) -> bool {
        if let Some(work) = self.work.take() {
            let Some(done) = core.maintenance_port.poll() else {
                self.work = Some(work);
                return false;
            };
            if done.tag != self.next_tag {
                // Of a job that a panicking step lost.
                self.work = Some(work);
                return true;
            }
            self.finished(core, work, done.result);
            return true;
        }
        self.begin(core)
    }

    fn submit(&mut self, core: &Core, work: Work, job: Job) {
        self.next_tag += 1;
        self.work = Some(work);
        core.maintenance_port.submit(self.next_tag, job);
    }

    fn finished(&mut self, core: &Core, work: Work, result: std::io::Result<Output>) {
        match work {
            Work::Supply(supply, work) => {
                let result = result.map_err(|e| Error::io(work.path(), &e));
                if let Ok(Output::Count(bytes)) = &result {
                    core.written.segments.fetch_add(*bytes, Ordering::Relaxed);
                }
                match &result {
                    Ok(_) => self.last_error = None,
                    Err(e) => {
                        if work.is_urgent() {
                            (self.failures, self.last_error) = (self.failures + 1, Some(e.clone()));
                        }
                        self.supply_retry_at = core.after_ms(core.config.maintenance_retry_ms);
                    }
                }
                supply.finished(&work, result.map(|_| ()));
                (0..core.partitions.len()).for_each(|i| core.drive(i));
                core.step_catalogue();
            }
            Work::Seal(job) => match result {
                Ok(output) => self.advance(core, job, output),
                Err(e) => {
                    let path = core.partitions[job.partition].dir.clone();
                    self.give_up(core, &job, Error::io(&path, &e));
                }
            },
            Work::Abandon => {}
            Work::Scrub(file, next) => self.scrubbed(core, &file, next, result),
        }
    }

    fn advance(&mut self, core: &Core, mut job: Box<SealJob>, output: Output) {
        match job.advance(core, output) {
            Ok(Progress::Submit(next)) => {
                if job.writes_files() {
                    // However long a merge: writers wait for segments and for sealing, nobody waits for it.
                    self.paused.push((job, next));
                    self.begin(core);
                } else {
                    self.submit(core, Work::Seal(job), next);
                }
            }
            Ok(Progress::Done) => {
                let (now, sealed) = (core.now(), !job.merges());
                self.merge_owed = sealed;
                self.merge_until = if sealed { now + (now - job.begun).min(MERGE_TURN_NANOS) } else { 0 };
                self.last_error = None;
                self.seals += 1;
                self.answer(&Ok(()));
            }
            Err(error) => self.give_up(core, &job, error),
        }
    }

    fn give_up(&mut self, core: &Core, job: &SealJob, error: Error) {
        self.answer(&Err(error.clone()));
        if job.merges() && matches!(error, Error::Corrupted { .. }) {
            // The damage stays: trying again at once would only read it again.
            job.note_damage(&error);
            self.merge_retry_at = core.after_ms(core.config.scrub_pause_ms);
        }
        self.failed(core, error);
        if let Some(remove) = job.abandon(core) {
            self.submit(core, Work::Abandon, remove);
        }
    }

    fn failed(&mut self, core: &Core, error: Error) {
        self.failures += 1;
        self.last_error = Some(error);
        self.retry_at = core.after_ms(core.config.maintenance_retry_ms);
    }

    pub(in crate::engine) fn panicked(&mut self, core: &Core) {
        self.failed(core, Error::Poisoned { cause: "a maintenance step panicked; it will be tried again".to_owned() });
        let error = self.last_error.clone();
        for request in std::mem::take(&mut self.requests) {
            request.reply.complete(Err(error.clone().unwrap_or(Error::Closed { what: "maintenance".to_owned() })));
        }
        for supply in core.partitions.iter().map(|p| &p.supply).chain([&core.catalogue.supply]) {
            supply.abandon();
        }
    }

    /// Answers those whom the job was planned for.
    fn answer(&mut self, outcome: &Result<(), Error>) {
        let all = std::mem::take(&mut self.requests);
        let (done, rest): (VecDeque<Request>, _) = all.into_iter().partition(|r| r.planned);
        self.requests = rest;
        done.into_iter().for_each(|r| r.reply.complete(outcome.clone()));
    }

    /// Its failures wait for their own time: a full disk must not keep sealing and its errors from being seen.
    fn segments_are_made(&mut self, core: &Core) -> bool {
        if core.now() < self.supply_retry_at {
            return false;
        }
        let supplies = || core.partitions.iter().map(|p| &p.supply).chain([&core.catalogue.supply]);
        // Those that have least come first.
        let next = (1..=SPARES_KEPT).find_map(|most| supplies().find_map(|supply| Some((supply, supply.work(most)?))));
        let Some((supply, work)) = next else { return false };
        let run = work.clone();
        self.submit(core, Work::Supply(Arc::clone(supply), work), Box::new(move |files| run.run(files)));
        true
    }

    /// Chooses what is due.
    fn begin(&mut self, core: &Core) -> bool {
        if self.segments_are_made(core) {
            return true;
        }
        let merge_waits = self.paused.last().is_some_and(|(job, _)| job.merges());
        let owed = merge_waits && (self.merge_owed || core.now() < self.merge_until);
        self.merge_owed &= !owed;
        let may_seal = !owed && (self.paused.is_empty() || merge_waits) && core.now() >= self.retry_at;
        if may_seal && self.seal(core) {
            return true;
        }
        if let Some((job, next)) = self.paused.pop() {
            self.submit(core, Work::Seal(job), next);
            return true;
        }
        self.expire(core);
        core.now() >= self.retry_at && (self.merge(core) || self.scrub_some(core))
    }

    fn seal(&mut self, core: &Core) -> bool {
        if let Some(request) = self.requests.front() {
            let partition = &core.partitions[request.partition];
            return self.checkpoint_on_request(core, partition);
        }
        if let Some((index, goal)) = due(core) {
            let partition = &core.partitions[index];
            let crowded = crowded(core, partition);
            let mut kept = partition.kept.lock();
            if let Some(last) = crowded {
                kept.is_crowded(last);
            }
            let always = kept.wants_checkpoint();
            drop(kept);
            return self.start(core, partition, &goal, always);
        }
        false
    }

    fn merge(&mut self, core: &Core) -> bool {
        for partition in &core.partitions {
            if core.now() >= self.merge_retry_at
                && partition.poisoned.get().is_none()
                && let Some(goal) =
                    rewrite_goal(core, partition).or_else(|| merge_goal(core, partition, core.config.merge_files))
            {
                return self.start(core, partition, &goal, false);
            }
        }
        false
    }

    /// What is no longer kept, by a record: sessions that nobody has used for too long, and what died too long ago (S1, G5).
    fn expire(&mut self, core: &Core) {
        if core.now() < self.expire_at {
            return;
        }
        self.expire_at = core.after_ms(EXPIRE_PACE_MS);
        let wall = core.env.clock.wall_micros();
        let before =
            |keep_ms: u64| wall.saturating_sub(i64::try_from(keep_ms.saturating_mul(1_000)).unwrap_or(i64::MAX));
        let (unused, dead) = (before(core.config.session_keep_ms), before(core.config.history_keep_ms));
        let mut past = BTreeMap::new();
        for space in core.spaces.all() {
            for session in space.sessions.all() {
                let section = session.section();
                if section.state == SessionState::Detached && section.used_at < unused {
                    past.insert((space.options.id, session.id), (Arc::clone(&space), Some(Arc::clone(&session))));
                }
            }
            let through = forgotten_by(&space, dead);
            if space.view().died_between(space.history_from(), through) {
                past.insert((space.options.id, SessionId(0)), (Arc::clone(&space), None));
            }
        }
        let due: Vec<_> = past.keys().copied().collect();
        for key in self.expiry.look(core.now(), wall, &due) {
            let (space, session) = &past[&key];
            // If it cannot be ordered now, it is due again later.
            let ordered = match session {
                Some(session) => core.submit_end(space, session, None).is_ok_and(|ordered| ordered.is_some()),
                None => core.submit_expire(space, forgotten_by(space, dead)).unwrap_or(false),
            };
            if ordered {
                self.expiry.expired(&key);
                core.drive(space.options.partition.0 as usize);
            }
        }
    }

    /// With nothing else to do: a few more sealed blocks are checked, so that rot is met before it is needed (D5).
    fn scrub_some(&mut self, core: &Core) -> bool {
        if core.now() < self.scrub.next_at {
            return false;
        }
        let parts = core.spaces.all().into_iter().flat_map(|s| s.view().filed().cloned().collect::<Vec<_>>());
        let files: BTreeMap<_, _> = parts.filter_map(|p| p.file).map(|f| (f.path().to_owned(), f)).collect();
        let at = self.scrub.path.clone();
        let Some((path, file)) = files.range(at.clone()..).find(|(p, _)| **p > at || self.scrub.block > 0) else {
            let pause_ms = if at.is_empty() { SCRUB_PACE_MS } else { core.config.scrub_pause_ms };
            self.scrub = Scrub { next_at: core.after_ms(pause_ms), ..Scrub::default() };
            return false;
        };
        let from = if *path == at { self.scrub.block } else { 0 };
        self.scrub.path.clone_from(path);
        let checked = Arc::clone(file);
        let job = move |_: &dyn Files| {
            checked.verify_blocks(from, SCRUB_BLOCKS).map(|n| Output::Count(n as u64)).map_err(std::io::Error::other)
        };
        self.submit(core, Work::Scrub(Arc::clone(file), from + SCRUB_BLOCKS), Box::new(job));
        true
    }

    fn scrubbed(&mut self, core: &Core, file: &SealedFile, next: usize, result: std::io::Result<Output>) {
        // A pause after each piece: reads and writers come first.
        self.scrub.next_at = core.now() + SCRUB_PACE_MS * 1_000_000;
        self.scrub.block = 0;
        match result {
            Ok(Output::Count(n)) => {
                self.scrubbed_blocks += n;
                if n == SCRUB_BLOCKS as u64 {
                    self.scrub.block = next;
                }
            }
            Ok(_) => {}
            Err(e) => {
                let error = Error::corrupted(file.path(), 0, e.to_string());
                let holds = |s: &&Arc<Space>| file.spaces().any(|id| id == s.options.id);
                core.spaces.all().iter().filter(holds).for_each(|s| s.note_damage(&error));
            }
        }
    }

    fn checkpoint_on_request(&mut self, core: &Core, partition: &Partition) -> bool {
        let poisoned = partition.poisoned.get();
        if poisoned.is_none() && !synced(core, partition) {
            return false;
        }
        self.requests.iter_mut().filter(|r| r.partition == partition.index).for_each(|r| r.planned = true);
        if let Some(cause) = poisoned {
            self.answer(&Err(Error::Poisoned { cause: cause.clone() }));
        } else if !self.start(core, partition, &Goal::All, false) {
            self.answer(&Ok(()));
        }
        true
    }

    fn start(&mut self, core: &Core, partition: &Partition, goal: &Goal, always: bool) -> bool {
        let Some(job) = SealJob::plan(core, partition, goal, always) else {
            return false;
        };
        self.advance(core, Box::new(job), Output::Nothing);
        true
    }

    fn request(&mut self, partition: usize, reply: Reply<()>) {
        self.requests.push_back(Request { partition, reply, planned: false });
    }
}

/// The last generation that was committed at or before a time.
fn forgotten_by(space: &Space, time: i64) -> Generation {
    space.view().generation_at(time).max(space.change_at(time)).unwrap_or_default()
}

/// Whether all of the partition's log is on the disk; asks for it if not.
fn synced(core: &Core, partition: &Partition) -> bool {
    let unsynced = partition.with_writer(core, |w| w.log.unsynced_bytes()) > 0;
    partition.sync_wanted.store(unsynced, Ordering::Release);
    if unsynced {
        core.drive(partition.index);
    }
    !unsynced
}

/// The last segment, if the log has many, however little is in them: each start begins one of its own. Once for each segment, if it does not help.
fn crowded(core: &Core, partition: &Partition) -> Option<u64> {
    let last = partition.with_writer(core, |w| w.log.synced().segment);
    let full = core.config.checkpoint_log_bytes / core.config.segment_bytes_max.max(1);
    let kept = partition.kept.lock();
    let many = last.saturating_sub(kept.oldest_position().segment) > SEGMENTS_MAX + 2 * full;
    (many && last > kept.crowded_at).then_some(last)
}

/// What sealing policy asks for (T5).
fn due(core: &Core) -> Option<(usize, Goal)> {
    let config = &core.config;
    let well = |p: &&Partition| p.poisoned.get().is_none();
    let of = |p: &Partition| core.spaces.of_partition(p.id);
    let mut largest = None;
    let mut fullest = (0, 0);
    // Of a poisoned partition nothing can be sealed: it must not make others seal for ever.
    let mut all = 0;
    for partition in core.partitions.iter().filter(well) {
        let mut sum = 0;
        for space in of(partition) {
            let bytes = space.unsealed_bytes();
            sum += bytes;
            let rank = (bytes > 0 && space.wants_room(), bytes);
            if largest.as_ref().is_none_or(|(_, _, most)| rank > *most) {
                largest = Some((partition.index, space.options.id, rank));
            }
        }
        all += sum;
        fullest = fullest.max((sum, partition.index));
    }
    let (index, id, (wanted, bytes)) = largest?;
    // Sealing begins before intake is held up, whatever the limits are.
    let seal_space_bytes = config.seal_space_bytes.min(config.unsealed_space_bytes_max / 2);
    let seal_process_bytes = config.seal_process_bytes.min(config.unsealed_process_bytes_max / 2);
    let process = all >= seal_process_bytes || all > 0 && core.wants_room.swap(false, Ordering::Relaxed);
    let mut candidate = None;
    if wanted || bytes >= seal_space_bytes || (process && bytes * LARGE_SHARE >= fullest.0) {
        candidate = Some((index, Goal::One(id)));
    } else if process {
        candidate = Some((fullest.1, Goal::All));
    }
    for partition in core.partitions.iter().filter(well) {
        let kept = partition.kept.lock();
        let position = kept.current.as_ref().map_or(0, |c| c.position.offset);
        let wanted = kept.wants_checkpoint();
        drop(kept);
        let end = partition.with_writer(core, |w| w.log.synced().offset);
        let long = end.saturating_sub(position) > config.checkpoint_log_bytes;
        if candidate.is_none() && (wanted || long || crowded(core, partition).is_some()) {
            candidate = Some((partition.index, Goal::All));
        }
    }
    let (index, goal) = candidate?;
    // Only what is on the disk can be sealed: without progress there, wait for it.
    synced(core, &core.partitions[index]);
    sealable(core, &core.partitions[index], &goal).then_some((index, goal))
}

fn sealable(core: &Core, partition: &Partition, goal: &Goal) -> bool {
    let cut = partition.with_writer(core, |w| w.log.synced().offset);
    match goal {
        Goal::One(id) => core.spaces.get(*id).and_then(|s| s.first_unsealed()).is_some_and(|p| p.offset < cut),
        _ => true,
    }
}

impl Core {
    /// Asks for a checkpoint of one partition; the answer comes by the ticket.
    pub fn submit_checkpoint(&self, partition: usize) -> Arc<Ticket<()>> {
        let ticket = Arc::new(Ticket::default());
        let mut maintenance = self.maintenance.lock();
        // Under the lock: `refuse_checkpoints` comes before, or finds it.
        match self.check_open() {
            Ok(()) => maintenance.request(partition, Reply::new(Arc::clone(&ticket))),
            Err(closed) => ticket.complete(Err(closed)),
        }
        drop(maintenance);
        self.scheduler.wake(Task::Maintenance);
        ticket
    }

    /// The engine closes: nobody will make the checkpoints that are asked for.
    pub(in crate::engine) fn refuse_checkpoints(&self) {
        for request in std::mem::take(&mut self.maintenance.lock().requests) {
            request.reply.complete(Err(Error::Closed { what: "the engine".to_owned() }));
        }
    }

    /// The last failure of the maintenance machine, until something succeeds.
    pub fn maintenance_error(&self) -> Option<Error> {
        self.maintenance.lock().last_error.clone()
    }
}
