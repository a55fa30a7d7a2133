//! What a partition knows of its checkpoints and sealed files.

use std::collections::BTreeSet;

use crate::types::{FileId, LogPosition};
use crate::wal::Checkpoint;

#[derive(Default)]
pub(in crate::engine) struct Kept {
    pub(in crate::engine) current: Option<Checkpoint>,
    pub(in crate::engine) previous: Option<Checkpoint>,
    pub(in crate::engine) next_file: u64,
    /// Files that jobs under way write, or have written: no checkpoint names them yet.
    pub(in crate::engine) coming: BTreeSet<FileId>,
    /// Files of a checkpoint that may be on the disk though it failed, and its number: needed until two later ones are.
    pub(in crate::engine) doubtful: Option<(u64, BTreeSet<FileId>)>,
    pub(in crate::engine) next_number: u64,
    /// Checkpoints to make: so that a dropped space's files, or segments of which there are many, are freed, and so that damage once met is
    /// not forgotten.
    pub(in crate::engine) drops: u32,
    /// The log's segment at which a checkpoint was made because there were too many.
    pub(in crate::engine) crowded_at: u64,
    /// Something here is damaged: nothing is deleted.
    pub(in crate::engine) damaged: bool,
}

impl Kept {
    pub(in crate::engine) fn space_dropped(&mut self) {
        // Two: the space's files go when neither kept checkpoint names them.
        self.drops = 2;
    }

    /// The log has many segments, the last of them this.
    pub(in crate::engine) fn is_crowded(&mut self, last: u64) {
        self.crowded_at = last;
        self.drops = 2;
    }

    pub(in crate::engine) fn wants_checkpoint(&self) -> bool {
        self.drops > 0 && (self.current.is_some() || self.damaged)
    }

    pub(in crate::engine) fn publish(&mut self, checkpoint: Checkpoint) {
        debug_assert!(self.current.as_ref().is_none_or(|c| c.number < checkpoint.number), "checkpoints go forward");
        self.drops = self.drops.saturating_sub(1);
        self.next_number = checkpoint.number + 1;
        self.previous = self.current.replace(checkpoint);
        let passed = self.previous.as_ref().map_or(0, |c| c.number);
        self.doubtful.take_if(|(number, _)| *number < passed);
    }

    /// Where the older kept checkpoint reads from: log segments before it are free.
    pub(in crate::engine) fn oldest_position(&self) -> LogPosition {
        self.previous.as_ref().map_or_else(LogPosition::default, |c| c.position)
    }

    /// Files that must stay: named by a kept checkpoint for some space, or coming.
    pub(in crate::engine) fn needed_files(&self) -> BTreeSet<FileId> {
        let doubtful = self.doubtful.iter().flat_map(|(_, files)| files);
        self.named_files().iter().chain(&self.coming).chain(doubtful).copied().collect()
    }

    /// Files that a kept checkpoint names for some space.
    pub(in crate::engine) fn named_files(&self) -> BTreeSet<FileId> {
        let both = self.current.iter().chain(&self.previous);
        both.flat_map(|c| c.spaces.iter().flat_map(|s| s.filed().map(|p| p.file))).collect()
    }
}

pub(in crate::engine) fn rows_path(dir: &str, id: FileId) -> String {
    format!("{dir}/rows/{:016x}.rows", id.0)
}

/// The id in a sealed file's name.
pub(in crate::engine) fn rows_id(name: &str) -> Option<FileId> {
    let digits = name.strip_suffix(".rows")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok().map(FileId))?
}
