//! The one writer function: drain → number → log → sync → apply → publish → acknowledge (T2).
//!
//! A `Writer` is a state machine behind its partition's mutex: whoever holds the mutex is the writer. `step` never waits: I/O goes
//! through the partition's port. While one group is under way the next is numbered and gathered; it leaves when nothing is under
//! way (D1). A space's items are applied when the group is as durable as the space's mode says, in log order; the first group of a run is
//! synced before anyone hears of it, so that an unclean end is always seen (D11). A failed write or sync poisons the partition (D4): all
//! that was numbered and not committed gets `Poisoned`, after a side file says so. A group is numbered only when a ready segment has room
//! for it; if none can be made, what waits is refused with the reason and nothing is damaged (D10).

mod apply;
mod number;
mod quarantine;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::{Core, Partition};
use crate::error::Error;
use crate::store::{Batch, Control, Space};
use crate::types::{Durability, LogPosition, SpaceId};
use crate::wal::{CloseRecord, GroupBuilder, LogEvent, LogWriter, Room};
use apply::{Due, answer, answer_control};
use number::Group;

enum Health {
    Well,
    /// Waiting for the side file.
    Failing(String),
    Poisoned(String),
}

pub(in crate::engine) struct Writer {
    pub(in crate::engine) log: LogWriter,
    building: Group,
    in_flight: VecDeque<Group>,
    /// Taken from a lane and not numbered: it did not fit.
    held: Option<(Arc<Space>, Batch)>,
    held_control: Option<(Arc<Space>, Box<Control>)>,
    /// Spaces of which something could not be applied: it, and all behind it.
    stuck: BTreeMap<SpaceId, VecDeque<Due>>,
    /// Those of them whose first must be logged to be gone round, and why.
    to_quarantine: VecDeque<(SpaceId, String)>,
    /// The log before the group that is being applied. After a panic it stays: not all of it was.
    applying: Option<LogPosition>,
    health: Health,
    first_of_run: bool,
    /// The last group is a close record: nothing needs protecting.
    closed: bool,
    /// The run before did not end cleanly: this one's clean end must be written, whatever else is.
    after_unclean: bool,
    /// Where the closing group of a clean end begins.
    clean_close_at: Option<LogPosition>,
    syncing: bool,
    last_activity: u64,
    scratch: Vec<u8>,
}

impl Writer {
    pub(in crate::engine) fn new(log: LogWriter, first_of_run: bool, closed: bool, after_unclean: bool) -> Self {
        Self {
            log,
            building: Group::default(),
            in_flight: VecDeque::new(),
            held: None,
            held_control: None,
            stuck: BTreeMap::new(),
            to_quarantine: VecDeque::new(),
            applying: None,
            health: Health::Well,
            first_of_run,
            closed,
            after_unclean,
            clean_close_at: None,
            syncing: false,
            last_activity: 0,
            scratch: Vec::new(),
        }
    }

    pub(in crate::engine) fn is_quiet(&self) -> bool {
        // After a failure nothing more is under way: what the log still counts will never come.
        matches!(self.health, Health::Poisoned(_))
            || self.building.items.is_empty() && self.in_flight.is_empty() && self.nothing_held() && self.log.is_idle()
    }

    fn nothing_held(&self) -> bool {
        self.held.is_none() && self.held_control.is_none() && self.stuck.is_empty()
    }

