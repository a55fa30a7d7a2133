//! What callers use to write: observe and forget, as far as a place in a lane. No call here waits; waiting is in `workers`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::{Core, Partition};
use super::reads::Reading;
use super::workers::Pulse;
use crate::error::Error;
use crate::queue::{Committed, Forgotten, Level, Reply, Ticket, retry_after_ms};
use crate::records::{Filter, check_frame};
use crate::session::{Priority, Stamp};
use crate::store::{Batch, Control, Order, Piece, Space, Speaker, Wanted, permits};
use crate::types::{DIM_MAX, Generation, check_space_name};

/// A forget's condition is asked again by the writer for about so many rows at most.
const RECHECK_ROWS: u64 = 4_096;
const PROCESS_QUEUE: &str = "the process's queues are full";

/// A checked frame that may be admitted.
pub struct Prepared {
    pub(super) pieces: Vec<Piece>,
}

/// What came of an attempt to admit.
pub enum Admission {
    Admitted(Arc<Ticket<Committed>>),
    /// No permit now; try again when there is room.
    Full(Box<Prepared>, &'static str),
}

/// How many memories there will be more: those that supersede one do not count.
fn growth(space: &Space, prepared: &Prepared) -> u64 {
    if space.quota().memories == 0 {
        return 0;
    }
    let view = space.view();
    let fresh = |piece: &Piece| match piece {
        Piece::Voids(_) => 0,
        Piece::Rows { frame, checked } => {
            let supersedes = |i: &usize| {
                let owner = checked.view.key(frame, *i).and_then(|key| space.keys.at(key, view.watermark()));
                owner.is_some_and(|owner| view.lives(owner))
            };
            let all = checked.view.count();
            if checked.view.has_keys() { (0..all).filter(|i| !supersedes(i)).count() } else { all }
        }
    };
    prepared.pieces.iter().map(|piece| fresh(piece) as u64).sum()
}

impl Core {
    pub fn space(&self, name: &str) -> Result<Arc<Space>, Error> {
        self.check_open()?;
        check_space_name(name)?;
        let space = self.spaces.named(name).filter(|s| !s.is_fenced());
        space.ok_or_else(|| Error::NotFound { what: format!("space {name:?}") })
    }

    pub fn check_dim(dim: u32) -> Result<(), Error> {
        if (1..=DIM_MAX).contains(&dim) {
            return Ok(());
        }
        Err(Error::invalid("dim", format!("dim is {dim}; it must lie between 1 and {DIM_MAX}")))
    }

    /// Validates a frame (O1). Nothing is taken yet.
    pub fn prepare(&self, space: &Space, frame: Vec<u8>) -> Result<Box<Prepared>, Error> {
        self.check_open()?;
        let checked = check_frame(&frame, space.options.dim, space.options.metric, &self.config)?;
        if checked.view.has_keys() {
            space.knows_keys()?;
        }
        self.fits(space, vec![Piece::Rows { frame: Arc::new(frame), checked: Arc::new(checked) }])
    }

    /// Whether the pieces could ever be admitted.
    pub(super) fn fits(&self, space: &Space, pieces: Vec<Piece>) -> Result<Box<Prepared>, Error> {
        let (count, bytes) = permits(&pieces);
        if !space.depth.could_hold(count, bytes) || !self.process_queue.could_hold(bytes) {
            let message = format!("{count} observations of {bytes} bytes are over the limits of the queues");
            return Err(Error::TooLarge { field: "batch", index: None, message });
        }
        Ok(Box::new(Prepared { pieces }))
    }

    /// Whether the space takes changes at all; its partition.
    pub(super) fn writable(&self, space: &Space) -> Result<&Partition, Error> {
        self.check_open()?;
        let partition = &self.partitions[space.options.partition.0 as usize];
        if let Some(cause) = partition.poisoned.get() {
            return Err(Error::Poisoned { cause: cause.clone() });
        }
        space.refuses_writes().map_or(Ok(partition), Err)
    }

    /// Takes a permit and pushes, or does neither (O2, P1).
    pub fn admit(&self, space: &Arc<Space>, prepared: Box<Prepared>) -> Result<Admission, Error> {
        let partition = self.writable(space)?;
        match self.permit(space, &prepared)? {
            Some(reason) => Ok(Admission::Full(prepared, reason)),
            None => Ok(Admission::Admitted(self.push(space, partition, *prepared, None))),
        }
    }

