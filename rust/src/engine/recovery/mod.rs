//! What a partition's files say (D2, D3, D6): checkpoint, sealed files, then the log from the checkpoint's position. Only reads, so that
//! `open` and `verify` see the same; `careful` applies what was read.

mod careful;
mod replayed;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) use careful::{Careful, end_note};
pub(super) use replayed::Replayed;
use replayed::{Deed, lost_tail};

use super::catalogue::Known;
use super::maintenance::{Kept, rows_id, rows_path};
use super::open::Damage;
use crate::env::Files;
use crate::error::Error;
use crate::records::{RowSource, SealedFile};
use crate::store::{DamagedRows, Deaths, SealedPart, SpaceState, image_id, images_dir};
use crate::types::codec::Seed;
use crate::types::{FileId, Generation, PartitionId, SessionId, SpaceId};
use crate::wal::{
    Checkpoint, CheckpointSpace, FilePart, ForgetRecord, GroupAt, ObserveRecord, QuarantineRecord, Record, Recovered,
    Spare, VoidRecord, list_checkpoints, partition_dir, recover,
};

pub(super) struct PartitionState {
    pub(super) id: PartitionId,
    pub(super) dir: String,
    pub(super) spaces: BTreeMap<SpaceId, Replayed>,
    pub(super) log: Recovered,
    pub(super) kept: Kept,
    pub(super) damage: Vec<Damage>,
    /// Files nothing refers to: `.tmp` files and sealed files of no kept checkpoint.
    pub(super) leftovers: Vec<String>,
    pub(super) ended_clean: bool,
    pub(super) ended_closed: bool,
    pub(super) poisoned: bool,
    /// Batches that could not be applied this time: to be logged before anything else.
    pub(super) caught: Vec<QuarantineRecord>,
    /// This start has left a note, to be removed when that is on the disk.
    pub(super) noted: bool,
}

struct Reader<'a> {
    files: &'a dyn Files,
    seed: Seed,
    id: PartitionId,
    dir: String,
    known: &'a Known,
    damage: Vec<Damage>,
    spaces: BTreeMap<SpaceId, Replayed>,
    opened: BTreeMap<FileId, Result<Arc<SealedFile>, Error>>,
    ended_clean: bool,
    ended_closed: bool,
}

pub(super) fn read_partition(
    files: &dyn Files,
    seed: Seed,
    id: PartitionId,
    known: &Known,
    careful: Careful,
) -> Result<PartitionState, Error> {
    let dir = partition_dir(id);
    let mut reader = Reader {
        files,
        seed,
        id,
        dir: dir.clone(),
        known,
        damage: Vec::new(),
        spaces: BTreeMap::new(),
        opened: BTreeMap::new(),
        ended_clean: true,
        ended_closed: true,
    };
    let (mut kept, mut leftovers) = reader.checkpoints()?;
    reader.check_known(kept.current.as_ref())?;
    reader.seat_spaces(kept.current.as_ref())?;
    let from = kept.current.as_ref().map(|c| c.position);
    let log_dir = format!("{dir}/log");
    let mut log = recover(files, &log_dir, seed, id, from, &mut |group| reader.replay(group))?;
    if known.is_empty() && !log.segments.is_empty() {
        return Err(Error::corrupted("catalogue/log", 0, format!("the catalogue is empty, but {log_dir} is not")));
    }
    if log.groups == 0 && log.last_run.is_some() {
        // A run wrote, and nothing of its end is here to say how it ended.
        (reader.ended_clean, reader.ended_closed) = (false, false);
    }
    if let Some(checkpoint) = &kept.current {
        log.committed_at = log.committed_at.max(checkpoint.committed_at);
    }
    let (caught, noted) = careful.apply(files, seed, (id, &dir), &mut reader.spaces, log.committed_at)?;
    reader.judge(&log);
    leftovers.extend(reader.stray_rows(&mut kept)?);
    leftovers.extend(reader.stray_images()?);
    // A run was killed before it had removed all that its checkpoint freed.
    let freed = log.segments.iter().filter(|(_, h)| h.number < kept.oldest_position().segment);
    log.leftovers.extend(freed.map(|(path, h)| Spare { path: path.clone(), bytes: h.bytes }));
    kept.damaged = !reader.damage.is_empty();
    kept.drops = u32::from(kept.damaged);
    let poisoned = files.list(&dir).map_err(|e| Error::io(&dir, &e))?.iter().any(|e| e.name == "poisoned");
    Ok(PartitionState {
        id,
        dir,
        spaces: reader.spaces,
        log,
        kept,
        damage: reader.damage,
        leftovers,
        ended_clean: reader.ended_clean,
        ended_closed: reader.ended_closed,
        poisoned,
        caught,
        noted,
    })
}

