//! Whether the graph is sound: what tests and tools ask, not the fast path.

use super::Index;
use super::codec::Draft;
use super::graph::{LINKS, LINKS_BASE};
use crate::error::Error;
use crate::types::Generation;

/// What a look at the whole graph found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Rows that are linked, and those of them that a walk from the entry can reach.
    pub rows: u64,
    pub reached: u64,
    /// Links of level 0.
    pub links: u64,
}

impl Index {
    /// Whether the row of that generation is here, coded from this vector.
    pub fn has(&self, generation: Generation, vector: &[u8], inverse_norm: f32) -> bool {
        let Some(row) = self.rows.up_to(generation).checked_sub(1) else { return false };
        let (held, mut draft) = (self.rows.held(row as u32), Draft::default());
        self.rows.codec.code_row(vector, inverse_norm, &mut draft);
        let bits = self.rows.bits.is_none() || held.bits == draft.bits;
        held.generation == generation && held.bytes == draft.bytes && held.factors == draft.factors && bits
    }

    /// Follows every link, while nobody builds. An error names the first that is wrong.
    pub fn check(&self) -> Result<Health, Error> {
        let rows = self.graph.end();
        let wrong = |row: u32, what: &str| Err(Error::corrupted("an index", u64::from(row), what));
        let mut health = Health { rows: rows as u64, reached: 0, links: 0 };
        for row in 0..rows as u32 {
            for level in 0..=self.graph.level_of(self.rows.generation(row).0) {
                let mut links: Vec<u32> = self.graph.links(row, level).collect();
                if links.len() > if level == 0 { LINKS_BASE } else { LINKS } {
                    return wrong(row, "a row has too many links");
                }
                if links.iter().any(|to| *to == row || *to as usize >= rows) {
                    return wrong(row, "a link leads to its own row, or to one that is not linked");
                }
                if level > 0 && links.iter().any(|to| self.graph.level_of(self.rows.generation(*to).0) < level) {
                    return wrong(row, "a link leads to a row that does not reach its level");
                }
                let count = links.len();
                links.sort_unstable();
                links.dedup();
                if links.len() < count {
                    return wrong(row, "two links of a row lead to one");
                }
                health.links += if level == 0 { count as u64 } else { 0 };
            }
        }
        let mut seen = vec![false; rows];
        let mut next: Vec<u32> = self.graph.entry().map(|(row, _)| row).into_iter().collect();
        while let Some(row) = next.pop() {
            if !std::mem::replace(&mut seen[row as usize], true) {
                health.reached += 1;
                next.extend(self.graph.links(row, 0).filter(|to| !seen[*to as usize]));
            }
        }
        Ok(health)
    }
}
