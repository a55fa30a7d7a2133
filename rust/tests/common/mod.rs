//! A whole engine on a simulated disk and clock, driven from one seed, and the oracle that judges it.
//!
//! The oracle knows what was submitted and what was answered, in order; `check` compares a reopened engine with it and returns what is
//! wrong as text, so that sabotage tests can ask for a failure.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "test support, shared by several test files"
)]

mod frames;
mod lives;
mod oracle;
mod rig;
mod speaking;

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_core::engine::{Admission, Core};
use engram_core::env::{
    Action, CrashModel, DiskState, Env, FaultPlan, FaultyFiles, MemoryFiles, Operation, Rule, Scheduler, SimClock,
    SimRandom, Task, TraceOp,
};
use engram_core::error::Error;
use engram_core::queue::{Committed, Forgotten, Ticket};
use engram_core::records::{Filter, Value};
use engram_core::store::Wanted;
use engram_core::types::{Config, Durability, Generation, Metric, SpaceId};
use rand_core::Rng;
use rand_pcg::Pcg64;

pub use frames::{frame, frame_of, key_of, uid_of, vector};
pub use lives::judge;
pub use oracle::{Batch, End, Event, Forget, Oracle, SessionModel, SpaceModel, Target, contents};
pub use rig::Rig;
use speaking::Speaking;

pub struct Nobody;

impl Scheduler for Nobody {
    fn wake(&self, _task: Task) {}
}

/// Small limits: rotation, sealing, merging and checkpoints all the time.
pub fn tiny() -> Config {
    Config {
        partitions: 2,
        segment_bytes_first: 16 << 10,
        segment_bytes_max: 32 << 10,
        seal_space_bytes: 6 << 10,
        seal_process_bytes: 24 << 10,
        seal_own_file_bytes_min: 3 << 10,
        checkpoint_log_bytes: 24 << 10,
        merge_files: 2,
        index_graph_rows_min: 0,
        index_image_idle_ms: 3,
        idle_close_ms: 20,
        maintenance_retry_ms: 5,
        unsynced_bytes_max: 4 << 10,
        ..Config::default()
    }
}

/// The same; two seeds of five without a graph from the first row, as users have it.
pub fn tiny_of(seed: u64) -> Config {
    match seed % 5 {
        0 | 1 => Config { index_graph_rows_min: Config::default().index_graph_rows_min, ..tiny() },
        _ => tiny(),
    }
}

pub fn seeded(seed: u64) -> Pcg64 {
    Pcg64::new(u128::from(seed), 0x5851_f42d_4c95_7f2d)
}

pub fn below(rng: &mut Pcg64, n: u64) -> u64 {
    rng.next_u64() % n
}

pub struct Sim {
    pub files: MemoryFiles,
    pub clock: Arc<SimClock>,
    pub faults: Arc<FaultPlan>,
    pub core: Option<Arc<Core>>,
    pub oracle: Oracle,
    pub rng: Pcg64,
    pub config: Config,
    pub poisoned: bool,
    /// Some of what is observed cannot be applied (O7).
    pub poisons: bool,
    boot: u64,
    seed: u64,
    pending: Vec<(usize, Arc<Ticket<Committed>>)>,
    forgetting: Vec<(usize, Arc<Ticket<Forgotten>>)>,
    speaking: Speaking,
    creating: Vec<(usize, Arc<Ticket<SpaceId>>)>,
    drops: Vec<(usize, Option<Arc<Ticket<SpaceId>>>)>,
    checkpoints: Vec<(Vec<usize>, Arc<Ticket<()>>)>,
    next_uid: u64,
    told_before: usize,
}

impl Sim {
    pub fn new(seed: u64, config: Config) -> Self {
        Self::over(seed, config, DiskState::default(), 1, Oracle::default())
    }

