//! How far back does a space remember? (G5, K3)
//!
//! Rows that died are kept for a while, then left out of new files, at once if they are to be purged. What `as_of` went by is kept for them as
//! far back as it reaches: their times, and whether their generations lie inside a batch or ended one.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::space::Space;
use super::view::View;
use crate::error::Error;
use crate::types::{Config, Generation};

/// Rows that a new file need not hold.
pub struct LeftOut {
    upto: Generation,
    history_from: Generation,
    purging: BTreeMap<Generation, Generation>,
}

impl LeftOut {
    /// Whether the row, dead since `death`, is left out.
    pub fn has(&self, row: Generation, death: Generation) -> bool {
        death <= self.upto && (death <= self.history_from || self.purging.contains_key(&row))
    }

    /// Whether the row's bytes must go.
    pub fn purges(&self, row: Generation) -> bool {
        self.purging.contains_key(&row)
    }

    pub fn upto(&self) -> Generation {
        self.upto
    }
}

impl Space {
    /// Generations without a row, and when they were committed.
    pub fn changes(&self) -> Vec<(Generation, i64)> {
        self.changes.lock().clone()
    }

    /// What rows said that will not be here any more: generation, time, and whether it ended its batch. `as_of` goes by them still (G5).
    pub fn remember(&self, view: &View, rows: &[(Generation, i64, bool)]) {
        let mut state = self.state.lock();
        let from = state.history_from;
        rows.iter().filter(|row| row.2).for_each(|row| state.ended.add(row.0));
        for (row, _, _) in rows.iter().filter(|row| !row.2 && row.0 > from) {
            // And the voids behind it: its batch goes on at least to the next row, or to where one was that ended it.
            let next = [view.next_row(*row), state.ended.first_behind(*row)].into_iter().flatten().min();
            (row.0..next.map_or(row.0 + 1, |g| g.0)).for_each(|g| state.inside.add(Generation(g)));
        }
        drop(state);
        let mut changes = self.changes.lock();
        // The last of each time.
        changes.extend(rows.chunk_by(|a, b| a.1 == b.1).filter_map(|same| same.last().map(|(row, at, _)| (*row, *at))));
        changes.sort_unstable();
        changes.dedup();
        drop_before(&mut changes, from);
    }

    /// The last generation at or before `wanted` that does not lie inside a batch (G5).
    pub fn whole_batches(&self, view: &View, wanted: Generation) -> Result<Generation, Error> {
        let mut at = wanted;
        loop {
            let state = self.state.lock();
            let (inside, ended) = (state.inside.first_of(at), state.ended.last_upto(at));
            // Nothing of the horizon begins inside a batch.
            let whole = ended.unwrap_or_default().max(state.history_from);
            drop(state);
            at = match inside {
                Some(first) => Generation(first.0 - 1),
                None => match view.last_row(at)? {
                    Some((row, false)) if row > whole => Generation(row.0 - 1),
                    _ => return Ok(at),
                },
            };
        }
    }

    /// Whether this generation, of which a view has no row, never had one. False also if nobody knows: it lies before the horizon, or behind
    /// a row of its batch that is no more.
    pub fn was_void(&self, generation: Generation) -> bool {
        let state = self.state.lock();
        let was_row = state.inside.first_of(generation).or_else(|| state.ended.first_of(generation)).is_some();
        generation > state.history_from && !was_row
    }

    /// The last of them at or before a time.
    pub fn change_at(&self, time: i64) -> Option<Generation> {
        let changes = self.changes.lock();
        let known = changes.partition_point(|(_, at)| *at <= time);
        known.checked_sub(1).map(|i| changes[i].0)
    }

    /// These rows need not be kept, or must not be: sealed files that hold some are due to be written again.
    pub fn let_go(&self, history_from: Generation, purging: Vec<(Generation, Generation)>) {
        let mut state = self.state.lock();
        state.history_from = state.history_from.max(history_from);
        state.purging.extend(purging);
        let from = state.history_from;
        state.inside.keep_after(from);
        state.ended.keep_after(from);
        drop(state);
        drop_before(&mut self.changes.lock(), from);
        // Relaxed: a hint; who rewrites looks again.
        self.thins.store(true, Ordering::Relaxed);
    }

    /// Rows whose bytes are to be removed.
    pub fn purging(&self) -> Vec<Generation> {
        self.state.lock().purging.keys().copied().collect()
    }

    /// The bytes of these rows are gone.
    pub fn purged(&self, ids: &[Generation]) {
        let mut state = self.state.lock();
        for id in ids {
            state.purging.remove(id);
        }
    }

    /// Whether sealed files may hold rows that need not be kept; asking takes the hint.
    pub fn takes_thinning(&self) -> bool {
        self.thins.swap(false, Ordering::Relaxed)
    }

    pub fn history_from(&self) -> Generation {
        self.state.lock().history_from
    }

    /// Which rows a new file leaves out: those that died at or before `upto`, that no pin sees, and that are expired or to be purged.
    pub fn leaves_out(&self, upto: Generation, now: u64, config: &Config) -> LeftOut {
        let state = self.state.lock();
        let seen = self.pins.oldest(now, config).map_or(upto, |pin| pin.min(upto));
        LeftOut { upto: seen, history_from: state.history_from, purging: state.purging.clone() }
    }
}

/// The last one of what is not kept stays: a time after it means at least that.
fn drop_before(changes: &mut Vec<(Generation, i64)>, from: Generation) {
    let last = changes.partition_point(|(generation, _)| *generation <= from).saturating_sub(1);
    changes.drain(..last);
}
