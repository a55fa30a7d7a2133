//! An immutable view of a space: what a recall reads from beginning to end.
//!
//! Rows have ascending generations: sealed parts first, then the tail up to `tail_to`. A snapshot W restricts any view made at or after
//! W to generations ≤ W (G3); rows never change, and a row that died later lives at W, so the answer is the same from each of them.
//! History parts hold dead rows from anywhere between the others: nobody who looks behind their last death reads them.

mod append;
mod near;
mod walk;

use std::sync::Arc;

use walk::Walk;

use super::deaths::Deaths;
use crate::error::Error;
use crate::index::{Cue, Near, TopK};
use crate::records::{Filter, Row, RowSource, SealedFile};
use crate::types::{FileId, Generation, LogPosition};
use crate::wal::FilePart;
pub use append::AppendList;

/// Rows scored together: their vectors stay in the second-level cache while several cues pass.
const SCAN_ROWS: usize = 128;
/// A walk through the graph costs about as much.
const NARROW_ROWS: u64 = 1 << 12;
/// Rows between two pulses.
const PULSE_ROWS: usize = 1 << 14;
/// A file is due to be written again, its dead rows into another, when one of so many is dead.
pub const DEAD_SHARE: u64 = 4;

/// What a read wants: rows up to a generation, that live then and match.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub upto: Generation,
    pub filter: Option<&'a Filter>,
    /// Asked now and then during a long walk: an error ends it (a signal came).
    pub pulse: &'a dyn Fn() -> Result<(), Error>,
}

impl Scope<'_> {
    /// The first and the last row that may be wanted.
    fn ends(&self) -> (Generation, Generation) {
        let (first, last) = self.filter.map_or((Generation(0), self.upto), Filter::ids);
        (first, last.min(self.upto))
    }

    /// Whether so few rows may be wanted that each is looked at sooner than an index.
    pub fn is_narrow(&self) -> bool {
        let (first, last) = self.ends();
        (first.0 > 0 || last < self.upto) && last.0.saturating_sub(first.0) < NARROW_ROWS
    }
}

/// Rows, and when they died.
#[derive(Clone, Copy)]
struct Held<'a> {
    rows: &'a dyn RowSource,
    deaths: &'a Deaths,
}

/// Which rows of a run are wanted; asked only for rows that would be hits, and once for all cues.
struct Sieve<'a> {
    held: Held<'a>,
    scope: Scope<'a>,
    first: usize,
    asked: u128,
    passed: u128,
}

impl<'a> Sieve<'a> {
    fn new(held: Held<'a>, scope: Scope<'a>, first: usize) -> Self {
        const { assert!(SCAN_ROWS <= 128, "a bit a row") };
        Self { held, scope, first, asked: 0, passed: 0 }
    }

    fn passes(&mut self, row: usize) -> Result<bool, Error> {
        let Some(filter) = self.scope.filter else { return Ok(self.held.lives(row, self.scope.upto)) };
        let bit = 1 << (row - self.first);
        if self.asked & bit == 0 {
            self.asked |= bit;
            let wanted = self.held.lives(row, self.scope.upto) && filter.matches(&self.held.rows.facts(row)?);
            self.passed |= if wanted { bit } else { 0 };
        }
        Ok(self.passed & bit != 0)
    }
}

impl Held<'_> {
    fn lives(&self, row: usize, upto: Generation) -> bool {
        self.deaths.at(row, upto).is_none()
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
    pub deaths: Arc<Deaths>,
}

impl Part {
    /// Rows of which none has died.
    pub fn new(rows: Arc<dyn RowSource>, position: LogPosition, bytes: u64) -> Self {
        let deaths = Arc::new(Deaths::new(rows.rows()));
        Self { rows, position, bytes, sound: true, deaths }
    }
}

#[derive(Clone)]
pub struct SealedPart {
    pub place: FilePart,
    /// None: stands for rows that cannot be read.
    pub file: Option<Arc<SealedFile>>,
    pub rows: Arc<dyn RowSource>,
    pub bytes: u64,
    pub sound: bool,
    pub deaths: Arc<Deaths>,
}

#[derive(Clone)]
pub struct View {
    pub(in crate::store) sealed: Arc<Vec<SealedPart>>,
    pub(in crate::store) history: Arc<Vec<SealedPart>>,
    pub(in crate::store) tail: Arc<AppendList<Part>>,
    pub(in crate::store) tail_to: usize,
    pub(in crate::store) watermark: Generation,
    pub(in crate::store) memories: u64,
    /// Something in it cannot be read.
    pub(in crate::store) damaged: bool,
}

