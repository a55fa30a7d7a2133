//! The catalogue: which spaces there are, in a small log of its own (T1). Creation is durable before the first observation; a dropped
//! space's id is never reused, and its name's next space starts after its last generation (D11, K4).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crossbeam::queue::SegQueue;
use parking_lot::Mutex;

use super::core::Core;
use crate::env::{Port, Task};
use crate::error::Error;
use crate::queue::{Reply, Ticket};
use crate::store::{Space, SpaceState};
use crate::types::{Durability, Generation, Metric, PartitionId, Quota, SpaceId, SpaceOptions};
use crate::wal::{
    CloseRecord, CreateSpace, DropSpace, GroupBuilder, LogEvent, LogWriter, Record, Room, SetQuota, Supply,
};

/// What is asked of the catalogue.
pub(super) enum Request {
    Create { name: String, dim: u32, metric: Metric, durability: Option<Durability>, reply: Reply<SpaceId> },
    Drop { id: SpaceId, reply: Reply<SpaceId> },
    Quota { id: SpaceId, quota: Quota, reply: Reply<SpaceId> },
}

enum Change {
    Create(SpaceOptions),
    Drop(SpaceId, Generation),
    Quota(SpaceId, Quota),
}

pub(super) struct Catalogue {
    pub(super) port: Arc<Port>,
    pub(super) supply: Arc<Supply>,
    pub(super) queue: SegQueue<Request>,
    pub(super) state: Mutex<CatalogueState>,
}

/// What a replay of the catalogue says.
#[derive(Default)]
pub(super) struct Known {
    pub(super) live: BTreeMap<SpaceId, SpaceOptions>,
    pub(super) dropped: BTreeSet<SpaceId>,
    /// Where a name's next space starts.
    last_of_name: HashMap<String, Generation>,
    last_id: u64,
}

impl Known {
    pub(super) fn apply(&mut self, record: &Record<'_>) {
        match record {
            Record::Create(CreateSpace(options)) => self.created(options.clone()),
            Record::Quota(SetQuota { id, quota }) => self.limited(*id, *quota),
            Record::Drop(DropSpace { id, last_generation }) => self.dropped(*id, *last_generation),
            _ => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.dropped.is_empty()
    }

    fn created(&mut self, options: SpaceOptions) {
        self.last_id = self.last_id.max(options.id.0);
        self.live.insert(options.id, options);
    }

    fn limited(&mut self, id: SpaceId, quota: Quota) {
        if let Some(options) = self.live.get_mut(&id) {
            options.quota = quota;
        }
    }

    fn dropped(&mut self, id: SpaceId, last: Generation) {
        self.dropped.insert(id);
        if let Some(options) = self.live.remove(&id) {
            self.last_of_name.insert(options.name, last);
        }
    }
}

pub(super) struct CatalogueState {
    log: LogWriter,
    known: Known,
    in_flight: Vec<(Change, Reply<SpaceId>)>,
    waiting: Option<Request>,
    busy: bool,
    /// The last group is a close record, or the log is as the start found it.
    closed: bool,
    last_activity: u64,
    failed: Option<String>,
}

impl CatalogueState {
    pub(super) fn new(log: LogWriter, known: Known) -> Self {
        Self {
            log,
            known,
            in_flight: Vec::new(),
            waiting: None,
            busy: false,
            closed: true,
            last_activity: 0,
            failed: None,
        }
    }
}

impl Catalogue {
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.state.lock();
        self.queue.is_empty() && state.in_flight.is_empty() && !state.busy && state.waiting.is_none()
    }

    pub(super) fn step(&self, core: &Core) {
        let Some(mut state) = self.state.try_lock() else {
            return;
        };
        while let Some(event) = state.log.poll() {
            match event {
                LogEvent::Synced(_) => state.committed(core),
                LogEvent::Failed { path, error } => {
                    state.failed = Some(Error::io(&path, &error).to_string());
                    state.busy = false;
                }
                LogEvent::Written(_) | LogEvent::Noted | LogEvent::NotKept => {}
            }
        }
        if let Some(cause) = state.failed.clone() {
            state.fail(core, &self.queue, &cause);
        } else if !state.busy {
            state.send(core, &self.queue, &self.supply);
            state.when_idle(core);
        }
    }

