//! Sealed files: the immutable home of rows (T5), read where they lie.
//!
//! Opening checks header, lengths, table and directory; a block of 16 KiB is checked at its first use in the process and remembered in
//! a bitmap (Relaxed: a lost race only checks again, the bytes are immutable). Damage is an error of the read that meets it (D5),
//! never a wrong answer. A file truncated by somebody while mapped ends the process: that is outside the fault model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{BLOCK, ENDS_BATCH, FileHeader, HAS_TEXT, Run, Section, SpaceEntry};
use super::{Facts, Row, RowSource, TIME_ABSENT, VectorRun};
use crate::env::{Bytes, Files};
use crate::error::Error;
use crate::types::codec::{Cursor, Seed};
use crate::types::{FileId, Generation, PartitionId, SpaceId};

pub struct SealedFile {
    path: String,
    seed: Seed,
    partition: PartitionId,
    id: FileId,
    bytes: Bytes,
    body: u64,
    table_at: usize,
    header_checksum: u64,
    checked: Vec<AtomicU64>,
    spaces: BTreeMap<SpaceId, SpaceEntry>,
}

impl SealedFile {
    /// Opens the file numbered `id`; `expected` are its length and header checksum by the checkpoint.
    pub fn open(
        files: &dyn Files,
        path: &str,
        seed: Seed,
        partition: PartitionId,
        id: FileId,
        expected: Option<(u64, u64)>,
    ) -> Result<Arc<Self>, Error> {
        let bytes = files.open(path).and_then(|f| f.map()).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::corrupted(path, 0, "the file is missing"),
            _ => Error::io(path, &e),
        })?;
        let all = bytes.as_slice();
        let (header, sum) = FileHeader::decode(all, seed, partition, id).map_err(|e| e.into_error(path))?;
        let damaged = |at: u64, reason: &str| Err(Error::corrupted(path, at, reason));
        let whole = header.body.checked_add(header.table) == Some(all.len() as u64);
        if !whole || expected.is_some_and(|(len, sum_)| len != all.len() as u64 || sum_ != sum) {
            return damaged(0, "not the file the checkpoint names, or not its whole length");
        }
        let table_at = usize::try_from(header.body).unwrap_or(usize::MAX);
        let Some(table) = all.get(table_at..) else {
            return damaged(0, "truncated");
        };
        if FileHeader::block_checksum(seed, partition, id, u64::MAX, table) != header.table_checksum {
            return damaged(header.body, "the table of checksums is damaged");
        }
        let blocks = table_at / BLOCK;
        let mut file = Self {
            path: path.to_owned(),
            seed,
            partition,
            id,
            bytes: bytes.clone(),
            body: header.body,
            table_at,
            header_checksum: sum,
            checked: (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            spaces: BTreeMap::new(),
        };
        file.spaces = file.directory(header.directory)?;
        Ok(Arc::new(file))
    }

    fn directory(&self, place: (u64, u64)) -> Result<BTreeMap<SpaceId, SpaceEntry>, Error> {
        let mut c = Cursor::new(self.slice(place.0, place.1)?);
        let mut read = || -> Option<BTreeMap<SpaceId, SpaceEntry>> {
            let n = c.u64()?;
            (0..n).map(|_| SpaceEntry::decode(&mut c, self.body).map(|e| (e.space, e))).collect()
        };
        read().ok_or_else(|| Error::corrupted(&self.path, place.0, "the directory is damaged"))
    }

    pub fn id(&self) -> FileId {
        self.id
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn len(&self) -> u64 {
        self.bytes.as_slice().len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.spaces.is_empty()
    }

    pub fn header_checksum(&self) -> u64 {
        self.header_checksum
    }

    pub fn spaces(&self) -> impl Iterator<Item = SpaceId> + '_ {
        self.spaces.keys().copied()
    }

    /// The bytes [at, at + len), their blocks checked.
    fn slice(&self, at: u64, len: u64) -> Result<&[u8], Error> {
        if len == 0 {
            return Ok(&[]);
        }
        let (from, to) = (at as usize, (at + len) as usize);
        if at + len > self.body || from < BLOCK {
            return Err(Error::corrupted(&self.path, at, "a place outside the body"));
        }
        for block in from / BLOCK..=(to - 1) / BLOCK {
            let mask = 1 << (block % 64);
            if self.checked[block / 64].load(Ordering::Relaxed) & mask == 0 {
                self.check_block(block)?;
                self.checked[block / 64].fetch_or(mask, Ordering::Relaxed);
            }
        }
        Ok(&self.bytes.as_slice()[from..to])
    }

    fn check_block(&self, block: usize) -> Result<(), Error> {
        let all = self.bytes.as_slice();
        let bytes = &all[block * BLOCK..(block + 1) * BLOCK];
        let sum = FileHeader::block_checksum(self.seed, self.partition, self.id, block as u64, bytes);
        let at = self.table_at + (block - 1) * 8;
        if all[at..at + 8] == sum.to_le_bytes() {
            return Ok(());
        }
        Err(Error::corrupted(&self.path, (block * BLOCK) as u64, "a block's checksum does not match"))
    }

    /// Checks `n` blocks of the body from the `from`th on; how many there were. The first damaged one is the error.
    pub fn verify_blocks(&self, from: usize, n: usize) -> Result<usize, Error> {
        let mut checked = 0;
        for block in (1..self.table_at / BLOCK).skip(from).take(n) {
            self.check_block(block)?;
            checked += 1;
        }
        Ok(checked)
    }

    /// Checks every block again, also those checked before.
    pub fn verify(&self) -> Vec<Error> {
        (1..self.table_at / BLOCK).filter_map(|block| self.check_block(block).err()).collect()
    }

    /// The rows of `space` in this file.
    pub fn rows_of(self: &Arc<Self>, space: SpaceId) -> Result<SealedRows, Error> {
        let missing = || Error::corrupted(&self.path, 0, format!("the file holds no rows of space {space}"));
        let entry = self.spaces.get(&space).ok_or_else(missing)?.clone();
        let place = entry.sections[Section::Runs as usize];
        let mut c = Cursor::new(self.slice(place.0, place.1)?);
        let mut runs = Vec::new();
        let mut starts = Vec::new();
        let mut rows = 0;
        for _ in 0..place.1 as usize / Run::LEN {
            let Some(run) = Run::decode(&mut c) else {
                break;
            };
            starts.push(rows);
            rows += run.rows as usize;
            runs.push(run);
        }
        if rows as u64 != entry.rows || runs.is_empty() {
            return Err(Error::corrupted(&self.path, place.0, "the runs do not add up"));
        }
        Ok(SealedRows { file: Arc::clone(self), entry, runs, starts })
    }
}