    /// Takes a permit, or nothing; then the reason.
    pub(super) fn permit(&self, space: &Space, prepared: &Prepared) -> Result<Option<&'static str>, Error> {
        let (count, bytes) = permits(&prepared.pieces);
        let now = self.now();
        if let Some(reason) = self.pressed(space, bytes, now) {
            return Ok(Some(reason));
        }
        if !self.process_queue.reserve(bytes) {
            return Ok(Some(PROCESS_QUEUE));
        }
        if !space.reserve(count, bytes, now, &self.process_queue) {
            self.process_queue.release(bytes);
            return Ok(Some("the space's queue is full"));
        }
        let refused = match space.admits().and_then(|()| space.within_quota(growth(space, prepared), (count, bytes))) {
            Ok(true) => return Ok(None),
            Ok(false) => Ok(Some("the space's quota is used up by what is on its way")),
            Err(error) => Err(error),
        };
        self.process_queue.release(bytes);
        space.release(count, bytes, now, None, &self.process_queue);
        refused
    }

    /// The permit is taken: into the lane.
    pub(super) fn push(
        &self,
        space: &Space,
        partition: &Partition,
        prepared: Prepared,
        speaker: Option<(Arc<Speaker>, Stamp)>,
    ) -> Arc<Ticket<Committed>> {
        let ticket = Arc::new(Ticket::default());
        let reply = Reply::new(Arc::clone(&ticket));
        let priority = speaker.as_ref().map_or(Priority::default(), |(session, _)| session.priority);
        let batch = Batch { admitted_at: self.now(), pieces: prepared.pieces, speaker, reply };
        if space.lane.push(priority as usize, batch) {
            partition.ready.push(space.options.id);
        }
        ticket
    }

