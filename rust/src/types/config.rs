//! Every limit of the engine, with its unit in its name, in one type. Defaults are those of the contract.

use super::Durability;
use crate::error::Error;

/// The version of each file whose own says nothing else (checkpoints have had a second).
pub const FORMAT_VERSION: u16 = 1;
pub const DIM_MAX: u32 = 8192;
pub const NAME_BYTES_MAX: usize = 64;
/// Memories that one forget record names (K3).
pub const FORGET_IDS_MAX: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub struct Config {
    pub durability: Durability,
    /// Only when a directory is made; stored there.
    pub partitions: u32,

    // One observation, one batch (O1).
    pub text_bytes_max: usize,
    pub metadata_bytes_max: usize,
    pub metadata_depth_max: usize,
    pub key_bytes_max: usize,
    pub item_bytes_max: usize,
    pub batch_items_max: usize,
    pub batch_bytes_max: usize,
    pub recall_k_max: usize,
    pub spaces_max: usize,

    // Waiting (P1).
    pub queue_observations_max: u64,
    pub queue_bytes_max: u64,
    pub queue_process_bytes_max: u64,
    /// Forgets of one space on their way, and what they hold.
    pub forgets_max: u64,
    pub forgets_bytes_max: u64,
    pub admission_timeout_ms: u64,
    /// An observation that waits for so long presses like a full queue (P2).
    pub queue_age_ms_max: u64,
    /// What one space may put into a group before the next space has its turn (T2).
    pub quantum_bytes: usize,
    /// A partition with more observations on their way than this may be taken over (T3).
    pub steal_threshold: u64,

    // The log (D1, D9).
    pub group_bytes_max: usize,
    pub segment_bytes_first: u64,
    pub segment_bytes_max: u64,
    pub idle_close_ms: u64,
    /// Groups of `os` and `memory` spaces are synced at the latest after this much.
    pub unsynced_bytes_max: u64,

    // Sealing (T5).
    pub unsealed_space_bytes_max: u64,
    pub unsealed_process_bytes_max: u64,
    pub seal_space_bytes: u64,
    pub seal_process_bytes: u64,
    pub seal_own_file_bytes_min: u64,
    pub checkpoint_log_bytes: u64,
    pub merge_files: usize,
    pub maintenance_retry_ms: u64,
    /// Between two passes over all sealed blocks.
    pub scrub_pause_ms: u64,

    // The index.
    /// A space with fewer rows has no graph: its rows are looked through.
    pub index_graph_rows_min: usize,
    /// A graph that has grown is written down when it has stood still for so long, or has doubled; 0: never.
    pub index_image_idle_ms: u64,
    /// Rows of a space that its graph does not answer for yet, at most (P2); fewer if looking through so many would take too long.
    pub index_tail_rows_max: u64,
    /// Bytes that rows take in all indexes whose graphs do not answer for them yet; beyond it spaces with more than their share wait.
    pub unabsorbed_process_bytes_max: u64,
    /// Picoseconds that looking through a byte of code takes; 0: measured at the start. Cores that looking through tails may take a quarter of.
    pub scan_picos: u64,
    pub cores: usize,
    /// How much the confidence of a hit is lowered that the graph does not answer yet, and for how long after its commit (G7).
    pub provisional_percent: u64,
    pub provisional_ms: u64,

    // Sessions (S1).
    pub sessions_attached_max: u64,
    pub sessions_kept_max: u64,
    pub session_keep_ms: u64,

    // The past (G5).
    pub history_keep_ms: u64,

    // Snapshots (G3).
    pub snapshot_idle_ms_max: u64,
    pub snapshot_age_ms_max: u64,
}

const MIB: u64 = 1 << 20;

impl Default for Config {
    fn default() -> Self {
        Self {
            durability: Durability::Sync,
            partitions: 4,
            text_bytes_max: 1 << 20,
            metadata_bytes_max: 64 << 10,
            metadata_depth_max: 16,
            key_bytes_max: 256,
            item_bytes_max: 2 << 20,
            batch_items_max: 16_384,
            batch_bytes_max: 8 << 20,
            recall_k_max: 16_384,
            spaces_max: 100_000,
            queue_observations_max: 100_000,
            queue_bytes_max: 256 * MIB,
            queue_process_bytes_max: 1024 * MIB,
            forgets_max: 1_000,
            forgets_bytes_max: 64 * MIB,
            admission_timeout_ms: 30_000,
            queue_age_ms_max: 1_000,
            quantum_bytes: 256 << 10,
            steal_threshold: 1_000,
            group_bytes_max: 1 << 20,
            segment_bytes_first: 4 * MIB,
            segment_bytes_max: 64 * MIB,
            idle_close_ms: 100,
            unsynced_bytes_max: 8 * MIB,
            unsealed_space_bytes_max: 128 * MIB,
            unsealed_process_bytes_max: 512 * MIB,
            seal_space_bytes: 48 * MIB,
            seal_process_bytes: 256 * MIB,
            seal_own_file_bytes_min: MIB,
            checkpoint_log_bytes: 256 * MIB,
            merge_files: 8,
            maintenance_retry_ms: 500,
            scrub_pause_ms: 3_600_000,
            index_graph_rows_min: 4_096,
            index_image_idle_ms: 2_000,
            index_tail_rows_max: 2_000_000,
            unabsorbed_process_bytes_max: 2048 * MIB,
            scan_picos: 0,
            cores: 2,
            provisional_percent: 10,
            provisional_ms: 100,
            sessions_attached_max: 10_000,
            sessions_kept_max: 100_000,
            session_keep_ms: 7 * 24 * 3_600_000,
            history_keep_ms: 7 * 24 * 3_600_000,
            snapshot_idle_ms_max: 60_000,
            snapshot_age_ms_max: 600_000,
        }
    }
}