/// One space's rows in a sealed file.
pub struct SealedRows {
    file: Arc<SealedFile>,
    entry: SpaceEntry,
    runs: Vec<Run>,
    /// First row of each run.
    starts: Vec<usize>,
}

impl SealedRows {
    pub fn file(&self) -> &Arc<SealedFile> {
        &self.file
    }

    pub fn bytes(&self) -> u64 {
        self.entry.sections.iter().map(|s| s.1).sum()
    }

    fn part(&self, section: Section, at: u64, len: u64) -> Result<&[u8], Error> {
        self.file.slice(self.entry.sections[section as usize].0 + at, len)
    }

    fn array<const N: usize>(&self, section: Section, index: usize) -> Result<[u8; N], Error> {
        let bytes = self.part(section, (index * N) as u64, N as u64)?;
        bytes.try_into().map_err(|_| Error::corrupted(&self.file.path, 0, "a section is too short"))
    }

    fn run_of(&self, row: usize) -> usize {
        self.starts.partition_point(|s| *s <= row) - 1
    }

    fn slot(&self, row: usize) -> Result<Option<u64>, Error> {
        if self.entry.vectors == self.entry.rows {
            return Ok(Some(row as u64));
        }
        let slot = u32::from_le_bytes(self.array(Section::Slot, row)?);
        Ok((slot != u32::MAX).then_some(u64::from(slot)))
    }

    fn end(&self, section: Section, row: usize) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(section, row)?))
    }

    fn key_of(&self, row: usize) -> Result<Option<&str>, Error> {
        if !self.has_keys() {
            return Ok(None);
        }
        let (key, _) = self.var(Section::KeyEnds, Section::Keys, row)?;
        let key = std::str::from_utf8(key).map_err(|_| Error::corrupted(&self.file.path, 0, "a key is not UTF-8"))?;
        Ok((!key.is_empty()).then_some(key))
    }

    fn var(&self, ends: Section, bytes: Section, row: usize) -> Result<(&[u8], u64), Error> {
        const MARKS: u64 = HAS_TEXT | ENDS_BATCH;
        let begin = if row == 0 { 0 } else { self.end(ends, row - 1)? & !MARKS };
        let end = self.end(ends, row)?;
        let len = (end & !MARKS).checked_sub(begin);
        let len = len.filter(|l| begin + l <= self.entry.sections[bytes as usize].1);
        let len = len.ok_or_else(|| Error::corrupted(&self.file.path, 0, "ends do not ascend"))?;
        Ok((self.part(bytes, begin, len)?, end & MARKS))
    }
}

