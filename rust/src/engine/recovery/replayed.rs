//! One space while its partition is read: what the checkpoint and the log say of it, until it becomes the space that readers see.
//!
//! The log is walked first, then what it says is applied: what could not be is known before it is met (O7).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Error;
use crate::queue::Pool;
use crate::records::Checked;
use crate::session::{Priority, SequenceRun, Window};
use crate::store::{
    DamagedRows, Delta, Observed, Part, SealedPart, Space, SpaceState, Speaker, apply_forget, apply_observe,
    apply_voids,
};
use crate::types::{Config, Durability, Generation, LogPosition, SessionId, SpaceOptions};
use crate::wal::{CheckpointSession, GroupAt, Quarantined, Said, SessionEvent, SessionRecord};

/// A session as far as it is read.
struct Seated {
    priority: Priority,
    principal: String,
    epoch: u64,
    used_at: i64,
    window: Window,
}

/// What a record does to the space.
pub(in crate::engine) enum Deed {
    Rows {
        frame: Arc<Vec<u8>>,
        hashes: Vec<u64>,
        said: Said,
        first: Generation,
        supersedes: Vec<(u32, Generation)>,
        continues: bool,
    },
    Voids(Generation, u64),
    Forget {
        generation: Generation,
        ids: Vec<Generation>,
        purge: bool,
    },
    Purged(Vec<Generation>),
    /// Generations that the log has lost.
    Lost(Generation, Generation, Error),
}

/// A deed, and what its group says of it.
pub(in crate::engine) struct Done {
    pub(in crate::engine) deed: Deed,
    pub(in crate::engine) position: LogPosition,
    pub(in crate::engine) committed_at: i64,
    /// The log file, for messages.
    pub(in crate::engine) path: String,
}

/// One space as its partition's files have it.
pub(in crate::engine) struct Replayed {
    pub(in crate::engine) options: SpaceOptions,
    pub(in crate::engine) state: SpaceState,
    pub(in crate::engine) sealed: Vec<SealedPart>,
    pub(in crate::engine) history: Vec<SealedPart>,
    pub(in crate::engine) delta: Delta,
    /// What the log says, in its order.
    pub(in crate::engine) deeds: Vec<Done>,
    pub(in crate::engine) quarantined: Vec<Quarantined>,
    sessions: BTreeMap<SessionId, Seated>,
    pub(in crate::engine) last: Generation,
    /// Rows up to here are in files, or need not be.
    pub(in crate::engine) covered: Generation,
    pub(in crate::engine) gaps: Vec<(Generation, Generation)>,
    pub(in crate::engine) seen_at: u64,
}

impl Replayed {
    /// A space of which nothing is known but that it was made.
    pub(in crate::engine) fn new(options: SpaceOptions) -> Self {
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
            history: Vec::new(),
            delta: Delta::default(),
            deeds: Vec::new(),
            quarantined: Vec::new(),
            sessions: BTreeMap::new(),
            last: before,
            covered: before,
            gaps: Vec::new(),
            seen_at: 0,
        }
    }

    /// The space as its readers will see it.
    pub(in crate::engine) fn into_space(
        self,
        durability: Durability,
        config: &Config,
        process_unsealed: &Arc<Pool>,
        now: u64,
    ) -> Space {
        let last_generation = self.state.last_generation.max(self.state.sealed_through);
        let state = SpaceState { last_generation, quarantined: Arc::new(self.quarantined), ..self.state };
        let space = Space::new(self.options, durability, config, state, Arc::clone(process_unsealed));
        space.install((self.sealed, self.history), 0, now);
        space.publish(self.delta, now);
        space.learn_keys();
        for (id, s) in self.sessions {
            let session = Speaker::new(id, s.priority, s.principal, s.epoch, s.window, s.used_at);
            space.sessions.insert(Arc::new(session));
        }
        space
    }

    /// The space's sessions as a checkpoint has them.
    pub(in crate::engine) fn seat_sessions(&mut self, sessions: &[CheckpointSession]) {
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
    pub(in crate::engine) fn turn(&mut self, record: SessionRecord, used_at: i64) {
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
    pub(in crate::engine) fn end(&mut self, id: SessionId) {
        self.sessions.remove(&id);
    }

    /// What a record says of its session (S2, S5).
    pub(in crate::engine) fn said(
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

    pub(in crate::engine) fn note(&mut self, deed: Deed, group: &GroupAt) {
        let (position, committed_at, path) = (group.before, group.header.committed_at, group.path.clone());
        self.deeds.push(Done { deed, position, committed_at, path });
    }

    /// The next record of the space begins at `first`; what lies between is lost.
    pub(in crate::engine) fn expect(&mut self, first: Generation, group: &GroupAt) -> Result<(), Error> {
        if first.0 <= self.last.0 {
            let reason = format!("generation {first} of space {} stands twice in the log", self.options.name);
            return Err(Error::corrupted(&group.path, group.header.offset, reason));
        }
        if first.0 > self.last.0 + 1 {
            let gap = (self.last.plus(1), Generation(first.0 - 1));
            let reason = "part of its log is damaged";
            let error = Error::corrupted(format!("space {}", self.options.name), 0, reason);
            self.gaps.push(gap);
            self.note(Deed::Lost(gap.0, gap.1, error), group);
        }
        Ok(())
    }
}

impl Done {
    /// Does it to the space's delta. `reached` may fail it, for tests.
    pub(in crate::engine) fn apply(
        &self,
        delta: &mut Delta,
        reached: impl Fn(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (position, at) = (self.position, self.committed_at);
        match &self.deed {
            Deed::Rows { frame, hashes, first, supersedes, continues, .. } => {
                if delta.goes_round(*first) {
                    apply_voids(delta, *first, hashes.len() as u64, position, at);
                    return Ok(());
                }
                reached(frame)?;
                let checked = Arc::new(Checked::logged(frame, hashes.clone(), &self.path)?);
                let (first, continues) = (*first, *continues);
                let observed = Observed { frame, checked: &checked, first, supersedes, continues };
                apply_observe(delta, &observed, position, at);
            }
            Deed::Voids(first, count) => apply_voids(delta, *first, *count, position, at),
            Deed::Forget { generation, ids, purge } => apply_forget(delta, ids, *purge, *generation, position, at),
            Deed::Purged(ids) => delta.purging.retain(|(row, _)| !ids.contains(row)),
            Deed::Lost(first, last, error) => {
                delta.parts.push(lost_tail(error, *first, *last, position));
                delta.ranges.push((*first, *last));
            }
        }
        Ok(())
    }
}

pub(in crate::engine) fn lost_tail(error: &Error, first: Generation, last: Generation, position: LogPosition) -> Part {
    let rows = Arc::new(DamagedRows::new(first, last, error.clone()));
    Part { sound: false, ..Part::new(rows, position, 0) }
}
