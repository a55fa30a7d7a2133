//! Rows that are not sealed yet, read from the buffer of the frame they came in (T5).

use std::sync::Arc;

use crate::error::Error;
use crate::records::{Checked, Facts, Row, RowSource, VectorRun};
use crate::types::Generation;

pub struct FrameRows {
    frame: Arc<Vec<u8>>,
    checked: Arc<Checked>,
    first: Generation,
    committed_at: i64,
    /// The batch goes on with the next part.
    continues: bool,
}

impl FrameRows {
    pub fn new(
        frame: Arc<Vec<u8>>,
        checked: Arc<Checked>,
        first: Generation,
        committed_at: i64,
        continues: bool,
    ) -> Self {
        Self { frame, checked, first, committed_at, continues }
    }

    /// Memory the rows hold.
    pub fn heap_bytes(&self) -> u64 {
        (self.frame.len() + self.checked.heap_bytes() + 160) as u64
    }
}

impl RowSource for FrameRows {
    fn rows(&self) -> usize {
        self.checked.view.count()
    }

    fn first(&self) -> Generation {
        self.first
    }

    fn last(&self) -> Generation {
        Generation(self.first.0 + self.checked.view.count() as u64 - 1)
    }

    fn generation_at(&self, row: usize) -> Generation {
        self.first.plus(row as u64)
    }

    fn row_of(&self, generation: Generation) -> Option<usize> {
        let row = usize::try_from(generation.0.checked_sub(self.first.0)?).ok()?;
        (row < self.rows()).then_some(row)
    }

    fn row(&self, row: usize) -> Result<Row<'_>, Error> {
        let text = self.checked.view.text_bytes(&self.frame, row);
        let text = text.map(std::str::from_utf8).transpose();
        let text = text.map_err(|_| Error::corrupted("a log group", 0, "a text is not UTF-8"))?;
        Ok(Row {
            generation: self.first.plus(row as u64),
            committed_at: self.committed_at,
            observed_at: self.checked.view.observed_at(row),
            confidence: self.checked.view.confidence(row),
            inverse_norm: self.checked.view.slot(row).map_or(0.0, |s| self.checked.inverse_norms[s]),
            hash: self.checked.hashes[row],
            text,
            metadata: self.checked.view.metadata(&self.frame, row),
            key: self.checked.view.key(&self.frame, row),
            vector: self.checked.view.vector(&self.frame, row),
            ends_batch: row + 1 == self.rows() && !self.continues,
        })
    }

    fn facts(&self, row: usize) -> Result<Facts<'_>, Error> {
        Ok(self.checked.view.facts(&self.frame, row, self.first.plus(row as u64), self.committed_at))
    }

    fn committed_at(&self, _row: usize) -> i64 {
        self.committed_at
    }

    fn ends_batch(&self, row: usize) -> Result<bool, Error> {
        Ok(row + 1 == self.rows() && !self.continues)
    }

    fn has_keys(&self) -> bool {
        self.checked.view.has_keys()
    }

    fn key(&self, row: usize) -> Result<Option<&str>, Error> {
        Ok(self.checked.view.key(&self.frame, row))
    }

    fn vectors_from(&self, row: usize, limit: usize) -> Result<VectorRun<'_>, Error> {
        let limit = limit.min(self.rows() - row);
        let Some(first) = self.checked.view.slot(row) else {
            return Ok(VectorRun { rows: 1, bytes: &[], inverse_norms: Vec::new() });
        };
        let mut n = 1;
        if self.checked.view.every_item_has_a_vector() {
            n = limit;
        } else {
            while n < limit && self.checked.view.slot(row + n).is_some() {
                n += 1;
            }
        }
        let size = self.checked.view.dim() * 4;
        let bytes = &self.checked.view.vectors(&self.frame)[first * size..(first + n) * size];
        Ok(VectorRun { rows: n, bytes, inverse_norms: self.checked.inverse_norms[first..first + n].to_vec() })
    }
}

/// Generations without rows: they keep their place in the tail until a checkpoint covers them.
pub struct Change {
    pub first: Generation,
    pub last: Generation,
    pub committed_at: i64,
}

impl Change {
    /// Memory it takes in a tail.
    pub const BYTES: u64 = 128;

    fn none<T>(&self) -> Result<T, Error> {
        Err(Error::corrupted("a log group", 0, format!("generation {} has no row", self.first)))
    }
}

impl RowSource for Change {
    fn rows(&self) -> usize {
        0
    }

    fn first(&self) -> Generation {
        self.first
    }

    fn last(&self) -> Generation {
        self.last
    }

    fn generation_at(&self, _row: usize) -> Generation {
        self.first
    }

    fn row_of(&self, _generation: Generation) -> Option<usize> {
        None
    }

