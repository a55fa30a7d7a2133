//! Apply → publish → acknowledge: what a group did becomes visible by one swap a space, then everybody is told (O6, O7, D8).
//!
//! A space's items are applied in log order on a delta of its own. One that fails three times is given up: what came before it is
//! published, the rest of the space waits in `stuck` until the log says that apply goes round it (`quarantine`). Other spaces go on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::core::{Core, Partition};
use super::Writer;
use super::number::{Change, Group, Item};
use crate::env::Operation;
use crate::error::{Error, Result};
use crate::queue::{Committed, Forgotten};
use crate::session::{SequenceRun, SessionState};
use crate::store::{
    Attached, Batch, Control, Delta, Observed, Order, Piece, Space, Speaker, apply_forget, apply_observe, apply_voids,
    continues,
};
use crate::types::{Durability, Generation, LogPosition, SpaceId};

/// An item as durable as its mode says, and what its group says of it.
pub(super) struct Due {
    pub(super) item: Item,
    /// The log before its group.
    pub(super) before: LogPosition,
    pub(super) committed_at: i64,
}

impl Group {
    /// The items that are due when the group is as durable as `mode` says, in log order.
    fn take_due(&mut self, mode: Durability) -> Vec<Due> {
        let (now, rest): (Vec<Item>, Vec<Item>) =
            std::mem::take(&mut self.items).into_iter().partition(|i| i.mode() == mode);
        self.items = rest;
        let (before, committed_at) = (self.before, self.committed_at);
        now.into_iter().map(|item| Due { item, before, committed_at }).collect()
    }
}

impl Writer {
    /// Applies the items of `mode`.
    pub(super) fn apply(&mut self, core: &Core, partition: &Partition, group: &mut Group, mode: Durability) {
        let due = group.take_due(mode);
        if due.is_empty() {
            return;
        }
        self.applying = Some(group.before);
        let mut spaces: BTreeMap<SpaceId, VecDeque<Due>> = BTreeMap::new();
        for one in due {
            spaces.entry(one.item.space.options.id).or_default().push_back(one);
        }
        for mut due in spaces.into_values() {
            while let Some(first) = due.pop_front() {
                if let Change::Quarantine(batch) = first.item.change {
                    first.item.space.quarantine(*batch);
                    let waiting = self.stuck.remove(&first.item.space.options.id).unwrap_or_default();
                    self.apply_run(core, partition, waiting);
                    continue;
                }
                let run = due.iter().take_while(|d| !matches!(d.item.change, Change::Quarantine(_))).count();
                let run = std::iter::once(first).chain(due.drain(..run)).collect();
                self.apply_run(core, partition, run);
            }
        }
        self.applying = None;
    }

    /// Items of one space, in log order.
    fn apply_run(&mut self, core: &Core, partition: &Partition, mut due: VecDeque<Due>) {
        let Some(space) = due.front().map(|d| Arc::clone(&d.item.space)) else { return };
        let id = space.options.id;
        if let Some(stuck) = self.stuck.get_mut(&id) {
            stuck.extend(due);
            return;
        }
        let mut delta = Delta { quarantined: space.quarantined(), ..Delta::default() };
        let (mut done, mut failed) = (Vec::with_capacity(due.len()), None);
        while let Some(one) = due.pop_front() {
            match delta.attempt(|delta| one.apply(core, delta)) {
                Ok(()) => done.push(one),
                Err(reason) => {
                    failed = Some(reason);
                    due.push_front(one);
                    break;
                }
            }
        }
        let now = core.now();
        if !delta.is_empty() {
            space.publish(delta, now);
        }
        let synced = self.log.synced().offset;
        done.into_iter().for_each(|one| one.tell(core, now, synced));
        let Some(reason) = failed else { return };
        if !due.front().is_some_and(|d| matches!(d.item.change, Change::Observe { .. })) {
            // Only what was observed can be gone round.
            self.poison(partition, &format!("an order could not be applied: {reason}"));
        }
        self.to_quarantine.push_back((id, reason));
        self.stuck.insert(id, due);
    }
}

impl Item {
    /// How durable it must be before it is applied.
    pub(super) fn mode(&self) -> Durability {
        match self.change {
            // Whatever the space's mode: who is told of it must find it after any end.
            Change::Quarantine(_) => Durability::Sync,
            _ => self.space.durability,
        }
    }
}

