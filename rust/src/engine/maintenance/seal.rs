//! Sealing and merging, planned and carried out: rows leave the tail for immutable files, then a checkpoint says so (T5, D9).
//!
//! A plan is made under the writer's lock: everything before the synced end is applied, so the captured views and the position agree.
//! The order is fixed: files whole and durable → checkpoint durable → views swapped → what no kept checkpoint needs is freed. Nothing is
//! taken away before what replaces it is on the disk.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::core::{Core, Partition};
use super::kept::{rows_id, rows_path};
use super::plan::{Goal, PlannedSpace, capture, plan_space, sharp_position};
use crate::env::{File, Job, Output, Site};
use crate::error::Error;
use crate::records::{RowSource, SealEncoder, SealSpace, SealedFile, SealedSummary};
use crate::session::Window;
use crate::store::{Deaths, SealedPart, Space, Speaker, View};
use crate::types::{FileId, Generation, LogPosition};
use crate::wal::{
    Checkpoint, CheckpointFile, CheckpointSession, CheckpointSpace, FilePart, Quarantined, checkpoint_path,
    list_checkpoints,
};

const CHUNK: usize = 1 << 20;
/// A file is synced after each so many bytes, and at its end: a log's sync never waits for more than this behind it.
const SYNC_EVERY: u64 = 2 << 20;

struct OutputFile {
    id: FileId,
    tier: u32,
    shared: bool,
    history: bool,
    encoder: SealEncoder,
    file: Option<Arc<dyn File>>,
    opened: Arc<Mutex<Option<Result<Arc<SealedFile>, Error>>>>,
    whole: bool,
}

struct Sealed {
    entry: CheckpointFile,
    history: bool,
    summary: SealedSummary,
    file: Arc<SealedFile>,
}

enum Stage {
    Files,
    Checkpoint(Box<Checkpoint>),
    Free,
}

pub(super) struct SealJob {
    pub(super) partition: usize,
    merge: bool,
    /// When it was planned.
    pub(super) begun: u64,
    spaces: Vec<PlannedSpace>,
    position: LogPosition,
    committed_at: i64,
    outputs: VecDeque<OutputFile>,
    sealed: Vec<Sealed>,
    stage: Stage,
    freed: Arc<Mutex<Vec<(String, u64)>>>,
}

/// What a job of a `SealJob` led to.
pub(super) enum Progress {
    Submit(Job),
    Done,
}

impl SealJob {
    /// Plans `goal`; None if there is nothing to do. Everything before the log's synced end is in the views captured here.
    pub(super) fn plan(core: &Core, partition: &Partition, goal: &Goal, always: bool) -> Option<Self> {
        let (cut, committed_at, captured) = capture(core, partition);
        // A degraded space's lost ranges move into the checkpoint only with everything before them.
        let degraded = captured.iter().any(|(s, _)| s.state().degraded.is_some());
        let goal = if degraded && matches!(goal, Goal::One(_)) { &Goal::All } else { goal };
        let spaces: Vec<PlannedSpace> = captured.into_iter().map(|(s, v)| plan_space(s, v, goal, cut)).collect();
        let position = sharp_position(&spaces, cut);
        let mut job = Self {
            partition: partition.index,
            merge: matches!(goal, Goal::MergeOwn(..) | Goal::MergeShared(_) | Goal::Rewrite(..)),
            begun: core.now(),
            spaces,
            position,
            committed_at,
            outputs: VecDeque::new(),
            sealed: Vec::new(),
            stage: Stage::Files,
            freed: Arc::default(),
        };
        let idle = job.spaces.iter().all(|s| s.take == 0 && s.replaced.is_empty());
        let moved = partition.kept.lock().current.as_ref().is_none_or(|c| c.position.offset < position.offset);
        if idle && !always && !moved {
            return None;
        }
        job.make_outputs(core, partition, goal);
        let now = core.now();
        job.spaces.iter().filter(|p| p.take > 0).for_each(|p| p.space.sealing_begins(now));
        Some(job)
    }

