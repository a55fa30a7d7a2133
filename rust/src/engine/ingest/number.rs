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
use crate::queue::{Committed, Forgotten, Reply};
use crate::records::{Checked, FrameView, Row};
use crate::session::SessionState;
use crate::store::{Batch, Control, Order, Piece, Scope, Space, Speaker, View, Wanted, continues};
use crate::types::{FORGET_IDS_MAX, Generation, LogPosition, SpaceId};
use crate::wal::{
    ExpiryRecord, ForgetRecord, GroupBuilder, PurgedRecord, Quarantined, Room, Said, SessionEvent, SessionRecord,
    VoidRecord, observe_prefix,
};

/// Bytes of an observe record beside its frame, for counting room, and of each item in it: its hash and what it may supersede.
const RECORD_EXTRA: u64 = 64;
const ITEM_EXTRA: u64 = 8 + 12;
/// Of a space's turn: for high, normal and low priority.
const WEIGHTS: [u64; 3] = [8, 4, 1];

pub(super) enum Change {
    /// `supersedes`: a list a piece.
    Observe {
        batch: Box<Batch>,
        first: Generation,
        supersedes: Vec<Vec<(u32, Generation)>>,
    },
    /// It could not be applied, and the log says so: its generations hold nothing.
    Voided {
        batch: Box<Batch>,
        first: Generation,
        reason: String,
    },
    Quarantine(Box<Quarantined>),
    Forget {
        bytes: u64,
        reply: Reply<Forgotten>,
        forgotten: Forgotten,
        ids: Vec<Generation>,
        purge: bool,
    },
    /// An order that takes no generation; the epoch it gave a session.
    Order {
        control: Box<Control>,
        epoch: u64,
    },
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
    /// Drain and number, orders first, then round robin over the spaces that wait. True if more waits than went in, and not for a segment.
    pub(super) fn fill(&mut self, core: &Core, partition: &Partition) -> bool {
        if !self.log_quarantines(core, partition) {
            // What makes room steps the writer.
            return false;
        }
        if self.building.items.is_empty() && !self.orders(core, partition) {
            return !self.waits_for_room();
        }
        if let Some((space, batch)) = self.held.take()
            && !self.add(core, partition, &space, batch)
        {
            return !self.waits_for_room();
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
            let quantum = space.level(now).quantum(core.config.quantum_bytes) as u64;
            let full = !self.turn(core, partition, &space, quantum);
            if space.lane.settle() {
                partition.ready.push(id);
            }
            if full {
                return !self.waits_for_room();
            }
        }
        !partition.ready.is_empty() || !partition.controls.is_empty()
    }

    /// What does not even fit an empty group waits for a segment: what makes one steps the writer.
    fn waits_for_room(&self) -> bool {
        self.building.items.is_empty() && (self.held.is_some() || self.held_control.is_some())
    }

    /// A space's turn: its lanes by weight, each at least one batch, so that none is starved; then what is left, the more urgent first (O3).
    /// False: the group is full.
    fn turn(&mut self, core: &Core, partition: &Partition, space: &Arc<Space>, quantum: u64) -> bool {
        let begin = self.building.builder.body_len();
        for (lane, weight) in WEIGHTS.into_iter().enumerate() {
            let (from, share) = (self.building.builder.body_len(), quantum * weight / WEIGHTS.iter().sum::<u64>());
            while let Some(batch) = space.lane.pop_from(lane) {
                if !self.add(core, partition, space, batch) {
                    return false;
                }
                if self.building.builder.body_len() - from >= share {
                    break;
                }
            }
        }
        while self.building.builder.body_len() - begin < quantum
            && let Some(batch) = space.lane.pop()
        {
            if !self.add(core, partition, space, batch) {
                return false;
            }
        }
        true
    }

