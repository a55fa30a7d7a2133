//! Writes sealed files (T5) as a stream of chunks: sections of each space, the directory, the block table, then the header.
//!
//! The encoder only makes bytes; the maintenance machine sends them through its port, so that no step holds more than a chunk.
//! Layout: `docs/design/log-and-files.md`.

use std::sync::Arc;

use super::layout::{BLOCK, ENDS_BATCH, FileHeader, HAS_TEXT, Run, Section, SpaceEntry, encode_directory};
use super::{Row, RowSource, TIME_ABSENT};
use crate::error::Error;
use crate::types::codec::Seed;
use crate::types::{FileId, Generation, PartitionId, SpaceId};

/// One space's rows for a file, oldest first.
pub struct SealSpace {
    pub space: SpaceId,
    pub dim: u32,
    pub parts: Vec<Arc<dyn RowSource>>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct SealedSummary {
    pub bytes: u64,
    pub header_checksum: u64,
    /// Space, first and last generation, rows.
    pub spaces: Vec<(SpaceId, Generation, Generation, u64)>,
}

pub struct SealEncoder {
    seed: Seed,
    partition: PartitionId,
    id: FileId,
    spaces: Vec<SealSpace>,
    entries: Vec<SpaceEntry>,
    /// Space, section, part, row: where the encoder stands.
    at: (usize, usize, usize, usize),
    /// Running values of the section: vectors so far, ends so far.
    running: u64,
    runs: Vec<Run>,
    pending: Vec<u8>,
    /// File offset of `pending`'s first byte.
    flushed: u64,
    table: Vec<u64>,
    done: bool,
    header: Option<Vec<u8>>,
    header_checksum: u64,
}

impl SealEncoder {
    pub fn new(seed: Seed, partition: PartitionId, id: FileId, spaces: Vec<SealSpace>) -> Self {
        let entries = spaces.iter().map(|s| SpaceEntry::new(s.space, s.dim)).collect();
        Self {
            seed,
            partition,
            id,
            spaces,
            entries,
            at: (0, 0, 0, 0),
            running: 0,
            runs: Vec::new(),
            pending: Vec::new(),
            flushed: BLOCK as u64,
            table: Vec::new(),
            done: false,
            header: None,
            header_checksum: 0,
        }
    }

    fn position(&self) -> u64 {
        self.flushed + self.pending.len() as u64
    }

    /// The next bytes and their place in the file, about `target` of them; None when all is written. The header comes last, at 0.
    pub fn next_chunk(&mut self, target: usize) -> Result<Option<(u64, Vec<u8>)>, Error> {
        while !self.done && self.pending.len() < target {
            self.advance(target)?;
        }
        if !self.done {
            return Ok(Some(self.flush(self.pending.len() / BLOCK * BLOCK)));
        }
        if !self.pending.is_empty() {
            return Ok(Some(self.flush(self.pending.len())));
        }
        Ok(self.header.take().map(|header| (0, header)))
    }

    /// After the last chunk.
    pub fn summary(&self) -> SealedSummary {
        let of = |e: &SpaceEntry, s: &SealSpace| {
            let first = s.parts.first().map_or(Generation(0), |p| p.first());
            (e.space, first, s.parts.last().map_or(Generation(0), |p| p.last()), e.rows)
        };
        SealedSummary {
            bytes: self.flushed,
            header_checksum: self.header_checksum,
            spaces: self.entries.iter().zip(&self.spaces).map(|(e, s)| of(e, s)).collect(),
        }
    }

    fn flush(&mut self, n: usize) -> (u64, Vec<u8>) {
        let rest = self.pending.split_off(n);
        let chunk = std::mem::replace(&mut self.pending, rest);
        let at = self.flushed;
        self.flushed += chunk.len() as u64;
        (at, chunk)
    }

    /// Adds rows of the current section until the target, or moves on.
    fn advance(&mut self, target: usize) -> Result<(), Error> {
        let (space, section, part, row) = self.at;
        if space == self.spaces.len() {
            self.finish();
            return Ok(());
        }
        let section_kind = Section::ALL[section];
        if part == 0 && row == 0 {
            self.begin(space, section_kind);
        }
        let skipped = section_kind == Section::KeyEnds && !self.spaces[space].parts.iter().any(|p| p.has_keys());
        let Some(source) = self.spaces[space].parts.get(part).filter(|_| !skipped).cloned() else {
            self.end(space, section_kind);
            self.at = if section + 1 == Section::ALL.len() { (space + 1, 0, 0, 0) } else { (space, section + 1, 0, 0) };
            return Ok(());
        };
        let mut row = row;
        while row < source.rows() && self.pending.len() < target {
            let value = source.row(row)?;
            self.put(space, section_kind, &value);
            row += 1;
        }
        self.at = if row == source.rows() { (space, section, part + 1, 0) } else { (space, section, part, row) };
        self.hash_blocks();
        Ok(())
    }

