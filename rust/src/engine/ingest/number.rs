//! Numbering: what waits becomes records of the group under construction, with its generations (G1, O4).
//!
//! Here, and only here, it is decided who dies: a key's present owner, a forget's memories as they stand in log order, groups under way
//! included. The decision is written into the record (T6). A forget is numbered at the head of a group, so that the time of everything
//! before it is known.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::core::{Core, Partition};
use super::Writer;
use super::apply::{answer, answer_control};
use crate::env::Task;
use crate::error::Error;
use crate::queue::Committed;
use crate::store::{Batch, Control, Scope, Space, Wanted};
use crate::types::{FORGET_IDS_MAX, Generation, LogPosition};
use crate::wal::{ForgetRecord, GroupBuilder, Room, observe_prefix};

/// Bytes of an observe record beside its frame, for counting room, and of each item in it: its hash and what it may supersede.
const RECORD_EXTRA: u64 = 64;
const ITEM_EXTRA: u64 = 8 + 12;

pub(super) enum Change {
    Observe { batch: Box<Batch>, first: Generation, supersedes: Vec<(u32, Generation)> },
    Forget { control: Box<Control>, generation: Generation, ids: Vec<Generation> },
}

pub(super) struct Item {
    pub(super) space: Arc<Space>,
    pub(super) change: Change,
}

#[derive(Default)]
pub(super) struct Group {
    pub(super) builder: GroupBuilder,
    pub(super) items: Vec<Item>,
    pub(super) ticket: u64,
    pub(super) before: LogPosition,
    pub(super) committed_at: i64,
    /// Everyone waits for the sync, whatever their mode.
    pub(super) all_sync: bool,
}

impl Writer {
    /// Drain and number, forgets first, then round robin over the spaces that wait. True if more waits than went in.
    pub(super) fn fill(&mut self, core: &Core, partition: &Partition) -> bool {
        if self.building.items.is_empty() && !self.forgets(core, partition) {
            return true;
        }
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
        !partition.ready.is_empty() || !partition.controls.is_empty()
    }

    /// Numbers a batch into the group under construction. False: the group is full, or there is no room; the batch is held.
    fn add(&mut self, core: &Core, partition: &Partition, space: &Arc<Space>, batch: Batch) -> bool {
        let len = batch.frame.len() as u64 + batch.checked.hashes.len() as u64 * ITEM_EXTRA + RECORD_EXTRA;
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
        let hashes = &batch.checked.hashes;
        let first = space.number(hashes.len() as u64);
        let supersedes = supersede(space, &batch, first);
        self.scratch.clear();
        observe_prefix(&mut self.scratch, space.options.id, first, hashes, &supersedes, batch.frame.len());
        self.building.builder.push(&self.scratch, Some(&batch.frame));
        let change = Change::Observe { batch: Box::new(batch), first, supersedes };
        self.building.items.push(Item { space: Arc::clone(space), change });
        true
    }

    /// Numbers the forgets that wait. False: the group is full, or there is no room for one; it is held.
    fn forgets(&mut self, core: &Core, partition: &Partition) -> bool {
        if let Some((space, control)) = self.held_control.take()
            && !self.add_forget(core, partition, &space, control)
        {
            return false;
        }
        while let Some(id) = partition.controls.pop() {
            let Some(space) = core.spaces.get(id) else {
                continue;
            };
            let mut full = false;
            while !full {
                let Some(control) = space.controls.pop() else { break };
                full = !self.add_forget(core, partition, &space, Box::new(control));
            }
            if space.controls.settle() {
                partition.controls.push(id);
            }
            if full {
                return false;
            }
        }
        true
    }