    /// Numbers a batch into the group under construction. False: the group is full, or there is no room; the batch is held.
    fn add(&mut self, core: &Core, partition: &Partition, space: &Arc<Space>, batch: Batch) -> bool {
        let speaker = batch.speaker.clone();
        let mut section = speaker.as_ref().map(|(session, stamp)| (session.section(), *stamp));
        if let Some(Err(error)) = section.as_ref().map(|(section, stamp)| section.counts(*stamp)) {
            // Its epoch or its round has passed: it does not count any more.
            drop(section);
            answer(core, space, batch, Err(error));
            return true;
        }
        let (count, bytes) = batch.permits();
        let len = bytes + count * ITEM_EXTRA + batch.pieces.len() as u64 * RECORD_EXTRA;
        let body = self.building.builder.body_len();
        let empty = self.building.items.is_empty();
        let room = self.log.room(body + len, false);
        if !empty && (body + len > core.config.group_bytes_max as u64 || room != Room::Here) {
            self.held = Some((Arc::clone(space), batch));
            return false;
        }
        if room == Room::None {
            core.scheduler.wake(Task::Maintenance);
            drop(section);
            match partition.supply.error() {
                None => self.held = Some((Arc::clone(space), batch)),
                Some(error) => {
                    answer(core, space, batch, Err(error.clone()));
                    self.refuse_waiting(core, partition, &error);
                }
            }
            return false;
        }
        let first = space.number(count);
        if let Some((section, _)) = &mut section {
            section.number(count);
        }
        drop(section);
        let supersedes = self.encode(space, &batch, first);
        let change = Change::Observe { batch: Box::new(batch), first, supersedes };
        self.building.items.push(Item { space: Arc::clone(space), change });
        true
    }

    /// A record a piece. Returns who is superseded by each.
    fn encode(&mut self, space: &Space, batch: &Batch, first: Generation) -> Vec<Vec<(u32, Generation)>> {
        let id = space.options.id;
        let mut said = said_by(batch);
        let (mut at, mut all) = (first, Vec::with_capacity(batch.pieces.len()));
        for (i, piece) in batch.pieces.iter().enumerate() {
            self.scratch.clear();
            let supersedes = match piece {
                Piece::Rows { frame, checked } => supersede(space, frame, &checked.view, at),
                Piece::Voids(_) => Vec::new(),
            };
            let continues = continues(&batch.pieces, i);
            let frame = put_piece(&mut self.scratch, id, said, continues, at, piece, &supersedes);
            self.building.builder.push(&self.scratch, frame);
            all.push(supersedes);
            at = at.plus(piece.count());
            said = said.after(piece.count());
        }
        all
    }

