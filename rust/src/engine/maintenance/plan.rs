//! What goes into which file: which parts of which spaces, and where replay starts afterwards (T5).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::core::{Core, Partition};
use crate::records::RowSource;
use crate::store::{Deaths, LeftOut, Space, ThinnedRows, View};
use crate::types::{FileId, Generation, LogPosition, PartitionId, SpaceId};

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
    /// This file, shared or not, without the rows that need not be kept.
    Rewrite(FileId, bool),
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
    /// The last generation that everything before the plan's cut, or sealed by it, has used.
    pub(super) fn last_generation(&self) -> Generation {
        sealed_generation(&self.view, self.take)
    }

    /// The rows that go into the new file: without those that need not be kept.
    pub(super) fn sources(&self, core: &Core) -> Vec<Arc<dyn RowSource>> {
        let merged = self.view.sealed().iter().filter(|p| self.replaced.contains(&p.place.file));
        let tail = self.view.tail().take(self.take).filter(|p| p.sound && p.rows.rows() > 0);
        let all = merged.map(|p| (&p.rows, &p.deaths)).chain(tail.map(|p| (&p.rows, &p.deaths)));
        let left_out = self.space.leaves_out(self.last_generation(), core.now(), &core.config);
        // From the end: where nothing is left of a part, its batch ends with the part before.
        let (mut sources, mut ends, mut next) = (Vec::new(), false, None);
        for (rows, deaths) in all.collect::<Vec<_>>().into_iter().rev() {
            let left = thinned(rows, deaths, &left_out, ends);
            self.space.remember(left_out_moments(rows, deaths, &left_out), inside(rows, left.as_ref(), next));
            next = Some(rows.first());
            ends = left.is_none();
            sources.extend(left);
        }
        sources.reverse();
        sources
    }

    pub(super) fn bytes(&self) -> u64 {
        let merged = self.view.sealed().iter().filter(|p| self.replaced.contains(&p.place.file));
        merged.map(|p| p.bytes).chain(self.view.tail().take(self.take).map(|p| p.bytes)).sum()
    }
}

/// The last generation before the first part of the tail that stays in it when `take` are sealed.
fn sealed_generation(view: &View, take: usize) -> Generation {
    // What stands for lost rows has no generation to go on from.
    let next = view.tail().skip(take).find(|p| p.sound);
    next.map_or(view.watermark(), |p| Generation(p.rows.first().0 - 1))
}

/// The rows less those that are left out; None if none are left.
fn thinned(rows: &Arc<dyn RowSource>, deaths: &Deaths, left_out: &LeftOut, ends: bool) -> Option<Arc<dyn RowSource>> {
    if !deaths.any() && !ends {
        return Some(Arc::clone(rows));
    }
    let gone = |row, death| left_out.has(rows.generation_at(row), death);
    ThinnedRows::of(rows, |row| deaths.at(row, left_out.upto()).is_none_or(|death| !gone(row, death)), ends)
}

/// Generations inside a batch that the rows that are left do not say it of: of rows that are left out, or that end what is left of their batch,
/// and of voids behind them. `next`: the first generation of the part that follows.
fn inside(rows: &Arc<dyn RowSource>, left: Option<&Arc<dyn RowSource>>, next: Option<Generation>) -> Vec<Generation> {
    if left.is_some_and(|left| Arc::ptr_eq(left, rows)) {
        return Vec::new();
    }
    // Damage is met, and told, by who copies the rows.
    let goes_on = |rows: &dyn RowSource, row| !rows.ends_batch(row).unwrap_or(true);
    let says = |row| left.and_then(|l| l.row_of(rows.generation_at(row)).map(|at| goes_on(&**l, at))) == Some(true);
    let upto = |row: usize| {
        let follows = if row + 1 < rows.rows() { Some(rows.generation_at(row + 1)) } else { next };
        follows.map_or(rows.generation_at(row).0 + 1, |g| g.0)
    };
    let all = (0..rows.rows()).filter(|row| goes_on(&**rows, *row) && !says(*row));
    all.flat_map(|row| (rows.generation_at(row).0..upto(row)).map(Generation)).collect()
}

/// Generation and time of rows that are left out, the last of each time: `as_of` a time goes by them still (G5).
fn left_out_moments(rows: &Arc<dyn RowSource>, deaths: &Deaths, left_out: &LeftOut) -> Vec<(Generation, i64)> {
    let mut moments: Vec<(Generation, i64)> = Vec::new();
    for (row, death) in deaths.each(left_out.upto()) {
        let (generation, at) = (rows.generation_at(row), rows.committed_at(row));
        if left_out.has(generation, death) {
            moments.pop_if(|(_, before)| *before == at);
            moments.push((generation, at));
        }
    }
    moments
}

/// A file with so many rows that need not be kept that it is written again: a quarter of them, or one whose bytes must go.
pub(super) fn rewrite_goal(core: &Core, partition: &Partition) -> Option<Goal> {
    for space in core.spaces.of_partition(partition.id) {
        if !space.takes_thinning() {
            continue;
        }
        let view = space.view();
        // What died at a generation that is not in a checkpoint yet waits for one.
        let left_out = space.leaves_out(sealed_generation(&view, 0), core.now(), &core.config);
        for part in view.sealed().iter().filter(|p| p.sound && p.deaths.any()) {
            let gone: Vec<Generation> = part
                .deaths
                .each(left_out.upto())
                .map(|(row, death)| (part.rows.generation_at(row), death))
                .filter(|(row, death)| left_out.has(*row, *death))
                .map(|(row, _)| row)
                .collect();
            let must = gone.iter().any(|row| left_out.purges(*row));
            if must || (!gone.is_empty() && gone.len() * 4 >= part.rows.rows()) {
                // There may be more.
                space.let_go(Generation(0), Vec::new());
                let kept = partition.kept.lock();
                let shared = kept.current.iter().flat_map(|c| &c.files).any(|f| f.id == part.place.file && f.shared);
                return Some(Goal::Rewrite(part.place.file, shared));
            }
        }
    }
    None
}

pub(super) fn plan_space(space: Arc<Space>, view: Arc<View>, goal: &Goal, cut: LogPosition) -> PlannedSpace {
    let id = space.options.id;
    let sealing = match goal {
        Goal::All => true,
        Goal::One(one) => *one == id,
        Goal::MergeOwn(..) | Goal::MergeShared(_) | Goal::Rewrite(..) => false,
    };
    let take = if sealing { view.tail().take_while(|p| p.position.offset < cut.offset).count() } else { 0 };
    let replaced = match goal {
        Goal::MergeOwn(one, files) if *one == id => files.clone(),
        Goal::MergeShared(files) => consecutive(&view, files),
        Goal::Rewrite(file, _) if view.sealed().iter().any(|p| p.sound && p.place.file == *file) => vec![*file],
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