impl View {
    pub(in crate::store) fn empty(watermark: Generation) -> Self {
        let (sealed, history) = (Arc::default(), Arc::default());
        Self { sealed, history, tail: Arc::default(), tail_to: 0, watermark, memories: 0, damaged: false }
    }

    pub fn watermark(&self) -> Generation {
        self.watermark
    }

    /// Rows that live at the watermark and can be read.
    pub fn memories(&self) -> u64 {
        self.memories
    }

    pub fn sealed(&self) -> &[SealedPart] {
        &self.sealed
    }

    /// Parts of dead rows.
    pub fn history(&self) -> &[SealedPart] {
        &self.history
    }

    /// Everything that lies in files.
    pub fn filed(&self) -> impl Iterator<Item = &SealedPart> + '_ {
        self.sealed.iter().chain(self.history.iter())
    }

    pub(in crate::store) fn has_file(&self, file: FileId) -> bool {
        self.filed().any(|p| p.place.file == file)
    }

    pub fn sealed_bytes(&self) -> u64 {
        self.filed().map(|p| p.bytes).sum()
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

    fn held(&self, i: usize) -> Option<Held<'_>> {
        match self.sealed.get(i) {
            Some(part) => Some(Held { rows: &*part.rows, deaths: &part.deaths }),
            None => self.tail.get(i - self.sealed.len()).map(|p| Held { rows: &*p.rows, deaths: &p.deaths }),
        }
    }

    /// The first part that may hold generations ≥ `generation`.
    fn part_from(&self, generation: Generation) -> usize {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let mid = usize::midpoint(low, high);
            if self.held(mid).is_some_and(|h| h.rows.last() < generation) { low = mid + 1 } else { high = mid }
        }
        low
    }

    fn held_history(&self) -> impl Iterator<Item = Held<'_>> {
        self.history.iter().map(|p| Held { rows: &*p.rows, deaths: &p.deaths })
    }

    fn all(&self) -> impl Iterator<Item = Held<'_>> {
        (0..self.count()).filter_map(|i| self.held(i)).chain(self.held_history())
    }

    /// What a reader at `upto` has to look through, in no order.
    fn needed(&self, upto: Generation) -> impl Iterator<Item = Held<'_>> {
        let begun = (0..self.count()).map_while(move |i| self.held(i).filter(|h| h.rows.first() <= upto));
        let history = self.held_history().filter(move |h| h.rows.first() <= upto);
        begun.chain(history).filter(move |h| !h.deaths.all_by(upto))
    }

    /// Where the row named `generation` is, dead or alive. What cannot be read says last that it may have it.
    fn find(&self, generation: Generation) -> Option<(Held<'_>, usize)> {
        let among = |held: Held<'_>| held.rows.row_of(generation).is_some();
        let main = self.held(self.part_from(generation)).filter(|h| among(*h));
        let sound = |h: &Held<'_>| h.rows.damage().is_none();
        let held = main.filter(sound).or_else(|| {
            let covers = |h: &Held<'_>| h.rows.first() <= generation && generation <= h.rows.last() && among(*h);
            let history = || self.held_history().filter(covers);
            history().find(sound).or(main).or_else(|| history().next())
        })?;
        held.rows.row_of(generation).map(|row| (held, row))
    }

    /// Row and death of the memory named `generation`, dead or alive at `upto`.
    pub fn version(
        &self,
        generation: Generation,
        upto: Generation,
    ) -> Result<Option<(Row<'_>, Option<Generation>)>, Error> {
        if generation > upto {
            // Behind the last known row of a space that lost its log's end nobody knows what was.
            let last = self.count().checked_sub(1).and_then(|i| self.held(i)).filter(|h| h.rows.last() >= generation);
            return last.and_then(|h| h.rows.damage()).map_or(Ok(None), |error| Err(error.clone()));
        }
        let Some((held, row)) = self.find(generation) else {
            return Ok(None);
        };
        Ok(Some((held.rows.row(row)?, held.deaths.at(row, upto))))
    }

    /// The memory named `generation`, if it is visible at `upto`.
    pub fn get(&self, generation: Generation, upto: Generation) -> Result<Option<Row<'_>>, Error> {
        if self.find(generation).is_some_and(|(held, _)| held.deaths.all_by(upto)) {
            return Ok(None);
        }
        Ok(self.version(generation, upto)?.filter(|(_, death)| death.is_none()).map(|(row, _)| row))
    }

    /// Whether a row of that name is here, dead or alive.
    pub fn holds(&self, generation: Generation) -> bool {
        self.find(generation).is_some_and(|(held, _)| held.rows.damage().is_none())
    }

    /// Whether a row died behind `from`, up to `upto`.
    pub fn died_between(&self, from: Generation, upto: Generation) -> bool {
        self.all().any(|h| h.deaths.last() > from && h.deaths.each(upto).any(|(_, death)| death > from))
    }

    /// Whether a row of that name is here and lives.
    pub fn lives(&self, generation: Generation) -> bool {
        self.find(generation).is_some_and(|(held, row)| held.lives(row, Generation(u64::MAX)))
    }

    /// The row died; None if it is not here, or cannot be read.
    pub(in crate::store) fn kill(&self, generation: Generation, death: Generation) -> Option<Died> {
        let (held, row) = self.find(generation)?;
        if held.rows.damage().is_some() {
            return None;
        }
        let (new, rows) = (held.deaths.set(row, death), held.rows.rows() as u64);
        let share = held.deaths.dead() * DEAD_SHARE;
        Some(Died { new, due: new && share >= rows && share < rows + DEAD_SHARE })
    }

    /// Whether rows that cannot be read stand where this one would be.
    pub(in crate::store) fn unsound_at(&self, generation: Generation) -> bool {
        let main = self.held(self.part_from(generation));
        main.into_iter()
            .chain(self.held_history())
            .any(|h| h.rows.damage().is_some() && h.rows.first() <= generation && generation <= h.rows.last())
    }

    /// Rows that live, whatever the watermark says.
    pub(in crate::store) fn count_living(&self) -> u64 {
        let sound = self.all().filter(|h| h.rows.damage().is_none());
        sound.map(|h| h.rows.rows() as u64 - h.deaths.count(h.rows.rows(), Generation(u64::MAX))).sum()
    }

    /// Calls `each` with rows behind `after` that are wanted, until it says false.
    pub fn list(&self, after: Generation, scope: Scope<'_>, each: impl FnMut(Row<'_>) -> bool) -> Result<(), Error> {
        self.walk(after, scope, false, each)
    }

    /// The same with rows that match, also those that died.
    pub fn list_dead_too(
        &self,
        after: Generation,
        scope: Scope<'_>,
        each: impl FnMut(Row<'_>) -> bool,
    ) -> Result<(), Error> {
        self.walk(after, scope, true, each)
    }

    fn walk(
        &self,
        after: Generation,
        scope: Scope<'_>,
        dead_too: bool,
        mut each: impl FnMut(Row<'_>) -> bool,
    ) -> Result<(), Error> {
        let (first, last) = scope.ends();
        let after = after.max(Generation(first.0.saturating_sub(1)));
        let mut walk = Walk::new(self, (after, last), scope.upto, dead_too);
        for seen in 0.. {
            let Some((held, row)) = walk.next()? else { break };
            if seen % PULSE_ROWS == 0 {
                (scope.pulse)()?;
            }
            if !dead_too && !held.lives(row, scope.upto) {
                continue;
            }
            if let Some(filter) = scope.filter
                && !filter.matches(&held.rows.facts(row)?)
            {
                continue;
            }
            if !each(held.rows.row(row)?) {
                break;
            }
        }
        Ok(())
    }

    /// Memories visible at `upto`.
    pub fn len_at(&self, upto: Generation) -> Result<u64, Error> {
        let mut n = 0;
        for held in self.needed(upto) {
            if let Some(error) = held.rows.damage() {
                return Err(error.clone());
            }
            let rows = if held.rows.last() <= upto { held.rows.rows() } else { first_after(held.rows, upto) };
            n += rows as u64 - held.deaths.count(rows, upto);
        }
        Ok(n)
    }

    /// Scores every wanted row with a vector against all cues: the flat index (G6). The filter is applied during the scan: k rows come
    /// back whenever k match (G4).
    pub fn scan(&self, cues: &[Cue], tops: &mut [TopK], scope: Scope<'_>) -> Result<(), Error> {
        let mut scores = Vec::new();
        let mut since_pulse = 0;
        let (first, last) = scope.ends();
        for held in self.needed(scope.upto).filter(|h| h.rows.first() <= last && first <= h.rows.last()) {
            let source = held.rows;
            if let Some(error) = source.damage() {
                return Err(error.clone());
            }
            let end = if source.last() <= last { source.rows() } else { first_after(source, last) };
            let mut row = first_after(source, Generation(first.0.saturating_sub(1)));
            while row < end {
                let run = source.vectors_from(row, SCAN_ROWS.min(end - row))?;
                if !run.bytes.is_empty() {
                    let mut sieve = Sieve::new(held, scope, row);
                    for (cue, top) in cues.iter().zip(tops.iter_mut()) {
                        cue.score(run.bytes, &run.inverse_norms, &mut scores);
                        for (at, score) in scores.iter().enumerate() {
                            if top.admits(*score) && sieve.passes(row + at)? {
                                top.push(Near { score: *score, generation: source.generation_at(row + at) });
                            }
                        }
                    }
                }
                row += run.rows;
                since_pulse += run.rows * cues.len();
                if since_pulse >= PULSE_ROWS {
                    (scope.pulse)()?;
                    since_pulse = 0;
                }
            }
        }
        Ok(())
    }

    /// The last row that is here with a generation ≤ `upto`, and whether it ends its batch (G5).
    pub fn last_row(&self, upto: Generation) -> Result<Option<(Generation, bool)>, Error> {
        let end = (self.part_from(upto) + 1).min(self.count());
        let last = |held: Held<'_>| {
            let rows = if held.rows.damage().is_some() { 0 } else { first_after(held.rows, upto) };
            rows.checked_sub(1).map(|row| held.rows.generation_at(row))
        };
        let main = (0..end).rev().filter_map(|i| self.held(i)).find_map(last);
        let Some(at) = main.max(self.held_history().filter_map(last).max()) else { return Ok(None) };
        let Some((held, row)) = self.find(at) else { return Ok(None) };
        Ok(Some((at, held.rows.ends_batch(row)?)))
    }

    /// The first generation behind `after` of a row that is here, or may be.
    pub fn next_row(&self, after: Generation) -> Option<Generation> {
        let first = |held: Held<'_>| {
            if held.rows.damage().is_some() {
                return (held.rows.last() > after).then(|| held.rows.first().max(after.plus(1)));
            }
            let row = first_after(held.rows, after);
            (row < held.rows.rows()).then(|| held.rows.generation_at(row))
        };
        let main = (self.part_from(after.plus(1))..self.count()).filter_map(|i| self.held(i)).find_map(first);
        main.into_iter().chain(self.held_history().filter_map(first)).min()
    }

    /// The last generation of a row committed at or before `time` (G5).
    pub fn generation_at(&self, time: i64) -> Option<Generation> {
        let history = self.held_history().filter_map(|held| last_by(held, time)).max();
        self.main_generation_at(time).max(history)
    }

    fn main_generation_at(&self, time: i64) -> Option<Generation> {
        let (mut low, mut high) = (0, self.count());
        let begins = |i: usize| self.held(i).is_some_and(|h| h.rows.rows() > 0 && h.rows.committed_at(0) <= time);
        while low < high {
            let mid = usize::midpoint(low, high);
            // What has no rows says nothing: the next that has some decides.
            let known = (mid..high).find(|i| self.held(*i).is_some_and(|h| h.rows.rows() > 0));
            match known {
                Some(i) if begins(i) => low = i + 1,
                _ => high = mid,
            }
        }
        let held = (0..low).rev().filter_map(|i| self.held(i)).find(|h| h.rows.rows() > 0)?;
        last_by(held, time)
    }

    /// Row and death of all that died at or before `upto`, in order of the rows.
    pub fn deaths(&self, upto: Generation) -> Vec<(Generation, Generation)> {
        let of = |h: Held<'_>| -> Vec<_> {
            h.deaths.each(upto).map(|(row, death)| (h.rows.generation_at(row), death)).collect()
        };
        let mut all: Vec<_> = self.all().flat_map(of).collect();
        if !self.history.is_empty() {
            all.sort_unstable();
        }
        all
    }

    /// Why some rows cannot be read, if so.
    pub fn first_damage(&self) -> Option<Error> {
        self.all().find_map(|h| h.rows.damage().cloned())
    }

    /// Calls `each` with every key and its row's generation.
    pub fn keys(&self, mut each: impl FnMut(&str, Generation)) -> Result<(), Error> {
        for held in self.all().filter(|h| h.rows.has_keys()) {
            for row in 0..held.rows.rows() {
                if let Some(key) = held.rows.key(row)? {
                    each(key, held.rows.generation_at(row));
                }
            }
        }
        Ok(())
    }
}

/// What became of a row that was to die.
pub(in crate::store) struct Died {
    /// It lived.
    pub(in crate::store) new: bool,
    /// Its part has now reached the share that makes it due.
    pub(in crate::store) due: bool,
}

/// The last generation among rows committed at or before `time`.
fn last_by(held: Held<'_>, time: i64) -> Option<Generation> {
    let (mut from, mut to) = (0, held.rows.rows());
    while from < to {
        let mid = usize::midpoint(from, to);
        if held.rows.committed_at(mid) <= time { from = mid + 1 } else { to = mid }
    }
    from.checked_sub(1).map(|row| held.rows.generation_at(row))
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
