//! Applying what a log says, so that nothing in it can keep a partition from starting (O7).
//!
//! A batch that fails three times is caught, kept aside, and logged by this start to be gone round. One that ends the process cannot be caught: while
//! a start applies, a note lies in the partition's directory. A start that finds one is careful: it writes into the note which batch is
//! next. A careful start that finds a batch named for the third time catches it unseen.

use std::collections::BTreeMap;

use super::replayed::{Deed, Replayed};
use crate::env::{File, Files, Operation};
use crate::error::Error;
use crate::types::codec::Seed;
use crate::types::{Generation, PartitionId, SessionId, SpaceId};
use crate::wal::{QuarantineRecord, Quarantined, Said, VoidRecord, keep_records, observe_prefix};

/// Careful starts that may find the same batch named.
const FOUND_MAX: u32 = 3;

/// Who reads the partition.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Careful {
    /// A start: it leaves notes, and keeps aside what it catches.
    Starting,
    /// Somebody who only looks, and changes nothing.
    Looking,
}

/// What a note says: the batch that was next, and how many starts have found it there.
type Named = (SpaceId, Generation, u32);

struct Note {
    path: String,
    file: std::sync::Arc<dyn File>,
    /// As the last start left it.
    found: Option<Named>,
    careful: bool,
}

impl Note {
    /// A note of a start before is left as it is until this one names a batch.
    fn begin(files: &dyn Files, dir: &str) -> Result<Self, Error> {
        let path = note_path(dir);
        let (careful, found) = match files.read(&path) {
            Ok(bytes) => (true, parse(&bytes).map(|(space, first, found)| (space, first, found + 1))),
            Err(_) => (false, None),
        };
        let made = if careful { files.open(&path) } else { files.create(&path) };
        let note = Self { file: made.map_err(|e| Error::io(&path, &e))?, path, found, careful };
        if let Some(named) = note.found {
            note.write(Some(named))?;
        }
        Ok(note)
    }

    fn write(&self, named: Option<Named>) -> Result<(), Error> {
        let text = named.map_or(String::new(), |(space, first, found)| format!("{} {} {found}", space.0, first.0));
        // Always as long: what was there before is written over.
        self.file.write_at(0, &[format!("{text:<63}\n").as_bytes()]).map_err(|e| Error::io(&self.path, &e))
    }

    /// The batch is next. True: it has been named too often.
    fn next(&self, space: SpaceId, first: Generation) -> Result<bool, Error> {
        if !self.careful {
            return Ok(false);
        }
        let found = self.found.filter(|(s, g, _)| (*s, *g) == (space, first)).map_or(0, |(_, _, found)| found);
        self.write(Some((space, first, found)))?;
        Ok(found >= FOUND_MAX)
    }
}

fn note_path(dir: &str) -> String {
    format!("{dir}/replaying")
}

/// What this start has caught is on the disk: the note has done its work.
pub(in crate::engine) fn end_note(files: &dyn Files, dir: &str) -> Result<(), Error> {
    let path = note_path(dir);
    files.remove(&path).map_err(|e| Error::io(&path, &e))
}

fn parse(bytes: &[u8]) -> Option<Named> {
    let mut words = std::str::from_utf8(bytes).ok()?.split_whitespace();
    let named = (SpaceId(words.next()?.parse().ok()?), Generation(words.next()?.parse().ok()?));
    Some((named.0, named.1, words.next()?.parse().ok()?))
}

impl Careful {
    /// Applies what the log says to every space. Returns what could not be, for this start to log, and whether it left a note.
    pub(super) fn apply(
        self,
        files: &dyn Files,
        seed: Seed,
        (partition, dir): (PartitionId, &str),
        spaces: &mut BTreeMap<SpaceId, Replayed>,
        now: i64,
    ) -> Result<(Vec<QuarantineRecord>, bool), Error> {
        let mut caught = Vec::new();
        let starts = self == Self::Starting;
        let note =
            (starts && spaces.values().any(|s| !s.deeds.is_empty())).then(|| Note::begin(files, dir)).transpose()?;
        for (id, seat) in spaces.iter_mut() {
            for batch in seat.apply(*id, files, note.as_ref(), now)? {
                if starts {
                    let kept = keep_records(files, seed, partition, (*id, batch.first), &seat.records(*id, &batch));
                    kept.map_err(|e| Error::io("quarantine", &e))?;
                }
                caught.push(QuarantineRecord { space: *id, batch });
            }
            seat.deeds = Vec::new();
        }
        Ok((caught, note.is_some()))
    }
}