    /// Returns whether another step would find something to do at once.
    pub(in crate::engine) fn step(&mut self, core: &Core, partition: &Partition) -> bool {
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
            self.send(core, partition);
        }
        self.when_idle(core, partition);
        more && self.in_flight.is_empty()
    }

    /// Log: the group leaves for the disk.
    fn send(&mut self, core: &Core, partition: &Partition) {
        if self.building.items.is_empty() {
            return;
        }
        let mut group = std::mem::take(&mut self.building);
        group.all_sync = self.first_of_run;
        let needs = |mode| group.items.iter().any(|i| i.mode() == mode);
        let sync = group.all_sync || needs(Durability::Sync);
        let written = !group.all_sync && needs(Durability::Os);
        group.before = self.log.end();
        core.written.log.fetch_add(crate::wal::group_len(group.builder.body_len()), Ordering::Relaxed);
        let builder = std::mem::take(&mut group.builder);
        let sent = self.log.submit(builder, sync, written, core.env.clock.wall_micros());
        let Some((ticket, committed_at)) = sent else {
            // `room` promised a segment; without it nothing of this group can be kept.
            let error = Error::Poisoned { cause: "a promised log segment was not there".to_owned() };
            group.items.into_iter().for_each(|i| i.fail(core, &error));
            return;
        };
        (group.ticket, group.committed_at) = (ticket, committed_at);
        self.first_of_run = false;
        self.closed = false;
        self.last_activity = core.now();
        if !group.all_sync {
            self.apply(core, partition, &mut group, Durability::Memory);
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
                let Some(mut group) = self.in_flight.remove(at) else { return };
                self.apply(core, partition, &mut group, Durability::Os);
                if !group.items.is_empty() {
                    self.in_flight.insert(at, group);
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
                        self.send(core, partition);
                    }
                    for mode in [Durability::Memory, Durability::Os, Durability::Sync] {
                        self.apply(core, partition, &mut group, mode);
                    }
                }
            }
            LogEvent::Failed { path, error } => {
                let cause = Error::io(&path, &error).to_string();
                self.poison(partition, &cause);
            }
            LogEvent::NotKept => drop(core.quarantine_unkept.fetch_add(1, Ordering::Relaxed)),
            LogEvent::Noted => {
                if let Health::Failing(cause) = &self.health {
                    self.health = Health::Poisoned(cause.clone());
                    self.fail_numbered(core, partition);
                }
            }
        }
    }

    /// D4: from here on nothing of this partition is written until a restart.
    pub(in crate::engine) fn poison(&mut self, partition: &Partition, cause: &str) {
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
        for due in std::mem::take(&mut self.stuck).into_values().flatten() {
            due.item.fail(core, &error);
        }
        for group in std::mem::take(&mut self.in_flight).into_iter().chain([building]) {
            group.items.into_iter().for_each(|i| i.fail(core, &error));
        }
        self.refuse_waiting(core, partition, &error);
    }

    /// Refuses all that waits in lanes; nothing of it was numbered.
    fn refuse_waiting(&mut self, core: &Core, partition: &Partition, error: &Error) {
        if let Some((space, batch)) = self.held.take() {
            answer(core, &space, batch, Err(error.clone()));
        }
        if !error.is_disk_full() {
            self.refuse_orders(core, partition, error);
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

    fn refuse_orders(&mut self, core: &Core, partition: &Partition, error: &Error) {
        if let Some((space, control)) = self.held_control.take() {
            answer_control(&space, *control, &|| Err(error.clone()));
        }
        while let Some(id) = partition.controls.pop() {
            // A dropped space's place must not hide those behind it.
            let Some(space) = core.spaces.get(id) else { continue };
            loop {
                while let Some(control) = space.controls.pop() {
                    answer_control(&space, control, &|| Err(error.clone()));
                }
                if !space.controls.settle() {
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
        let idle = quiet_ms >= core.config.idle_close_ms && self.nothing_held();
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
    pub(in crate::engine) fn close(&mut self, core: &Core, clean: bool) -> bool {
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

    /// Whether the log is on the disk past `from`; if nothing moves it there, a closing group does.
    pub(in crate::engine) fn has_passed(&mut self, core: &Core, from: u64) -> bool {
        if self.checkpoint_cut().offset > from {
            return true;
        }
        if self.is_quiet() && self.log.end().offset == from {
            self.close(core, false);
        }
        false
    }

    /// Up to where a checkpoint may say that all is in files: all before it is applied. A clean end stays in what the next start reads, or it
    /// would not know of it.
    pub(in crate::engine) fn checkpoint_cut(&self) -> LogPosition {
        let stuck = self.stuck.values().filter_map(|waiting| waiting.front()).map(|due| due.before);
        let in_flight = self.in_flight.iter().map(|group| group.before);
        let kept = stuck.chain(in_flight).chain(self.applying).chain(self.clean_close_at);
        kept.fold(self.log.synced(), |a, b| if b.offset < a.offset { b } else { a })
    }

    /// Whether a clean end must still be written: not for a log that this run never touched.
    pub(in crate::engine) fn needs_clean_close(&self) -> bool {
        matches!(self.health, Health::Well) && (self.log.touched() || self.after_unclean)
    }
}
