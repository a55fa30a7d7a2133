//! Apply → publish → acknowledge: what a group did becomes visible by one swap a space, then everybody is told (O6, O7, D8).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::core::Core;
use super::number::{Change, Group, Item};
use crate::error::{Error, Result};
use crate::queue::{Committed, Reply};
use crate::session::{SequenceRun, SessionState, Stamp};
use crate::store::{
    Attached, Batch, Control, Delta, Observed, Order, Piece, Space, Speaker, apply_forget, apply_observe, apply_voids,
    continues,
};
use crate::types::{Durability, Generation, SpaceId};

/// What somebody waits for, and what is given back when it is told.
enum Told {
    Batch {
        space: Arc<Space>,
        permits: (u64, u64),
        admitted_at: u64,
        speaker: Option<(Arc<Speaker>, Stamp)>,
        reply: Reply<Committed>,
        outcome: Result<Committed>,
    },
    Forget {
        space: Arc<Space>,
        bytes: u64,
        reply: Reply<Committed>,
        committed: Committed,
    },
    Order {
        space: Arc<Space>,
        control: Box<Control>,
        epoch: u64,
    },
}

/// The items of `mode`, in log order; `synced`: the log is on the disk up to there.
pub(super) fn apply(core: &Core, group: &mut Group, mode: Durability, synced: u64) {
    if !group.items.iter().any(|i| i.space.durability == mode) {
        return;
    }
    let (now, rest): (Vec<Item>, Vec<Item>) =
        std::mem::take(&mut group.items).into_iter().partition(|i| i.space.durability == mode);
    group.items = rest;
    let mut deltas: BTreeMap<SpaceId, (Arc<Space>, Delta)> = BTreeMap::new();
    let mut told = Vec::with_capacity(now.len());
    for Item { space, change } in now {
        let (_, delta) = deltas.entry(space.options.id).or_insert_with(|| (Arc::clone(&space), Delta::default()));
        told.push(match change {
            Change::Observe { batch, first, supersedes } => {
                observe(delta, group, space, *batch, first, supersedes, mode)
            }
            Change::Forget { bytes, reply, generation, ids, purge } => {
                apply_forget(delta, &ids, purge, generation, group.before, group.committed_at);
                let committed = Committed { first: generation, count: ids.len() as u32, durability: mode };
                Told::Forget { space, bytes, reply, committed }
            }
            Change::Order { control, epoch } => Told::Order { space, control, epoch },
        });
    }
    let clock = core.now();
    for (space, delta) in deltas.into_values().filter(|(_, delta)| !delta.is_empty()) {
        space.publish(delta, clock);
    }
    for one in told {
        one.tell(core, clock, group, synced);
    }
}

fn observe(
    delta: &mut Delta,
    group: &Group,
    space: Arc<Space>,
    batch: Batch,
    first: Generation,
    supersedes: Vec<Vec<(u32, Generation)>>,
    mode: Durability,
) -> Told {
    let permits = batch.permits();
    let Batch { admitted_at, pieces, speaker, reply } = batch;
    let goes_on: Vec<bool> = (0..pieces.len()).map(|i| continues(&pieces, i)).collect();
    let (mut at, mut applied) = (first, Ok(()));
    for ((piece, supersedes), continues) in pieces.into_iter().zip(supersedes).zip(goes_on) {
        let count = piece.count();
        match piece {
            Piece::Rows { frame, checked } => {
                let observed = Observed { frame, hashes: checked.hashes, first: at, supersedes, continues };
                let known = Some((checked.view, checked.inverse_norms));
                applied = applied.and(apply_observe(delta, observed, known, group.before, group.committed_at));
            }
            Piece::Voids(count) => apply_voids(delta, at, count, group.before, group.committed_at),
        }
        at = at.plus(count);
    }
    let outcome = applied.map(|()| Committed { first, count: permits.0 as u32, durability: mode });
    Told::Batch { space, permits, admitted_at, speaker, reply, outcome }
}

impl Told {
    fn tell(self, core: &Core, now: u64, group: &Group, synced: u64) {
        match self {
            Self::Batch { space, permits: (count, bytes), admitted_at, speaker, reply, outcome } => {
                core.observed.fetch_add(count, Ordering::Relaxed);
                core.process_queue.release(bytes);
                space.release(count, bytes, now, Some(admitted_at), &core.process_queue);
                if let (Some((session, stamp)), Ok(committed)) = (speaker, &outcome) {
                    commit(&session, stamp, *committed, group, synced);
                }
                reply.complete(outcome);
            }
            Self::Forget { space, bytes, reply, committed } => {
                give_back(&space, bytes);
                reply.complete(Ok(committed));
            }
            Self::Order { space, control, epoch } => {
                give_back(&space, control.bytes);
                turn(&space, control.order, epoch, group.committed_at);
            }
        }
    }
}