    /// A merge may be held up by seals of the same partition: what its checkpoint says is taken anew, only the files were planned.
    fn capture_again(&mut self, core: &Core, partition: &Partition) {
        let (cut, committed_at, captured) = capture(core, partition);
        let replaced = |id| self.spaces.iter().find(|p| p.space.options.id == id).map(|p| p.replaced.clone());
        let spaces = captured.into_iter().map(|(space, view)| {
            let replaced = replaced(space.options.id).unwrap_or_default();
            PlannedSpace { space, view, take: 0, replaced }
        });
        self.spaces = spaces.collect();
        (self.position, self.committed_at) = (sharp_position(&self.spaces, cut), committed_at);
    }

    fn make_outputs(&mut self, core: &Core, partition: &Partition, goal: &Goal) {
        let mut kept = partition.kept.lock();
        let tier_of = |files: &[FileId]| {
            let known = kept.current.iter().flat_map(|c| &c.files);
            known.filter(|f| files.contains(&f.id)).map(|f| f.tier).max().unwrap_or(0) + 1
        };
        let mut groups: Vec<(Vec<SealSpace>, bool, bool)> = Vec::new();
        let mut shared = [Vec::new(), Vec::new()];
        for planned in &self.spaces {
            let bytes = planned.bytes();
            let alone = match goal {
                Goal::MergeOwn(..) | Goal::Rewrite(_, false) => true,
                Goal::MergeShared(_) | Goal::Rewrite(_, true) => false,
                _ => bytes >= core.config.seal_own_file_bytes_min,
            };
            let (living, died) = planned.sources(core);
            let (space, dim) = (planned.space.options.id, planned.space.options.dim);
            let mut living = living.into_iter();
            let first = [(living.next().unwrap_or_default(), false), (died, true)];
            // Those behind lost rows have a file of their own each.
            groups.extend(living.map(|parts| (vec![SealSpace { space, dim, parts }], false, false)));
            for (parts, history) in first.into_iter().filter(|(parts, _)| !parts.is_empty()) {
                let seal = SealSpace { space, dim, parts };
                if alone { groups.push((vec![seal], false, history)) } else { shared[usize::from(history)].push(seal) }
            }
        }
        let [living, died] = shared;
        groups.extend([(living, true, false), (died, true, true)].into_iter().filter(|(all, ..)| !all.is_empty()));
        let tier = match goal {
            Goal::MergeOwn(_, files) | Goal::MergeShared(files) => tier_of(files),
            Goal::Rewrite(file, _) => tier_of(&[*file]) - 1,
            _ => 0,
        };
        for (spaces, shared, history) in groups {
            let id = FileId(kept.next_file.max(1));
            kept.next_file = id.0 + 1;
            kept.coming.insert(id);
            self.outputs.push_back(OutputFile {
                id,
                tier,
                shared,
                history,
                encoder: SealEncoder::new(core.seed, partition.id, id, spaces),
                file: None,
                opened: Arc::default(),
                whole: false,
            });
        }
    }

    /// Takes the result of the last job and says what comes next.
    pub(super) fn advance(&mut self, core: &Core, result: Output) -> Result<Progress, Error> {
        let partition = &core.partitions[self.partition];
        match &self.stage {
            Stage::Files => {
                if let Some(job) = self.next_file_job(core, partition, result)? {
                    return Ok(Progress::Submit(job));
                }
                if self.merge {
                    self.capture_again(core, partition);
                }
                let checkpoint = self.checkpoint(core, partition);
                let (bytes, number) = (checkpoint.encode(core.seed, partition.id), checkpoint.number);
                self.stage = Stage::Checkpoint(Box::new(checkpoint));
                let dir = partition.dir.clone();
                Ok(Progress::Submit(Box::new(move |files| Checkpoint::publish(&bytes, &dir, number, files))))
            }
            Stage::Checkpoint(checkpoint) => {
                count(&core.written.checkpoints, &result);
                let checkpoint = Checkpoint::clone(checkpoint);
                let mut kept = partition.kept.lock();
                kept.publish(checkpoint);
                kept.coming.retain(|id| self.sealed.iter().all(|s| s.entry.id != *id));
                drop(kept);
                self.install(core.now());
                self.stage = Stage::Free;
                Ok(Progress::Submit(self.free_job(partition)))
            }
            Stage::Free => {
                for (path, bytes) in self.freed.lock().drain(..) {
                    partition.supply.free(path, bytes);
                }
                Ok(Progress::Done)
            }
        }
    }

