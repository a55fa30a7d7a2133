//! Where replay starts and which sealed files stand for what is before (D9). A small file per checkpoint; the two newest are kept.

use std::io;

use super::format::{small_file, small_file_body};
use super::quarantine::{QUARANTINED_MIN, Quarantined};
use crate::env::{Files, Output, Site};
use crate::error::Error;
use crate::types::codec::{Cursor, Seed, StampError, put_u32, put_u64, put_varint};
use crate::types::{FileId, Generation, LogPosition, PartitionId, SessionId, SpaceId};

const MAGIC: &[u8; 4] = b"ECKP";
/// 2 added history files and the ends of batches whose last row was purged.
const VERSION: u16 = 2;

/// A sealed file as the checkpoint knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFile {
    pub id: FileId,
    pub bytes: u64,
    pub header_checksum: u64,
    pub tier: u32,
    /// Holds several spaces.
    pub shared: bool,
}

/// The rows of one space in one sealed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePart {
    pub file: FileId,
    pub first: Generation,
    pub last: Generation,
    pub rows: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointSpace {
    pub id: SpaceId,
    /// The last generation that everything before the position, or sealed, has used.
    pub last_generation: Generation,
    /// Replay skips records up to here.
    pub sealed_through: Generation,
    pub incarnation: u64,
    pub parts: Vec<FilePart>,
    /// Generations the log lost to damage, and why the space is degraded.
    pub lost: Vec<(Generation, Generation)>,
    pub degraded: Option<String>,
    /// Rows of the parts that died at or before `last_generation`, and when, in order of the rows.
    pub deaths: Vec<(Generation, Generation)>,
    /// Generations without a row, and when they were committed, as far back as `as_of` reaches.
    pub changes: Vec<(Generation, i64)>,
    pub sessions: Vec<CheckpointSession>,
    /// What died at or before is not kept; `as_of` reaches back to here.
    pub history_from: Generation,
    /// Rows whose bytes are to be removed, and when they died.
    pub purging: Vec<(Generation, Generation)>,
    /// Batches up to `last_generation` that could not be applied.
    pub quarantined: Vec<Quarantined>,
    /// Ranges of generations inside a batch that no row says it of any more.
    pub inside: Vec<(Generation, Generation)>,
    /// Ranges of generations whose rows ended a batch and are no more.
    pub ended: Vec<(Generation, Generation)>,
    /// Rows that died before `last_generation`: only `as_of` and older snapshots read them. Their ranges may overlap.
    pub history: Vec<FilePart>,
}

/// A session as far as the log has it on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointSession {
    pub id: SessionId,
    pub priority: u8,
    pub principal: String,
    pub epoch: u64,
    pub committed: u64,
    pub used_at: i64,
    /// First sequence, count, first generation.
    pub runs: Vec<(u64, u64, Generation)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    pub number: u64,
    pub position: LogPosition,
    pub committed_at: i64,
    pub next_file: u64,
    pub files: Vec<CheckpointFile>,
    pub spaces: Vec<CheckpointSpace>,
}

pub fn checkpoint_path(dir: &str, number: u64) -> String {
    format!("{dir}/checkpoint-{number:010}")
}

impl Checkpoint {
    pub fn encode(&self, seed: Seed, partition: PartitionId) -> Vec<u8> {
        let mut body = Vec::new();
        let p = &self.position;
        for v in [p.offset, p.segment, p.epoch, p.chain, self.committed_at.cast_unsigned(), self.next_file] {
            put_u64(&mut body, v);
        }
        put_u32(&mut body, self.files.len() as u32);
        for f in &self.files {
            for v in [f.id.0, f.bytes, f.header_checksum] {
                put_u64(&mut body, v);
            }
            put_u32(&mut body, f.tier);
            put_u32(&mut body, u32::from(f.shared));
        }
        put_u32(&mut body, self.spaces.len() as u32);
        for s in &self.spaces {
            s.encode(&mut body);
        }
        small_file((MAGIC, VERSION), seed, partition, self.number, &body)
    }

    pub fn decode(bytes: &[u8], seed: Seed, partition: PartitionId, number: u64) -> Result<Self, StampError> {
        let (version, body) = small_file_body(bytes, (MAGIC, VERSION), seed, partition, number)?;
        Self::body(Cursor::new(body), version, number).ok_or(StampError::Damaged)
    }

    fn body(mut c: Cursor<'_>, version: u16, number: u64) -> Option<Self> {
        let (offset, segment, epoch, chain) = (c.u64()?, c.u64()?, c.u64()?, c.u64()?);
        let (committed_at, next_file) = (c.i64()?, c.u64()?);
        let files = (0..c.count(32)?)
            .map(|_| {
                Some(CheckpointFile {
                    id: FileId(c.u64()?),
                    bytes: c.u64()?,
                    header_checksum: c.u64()?,
                    tier: c.u32()?,
                    shared: c.u32()? != 0,
                })
            })
            .collect::<Option<_>>()?;
        let spaces = (0..c.count(76)?).map(|_| CheckpointSpace::decode(&mut c, version)).collect::<Option<_>>()?;
        let position = LogPosition { offset, segment, epoch, chain };
        (c.remaining() == 0).then_some(Self { number, position, committed_at, next_file, files, spaces })
    }

