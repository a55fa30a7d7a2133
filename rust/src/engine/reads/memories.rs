//! Reads without a cue: one memory, the versions of a key, lists and counts.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Core, Memory, Reading};
use crate::error::Error;
use crate::records::{Checked, Row, RowSource};
use crate::store::{FrameRows, Scope, Space};
use crate::types::{FORGET_IDS_MAX, Generation};
use crate::wal::{Record, kept_records, quarantine_path, quarantined_with};

impl Core {
    pub fn get(&self, space: &Space, id: u64, reading: Reading<'_>) -> Result<Option<Memory>, Error> {
        let (view, upto) = self.view_at(space, reading)?;
        let row = view.get(Generation(id), upto).inspect_err(|e| space.note_damage(e))?;
        Ok(row.map(|row| Memory::of(&row, true)))
    }

    /// What could not be applied: the batch with this generation, from where it is kept (O7). Its items never were memories.
    pub fn read_quarantined(&self, space: &Space, generation: Generation) -> Result<Vec<Memory>, Error> {
        self.readable(space)?;
        let all = space.quarantined();
        let missing = || Error::NotFound { what: format!("{generation} in quarantine") };
        let batch = quarantined_with(&all, generation).ok_or_else(missing)?;
        let path = quarantine_path(space.options.id, batch.first);
        let bytes = match self.env.files.read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::NotFound { what: path }),
            read => read.map_err(|e| Error::io(&path, &e))?,
        };
        let records = kept_records(&bytes, self.seed, space.options.partition, batch.first);
        let mut kept = Vec::new();
        for record in Record::all(records.map_err(|e| e.into_error(&path))?, &path)? {
            let Record::Observe(r) = record else { continue };
            let checked = Checked::logged(r.frame, r.hashes, &path)?;
            let rows =
                FrameRows::new(Arc::new(r.frame.to_vec()), Arc::new(checked), r.first_generation, batch.at, false);
            for row in 0..rows.rows() {
                kept.push(Memory::of(&rows.row(row)?, true));
            }
        }
        Ok(kept)
    }

    /// The living memory that a key names (K1).
    pub fn get_key(&self, space: &Space, key: &str, reading: Reading<'_>) -> Result<Option<Memory>, Error> {
        let (view, upto) = self.view_at(space, reading)?;
        space.knows_keys()?;
        let Some(owner) = space.keys.at(key, upto) else { return Ok(None) };
        let row = view.get(owner, upto).inspect_err(|e| space.note_damage(e))?;
        Ok(row.map(|row| Memory::of(&row, true)))
    }

    /// Every version of a key that is still here, oldest first (K1).
    pub fn history(&self, space: &Space, key: &str, reading: Reading<'_>) -> Result<Vec<Memory>, Error> {
        let (view, upto) = self.view_at(space, reading)?;
        space.knows_keys()?;
        let mut versions = Vec::new();
        for generation in space.keys.history(key, upto) {
            if let Some((row, ended)) = view.version(generation, upto).inspect_err(|e| space.note_damage(e))? {
                versions.push(Memory { ended, ..Memory::of(&row, true) });
            }
        }
        Ok(versions)
    }

    /// Up to `limit` memories with ids greater than `after`, by id.
    pub fn list(&self, space: &Space, after: u64, limit: usize, reading: Reading<'_>) -> Result<Vec<Memory>, Error> {
        let (view, upto) = self.view_at(space, reading)?;
        let mut found = Vec::new();
        let scope = Scope { upto, filter: reading.filter, pulse: reading.pulse };
        let listed = view.list(Generation(after), scope, |row| {
            if found.len() < limit {
                found.push(Memory::of(&row, true));
            }
            found.len() < limit
        });
        // What is sound is read; the error comes with the first read that begins at the damage (D5).
        match listed {
            Err(error) if found.is_empty() || matches!(error, Error::Interrupted) => {
                space.note_damage(&error);
                Err(error)
            }
            _ => Ok(found),
        }
    }

    /// Adds the ids behind `after` that match, for a purge those of the dead too, up to what one forget may name; whether these are all, and
    /// up to where.
    pub(in crate::engine) fn ids(
        &self,
        space: &Space,
        after: Generation,
        reading: Reading<'_>,
        purge: bool,
        found: &mut Vec<Generation>,
    ) -> Result<(bool, Generation), Error> {
        let (view, upto) = self.view_at(space, reading)?;
        let mut whole = true;
        let scope = Scope { upto, filter: reading.filter, pulse: reading.pulse };
        // Of those nothing is left to ask for.
        let purging: HashSet<Generation> = if purge { space.purging().into_iter().collect() } else { HashSet::new() };
        let add = |row: Row<'_>| {
            if purging.contains(&row.generation) {
                return true;
            }
            whole = (found.len() as u64) < FORGET_IDS_MAX;
            if whole {
                found.push(row.generation);
            }
            whole
        };
        let listed = if purge { view.list_dead_too(after, scope, add) } else { view.list(after, scope, add) };
        listed.inspect_err(|e| space.note_damage(e))?;
        Ok((whole, upto))
    }

    pub fn count(&self, space: &Space, reading: Reading<'_>) -> Result<u64, Error> {
        let (view, upto) = self.view_at(space, reading)?;
        view.len_at(upto).inspect_err(|e| space.note_damage(e))
    }
}