impl Reader<'_> {
    fn report(&mut self, error: &Error, space: Option<&str>, lost: Option<(Generation, Generation)>) {
        self.damage.push(Damage::of(error, space, lost));
    }

    /// The two newest checkpoints that can be read.
    fn checkpoints(&mut self) -> Result<(Kept, Vec<String>), Error> {
        let (found, leftovers) = list_checkpoints(self.files, &self.dir)?;
        let mut valid = Vec::new();
        let mut kept = Kept { next_number: found.first().map_or(1, |(n, _)| n + 1), ..Kept::default() };
        for (number, path) in &found {
            let bytes = self.files.read(path).map_err(|e| Error::io(path, &e))?;
            match Checkpoint::decode(&bytes, self.seed, self.id, *number) {
                Ok(checkpoint) => valid.push(checkpoint),
                Err(stamp) => match stamp.into_error(path) {
                    error @ Error::UnsupportedVersion { .. } => return Err(error),
                    _ => self.report(&Error::corrupted(path, 0, "the checkpoint is damaged"), None, None),
                },
            }
        }
        let mut valid = valid.into_iter();
        kept.current = valid.next();
        kept.previous = valid.next();
        kept.next_file = kept.current.iter().chain(&kept.previous).map(|c| c.next_file).max().unwrap_or(1);
        Ok((kept, leftovers))
    }

    /// A checkpoint lists only spaces that the catalogue knows, living or dropped.
    fn check_known(&self, checkpoint: Option<&Checkpoint>) -> Result<(), Error> {
        let unknown = |id: &SpaceId| !self.known.live.contains_key(id) && !self.known.dropped.contains(id);
        match checkpoint.into_iter().flat_map(|c| &c.spaces).map(|s| s.id).find(unknown) {
            None => Ok(()),
            Some(id) => {
                let reason = format!("it does not know space {id}, which a checkpoint of {} lists", self.dir);
                Err(Error::corrupted("catalogue/log", 0, reason))
            }
        }
    }

    /// Every live space of the partition, as the checkpoint has it.
    fn seat_spaces(&mut self, checkpoint: Option<&Checkpoint>) -> Result<(), Error> {
        let known = self.known;
        let mut by_id: BTreeMap<SpaceId, &CheckpointSpace> = BTreeMap::new();
        by_id.extend(checkpoint.into_iter().flat_map(|c| c.spaces.iter().map(|s| (s.id, s))));
        let id = self.id;
        for options in known.live.values().filter(|o| o.partition == id) {
            let mut seat = Replayed::new(options.clone());
            if let (Some(entry), Some(checkpoint)) = (by_id.get(&options.id), checkpoint) {
                seat.state = SpaceState {
                    last_generation: entry.last_generation,
                    sealed_through: entry.sealed_through,
                    incarnation: entry.incarnation,
                    lost: entry.lost.clone(),
                    degraded: entry.degraded.clone(),
                    inside: entry.inside.iter().copied().collect(),
                    ended: entry.ended.iter().copied().collect(),
                    ..SpaceState::default()
                };
                seat.delta.history_from = entry.history_from;
                seat.quarantined.clone_from(&entry.quarantined);
                seat.delta.purging.clone_from(&entry.purging);
                seat.delta.deaths.clone_from(&entry.deaths);
                seat.delta.changes.clone_from(&entry.changes);
                seat.seat_sessions(&entry.sessions);
                seat.last = entry.last_generation.max(entry.sealed_through);
                seat.covered = seat.last;
                seat.sealed = self.sealed_parts(&options.name, entry, checkpoint)?;
                let history = entry.history.iter();
                seat.history = history
                    .map(|place| self.part(&options.name, entry, checkpoint, place, true))
                    .collect::<Result<_, _>>()?;
            }
            self.spaces.insert(options.id, seat);
        }
        Ok(())
    }

    fn sealed_parts(
        &mut self,
        name: &str,
        entry: &CheckpointSpace,
        checkpoint: &Checkpoint,
    ) -> Result<Vec<SealedPart>, Error> {
        let parts = entry.parts.iter().map(|place| self.part(name, entry, checkpoint, place, false));
        let mut parts = parts.collect::<Result<Vec<_>, _>>()?;
        for (first, last) in &entry.lost {
            let reason = entry.degraded.clone().unwrap_or_default();
            parts.push(lost_part(name, *first, *last, &reason));
        }
        parts.sort_by_key(|p| p.place.first);
        Ok(parts)
    }

    /// A space's rows in one file, or what stands for them.
    fn part(
        &mut self,
        name: &str,
        entry: &CheckpointSpace,
        checkpoint: &Checkpoint,
        place: &FilePart,
        history: bool,
    ) -> Result<SealedPart, Error> {
        let (files, seed, id, dir) = (self.files, self.seed, self.id, &self.dir);
        let expected = checkpoint.files.iter().find(|f| f.id == place.file);
        let expected = expected.map(|f| (f.bytes, f.header_checksum));
        let open = || SealedFile::open(files, &rows_path(dir, place.file), seed, id, place.file, expected);
        let file = self.opened.entry(place.file).or_insert_with(open).clone();
        match file.clone().and_then(|f| f.rows_of(entry.id)) {
            Ok(rows) => {
                let (bytes, deaths) = (rows.bytes(), Arc::new(Deaths::new(rows.rows())));
                Ok(SealedPart { place: *place, file: file.ok(), rows: Arc::new(rows), bytes, sound: true, deaths })
            }
            // The machine's trouble is no damage: nothing is started half-blind.
            Err(error) if !matches!(error, Error::Corrupted { .. }) => Err(error),
            Err(error) => {
                self.report(&error, Some(name), Some((place.first, place.last)));
                let rows = Arc::new(DamagedRows::new(place.first, place.last, error));
                let deaths = if history { Deaths::unknown(entry.last_generation) } else { Deaths::new(0) };
                Ok(SealedPart { place: *place, file: None, rows, bytes: 0, sound: false, deaths: Arc::new(deaths) })
            }
        }
    }

    fn replay(&mut self, group: &GroupAt) -> Result<(), Error> {
        self.ended_clean = false;
        self.ended_closed = false;
        for record in Record::all(group.body(), &group.path)? {
            match record {
                Record::Observe(observe) => self.observe(group, observe)?,
                Record::Void(void) => self.void(group, void)?,
                Record::Forget(forget) => self.forget(group, forget)?,
                Record::Purged(purged) => {
                    if let Some(seat) = self.seat(group, purged.space)? {
                        seat.note(Deed::Purged(purged.ids), group);
                    }
                }
                Record::Quarantine(record) => {
                    if let Some(seat) = self.seat(group, record.space)?
                        && !seat.quarantined.iter().any(|q| q.first == record.batch.first)
                    {
                        seat.quarantined.push(record.batch);
                    }
                }
                Record::Session(session) => {
                    if let Some(seat) = self.seat(group, session.space)? {
                        seat.turn(session, group.header.committed_at);
                    }
                }
                Record::Expiry(expiry) => {
                    if let Some(seat) = self.seat(group, expiry.space)? {
                        seat.delta.history_from = seat.delta.history_from.max(expiry.history);
                        expiry.sessions.into_iter().for_each(|id| seat.end(id));
                    }
                }
                Record::Close(close) => (self.ended_clean, self.ended_closed) = (close.clean, true),
                Record::Create(_) | Record::Quota(_) | Record::Drop(_) => {
                    let reason = "a catalogue record in a partition's log";
                    return Err(Error::corrupted(&group.path, group.header.offset, reason));
                }
            }
        }
        Ok(())
    }

    fn seat(&mut self, group: &GroupAt, space: SpaceId) -> Result<Option<&mut Replayed>, Error> {
        if self.known.dropped.contains(&space) {
            return Ok(None);
        }
        match self.spaces.get_mut(&space) {
            Some(seat) => {
                seat.seen_at = group.header.offset;
                Ok(Some(seat))
            }
            None => {
                let reason = format!("a record of space {space}, which the catalogue does not know");
                Err(Error::corrupted(&group.path, group.header.offset, reason))
            }
        }
    }

    fn observe(&mut self, group: &GroupAt, record: ObserveRecord<'_>) -> Result<(), Error> {
        let Some(seat) = self.seat(group, record.space)? else {
            return Ok(());
        };
        let first = record.first_generation;
        let count = record.hashes.len() as u64;
        let last = Generation(first.0 + count - 1);
        let fresh = last > seat.covered;
        if fresh {
            // First: what is missing of the space is missing of its sessions too.
            seat.expect(first, group)?;
        }
        seat.said(record.said, count, first, group)?;
        if !fresh {
            return Ok(());
        }
        seat.last = last;
        let frame = Arc::new(record.frame.to_vec());
        let ObserveRecord { hashes, said, supersedes, continues, .. } = record;
        seat.note(Deed::Rows { frame, hashes, said, first, supersedes, continues }, group);
        Ok(())
    }

    fn forget(&mut self, group: &GroupAt, record: ForgetRecord) -> Result<(), Error> {
        let Some(seat) = self.seat(group, record.space)? else {
            return Ok(());
        };
        if record.generation <= seat.last {
            // The checkpoint has it: its deaths are those of `last_generation`.
            return Ok(());
        }
        seat.expect(record.generation, group)?;
        seat.last = record.generation;
        let ForgetRecord { generation, ids, purge, .. } = record;
        seat.note(Deed::Forget { generation, ids, purge }, group);
        Ok(())
    }

    fn void(&mut self, group: &GroupAt, record: VoidRecord) -> Result<(), Error> {
        let Some(seat) = self.seat(group, record.space)? else {
            return Ok(());
        };
        let (first, count) = (record.first_generation, record.count);
        let last = Generation(first.0 + count - 1);
        let fresh = last > seat.last;
        if fresh {
            seat.expect(first, group)?;
        }
        seat.said(record.said, count, first, group)?;
        if !fresh {
            return Ok(());
        }
        seat.last = last;
        if record.said.session != SessionId(0) {
            seat.note(Deed::Voids(first, count), group);
            return Ok(());
        }
        seat.state.incarnation = record.incarnation;
        seat.delta.ranges.push((first, last));
        Ok(())
    }

    /// After the walk: which spaces lost something, which are proven whole (D3).
    fn judge(&mut self, log: &Recovered) {
        let damaged_to = log.damage.iter().filter(|d| d.to > d.from).map(|d| d.to).max();
        for damage in &log.damage {
            self.damage.push(Damage {
                path: damage.path.clone(),
                offset: damage.file_offset,
                reason: damage.reason.clone(),
                space: None,
                lost: None,
            });
        }
        let mut found = Vec::new();
        for seat in self.spaces.values_mut() {
            let proven_whole = damaged_to.is_none_or(|to| seat.seen_at >= to) && seat.gaps.is_empty();
            if proven_whole {
                continue;
            }
            let what = log.damage.first().map_or("", |d| d.path.as_str());
            let reason = format!("part of its log is damaged ({what})");
            let name = seat.options.name.clone();
            seat.state.degraded = Some(reason.clone());
            seat.state.lost.extend(seat.gaps.iter().copied());
            let error = Error::corrupted(format!("space {name}"), 0, reason);
            for gap in &seat.gaps {
                found.push((error.clone(), name.clone(), Some(*gap)));
            }
            let known = seat.state.lost.iter().any(|(_, to)| to.0 == u64::MAX);
            if !known && damaged_to.is_some_and(|to| seat.seen_at < to) {
                // What came after its last record is not known: reads of all rows must say so.
                let open_end = (seat.last, Generation(u64::MAX));
                seat.state.lost.push(open_end);
                seat.delta.parts.push(lost_tail(&error, open_end.0, open_end.1, log.end));
                found.push((error, name, Some(open_end)));
            }
        }
        for (error, name, lost) in found {
            self.report(&error, Some(&name), lost);
        }
    }

    fn stray_rows(&mut self, kept: &mut Kept) -> Result<Vec<String>, Error> {
        let dir = format!("{}/rows", self.dir);
        let named = kept.named_files();
        let mut strays = Vec::new();
        for entry in self.files.list(&dir).map_err(|e| Error::io(&dir, &e))? {
            match rows_id(&entry.name) {
                Some(id) => {
                    kept.next_file = kept.next_file.max(id.0 + 1);
                    if !named.contains(&id) {
                        strays.push(format!("{dir}/{}", entry.name));
                    }
                }
                None if entry.name.ends_with(".tmp") => strays.push(format!("{dir}/{}", entry.name)),
                None => {}
            }
        }
        Ok(strays)
    }

    /// Images of spaces that are no more, and half-written ones.
    fn stray_images(&self) -> Result<Vec<String>, Error> {
        let dir = images_dir(&self.dir);
        let entries = match self.files.list(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| Error::io(&dir, &e))?,
        };
        let ours = |name: &str| image_id(name).is_some_and(|id| self.spaces.contains_key(&id));
        Ok(entries.into_iter().filter(|e| !ours(&e.name)).map(|e| format!("{dir}/{}", e.name)).collect())
    }
}

fn lost_part(name: &str, first: Generation, last: Generation, reason: &str) -> SealedPart {
    let error = Error::corrupted(format!("space {name}"), 0, reason);
    let place = crate::wal::FilePart { file: FileId(0), first, last, rows: 0 };
    let rows = Arc::new(DamagedRows::new(first, last, error));
    SealedPart { place, file: None, rows, bytes: 0, sound: false, deaths: Arc::new(Deaths::new(0)) }
}
