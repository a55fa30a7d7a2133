//! What goes into which file: which parts of which spaces, and where replay starts afterwards (T5).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::core::{Core, Partition};
use crate::records::RowSource;
use crate::store::{DEAD_SHARE, Deaths, LeftOut, PickedRows, SealedPart, Space, View};
use crate::types::{FileId, Generation, LogPosition, PartitionId, SpaceId};

/// Dead rows go into a file of their own when one of so many is dead, of what is written anyway.
const APART_SHARE: u64 = 2 * DEAD_SHARE;

pub(super) type Rows = Vec<Arc<dyn RowSource>>;

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

    /// The rows that go into new files, without those that need not be kept: in order, and those that died apart if they are enough for a file.
    /// What stands on either side of lost rows is a piece of its own: a file that spanned them would make them missing (D5).
    pub(super) fn sources(&self, core: &Core) -> (Vec<Rows>, Rows) {
        let merged = self.filed().map(|p| (&p.rows, &p.deaths, 0));
        let mut piece = 0;
        let tail = self.view.tail().take(self.take).filter_map(|p| {
            piece += usize::from(!p.sound);
            (p.sound && p.rows.rows() > 0).then_some((&p.rows, &p.deaths, piece))
        });
        let (all, pieces): (Vec<_>, Vec<_>) = merged.chain(tail).map(|(r, d, piece)| ((r, d), piece)).unzip();
        let (upto, rows) = (self.last_generation(), all.iter().map(|(rows, _)| rows.rows()).sum::<usize>() as u64);
        let left_out = self.space.leaves_out(upto, core.now(), &core.config);
        self.space
            .remember(&self.view, &all.iter().flat_map(|(r, d)| left_out_rows(r, d, &left_out)).collect::<Vec<_>>());
        let old = self.view.history().iter().any(|p| self.replaced.contains(&p.place.file));
        let dead: u64 = all.iter().map(|(rows, deaths)| deaths.count(rows.rows(), upto)).sum();
        let apart = old || dead * APART_SHARE >= rows.max(1);
        let gone = |rows: &dyn RowSource, row, death| left_out.has(rows.generation_at(row), death);
        let history = |source: usize, row| {
            let (rows, deaths) = all[source];
            deaths.at(row, upto).map_or(old, |death| !gone(&**rows, row, death))
        };
        let living = |(rows, deaths): &(&Arc<dyn RowSource>, &Arc<Deaths>)| {
            if !deaths.any() {
                return Some(Arc::clone(rows));
            }
            let keeps = |_, row| deaths.at(row, upto).is_none_or(|death| !apart && !gone(&***rows, row, death));
            PickedRows::of(vec![Arc::clone(rows)], keeps)
        };
        let died = apart.then(|| PickedRows::of(all.iter().map(|(rows, _)| Arc::clone(rows)).collect(), history));
        let sources = all.iter().zip(pieces).filter(|_| !old);
        let sources: Vec<_> = sources.filter_map(|(source, piece)| Some((piece, living(source)?))).collect();
        let of = |piece: &[(usize, Arc<dyn RowSource>)]| piece.iter().map(|(_, rows)| Arc::clone(rows)).collect();
        (sources.chunk_by(|a, b| a.0 == b.0).map(of).collect(), died.flatten().into_iter().collect())
    }

    fn filed(&self) -> impl Iterator<Item = &SealedPart> {
        self.view.filed().filter(|p| self.replaced.contains(&p.place.file))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.filed().map(|p| p.bytes).chain(self.view.tail().take(self.take).map(|p| p.bytes)).sum()
    }
}

/// The last generation before the first part of the tail that stays in it when `take` are sealed.
fn sealed_generation(view: &View, take: usize) -> Generation {
    // What stands for lost rows has no generation to go on from.
    let next = view.tail().skip(take).find(|p| p.sound);
    next.map_or(view.watermark(), |p| Generation(p.rows.first().0 - 1))
}

/// Rows that are left out: generation, time, and whether it ended its batch.
fn left_out_rows(rows: &Arc<dyn RowSource>, deaths: &Deaths, left_out: &LeftOut) -> Vec<(Generation, i64, bool)> {
    let all = deaths.each(left_out.upto()).map(|(row, death)| (row, rows.generation_at(row), death));
    let gone = all.filter(|(_, generation, death)| left_out.has(*generation, *death));
    // Damage is met, and told, by who copies the rows.
    gone.map(|(row, at, _)| (at, rows.committed_at(row), rows.ends_batch(row).unwrap_or(true))).collect()
}