    /// Numbers the orders that wait. False: the group is full, or there is no room for one; it is held.
    fn orders(&mut self, core: &Core, partition: &Partition) -> bool {
        if let Some((space, control)) = self.held_control.take()
            && !self.add_order(core, partition, &space, control)
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
                full = !self.add_order(core, partition, &space, Box::new(control));
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

    fn add_order(&mut self, core: &Core, partition: &Partition, space: &Arc<Space>, control: Box<Control>) -> bool {
        self.scratch.clear();
        let planned = match &control.order {
            Order::Forget { wanted, purge, .. } => self.plan_forget(space, wanted, *purge),
            order => self.plan_order(space, order),
        };
        let planned = match planned {
            Ok(Some(planned)) => planned,
            Ok(None) => {
                // Nothing that is meant is there.
                let committed = Committed { first: Generation(0), count: 0, durability: space.durability };
                answer_control(space, *control, &|| Ok(committed));
                return true;
            }
            Err(error) => {
                answer_control(space, *control, &|| Err(error.clone()));
                return true;
            }
        };
        let body = self.building.builder.body_len() + self.scratch.len() as u64;
        // Forgetting goes on when the disk is full: it may take the last spare segment (D10).
        let room = self.log.room(body, true);
        let full = !self.building.items.is_empty() && (body > core.config.group_bytes_max as u64 || room != Room::Here);
        if full || room == Room::None {
            core.scheduler.wake(Task::Maintenance);
            match partition.supply.error().filter(|_| room == Room::None) {
                None => self.held_control = Some((Arc::clone(space), control)),
                Some(error) => answer_control(space, *control, &|| Err(error.clone())),
            }
            return false;
        }
        self.building.builder.push(&self.scratch, None);
        let change = match (planned, *control) {
            (Planned::Forget(forgotten, ids), Control { bytes, order: Order::Forget { reply, purge, .. } }) => {
                space.number(1);
                space.condemn(&ids);
                Change::Forget { bytes, reply, forgotten, ids, purge }
            }
            (_, control) => {
                let epoch = begin_epoch(&control.order);
                Change::Order { control: Box::new(control), epoch }
            }
        };
        self.building.items.push(Item { space: Arc::clone(space), change });
        true
    }

    /// Who dies, and the record in `scratch`; None if there is nobody.
    fn plan_forget(&mut self, space: &Space, wanted: &Wanted, purge: bool) -> Result<Option<Planned>, Error> {
        let generation = space.numbered().plus(1);
        let (ids, count, more) = self.dying_now(space, wanted, purge)?;
        if ids.is_empty() {
            return Ok(None);
        }
        let record = ForgetRecord { space: space.options.id, generation, ids, purge };
        record.encode(&mut self.scratch);
        Ok(Some(Planned::Forget(Forgotten { generation, count, more }, record.ids)))
    }

    /// The record of an order in `scratch`, if it is one that may be given now.
    fn plan_order(&mut self, space: &Space, order: &Order) -> Result<Option<Planned>, Error> {
        let id = space.options.id;
        let record = |session: &Speaker, epoch, event| SessionRecord { space: id, session: session.id, epoch, event };
        let gone = || Error::SessionExpired { reason: "it was closed, or has expired".to_owned() };
        match order {
            Order::Forget { .. } => {}
            Order::Expire { through, .. } => {
                ExpiryRecord { space: id, history: *through, sessions: Vec::new() }.encode(&mut self.scratch);
            }
            Order::Purged { ids, .. } => {
                PurgedRecord { space: id, ids: ids.clone() }.encode(&mut self.scratch);
            }
            Order::Open { session, .. } => {
                let (priority, principal) = (session.priority.code(), session.principal.clone());
                record(session, 1, SessionEvent::Opened { priority, principal }).encode(&mut self.scratch);
            }
            Order::Attach { session, claim, .. } => {
                let section = session.section();
                if section.state == SessionState::Closed {
                    return Err(gone());
                }
                section.admits(*claim)?;
                record(session, section.epoch + 1, SessionEvent::Attached).encode(&mut self.scratch);
            }
            Order::End { session, epoch, .. } => {
                let section = session.section();
                match epoch {
                    Some(epoch) => section.speaks(*epoch)?,
                    // Somebody has come back to it.
                    None if section.state != SessionState::Detached => return Ok(None),
                    None => {}
                }
                if !section.is_drained() {
                    return Err(Error::Timeout { what: "draining the session".to_owned() });
                }
                match epoch {
                    Some(epoch) => record(session, *epoch, SessionEvent::Closed).encode(&mut self.scratch),
                    None => ExpiryRecord { space: id, history: Generation(0), sessions: vec![session.id] }
                        .encode(&mut self.scratch),
                }
            }
        }
        Ok(Some(Planned::Other))
    }

    /// Those of the memories meant that live after everything numbered so far, how many, and whether there are more than a record names.
    /// Named too, and not counted, are those that only what is on its way supersedes: should that never come to be, they must not come back
    /// (O7). And for a purge all that died and are still here: their bytes go too (K3).
    fn dying_now(&self, space: &Space, wanted: &Wanted, purge: bool) -> Result<(Vec<Generation>, u32, bool), Error> {
        let view = space.view();
        let found = self.meant(space, &view, wanted, purge)?;
        let rows = |(_, (_, checked), first): (i64, (_, &Checked), Generation)| {
            (first, first.plus(checked.hashes.len() as u64))
        };
        let coming: BTreeSet<(Generation, Generation)> = self.under_way(space).map(rows).collect();
        let comes = |id: Generation| coming.range(..=(id, Generation(u64::MAX))).next_back().is_some_and(|r| id < r.1);
        let superseded = self.superseded_under_way(space, &self.quarantined_so_far(space, None));
        let condemned = space.condemned(&found);
        let purging: BTreeSet<Generation> = if purge { space.purging().into_iter().collect() } else { BTreeSet::new() };
        let (mut ids, mut count) = (Vec::new(), 0);
        for id in found {
            let (lives, doomed) = (view.lives(id) || comes(id), condemned.contains(&id));
            let named = if purge {
                lives || view.holds(id) && !purging.contains(&id)
            } else {
                lives && (!doomed || superseded.contains(&id))
            };
            if named && ids.len() as u64 == FORGET_IDS_MAX {
                return Ok((ids, count, true));
            }
            if named {
                ids.push(id);
                count += u32::from(lives && !doomed);
            }
        }
        Ok((ids, count, false))
    }

    /// What may be meant by a forget, of all that was numbered so far.
    fn meant(&self, space: &Space, view: &View, wanted: &Wanted, purge: bool) -> Result<Vec<Generation>, Error> {
        let (found, since, filter) = match wanted {
            Wanted::Ids(ids) => return Ok(ids.clone()),
            Wanted::Key(key) => return Ok(space.keys.history(key, space.numbered())),
            Wanted::Matching { found, since, filter } => (found, since, filter),
        };
        let mut found = found.clone();
        let scope = Scope { upto: view.watermark(), filter: Some(filter), pulse: &|| Ok(()) };
        let add = |row: Row<'_>| {
            found.push(row.generation);
            true
        };
        if purge { view.list_dead_too(*since, scope, add) } else { view.list(*since, scope, add) }?;
        for (at, (frame, checked), first) in self.under_way(space) {
            for i in 0..checked.hashes.len() {
                let generation = first.plus(i as u64);
                if filter.matches(&checked.view.facts(frame, i, generation, at)) {
                    found.push(generation);
                }
            }
        }
        Ok(found)
    }

