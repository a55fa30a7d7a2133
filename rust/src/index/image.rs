//! An index as bytes: what a start would take long to make again.
//!
//! A head, then blocks: first codes, some rows each, then links. Each block is its length, its checksum, and as much. Only rows that the graph
//! answers for are in it, dead or alive: who died, the reader of an image says. It is derived: whatever is wrong with it, the index is made from the rows.

use std::sync::Arc;

use engram_kernels::Arena;

use super::Index;
use super::build::Builder;
use super::calibrate::Measured;
use super::graph::{LINKS, LINKS_BASE};
use super::rows::Held;
use crate::error::Error;
use crate::types::codec::{Cursor, Seed, Stamp, put_u32, put_u64};
use crate::types::{Generation, PartitionId, SpaceId};

const MAGIC: &[u8; 4] = b"EIDX";
/// The bytes, the codes in them, and how links are drawn.
const VERSION: u16 = 2;
const HEAD: usize = 128;
/// Length and checksum before each block.
pub const BLOCK_HEAD: usize = 12;
const BLOCK_ROWS: usize = 1_024;

/// Whose image it is.
#[derive(Clone, Copy)]
pub struct Owner {
    pub seed: Seed,
    pub partition: PartitionId,
    pub space: SpaceId,
    /// Generations of another are other rows (D11).
    pub incarnation: u64,
}

/// What the head says.
#[derive(Clone, Copy)]
struct Shape {
    dim: u32,
    metric: u8,
    rows: usize,
    measured: Measured,
}

impl Owner {
    fn checksum(&self, block: u64, bytes: &[u8]) -> u64 {
        self.seed.checksum(MAGIC, self.partition, self.space.0.rotate_left(32) ^ block, bytes)
    }

    fn head(&self, shape: Shape) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD);
        Stamp::put(&mut out, MAGIC, VERSION);
        let of = [shape.dim.into(), shape.metric.into(), shape.rows as u64, shape.measured.linked as u64];
        [self.space.0, self.incarnation].into_iter().chain(of).for_each(|v| put_u64(&mut out, v));
        shape.measured.found.iter().for_each(|share| put_u32(&mut out, share.to_bits()));
        out.resize(HEAD - 8, 0);
        let sum = self.checksum(u64::MAX, &out);
        put_u64(&mut out, sum);
        out
    }

    fn shape(&self, head: &[u8], path: &str) -> Result<Shape, Error> {
        Stamp::check(head, MAGIC, VERSION).map_err(|e| e.into_error(path))?;
        let wrong = || Error::corrupted(path, 0, "the head of an index's image is damaged, or another space's");
        let (plain, sum) = head.split_at_checked(HEAD - 8).ok_or_else(wrong)?;
        let mut c = Cursor::new(&plain[Stamp::LEN..]);
        let mut next = || c.u64().ok_or_else(wrong);
        let (space, incarnation, dim, metric) = (next()?, next()?, next()?, next()?);
        let (rows, linked) = (next()? as usize, next()? as usize);
        let mut measured = Measured { linked, ..Measured::default() };
        for share in &mut measured.found {
            *share = c.u32().map(f32::from_bits).ok_or_else(wrong)?;
        }
        let ours = space == self.space.0 && incarnation == self.incarnation;
        if !ours || sum != self.checksum(u64::MAX, plain).to_le_bytes() || rows > u32::MAX as usize {
            return Err(wrong());
        }
        Ok(Shape { dim: dim as u32, metric: metric as u8, rows, measured })
    }
}

/// Writes an index's image, piece by piece.
pub struct ImageWriter {
    index: Arc<Index>,
    owner: Owner,
    rows: usize,
    /// Rows whose codes, and whose links, are written.
    coded: usize,
    linked: usize,
    block: u64,
    begun: bool,
}

impl ImageWriter {
    /// Of the rows that the graph answers for now.
    pub fn new(index: Arc<Index>, owner: Owner) -> Self {
        Self { rows: index.linked(), index, owner, coded: 0, linked: 0, block: 0, begun: false }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// What comes next in the file; None at the end. Others go on building: links read while they change may be old ones and new ones, and one may be
    /// missing; those of the tree are put back by the reader.
    pub fn piece(&mut self) -> Option<Vec<u8>> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(self.owner.head(self.index.shape(self.rows)));
        }
        let mut out = vec![0; BLOCK_HEAD];
        if self.coded < self.rows {
            let to = self.rows.min(self.coded + BLOCK_ROWS);
            (self.coded..to).for_each(|row| put_code(&mut out, &self.index.rows.held(row as u32)));
            self.coded = to;
        } else if self.linked < self.rows {
            let to = self.rows.min(self.linked + BLOCK_ROWS);
            (self.linked..to).for_each(|row| put_links(&mut out, &self.index, row as u32, self.rows));
            self.linked = to;
        } else {
            return None;
        }
        let sum = self.owner.checksum(self.block, &out[BLOCK_HEAD..]);
        let len = (out.len() - BLOCK_HEAD) as u32;
        out[..4].copy_from_slice(&len.to_le_bytes());
        out[4..BLOCK_HEAD].copy_from_slice(&sum.to_le_bytes());
        self.block += 1;
        Some(out)
    }
}