/// A file to be written again: a quarter of its rows died, or need not be kept if it is history, or the bytes of one must go.
pub(super) fn rewrite_goal(core: &Core, partition: &Partition) -> Option<Goal> {
    for space in core.spaces.of_partition(partition.id) {
        if !space.takes_thinning() {
            continue;
        }
        let view = space.view();
        // What died at a generation that is not in a checkpoint yet waits for one.
        let upto = sealed_generation(&view, 0);
        let left_out = space.leaves_out(upto, core.now(), &core.config);
        let due = |part: &SealedPart, history: bool| {
            let dead = || part.deaths.each(left_out.upto()).map(|(row, death)| (part.rows.generation_at(row), death));
            let gone = || dead().filter(|(row, death)| left_out.has(*row, *death));
            let share = if history { gone().count() as u64 } else { part.deaths.count(part.rows.rows(), upto) };
            share > 0 && share * DEAD_SHARE >= part.rows.rows() as u64 || gone().any(|(row, _)| left_out.purges(row))
        };
        let mut parts = view.sealed().iter().map(|p| (p, false)).chain(view.history().iter().map(|p| (p, true)));
        if let Some((part, _)) = parts.find(|(p, history)| p.sound && p.deaths.any() && due(p, *history)) {
            // There may be more.
            space.let_go(Generation(0), Vec::new());
            let kept = partition.kept.lock();
            let shared = kept.current.iter().flat_map(|c| &c.files).any(|f| f.id == part.place.file && f.shared);
            return Some(Goal::Rewrite(part.place.file, shared));
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
        Goal::Rewrite(file, _) if view.filed().any(|p| p.sound && p.place.file == *file) => vec![*file],
        _ => Vec::new(),
    };
    PlannedSpace { space, view, take, replaced }
}

/// Those of `files` that hold consecutive parts of this space, or parts of its history, if at least two: others must stay where they are.
fn consecutive(view: &View, files: &[FileId]) -> Vec<FileId> {
    let old = view.history().iter().filter(|p| p.sound && files.contains(&p.place.file));
    let old: Vec<FileId> = old.map(|p| p.place.file).collect();
    if !old.is_empty() {
        return if old.len() < 2 { Vec::new() } else { old };
    }
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

/// Files that should become one: `fan` of the same tier, next to each other in one space, or of its history, or all shared.
pub(super) fn merge_goal(core: &Core, partition: &Partition, fan: usize) -> Option<Goal> {
    let kept = partition.kept.lock();
    let current = kept.current.as_ref()?;
    let known: BTreeMap<FileId, (u32, bool)> = current.files.iter().map(|f| (f.id, (f.tier, f.shared))).collect();
    let old: BTreeSet<FileId> = current.spaces.iter().flat_map(|s| s.history.iter().map(|p| p.file)).collect();
    drop(kept);
    let mut shared: BTreeMap<(bool, u32), Vec<FileId>> = BTreeMap::new();
    for (file, (tier, _)) in known.iter().filter(|(_, (_, shared))| *shared) {
        shared.entry((old.contains(file), *tier)).or_default().push(*file);
    }
    let own_tier = |part: &SealedPart| {
        let own = known.get(&part.place.file).copied().filter(|(_, shared)| part.sound && !shared);
        own.map(|(tier, _)| tier)
    };
    let spaces = core.spaces.of_partition(PartitionId(partition.index as u32));
    for space in &spaces {
        let view = space.view();
        let mut history: Vec<(u32, FileId)> =
            view.history().iter().filter_map(|p| own_tier(p).map(|tier| (tier, p.place.file))).collect();
        history.sort_unstable();
        let runs = view.sealed().chunk_by(|a, b| own_tier(a).is_some() && own_tier(a) == own_tier(b));
        let runs = runs.filter(|run| own_tier(&run[0]).is_some());
        let runs = runs.map(|run| run.iter().map(|p| p.place.file).collect::<Vec<_>>());
        let old = history.chunk_by(|a, b| a.0 == b.0).map(|run| run.iter().map(|(_, file)| *file).collect());
        if let Some(mut files) = runs.chain(old).find(|run| run.len() >= fan) {
            files.truncate(fan);
            return Some(Goal::MergeOwn(space.options.id, files));
        }
    }
    let movable = |files: &Vec<FileId>| spaces.iter().any(|s| !consecutive(&s.view(), files).is_empty());
    shared.into_values().find(|files| files.len() >= fan && movable(files)).map(Goal::MergeShared)
}
