//! The one writer function: drain → number → log → sync → apply → publish → acknowledge (T2).
//!
//! A `Writer` is a state machine behind its partition's mutex: whoever holds the mutex is the writer. `step` never waits: I/O goes
//! through the partition's port. While one group is under way the next is numbered and gathered; it leaves when nothing is under
//! way (D1). A space's items are applied when the group is as durable as the space's mode says, in log order; the first group of a run is
//! synced before anyone hears of it, so that an unclean end is always seen (D11). A failed write or sync poisons the partition (D4): all
//! that was numbered and not committed gets `Poisoned`, after a side file says so. A group is numbered only when a ready segment has room
//! for it; if none can be made, what waits is refused with the reason and nothing is damaged (D10).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::{Core, Partition};
use crate::env::Task;
use crate::error::Error;
use crate::queue::Committed;
use crate::store::{Batch, Delta, Space, apply_observe};
use crate::types::{Durability, Generation, LogPosition, SpaceId};
use crate::wal::{CloseRecord, GroupBuilder, LogEvent, LogWriter, Room, observe_prefix};

/// Bytes of an observe record beside its frame, for counting room.
const RECORD_EXTRA: u64 = 64;

struct Item {
    space: Arc<Space>,
    batch: Batch,
    first: Generation,
}

#[derive(Default)]
struct Group {
    builder: GroupBuilder,
    items: Vec<Item>,
    ticket: u64,
    before: LogPosition,
    committed_at: i64,
    /// Everyone waits for the sync, whatever their mode.
    all_sync: bool,
}

enum Health {
    Well,
    /// Waiting for the side file.
    Failing(String),
    Poisoned(String),
}

pub(super) struct Writer {
    pub(super) log: LogWriter,
    building: Group,
    in_flight: VecDeque<Group>,
    /// Taken from a lane and not numbered: it did not fit.
    held: Option<(Arc<Space>, Batch)>,
    health: Health,
    first_of_run: bool,
    /// The last group is a close record: nothing needs protecting.
    closed: bool,
    /// Where the closing group of a clean end begins.
    clean_close_at: Option<LogPosition>,
    syncing: bool,
    last_activity: u64,
    scratch: Vec<u8>,
}

