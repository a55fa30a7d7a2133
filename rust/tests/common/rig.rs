//! An engine on a disk in RAM whose steps a test takes in turn, without randomness.

use std::sync::Arc;

use engram_core::engine::{Admission, Core};
use engram_core::env::{Env, FaultPlan, FaultyFiles, MemoryFiles, SimClock, SimRandom};
use engram_core::error::Error;
use engram_core::queue::{Committed, Ticket};
use engram_core::types::{Config, Durability, Metric};

use super::{Nobody, frame_of};

pub struct Rig {
    pub core: Arc<Core>,
    pub files: MemoryFiles,
    pub faults: Arc<FaultPlan>,
    pub clock: Arc<SimClock>,
}

impl Rig {
    pub fn new(config: Config) -> Self {
        Self::over(config, MemoryFiles::new())
    }

    /// On a disk that holds something.
    pub fn over(config: Config, files: MemoryFiles) -> Self {
        Self::prepared(config, files, |_| {})
    }

    /// With faults from the start.
    pub fn prepared(config: Config, files: MemoryFiles, faulty: impl Fn(&FaultPlan)) -> Self {
        let (faults, clock) = (Arc::new(FaultPlan::default()), Arc::new(SimClock::new(1)));
        faulty(&faults);
        let env = Env {
            clock: clock.clone(),
            files: Arc::new(FaultyFiles::new(Arc::new(files.clone()), faults.clone())),
            random: Arc::new(SimRandom::new(3)),
        };
        let core = Core::open(env, config, Arc::new(Nobody)).unwrap();
        Self { core, files, faults, clock }
    }

    pub fn turn(&self) {
        for i in 0..self.core.partitions.len() {
            self.core.step_partition(i);
            self.core.partitions[i].port.run_one();
        }
        self.core.step_catalogue();
        self.core.run_catalogue_io();
        self.core.step_maintenance();
        self.core.maintenance_port.run_one();
        self.core.step_builder();
        self.clock.advance_micros(1_000);
    }

    pub fn turns(&self, n: usize) {
        (0..n).for_each(|_| self.turn());
    }

    pub fn create(&self, name: &str, durability: Durability) {
        let ticket = self.core.submit_create(name, 3, Metric::Cosine, Some(durability));
        while ticket.outcome().is_none() {
            self.turn();
        }
        ticket.outcome().unwrap().unwrap();
    }

    pub fn push(&self, name: &str, uids: &[u64]) -> Result<Arc<Ticket<Committed>>, Error> {
        let space = self.core.space(name).unwrap();
        let prepared = self.core.prepare(&space, frame_of(uids, false)).unwrap();
        match self.core.admit(&space, prepared)? {
            Admission::Admitted(ticket) => Ok(ticket),
            Admission::Full(_, reason) => {
                Err(Error::Overloaded { retry_after_ms: 0, level: "", reason: reason.into() })
            }
        }
    }

    pub fn observe(&self, name: &str, uids: &[u64]) -> Result<Committed, Error> {
        let ticket = self.push(name, uids)?;
        for _ in 0..10_000 {
            if let Some(outcome) = ticket.outcome() {
                return outcome;
            }
            self.turn();
        }
        panic!("no answer");
    }
}
