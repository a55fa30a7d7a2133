//! Links for rows that have none: a batch at a time, oldest first.
//!
//! First every row of the batch looks for its neighbours: in the graph as it stands, and among the rows of the batch before it. Nothing
//! changes meanwhile, so rows could be looked up by several threads. Then the links are written, the batch's own first, then those back,
//! grouped by the row they lead from; at the end `end` moves behind the batch. (Two phases a batch: ParlayANN, PPoPP 2024, arXiv 2305.04359.)
//!
//! Who becomes a neighbour: of the candidates, nearest first, those that are nearer to the row than to any neighbour taken before (the
//! heuristic of the HNSW paper, algorithm 4). A list that overflows is chosen anew, with room left for some more.
//!
//! Every row but the first has a parent among its neighbours on level 0; parent and child keep their links to each other, whatever is chosen. So
//! every row is within reach of every other, copies of one vector by the thousand included.

use engram_kernels::bytes_products_of;

use super::calibrate::{Trial, is_due};
use super::codec::Coded;
use super::graph::{Graph, LINKS, LINKS_BASE};
use super::rows::Rows;
use super::walk::{By, Scratch};

/// Candidates that a row's neighbours are chosen from.
const EF_CONSTRUCTION: usize = 48;
/// Links that are left of an overflowing list.
const KEPT_BASE: usize = 24;
const KEPT: usize = 12;
/// Children of a row in the tree: they and the parent leave room for links that are chosen.
const CHILDREN: u32 = 8;
/// Neighbours asked at once whether one is nearer.
const ASKED: usize = 4;

/// Room for building.
#[derive(Default)]
pub(super) struct Work {
    scratch: Scratch,
    query: Coded,
    peers: Vec<u32>,
    products: Vec<i32>,
    chosen: Vec<u32>,
    links: Vec<NewLink>,
    trial: Option<Trial>,
    tried: usize,
}

#[derive(Clone, Copy)]
struct NewLink {
    level: u32,
    from: u32,
    to: u32,
}

struct Builder<'a> {
    graph: &'a Graph,
    rows: &'a Rows,
}

/// Links the next rows, at most `most`, or goes on with a trial of the graph; false if there is nothing to do.
pub(super) fn step(graph: &Graph, rows: &Rows, most: usize, work: &mut Work) -> bool {
    if let Some(mut trial) = work.trial.take() {
        match trial.step(graph, rows, &mut work.scratch) {
            Ok(None) => work.trial = Some(trial),
            Ok(Some(width)) => graph.set_width(width),
            Err(_) => {}
        }
        return true;
    }
    let linked = link(graph, rows, most, work);
    if is_due(graph.end(), work.tried) {
        work.tried = graph.end();
        work.trial = Some(Trial::new(graph.end()));
        return true;
    }
    linked
}

/// Links the next rows, at most `most`; false if all are.
fn link(graph: &Graph, rows: &Rows, most: usize, work: &mut Work) -> bool {
    let begin = graph.end();
    let end = rows.len().min(begin + most);
    for row in graph.len()..end {
        graph.add(graph.level_of(rows.generation(row as u32).0));
    }
    let builder = Builder { graph, rows };
    work.links.clear();
    for row in begin..end {
        builder.look(row as u32, begin as u32, work);
    }
    builder.write(work);
    for row in begin..end {
        let level = builder.level(row as u32);
        if graph.entry().is_none_or(|(_, top)| top < level) {
            graph.enter_at(row as u32, level);
        }
    }
    graph.publish(end);
    end > begin
}

