//! One space while its partition is read: what the checkpoint and the log say of it, until it becomes the space that readers see.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Error;
use crate::queue::Pool;
use crate::session::{Priority, SequenceRun, Window};
use crate::store::{DamagedRows, Delta, Part, SealedPart, Space, SpaceState, Speaker};
use crate::types::{Config, Durability, Generation, LogPosition, SessionId, SpaceOptions};
use crate::wal::{CheckpointSession, GroupAt, Said, SessionEvent, SessionRecord};

/// A session as far as it is read.
struct Seated {
    priority: Priority,
    principal: String,
    epoch: u64,
    used_at: i64,
    window: Window,
}

/// One space as its partition's files have it.
pub(super) struct Replayed {
    pub(super) options: SpaceOptions,
    pub(super) state: SpaceState,
    pub(super) sealed: Vec<SealedPart>,
    pub(super) delta: Delta,
    sessions: BTreeMap<SessionId, Seated>,
    pub(super) last: Generation,
    /// Rows up to here are in files, or need not be.
    pub(super) covered: Generation,
    pub(super) gaps: Vec<(Generation, Generation)>,
    pub(super) seen_at: u64,
}

impl Replayed {
    /// A space of which nothing is known but that it was made.
    pub(super) fn new(options: SpaceOptions) -> Self {
        let before = Generation(options.first_generation.0 - 1);
        let state = SpaceState {
            last_generation: before,
            sealed_through: before,
            incarnation: options.incarnation,
            ..SpaceState::default()
        };
        Self {
            options,
            state,
            sealed: Vec::new(),
            delta: Delta::default(),
            sessions: BTreeMap::new(),
            last: before,
            covered: before,
            gaps: Vec::new(),
            seen_at: 0,
        }
    }

    /// The space as its readers will see it.
    pub(super) fn into_space(
        self,
        durability: Durability,
        config: &Config,
        process_unsealed: &Arc<Pool>,
        now: u64,
    ) -> Space {
        let last_generation = self.state.last_generation.max(self.state.sealed_through);
        let state = SpaceState { last_generation, ..self.state };
        let space = Space::new(self.options, durability, config, state, Arc::clone(process_unsealed));
        space.install(self.sealed, 0, now);
        space.publish(self.delta, now);
        space.learn_keys();
        for (id, s) in self.sessions {
            let session = Speaker::new(id, s.priority, s.principal, s.epoch, s.window, s.used_at);
            space.sessions.insert(Arc::new(session));
        }
        space
    }

    /// The space's sessions as a checkpoint has them.
    pub(super) fn seat_sessions(&mut self, sessions: &[CheckpointSession]) {
        for s in sessions {
            let run = |r: &(u64, u64, Generation)| SequenceRun { first: r.0, count: r.1, generation: r.2, offset: 0 };
            let window = Window::restored(s.committed, s.runs.iter().map(run).collect());
            let priority = Priority::from_code(s.priority).unwrap_or_default();
            let seated =
                Seated { priority, principal: s.principal.clone(), epoch: s.epoch, used_at: s.used_at, window };
            self.sessions.insert(s.id, seated);
        }
    }

    /// A session's record; of one that the checkpoint does not have any more there is nothing to tell.
    pub(super) fn turn(&mut self, record: SessionRecord, used_at: i64) {
        let SessionRecord { session: id, epoch, event, .. } = record;
        match event {
            SessionEvent::Opened { priority, principal } => {
                let priority = Priority::from_code(priority).unwrap_or_default();
                let window = Window::default();
                self.sessions.entry(id).or_insert(Seated { priority, principal, epoch, used_at, window });
            }
            SessionEvent::Attached => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.epoch = session.epoch.max(epoch);
                    session.used_at = session.used_at.max(used_at);
                }
            }
            SessionEvent::Closed => self.end(id),
        }
    }

    /// The session's record is gone.
    pub(super) fn end(&mut self, id: SessionId) {
        self.sessions.remove(&id);
    }

    /// What a record says of its session (S2, S5).
    pub(super) fn said(
        &mut self,
        said: Said,
        count: u64,
        generation: Generation,
        group: &GroupAt,
    ) -> Result<(), Error> {
        let Some(session) = self.sessions.get_mut(&said.session) else { return Ok(()) };
        let committed = session.window.committed();
        if said.first + count - 1 <= committed {
            // The checkpoint has it.
            return Ok(());
        }
        let run = SequenceRun { first: said.first, count, generation, offset: 0 };
        session.used_at = session.used_at.max(group.header.committed_at);
        if session.window.commit(run, u64::MAX) {
            return Ok(());
        }
        if self.gaps.is_empty() {
            let reason = format!("sequence {} of session {} follows {committed}", said.first, said.session);
            return Err(Error::corrupted(&group.path, group.header.offset, reason));
        }
        // The log lost what was between: the space is degraded, and takes nothing more.
        session.window = Window::restored(said.first + count - 1, vec![run]);
        Ok(())
    }

    /// The next record of the space begins at `first`; what lies between is lost.
    pub(super) fn expect(&mut self, first: Generation, group: &GroupAt) -> Result<(), Error> {
        if first.0 <= self.last.0 {
            let reason = format!("generation {first} of space {} stands twice in the log", self.options.name);
            return Err(Error::corrupted(&group.path, group.header.offset, reason));
        }
        if first.0 > self.last.0 + 1 {
            let gap = (self.last.plus(1), Generation(first.0 - 1));
            let reason = "part of its log is damaged";
            let error = Error::corrupted(format!("space {}", self.options.name), 0, reason);
            self.gaps.push(gap);
            self.delta.parts.push(lost_tail(&error, gap.0, gap.1, group.before));
            self.delta.ranges.push(gap);
        }
        Ok(())
    }
}

pub(super) fn lost_tail(error: &Error, first: Generation, last: Generation, position: LogPosition) -> Part {
    let rows = Arc::new(DamagedRows::new(first, last, error.clone()));
    Part { sound: false, ..Part::new(rows, position, 0) }
}