impl Writer {
    pub(super) fn new(log: LogWriter, first_of_run: bool, closed: bool) -> Self {
        Self {
            log,
            building: Group::default(),
            in_flight: VecDeque::new(),
            held: None,
            health: Health::Well,
            first_of_run,
            closed,
            clean_close_at: None,
            syncing: false,
            last_activity: 0,
            scratch: Vec::new(),
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        // After a failure nothing more is under way: what the log still counts will never come.
        matches!(self.health, Health::Poisoned(_))
            || self.building.items.is_empty() && self.in_flight.is_empty() && self.held.is_none() && self.log.is_idle()
    }

    /// Returns whether another step would find something to do at once.
    pub(super) fn step(&mut self, core: &Core, partition: &Partition) -> bool {
        while let Some(event) = self.log.poll() {
            self.on_event(core, partition, event);
        }
        match &self.health {
            Health::Well => {}
            Health::Failing(_) => return false,
            Health::Poisoned(cause) => {
                let error = Error::Poisoned { cause: cause.clone() };
                self.refuse_waiting(core, partition, &error);
                return false;
            }
        }
        let more = self.fill(core, partition);
        if self.in_flight.is_empty() && !self.syncing {
            self.send(core);
        }
        self.when_idle(core, partition);
        more && self.in_flight.is_empty()
    }

    /// Drain and number, round robin over the spaces that wait. True if more waits than went in.
    fn fill(&mut self, core: &Core, partition: &Partition) -> bool {
        if let Some((space, batch)) = self.held.take()
            && !self.add(core, partition, &space, batch)
        {
            return true;
        }
        let mut turns = partition.ready.len();
        let now = core.now();
        while turns > 0 {
            turns -= 1;
            let Some(id) = partition.ready.pop() else {
                return false;
            };
            let Some(space) = core.spaces.get(id) else {
                continue;
            };
            let begin = self.building.builder.body_len();
            let quantum = space.level(now).quantum(core.config.quantum_bytes) as u64;
            let mut full = false;
            while !full && self.building.builder.body_len() - begin < quantum {
                let Some(batch) = space.lane.pop() else { break };
                full = !self.add(core, partition, &space, batch);
            }
            if space.lane.settle() {
                partition.ready.push(id);
            }
            if full {
                return true;
            }
        }
        !partition.ready.is_empty()
    }

    /// Numbers a batch into the group under construction. False: the group is full, or there is no room; the batch is held.
    fn add(&mut self, core: &Core, partition: &Partition, space: &Arc<Space>, batch: Batch) -> bool {
        let len = batch.frame.len() as u64 + batch.checked.hashes.len() as u64 * 8 + RECORD_EXTRA;
        let body = self.building.builder.body_len();
        let empty = self.building.items.is_empty();
        let room = self.log.room(body + len, false);
        if !empty && (body + len > core.config.group_bytes_max as u64 || room != Room::Here) {
            self.held = Some((Arc::clone(space), batch));
            return false;
        }
        if room == Room::None {
            core.scheduler.wake(Task::Maintenance);
            match partition.supply.error() {
                None => self.held = Some((Arc::clone(space), batch)),
                Some(error) => {
                    answer(core, space, batch, Err(error.clone()));
                    self.refuse_waiting(core, partition, &error);
                }
            }
            return false;
        }
        let first = space.number(batch.checked.hashes.len() as u64);
        self.scratch.clear();
        observe_prefix(&mut self.scratch, space.options.id, first, &batch.checked.hashes, batch.frame.len());
        self.building.builder.push(&self.scratch, Some(&batch.frame));
        self.building.items.push(Item { space: Arc::clone(space), batch, first });
        true
    }

    /// Log: the group leaves for the disk.
    fn send(&mut self, core: &Core) {
        if self.building.items.is_empty() {
            return;
        }
        let mut group = std::mem::take(&mut self.building);
        group.all_sync = self.first_of_run;
        let needs = |mode| group.items.iter().any(|i| i.space.durability == mode);
        let sync = group.all_sync || needs(Durability::Sync);
        let written = !group.all_sync && needs(Durability::Os);
        group.before = self.log.end();
        core.written.log.fetch_add(crate::wal::group_len(group.builder.body_len()), Ordering::Relaxed);
        let builder = std::mem::take(&mut group.builder);
        let sent = self.log.submit(builder, sync, written, core.env.clock.wall_micros());
        let Some((ticket, committed_at)) = sent else {
            // `room` promised a segment; without it nothing of this group can be kept.
            let error = Error::Poisoned { cause: "a promised log segment was not there".to_owned() };
            group.items.into_iter().for_each(|i| answer(core, &i.space, i.batch, Err(error.clone())));
            return;
        };
        (group.ticket, group.committed_at) = (ticket, committed_at);
        self.first_of_run = false;
        self.closed = false;
        self.last_activity = core.now();
        if !group.all_sync {
            apply(core, &mut group, Durability::Memory);
        }
        self.in_flight.push_back(group);
    }

    fn on_event(&mut self, core: &Core, partition: &Partition, event: LogEvent) {
        self.last_activity = core.now();
        if !matches!(self.health, Health::Well) && !matches!(event, LogEvent::Noted) {
            // Nothing is applied over what a failure left out: all of it is answered when the note is written.
            return;
        }
        match event {
            LogEvent::Written(ticket) => {
                let Some(at) = self.in_flight.iter().position(|g| g.ticket == ticket) else {
                    return;
                };
                if self.in_flight[at].all_sync {
                    return;
                }
                apply(core, &mut self.in_flight[at], Durability::Os);
                if self.in_flight[at].items.is_empty() {
                    self.in_flight.remove(at);
                }
            }
            LogEvent::Synced(ticket) => {
                self.syncing = false;
                while self.in_flight.front().is_some_and(|g| g.ticket <= ticket) {
                    let Some(mut group) = self.in_flight.pop_front() else {
                        break;
                    };
                    // The next group leaves before this one's rows are counted; not if that would overtake rows that wait here.
                    let overtakes = group.all_sync;
                    if self.in_flight.is_empty() && !overtakes {
                        self.send(core);
                    }
                    for mode in [Durability::Memory, Durability::Os, Durability::Sync] {
                        apply(core, &mut group, mode);
                    }
                }
            }
            LogEvent::Failed { path, error } => {
                let cause = Error::io(&path, &error).to_string();
                self.poison(partition, &cause);
            }
            LogEvent::Noted => {
                if let Health::Failing(cause) = &self.health {
                    self.health = Health::Poisoned(cause.clone());
                    self.fail_numbered(core, partition);
                }
            }
        }
    }

    /// D4: from here on nothing of this partition is written until a restart.
    pub(super) fn poison(&mut self, partition: &Partition, cause: &str) {
        if !matches!(self.health, Health::Well) {
            return;
        }
        self.health = Health::Failing(cause.to_owned());
        self.log.note_poisoned(partition.dir.clone(), cause);
    }

    fn fail_numbered(&mut self, core: &Core, partition: &Partition) {
        let Health::Poisoned(cause) = &self.health else {
            return;
        };
        let _ = partition.poisoned.set(cause.clone());
        let error = Error::Poisoned { cause: cause.clone() };
        let building = std::mem::take(&mut self.building);
        for group in std::mem::take(&mut self.in_flight).into_iter().chain([building]) {
            group.items.into_iter().for_each(|i| answer(core, &i.space, i.batch, Err(error.clone())));
        }
        self.refuse_waiting(core, partition, &error);
    }

    /// Refuses all that waits in lanes; nothing of it was numbered.
    fn refuse_waiting(&mut self, core: &Core, partition: &Partition, error: &Error) {
        if let Some((space, batch)) = self.held.take() {
            answer(core, &space, batch, Err(error.clone()));
        }
        while let Some(id) = partition.ready.pop() {
            let Some(space) = core.spaces.get(id) else {
                continue;
            };
            loop {
                while let Some(batch) = space.lane.pop() {
                    answer(core, &space, batch, Err(error.clone()));
                }
                if !space.lane.settle() {
                    break;
                }
            }
        }
    }

    /// Nothing to do: sync what was only written, then close the log so that rot in its end is seen (D3).
    fn when_idle(&mut self, core: &Core, partition: &Partition) {
        if !self.in_flight.is_empty() || !self.building.items.is_empty() || self.syncing || self.closed {
            return;
        }
        let quiet_ms = core.now().saturating_sub(self.last_activity) / 1_000_000;
        let idle = quiet_ms >= core.config.idle_close_ms && self.held.is_none();
        let unsynced = self.log.unsynced_bytes();
        let wanted = partition.sync_wanted.load(Ordering::Acquire);
        if unsynced > 0 && !idle && (wanted || unsynced > core.config.unsynced_bytes_max) {
            self.syncing = true;
            self.log.sync_now();
        } else if idle {
            self.close(core, false);
        }
    }

    /// Writes a closing group; true if it left.
    pub(super) fn close(&mut self, core: &Core, clean: bool) -> bool {
        if self.log.room(64, true) == Room::None || !matches!(self.health, Health::Well) {
            return false;
        }
        let mut builder = GroupBuilder::default();
        self.scratch.clear();
        CloseRecord { clean }.encode(&mut self.scratch);
        self.clean_close_at = clean.then(|| self.log.end());
        builder.push(&self.scratch, None);
        core.written.log.fetch_add(crate::wal::group_len(builder.body_len()), Ordering::Relaxed);
        let sent = self.log.submit(builder, true, false, core.env.clock.wall_micros());
        self.syncing = sent.is_some();
        self.closed = true;
        self.first_of_run = false;
        sent.is_some()
    }

    /// Up to where a checkpoint may say that all is in files: a clean end stays in what the next start reads, or it would not know of it.
    pub(super) fn checkpoint_cut(&self) -> LogPosition {
        let synced = self.log.synced();
        self.clean_close_at.filter(|at| at.offset < synced.offset).unwrap_or(synced)
    }

    /// Whether a clean end must still be written: not for a log that this run never touched.
    pub(super) fn needs_clean_close(&self) -> bool {
        matches!(self.health, Health::Well) && self.log.touched()
    }
}

/// Apply → publish → acknowledge, for the items of `mode`.
fn apply(core: &Core, group: &mut Group, mode: Durability) {
    if !group.items.iter().any(|i| i.space.durability == mode) {
        return;
    }
    let (now, rest): (Vec<Item>, Vec<Item>) =
        std::mem::take(&mut group.items).into_iter().partition(|i| i.space.durability == mode);
    group.items = rest;
    let mut deltas: BTreeMap<SpaceId, (Arc<Space>, Delta)> = BTreeMap::new();
    let mut acks = Vec::with_capacity(now.len());
    for Item { space, batch, first } in now {
        let count = batch.checked.hashes.len();
        let (_, delta) = deltas.entry(space.options.id).or_insert_with(|| (Arc::clone(&space), Delta::default()));
        let (bytes, hashes) = (batch.frame.len() as u64, batch.checked.hashes.clone());
        let admitted_at = batch.admitted_at;
        let applied =
            apply_observe(delta, batch.frame, Some(batch.checked), hashes, first, group.before, group.committed_at);
        let committed = Committed { first, count: count as u32, durability: mode };
        acks.push((space, bytes, count as u64, admitted_at, batch.reply, applied.map(|()| committed)));
    }
    let clock = core.now();
    for (space, delta) in deltas.into_values() {
        space.publish(delta, clock);
    }
    for (space, bytes, count, admitted_at, reply, outcome) in acks {
        core.observed.fetch_add(count, Ordering::Relaxed);
        core.process_queue.release(bytes);
        space.release(count, bytes, clock, Some(admitted_at), &core.process_queue);
        reply.complete(outcome);
    }
}

/// Answers what was not committed.
fn answer(core: &Core, space: &Space, batch: Batch, outcome: Result<Committed, Error>) {
    let (count, bytes) = (batch.checked.hashes.len() as u64, batch.frame.len() as u64);
    core.process_queue.release(bytes);
    space.release(count, bytes, core.now(), None, &core.process_queue);
    batch.reply.complete(outcome);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::Admission;
    use crate::env::{Env, MemoryFiles, Scheduler, SimClock, SimRandom};
    use crate::records::{Columns, build_frame};
    use crate::types::{Config, Metric};

    struct Nobody;

    impl Scheduler for Nobody {
        fn wake(&self, _: Task) {}
    }

    fn open(files: &MemoryFiles) -> Arc<Core> {
        let env = Env {
            clock: Arc::new(SimClock::new(1)),
            files: Arc::new(files.clone()),
            random: Arc::new(SimRandom::new(3)),
        };
        Core::open(env, Config { partitions: 1, ..Config::default() }, Arc::new(Nobody)).unwrap()
    }

    fn turns(core: &Core, n: usize) {
        for _ in 0..n {
            core.step_partition(0);
            core.partitions[0].port.run_one();
            core.step_catalogue();
            core.run_catalogue_io();
            core.step_maintenance();
            core.maintenance_port.run_one();
        }
    }

    /// D11. Found by the model test: a checkpoint made while the engine closed lay behind the closing group; the next start did not see
    /// that the end had been clean, and renewed what had lost nothing.
    #[test]
    fn a_checkpoint_after_a_clean_end_keeps_it_in_sight() {
        let files = MemoryFiles::new();
        let core = open(&files);
        core.submit_create("m", 1, Metric::Cosine, Some(Durability::Memory));
        turns(&core, 50);
        let space = core.space("m").unwrap();
        let frame = build_frame(&Columns { count: 1, dim: 1, vectors: Some(&[1.0]), ..Columns::default() });
        let Admission::Admitted(ticket) = core.admit(&space, core.prepare(&space, frame).unwrap()).unwrap() else {
            panic!("refused")
        };
        turns(&core, 50);
        assert!(ticket.outcome().is_some_and(|o| o.is_ok()));
        assert!(core.partitions[0].with_writer(&core, |w| w.close(&core, true)));
        turns(&core, 5);
        let asked = core.submit_checkpoint(0);
        turns(&core, 50);
        asked.outcome().unwrap().unwrap();
        core.env.files.unlock();
        let again = open(&files);
        assert_eq!(again.report.renewed, Vec::<String>::new());
        assert_eq!(again.count(&again.space("m").unwrap(), None).unwrap(), 1);
    }
}
