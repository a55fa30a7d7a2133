//! Links for rows that have none: a batch at a time, oldest first.
//!
//! First every row of the batch looks for its neighbours: in the graph as it stands, and among the rows of the batch before it. Nothing
//! changes meanwhile, so several threads may look, a piece each. Then one writes the batch's own links, and all write those back, each list
//! by one thread; at the end `end` moves behind the batch. The links do not depend on who did what. (Phases: ParlayANN, PPoPP 2024, arXiv 2305.04359.)
//!
//! Who becomes a neighbour is decided in `choose`.
//!
//! Every row but the first has a parent among its neighbours on level 0; parent and child keep their links to each other, whatever is chosen. So
//! every row is within reach of every other, copies of one vector by the thousand included.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use parking_lot::Mutex;

mod choose;

pub(super) use choose::Choice;

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

/// Rows of a batch, of a piece of it, and lists that are linked back in a piece: who is done early waits for the last piece.
const BATCH: usize = 256;
const PIECE: usize = 8;
const BACK: usize = 32;

/// Room for one thread's work on a piece.
#[derive(Default)]
struct Work {
    scratch: Scratch,
    query: Coded,
    peers: Vec<u32>,
    choice: Choice,
    chosen: Vec<u32>,
    links: Vec<NewLink>,
}

#[derive(Clone, Copy)]
struct NewLink {
    level: u32,
    from: u32,
    to: u32,
}

/// What a batch is at.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    /// Rows look for their neighbours.
    Look,
    /// Those link back.
    Back,
}

/// A batch under way: whoever comes takes a piece of its phase, the last to end one begins the next.
#[derive(Default)]
struct Batch {
    phase: Phase,
    begin: usize,
    end: usize,
    /// The first that nobody took yet: rows, or groups of links back.
    next: usize,
    /// Pieces taken and not done.
    open: usize,
    /// A piece panicked: the batch is begun again when the others are done.
    broken: bool,
    /// No other is begun.
    paused: bool,
    links: Vec<NewLink>,
    /// Ends of the groups among `links`.
    groups: Vec<usize>,
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

impl Batch {
    /// Takes a piece of what is left of `all`.
    fn take(&mut self, all: usize, most: usize) -> Range<usize> {
        let piece = self.next..all.min(self.next + most);
        self.next = piece.end;
        self.open += usize::from(!piece.is_empty());
        piece
    }

    /// It will be begun again.
    fn give_up(&mut self) {
        *self = Self { paused: self.paused, ..Self::default() };
    }

    /// A piece is done; whether it was the last of `all`.
    fn done(&mut self, all: usize, well: bool) -> bool {
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

impl Builder<'_> {
    /// A piece of the batch under way, or of the next.
    fn link(&self, batch: &Mutex<Batch>, work: &mut Work) -> bool {
        let mut state = batch.lock();
        if state.phase == Phase::Idle && !self.begin(&mut state) {
            return false;
        }
        let (all, most, looks) = match state.phase {
            Phase::Look => (state.end - state.begin, PIECE, true),
            _ => (state.groups.len(), BACK, false),
        };
        let piece = state.take(all, most);
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
        let begin = state.begin;
        let done = if looks {
            drop(state);
            work.links.clear();
            catch_unwind(AssertUnwindSafe(|| {
                piece.clone().for_each(|row| self.look((begin + row) as u32, begin as u32, work));
            }))
        } else {
            let from = piece.start.checked_sub(1).map_or(0, |before| state.groups[before]);
            let links: Vec<NewLink> = state.links[from..state.groups[piece.end - 1]].to_vec();
            drop(state);
            catch_unwind(AssertUnwindSafe(|| {
                for back in links.chunk_by(|a, b| (a.to, a.level) == (b.to, b.level)) {
                    self.link_back(back, work);
                }
            }))
        };
        let mut state = batch.lock();
        if looks {
            state.links.append(&mut work.links);
        }
        if state.done(all, done.is_ok()) {
            if looks { self.write(&mut state) } else { self.end(&mut state) }
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
        state.end = self.rows.len().min(state.begin + BATCH);
        for row in self.graph.len()..state.end {
            self.graph.add(self.level(row as u32));
        }
        let any = state.begin < state.end;
        (state.phase, state.next) = (if any { Phase::Look } else { Phase::Idle }, 0);
        state.links.clear();
        any
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

    /// Finds a row's neighbours on each of its levels.
    fn look(&self, row: u32, begin: u32, work: &mut Work) {
        let mut query = std::mem::take(&mut work.query);
        let (bytes, factors) = (self.rows.bytes.row(row as usize), self.rows.factors.row(row as usize));
        self.rows.codec.query_of_row(bytes, factors, &mut query);
        let level = self.level(row);
        let top = self.graph.entry().map(|(_, top)| top);
        let mut from: Vec<u32> = Vec::new();
        from.extend(work.scratch.descend(self.graph, self.rows, &query, level));
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
            work.peers.extend((begin..row).filter(|peer| level == 0 || self.level(*peer) >= level));
            // Peers that stand in the beam say nothing of the others.
            let full = if near.len() == work.scratch.beam.len() { EF_CONSTRUCTION } else { usize::MAX };
            near.extend(work.scratch.best(self.rows, &query, &work.peers, (LINKS, full)));
            work.choice.choose(self.rows, row, &mut near, LINKS);
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
        for chosen in links.chunk_by_mut(|a, b| (a.from, a.level) == (b.from, b.level)) {
            let mut own: Vec<u32> = chosen.iter().map(|link| link.to).collect();
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
            work.choice.choose(self.rows, row, &mut all, keep);
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
        [64, 128].into_iter().for_each(broken); // without bits, and with
    }

    fn broken(dim: u64) {
        let index = Index::new(dim as u32, Metric::L2, 1);
        for row in 0..700_u64 {
            let vector: Vec<u8> = (0..dim).flat_map(|i| (((row * 7 + i * row) % 61) as f32).to_le_bytes()).collect();
            index.append(Generation(row + 1), &vector, 0.1);
        }
        let builder = Builder { graph: &index.graph, rows: &index.rows };
        for phase in [Phase::Look, Phase::Back, Phase::Back] {
            while index.building.batch.lock().phase != phase {
                assert!(index.build());
            }
            index.build();
            let mut state = index.building.batch.lock();
            let all = if phase == Phase::Look { state.end - state.begin } else { state.groups.len() };
            assert!(!state.take(all, BACK).is_empty() && !state.done(all, false) && state.phase == Phase::Idle);
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