    fn begin(&mut self, space: usize, section: Section) {
        self.pending.resize(self.pending.len().next_multiple_of(64), 0);
        self.running = 0;
        let at = self.position();
        self.entries[space].sections[section as usize] = (at, 0);
    }

    fn end(&mut self, space: usize, section: Section) {
        if section == Section::Runs {
            for run in std::mem::take(&mut self.runs) {
                run.encode(&mut self.pending);
            }
        }
        let at = self.position();
        let place = &mut self.entries[space].sections[section as usize];
        place.1 = at - place.0;
        self.hash_blocks();
    }

    fn put(&mut self, space: usize, section: Section, row: &Row<'_>) {
        let out = &mut self.pending;
        match section {
            Section::Runs => {
                self.entries[space].rows += 1;
                match self.runs.last_mut() {
                    Some(run) if run.continues(row.generation, row.committed_at) => run.rows += 1,
                    _ => self.runs.push(Run { first: row.generation, rows: 1, committed_at: row.committed_at }),
                }
            }
            Section::ObservedAt => out.extend_from_slice(&row.observed_at.unwrap_or(TIME_ABSENT).to_le_bytes()),
            Section::Confidence => out.extend_from_slice(&row.confidence.to_le_bytes()),
            Section::InverseNorm => out.extend_from_slice(&row.inverse_norm.to_le_bytes()),
            Section::Hash => out.extend_from_slice(&row.hash.to_le_bytes()),
            Section::Slot => {
                let slot = if row.vector.is_some() { self.running as u32 } else { u32::MAX };
                self.running += u64::from(row.vector.is_some());
                out.extend_from_slice(&slot.to_le_bytes());
                self.entries[space].vectors = self.running;
            }
            Section::Vectors => out.extend_from_slice(row.vector.unwrap_or(&[])),
            Section::TextEnds => {
                self.running += row.text.map_or(0, |t| t.len() as u64);
                let has = if row.text.is_some() { HAS_TEXT } else { 0 };
                let ends = if row.ends_batch { ENDS_BATCH } else { 0 };
                out.extend_from_slice(&(self.running | has | ends).to_le_bytes());
            }
            Section::Texts => out.extend_from_slice(row.text.unwrap_or("").as_bytes()),
            Section::MetadataEnds => {
                self.running += row.metadata.len() as u64;
                out.extend_from_slice(&self.running.to_le_bytes());
            }
            Section::Metadata => out.extend_from_slice(row.metadata),
            Section::KeyEnds => {
                self.running += row.key.map_or(0, |k| k.len() as u64);
                out.extend_from_slice(&self.running.to_le_bytes());
            }
            Section::Keys => out.extend_from_slice(row.key.unwrap_or("").as_bytes()),
        }
    }

    /// Checksums of blocks that are complete.
    fn hash_blocks(&mut self) {
        loop {
            let begin = (self.table.len() + 1) * BLOCK;
            let from = begin - self.flushed as usize;
            let Some(block) = self.pending.get(from..from + BLOCK) else {
                return;
            };
            let number = self.table.len() as u64 + 1;
            self.table.push(FileHeader::block_checksum(self.seed, self.partition, self.id, number, block));
        }
    }

    fn finish(&mut self) {
        self.pending.resize(self.pending.len().next_multiple_of(64), 0);
        let directory_at = self.position();
        let directory = encode_directory(&self.entries);
        self.pending.extend_from_slice(&directory);
        self.pending.resize(self.pending.len().next_multiple_of(BLOCK), 0);
        self.hash_blocks();
        let body = self.position();
        let mut table: Vec<u8> = self.table.iter().flat_map(|c| c.to_le_bytes()).collect();
        table.resize(table.len().next_multiple_of(BLOCK), 0);
        let header = FileHeader {
            partition: self.partition,
            id: self.id,
            body,
            table: table.len() as u64,
            directory: (directory_at, directory.len() as u64),
            table_checksum: FileHeader::block_checksum(self.seed, self.partition, self.id, u64::MAX, &table),
        };
        self.pending.extend_from_slice(&table);
        let (bytes, checksum) = header.encode(self.seed);
        self.header = Some(bytes);
        self.header_checksum = checksum;
        self.done = true;
    }
}
