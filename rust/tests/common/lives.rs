//! One life after another: what a crash at any point of one leaves to the next.

use std::sync::Arc;

use engram_core::env::{CrashModel, DiskState, TraceOp};
use engram_core::types::Config;

use super::{End, Oracle, Sim, below, seeded};

impl Sim {
    /// Follows the trace; at each cut `look` sees what the crash model holds and what had been told by then.
    pub fn walk(&self, mut look: impl FnMut(usize, &CrashModel, usize) -> Result<(), String>) -> Result<(), String> {
        let trace = self.files.trace();
        let mut model = CrashModel::new(&trace);
        let mut told = self.told_before;
        for (at, op) in trace.ops.iter().enumerate() {
            model.apply(op);
            if let TraceOp::Mark(n) = op {
                told = *n as usize;
            }
            look(at, &model, told).map_err(|e| format!("cut {at} after {}: {e}", short(op)))?;
        }
        Ok(())
    }

    /// The life after this one: on what a random end of it left. Checks the start, then takes what is there as the truth.
    pub fn next_life(&mut self) -> Result<Sim, String> {
        let end = [End::Kill, End::PowerCut, End::PowerCut][below(&mut self.rng, 3) as usize];
        let trace = self.files.trace();
        let cut = below(&mut self.rng, trace.ops.len() as u64 + 1) as usize;
        let mut model = CrashModel::new(&trace);
        let mut told = self.told_before;
        for op in &trace.ops[..cut] {
            model.apply(op);
            if let TraceOp::Mark(n) = op {
                told = *n as usize;
            }
        }
        let image = if end == End::PowerCut { model.image(&mut self.rng) } else { model.complete() };
        let boot = if end == End::PowerCut { self.boot + 1 } else { self.boot };
        let mut next = Sim::over(self.seed ^ 0x5eed, self.config.clone(), image, boot, self.oracle.as_of(told));
        next.faults = Arc::clone(&self.faults);
        next.rng = self.rng.clone();
        next.next_uid = self.next_uid;
        next.open().map_err(|e| format!("life after {end:?} at {cut} does not open: {e}"))?;
        let core = next.core();
        next.oracle.check(&core, end).map_err(|e| format!("life after {end:?} at {cut}: {e}"))?;
        next.oracle.adopt(&core);
        next.told_before = next.oracle.events.len();
        Ok(next)
    }
}

fn short(op: &TraceOp) -> String {
    let mut text = format!("{op:?}");
    text.truncate(120);
    text
}

/// Opens `image` and compares it with the oracle. `again`: crash during that recovery too, and open once more.
pub fn judge(image: &DiskState, oracle: &Oracle, config: &Config, end: End, again: Option<u64>) -> Result<(), String> {
    let boot = if end == End::PowerCut { 1000 } else { 1 };
    let mut sim = Sim::over(7, config.clone(), image.clone(), boot, Oracle::default());
    sim.open().map_err(|e| format!("does not open: {e}"))?;
    let core = sim.core();
    oracle.check(&core, end)?;
    let hash = core.state_hash().map_err(|e| e.to_string())?;
    if let Some(seed) = again {
        let trace = sim.files.trace();
        let mut rng = seeded(seed);
        let cut = below(&mut rng, trace.ops.len() as u64 + 1) as usize;
        let mut model = CrashModel::new(&trace);
        trace.ops[..cut].iter().for_each(|op| model.apply(op));
        let image = model.image(&mut rng);
        return judge(&image, oracle, config, end, None).map_err(|e| format!("after a crash in recovery: {e}"));
    }
    drop(core);
    let mut second = Sim::over(8, config.clone(), sim.files.state(), boot, Oracle::default());
    second.open().map_err(|e| format!("does not open twice: {e}"))?;
    let core = second.core();
    oracle.check(&core, end)?;
    // A renewed incarnation is renewed again at each unclean start; else replaying twice gives the same (D6).
    if core.report.renewed.is_empty() && core.state_hash().map_err(|e| e.to_string())? != hash {
        return Err("replaying twice gave another state".to_owned());
    }
    Ok(())
}