/// The session is told before its speaker: who asks it after the acknowledgement finds it said (S2).
fn commit(session: &Speaker, stamp: Stamp, committed: Committed, group: &Group, synced: u64) {
    let (count, offset) = (u64::from(committed.count), group.before.offset);
    let run = SequenceRun { first: stamp.first, count, generation: committed.first, offset };
    let joined = session.section().commit(run, synced, group.committed_at);
    debug_assert!(joined.is_some(), "numbered in sequence order");
    joined.into_iter().flatten().for_each(|reply| reply.complete(Ok(committed)));
}

/// An order has happened (S1, S4, G5, K3).
fn turn(space: &Space, order: Order, epoch: u64, at: i64) {
    let none = Committed { first: Generation(0), count: 0, durability: space.durability };
    match order {
        Order::Forget { .. } => {}
        Order::Expire { through, reply } => {
            space.let_go(through, Vec::new());
            reply.complete(Ok(none));
        }
        Order::Purged { ids, reply } => {
            space.purged(&ids);
            reply.complete(Ok(none));
        }
        Order::Open { session, reply } => {
            space.sessions.insert(Arc::clone(&session));
            let attached = attached(&session, epoch, None, at);
            reply.complete(attached);
        }
        Order::Attach { session, acknowledged, reply } => {
            let attached = attached(&session, epoch, acknowledged, at);
            reply.complete(attached);
        }
        Order::End { session, reply, .. } => {
            space.sessions.remove(session.id);
            reply.complete(Ok(none));
        }
    }
}

fn attached(session: &Speaker, epoch: u64, acknowledged: Option<u64>, at: i64) -> Result<Attached> {
    let mut section = session.section();
    section.used_at = section.used_at.max(at);
    let committed = section.window.committed();
    if section.state == SessionState::Closed {
        return Err(Error::SessionExpired { reason: "it was closed".to_owned() });
    }
    if section.epoch != epoch {
        // A later attach was quicker.
        return Err(Error::Fenced);
    }
    if acknowledged.is_some_and(|a| a > committed) {
        section.state = SessionState::Detached;
        return Err(Error::DataLoss { committed });
    }
    section.state = SessionState::Active;
    Ok(Attached { epoch, committed })
}

impl Item {
    /// Answers what was numbered and will not be committed in this run.
    pub(super) fn fail(self, core: &Core, error: &Error) {
        match self.change {
            Change::Observe { batch, .. } => {
                if let Some((session, _)) = &batch.speaker {
                    let waiting = session.section().abandon();
                    waiting.into_iter().for_each(|reply| reply.complete(Err(error.clone())));
                }
                answer(core, &self.space, *batch, Err(error.clone()));
            }
            Change::Forget { bytes, reply, .. } => {
                give_back(&self.space, bytes);
                reply.complete(Err(error.clone()));
            }
            Change::Order { control, .. } => answer_control(&self.space, *control, &|| Err(error.clone())),
        }
    }
}

/// Answers what was not committed. What a session pushed behind it does not count any more (S2).
pub(super) fn answer(core: &Core, space: &Space, batch: Batch, outcome: Result<Committed>) {
    let (count, bytes) = batch.permits();
    core.process_queue.release(bytes);
    space.release(count, bytes, core.now(), None, &core.process_queue);
    if let (Some((session, stamp)), Err(error)) = (&batch.speaker, &outcome) {
        let waiting = session.section().fall_back(*stamp);
        waiting.into_iter().for_each(|reply| reply.complete(Err(error.clone())));
    }
    batch.reply.complete(outcome);
}

/// Answers an order that leads to no record.
pub(super) fn answer_control(space: &Space, control: Control, outcome: &dyn Fn() -> Result<Committed>) {
    give_back(space, control.bytes);
    let error = || outcome().err().unwrap_or(Error::Fenced);
    match control.order {
        Order::Forget { reply, .. }
        | Order::Expire { reply, .. }
        | Order::Purged { reply, .. }
        | Order::End { reply, .. } => reply.complete(outcome()),
        Order::Open { reply, .. } | Order::Attach { reply, .. } => reply.complete(Err(error())),
    }
}

fn give_back(space: &Space, bytes: u64) {
    space.controls_depth.release(1, bytes);
    space.gate.wake();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use crate::engine::Admission;
    use crate::engine::Core;
    use crate::env::{Env, MemoryFiles, Scheduler, SimClock, SimRandom, Task};
    use crate::records::{Columns, build_frame};
    use crate::types::{Config, Durability, Metric};

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
        assert_eq!(again.count(&again.space("m").unwrap(), crate::engine::Reading::default()).unwrap(), 1);
    }
}