impl Due {
    fn apply(&self, core: &Core, delta: &mut Delta) -> Result<()> {
        let (position, at) = (self.before, self.committed_at);
        match &self.item.change {
            Change::Observe { batch, first, supersedes } => {
                let mut next = *first;
                for ((i, piece), supersedes) in batch.pieces.iter().enumerate().zip(supersedes) {
                    match piece {
                        Piece::Rows { frame, checked } => {
                            let reached = core.env.files.reached(Operation::Apply, frame);
                            reached.map_err(|e| Error::io("apply", &e))?;
                            let continues = continues(&batch.pieces, i);
                            let observed = Observed { frame, checked, first: next, supersedes, continues };
                            apply_observe(delta, &observed, position, at);
                        }
                        Piece::Voids(count) => apply_voids(delta, next, *count, position, at),
                    }
                    next = next.plus(piece.count());
                }
            }
            Change::Voided { batch, first, .. } => apply_voids(delta, *first, batch.permits().0, position, at),
            Change::Forget { forgotten, ids, purge, .. } => {
                apply_forget(delta, ids, *purge, forgotten.generation, position, at);
            }
            Change::Order { .. } | Change::Quarantine(_) => {}
        }
        Ok(())
    }

    fn tell(self, core: &Core, now: u64, synced: u64) {
        let Self { item: Item { space, change }, before, committed_at } = self;
        match change {
            Change::Observe { batch, first, .. } => {
                tell_batch(core, &space, *batch, first, Ok(()), (before, committed_at, now, synced));
            }
            Change::Voided { batch, first, reason } => {
                let refused = Err(Error::Quarantined { reason });
                tell_batch(core, &space, *batch, first, refused, (before, committed_at, now, synced));
            }
            Change::Forget { bytes, reply, forgotten, .. } => {
                give_back(&space, bytes);
                reply.complete(Ok(forgotten));
            }
            Change::Order { control, epoch } => {
                give_back(&space, control.bytes);
                turn(&space, control.order, epoch, committed_at);
            }
            Change::Quarantine(_) => {}
        }
    }
}

/// The session is told before its speaker: who asks it after the acknowledgement finds it said (S2). Of what could not be applied the
/// session has committed voids.
fn tell_batch(
    core: &Core,
    space: &Space,
    batch: Batch,
    first: Generation,
    applied: Result<()>,
    (before, committed_at, now, synced): (LogPosition, i64, u64, u64),
) {
    let (count, bytes) = batch.permits();
    let Batch { admitted_at, speaker, reply, .. } = batch;
    if applied.is_ok() {
        core.observed.fetch_add(count, Ordering::Relaxed);
    } else {
        core.quarantined.fetch_add(count, Ordering::Relaxed);
    }
    core.process_queue.release(bytes);
    space.release(count, bytes, now, Some(admitted_at), &core.process_queue);
    let outcome = applied.map(|()| Committed { first, count: count as u32, durability: space.durability });
    if let Some((session, stamp)) = speaker {
        let run = SequenceRun { first: stamp.first, count, generation: first, offset: before.offset };
        let joined = session.section().commit(run, synced, committed_at);
        debug_assert!(joined.is_some(), "numbered in sequence order");
        joined.into_iter().flatten().for_each(|reply| reply.complete(outcome.clone()));
    }
    reply.complete(outcome);
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
        Order::Open { session, reply, .. } => {
            space.sessions.insert(Arc::clone(&session));
            let attached = attached(&session, epoch, None, at);
            reply.complete(attached);
        }
        Order::Attach { session, acknowledged, reply, .. } => {
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
        section.let_go(epoch);
        return Err(Error::DataLoss { committed });
    }
    section.state = SessionState::Active;
    Ok(Attached { epoch, committed })
}

impl Item {
    /// Answers what was numbered and will not be committed in this run.
    pub(super) fn fail(self, core: &Core, error: &Error) {
        match self.change {
            Change::Observe { batch, .. } | Change::Voided { batch, .. } => {
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
            Change::Quarantine(_) => {}
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
        Order::Forget { reply, .. } => reply.complete(outcome().map(|_| Forgotten::default())),
        Order::Expire { reply, .. } | Order::Purged { reply, .. } | Order::End { reply, .. } => {
            reply.complete(outcome())
        }
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