    fn next_file_job(&mut self, core: &Core, partition: &Partition, result: Output) -> Result<Option<Job>, Error> {
        let Some(output) = self.outputs.front_mut() else {
            return Ok(None);
        };
        let path = rows_path(&partition.dir, output.id);
        let tmp = format!("{path}.tmp");
        if output.whole {
            let opened = output.opened.lock().take();
            let file = opened.unwrap_or_else(|| Err(Error::corrupted(&path, 0, "the new file was not opened")))?;
            let summary = output.encoder.summary();
            let entry = CheckpointFile {
                id: output.id,
                bytes: file.len(),
                header_checksum: file.header_checksum(),
                tier: output.tier,
                shared: output.shared,
            };
            count(if self.merge { &core.written.merged } else { &core.written.sealed }, &Output::Count(file.len()));
            self.sealed.push(Sealed { entry, history: output.history, summary, file });
            self.outputs.pop_front();
            return self.next_file_job(core, partition, Output::Nothing);
        }
        let Some(file) = output.file.clone() else {
            if let Output::File(file) = result {
                output.file = Some(file);
                return self.next_file_job(core, partition, Output::Nothing);
            }
            return Ok(Some(Box::new(move |files| files.create(&tmp).map(Output::File))));
        };
        if let Some((at, bytes)) = output.encoder.next_chunk(CHUNK)? {
            return Ok(Some(Box::new(move |_| {
                file.write_patiently(at, &bytes)?;
                let (before, after) = (at / SYNC_EVERY, (at + bytes.len() as u64) / SYNC_EVERY);
                if after > before {
                    file.sync(Site::RowsSync)?;
                }
                Ok(Output::Nothing)
            })));
        }
        output.whole = true;
        let (opened, id, seed, dir) = (Arc::clone(&output.opened), output.id, core.seed, partition.dir.clone());
        let (partition, expected) = (partition.id, output.encoder.summary().header_checksum);
        Ok(Some(Box::new(move |files| {
            file.sync(Site::RowsSync)?;
            files.rename(&tmp, &path, Site::RowsRename)?;
            files.sync_dir(&format!("{dir}/rows"), Site::RowsDir)?;
            let expected = Some((file.len()?, expected));
            *opened.lock() = Some(SealedFile::open(files, &path, seed, partition, id, expected));
            Ok(Output::Nothing)
        })))
    }

    fn checkpoint(&self, core: &Core, partition: &Partition) -> Checkpoint {
        // Dropped since the plan was made: its files go with the checkpoints that name them.
        let there = self.spaces.iter().filter(|p| core.spaces.get(p.space.options.id).is_some());
        let spaces: Vec<CheckpointSpace> = there.map(|p| self.checkpoint_space(core, partition, p)).collect();
        let mut kept = partition.kept.lock();
        let number = kept.next_number.max(1);
        // A number is used once, even if publishing fails half-way.
        kept.next_number = number + 1;
        let used: BTreeSet<FileId> = spaces.iter().flat_map(|s| s.filed().map(|p| p.file)).collect();
        let old = kept.current.iter().flat_map(|c| c.files.iter().cloned());
        let files = old.chain(self.sealed.iter().map(|s| s.entry.clone())).filter(|f| used.contains(&f.id)).collect();
        Checkpoint {
            number,
            position: self.position,
            committed_at: self.committed_at,
            next_file: kept.next_file,
            files,
            spaces,
        }
    }

