//! Links for rows that have none: a batch at a time, oldest first.
//!
//! First every row of the batch walks down to the lowest level, and the batch is put in order by the rows met on the way: rows that are alike
//! come one after the other, and find in the cache what the one before them fetched. In this order each looks for its neighbours: in the
//! graph as it stands, and among the older ones of the rows around it. Nothing changes meanwhile, so several threads may look, a piece each. Then one
//! writes the batch's own links, and all write those back, each list by one thread; at the end `end` moves behind the batch. The links do
//! not depend on who did what. (Phases: ParlayANN, PPoPP 2024, arXiv 2305.04359.)
//!
//! A list that overflows is chosen anew, with room left for some more (`choose`).
//!
//! Every row but the first has a parent among its neighbours on level 0; parent and child keep their links to each other, whatever is chosen. So
//! every row is within reach of every other, copies of one vector by the thousand included.

mod batch;
mod choose;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use batch::{Batch, LEVELS, NewLink, Phase, Placed};
use parking_lot::Mutex;

use super::calibrate::{Trial, is_due};
use super::codec::Coded;
use super::graph::{Graph, LINKS, LINKS_BASE};
use super::rows::Rows;
use super::walk::Scratch;

/// Candidates that a row's neighbours are chosen from.
pub(super) const EF_CONSTRUCTION: usize = 48;
/// Links that are left of an overflowing list.
const KEPT_BASE: usize = 24;
const KEPT: usize = 12;
/// Children of a row in the tree: they and the parent leave room for links that are chosen.
const CHILDREN: u32 = 8;

/// Rows of a batch: a share of the linked ones, within limits; and of a piece of it.
const BATCH: Range<usize> = 256..4_096;
const BATCH_SHARE: usize = 16;
const PIECE: usize = 32;
/// Rows of the batch that a row looks at, to either side of it.
const PEERS: usize = 128;

/// Room for one thread's work on a piece.
#[derive(Default)]
struct Work {
    scratch: Scratch,
    query: Coded,
    peers: Vec<u32>,
    products: Vec<i32>,
    chosen: Vec<u32>,
    placed: Vec<Placed>,
    links: Vec<NewLink>,
}

/// Everything that building keeps between its steps.
#[derive(Default)]
pub(super) struct Building {
    batch: Mutex<Batch>,
    spare: Mutex<Vec<Work>>,
    trial: Mutex<(Option<Trial>, usize)>,
}

pub(super) struct Builder<'a> {
    pub(super) graph: &'a Graph,
    pub(super) rows: &'a Rows,
}

/// A piece of work on the graph; false if there is nothing to do. Any number of threads.
pub(super) fn step(graph: &Graph, rows: &Rows, building: &Building) -> bool {
    let mut work = building.spare.lock().pop().unwrap_or_default();
    let moved = building.try_out(graph, rows, &mut work) || Builder { graph, rows }.link(&building.batch, &mut work);
    building.spare.lock().push(work);
    moved
}

impl Building {
    /// No batch is begun from now on; whether none is under way, so that links stay as they are.
    pub(super) fn pause(&self) -> bool {
        let mut batch = self.batch.lock();
        batch.paused = true;
        batch.phase == Phase::Idle
    }

    pub(super) fn resume(&self) {
        self.batch.lock().paused = false;
    }

    /// A step of a trial, if one is due and nobody is at it.
    fn try_out(&self, graph: &Graph, rows: &Rows, work: &mut Work) -> bool {
        let Some(mut trials) = self.trial.try_lock() else {
            return false;
        };
        let (trial, tried) = &mut *trials;
        if trial.is_none() && is_due(graph.end(), *tried) {
            *tried = graph.end();
            *trial = Some(Trial::new(graph.end()));
        }
        let Some(mut running) = trial.take() else {
            return false;
        };
        match running.step(graph, rows, &mut work.scratch) {
            Ok(None) => *trial = Some(running),
            Ok(Some(measured)) => graph.set_measured(&measured),
            Err(_) => {}
        }
        true
    }
}