    /// Why nothing more may come in now (P2, P3).
    fn pressed(&self, space: &Space, bytes: u64, now: u64) -> Option<&'static str> {
        if space.level(now) == Level::Overloaded {
            return Some(space.pressure(now).1);
        }
        let (waiting, unsealed) = (space.depth.bytes(), space.unsealed_bytes());
        if unsealed > 0 && unsealed + waiting + bytes > self.config.unsealed_space_bytes_max {
            space.want_room();
            return Some("the space holds too much that is not sealed yet");
        }
        let all = self.process_unsealed.bytes();
        if self.process_unsealed.refuses(unsealed, bytes)
            || (all > 0 && all + bytes > self.config.unsealed_process_bytes_max)
        {
            self.wants_room.store(true, Ordering::Relaxed);
            return Some("the process holds too much that is not sealed yet");
        }
        if self.is_too_far_behind(space) {
            return Some("the process's indexes are too far behind");
        }
        self.process_queue.refuses(waiting, bytes).then_some(PROCESS_QUEUE)
    }

    /// The level that callers see: the space's own, or that of what all take from together, if it has more than its share of that (P2).
    pub fn level_for(&self, space: &Space, now: u64) -> Level {
        let behind = if self.is_too_far_behind(space) { Level::Overloaded } else { Level::Normal };
        let (queue, unsealed, more) = (space.depth.bytes(), space.unsealed_bytes(), self.config.quantum_bytes as u64);
        let shared = self.process_queue.level_for(queue, more).max(self.process_unsealed.level_for(unsealed, more));
        space.level(now).max(shared).max(behind)
    }

    /// Whether so many observations and bytes more would find room.
    pub(super) fn has_room(&self, space: &Space, (count, bytes): (u64, u64), now: u64) -> bool {
        let (observations, most) = space.depth.room();
        count <= observations
            && bytes <= most.min(self.process_queue.room())
            && self.pressed(space, bytes, now).is_none()
    }

    /// All indexes together hold too much that no graph answers for, and this one's part is above its share.
    fn is_too_far_behind(&self, space: &Space) -> bool {
        let (bytes, tails) = (self.unabsorbed.0.load(Ordering::Relaxed), self.unabsorbed.1.load(Ordering::Relaxed));
        let max = self.config.unabsorbed_process_bytes_max;
        bytes > max && space.tail_bytes() > max / tails.max(1)
    }

    /// What a caller is told that found no room in time.
    pub(super) fn overloaded(&self, space: &Space, refused: &Prepared, reason: &str) -> Error {
        let (count, bytes) = permits(&refused.pieces);
        let shared = self.process_queue.level().max(self.process_unsealed.level());
        let level = self.level_for(space, self.now()).max(shared);
        let retry_after_ms =
            retry_after_ms(space.drain_ms(count, bytes, &self.process_queue), self.env.random.next_u64());
        Error::Overloaded { retry_after_ms, level: level.name(), reason: reason.to_owned() }
    }

    pub(super) fn too_many_orders(&self, space: &Space) -> Error {
        let (level, reason) = (
            self.level_for(space, self.now()).name(),
            "too many forgets and session changes of this space are on their way".to_owned(),
        );
        Error::Overloaded { retry_after_ms: retry_after_ms(Some(0.0), self.env.random.next_u64()), level, reason }
    }

    /// Which memories match now, for a forget, or for a purge, which means those that died too: at most as many as one record names, and
    /// whether these are all.
    pub fn matching(
        &self,
        space: &Space,
        filter: &Filter,
        purge: bool,
        pulse: Pulse<'_>,
    ) -> Result<(Wanted, bool), Error> {
        let reading = Reading { filter: Some(filter), pulse, ..Reading::default() };
        let (mut found, mut since) = (Vec::new(), Generation(0));
        // Again for what came meanwhile: the writer must not have much left to look at.
        for _ in 0..4 {
            let (whole, upto) = self.ids(space, since, reading, purge, &mut found)?;
            if !whole {
                return Ok((Wanted::Ids(found), false));
            }
            let more = upto.0 - since.0;
            since = upto;
            if more < RECHECK_ROWS {
                break;
            }
        }
        Ok((Wanted::Matching { found, since, filter: filter.clone() }, true))
    }

    /// Takes a place in the control lane and pushes; gives back what was ordered if there is none now (O3).
    pub(super) fn order(&self, space: &Arc<Space>, order: Order) -> Result<Option<Order>, Error> {
        let partition = self.writable(space)?;
        let bytes = match &order {
            Order::Forget { wanted: Wanted::Ids(ids) | Wanted::Matching { found: ids, .. }, .. } => {
                ids.len() as u64 * 8
            }
            _ => 256,
        };
        if space.controls_depth.reserve(1, bytes).is_none() {
            return Ok(Some(order));
        }
        if let Err(error) = space.admits() {
            space.controls_depth.release(1, bytes);
            return Err(error);
        }
        if space.controls.push(0, Control { bytes, order }) {
            partition.controls.push(space.options.id);
        }
        Ok(None)
    }

    /// Orders that what died at or before `through` is no longer kept (G5).
    pub(super) fn submit_expire(&self, space: &Arc<Space>, through: Generation) -> Result<bool, Error> {
        let reply = Reply::new(Arc::new(Ticket::default()));
        Ok(self.order(space, Order::Expire { through, reply })?.is_none())
    }

    /// Orders the record that says that these bytes are gone (K3).
    pub(super) fn submit_purged(
        &self,
        space: &Arc<Space>,
        ids: &[Generation],
    ) -> Result<Option<Arc<Ticket<Committed>>>, Error> {
        let ticket = Arc::new(Ticket::default());
        let order = Order::Purged { ids: ids.to_vec(), reply: Reply::new(Arc::clone(&ticket)) };
        Ok(self.order(space, order)?.is_none().then_some(ticket))
    }

    /// Orders a forget; gives back what was wanted if there is no place now (K3).
    pub fn submit_forget(
        &self,
        space: &Arc<Space>,
        wanted: Wanted,
        purge: bool,
    ) -> Result<Result<Arc<Ticket<Forgotten>>, Wanted>, Error> {
        if matches!(wanted, Wanted::Key(_)) {
            space.knows_keys()?;
        }
        let ticket = Arc::new(Ticket::default());
        let order = Order::Forget { wanted, purge, reply: Reply::new(Arc::clone(&ticket)) };
        Ok(match self.order(space, order)? {
            Some(Order::Forget { wanted, .. }) => Err(wanted),
            _ => Ok(ticket),
        })
    }
}
