//! Rows known to be lost or unreadable: every read that needs them gets the error, never an answer without them (D5).

use crate::error::Error;
use crate::records::{Facts, Row, RowSource, VectorRun};
use crate::types::Generation;

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