    pub fn over(seed: u64, config: Config, state: DiskState, boot: u64, oracle: Oracle) -> Self {
        Self {
            files: MemoryFiles::with_state(state, boot, true),
            clock: Arc::new(SimClock::new(1_700_000_000_000_000 + boot * 1_000_000_000)),
            faults: Arc::new(FaultPlan::default()),
            core: None,
            next_uid: oracle.batches.iter().flat_map(|b| &b.uids).max().map_or(1, |u| u + 1),
            oracle,
            rng: seeded(seed),
            config,
            poisoned: false,
            poisons: seed.is_multiple_of(3),
            boot,
            seed,
            pending: Vec::new(),
            forgetting: Vec::new(),
            speaking: Speaking::default(),
            creating: Vec::new(),
            drops: Vec::new(),
            checkpoints: Vec::new(),
            told_before: 0,
        }
    }

    pub fn open(&mut self) -> Result<(), Error> {
        let env = Env {
            clock: self.clock.clone(),
            files: Arc::new(FaultyFiles::new(Arc::new(self.files.clone()), self.faults.clone())),
            random: Arc::new(SimRandom::new(self.seed ^ self.boot)),
        };
        self.core = Some(Core::open(env, self.config.clone(), Arc::new(Nobody))?);
        Ok(())
    }

    pub fn core(&self) -> Arc<Core> {
        self.core.clone().expect("open")
    }

    fn event(&mut self, event: Event) {
        self.oracle.events.push(event);
        self.files.mark(self.oracle.events.len() as u64);
    }

    /// One random thing happens: a caller's, a machine's or the disk's.
    pub fn act(&mut self) {
        let core = self.core();
        let n = core.partitions.len() as u64;
        match below(&mut self.rng, 100) {
            0..2 => self.create(),
            2..12 => self.observe(),
            12..19 => self.speak(),
            19..22 => self.forget(),
            22..23 => self.begin_drop(),
            23..26 => {
                let at = below(&mut self.rng, n) as usize;
                let acknowledged = self.acknowledged(at);
                self.checkpoints.push((acknowledged, core.submit_checkpoint(at)));
            }
            26..46 => drop(core.step_partition(below(&mut self.rng, n) as usize)),
            46..66 => drop(core.partitions[below(&mut self.rng, n) as usize].port.run_one()),
            66..76 => {
                core.step_maintenance();
                // In every other seed its disk is quick: files are sealed and merged, not only begun.
                for _ in 0..self.seed % 2 * 4 {
                    core.maintenance_port.run_one();
                    core.step_maintenance();
                }
            }
            76..86 => drop(core.maintenance_port.run_one()),
            86..90 => core.step_catalogue(),
            90..93 => drop(core.run_catalogue_io()),
            93..95 => drop(core.step_builder()),
            _ => self.clock.advance_micros(1 + below(&mut self.rng, 9_000)),
        }
        self.poll();
    }

