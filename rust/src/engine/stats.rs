//! Figures, pulled: one snapshot of counters that the parts keep anyway.

use std::sync::atomic::Ordering;

use super::core::Core;
use crate::store::Space;
use crate::types::Quota;

#[derive(Clone, Debug)]
pub struct SpaceStats {
    pub memories: u64,
    /// Keys that a version is known of.
    pub keys: u64,
    pub generation: u64,
    pub incarnation: u64,
    pub queue_observations: u64,
    pub queue_bytes: u64,
    pub unsealed_bytes: u64,
    pub sealed_bytes: u64,
    pub quota: Quota,
    pub absorbed_generation: u64,
    pub index_rows: u64,
    pub index_linked: u64,
    pub index_imaged: u64,
    pub index_rebuilt: u64,
    pub sealed_rows: u64,
    pub history_rows: u64,
    pub sealed_parts: u64,
    /// Rows whose bytes are still to be removed.
    pub purging: u64,
    pub tail_parts: u64,
    pub snapshots: u64,
    pub recalls: u64,
    pub level: &'static str,
    pub pressure: f64,
    pub advised_batch: u64,
    /// Observations a second, while some waited.
    pub drain_rate: f64,
    pub degraded: Option<String>,
}

#[derive(Clone, Debug)]
pub struct PartitionStats {
    pub spaces: u64,
    pub log_end: u64,
    pub log_synced: u64,
    pub segment: u64,
    pub checkpoint: u64,
    pub checkpoint_offset: u64,
    pub poisoned: Option<String>,
}

#[derive(Clone, Debug)]
pub struct EngineStats {
    pub spaces: u64,
    pub observed: u64,
    pub quarantined: u64,
    pub quarantine_unkept: u64,
    pub worker_restarts: u64,
    pub takeovers: u64,
    pub queue_bytes: u64,
    pub unsealed_bytes: u64,
    /// Of what all spaces share.
    pub level: &'static str,
    pub log_bytes: u64,
    pub sealed_bytes: u64,
    pub merged_bytes: u64,
    pub checkpoint_bytes: u64,
    pub segment_fill_bytes: u64,
    pub seals: u64,
    pub scrubbed_blocks: u64,
    pub maintenance_failures: u64,
    pub maintenance_error: Option<String>,
    pub partitions: Vec<PartitionStats>,
}

impl Core {
    pub fn space_stats(&self, space: &Space) -> SpaceStats {
        let view = space.view();
        let state = space.state();
        let now = self.now();
        let level = self.level_for(space, now);
        SpaceStats {
            memories: view.memories(),
            keys: space.keys.len() as u64,
            generation: view.watermark().0,
            incarnation: state.incarnation,
            queue_observations: space.depth.observations(),
            queue_bytes: space.depth.bytes(),
            unsealed_bytes: space.unsealed_bytes(),
            sealed_bytes: view.sealed_bytes(),
            quota: space.quota(),
            absorbed_generation: space.absorbed().0,
            index_rows: space.indexed().0,
            index_linked: space.indexed().1,
            index_imaged: space.imaged().0,
            index_rebuilt: space.imaged().1,
            sealed_rows: view.sealed().iter().map(|p| p.place.rows).sum(),
            history_rows: view.history().iter().map(|p| p.place.rows).sum(),
            sealed_parts: view.filed().count() as u64,
            purging: state.purging.len() as u64,
            tail_parts: view.tail_parts() as u64,
            snapshots: space.pins.len() as u64,
            recalls: space.recalls.load(Ordering::Relaxed),
            level: level.name(),
            pressure: space.pressure(now).0,
            advised_batch: level.advised_batch(),
            drain_rate: space.drain_rate(),
            degraded: state
                .degraded
                .or_else(|| space.damage())
                .or_else(|| view.filed().any(|p| !p.sound).then(|| "a sealed file is damaged".to_owned())),
        }
    }

    pub fn stats(&self) -> EngineStats {
        let w = &self.written;
        let partition = |p: &super::core::Partition| {
            let (end, synced, segment) =
                p.with_writer(self, |w| (w.log.end().offset, w.log.synced().offset, w.log.current_segment()));
            let kept = p.kept.lock();
            PartitionStats {
                spaces: self.spaces.of_partition(p.id).len() as u64,
                log_end: end,
                log_synced: synced,
                segment,
                checkpoint: kept.current.as_ref().map_or(0, |c| c.number),
                checkpoint_offset: kept.current.as_ref().map_or(0, |c| c.position.offset),
                poisoned: p.poisoned.get().cloned(),
            }
        };
        let maintenance = self.maintenance.lock();
        let (failures, seals, scrubbed_blocks) = (maintenance.failures, maintenance.seals, maintenance.scrubbed_blocks);
        let error = maintenance.last_error.as_ref().map(ToString::to_string);
        drop(maintenance);
        EngineStats {
            spaces: self.spaces.len() as u64,
            observed: self.observed.load(Ordering::Relaxed),
            worker_restarts: self.worker_restarts.load(Ordering::Relaxed),
            takeovers: self.takeovers.load(Ordering::Relaxed),
            quarantine_unkept: self.quarantine_unkept.load(Ordering::Relaxed),
            quarantined: self.quarantined.load(Ordering::Relaxed),
            queue_bytes: self.process_queue.bytes(),
            unsealed_bytes: self.process_unsealed.bytes(),
            level: self.process_queue.level().max(self.process_unsealed.level()).name(),
            log_bytes: w.log.load(Ordering::Relaxed),
            sealed_bytes: w.sealed.load(Ordering::Relaxed),
            merged_bytes: w.merged.load(Ordering::Relaxed),
            checkpoint_bytes: w.checkpoints.load(Ordering::Relaxed),
            segment_fill_bytes: w.segments.load(Ordering::Relaxed),
            seals,
            scrubbed_blocks,
            maintenance_failures: failures,
            maintenance_error: error,
            partitions: self.partitions.iter().map(partition).collect(),
        }
    }
}
