//! An immutable view of a space: what a recall reads from beginning to end.
//!
//! Rows have ascending generations: sealed parts first, then the tail up to `tail_to`. A snapshot W restricts any view made at or after
//! W to generations ≤ W (G3); rows never change, so the answer is the same from each of them.

use std::sync::Arc;

use super::append::AppendList;
use crate::error::Error;
use crate::index::{Cue, Near, TopK};
use crate::records::{Filter, Row, RowSource, SealedFile};
use crate::types::{Generation, LogPosition};
use crate::wal::FilePart;

/// Rows scored together: their vectors stay in the second-level cache while several cues pass.
const SCAN_ROWS: usize = 128;

/// Which rows of a run a filter lets through; asked only for rows that would be hits, and once for all cues.
struct Sieve<'a> {
    filter: Option<&'a Filter>,
    first: usize,
    asked: u128,
    passed: u128,
}

impl<'a> Sieve<'a> {
    fn new(filter: Option<&'a Filter>, first: usize) -> Self {
        const { assert!(SCAN_ROWS <= 128, "a bit a row") };
        Self { filter, first, asked: 0, passed: 0 }
    }

    fn passes(&mut self, source: &dyn RowSource, row: usize) -> Result<bool, Error> {
        let Some(filter) = self.filter else { return Ok(true) };
        let bit = 1 << (row - self.first);
        if self.asked & bit == 0 {
            self.asked |= bit;
            self.passed |= if filter.matches(&source.facts(row)?) { bit } else { 0 };
        }
        Ok(self.passed & bit != 0)
    }
}

/// A part of the tail.
#[derive(Clone)]
pub struct Part {
    pub rows: Arc<dyn RowSource>,
    /// The log before the group that holds the rows.
    pub position: LogPosition,
    pub bytes: u64,
    /// False: stands for lost rows.
    pub sound: bool,
}

#[derive(Clone)]
pub struct SealedPart {
    pub place: FilePart,
    /// None: stands for rows that cannot be read.
    pub file: Option<Arc<SealedFile>>,
    pub rows: Arc<dyn RowSource>,
    pub bytes: u64,
    pub sound: bool,
}

#[derive(Clone)]
pub struct View {
    pub(super) sealed: Arc<Vec<SealedPart>>,
    pub(super) tail: Arc<AppendList<Part>>,
    pub(super) tail_to: usize,
    pub(super) watermark: Generation,
    pub(super) memories: u64,
}

impl View {
    pub(super) fn empty(watermark: Generation) -> Self {
        Self { sealed: Arc::default(), tail: Arc::default(), tail_to: 0, watermark, memories: 0 }
    }

    pub fn watermark(&self) -> Generation {
        self.watermark
    }

    /// Sound rows, whatever their generation.
    pub fn memories(&self) -> u64 {
        self.memories
    }

    pub fn sealed(&self) -> &[SealedPart] {
        &self.sealed
    }

    pub fn tail(&self) -> impl Iterator<Item = &Part> + '_ {
        (0..self.tail_to).filter_map(|i| self.tail.get(i))
    }

    pub fn tail_parts(&self) -> usize {
        self.tail_to
    }

    fn count(&self) -> usize {
        self.sealed.len() + self.tail_to
    }

    fn source(&self, i: usize) -> Option<&dyn RowSource> {
        match self.sealed.get(i) {
            Some(part) => Some(&*part.rows),
            None => self.tail.get(i - self.sealed.len()).map(|p| &*p.rows),
        }
    }

    /// The first part that may hold generations ≥ `generation`.
    fn part_from(&self, generation: Generation) -> usize {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let mid = usize::midpoint(low, high);
            if self.source(mid).is_some_and(|s| s.last() < generation) { low = mid + 1 } else { high = mid }
        }
        low
    }

    /// The memory named `generation`, if it is visible at `upto`.
    pub fn get(&self, generation: Generation, upto: Generation) -> Result<Option<Row<'_>>, Error> {
        if generation > upto {
            // Behind the last known row of a space that lost its log's end nobody knows what was.
            let last = self.count().checked_sub(1).and_then(|i| self.source(i)).filter(|s| s.last() >= generation);
            return last.and_then(RowSource::damage).map_or(Ok(None), |error| Err(error.clone()));
        }
        let Some(source) = self.source(self.part_from(generation)) else {
            return Ok(None);
        };
        source.row_of(generation).map(|row| source.row(row)).transpose()
    }

    /// Calls `each` with rows in (after, upto] that `filter` lets through, until it says false.
    pub fn list(
        &self,
        after: Generation,
        upto: Generation,
        filter: Option<&Filter>,
        mut each: impl FnMut(Row<'_>) -> bool,
    ) -> Result<(), Error> {
        for i in self.part_from(Generation(after.0.saturating_add(1)))..self.count() {
            let Some(source) = self.source(i) else { break };
            if source.first() > upto {
                break;
            }
            if let Some(error) = source.damage() {
                return Err(error.clone());
            }
            for row in first_after(source, after)..source.rows() {
                if source.generation_at(row) > upto {
                    return Ok(());
                }
                if let Some(filter) = filter
                    && !filter.matches(&source.facts(row)?)
                {
                    continue;
                }
                if !each(source.row(row)?) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Memories visible at `upto`.
    pub fn len_at(&self, upto: Generation) -> Result<u64, Error> {
        let mut n = 0;
        for i in 0..self.count() {
            let Some(source) = self.source(i) else { break };
            if source.first() > upto {
                break;
            }
            if let Some(error) = source.damage() {
                return Err(error.clone());
            }
            n += if source.last() <= upto { source.rows() } else { first_after(source, upto) } as u64;
        }
        Ok(n)
    }

    /// Scores every visible row with a vector against all cues: the flat index (G6). `filter` is applied during the scan: k rows come
    /// back whenever k match (G4).
    pub fn scan(
        &self,
        cues: &[Cue],
        tops: &mut [TopK],
        upto: Generation,
        filter: Option<&Filter>,
    ) -> Result<(), Error> {
        let mut scores = Vec::new();
        for i in 0..self.count() {
            let Some(source) = self.source(i) else { break };
            if source.first() > upto {
                break;
            }
            if let Some(error) = source.damage() {
                return Err(error.clone());
            }
            let end = if source.last() <= upto { source.rows() } else { first_after(source, upto) };
            let mut row = 0;
            while row < end {
                let run = source.vectors_from(row, SCAN_ROWS.min(end - row))?;
                if !run.bytes.is_empty() {
                    let mut sieve = Sieve::new(filter, row);
                    for (cue, top) in cues.iter().zip(tops.iter_mut()) {
                        cue.score(run.bytes, &run.inverse_norms, &mut scores);
                        for (at, score) in scores.iter().enumerate() {
                            if top.admits(*score) && sieve.passes(source, row + at)? {
                                top.push(Near { score: *score, generation: source.generation_at(row + at) });
                            }
                        }
                    }
                }
                row += run.rows;
            }
        }
        Ok(())
    }
}

/// The first row whose generation is greater than `after`.
fn first_after(source: &dyn RowSource, after: Generation) -> usize {
    if source.first() > after {
        return 0;
    }
    let (mut low, mut high) = (0, source.rows());
    while low < high {
        let mid = usize::midpoint(low, high);
        if source.generation_at(mid) <= after { low = mid + 1 } else { high = mid }
    }
    low
}