impl RowSource for SealedRows {
    fn rows(&self) -> usize {
        self.entry.rows as usize
    }

    fn first(&self) -> Generation {
        self.runs[0].first
    }

    fn last(&self) -> Generation {
        let run = self.runs[self.runs.len() - 1];
        Generation(run.first.0 + run.rows - 1)
    }

    fn generation_at(&self, row: usize) -> Generation {
        let run = self.run_of(row);
        self.runs[run].first.plus((row - self.starts[run]) as u64)
    }

    fn row_of(&self, generation: Generation) -> Option<usize> {
        let run = self.runs.partition_point(|r| r.first <= generation).checked_sub(1)?;
        let inside = generation.0 - self.runs[run].first.0;
        (inside < self.runs[run].rows).then(|| self.starts[run] + inside as usize)
    }

    fn row(&self, row: usize) -> Result<Row<'_>, Error> {
        let run = self.run_of(row);
        let (text, marks) = self.var(Section::TextEnds, Section::Texts, row)?;
        let text =
            std::str::from_utf8(text).map_err(|_| Error::corrupted(&self.file.path, 0, "a text is not UTF-8"))?;
        let (metadata, _) = self.var(Section::MetadataEnds, Section::Metadata, row)?;
        let size = u64::from(self.entry.dim) * 4;
        let vector = match self.slot(row)? {
            Some(slot) => Some(self.part(Section::Vectors, slot * size, size)?),
            None => None,
        };
        let observed_at = i64::from_le_bytes(self.array(Section::ObservedAt, row)?);
        Ok(Row {
            generation: self.runs[run].first.plus((row - self.starts[run]) as u64),
            committed_at: self.runs[run].committed_at,
            observed_at: (observed_at != TIME_ABSENT).then_some(observed_at),
            confidence: f32::from_le_bytes(self.array(Section::Confidence, row)?),
            inverse_norm: f32::from_le_bytes(self.array(Section::InverseNorm, row)?),
            hash: u64::from_le_bytes(self.array(Section::Hash, row)?),
            text: (marks & HAS_TEXT != 0).then_some(text),
            metadata,
            key: self.key_of(row)?,
            vector,
            ends_batch: marks & ENDS_BATCH != 0,
        })
    }

    fn facts(&self, row: usize) -> Result<Facts<'_>, Error> {
        let run = self.run_of(row);
        let observed_at = i64::from_le_bytes(self.array(Section::ObservedAt, row)?);
        Ok(Facts {
            generation: self.runs[run].first.plus((row - self.starts[run]) as u64),
            committed_at: self.runs[run].committed_at,
            observed_at: (observed_at != TIME_ABSENT).then_some(observed_at),
            confidence: f32::from_le_bytes(self.array(Section::Confidence, row)?),
            metadata: self.var(Section::MetadataEnds, Section::Metadata, row)?.0,
            key: self.key_of(row)?,
        })
    }

    fn committed_at(&self, row: usize) -> i64 {
        self.runs[self.run_of(row)].committed_at
    }

    fn ends_batch(&self, row: usize) -> Result<bool, Error> {
        Ok(self.end(Section::TextEnds, row)? & ENDS_BATCH != 0)
    }

    fn has_keys(&self) -> bool {
        self.entry.sections[Section::KeyEnds as usize].1 > 0
    }

    fn key(&self, row: usize) -> Result<Option<&str>, Error> {
        self.key_of(row)
    }

    fn vectors_from(&self, row: usize, limit: usize) -> Result<VectorRun<'_>, Error> {
        let limit = limit.min(self.rows() - row);
        let Some(first) = self.slot(row)? else {
            return Ok(VectorRun { rows: 1, bytes: &[], inverse_norms: Vec::new() });
        };
        let mut n = limit;
        if self.entry.vectors != self.entry.rows {
            n = 1;
            while n < limit && self.slot(row + n)?.is_some() {
                n += 1;
            }
        }
        let size = u64::from(self.entry.dim) * 4;
        let norms = self.part(Section::InverseNorm, row as u64 * 4, n as u64 * 4)?;
        let inverse_norms = norms.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let bytes = self.part(Section::Vectors, first * size, n as u64 * size)?;
        Ok(VectorRun { rows: n, bytes, inverse_norms })
    }
}
