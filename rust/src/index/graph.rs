//! The links of a hierarchical navigable small world graph (Malkov and Yashunin, TPAMI 2020, arXiv 1603.09320).
//!
//! A row has up to [`LINKS_BASE`] links on level 0 and up to [`LINKS`] on each level above it reaches. Links lie in place and are changed while others read them:
//! each is one atomic (0: none; else row + 1), stored with Release after the row it names has its code and its own links, loaded with Acquire. A reader that
//! meets a list half-way through a change sees old links and new ones, all of them good. Only builders write, a list one at a time.
//!
//! A row's level is drawn from its space and generation, so a replay draws the same.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use engram_kernels::Arena;

use super::calibrate::{Measured, WIDTHS};

pub(super) const LINKS: usize = 16;
pub(super) const LINKS_BASE: usize = 32;
const LEVELS_MAX: usize = 12;

pub(super) struct Graph {
    base: Arena<AtomicU32>,
    upper: Arena<AtomicU32>,
    /// Where a row's levels above 0 begin in `upper`.
    upper_at: Arena<u32>,
    /// A row's parent + 1, and how many children it has: the tree that keeps every row within reach.
    kin: Arena<AtomicU32>,
    /// Row + 1 and level of where every walk begins; 0: nowhere.
    entry: AtomicU64,
    /// Rows below it are linked.
    end: AtomicUsize,
    /// What share of the nearest walks of each width find, as f32; and how many rows were linked when that was measured, 0: never. Relaxed: hints.
    found: [AtomicU32; WIDTHS],
    measured: AtomicUsize,
    pub(super) seed: u64,
}

impl Graph {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            base: Arena::new(LINKS_BASE),
            upper: Arena::new(LINKS),
            upper_at: Arena::new(1),
            kin: Arena::new(2),
            entry: AtomicU64::new(0),
            end: AtomicUsize::new(0),
            found: Default::default(),
            measured: AtomicUsize::new(0),
            seed,
        }
    }

    /// Rows below it are answered by walks.
    pub(super) fn end(&self) -> usize {
        self.end.load(Ordering::Acquire)
    }

    /// Rows below `end` are linked, both ways.
    pub(super) fn publish(&self, end: usize) {
        self.end.store(end, Ordering::Release);
    }

    pub(super) fn measured(&self) -> Measured {
        let found = std::array::from_fn(|i| f32::from_bits(self.found[i].load(Ordering::Relaxed)));
        Measured { found, linked: self.measured.load(Ordering::Relaxed) }
    }

    pub(super) fn set_measured(&self, measured: &Measured) {
        for (slot, share) in self.found.iter().zip(measured.found) {
            slot.store(share.to_bits(), Ordering::Relaxed);
        }
        self.measured.store(measured.linked, Ordering::Relaxed);
    }

    /// Row and level where walks begin.
    pub(super) fn entry(&self) -> Option<(u32, usize)> {
        let entry = self.entry.load(Ordering::Acquire);
        ((entry & 0xffff_ffff) as u32).checked_sub(1).map(|row| (row, (entry >> 32) as usize))
    }

    pub(super) fn enter_at(&self, row: u32, level: usize) {
        self.entry.store(u64::from(row + 1) | (level as u64) << 32, Ordering::Release);
    }

    /// The level that a generation's row reaches: each one `LINKS` times rarer than the one below.
    pub(super) fn level_of(&self, generation: u64) -> usize {
        let mut z = (generation ^ self.seed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let zeros = ((z ^ (z >> 31)) | 1 << 62).trailing_zeros();
        (zeros / LINKS.trailing_zeros()) as usize % LEVELS_MAX
    }

    /// Makes room for the links of the next row.
    pub(super) fn add(&self, level: usize) {
        let begin = self.upper.len() as u32;
        self.upper.extend(level, |_, _| {});
        self.upper_at.extend(1, |_, row| row[0] = begin);
        self.kin.extend(1, |_, _| {});
        self.base.extend(1, |_, _| {});
    }

    /// Rows with room for links.
    pub(super) fn len(&self) -> usize {
        self.base.len()
    }

    /// The links of a row on a level that it reaches.
    #[inline]
    fn slots(&self, row: u32, level: usize) -> &[AtomicU32] {
        match level {
            0 => self.base.row(row as usize),
            _ => self.upper.row(self.upper_at.row(row as usize)[0] as usize + level - 1),
        }
    }

    /// Where the links lead.
    #[inline]
    pub(super) fn links(&self, row: u32, level: usize) -> impl Iterator<Item = u32> {
        self.slots(row, level).iter().map_while(|slot| slot.load(Ordering::Acquire).checked_sub(1))
    }

    #[inline]
    pub(super) fn prefetch(&self, row: u32) {
        self.base.prefetch(row as usize);
    }

    /// Puts `rows` in place of a row's links; at most as many as fit.
    pub(super) fn set_links(&self, row: u32, level: usize, rows: &[u32]) {
        let slots = self.slots(row, level);
        debug_assert!(rows.len() <= slots.len() && !rows.contains(&row), "links of a row");
        for (i, slot) in slots.iter().enumerate() {
            let value = rows.get(i).map_or(0, |to| to + 1);
            // What stays is not stored again: its line stays where its readers are.
            if slot.load(Ordering::Relaxed) != value {
                slot.store(value, Ordering::Release);
            }
        }
    }

    /// The row that the tree reaches this one from; the first row has none. Relaxed here and below: only builders ask, and their
    /// batch's lock lies between who adopts and who asks.
    pub(super) fn parent(&self, row: u32) -> Option<u32> {
        self.kin.row(row as usize)[0].load(Ordering::Relaxed).checked_sub(1)
    }

    pub(super) fn children(&self, row: u32) -> u32 {
        self.kin.row(row as usize)[1].load(Ordering::Relaxed)
    }

    pub(super) fn adopt(&self, parent: u32, row: u32) {
        self.kin.row(row as usize)[0].store(parent + 1, Ordering::Relaxed);
        self.kin.row(parent as usize)[1].fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the tree goes from one of them to the other: that link stays.
    pub(super) fn are_kin(&self, a: u32, b: u32) -> bool {
        self.parent(a) == Some(b) || self.parent(b) == Some(a)
    }
}
