//! Applying what a log says, so that nothing in it can keep a partition from starting (O7).
//!
//! A batch that fails three times is caught, kept aside, and logged by this start to be gone round. One that ends the process cannot be caught: while
//! a start applies, a note lies in the partition's directory. A start that finds one is careful: it writes into the note which batch is
//! next. A careful start that finds a batch named for the third time catches it unseen.

use std::collections::BTreeMap;
use std::sync::Arc;

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

/// A batch, and how many starts have found it named.
type Named = (SpaceId, Generation, u32);

/// Bytes of a line of the note. The first names the batch that is next, each other one that was given up.
const LINE: u64 = 64;

struct Note {
    file: Arc<dyn File>,
    /// As the last start left it.
    found: Option<Named>,
    given_up: std::cell::RefCell<Vec<Named>>,
    careful: bool,
}

impl Note {
    /// None where none can be written, on a full disk: a start must not fail for that, and finds nothing that ends it.
    fn begin(files: &dyn Files, dir: &str) -> Option<Self> {
        let path = note_path(dir);
        let read = files.read(&path).ok();
        let lines: Vec<Option<Named>> = read.iter().flat_map(|b| b.chunks(LINE as usize).map(parse)).collect();
        let found = lines.first().copied().flatten().map(|(space, first, found)| (space, first, found + 1));
        let given_up = lines.into_iter().skip(1).flatten().collect();
        let file = if read.is_some() { files.open(&path) } else { files.create(&path) }.ok()?;
        let note = Self { file, found, given_up: std::cell::RefCell::new(given_up), careful: read.is_some() };
        // Room is taken now: later starts only write it over.
        note.write(0, found).then_some(note)
    }

    fn write(&self, line: u64, named: Option<Named>) -> bool {
        let text = named.map_or(String::new(), |(space, first, found)| format!("{} {} {found}", space.0, first.0));
        self.file.write_at(line * LINE, &[format!("{text:<63}\n").as_bytes()]).is_ok()
    }

    /// The batch is next. True: it has been named too often, now or by an earlier start.
    fn next(&self, space: SpaceId, first: Generation) -> bool {
        let same = |(s, g, _): &&Named| (*s, *g) == (space, first);
        if !self.careful || self.given_up.borrow().iter().any(|n| same(&n)) {
            return self.careful;
        }
        let found = self.found.as_ref().filter(same).map_or(0, |(_, _, found)| *found);
        if found < FOUND_MAX {
            self.write(0, Some((space, first, found)));
            return false;
        }
        // Before anything else is named: this start may die of another.
        let mut given_up = self.given_up.borrow_mut();
        given_up.push((space, first, found));
        self.write(given_up.len() as u64, given_up.last().copied());
        true
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

fn parse(line: &[u8]) -> Option<Named> {
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
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
        let note = if starts && spaces.values().any(|s| !s.deeds.is_empty()) { Note::begin(files, dir) } else { None };
        for (id, seat) in spaces.iter_mut() {
            for mut batch in seat.apply(*id, files, note.as_ref(), now)? {
                if starts {
                    let records = seat.records(*id, &batch);
                    // A full disk must not keep the partition from starting: what could not be kept is told.
                    if let Err(e) = keep_records(files, seed, partition, (*id, batch.first), &records) {
                        batch.reason = format!("{} (and its bytes could not be kept: {e})", batch.reason);
                        seat.tell(&batch);
                    }
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
        self.delta.quarantined = Arc::new(self.quarantined.clone());
        // Where the batch at hand begins, and how much was there before it; whether it goes on.
        let (mut at, mut begun, mut goes_on) = (0, (0, self.delta.begin()), false);
        while let Some(done) = self.deeds.get(at) {
            let Some(rows) = rows_of(&done.deed) else {
                done.apply(&mut self.delta, |_| Ok(()))?;
                at += 1;
                continue;
            };
            if !goes_on {
                begun = (at, self.delta.begin());
            }
            let failed = if self.delta.goes_round(rows.first) {
                done.apply(&mut self.delta, |_| Ok(())).err().map(|e| e.to_string())
            } else if note.is_some_and(|note| note.next(id, rows.first)) {
                Some("the process ended each time it was applied at a start".to_owned())
            } else {
                let reached = |frame: &[u8]| files.reached(Operation::Apply, frame).map_err(|e| Error::io("apply", &e));
                self.delta.attempt(|delta| done.apply(delta, reached)).err()
            };
            let Some(reason) = failed else {
                (at, goes_on) = (at + 1, rows.continues);
                continue;
            };
            // From the batch's begin again, round it.
            let batch = self.batch_around(at, reason, now);
            self.delta.take_back(&begun.1);
            (at, goes_on) = (begun.0, false);
            let place = self.quarantined.partition_point(|q| q.first < batch.first);
            self.quarantined.insert(place, batch.clone());
            Arc::make_mut(&mut self.delta.quarantined).insert(place, batch.clone());
            caught.push(batch);
        }
        Ok(caught)
    }

    /// The batch's reason has changed.
    fn tell(&mut self, batch: &Quarantined) {
        self.quarantined.iter_mut().filter(|q| q.first == batch.first).for_each(|q| q.clone_from(batch));
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
