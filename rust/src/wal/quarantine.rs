//! What could not be applied (O7): what the log and checkpoints say of it, and the file that keeps its bytes for people.

use std::io;

use super::format::{small_file, small_file_body};
use super::record::{RecordKind, Said, head};
use crate::env::{Files, Output, Site};
use crate::types::codec::{Cursor, Seed, StampError, put_u32, put_u64};
use crate::types::{FORMAT_VERSION, Generation, PartitionId, SessionId, SpaceId};

const MAGIC: &[u8; 4] = b"EQUA";
/// Bytes of a reason that are kept.
const REASON_MAX: usize = 1_024;
/// The smallest one, encoded.
pub(super) const QUARANTINED_MIN: usize = 48;

/// A batch that could not be applied: its generations hold nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    pub first: Generation,
    pub count: u64,
    /// Microseconds since 1970.
    pub at: i64,
    pub said: Said,
    /// Items that had taken a key, and the memory that had it: it has it back, and who supersedes the item supersedes that memory.
    pub superseded: Vec<(Generation, Generation)>,
    pub reason: String,
}

impl Quarantined {
    pub fn holds(&self, generation: Generation) -> bool {
        (self.first.0..self.first.0 + self.count).contains(&generation.0)
    }

    pub fn last(&self) -> Generation {
        Generation(self.first.0 + self.count - 1)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for v in [self.first.0, self.count, self.at.cast_unsigned(), self.said.session.0, self.said.first] {
            put_u64(out, v);
        }
        put_u32(out, self.superseded.len() as u32);
        for (item, old) in &self.superseded {
            put_u64(out, item.0);
            put_u64(out, old.0);
        }
        let cut = (0..=self.reason.len().min(REASON_MAX)).rev().find(|i| self.reason.is_char_boundary(*i));
        let reason = &self.reason[..cut.unwrap_or(0)];
        put_u32(out, reason.len() as u32);
        out.extend_from_slice(reason.as_bytes());
    }

    pub(super) fn decode(c: &mut Cursor<'_>) -> Option<Self> {
        let (first, count, at) = (Generation(c.u64()?), c.u64()?, c.i64()?);
        let said = Said { session: SessionId(c.u64()?), first: c.u64()? };
        let pair = |c: &mut Cursor<'_>| Some((Generation(c.u64()?), Generation(c.u64()?)));
        let superseded = (0..c.count(16)?).map(|_| pair(c)).collect::<Option<_>>()?;
        let reason = c.count(1)?;
        let reason = std::str::from_utf8(c.take(reason)?).ok()?.to_owned();
        first.0.checked_add(count)?;
        Some(Self { first, count, at, said, superseded, reason })
    }
}

/// A batch before this record could not be applied (O7). Takes no generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantineRecord {
    pub space: SpaceId,
    pub batch: Quarantined,
}

impl QuarantineRecord {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        self.batch.encode(&mut payload);
        head(out, RecordKind::Quarantine, self.space, payload.len());
        out.extend_from_slice(&payload);
    }

    pub(super) fn decode(space: SpaceId, mut c: Cursor<'_>) -> Option<Self> {
        let batch = Quarantined::decode(&mut c)?;
        (c.remaining() == 0 && batch.count > 0).then_some(Self { space, batch })
    }
}

/// The batch that holds a generation; `all` are in order.
pub fn quarantined_with(all: &[Quarantined], generation: Generation) -> Option<&Quarantined> {
    let before = all.partition_point(|q| q.first <= generation);
    all[..before].last().filter(|q| q.holds(generation))
}

/// Who stands where a row would be: itself, or if it could not be applied the memory that has its key back, or nobody.
pub fn stand_in(all: &[Quarantined], mut row: Generation) -> Option<Generation> {
    while let Some(one) = quarantined_with(all, row) {
        row = one.superseded.iter().find(|(item, _)| *item == row)?.1;
    }
    Some(row)
}