impl Builder<'_> {
    /// A piece of the batch under way, or of the next.
    fn link(&self, batch: &Mutex<Batch>, work: &mut Work) -> bool {
        let mut state = batch.lock();
        if state.phase == Phase::Idle && !self.begin(&mut state) {
            return false;
        }
        let (phase, all) = (state.phase, state.pieces());
        let piece = state.take(all, PIECE);
        if piece.is_empty() || state.broken {
            // Others are at the last pieces; if nobody is, whoever ended them panicked.
            state.open -= usize::from(!piece.is_empty());
            if state.open == 0 {
                state.give_up();
            }
            drop(state);
            std::thread::yield_now();
            return true;
        }
        let (begin, order) = (state.begin, Arc::clone(&state.order));
        let back: Vec<NewLink> = if phase == Phase::Back { state.of_groups(&piece).to_vec() } else { Vec::new() };
        drop(state);
        work.links.clear();
        work.placed.clear();
        let done = catch_unwind(AssertUnwindSafe(|| match phase {
            Phase::Place => piece.clone().for_each(|row| self.place((begin + row) as u32, work)),
            Phase::Look => piece.clone().for_each(|at| self.look(&order, at, begin as u32, work)),
            Phase::Back | Phase::Idle => {
                for back in back.chunk_by(|a, b| (a.to, a.level) == (b.to, b.level)) {
                    self.link_back(back, work);
                }
            }
        }));
        let mut state = batch.lock();
        state.placed.append(&mut work.placed);
        state.links.append(&mut work.links);
        if state.done(all, done.is_ok()) {
            match phase {
                Phase::Place => state.put_in_order(),
                Phase::Look => self.write(&mut state),
                Phase::Back | Phase::Idle => self.end(&mut state),
            }
        }
        drop(state);
        done.map_or_else(|panic| resume_unwind(panic), |()| true)
    }

    /// Opens the next batch; false if all rows are linked.
    fn begin(&self, state: &mut Batch) -> bool {
        if state.paused {
            return false;
        }
        state.begin = self.graph.end();
        let most = (state.begin / BATCH_SHARE).clamp(BATCH.start, BATCH.end);
        state.end = self.rows.len().min(state.begin + most);
        for row in self.graph.len()..state.end {
            self.graph.add(self.level(row as u32));
        }
        (state.phase, state.next) = (Phase::Place, 0);
        state.placed.clear();
        state.links.clear();
        if state.begin == state.end {
            state.phase = Phase::Idle;
        }
        state.begin < state.end
    }

    /// All is linked, both ways.
    fn end(&self, state: &mut Batch) {
        for row in state.begin as u32..state.end as u32 {
            self.admit(row, self.level(row));
        }
        self.graph.publish(state.end);
        state.phase = Phase::Idle;
    }

    /// The row is linked; walks begin at the highest.
    pub(super) fn admit(&self, row: u32, level: usize) {
        if self.graph.entry().is_none_or(|(_, top)| top < level) {
            self.graph.enter_at(row, level);
        }
    }

    pub(super) fn level(&self, row: u32) -> usize {
        self.graph.level_of(self.rows.generation(row).0)
    }

    fn query_of(&self, row: u32, query: &mut Coded) {
        let (bytes, factors) = (self.rows.bytes.row(row as usize), self.rows.factors.row(row as usize));
        self.rows.codec.query_of_row(bytes, factors, query);
    }

    /// Finds what is nearest to a row on the levels above the lowest.
    fn place(&self, row: u32, work: &mut Work) {
        let mut on = [None; LEVELS];
        if self.graph.entry().is_some_and(|(_, top)| top > 0) {
            self.query_of(row, &mut work.query);
            work.scratch.descend(self.graph, self.rows, &work.query, 0, |level, at| {
                if let Some(on) = LEVELS.checked_sub(level).and_then(|i| on.get_mut(i)) {
                    *on = Some(at);
                }
            });
        }
        work.placed.push(Placed { on, row });
    }

    /// Finds a row's neighbours on each of its levels: among linked rows, and those of the batch that are older and stand near it.
    fn look(&self, order: &[Placed], at: usize, begin: u32, work: &mut Work) {
        let Placed { on, row } = order[at];
        let mut query = std::mem::take(&mut work.query);
        self.query_of(row, &mut query);
        let level = self.level(row);
        let top = self.graph.entry().map(|(_, top)| top);
        let known = (LEVELS - 1).checked_sub(level).and_then(|i| on[i]);
        let from = known.or_else(|| work.scratch.descend(self.graph, self.rows, &query, level, |_, _| {}));
        let mut from: Vec<u32> = from.into_iter().collect();
        for level in (0..=level).rev() {
            work.scratch.beam.clear();
            if top.is_some_and(|top| level <= top) {
                work.scratch.walk(self.graph, self.rows, &query, &from, level, EF_CONSTRUCTION);
                from.clear();
                from.extend(work.scratch.beam.iter().map(|met| met.row));
            }
            let mut near = std::mem::take(&mut work.chosen);
            near.clear();
            // Rows of this batch are reached if it was begun before, and broken off: they are peers.
            near.extend(work.scratch.beam.iter().map(|met| met.row).filter(|to| *to < begin));
            work.peers.clear();
            // Few rows are on higher levels: there all of the batch are asked.
            let around =
                if level == 0 { at.saturating_sub(PEERS)..order.len().min(at + PEERS) } else { 0..order.len() };
            let older = order[around].iter().map(|placed| placed.row).filter(|peer| *peer < row);
            work.peers.extend(older.filter(|peer| level == 0 || self.level(*peer) >= level));
            near.extend(work.scratch.best(self.rows, &query, &work.peers, LINKS));
            self.choose(row, &mut near, LINKS, &mut work.products);
            work.links.extend(near.iter().map(|to| NewLink { level: level as u32, from: row, to: *to }));
            work.chosen = near;
        }
        work.query = query;
    }

    /// Writes the batch's own links, and groups those back by the row they lead from.
    fn write(&self, state: &mut Batch) {
        let mut links = std::mem::take(&mut state.links);
        // Pieces end in any order; which parent has room must not depend on it.
        links.sort_by_key(|link| (link.from, std::cmp::Reverse(link.level)));
        let mut own = Vec::new();
        for chosen in links.chunk_by_mut(|a, b| (a.from, a.level) == (b.from, b.level)) {
            own.clear();
            own.extend(chosen.iter().map(|link| link.to));
            let (row, level) = (chosen[0].from, chosen[0].level as usize);
            if level == 0 {
                let parent = self.graph.parent(row).unwrap_or_else(|| self.adopted(row, &own));
                if !own.contains(&parent) {
                    // The farthest makes place.
                    let last = own.len() - 1;
                    (own[last], chosen[last].to) = (parent, parent);
                }
            }
            self.graph.set_links(row, level, &own);
        }
        links.sort_unstable_by_key(|link| (link.level, link.to, link.from));
        let mut at = 0;
        let groups = links.chunk_by(|a, b| (a.to, a.level) == (b.to, b.level));
        state.groups = groups
            .map(|group| {
                at += group.len();
                at
            })
            .collect();
        (state.links, state.phase, state.next) = (links, Phase::Back, 0);
        if state.groups.is_empty() {
            self.end(state);
        }
    }

    /// The nearest of a row's neighbours that may have one more child; if none may, a descendant of the nearest, or the row before: it
    /// has none yet.
    pub(super) fn parent_for(&self, row: u32, own: &[u32]) -> u32 {
        if let Some(parent) = own.iter().find(|row| self.graph.children(**row) < CHILDREN) {
            return *parent;
        }
        let mut at = own[0];
        while self.graph.children(at) >= CHILDREN {
            // The youngest: it had the least time to have many.
            let children = self.graph.links(at, 0).filter(|to| *to < row && self.graph.parent(*to) == Some(at));
            match children.max() {
                Some(child) => at = child,
                None => return row - 1,
            }
        }
        at
    }

    fn adopted(&self, row: u32, own: &[u32]) -> u32 {
        let parent = self.parent_for(row, own);
        self.graph.adopt(parent, row);
        parent
    }

    /// The row becomes the parent's child; its links, nearest first, come to name the parent, and the parent's name it. Of the rows behind it none is bound yet.
    pub(super) fn bind(&self, row: u32, parent: u32, links: &mut Vec<u32>) {
        self.graph.adopt(parent, row);
        if !links.contains(&parent) {
            links.truncate(LINKS_BASE - 1);
            links.push(parent);
        }
        let mut back: Vec<u32> = self.graph.links(parent, 0).collect();
        if !back.contains(&row) {
            if back.len() == LINKS_BASE
                && let Some(farthest) = back.iter().rposition(|to| *to > row || !self.graph.are_kin(parent, *to))
            {
                back.remove(farthest);
            }
            back.push(row);
            self.graph.set_links(parent, 0, &back);
        }
    }

    /// Whom a row links to links back, as far as there is room.
    pub(super) fn link_where_room(&self, row: u32) {
        for level in 0..=self.level(row) {
            let room = if level == 0 { KEPT_BASE } else { KEPT };
            for to in self.graph.links(row, level) {
                let mut back: Vec<u32> = self.graph.links(to, level).collect();
                if back.len() < room && !back.contains(&row) {
                    back.push(row);
                    self.graph.set_links(to, level, &back);
                }
            }
        }
    }

    /// A row links back to all that link to it now.
    fn link_back(&self, back: &[NewLink], work: &mut Work) {
        let (row, level) = (back[0].to, back[0].level as usize);
        let (room, keep) = if level == 0 { (LINKS_BASE, KEPT_BASE) } else { (LINKS, KEPT) };
        let mut all: Vec<u32> = self.graph.links(row, level).collect();
        let new = back.iter().map(|link| link.from).filter(|from| !all.contains(from)).collect::<Vec<_>>();
        all.extend(new);
        if all.len() > room {
            let kin: Vec<u32> = all.iter().filter(|to| level == 0 && self.graph.are_kin(row, **to)).copied().collect();
            self.choose(row, &mut all, keep, &mut work.products);
            for to in kin.iter().filter(|to| !all.contains(to)).collect::<Vec<_>>() {
                if all.len() == keep {
                    let farthest = all.iter().rposition(|other| !kin.contains(other));
                    farthest.map(|at| all.remove(at));
                }
                all.push(*to);
            }
        }
        self.graph.set_links(row, level, &all);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::Index;
    use super::*;
    use crate::types::{Generation, Metric};

    /// A piece that panicked takes its batch with it, in either phase; what was done already does not stand in the way of the next attempt.
    #[test]
    fn a_batch_that_broke_is_begun_again() {
        let index = Index::new(64, Metric::L2, 1);
        for row in 0..700_u64 {
            let vector: Vec<u8> = (0..64).flat_map(|i| (((row * 7 + i * row) % 61) as f32).to_le_bytes()).collect();
            index.append(Generation(row + 1), &vector, 0.1);
        }
        let builder = Builder { graph: &index.graph, rows: &index.rows };
        for phase in [Phase::Place, Phase::Look, Phase::Back, Phase::Back] {
            while index.building.batch.lock().phase != phase {
                assert!(index.build());
            }
            index.build();
            let mut state = index.building.batch.lock();
            let all = state.pieces();
            assert!(!state.take(all, PIECE).is_empty() && !state.done(all, false) && state.phase == Phase::Idle);
        }
        // One that ended its batch and panicked then.
        let mut state = index.building.batch.lock();
        assert!(builder.begin(&mut state));
        state.next = state.end - state.begin;
        drop(state);
        while index.build() {}
        let health = index.check().unwrap();
        assert_eq!((health.rows, health.reached), (700, 700));
    }
}
