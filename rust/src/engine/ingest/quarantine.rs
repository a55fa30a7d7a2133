//! A batch that cannot be applied goes into quarantine (O7): its bytes are kept aside, a record says so, and apply goes round it.
//!
//! Nothing is numbered in the partition between the failure and the record: what is numbered after it finds the keys as if the batch had
//! not been, and a start that reads the log without the record meets nobody who relied on it. What was numbered before and superseded the
//! batch supersedes its predecessor (`wal::stand_in`).

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::super::core::{Core, Partition};
use super::Writer;
use super::apply::Due;
use super::number::{Change, Item, put_piece, said_by};
use crate::env::Task;
use crate::store::{Batch, Piece, Space, continues};
use crate::types::{Generation, SpaceId};
use crate::wal::{QuarantineRecord, Quarantined, Room, stand_in};

impl Writer {
    /// Logs what is to be gone round. False: there is no room for it now; nothing else may be numbered before.
    pub(super) fn log_quarantines(&mut self, core: &Core, partition: &Partition) -> bool {
        while let Some((id, reason)) = self.to_quarantine.pop_front() {
            // What waits behind it stays in sight: it may have superseded the batch.
            let Some(due) = self.stuck.get_mut(&id).and_then(VecDeque::pop_front) else { continue };
            let (due, room) = self.log_quarantine(core, due, &reason);
            if let Some(waiting) = self.stuck.get_mut(&id) {
                waiting.push_front(due);
            }
            if room == Room::Here {
                continue;
            }
            self.to_quarantine.push_front((id, reason));
            core.scheduler.wake(Task::Maintenance);
            if let Some(error) = partition.supply.error().filter(|_| room == Room::None) {
                self.refuse_waiting(core, partition, &error);
                self.refuse_orders(core, partition, &error);
            }
            return false;
        }
        true
    }

    /// `Here`: it is logged. `Next`: not in this group. `None`: nowhere.
    fn log_quarantine(&mut self, core: &Core, mut due: Due, reason: &str) -> (Due, Room) {
        let space = Arc::clone(&due.item.space);
        let (batch, first, supersedes) = match due.item.change {
            Change::Observe { batch, first, supersedes } => (batch, first, supersedes),
            // Not an observation: the log is poisoned.
            _ => return (due, Room::Here),
        };
        let id = space.options.id;
        let (said, superseded) = (said_by(&batch), superseded(&batch, first, &supersedes));
        let at = core.env.clock.wall_micros().max(self.log.committed_at());
        let entry = Quarantined { first, count: batch.permits().0, at, said, superseded, reason: reason.to_owned() };
        self.scratch.clear();
        QuarantineRecord { space: id, batch: entry.clone() }.encode(&mut self.scratch);
        let body = self.building.builder.body_len() + self.scratch.len() as u64;
        let room = self.log.room(body, true);
        let full = !self.building.items.is_empty() && (body > core.config.group_bytes_max as u64 || room != Room::Here);
        if full || room == Room::None {
            due.item.change = Change::Observe { batch, first, supersedes };
            return (due, if room == Room::None { Room::None } else { Room::Next });
        }
        // Before the record: the port runs its jobs in order. Bytes that cannot be kept must not keep the others waiting.
        self.log.keep_records(id, first, records(id, &batch, first, &supersedes));
        self.building.builder.push(&self.scratch, None);
        give_back_keys(&space, &batch, first);
        // Who was to die by the batch lives, unless what is on its way supersedes the batch.
        let known = self.quarantined_so_far(&space, Some(&entry));
        let superseded = self.superseded_under_way(&space, &known);
        let freed = entry.superseded.iter().filter_map(|(item, _)| stand_in(&known, *item));
        space.reprieve(freed.filter(|old| !superseded.contains(old)));
        space.reprieve((0..entry.count).map(|i| first.plus(i)));
        self.building.items.push(Item { space, change: Change::Quarantine(Box::new(entry)) });
        due.item.change = Change::Voided { batch, first, reason: reason.to_owned() };
        (due, Room::Here)
    }
}

impl Writer {
    /// What is known of the space not to be applied: in the log, on its way there, and `new`.
    pub(super) fn quarantined_so_far(&self, space: &Space, new: Option<&Quarantined>) -> Vec<Quarantined> {
        let coming = self.items_under_way(space).filter_map(|(_, item)| match &item.change {
            Change::Quarantine(batch) => Some(Quarantined::clone(batch)),
            _ => None,
        });
        let mut all: Vec<_> = space.quarantined().iter().cloned().chain(coming).chain(new.cloned()).collect();
        all.sort_by_key(|q| q.first);
        all
    }

    /// Who dies by superseding that is numbered and not applied, as far as it is known what will not be.
    pub(super) fn superseded_under_way(&self, space: &Space, known: &[Quarantined]) -> BTreeSet<Generation> {
        let lists = |item: &Item| match &item.change {
            Change::Observe { supersedes, .. } => supersedes.iter().flatten().map(|(_, old)| *old).collect(),
            _ => Vec::new(),
        };
        self.items_under_way(space).flat_map(|(_, item)| lists(item)).filter_map(|old| stand_in(known, old)).collect()
    }
}

/// Item and predecessor, of all pieces.
fn superseded(
    batch: &Batch,
    first: Generation,
    supersedes: &[Vec<(u32, Generation)>],
) -> Vec<(Generation, Generation)> {
    let (mut at, mut all) = (first, Vec::new());
    for (piece, list) in batch.pieces.iter().zip(supersedes) {
        all.extend(list.iter().map(|(item, old)| (at.plus(u64::from(*item)), *old)));
        at = at.plus(piece.count());
    }
    all
}

/// The batch as the log has it.
fn records(id: SpaceId, batch: &Batch, first: Generation, supersedes: &[Vec<(u32, Generation)>]) -> Vec<u8> {
    let (mut out, mut at, mut said) = (Vec::new(), first, said_by(batch));
    for (i, (piece, supersedes)) in batch.pieces.iter().zip(supersedes).enumerate() {
        if let Some(frame) = put_piece(&mut out, id, said, continues(&batch.pieces, i), at, piece, supersedes) {
            out.extend_from_slice(frame);
        }
        at = at.plus(piece.count());
        said = said.after(piece.count());
    }
    out
}

/// The batch's keys are their former owners' again.
fn give_back_keys(space: &Space, batch: &Batch, first: Generation) {
    let mut at = first;
    for piece in &batch.pieces {
        if let Piece::Rows { frame, checked } = piece
            && checked.view.has_keys()
        {
            for i in 0..checked.view.count() {
                if let Some(key) = checked.view.key(frame, i) {
                    space.keys.remove(key, at.plus(i as u64));
                }
            }
        }
        at = at.plus(piece.count());
    }
}