    fn row(&self, _row: usize) -> Result<Row<'_>, Error> {
        self.none()
    }

    fn facts(&self, _row: usize) -> Result<Facts<'_>, Error> {
        self.none()
    }

    fn committed_at(&self, _row: usize) -> i64 {
        self.committed_at
    }

    fn ends_batch(&self, _row: usize) -> Result<bool, Error> {
        Ok(true)
    }

    fn has_keys(&self) -> bool {
        false
    }

    fn key(&self, _row: usize) -> Result<Option<&str>, Error> {
        Ok(None)
    }

    fn vectors_from(&self, _row: usize, _limit: usize) -> Result<VectorRun<'_>, Error> {
        self.none()
    }
}

/// Rows known to be lost or unreadable: every read that needs them gets the error, never an answer without them (D5).
pub struct DamagedRows {
    first: Generation,
    last: Generation,
    error: Error,
}

impl DamagedRows {
    pub fn new(first: Generation, last: Generation, error: Error) -> Self {
        Self { first, last, error }
    }
}

impl RowSource for DamagedRows {
    fn damage(&self) -> Option<&Error> {
        Some(&self.error)
    }

    fn rows(&self) -> usize {
        0
    }

    fn first(&self) -> Generation {
        self.first
    }

    fn last(&self) -> Generation {
        self.last
    }

    fn generation_at(&self, _row: usize) -> Generation {
        self.first
    }

    fn row_of(&self, generation: Generation) -> Option<usize> {
        (self.first..=self.last).contains(&generation).then_some(0)
    }

    fn row(&self, _row: usize) -> Result<Row<'_>, Error> {
        Err(self.error.clone())
    }

    fn facts(&self, _row: usize) -> Result<Facts<'_>, Error> {
        Err(self.error.clone())
    }

    fn committed_at(&self, _row: usize) -> i64 {
        i64::MAX
    }

    fn ends_batch(&self, _row: usize) -> Result<bool, Error> {
        Err(self.error.clone())
    }

    fn has_keys(&self) -> bool {
        false
    }

    fn key(&self, _row: usize) -> Result<Option<&str>, Error> {
        Err(self.error.clone())
    }

    fn vectors_from(&self, _row: usize, _limit: usize) -> Result<VectorRun<'_>, Error> {
        Err(self.error.clone())
    }
}

/// Rows picked from several sources, in order: what a new file is written from.
pub struct PickedRows {
    sources: Vec<Arc<dyn RowSource>>,
    /// Source and row.
    at: Vec<(u32, u32)>,
}

impl PickedRows {
    /// The rows of each source that `keeps` (source, row), by generation; None: none of them.
    pub fn of(
        sources: Vec<Arc<dyn RowSource>>,
        mut keeps: impl FnMut(usize, usize) -> bool,
    ) -> Option<Arc<dyn RowSource>> {
        let rows = sources.iter().enumerate().flat_map(|(i, s)| (0..s.rows()).map(move |row| (i, row)));
        let mut at: Vec<_> = rows.filter(|(i, row)| keeps(*i, *row)).map(|(i, row)| (i as u32, row as u32)).collect();
        let generation = |(i, row): &(u32, u32)| sources[*i as usize].generation_at(*row as usize);
        if !at.is_sorted_by_key(generation) {
            at.sort_unstable_by_key(generation);
        }
        (!at.is_empty()).then(|| Arc::new(Self { sources, at }) as Arc<dyn RowSource>)
    }

    fn at(&self, row: usize) -> (&dyn RowSource, usize) {
        let (source, row) = self.at[row];
        (&*self.sources[source as usize], row as usize)
    }
}

impl RowSource for PickedRows {
    fn rows(&self) -> usize {
        self.at.len()
    }

    fn first(&self) -> Generation {
        self.generation_at(0)
    }

    fn last(&self) -> Generation {
        self.generation_at(self.at.len() - 1)
    }

    fn generation_at(&self, row: usize) -> Generation {
        let (source, row) = self.at(row);
        source.generation_at(row)
    }

    fn row_of(&self, generation: Generation) -> Option<usize> {
        let row =
            self.at.partition_point(|(s, row)| self.sources[*s as usize].generation_at(*row as usize) < generation);
        (row < self.at.len() && self.generation_at(row) == generation).then_some(row)
    }

    fn row(&self, row: usize) -> Result<Row<'_>, Error> {
        let (source, row) = self.at(row);
        source.row(row)
    }

    fn facts(&self, row: usize) -> Result<Facts<'_>, Error> {
        let (source, row) = self.at(row);
        source.facts(row)
    }

    fn committed_at(&self, row: usize) -> i64 {
        let (source, row) = self.at(row);
        source.committed_at(row)
    }

    fn ends_batch(&self, row: usize) -> Result<bool, Error> {
        let (source, row) = self.at(row);
        source.ends_batch(row)
    }

    fn has_keys(&self) -> bool {
        self.sources.iter().any(|s| s.has_keys())
    }

    fn key(&self, row: usize) -> Result<Option<&str>, Error> {
        let (source, row) = self.at(row);
        source.key(row)
    }

    fn vectors_from(&self, row: usize, _limit: usize) -> Result<VectorRun<'_>, Error> {
        let (source, row) = self.at(row);
        source.vectors_from(row, 1)
    }
}
