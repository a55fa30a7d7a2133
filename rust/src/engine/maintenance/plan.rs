//! What goes into which file: which parts of which spaces, and where replay starts afterwards (T5).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::core::{Core, Partition};
use crate::records::RowSource;
use crate::store::{Space, View};
use crate::types::{FileId, LogPosition, PartitionId, SpaceId};

/// What to put into files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Every space of the partition.
    All,
    One(SpaceId),
    /// These files of one space into one, of the next tier.
    MergeOwn(SpaceId, Vec<FileId>),
    /// These shared files into one.
    MergeShared(Vec<FileId>),
}

pub(super) struct PlannedSpace {
    pub(super) space: Arc<Space>,
    pub(super) view: Arc<View>,
    /// Parts of the tail that get sealed.
    pub(super) take: usize,
    /// Files whose part of this space is replaced.
    pub(super) replaced: Vec<FileId>,
}

/// The log's synced end, the last time given, and the views that hold everything before that end.
pub(super) fn capture(core: &Core, partition: &Partition) -> (LogPosition, i64, Vec<(Arc<Space>, Arc<View>)>) {
    partition.with_writer(core, |writer| {
        let all = core.spaces.of_partition(partition.id);
        let captured = all.into_iter().map(|s| (Arc::clone(&s), s.view())).collect();
        (writer.checkpoint_cut(), writer.log.committed_at(), captured)
    })
}

/// Where replay starts: before it all is in files, or will be.
pub(super) fn sharp_position(spaces: &[PlannedSpace], cut: LogPosition) -> LogPosition {
    let waiting = spaces.iter().filter_map(|s| s.view.tail().nth(s.take).map(|p| p.position));
    waiting.fold(cut, |a, b| if b.offset < a.offset { b } else { a })
}

impl PlannedSpace {
    pub(super) fn sources(&self) -> Vec<Arc<dyn RowSource>> {
        let merged = self.view.sealed().iter().filter(|p| self.replaced.contains(&p.place.file));
        let tail = self.view.tail().take(self.take).filter(|p| p.sound && p.rows.rows() > 0);
        merged.map(|p| Arc::clone(&p.rows)).chain(tail.map(|p| Arc::clone(&p.rows))).collect()
    }

    pub(super) fn bytes(&self) -> u64 {
        let merged = self.view.sealed().iter().filter(|p| self.replaced.contains(&p.place.file));
        merged.map(|p| p.bytes).chain(self.view.tail().take(self.take).map(|p| p.bytes)).sum()
    }
}

pub(super) fn plan_space(space: Arc<Space>, view: Arc<View>, goal: &Goal, cut: LogPosition) -> PlannedSpace {
    let id = space.options.id;
    let sealing = match goal {
        Goal::All => true,
        Goal::One(one) => *one == id,
        Goal::MergeOwn(..) | Goal::MergeShared(_) => false,
    };
    let take = if sealing { view.tail().take_while(|p| p.position.offset < cut.offset).count() } else { 0 };
    let replaced = match goal {
        Goal::MergeOwn(one, files) if *one == id => files.clone(),
        Goal::MergeShared(files) => consecutive(&view, files),
        _ => Vec::new(),
    };
    PlannedSpace { space, view, take, replaced }
}

/// Those of `files` that hold consecutive parts of this space, if at least two: others must stay where they are.
fn consecutive(view: &View, files: &[FileId]) -> Vec<FileId> {
    let mut best: Vec<FileId> = Vec::new();
    let mut run: Vec<FileId> = Vec::new();
    for part in view.sealed() {
        if part.sound && files.contains(&part.place.file) {
            run.push(part.place.file);
        } else {
            run.clear();
        }
        if run.len() > best.len() {
            best.clone_from(&run);
        }
    }
    if best.len() < 2 { Vec::new() } else { best }
}

/// Files that should become one: `fan` of the same tier, next to each other in one space or all shared.
pub(super) fn merge_goal(core: &Core, partition: &Partition, fan: usize) -> Option<Goal> {
    let kept = partition.kept.lock();
    let current = kept.current.as_ref()?;
    let known: BTreeMap<FileId, (u32, bool)> = current.files.iter().map(|f| (f.id, (f.tier, f.shared))).collect();
    let mut shared: BTreeMap<u32, Vec<FileId>> = BTreeMap::new();
    for file in current.files.iter().filter(|f| f.shared) {
        shared.entry(file.tier).or_default().push(file.id);
    }
    drop(kept);
    let spaces = core.spaces.of_partition(PartitionId(partition.index as u32));
    for space in &spaces {
        let mut run: Vec<(FileId, u32)> = Vec::new();
        for part in space.view().sealed() {
            let Some((tier, false)) = known.get(&part.place.file).copied().filter(|_| part.sound) else {
                run.clear();
                continue;
            };
            if run.last().is_some_and(|(_, t)| *t != tier) {
                run.clear();
            }
            run.push((part.place.file, tier));
            if run.len() == fan {
                return Some(Goal::MergeOwn(space.options.id, run.iter().map(|r| r.0).collect()));
            }
        }
    }
    let due = shared.into_values().find(|files| files.len() >= fan)?;
    let movable = spaces.iter().any(|s| !consecutive(&s.view(), &due).is_empty());
    movable.then_some(Goal::MergeShared(due))
}