    fn checkpoint_space(&self, core: &Core, partition: &Partition, planned: &PlannedSpace) -> CheckpointSpace {
        let state = planned.space.state();
        let last_generation = planned.last_generation();
        // What was lost behind it, the replay finds again.
        let lost = state.lost.into_iter().filter(|(first, _)| *first <= last_generation).collect();
        let (parts, history) = self.new_files(planned, &planned.view);
        let places = |parts: &[SealedPart]| -> Vec<FilePart> {
            parts.iter().filter(|p| p.place.rows > 0).map(|p| p.place).collect()
        };
        let (parts, history) = (places(&parts), places(&history));
        let through = parts.iter().chain(&history).map(|p| p.last).max().unwrap_or_default();
        CheckpointSpace {
            id: planned.space.options.id,
            last_generation,
            sealed_through: state.sealed_through.max(through),
            incarnation: state.incarnation,
            parts,
            history,
            lost,
            degraded: state.degraded,
            deaths: deaths(&planned.space, state.unplaced, last_generation),
            sessions: sessions(core, partition, &planned.space),
            history_from: state.history_from,
            inside: state.inside.each().collect(),
            ended: state.ended.each().collect(),
            quarantined: quarantined_upto(&state.quarantined, last_generation),
            purging: state.purging.into_iter().filter(|(_, death)| *death <= last_generation).collect(),
            changes: planned.space.changes().into_iter().filter(|(g, _)| *g <= last_generation).collect(),
        }
    }

    /// The space's sealed parts and its history after this job: what `old` holds, less what is replaced, and the new ones.
    fn new_files(&self, planned: &PlannedSpace, old: &View) -> (Vec<SealedPart>, Vec<SealedPart>) {
        let id = planned.space.options.id;
        let stay = |parts: &[SealedPart]| -> Vec<SealedPart> {
            parts.iter().filter(|p| !planned.replaced.contains(&p.place.file)).cloned().collect()
        };
        let (mut parts, mut history) = (stay(old.sealed()), stay(old.history()));
        for sealed in &self.sealed {
            let Some((_, first, last, rows)) = sealed.summary.spaces.iter().find(|s| s.0 == id).copied() else {
                continue;
            };
            let Ok(source) = sealed.file.rows_of(id) else {
                continue;
            };
            let place = FilePart { file: sealed.entry.id, first, last, rows };
            let file = Some(Arc::clone(&sealed.file));
            let deaths = Arc::new(Deaths::new(source.rows()));
            let to = if sealed.history { &mut history } else { &mut parts };
            to.push(SealedPart { place, file, bytes: source.bytes(), rows: Arc::new(source), sound: true, deaths });
        }
        for lost in planned.view.tail().take(planned.take).filter(|p| !p.sound) {
            let place = FilePart { file: FileId(0), first: lost.rows.first(), last: lost.rows.last(), rows: 0 };
            let (rows, deaths) = (Arc::clone(&lost.rows), Arc::clone(&lost.deaths));
            parts.push(SealedPart { place, file: None, rows, bytes: 0, sound: false, deaths });
        }
        parts.sort_by_key(|p| p.place.first);
        history.sort_by_key(|p| p.place.first);
        (parts, history)
    }

    fn install(&self, clock: u64) {
        for planned in self.spaces.iter().filter(|p| p.take > 0 || !p.replaced.is_empty()) {
            let now = planned.space.view();
            planned.space.install(self.new_files(planned, &now), planned.take, clock);
        }
    }

    /// Removes what neither kept checkpoint needs.
    fn free_job(&self, partition: &Partition) -> Job {
        let kept = partition.kept.lock();
        let (oldest, named, damaged) = (kept.oldest_position(), kept.needed_files(), kept.damaged);
        let keep_from = kept.previous.as_ref().map_or(0, |c| c.number);
        let current = kept.current.as_ref().map_or(0, |c| c.next_file);
        drop(kept);
        let (dir, freed) = (partition.dir.clone(), Arc::clone(&self.freed));
        Box::new(move |files| {
            let log = format!("{dir}/log");
            for entry in files.list(&log)? {
                let number = entry.name.strip_suffix(".log").and_then(|n| n.parse::<u64>().ok());
                if !damaged && number.is_some_and(|n| n < oldest.segment) {
                    freed.lock().push((format!("{log}/{}", entry.name), entry.bytes));
                }
            }
            let (checkpoints, _) = list_checkpoints(files, &dir).map_err(|e| std::io::Error::other(e.to_string()))?;
            for (number, _) in checkpoints.into_iter().filter(|(n, _)| *n < keep_from && !damaged) {
                files.remove(&checkpoint_path(&dir, number))?;
            }
            let rows = format!("{dir}/rows");
            for entry in files.list(&rows)? {
                let Some(id) = rows_id(&entry.name) else {
                    continue;
                };
                if !damaged && !named.contains(&id) && id.0 < current {
                    files.remove(&format!("{rows}/{}", entry.name))?;
                }
            }
            Ok(Output::Nothing)
        })
    }

