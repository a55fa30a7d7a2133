//! A successor without the dead: the rows that live, renumbered, with the links they had.
//!
//! Nothing is looked for again. A row whose neighbour is no more takes what that one linked to, and chooses among them (FreshDiskANN, arXiv 2105.09613,
//! section 4.2); where dead linked to dead, the way leads on through them. The tree is grown anew, in order of the rows: a row keeps its parent if that
//! is left. While this goes on nobody builds the old index, so that `end` never goes back.

use std::sync::Arc;

use super::Index;
use super::build::{Builder, Choice, EF_CONSTRUCTION};
use crate::types::Generation;

/// Dead rows that the way to living ones may lead through.
const RING_MAX: usize = 256;

pub struct Renewal {
    old: Arc<Index>,
    new: Arc<Index>,
    /// Rows of the old one that have been looked at, and what each is in the new one, + 1; 0: left out.
    kept: Vec<u32>,
    /// What the rows of the new one were.
    origins: Vec<u32>,
    /// The first so many rows of the old one are linked.
    end: usize,
    relinked: usize,
    returned: usize,
    near: Vec<u32>,
    ring: Vec<u32>,
    choice: Choice,
}

impl Renewal {
    /// None if a batch of the old one's is still under way: to be asked again. Until the renewal is dropped no other is begun.
    pub fn begin(old: Arc<Index>) -> Option<Self> {
        if !old.pause() {
            return None;
        }
        let new = Arc::new(old.another());
        Some(Self {
            end: old.linked(),
            old,
            new,
            kept: Vec::new(),
            origins: Vec::new(),
            relinked: 0,
            returned: 0,
            near: Vec::new(),
            ring: Vec::new(),
            choice: Choice::default(),
        })
    }

    pub fn successor(&self) -> &Arc<Index> {
        &self.new
    }

    /// Copies up to `most` rows of those that were alive behind `before`; false if there are none left. Nobody appends to the old one
    /// meanwhile, and from the first copy on deaths are told to both.
    pub fn copy(&mut self, most: usize, before: Generation) -> bool {
        let from = self.kept.len();
        let to = self.old.rows().min(from + most);
        for row in from as u32..to as u32 {
            let died = self.old.rows.died(row);
            if died.0 > 0 && died <= before {
                self.kept.push(0);
                continue;
            }
            self.new.rows.push(&self.old.rows.held(row), died);
            self.origins.push(row);
            self.kept.push(self.origins.len() as u32);
        }
        from < to
    }

    /// Links up to `most` of the rows copied so far, if the old ones were; false if all are.
    pub fn relink(&mut self, most: usize) -> bool {
        let linked = self.origins.partition_point(|row| (*row as usize) < self.end);
        let to = linked.min(self.relinked + most);
        let (old, new) = (Arc::clone(&self.old), Arc::clone(&self.new));
        let builder = Builder { graph: &new.graph, rows: &new.rows };
        for row in self.relinked as u32..to as u32 {
            let level = builder.level(row);
            new.graph.add(level);
            for at in (0..=level).rev() {
                let (kept, gone) = self.gather(&old, row, at);
                let mut near = std::mem::take(&mut self.near);
                if gone > 0 {
                    self.choice.complete(&new.rows, row, &mut near, kept, kept + gone);
                }
                if at == 0
                    && let Some(parent) = parent_of(&builder, row, self.old_parent(row), &near)
                {
                    builder.bind(row, parent, &mut near);
                }
                new.graph.set_links(row, at, &near);
                self.near = near;
            }
            builder.admit(row, level);
        }
        if self.relinked < to {
            self.relinked = to;
            return true;
        }
        let to = linked.min(self.returned + most);
        if self.returned < to {
            (self.returned as u32..to as u32).for_each(|row| builder.link_where_room(row));
            self.returned = to;
            return true;
        }
        new.graph.set_measured(&old.graph.measured());
        new.graph.publish(linked);
        false
    }

    /// What a row of the new one may link to: its old links that are left, and then, through those that are not, theirs. How many are left, and how many not.
    fn gather(&mut self, old: &Index, row: u32, level: usize) -> (usize, usize) {
        let origin = self.origins[row as usize];
        let (near, ring) = (&mut self.near, &mut self.ring);
        near.clear();
        ring.clear();
        let through = |from: u32, near: &mut Vec<u32>, ring: &mut Vec<u32>| {
            for to in old.graph.links(from, level).filter(|to| (*to as usize) < self.end && *to != origin) {
                let new = self.kept[to as usize].checked_sub(1);
                let (list, value) = new.map_or((&mut *ring, to), |new| (&mut *near, new));
                if !list.contains(&value) {
                    list.push(value);
                }
            }
        };
        through(origin, near, ring);
        let (kept, direct, mut at) = (near.len(), ring.len(), 0);
        while at < ring.len().min(RING_MAX) && (at < direct || near.len() < EF_CONSTRUCTION) {
            through(ring[at], near, ring);
            at += 1;
        }
        (kept, direct)
    }

    fn old_parent(&self, row: u32) -> Option<u32> {
        let parent = self.old.graph.parent(self.origins[row as usize])?;
        self.kept[parent as usize].checked_sub(1)
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.old.resume();
    }
}

/// The parent of the next row: the one it had, if that is left and has room, or a near one.
fn parent_of(builder: &Builder<'_>, row: u32, old: Option<u32>, links: &[u32]) -> Option<u32> {
    let before: Vec<u32> = old.into_iter().chain(links.iter().copied().filter(|to| *to < row)).collect();
    let near = || if before.is_empty() { row - 1 } else { builder.parent_for(row, &before) };
    (row > 0).then(near)
}