    /// What is numbered of the space and not applied, with the time of its group.
    pub(super) fn items_under_way<'a>(&'a self, space: &'a Space) -> impl Iterator<Item = (i64, &'a Item)> {
        let groups = self.in_flight.iter().chain([&self.building]);
        let items = groups.flat_map(|group| group.items.iter().map(move |item| (group.committed_at, item)));
        let stuck = self.stuck.get(&space.options.id).into_iter().flatten().map(|due| (due.committed_at, &due.item));
        stuck.chain(items).filter(|(_, item)| item.space.options.id == space.options.id)
    }

    /// The rows of that, with their first generations.
    fn under_way<'a>(&'a self, space: &'a Space) -> impl Iterator<Item = (i64, (&'a [u8], &'a Checked), Generation)> {
        self.items_under_way(space)
            .flat_map(|(at, item)| {
                let (pieces, first) = match &item.change {
                    Change::Observe { batch, first, .. } => (&batch.pieces[..], *first),
                    _ => (&[][..], Generation(0)),
                };
                pieces.iter().scan(first, move |next, piece| {
                    let first = *next;
                    *next = next.plus(piece.count());
                    Some(match piece {
                        Piece::Rows { frame, checked } => Some((at, (&frame[..], &**checked), first)),
                        Piece::Voids(_) => None,
                    })
                })
            })
            .flatten()
    }
}

enum Planned {
    Forget(Forgotten, Vec<Generation>),
    Other,
}

/// Whose observations a batch holds.
pub(super) fn said_by(batch: &Batch) -> Said {
    batch.speaker.as_ref().map_or(Said::default(), |(s, stamp)| Said { session: s.id, first: stamp.first })
}

/// A piece's record without its frame, which is handed back.
pub(super) fn put_piece<'a>(
    out: &mut Vec<u8>,
    space: SpaceId,
    said: Said,
    continues: bool,
    at: Generation,
    piece: &'a Piece,
    supersedes: &[(u32, Generation)],
) -> Option<&'a Arc<Vec<u8>>> {
    match piece {
        Piece::Rows { frame, checked } => {
            observe_prefix(out, space, said, continues, at, &checked.hashes, supersedes, frame.len());
            Some(frame)
        }
        Piece::Voids(count) => {
            VoidRecord { space, first_generation: at, count: *count, incarnation: 0, said }.encode(out);
            None
        }
    }
}

/// Opening and attaching begin an epoch, here, so that what the older one pushed behind is not numbered (S4).
fn begin_epoch(order: &Order) -> u64 {
    match order {
        Order::Open { session, claim, .. } | Order::Attach { session, claim, .. } => {
            let (epoch, left) = session.section().attach(*claim);
            left.into_iter().for_each(|reply| reply.complete(Err(Error::Fenced)));
            epoch
        }
        Order::End { session, .. } => {
            // From here on nobody can attach: its record goes.
            session.section().state = SessionState::Closed;
            0
        }
        _ => 0,
    }
}

/// Gives each keyed item its key, and names the living memories that had them (K1).
fn supersede(space: &Space, frame: &[u8], view: &FrameView, first: Generation) -> Vec<(u32, Generation)> {
    if !view.has_keys() {
        return Vec::new();
    }
    let (seen, mut supersedes) = (space.view(), Vec::new());
    for i in 0..view.count() {
        let Some(key) = view.key(frame, i) else { continue };
        let before = space.keys.add(key, first.plus(i as u64));
        let lives = |g: &Generation| !space.is_condemned(*g) && (*g > seen.watermark() || seen.lives(*g));
        supersedes.extend(before.filter(lives).map(|g| (i as u32, g)));
    }
    let dying: Vec<Generation> = supersedes.iter().map(|(_, g)| *g).collect();
    space.condemn(&dying);
    supersedes
}