    /// Puts the checkpoint in its place: temporary name, sync, rename, directory sync.
    pub fn publish(bytes: &[u8], dir: &str, number: u64, files: &dyn Files) -> io::Result<Output> {
        let path = checkpoint_path(dir, number);
        let tmp = format!("{path}.tmp");
        let file = files.create(&tmp)?;
        file.write_at(0, &[bytes])?;
        file.sync(Site::CheckpointSync)?;
        files.rename(&tmp, &path, Site::CheckpointRename)?;
        files.sync_dir(dir, Site::CheckpointDir)?;
        Ok(Output::Count(bytes.len() as u64))
    }
}

impl CheckpointSpace {
    /// Its rows in files.
    pub fn filed(&self) -> impl Iterator<Item = &FilePart> {
        self.parts.iter().chain(&self.history)
    }

    fn encode(&self, body: &mut Vec<u8>) {
        for v in [self.id.0, self.last_generation.0, self.sealed_through.0, self.incarnation] {
            put_u64(body, v);
        }
        put_parts(body, &self.parts);
        put_pairs(body, &self.lost);
        let reason = self.degraded.as_deref().unwrap_or("");
        put_u32(body, reason.len() as u32);
        body.extend_from_slice(reason.as_bytes());
        let alike = |a: &(Generation, Generation), b: &(Generation, Generation)| a.0.0 + 1 == b.0.0 && a.1 == b.1;
        let runs: Vec<&[(Generation, Generation)]> = self.deaths.chunk_by(alike).collect();
        put_u32(body, runs.len() as u32);
        let mut end = 0;
        for run in runs {
            let (first, death) = run[0];
            // A row dies after it was born.
            for v in [first.0 - end, run.len() as u64, death.0 - first.0] {
                put_varint(body, v);
            }
            end = first.0 + run.len() as u64;
        }
        put_u32(body, self.changes.len() as u32);
        for (generation, at) in &self.changes {
            put_u64(body, generation.0);
            put_u64(body, at.cast_unsigned());
        }
        put_u32(body, self.sessions.len() as u32);
        self.sessions.iter().for_each(|s| s.encode(body));
        put_u64(body, self.history_from.0);
        put_pairs(body, &self.purging);
        put_u32(body, self.quarantined.len() as u32);
        self.quarantined.iter().for_each(|q| q.encode(body));
        put_pairs(body, &self.inside);
        put_pairs(body, &self.ended);
        put_parts(body, &self.history);
    }

    fn decode(c: &mut Cursor<'_>, version: u16) -> Option<Self> {
        let (id, last, sealed, incarnation) = (SpaceId(c.u64()?), c.u64()?, c.u64()?, c.u64()?);
        let parts = take_parts(c)?;
        let lost = take_pairs(c)?;
        let reason = c.count(1)?;
        let reason = std::str::from_utf8(c.take(reason)?).ok()?.to_owned();
        let (mut deaths, mut end) = (Vec::new(), 0u64);
        for _ in 0..c.count(3)? {
            let first = end.checked_add(c.varint()?)?;
            end = first.checked_add(c.varint()?)?;
            let death = Generation(first.checked_add(c.varint()?)?);
            deaths.extend((first..end).map(|row| (Generation(row), death)));
        }
        let changes = (0..c.count(16)?).map(|_| Some((Generation(c.u64()?), c.i64()?))).collect::<Option<_>>()?;
        let sessions = (0..c.count(41)?).map(|_| CheckpointSession::decode(c)).collect::<Option<_>>()?;
        let history_from = Generation(c.u64()?);
        let purging = take_pairs(c)?;
        let quarantined = (0..c.count(QUARANTINED_MIN)?).map(|_| Quarantined::decode(c)).collect::<Option<_>>()?;
        let inside = take_pairs(c)?;
        let (ended, history) = if version < 2 { Default::default() } else { (take_pairs(c)?, take_parts(c)?) };
        Some(Self {
            id,
            last_generation: Generation(last),
            sealed_through: Generation(sealed),
            incarnation,
            parts,
            lost,
            degraded: (!reason.is_empty()).then_some(reason),
            deaths,
            changes,
            sessions,
            history_from,
            purging,
            quarantined,
            inside,
            ended,
            history,
        })
    }
}

fn put_pairs(body: &mut Vec<u8>, pairs: &[(Generation, Generation)]) {
    put_u32(body, pairs.len() as u32);
    for (a, b) in pairs {
        put_u64(body, a.0);
        put_u64(body, b.0);
    }
}

fn take_pairs(c: &mut Cursor<'_>) -> Option<Vec<(Generation, Generation)>> {
    (0..c.count(16)?).map(|_| Some((Generation(c.u64()?), Generation(c.u64()?)))).collect()
}

