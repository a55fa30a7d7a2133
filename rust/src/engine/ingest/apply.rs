//! Apply → publish → acknowledge: what a group did becomes visible by one swap a space, then everybody is told (O6, O7, D8).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::core::Core;
use super::number::{Change, Group, Item};
use crate::error::Error;
use crate::queue::{Committed, Reply};
use crate::store::{Batch, Control, Delta, Observed, Space, apply_forget, apply_observe};
use crate::types::{Durability, Generation, SpaceId};

/// What somebody waits for, and what is given back when it is told.
struct Acknowledgement {
    space: Arc<Space>,
    observations: u64,
    bytes: u64,
    admitted_at: u64,
    reply: Reply<Committed>,
    outcome: Result<Committed, Error>,
}

/// The items of `mode`, in log order.
pub(super) fn apply(core: &Core, group: &mut Group, mode: Durability) {
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
                observe(delta, group, (space, *batch, first, supersedes), mode)
            }
            Change::Forget { control, generation, ids } => {
                apply_forget(delta, &ids, generation, group.before, group.committed_at);
                let outcome = Ok(Committed { first: generation, count: ids.len() as u32, durability: mode });
                let Control { admitted_at, bytes, reply, .. } = *control;
                Acknowledgement { space, observations: 0, bytes, admitted_at, reply, outcome }
            }
        });
    }
    let clock = core.now();
    for (space, delta) in deltas.into_values() {
        space.publish(delta, clock);
    }
    for one in told {
        one.tell(core, clock);
    }
}

fn observe(
    delta: &mut Delta,
    group: &Group,
    (space, batch, first, supersedes): (Arc<Space>, Batch, Generation, Vec<(u32, Generation)>),
    mode: Durability,
) -> Acknowledgement {
    let Batch { admitted_at, frame, checked, reply } = batch;
    let (observations, bytes) = (checked.hashes.len() as u64, frame.len() as u64);
    let observed = Observed { frame, hashes: checked.hashes, first, supersedes };
    let known = Some((checked.view, checked.inverse_norms));
    let applied = apply_observe(delta, observed, known, group.before, group.committed_at);
    let outcome = applied.map(|()| Committed { first, count: observations as u32, durability: mode });
    Acknowledgement { space, observations, bytes, admitted_at, reply, outcome }
}

impl Acknowledgement {
    fn tell(self, core: &Core, now: u64) {
        if self.observations == 0 {
            self.space.controls_depth.release(1, self.bytes);
            self.space.gate.wake();
        } else {
            core.observed.fetch_add(self.observations, Ordering::Relaxed);
            core.process_queue.release(self.bytes);
            self.space.release(self.observations, self.bytes, now, Some(self.admitted_at), &core.process_queue);
        }
        self.reply.complete(self.outcome);
    }
}

impl Item {
    /// Answers what was numbered and not committed.
    pub(super) fn fail(self, core: &Core, error: &Error) {
        match self.change {
            Change::Observe { batch, .. } => answer(core, &self.space, *batch, Err(error.clone())),
            Change::Forget { control, .. } => answer_control(&self.space, *control, Err(error.clone())),
        }
    }
}

/// Answers what was not committed.
pub(super) fn answer(core: &Core, space: &Space, batch: Batch, outcome: Result<Committed, Error>) {
    let (count, bytes) = (batch.checked.hashes.len() as u64, batch.frame.len() as u64);
    core.process_queue.release(bytes);
    space.release(count, bytes, core.now(), None, &core.process_queue);
    batch.reply.complete(outcome);
}

pub(super) fn answer_control(space: &Space, control: Control, outcome: Result<Committed, Error>) {
    space.controls_depth.release(1, control.bytes);
    space.gate.wake();
    control.reply.complete(outcome);
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
