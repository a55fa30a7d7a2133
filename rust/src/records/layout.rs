//! How a sealed file is laid out: header, sections of a space, directory (`docs/design/log-and-files.md`). Written by `seal`, read by `sealed`.

use crate::types::codec::{Cursor, Seed, Stamp, StampError, put_u32, put_u64};
use crate::types::{FORMAT_VERSION, FileId, Generation, PartitionId, SpaceId};

/// Marks in the end of a row's text.
pub(super) const HAS_TEXT: u64 = 1 << 63;
pub(super) const ENDS_BATCH: u64 = 1 << 62;

pub const BLOCK: usize = 16 << 10;
const MAGIC: &[u8; 4] = b"EROW";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    Runs,
    ObservedAt,
    Confidence,
    InverseNorm,
    Hash,
    Slot,
    Vectors,
    TextEnds,
    Texts,
    MetadataEnds,
    Metadata,
    KeyEnds,
    Keys,
}

impl Section {
    pub(super) const ALL: [Self; 13] = [
        Self::Runs,
        Self::ObservedAt,
        Self::Confidence,
        Self::InverseNorm,
        Self::Hash,
        Self::Slot,
        Self::Vectors,
        Self::TextEnds,
        Self::Texts,
        Self::MetadataEnds,
        Self::Metadata,
        Self::KeyEnds,
        Self::Keys,
    ];

    /// Bytes a row; None where rows differ.
    pub(super) fn row_bytes(self, dim: u32) -> Option<u64> {
        match self {
            Self::ObservedAt | Self::Hash | Self::TextEnds | Self::MetadataEnds => Some(8),
            Self::Confidence | Self::InverseNorm | Self::Slot => Some(4),
            Self::Vectors => Some(u64::from(dim) * 4),
            // Key ends stand only where a row of the file has a key.
            Self::Runs | Self::Texts | Self::Metadata | Self::KeyEnds | Self::Keys => None,
        }
    }
}

/// Rows with consecutive generations, committed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: Generation,
    pub rows: u64,
    pub committed_at: i64,
}

impl Run {
    pub(super) const LEN: usize = 24;

    pub(super) fn continues(&self, generation: Generation, committed_at: i64) -> bool {
        self.committed_at == committed_at && self.first.0 + self.rows == generation.0
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.first.0);
        put_u64(out, self.rows);
        put_u64(out, self.committed_at.cast_unsigned());
    }

    pub(super) fn decode(c: &mut Cursor<'_>) -> Option<Self> {
        Some(Self { first: Generation(c.u64()?), rows: c.u64()?, committed_at: c.i64()? })
    }
}

pub(super) struct FileHeader {
    pub(super) partition: PartitionId,
    pub(super) id: FileId,
    /// Offset where the table begins; everything before it but block 0 is under the table.
    pub(super) body: u64,
    pub(super) table: u64,
    pub(super) directory: (u64, u64),
    pub(super) table_checksum: u64,
}

impl FileHeader {
    pub(super) fn block_checksum(seed: Seed, partition: PartitionId, id: FileId, number: u64, block: &[u8]) -> u64 {
        seed.checksum(MAGIC, partition, id.0.rotate_left(32) ^ number, block)
    }

    /// One block, and its checksum, by which a checkpoint knows the file.
    pub(super) fn encode(&self, seed: Seed) -> (Vec<u8>, u64) {
        let mut out = Vec::with_capacity(BLOCK);
        Stamp::put(&mut out, MAGIC, FORMAT_VERSION);
        put_u32(&mut out, self.partition.0);
        put_u32(&mut out, BLOCK as u32);
        for v in [self.id.0, self.body, self.table, self.directory.0, self.directory.1, self.table_checksum] {
            put_u64(&mut out, v);
        }
        out.resize(BLOCK - 8, 0);
        let sum = Self::block_checksum(seed, self.partition, self.id, 0, &out);
        put_u64(&mut out, sum);
        (out, sum)
    }

    pub(super) fn decode(
        bytes: &[u8],
        seed: Seed,
        partition: PartitionId,
        id: FileId,
    ) -> Result<(Self, u64), StampError> {
        Stamp::check(bytes, MAGIC, FORMAT_VERSION)?;
        let block = bytes.get(..BLOCK).ok_or(StampError::Damaged)?;
        let (plain, sum) = block.split_at(BLOCK - 8);
        let expected = Self::block_checksum(seed, partition, id, 0, plain);
        if sum != expected.to_le_bytes() {
            return Err(StampError::Damaged);
        }
        let mut c = Cursor::new(&plain[Stamp::LEN..]);
        let fields = || -> Option<Self> {
            let (partition, block) = (PartitionId(c.u32()?), c.u32()?);
            let (id, body, table) = (FileId(c.u64()?), c.u64()?, c.u64()?);
            let (directory, table_checksum) = ((c.u64()?, c.u64()?), c.u64()?);
            (block as usize == BLOCK).then_some(Self { partition, id, body, table, directory, table_checksum })
        };
        let header = { fields }().ok_or(StampError::Damaged)?;
        Ok((header, expected))
    }
}

#[derive(Clone, Debug)]
pub(super) struct SpaceEntry {
    pub(super) space: SpaceId,
    pub(super) dim: u32,
    pub(super) rows: u64,
    pub(super) vectors: u64,
    pub(super) sections: [(u64, u64); Section::ALL.len()],
}

impl SpaceEntry {
    pub(super) fn new(space: SpaceId, dim: u32) -> Self {
        Self { space, dim, rows: 0, vectors: 0, sections: Default::default() }
    }

    pub(super) fn decode(c: &mut Cursor<'_>, body: u64) -> Option<Self> {
        let mut entry = Self::new(SpaceId(c.u64()?), c.u32()?);
        c.u32()?;
        (entry.rows, entry.vectors) = (c.u64()?, c.u64()?);
        for (i, place) in entry.sections.iter_mut().enumerate() {
            *place = (c.u64()?, c.u64()?);
            if place.0.checked_add(place.1)? > body {
                return None;
            }
            let rows = if Section::ALL[i] == Section::Vectors { entry.vectors } else { entry.rows };
            let expected = Section::ALL[i].row_bytes(entry.dim).map(|n| rows.checked_mul(n));
            if expected.is_some_and(|e| e != Some(place.1)) {
                return None;
            }
        }
        let keys = entry.sections[Section::KeyEnds as usize].1;
        if keys != 0 && Some(keys) != entry.rows.checked_mul(8) {
            return None;
        }
        Some(entry)
    }
}

pub(super) fn encode_directory(entries: &[SpaceEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    put_u64(&mut out, entries.len() as u64);
    for e in entries {
        put_u64(&mut out, e.space.0);
        put_u32(&mut out, e.dim);
        put_u32(&mut out, 0);
        put_u64(&mut out, e.rows);
        put_u64(&mut out, e.vectors);
        for (at, len) in e.sections {
            put_u64(&mut out, at);
            put_u64(&mut out, len);
        }
    }
    out
}