    /// Nothing was decided yet but the files: another job may go before the next step. From the checkpoint on none may.
    pub(super) fn writes_files(&self) -> bool {
        matches!(self.stage, Stage::Files)
    }

    pub(super) fn merges(&self) -> bool {
        self.merge
    }

    /// A source could not be read.
    pub(super) fn note_damage(&self, error: &Error) {
        self.spaces.iter().filter(|p| !p.replaced.is_empty()).for_each(|p| p.space.note_damage(error));
    }

    /// After a failure: the half-written file goes. Whole ones stay, and stay protected, if a checkpoint that was to name them may be on
    /// the disk: only the next start knows.
    pub(super) fn abandon(&self, core: &Core) -> Option<Job> {
        let ours = |id| self.outputs.iter().any(|o| o.id == id) || self.sealed.iter().any(|s| s.entry.id == id);
        let mut kept = core.partitions[self.partition].kept.lock();
        kept.coming.retain(|id| !ours(*id));
        if let Stage::Checkpoint(checkpoint) = &self.stage {
            let files = kept.doubtful.take().map(|(_, files)| files).unwrap_or_default();
            let ours = self.sealed.iter().map(|s| s.entry.id);
            kept.doubtful = Some((checkpoint.number, files.into_iter().chain(ours).collect()));
        }
        drop(kept);
        let output = self.outputs.front()?;
        let tmp = format!("{}.tmp", rows_path(&core.partitions[self.partition].dir, output.id));
        Some(Box::new(move |files| files.remove(&tmp).map(|()| Output::Nothing)))
    }
}

fn quarantined_upto(all: &[Quarantined], upto: Generation) -> Vec<Quarantined> {
    all.iter().filter(|q| q.last() <= upto).cloned().collect()
}

/// Who is dead at `upto`, read from the view of now: later deaths are told by their generation.
fn deaths(space: &Space, unplaced: Vec<(Generation, Generation)>, upto: Generation) -> Vec<(Generation, Generation)> {
    let mut all = space.view().deaths(upto);
    if !unplaced.is_empty() {
        all.extend(unplaced.into_iter().filter(|(_, death)| *death <= upto));
        all.sort_unstable();
        all.dedup_by_key(|(row, _)| *row);
    }
    all
}

/// The sessions, as far as the log has them on the disk: what is replayed on top of it is told by its sequence. The windows are copied
/// first, then the log is asked how far it is: a run that was merged since would seem to be further than the disk.
fn sessions(core: &Core, partition: &Partition, space: &Space) -> Vec<CheckpointSession> {
    let copied = space.sessions.all().into_iter().map(|session| {
        let section = session.section();
        let (epoch, used_at, window) = (section.epoch, section.used_at, section.window.clone());
        drop(section);
        (session, epoch, used_at, window)
    });
    let copied: Vec<_> = copied.collect();
    let synced = if copied.is_empty() { 0 } else { partition.with_writer(core, |w| w.log.synced().offset) };
    let of = |(session, epoch, used_at, window): (Arc<Speaker>, u64, i64, Window)| {
        let (committed, runs) = window.durable(synced);
        CheckpointSession {
            id: session.id,
            priority: session.priority.code(),
            principal: session.principal.clone(),
            epoch,
            committed,
            used_at,
            runs: runs.iter().map(|r| (r.first, r.count, r.generation)).collect(),
        }
    };
    copied.into_iter().map(of).collect()
}

fn count(counter: &std::sync::atomic::AtomicU64, output: &Output) {
    if let Output::Count(bytes) = output {
        counter.fetch_add(*bytes, std::sync::atomic::Ordering::Relaxed);
    }
}