    fn add_forget(&mut self, core: &Core, partition: &Partition, space: &Arc<Space>, control: Box<Control>) -> bool {
        let ids = match self.dying_now(space, &control.wanted) {
            Ok(ids) if !ids.is_empty() => ids,
            none => {
                let committed = Committed { first: Generation(0), count: 0, durability: space.durability };
                answer_control(space, *control, none.map(|_| committed));
                return true;
            }
        };
        let generation = space.numbered().plus(1);
        let record = ForgetRecord { space: space.options.id, generation, ids };
        self.scratch.clear();
        record.encode(&mut self.scratch);
        let body = self.building.builder.body_len();
        // Forgetting goes on when the disk is full: it may take the last spare segment (D10).
        let room = self.log.room(body + self.scratch.len() as u64, true);
        let full = !self.building.items.is_empty()
            && (body + self.scratch.len() as u64 > core.config.group_bytes_max as u64 || room != Room::Here);
        if full || room == Room::None {
            core.scheduler.wake(Task::Maintenance);
            match partition.supply.error().filter(|_| room == Room::None) {
                None => self.held_control = Some((Arc::clone(space), control)),
                Some(error) => answer_control(space, *control, Err(error)),
            }
            return false;
        }
        space.number(1);
        space.condemn(&record.ids);
        self.building.builder.push(&self.scratch, None);
        let change = Change::Forget { control, generation, ids: record.ids };
        self.building.items.push(Item { space: Arc::clone(space), change });
        true
    }

    /// Those of the memories meant that live after everything numbered so far.
    fn dying_now(&self, space: &Space, wanted: &Wanted) -> Result<Vec<Generation>, Error> {
        let view = space.view();
        let mut found = match wanted {
            Wanted::Ids(ids) => ids.clone(),
            Wanted::Key(key) => space.keys.at(key, space.numbered()).into_iter().collect(),
            Wanted::Matching { found, since, filter } => {
                let mut found = found.clone();
                let scope = Scope { upto: view.watermark(), filter: Some(filter), pulse: &|| Ok(()) };
                view.list(*since, scope, |row| {
                    found.push(row.generation);
                    true
                })?;
                for (group, batch, first) in self.under_way(space) {
                    for i in 0..batch.checked.hashes.len() {
                        let generation = first.plus(i as u64);
                        let facts = batch.checked.view.facts(&batch.frame, i, generation, group.committed_at);
                        if filter.matches(&facts) {
                            found.push(generation);
                        }
                    }
                }
                found
            }
        };
        let coming: BTreeSet<(Generation, Generation)> = self
            .under_way(space)
            .map(|(_, batch, first)| (first, first.plus(batch.checked.hashes.len() as u64)))
            .collect();
        let comes =
            |id: &Generation| coming.range(..=(*id, Generation(u64::MAX))).next_back().is_some_and(|r| *id < r.1);
        found.retain(|id| !space.is_condemned(*id) && (view.lives(*id) || comes(id)));
        // More than a record names: who asked asks again.
        found.truncate(FORGET_IDS_MAX as usize);
        Ok(found)
    }

    /// The space's batches that are numbered and not applied, with their groups.
    fn under_way<'a>(&'a self, space: &'a Space) -> impl Iterator<Item = (&'a Group, &'a Batch, Generation)> {
        let groups = self.in_flight.iter().chain([&self.building]);
        groups.flat_map(move |group| {
            group.items.iter().filter(move |i| i.space.options.id == space.options.id).filter_map(move |i| {
                match &i.change {
                    Change::Observe { batch, first, .. } => Some((group, &**batch, *first)),
                    Change::Forget { .. } => None,
                }
            })
        })
    }
}

/// Gives each keyed item its key, and names the living memories that had them (K1).
fn supersede(space: &Space, batch: &Batch, first: Generation) -> Vec<(u32, Generation)> {
    let view = &batch.checked.view;
    if !view.has_keys() {
        return Vec::new();
    }
    let (seen, mut supersedes) = (space.view(), Vec::new());
    for i in 0..view.count() {
        let Some(key) = view.key(&batch.frame, i) else { continue };
        let before = space.keys.add(key, first.plus(i as u64));
        let lives = |g: &Generation| !space.is_condemned(*g) && (*g > seen.watermark() || seen.lives(*g));
        supersedes.extend(before.filter(lives).map(|g| (i as u32, g)));
    }
    let dying: Vec<Generation> = supersedes.iter().map(|(_, g)| *g).collect();
    space.condemn(&dying);
    supersedes
}