    pub fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.act();
        }
    }

    /// Lets everything finish.
    pub fn settle(&mut self) {
        let core = self.core();
        for round in 0..20_000 {
            let mut moved = false;
            for i in 0..core.partitions.len() {
                core.step_partition(i);
                moved |= core.partitions[i].port.run_one();
            }
            core.step_catalogue();
            core.step_builder();
            moved |= core.run_catalogue_io() | core.step_maintenance() | core.maintenance_port.run_one();
            self.clock.advance_micros(1_000);
            self.poll();
            let waiting = !self.pending.is_empty()
                || !self.forgetting.is_empty()
                || !self.creating.is_empty()
                || !self.drops.is_empty()
                || !self.speaking.said.is_empty()
                || !self.speaking.attaching.is_empty();
            if !moved && !waiting && core.is_quiet() && round > 50 {
                return;
            }
        }
        panic!("seed {}: the engine does not come to rest", self.seed);
    }

    fn create(&mut self) {
        if self.oracle.spaces.iter().filter(|s| !s.dropped).count() >= 4 {
            return;
        }
        let name = format!("s{}", below(&mut self.rng, 6));
        if self.oracle.spaces.iter().any(|s| s.name == name && !s.dropped) {
            return;
        }
        let durability =
            [Durability::Sync, Durability::Sync, Durability::Os, Durability::Memory][below(&mut self.rng, 4) as usize];
        let before = self.oracle.spaces.iter().filter(|s| s.name == name && s.id.is_some());
        let greatest = before.map(|s| s.greatest).max().unwrap_or(0);
        let ticket = self.core().submit_create(&name, 3, Metric::Cosine, Some(durability));
        let model = SpaceModel {
            name,
            id: None,
            durability,
            batches: Vec::new(),
            dead: BTreeMap::new(),
            dropping: false,
            dropped: false,
            greatest,
            before: greatest,
        };
        self.oracle.spaces.push(model);
        self.creating.push((self.oracle.spaces.len() - 1, ticket));
    }

    fn live(&mut self) -> Option<usize> {
        let live: Vec<usize> = (0..self.oracle.spaces.len())
            .filter(|i| {
                let s = &self.oracle.spaces[*i];
                s.id.is_some() && !s.dropping && !s.dropped
            })
            .collect();
        (!live.is_empty()).then(|| live[below(&mut self.rng, live.len() as u64) as usize])
    }

    fn observe(&mut self) {
        let Some(space) = self.live() else { return };
        let n = [1, 1, 2, 5, 40][below(&mut self.rng, 5) as usize];
        let uids: Vec<u64> = (self.next_uid..self.next_uid + n).collect();
        self.next_uid += n;
        let frame = frame(&uids, below(&mut self.rng, 4) == 0, true);
        let poisonous = self.poisons && below(&mut self.rng, 25) == 0;
        if poisonous {
            let needle = format!("uid {} ", uids[below(&mut self.rng, n) as usize]);
            let times = 2 + below(&mut self.rng, 2) * 1_000_000;
            self.faults.add(Rule { path: Some(needle), times, ..Rule::new(Operation::Apply, Action::Panic) });
        }
        let core = self.core();
        let target = core.spaces.get(self.oracle.spaces[space].id.unwrap()).unwrap();
        let prepared = core.prepare(&target, frame).unwrap();
        match core.admit(&target, prepared) {
            Ok(Admission::Admitted(ticket)) => {
                let batch = self.oracle.batches.len();
                self.oracle.batches.push(Batch {
                    space,
                    uids,
                    first: None,
                    refused: false,
                    checkpointed: false,
                    poisonous,
                });
                self.oracle.spaces[space].batches.push(batch);
                self.pending.push((batch, ticket));
            }
            Ok(Admission::Full(..)) | Err(_) => {}
        }
    }

    fn forget(&mut self) {
        let Some(space) = self.live() else { return };
        let core = self.core();
        let at = core.spaces.get(self.oracle.spaces[space].id.unwrap()).unwrap();
        let greatest = at.watermark().0 + 3;
        let (target, wanted) = match below(&mut self.rng, 3) {
            0 => {
                let mut ids: Vec<u64> = (0..3).map(|_| 1 + below(&mut self.rng, greatest)).collect();
                ids.sort_unstable();
                ids.dedup();
                (Target::Ids(ids.clone()), Wanted::Ids(ids.into_iter().map(Generation).collect()))
            }
            1 => {
                let key = format!("k{}", below(&mut self.rng, 7));
                (Target::Key(key.clone()), Wanted::Key(key))
            }
            _ => {
                let from = below(&mut self.rng, self.next_uid);
                let to = from + 1 + below(&mut self.rng, 30);
                let bound = |op: &str, uid: u64| (op.to_owned(), Value::Int(uid as i64 * 1000));
                let range = Value::Object(vec![bound("$gte", from), bound("$lt", to)]);
                let filter = Filter::parse(&Value::Object(vec![("observed_at".to_owned(), range)])).unwrap();
                (Target::Uids(from, to), core.matching(&at, &filter, false, &|| Ok(())).unwrap().0)
            }
        };
        if let Ok(Ok(ticket)) = core.submit_forget(&at, wanted, false) {
            self.forgetting.push((self.oracle.forgets.len(), ticket));
            self.oracle.forgets.push(Forget { space, target, at: None, refused: false });
        }
    }

    /// The batches that a checkpoint of partition `at` must keep, if asked for now.
    fn acknowledged(&self, at: usize) -> Vec<usize> {
        let core = self.core();
        let here = |space: usize| {
            let space = self.oracle.spaces[space].id.and_then(|id| core.spaces.get(id));
            space.is_some_and(|s| s.options.partition.0 as usize == at)
        };
        let all = self.oracle.batches.iter().enumerate();
        all.filter(|(_, b)| b.first.is_some() && here(b.space)).map(|(i, _)| i).collect()
    }

    fn begin_drop(&mut self) {
        let Some(space) = self.live() else { return };
        self.oracle.spaces[space].dropping = true;
        self.core().spaces.get(self.oracle.spaces[space].id.unwrap()).unwrap().fence();
        self.drops.push((space, None));
    }

    fn poll(&mut self) {
        let mut acked = Vec::new();
        let mut poisoned = false;
        let (batches, spaces) = (&mut self.oracle.batches, &mut self.oracle.spaces);
        self.pending.retain(|(batch, ticket)| match ticket.outcome() {
            None => true,
            Some(outcome) => {
                match outcome {
                    Ok(committed) => {
                        let b = &mut batches[*batch];
                        b.first = Some(committed.first.0);
                        let space = &mut spaces[b.space];
                        space.greatest = space.greatest.max(committed.first.0 + b.uids.len() as u64 - 1);
                        acked.push(Event::Acked { batch: *batch });
                    }
                    Err(Error::Poisoned { .. }) => poisoned = true,
                    Err(Error::Quarantined { .. }) => acked.push(Event::Quarantined { batch: *batch }),
                    Err(_) => batches[*batch].refused = true,
                }
                false
            }
        });
        self.poisoned |= poisoned;
        acked.extend(self.poll_forgets());
        let spaces = &mut self.oracle.spaces;
        self.creating.retain(|(space, ticket)| match ticket.outcome() {
            None => true,
            Some(Ok(id)) => {
                spaces[*space].id = Some(id);
                acked.push(Event::Created { space: *space });
                false
            }
            Some(Err(error)) => {
                spaces[*space].dropped = true;
                if !matches!(error, Error::Poisoned { .. }) {
                    // Refused: it never happened, whatever the next start finds.
                    acked.push(Event::Dropped { space: *space });
                }
                false
            }
        });
        for (space, ticket) in &mut self.drops {
            let id = spaces[*space].id.unwrap();
            let core = self.core.clone().expect("open");
            if ticket.is_none() && core.spaces.get(id).is_some_and(|s| s.is_drained()) {
                *ticket = Some(core.submit_drop(id));
            }
        }
        self.drops.retain(|(space, ticket)| match ticket.as_ref().and_then(|t| t.outcome()) {
            None => true,
            Some(outcome) => {
                if outcome.is_ok() {
                    spaces[*space].dropped = true;
                    acked.push(Event::Dropped { space: *space });
                }
                false
            }
        });
        self.checkpoints.retain_mut(|(batches, ticket)| match ticket.outcome() {
            None => true,
            Some(outcome) => {
                if outcome.is_ok() {
                    acked.push(Event::Checkpointed { batches: std::mem::take(batches) });
                }
                false
            }
        });
        acked.into_iter().for_each(|event| self.event(event));
        self.poll_speaking();
    }

    fn poll_forgets(&mut self) -> Vec<Event> {
        let (mut told, mut poisoned) = (Vec::new(), false);
        let (forgets, spaces) = (&mut self.oracle.forgets, &mut self.oracle.spaces);
        self.forgetting.retain(|(forget, ticket)| match ticket.outcome() {
            None => true,
            Some(Ok(forgotten)) => {
                let f = &mut forgets[*forget];
                f.at = Some(forgotten.generation.0);
                spaces[f.space].greatest = spaces[f.space].greatest.max(forgotten.generation.0);
                told.push(Event::Forgot { forget: *forget });
                false
            }
            Some(Err(error)) => {
                let unknown = matches!(error, Error::Poisoned { .. });
                forgets[*forget].refused |= !unknown;
                poisoned |= unknown;
                false
            }
        });
        self.poisoned |= poisoned;
        told
    }

    /// Ends the run as a closed engine would.
    pub fn close(&mut self) {
        self.settle();
        self.core.take();
        self.files.unlock_for_test();
    }
}

pub trait UnlockForTest {
    fn unlock_for_test(&self);
}

impl UnlockForTest for MemoryFiles {
    fn unlock_for_test(&self) {
        use engram_core::env::Files;
        self.unlock();
    }
}