    /// Writes the closing record of a clean end; true if it left.
    pub(super) fn close(&self, core: &Core) -> bool {
        let mut state = self.state.lock();
        state.failed.is_none() && state.log.touched() && state.close(core, true)
    }
}

impl CatalogueState {
    pub(super) fn panicked(&mut self) {
        self.failed = Some("the catalogue's step panicked".to_owned());
    }

    fn close(&mut self, core: &Core, clean: bool) -> bool {
        if self.log.room(64, true) == Room::None {
            return false;
        }
        let mut body = Vec::new();
        CloseRecord { clean }.encode(&mut body);
        let mut builder = GroupBuilder::default();
        builder.push(&body, None);
        self.busy = self.log.submit(builder, true, false, core.env.clock.wall_micros()).is_some();
        self.closed = true;
        self.busy
    }

    /// Closes the log a while after the last change, so that rot in its last group is told from a torn tail (D3).
    fn when_idle(&mut self, core: &Core) {
        let quiet_ms = core.now().saturating_sub(self.last_activity) / 1_000_000;
        if !self.busy && !self.closed && self.waiting.is_none() && quiet_ms >= core.config.idle_close_ms {
            self.close(core, false);
        }
    }

    /// Numbers what was asked and sends it as one group.
    fn send(&mut self, core: &Core, queue: &SegQueue<Request>, supply: &Supply) {
        let Some(first) = self.waiting.take().or_else(|| queue.pop()) else {
            return;
        };
        if self.log.room(4096, false) == Room::None {
            core.scheduler.wake(Task::Maintenance);
            match supply.error() {
                None => self.waiting = Some(first),
                Some(error) => refuse(first, &error),
            }
            return;
        }
        let mut builder = GroupBuilder::default();
        let mut next = Some(first);
        while let Some(request) = next {
            self.number(core, request, &mut builder);
            next = if builder.body_len() < 3500 { queue.pop() } else { None };
        }
        if builder.is_empty() {
            return;
        }
        (self.busy, self.closed, self.last_activity) = (true, false, core.now());
        if self.log.submit(builder, true, false, core.env.clock.wall_micros()).is_none() {
            self.failed = Some("a promised log segment was not there".to_owned());
        }
    }

    fn number(&mut self, core: &Core, request: Request, builder: &mut GroupBuilder) {
        let mut body = Vec::new();
        match request {
            Request::Create { name, dim, metric, durability, reply } => {
                let pending = self.in_flight.iter().any(|(c, _)| matches!(c, Change::Create(o) if o.name == name));
                if pending || core.spaces.named(&name).is_some() {
                    let message = "another caller made it at the same moment".to_owned();
                    reply.complete(Err(Error::AlreadyExists { what: format!("space {name:?}"), message }));
                    return;
                }
                if self.known.live.len() + self.in_flight.len() >= core.config.spaces_max {
                    let message = format!("there are {} spaces, the limit", core.config.spaces_max);
                    reply.complete(Err(Error::TooLarge { field: "spaces", index: None, message }));
                    return;
                }
                self.known.last_id += 1;
                let options = SpaceOptions {
                    id: SpaceId(self.known.last_id),
                    partition: self.emptiest(core),
                    dim,
                    metric,
                    durability,
                    incarnation: core.env.random.next_u64(),
                    first_generation: self.known.last_of_name.get(&name).map_or(Generation(1), |g| g.plus(1)),
                    quota: Quota::default(),
                    name,
                };
                CreateSpace(options.clone()).encode(&mut body);
                self.in_flight.push((Change::Create(options), reply));
            }
            Request::Drop { id, reply } => {
                let Some(space) = core.spaces.get(id) else {
                    reply.complete(Err(Error::NotFound { what: "the space".to_owned() }));
                    return;
                };
                let last = space.numbered();
                DropSpace { id, last_generation: last }.encode(&mut body);
                self.in_flight.push((Change::Drop(id, last), reply));
            }
            Request::Quota { id, quota, reply } => {
                if core.spaces.get(id).is_none() {
                    reply.complete(Err(Error::NotFound { what: "the space".to_owned() }));
                    return;
                }
                SetQuota { id, quota }.encode(&mut body);
                self.in_flight.push((Change::Quota(id, quota), reply));
            }
        }
        builder.push(&body, None);
    }