impl Config {
    /// Limits for an engine without a directory: its log is kept short, since it takes memory too.
    #[must_use]
    pub fn in_memory() -> Self {
        Self {
            segment_bytes_first: MIB,
            segment_bytes_max: 4 * MIB,
            checkpoint_log_bytes: 16 * MIB,
            seal_space_bytes: 16 * MIB,
            index_image_idle_ms: 0,
            ..Self::default()
        }
    }

    /// Partitions for a new directory on a machine with `cores`: the next power of two ≥ max(4, cores) (T1).
    pub fn partitions_for(cores: usize) -> u32 {
        u32::try_from(cores.clamp(4, 256).next_power_of_two()).unwrap_or(256)
    }

    /// Sets one limit by name, for callers that hold names and numbers.
    pub fn set(&mut self, name: &str, value: u64) -> Result<(), Error> {
        let size = usize::try_from(value).unwrap_or(usize::MAX);
        match name {
            "partitions" => self.partitions = u32::try_from(value).unwrap_or(u32::MAX),
            "batch_items_max" => self.batch_items_max = size,
            "batch_bytes_max" => self.batch_bytes_max = size,
            "text_bytes_max" => self.text_bytes_max = size,
            "metadata_bytes_max" => self.metadata_bytes_max = size,
            "recall_k_max" => self.recall_k_max = size,
            "spaces_max" => self.spaces_max = size,
            "scrub_pause_ms" => self.scrub_pause_ms = value,
            "queue_observations_max" => self.queue_observations_max = value,
            "queue_bytes_max" => self.queue_bytes_max = value,
            "queue_process_bytes_max" => self.queue_process_bytes_max = value,
            "admission_timeout_ms" => self.admission_timeout_ms = value,
            "queue_age_ms_max" => self.queue_age_ms_max = value,
            "group_bytes_max" => self.group_bytes_max = size,
            "segment_bytes_first" => self.segment_bytes_first = value,
            "segment_bytes_max" => self.segment_bytes_max = value,
            "idle_close_ms" => self.idle_close_ms = value,
            "unsealed_space_bytes_max" => self.unsealed_space_bytes_max = value,
            "unsealed_process_bytes_max" => self.unsealed_process_bytes_max = value,
            "seal_space_bytes" => self.seal_space_bytes = value,
            "seal_process_bytes" => self.seal_process_bytes = value,
            "seal_own_file_bytes_min" => self.seal_own_file_bytes_min = value,
            "checkpoint_log_bytes" => self.checkpoint_log_bytes = value,
            "merge_files" => self.merge_files = size,
            "index_graph_rows_min" => self.index_graph_rows_min = size,
            "index_image_idle_ms" => self.index_image_idle_ms = value,
            "index_tail_rows_max" => self.index_tail_rows_max = value,
            "unabsorbed_process_bytes_max" => self.unabsorbed_process_bytes_max = value,
            "provisional_percent" => self.provisional_percent = value,
            "provisional_ms" => self.provisional_ms = value,
            "sessions_attached_max" => self.sessions_attached_max = value,
            "sessions_kept_max" => self.sessions_kept_max = value,
            "session_keep_ms" => self.session_keep_ms = value,
            "history_keep_ms" => self.history_keep_ms = value,
            "snapshot_idle_ms_max" => self.snapshot_idle_ms_max = value,
            "snapshot_age_ms_max" => self.snapshot_age_ms_max = value,
            _ => return Err(Error::invalid("limits", format!("unknown limit {name:?}"))),
        }
        Ok(())
    }

    /// Refuses combinations that could not work.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |field: &'static str, message: &str| Err(Error::invalid(field, message.to_owned()));
        if !(1..=256).contains(&self.partitions) {
            return bad("partitions", "partitions must be 1 to 256");
        }
        if self.segment_bytes_first < 16 << 10 || self.segment_bytes_max < self.segment_bytes_first {
            return bad("segment_bytes_first", "segments must be at least 16 KiB, the first no larger than the last");
        }
        if self.batch_items_max == 0 || self.batch_bytes_max == 0 || self.queue_observations_max == 0 {
            return bad("batch_items_max", "batch and queue limits must be at least 1");
        }
        if self.queue_age_ms_max == 0 {
            return bad("queue_age_ms_max", "queue_age_ms_max must be at least 1");
        }
        if self.provisional_percent > 100 {
            return bad("provisional_percent", "provisional_percent must be at most 100");
        }
        if self.merge_files < 2 {
            return bad("merge_files", "merge_files must be at least 2");
        }
        Ok(())
    }
}
