//! Rows in order, from parts whose ranges overlap.

use super::{Held, View, first_after};
use crate::error::Error;
use crate::types::Generation;

/// Rows in order of generation, from every part that a reader needs.
pub(super) struct Walk<'a> {
    view: &'a View,
    after: Generation,
    last: Generation,
    /// The part outside history, and its row.
    main: (usize, usize),
    history: Vec<(Held<'a>, usize)>,
}

impl<'a> Walk<'a> {
    /// Through the rows behind `after` up to `last`, as they were at `upto`.
    pub(super) fn new(
        view: &'a View,
        (after, last): (Generation, Generation),
        upto: Generation,
        dead_too: bool,
    ) -> Self {
        let part = view.part_from(Generation(after.0.saturating_add(1)));
        let row = view.held(part).map_or(0, |held| first_after(held.rows, after));
        let needed = |h: &Held<'_>| h.rows.last() > after && (dead_too || !h.deaths.all_by(upto));
        let history = view.held_history().filter(needed);
        let history = history.map(|h| (h, first_after(h.rows, after))).collect();
        Self { view, after, last, main: (part, row), history }
    }

    /// What stands at a place, up to `last`: a row, or damage.
    fn stands(&self, held: Held<'_>, row: usize) -> Option<Generation> {
        if held.rows.damage().is_some() {
            // However far the watermark got: what was lost may lie before it.
            let first = held.rows.first();
            return (first <= self.last).then(|| first.max(Generation(self.after.0.saturating_add(1))));
        }
        let at = (row < held.rows.rows()).then(|| held.rows.generation_at(row));
        at.filter(|at| *at <= self.last)
    }

    pub(super) fn next(&mut self) -> Result<Option<(Held<'a>, usize)>, Error> {
        let view = self.view;
        let main = loop {
            let Some(held) = view.held(self.main.0) else { break None };
            if held.rows.damage().is_none() && self.main.1 >= held.rows.rows() {
                self.main = (self.main.0 + 1, 0);
                continue;
            }
            break self.stands(held, self.main.1).map(|at| (at, held, self.main.1));
        };
        let old = (0..self.history.len()).filter_map(|i| {
            let (held, row) = self.history[i];
            self.stands(held, row).map(|at| (at, i))
        });
        let (held, row) = match (main, old.min_by_key(|(at, _)| *at)) {
            (None, None) => return Ok(None),
            (Some((at, held, row)), old) if old.is_none_or(|(older, _)| at < older) => {
                self.main.1 += 1;
                (held, row)
            }
            (_, old) => {
                let i = old.map_or(0, |(_, i)| i);
                self.history[i].1 += 1;
                (self.history[i].0, self.history[i].1 - 1)
            }
        };
        held.rows.damage().map_or(Ok(Some((held, row))), |error| Err(error.clone()))
    }
}
