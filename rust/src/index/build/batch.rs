//! A batch under way: who does which piece of what, and what is known of it so far.

use std::ops::Range;
use std::sync::Arc;

/// Levels by which a batch is put in order.
pub(super) const LEVELS: usize = 3;

/// A row of a batch: what is nearest to it, as far as a walk down finds out, on the levels from `LEVELS` to 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Placed {
    pub(super) on: [Option<u32>; LEVELS],
    pub(super) row: u32,
}

#[derive(Clone, Copy)]
pub(super) struct NewLink {
    pub(super) level: u32,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// What a batch is at.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Idle,
    /// Rows find their place among the others.
    Place,
    /// Rows look for their neighbours.
    Look,
    /// Those link back.
    Back,
}

/// A batch under way: whoever comes takes a piece of its phase, the last to end one begins the next.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) phase: Phase,
    pub(super) begin: usize,
    pub(super) end: usize,
    /// The first that nobody took yet: rows, or groups of links back.
    pub(super) next: usize,
    /// Pieces taken and not done.
    pub(super) open: usize,
    /// A piece panicked: the batch is begun again when the others are done.
    pub(super) broken: bool,
    /// No other is begun.
    pub(super) paused: bool,
    pub(super) placed: Vec<Placed>,
    /// The same, in order.
    pub(super) order: Arc<Vec<Placed>>,
    pub(super) links: Vec<NewLink>,
    /// Ends of the groups among `links`.
    pub(super) groups: Vec<usize>,
}

impl Batch {
    /// Takes a piece of what is left of `all`.
    pub(super) fn take(&mut self, all: usize, most: usize) -> Range<usize> {
        let piece = self.next..all.min(self.next + most);
        self.next = piece.end;
        self.open += usize::from(!piece.is_empty());
        piece
    }

    /// What its phase is made of: rows, or groups of links back.
    pub(super) fn pieces(&self) -> usize {
        if self.phase == Phase::Back { self.groups.len() } else { self.end - self.begin }
    }

    pub(super) fn of_groups(&self, piece: &Range<usize>) -> &[NewLink] {
        let from = piece.start.checked_sub(1).map_or(0, |before| self.groups[before]);
        &self.links[from..self.groups[piece.end - 1]]
    }

    /// Where each row belongs is known: they look in this order.
    pub(super) fn put_in_order(&mut self) {
        let mut order = std::mem::take(&mut self.placed);
        order.sort_unstable();
        (self.order, self.phase, self.next) = (Arc::new(order), Phase::Look, 0);
    }

    /// It will be begun again.
    pub(super) fn give_up(&mut self) {
        *self = Self { paused: self.paused, ..Self::default() };
    }

    /// A piece is done; whether it was the last of `all`.
    pub(super) fn done(&mut self, all: usize, well: bool) -> bool {
        self.open -= 1;
        self.broken |= !well;
        let last = self.open == 0 && (self.next == all || self.broken);
        if last && self.broken {
            self.give_up();
            return false;
        }
        last
    }
}