/// Makes an index of an image, piece by piece.
pub struct ImageReader {
    index: Arc<Index>,
    owner: Owner,
    path: String,
    rows: usize,
    linked: usize,
    block: u64,
}

impl ImageReader {
    pub const HEAD: usize = HEAD;

    /// Into an index that is empty. An error: the image is not one, not this space's, or damaged.
    pub fn new(index: Arc<Index>, owner: Owner, path: &str, head: &[u8]) -> Result<Self, Error> {
        let shape = owner.shape(head, path)?;
        let ours = index.shape(0);
        if (ours.dim, ours.metric) != (shape.dim, shape.metric) {
            return Err(Error::corrupted(path, 0, "the image is of vectors of another kind"));
        }
        index.graph.set_measured(&shape.measured);
        Ok(Self { index, owner, path: path.to_owned(), rows: shape.rows, linked: 0, block: 0 })
    }

    pub fn is_whole(&self) -> bool {
        self.linked == self.rows
    }

    /// Bytes of the block that begins so.
    pub fn block_len(head: [u8; BLOCK_HEAD]) -> usize {
        u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize
    }

    /// Takes the next block.
    pub fn take(&mut self, head: [u8; BLOCK_HEAD], bytes: &[u8]) -> Result<(), Error> {
        let (sum, block) = (self.owner.checksum(self.block, bytes), self.block);
        let wrong =
            |what: &str| Error::corrupted(&self.path, block, format!("block {block} of an index's image {what}"));
        if head[4..] != sum.to_le_bytes() {
            return Err(wrong("is damaged"));
        }
        let mut c = Cursor::new(bytes);
        let index = Arc::clone(&self.index);
        let coded = index.rows.len();
        if coded < self.rows {
            for _ in coded..self.rows.min(coded + BLOCK_ROWS) {
                take_code(&mut c, &index).ok_or_else(|| wrong("has no such codes"))?;
            }
        } else {
            for row in self.linked..self.rows.min(self.linked + BLOCK_ROWS) {
                take_links(&mut c, &index, row as u32, self.rows as u32).ok_or_else(|| wrong("has no such links"))?;
                self.linked = row + 1;
            }
        }
        if c.remaining() > 0 {
            return Err(wrong("is too long"));
        }
        self.block += 1;
        if self.is_whole() {
            index.graph.publish(self.rows);
        }
        Ok(())
    }
}

impl Index {
    fn shape(&self, rows: usize) -> Shape {
        let codec = &self.rows.codec;
        Shape { dim: codec.dim as u32, metric: codec.metric.code(), rows, measured: self.graph.measured() }
    }
}

fn put_code(out: &mut Vec<u8>, held: &Held<'_>) {
    put_u64(out, held.generation.0);
    held.factors.iter().for_each(|f| put_u32(out, f.to_bits()));
    held.bits.iter().for_each(|word| put_u64(out, *word));
    out.extend(held.bytes.iter().map(|b| b.cast_unsigned()));
}

fn take_code(c: &mut Cursor<'_>, index: &Index) -> Option<()> {
    let rows = &index.rows;
    let generation = Generation(c.u64()?);
    let last = rows.len().checked_sub(1).map(|row| rows.generation(row as u32));
    let factors: Vec<f32> = (0..rows.factors.stride()).map(|_| c.u32().map(f32::from_bits)).collect::<Option<_>>()?;
    let words = rows.bits.as_ref().map_or(0, Arena::stride);
    let bits: Vec<u64> = (0..words).map(|_| c.u64()).collect::<Option<_>>()?;
    let bytes: Vec<i8> = c.take(rows.bytes.stride())?.iter().map(|b| b.cast_signed()).collect();
    if last.is_some_and(|last| last >= generation) {
        return None;
    }
    rows.push(&Held { generation, bytes: &bytes, bits: &bits, factors: &factors }, Generation(0));
    Some(())
}

/// Its parent, and its links on each of its levels, to rows of the image.
fn put_links(out: &mut Vec<u8>, index: &Index, row: u32, rows: usize) {
    put_u32(out, index.graph.parent(row).map_or(0, |parent| parent + 1));
    for level in 0..=index.graph.level_of(index.rows.generation(row).0) {
        let mut links: Vec<u32> = Vec::new();
        for to in index.graph.links(row, level) {
            if (to as usize) < rows && to != row && !links.contains(&to) {
                links.push(to);
            }
        }
        out.push(links.len() as u8);
        links.iter().for_each(|to| put_u32(out, *to));
    }
}

fn take_links(c: &mut Cursor<'_>, index: &Index, row: u32, rows: u32) -> Option<()> {
    let builder = Builder { graph: &index.graph, rows: &index.rows };
    let level = builder.level(row);
    index.graph.add(level);
    let parent = c.u32()?.checked_sub(1);
    if parent.map_or(row > 0, |parent| parent >= row) {
        return None;
    }
    for at in 0..=level {
        let mut links: Vec<u32> = (0..c.u8()?).map(|_| c.u32()).collect::<Option<_>>()?;
        if links.len() > if at == 0 { LINKS_BASE } else { LINKS } || links.iter().any(|to| *to >= rows || *to == row) {
            return None;
        }
        if at == 0
            && let Some(parent) = parent
        {
            builder.bind(row, parent, &mut links);
        }
        index.graph.set_links(row, at, &links);
    }
    builder.admit(row, level);
    Some(())
}