    /// Fewest spaces, then the lowest number (T1).
    fn emptiest(&self, core: &Core) -> PartitionId {
        let mut counts = vec![0usize; core.partitions.len()];
        let pending = self.in_flight.iter().filter_map(|(c, _)| match c {
            Change::Create(o) => Some(o.partition),
            Change::Drop(..) | Change::Quota(..) => None,
        });
        for partition in self.known.live.values().map(|o| o.partition).chain(pending) {
            counts[partition.0 as usize] += 1;
        }
        let at = counts.iter().enumerate().min_by_key(|(i, n)| (**n, *i)).map_or(0, |(i, _)| i);
        PartitionId(at as u32)
    }

    fn committed(&mut self, core: &Core) {
        self.busy = false;
        for (change, reply) in std::mem::take(&mut self.in_flight) {
            match change {
                Change::Create(options) => {
                    let id = options.id;
                    self.known.created(options.clone());
                    core.partitions[options.partition.0 as usize].supply.activate();
                    core.spaces.insert(Arc::new(new_space(core, options)));
                    core.scheduler.wake(Task::Maintenance);
                    reply.complete(Ok(id));
                }
                Change::Quota(id, quota) => {
                    self.known.limited(id, quota);
                    if let Some(space) = core.spaces.get(id) {
                        space.limit(quota);
                    }
                    reply.complete(Ok(id));
                }
                Change::Drop(id, last) => {
                    self.known.dropped(id, last);
                    if let Some(space) = core.spaces.remove(id) {
                        space.detach();
                        core.partitions[space.options.partition.0 as usize].kept.lock().space_dropped();
                        core.scheduler.wake(Task::Maintenance);
                        core.dropped.push(space);
                        core.scheduler.wake(Task::Builder);
                    }
                    reply.complete(Ok(id));
                }
            }
        }
    }

    fn fail(&mut self, core: &Core, queue: &SegQueue<Request>, cause: &str) {
        let error = Error::Poisoned { cause: cause.to_owned() };
        for (change, reply) in std::mem::take(&mut self.in_flight) {
            if let Change::Drop(id, _) = change
                && let Some(space) = core.spaces.get(id)
            {
                space.doubt(cause);
            }
            reply.complete(Err(error.clone()));
        }
        while let Some(request) = self.waiting.take().or_else(|| queue.pop()) {
            refuse(request, &error);
        }
    }
}

fn refuse(request: Request, error: &Error) {
    match request {
        Request::Create { reply, .. } | Request::Drop { reply, .. } | Request::Quota { reply, .. } => {
            reply.complete(Err(error.clone()))
        }
    }
}

fn new_space(core: &Core, options: SpaceOptions) -> Space {
    let state = SpaceState {
        last_generation: Generation(options.first_generation.0 - 1),
        sealed_through: Generation(options.first_generation.0 - 1),
        incarnation: options.incarnation,
        ..SpaceState::default()
    };
    let durability = options.durability.unwrap_or(core.config.durability);
    let space = Space::new(options, durability, &core.config, state, Arc::clone(&core.process_unsealed));
    space.index_anew();
    space
}

impl Core {
    /// Asks for a space; the answer comes by the ticket.
    pub fn submit_create(
        &self,
        name: &str,
        dim: u32,
        metric: Metric,
        durability: Option<Durability>,
    ) -> Arc<Ticket<SpaceId>> {
        let ticket = Arc::new(Ticket::default());
        let reply = Reply::new(Arc::clone(&ticket));
        self.catalogue.queue.push(Request::Create { name: name.to_owned(), dim, metric, durability, reply });
        ticket
    }

    /// Asks that a space may hold so much from now on.
    pub fn submit_quota(&self, id: SpaceId, quota: Quota) -> Arc<Ticket<SpaceId>> {
        let ticket = Arc::new(Ticket::default());
        self.catalogue.queue.push(Request::Quota { id, quota, reply: Reply::new(Arc::clone(&ticket)) });
        ticket
    }

    /// Asks for a fenced and drained space to be dropped.
    pub fn submit_drop(&self, id: SpaceId) -> Arc<Ticket<SpaceId>> {
        let ticket = Arc::new(Ticket::default());
        self.catalogue.queue.push(Request::Drop { id, reply: Reply::new(Arc::clone(&ticket)) });
        ticket
    }
}