/// Where the bytes of a batch are kept.
pub fn quarantine_path(space: SpaceId, first: Generation) -> String {
    format!("quarantine/{:016x}-{:016x}.records", space.0, first.0)
}

/// Keeps a batch's records as the log had them.
pub fn keep_records(
    files: &dyn Files,
    seed: Seed,
    partition: PartitionId,
    (space, first): (SpaceId, Generation),
    records: &[u8],
) -> io::Result<Output> {
    let path = quarantine_path(space, first);
    keep_aside(files, &path, &small_file((MAGIC, FORMAT_VERSION), seed, partition, first.0, records))
        .map(|()| Output::Nothing)
}

/// Puts a file into `quarantine/`, whole or not at all: half of one only takes room.
pub fn keep_aside(files: &dyn Files, path: &str, bytes: &[u8]) -> io::Result<()> {
    let tmp = format!("{path}.tmp");
    let write = || {
        let file = files.create(&tmp)?;
        file.write_at(0, &[bytes])?;
        file.sync(Site::QuarantineSync)?;
        files.rename(&tmp, path, Site::QuarantineSync)?;
        files.sync_dir("quarantine", Site::QuarantineSync)
    };
    write().inspect_err(|_| drop(files.remove(&tmp)))
}

/// The records of a kept file.
pub fn kept_records(bytes: &[u8], seed: Seed, partition: PartitionId, first: Generation) -> Result<&[u8], StampError> {
    small_file_body(bytes, (MAGIC, FORMAT_VERSION), seed, partition, first.0).map(|(_, body)| body)
}

#[cfg(test)]
mod tests {
    use super::super::record::Record;
    use super::*;

    #[test]
    fn a_record_and_a_kept_file_come_back_as_they_went() {
        let batch = Quarantined {
            first: Generation(41),
            count: 2,
            at: 5,
            said: Said { session: SessionId(6), first: 8 },
            superseded: vec![(Generation(42), Generation(3))],
            reason: "ä".repeat(REASON_MAX),
        };
        let record = QuarantineRecord { space: SpaceId(4), batch };
        let mut body = Vec::new();
        record.encode(&mut body);
        let kept = Quarantined { reason: "ä".repeat(REASON_MAX / 2), ..record.batch.clone() };
        assert_eq!(Record::all(&body, "x").unwrap(), [Record::Quarantine(QuarantineRecord { batch: kept, ..record })]);
        for cut in 1..body.len() {
            assert!(Record::all(&body[..cut], "x").is_err());
        }
        let files = crate::env::MemoryFiles::new();
        let (seed, partition, place) = (Seed::new(&[3; 16]), PartitionId(1), (SpaceId(4), Generation(41)));
        files.create_dir("quarantine").unwrap();
        keep_records(&files, seed, partition, place, &body).unwrap();
        let mut bytes = files.read(&quarantine_path(place.0, place.1)).unwrap();
        assert_eq!(kept_records(&bytes, seed, partition, place.1).ok(), Some(&body[..]));
        bytes[70] ^= 1;
        assert!(kept_records(&bytes, seed, partition, place.1).is_err());
    }

    /// O7: who superseded what could not be applied supersedes its predecessor, through any number of them.
    #[test]
    fn predecessors_stand_in() {
        let one = |first: u64, count, superseded: &[(u64, u64)]| Quarantined {
            first: Generation(first),
            count,
            at: 0,
            said: Said::default(),
            superseded: superseded.iter().map(|(a, b)| (Generation(*a), Generation(*b))).collect(),
            reason: String::new(),
        };
        let all = [one(10, 2, &[(11, 4)]), one(15, 1, &[(15, 11)])];
        let of = |row| stand_in(&all, Generation(row)).map(|g| g.0);
        assert_eq!((of(9), of(10), of(11), of(15), of(12)), (Some(9), None, Some(4), Some(4), Some(12)));
    }
}