impl Replayed {
    /// Applies the space's deeds; what cannot be is gone round. Returns what is new of that.
    fn apply(
        &mut self,
        id: SpaceId,
        files: &dyn Files,
        note: Option<&Note>,
        now: i64,
    ) -> Result<Vec<Quarantined>, Error> {
        let mut caught = Vec::new();
        self.quarantined.sort_by_key(|q| q.first);
        // Each time round one more is known that cannot be applied.
        while let Some((at, reason)) = self.apply_all(id, files, note)? {
            let batch = self.batch_around(at, reason, now);
            let place = self.quarantined.partition_point(|q| q.first < batch.first);
            self.quarantined.insert(place, batch.clone());
            caught.push(batch);
        }
        Ok(caught)
    }

    /// Which deed could not be done, and why; None: all are.
    fn apply_all(
        &mut self,
        id: SpaceId,
        files: &dyn Files,
        note: Option<&Note>,
    ) -> Result<Option<(usize, String)>, Error> {
        self.delta.quarantined = std::sync::Arc::new(self.quarantined.clone());
        let (before, purging) = (self.delta.begin(), self.delta.purging.clone());
        for (at, done) in self.deeds.iter().enumerate() {
            let failed = match &done.deed {
                Deed::Rows { first, .. } if !self.delta.goes_round(*first) => {
                    if note.map_or(Ok(false), |note| note.next(id, *first))? {
                        Some("the process ended each time it was applied at a start".to_owned())
                    } else {
                        let reached =
                            |frame: &[u8]| files.reached(Operation::Apply, frame).map_err(|e| Error::io("apply", &e));
                        self.delta.attempt(|delta| done.apply(delta, reached)).err()
                    }
                }
                _ => {
                    done.apply(&mut self.delta, |_| Ok(()))?;
                    None
                }
            };
            if let Some(reason) = failed {
                self.delta.take_back(&before);
                self.delta.purging = purging;
                return Ok(Some((at, reason)));
            }
        }
        Ok(None)
    }

    /// The whole batch that a deed belongs to: the frames before it that go on, and those that it goes on with.
    fn batch_around(&self, at: usize, reason: String, now: i64) -> Quarantined {
        let rows: Vec<_> =
            self.deeds.iter().enumerate().filter_map(|(i, d)| rows_of(&d.deed).map(|r| (i, r))).collect();
        let here = rows.partition_point(|(i, _)| *i < at);
        let mut from = here;
        while from > 0 && rows[from - 1].1.continues {
            from -= 1;
        }
        let to = (here..rows.len()).find(|i| !rows[*i].1.continues).unwrap_or(rows.len() - 1);
        let (first, last) = (rows[from].1, rows[to].1);
        let superseded = |r: &Rows<'_>| {
            let (at, list) = (r.first, r.supersedes);
            list.iter().map(move |(item, old)| (at.plus(u64::from(*item)), *old)).collect::<Vec<_>>()
        };
        Quarantined {
            first: first.first,
            count: last.first.0 + last.hashes.len() as u64 - first.first.0,
            at: now,
            said: first.said,
            superseded: rows[from..=to].iter().flat_map(|(_, r)| superseded(r)).collect(),
            reason,
        }
    }

    /// A batch's records as the log has them.
    fn records(&self, id: SpaceId, batch: &Quarantined) -> Vec<u8> {
        let mut out = Vec::new();
        for done in &self.deeds {
            match &done.deed {
                Deed::Voids(first, count) if batch.holds(*first) => {
                    let said = Said { session: SessionId(0), first: 0 };
                    VoidRecord { space: id, first_generation: *first, count: *count, incarnation: 0, said }
                        .encode(&mut out);
                }
                deed => {
                    let Some(r) = rows_of(deed).filter(|r| batch.holds(r.first)) else { continue };
                    observe_prefix(&mut out, id, r.said, r.continues, r.first, r.hashes, r.supersedes, r.frame.len());
                    out.extend_from_slice(r.frame);
                }
            }
        }
        out
    }
}

#[derive(Clone, Copy)]
struct Rows<'a> {
    frame: &'a [u8],
    hashes: &'a [u64],
    said: Said,
    first: Generation,
    supersedes: &'a [(u32, Generation)],
    continues: bool,
}

fn rows_of(deed: &Deed) -> Option<Rows<'_>> {
    match deed {
        Deed::Rows { frame, hashes, said, first, supersedes, continues } => {
            Some(Rows { frame, hashes, said: *said, first: *first, supersedes, continues: *continues })
        }
        _ => None,
    }
}