impl Builder<'_> {
    fn level(&self, row: u32) -> usize {
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
        from.extend(work.scratch.descend(self.graph, self.rows, &query, By::Bits, level));
        for level in (0..=level).rev() {
            work.scratch.beam.clear();
            if top.is_some_and(|top| level <= top) {
                work.scratch.walk(self.graph, self.rows, &query, By::Bits, &from, level, EF_CONSTRUCTION);
                from.clear();
                from.extend(work.scratch.beam.iter().map(|met| met.row));
            }
            let mut near = std::mem::take(&mut work.chosen);
            near.clear();
            near.extend(work.scratch.beam.iter().map(|met| met.row));
            work.peers.clear();
            work.peers.extend((begin..row).filter(|peer| level == 0 || self.level(*peer) >= level));
            near.extend(work.scratch.best(self.rows, &query, &work.peers, EF_CONSTRUCTION));
            self.choose(row, &mut near, LINKS, &mut work.products);
            work.links.extend(near.iter().map(|to| NewLink { level: level as u32, from: row, to: *to }));
            work.chosen = near;
        }
        work.query = query;
    }

    /// How near two rows are, from the product of their bytes; the same both ways.
    fn score(&self, a: u32, b: u32, product: i32) -> f32 {
        let (a, b) = (self.rows.factors.row(a as usize), self.rows.factors.row(b as usize));
        self.rows.codec.symmetric(a, b, product)
    }

    /// Leaves of `near` the neighbours that `row` takes, nearest first; at most `most`.
    fn choose(&self, row: u32, near: &mut Vec<u32>, most: usize, products: &mut Vec<i32>) {
        products.resize(near.len(), 0);
        bytes_products_of(self.rows.bytes.row(row as usize), &self.rows.bytes, near, products);
        let mut scored: Vec<(f32, u32)> =
            near.iter().zip(&*products).map(|(to, product)| (self.score(row, *to, *product), *to)).collect();
        // Of equals the latest comes first: copies of one vector make a chain, not a star.
        scored.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        near.clear();
        for (score, to) in scored {
            if near.len() == most {
                break;
            }
            if !self.is_behind(to, score, near) {
                near.push(to);
            }
        }
    }

    /// Whether a row is at least as near to one of `taken` as its score says.
    fn is_behind(&self, row: u32, score: f32, taken: &[u32]) -> bool {
        let bytes = self.rows.bytes.row(row as usize);
        taken.chunks(ASKED).any(|some| {
            let mut products = [0; ASKED];
            let products = &mut products[..some.len()];
            bytes_products_of(bytes, &self.rows.bytes, some, products);
            some.iter().zip(products).any(|(other, product)| self.score(row, *other, *product) >= score)
        })
    }

    /// Writes the new links and those back.
    fn write(&self, work: &mut Work) {
        let mut links = std::mem::take(&mut work.links);
        let mut own = Vec::new();
        for chosen in links.chunk_by_mut(|a, b| (a.from, a.level) == (b.from, b.level)) {
            own.clear();
            own.extend(chosen.iter().map(|link| link.to));
            let (row, level) = (chosen[0].from, chosen[0].level as usize);
            if level == 0 && self.graph.parent(row).is_none() {
                let parent = self.parent_for(row, &own);
                self.graph.adopt(parent, row);
                if !own.contains(&parent) {
                    // The farthest makes place.
                    let last = own.len() - 1;
                    (own[last], chosen[last].to) = (parent, parent);
                }
            }
            self.graph.set_links(row, level, &own);
        }
        links.sort_unstable_by_key(|link| (link.level, link.to, link.from));
        for back in links.chunk_by(|a, b| (a.to, a.level) == (b.to, b.level)) {
            let sources: Vec<u32> = back.iter().map(|link| link.from).collect();
            self.link_back(back[0].to, back[0].level as usize, &sources, work);
        }
        work.links = links;
    }

    /// The nearest of a row's neighbours that may have one more child; if none may, a descendant of the nearest, or the row before: it
    /// has none yet.
    fn parent_for(&self, row: u32, own: &[u32]) -> u32 {
        if let Some(parent) = own.iter().find(|row| self.graph.children(**row) < CHILDREN) {
            return *parent;
        }
        let mut at = own[0];
        while self.graph.children(at) >= CHILDREN {
            // The youngest: it had the least time to have many.
            let children = self.graph.links(at, 0).filter(|to| self.graph.parent(*to) == Some(at));
            match children.max() {
                Some(child) => at = child,
                None => return row - 1,
            }
        }
        at
    }

    /// `row` links to `sources` too.
    fn link_back(&self, row: u32, level: usize, sources: &[u32], work: &mut Work) {
        let (room, keep) = if level == 0 { (LINKS_BASE, KEPT_BASE) } else { (LINKS, KEPT) };
        let mut all: Vec<u32> = self.graph.links(row, level).collect();
        let new = sources.iter().filter(|source| !all.contains(source)).copied().collect::<Vec<_>>();
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