fn put_parts(body: &mut Vec<u8>, parts: &[FilePart]) {
    put_u32(body, parts.len() as u32);
    for part in parts {
        for v in [part.file.0, part.first.0, part.last.0, part.rows] {
            put_u64(body, v);
        }
    }
}

fn take_parts(c: &mut Cursor<'_>) -> Option<Vec<FilePart>> {
    let part = |c: &mut Cursor<'_>| {
        let (file, first) = (FileId(c.u64()?), Generation(c.u64()?));
        Some(FilePart { file, first, last: Generation(c.u64()?), rows: c.u64()? })
    };
    (0..c.count(32)?).map(|_| part(c)).collect()
}

impl CheckpointSession {
    fn encode(&self, body: &mut Vec<u8>) {
        for v in [self.id.0, self.epoch, self.committed, self.used_at.cast_unsigned()] {
            put_u64(body, v);
        }
        body.push(self.priority);
        put_u32(body, self.principal.len() as u32);
        body.extend_from_slice(self.principal.as_bytes());
        put_u32(body, self.runs.len() as u32);
        for (first, count, generation) in &self.runs {
            for v in [*first, *count, generation.0] {
                put_u64(body, v);
            }
        }
    }

    fn decode(c: &mut Cursor<'_>) -> Option<Self> {
        let (id, epoch, committed, used_at, priority) = (SessionId(c.u64()?), c.u64()?, c.u64()?, c.i64()?, c.u8()?);
        let principal = c.count(1)?;
        let principal = std::str::from_utf8(c.take(principal)?).ok()?.to_owned();
        let runs =
            (0..c.count(24)?).map(|_| Some((c.u64()?, c.u64()?, Generation(c.u64()?)))).collect::<Option<_>>()?;
        Some(Self { id, priority, principal, epoch, committed, used_at, runs })
    }
}

/// Checkpoints in `dir`, newest first, and the temporary files a crash left.
pub fn list_checkpoints(files: &dyn Files, dir: &str) -> Result<(Vec<(u64, String)>, Vec<String>), Error> {
    let (mut found, mut leftovers) = (Vec::new(), Vec::new());
    for entry in files.list(dir).map_err(|e| Error::io(dir, &e))? {
        let Some(rest) = entry.name.strip_prefix("checkpoint-") else {
            continue;
        };
        let path = format!("{dir}/{}", entry.name);
        match rest.parse::<u64>() {
            Ok(number) => found.push((number, path)),
            Err(_) if rest.ends_with(".tmp") => leftovers.push(path),
            // Somebody else's file.
            Err(_) => {}
        }
    }
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok((found, leftovers))
}

#[cfg(test)]
mod tests {
    use super::super::record::Said;
    use super::*;

    #[test]
    fn every_bit_of_a_checkpoint_counts() {
        let seed = Seed::new(&[3; 16]);
        let checkpoint = Checkpoint {
            number: 7,
            position: LogPosition { offset: 1024, segment: 2, epoch: 1, chain: 5 },
            committed_at: -3,
            next_file: 4,
            files: vec![CheckpointFile { id: FileId(3), bytes: 9, header_checksum: 8, tier: 1, shared: true }],
            spaces: vec![CheckpointSpace {
                id: SpaceId(1),
                last_generation: Generation(10),
                sealed_through: Generation(9),
                incarnation: 6,
                parts: vec![FilePart { file: FileId(3), first: Generation(1), last: Generation(9), rows: 9 }],
                lost: vec![(Generation(4), Generation(5))],
                degraded: Some("log".to_owned()),
                deaths: [(1, 9), (2, 9), (3, 5), (7, 10), (8, 10)]
                    .map(|(a, b)| (Generation(a), Generation(b)))
                    .to_vec(),
                changes: vec![(Generation(10), -7)],
                sessions: vec![CheckpointSession {
                    id: SessionId(8),
                    priority: 2,
                    principal: "ä".to_owned(),
                    epoch: 3,
                    committed: 30,
                    used_at: -1,
                    runs: vec![(1, 5, Generation(2)), (6, 25, Generation(9))],
                }],
                history_from: Generation(4),
                purging: vec![(Generation(2), Generation(9))],
                quarantined: vec![Quarantined {
                    first: Generation(6),
                    count: 2,
                    at: -9,
                    said: Said { session: SessionId(8), first: 3 },
                    superseded: vec![(Generation(7), Generation(2))],
                    reason: "a panic: \u{e4}".to_owned(),
                }],
                inside: vec![(Generation(4), Generation(6))],
                ended: vec![(Generation(7), Generation(7))],
                history: vec![FilePart { file: FileId(2), first: Generation(2), last: Generation(8), rows: 3 }],
            }],
        };
        let mut bytes = checkpoint.encode(seed, PartitionId(1));
        let decode = |bytes: &[u8], n| Checkpoint::decode(bytes, seed, PartitionId(1), n).ok();
        assert_eq!(decode(&bytes, 7), Some(checkpoint));
        assert_eq!(decode(&bytes, 8), None, "misplaced");
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes, 7), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut], 7), None);
        }
    }
}
