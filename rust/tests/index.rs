//! The index against brute force: every metric, odd dimensions, while it grows, after deaths, under filters, with copies.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{Rig, tiny};
use engram_core::engine::Reading;
use engram_core::env::MemoryFiles;
use engram_core::index::{Cue, Index, Near, Renewal, TopK, Visible, Width};
use engram_core::store::{Space, Wanted};
use engram_core::types::{Config, Durability, Generation, Metric};
use rand_core::Rng;
use rand_pcg::Pcg64;

const METRICS: [Metric; 3] = [Metric::Cosine, Metric::L2, Metric::InnerProduct];

struct Rows {
    index: Arc<Index>,
    metric: Metric,
    vectors: Vec<Vec<f32>>,
    dead: BTreeSet<u64>,
}

fn inverse_norm(vector: &[f32]) -> f32 {
    1.0 / vector.iter().map(|x| x * x).sum::<f32>().sqrt()
}

fn bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Around a few centres, with lengths that vary.
fn clustered(rng: &mut Pcg64, dim: usize, centres: &[Vec<f32>]) -> Vec<f32> {
    let centre = &centres[(rng.next_u64() % centres.len() as u64) as usize];
    let length = 0.3 + uniform(rng).abs() * 2.0;
    (0..dim).map(|i| length * (centre[i] + 0.5 * (uniform(rng) + uniform(rng)))).collect()
}

fn uniform(rng: &mut Pcg64) -> f32 {
    (rng.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0
}

impl Rows {
    fn new(dim: usize, metric: Metric) -> Self {
        Self { index: Arc::new(Index::new(dim as u32, metric, 7)), metric, vectors: Vec::new(), dead: BTreeSet::new() }
    }

    fn add(&mut self, vector: Vec<f32>) {
        self.vectors.push(vector);
        let last = &self.vectors[self.vectors.len() - 1];
        // Two of three generations are somebody else's.
        self.index.append(Generation(self.vectors.len() as u64 * 3), &bytes(last), inverse_norm(last));
    }

    fn kill(&mut self, row: usize) {
        self.dead.insert(row as u64);
        self.index.kill(Generation((row as u64 + 1) * 3), Generation(1_000_000 + row as u64));
    }

    /// The index's successor takes over.
    fn renew(&mut self) {
        let mut renewal = Renewal::begin(Arc::clone(&self.index)).unwrap();
        assert!(!self.index.build(), "nobody builds it meanwhile");
        while renewal.copy(64, Generation(u64::MAX)) {}
        while renewal.relink(64) {}
        self.index = Arc::clone(renewal.successor());
    }

    fn score(&self, cue: &Cue, row: usize) -> f32 {
        let (mut out, vector) = (Vec::new(), &self.vectors[row]);
        cue.score(&bytes(vector), &[inverse_norm(vector)], &mut out);
        out[0]
    }

    fn cue(&self, vector: &[f32]) -> Cue {
        Cue::new(vector.to_vec(), inverse_norm(vector), self.metric)
    }

    fn exact(&self, cue: &Cue, k: usize, wanted: impl Fn(usize) -> bool) -> Vec<Near> {
        let mut top = TopK::new(k);
        for row in (0..self.vectors.len()).filter(|row| !self.dead.contains(&(*row as u64)) && wanted(*row)) {
            top.push(Near { score: self.score(cue, row), generation: Generation((row as u64 + 1) * 3) });
        }
        top.into_sorted()
    }

    fn found(&self, cue: &Cue, k: usize, wanted: impl Fn(usize) -> bool) -> Vec<Near> {
        let mut wants = |generation: Generation| Ok(wanted(generation.0 as usize / 3 - 1));
        let visible = Visible { upto: Generation(u64::MAX), wanted: &mut wants, pulse: &|| Ok(()) };
        let exact = |generation: Generation| Ok(self.score(cue, generation.0 as usize / 3 - 1));
        self.index.search(cue, k, Width::Default, visible, exact).unwrap().into_sorted()
    }

    /// The share of the k nearest that are found; a score as good as the last one's counts.
    fn recall(&self, cues: &[Vec<f32>], k: usize, wanted: impl Fn(usize) -> bool + Copy) -> f64 {
        let mut share = 0.0;
        for vector in cues {
            let cue = self.cue(vector);
            let (exact, found) = (self.exact(&cue, k, wanted), self.found(&cue, k, wanted));
            assert_eq!(found.len(), exact.len(), "k come back whenever k can (G4)");
            let worst = exact.last().map_or(f32::MIN, |near| near.score);
            let good = found.iter().filter(|near| near.score >= worst).count();
            share += good as f64 / exact.len().max(1) as f64;
            for near in &found {
                let row = near.generation.0 as usize / 3 - 1;
                assert!(!self.dead.contains(&(row as u64)) && wanted(row));
                assert_eq!(near.score, self.score(&cue, row), "scores are exact");
            }
        }
        share / cues.len() as f64
    }
}

/// G6: at every size from nothing on, with the graph behind the rows, and after it has them all; 100 % reachable.
#[test]
fn recall_holds_while_it_grows() {
    for metric in METRICS {
        for dim in [1, 3, 17, 96, 130] {
            let mut rng = Pcg64::new(dim as u128, 9);
            let centres: Vec<Vec<f32>> = (0..20).map(|_| (0..dim).map(|_| uniform(&mut rng)).collect()).collect();
            let cues: Vec<Vec<f32>> = (0..150).map(|_| clustered(&mut rng, dim, &centres)).collect();
            let mut rows = Rows::new(dim, metric);
            for n in 0..3_000 {
                rows.add(clustered(&mut rng, dim, &centres));
                if n % 4 == 0 && n > 40 {
                    rows.index.build();
                }
                if [0, 1, 50, 700, 2_999].contains(&n) {
                    let recall = rows.recall(&cues, 10, |_| true);
                    assert!(recall >= 0.95, "{metric:?} dim {dim}, {n} rows, {} linked: {recall}", rows.index.linked());
                }
            }
            while rows.index.build() {}
            let recall = rows.recall(&cues, 10, |_| true);
            assert!(recall >= 0.95, "{metric:?} dim {dim}: {recall}");
            let health = rows.index.check().unwrap();
            assert_eq!((health.rows, health.reached), (3_000, 3_000), "{metric:?} dim {dim}");
        }
    }
}

/// G4: whatever share of the rows may be returned; dead rows are passed over, and not returned.
#[test]
fn deaths_and_filters_leave_k() {
    let (dim, mut rng) = (100, Pcg64::new(1, 1));
    let centres: Vec<Vec<f32>> = (0..20).map(|_| (0..dim).map(|_| uniform(&mut rng)).collect()).collect();
    let cues: Vec<Vec<f32>> = (0..20).map(|_| clustered(&mut rng, dim, &centres)).collect();
    let mut rows = Rows::new(dim, Metric::Cosine);
    (0..6_000).for_each(|_| rows.add(clustered(&mut rng, dim, &centres)));
    while rows.index.build() {}
    for every in [2, 20, 200, 6_000] {
        let recall = rows.recall(&cues, 10, |row| row % every == 1);
        assert!(recall >= 0.95, "one of {every}: {recall}");
    }
    (0..6_000).filter(|row| row % 2 == 0).for_each(|row| rows.kill(row));
    assert!(rows.recall(&cues, 10, |_| true) >= 0.95, "half of them dead");
    (0..6_000).filter(|row| row % 100 != 1).for_each(|row| rows.kill(row));
    assert!(rows.recall(&cues, 10, |_| true) >= 0.95, "one of a hundred alive");
    assert_eq!(rows.recall(&cues, 100, |_| true), 1.0, "k larger than what lives");
}

/// Thousands of copies of one vector among others: all reachable, and a cue near them finds as good ones.
#[test]
fn copies_by_the_thousand() {
    for metric in METRICS {
        let (dim, mut rng) = (96, Pcg64::new(4, 4));
        let centres: Vec<Vec<f32>> = (0..20).map(|_| (0..dim).map(|_| uniform(&mut rng)).collect()).collect();
        let copy = clustered(&mut rng, dim, &centres);
        let mut rows = Rows::new(dim, metric);
        for n in 0..4_000 {
            rows.add(if n % 4 == 0 { clustered(&mut rng, dim, &centres) } else { copy.clone() });
        }
        while rows.index.build() {}
        let mut cues: Vec<Vec<f32>> = (0..20).map(|_| clustered(&mut rng, dim, &centres)).collect();
        cues.push(copy);
        assert!(rows.recall(&cues, 10, |_| true) >= 0.95, "{metric:?}");
        let health = rows.index.check().unwrap();
        assert_eq!((health.rows, health.reached), (4_000, 4_000), "{metric:?}");
    }
}

/// Readers while one thread appends and two link: no row that is not there, every own row found at once (O6).
#[test]
fn readers_beside_a_writer_and_a_builder() {
    let dim = 128;
    let mut rng = Pcg64::new(8, 8);
    let vectors: Vec<Vec<f32>> = (0..4_000).map(|_| (0..dim).map(|_| uniform(&mut rng)).collect()).collect();
    let index = Index::new(dim as u32, Metric::Cosine, 3);
    std::thread::scope(|scope| {
        let build = || {
            while index.linked() < 4_000 {
                index.build();
            }
        };
        let builders = [scope.spawn(build), scope.spawn(build)];
        for reader in 0..2 {
            let (index, vectors) = (&index, &vectors);
            scope.spawn(move || {
                let mut at = reader;
                while index.linked() < 4_000 {
                    let (seen, row) = (index.rows(), at % index.rows().max(1));
                    at += 37;
                    if seen == 0 {
                        continue;
                    }
                    let cue = Cue::new(vectors[row].clone(), inverse_norm(&vectors[row]), Metric::Cosine);
                    let mut all = |_| Ok(true);
                    let visible = Visible { upto: Generation(seen as u64), wanted: &mut all, pulse: &|| Ok(()) };
                    let exact = |generation: Generation| {
                        let (mut out, vector) = (Vec::new(), &vectors[generation.0 as usize - 1]);
                        cue.score(&bytes(vector), &[inverse_norm(vector)], &mut out);
                        Ok(out[0])
                    };
                    let top = index.search(&cue, 5, Width::Default, visible, exact).unwrap().into_sorted();
                    assert_eq!(top[0].generation.0 as usize, row + 1, "of {seen}, {} linked", index.linked());
                    assert!(top.iter().all(|near| near.generation.0 as usize <= seen));
                }
            });
        }
        for (i, vector) in vectors.iter().enumerate() {
            index.append(Generation(i as u64 + 1), &bytes(vector), inverse_norm(vector));
        }
        builders.into_iter().for_each(|builder| builder.join().unwrap());
    });
    let health = index.check().unwrap();
    assert_eq!((health.rows, health.reached), (4_000, 4_000));
}

/// G7: a hit that the graph does not answer for yet is provisional, its confidence lowered, by less the older it is; absorbed, it is whole.
#[test]
fn what_is_not_absorbed_is_provisional() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    rig.create("a", Durability::Sync);
    let space = rig.core.space("a").unwrap();
    assert!(space.index_at(space.watermark()).is_some(), "a new space is not behind");
    let first = rig.push("a", &[1]).unwrap();
    while first.outcome().is_none() {
        rig.core.step_partition(0);
        rig.core.partitions[0].port.run_one();
        rig.core.step_maintenance();
        rig.core.maintenance_port.run_one();
    }
    let seen = || {
        let (_, found) = rig.core.recall(&space, &[1.0, 2.0, 3.0], 1, Reading::default()).unwrap();
        (found[0].provisional, (found[0].memory.confidence * 1_000.0).round() as u32)
    };
    let (wait, own) = (|ms: u64| rig.clock.advance_micros(ms * 1_000), 1_000);
    assert_eq!((seen(), space.absorbed().0), ((true, own - 100), 0));
    wait(50);
    assert_eq!(seen(), (true, own - 50));
    wait(100);
    assert_eq!(seen(), (true, own));
    while rig.core.step_builder() {}
    assert_eq!((seen(), space.absorbed().0), ((false, own), 1));
}

/// Half of the rows die and as many come, three times; each time a successor takes over. It finds what lives, as well as a new index would.
#[test]
fn a_successor_has_no_dead() {
    for (metric, dim) in [(Metric::Cosine, 100), (Metric::L2, 24), (Metric::InnerProduct, 130)] {
        let mut rng = Pcg64::new(3, dim as u128);
        let centres: Vec<Vec<f32>> = (0..20).map(|_| (0..dim).map(|_| uniform(&mut rng)).collect()).collect();
        let cues: Vec<Vec<f32>> = (0..100).map(|_| clustered(&mut rng, dim, &centres)).collect();
        let mut rows = Rows::new(dim, metric);
        (0..5_000).for_each(|_| rows.add(clustered(&mut rng, dim, &centres)));
        while rows.index.build() {}
        // How wide walks are is measured on a sample: once in twenty times they find a little less than they shall.
        let mut found = Vec::new();
        for round in 0..3_u64 {
            let living: Vec<usize> = (0..rows.vectors.len()).filter(|r| !rows.dead.contains(&(*r as u64))).collect();
            // First whole stretches, then here and there.
            let dies = |i: usize| if round == 0 { i < living.len() / 2 } else { rows.dead.len() % 2 == i % 2 };
            let dying: Vec<usize> = living.iter().enumerate().filter(|(i, _)| dies(*i)).map(|(_, row)| *row).collect();
            dying.iter().for_each(|row| rows.kill(*row));
            rows.renew();
            assert_eq!((rows.index.rows(), rows.index.dead(), rows.index.linked()), (2_500, 0, 2_500));
            let health = rows.index.check().unwrap();
            assert_eq!((health.rows, health.reached), (2_500, 2_500), "{metric:?} round {round}");
            while rows.index.build() {}
            found.push(rows.recall(&cues, 10, |_| true));
            (0..2_500).for_each(|_| rows.add(clustered(&mut rng, dim, &centres)));
            while rows.index.build() {}
            assert_eq!(rows.index.check().unwrap().reached, 5_000);
            found.push(rows.recall(&cues, 10, |_| true));
        }
        let mean = found.iter().sum::<f64>() / found.len() as f64;
        assert!(mean >= 0.96 && found.iter().all(|recall| *recall >= 0.9), "{metric:?}: {found:?}");
    }
}

/// A space whose index has a graph from the first row, and an image soon.
struct Kept {
    rig: Rig,
    space: Arc<Space>,
}

const KEPT_ROWS: u64 = 1_000;

impl Kept {
    fn config() -> Config {
        Config { partitions: 1, index_image_idle_ms: 5, segment_bytes_max: 1 << 20, ..tiny() }
    }

    fn new() -> Self {
        let rig = Rig::new(Self::config());
        rig.create("a", Durability::Sync);
        let space = rig.core.space("a").unwrap();
        let kept = Self { rig, space };
        for first in (1..=KEPT_ROWS).step_by(100) {
            kept.rig.observe("a", &(first..first + 100).collect::<Vec<_>>()).unwrap();
        }
        kept
    }

    /// What a start finds on the disk as it is now, after `change`.
    fn reopened(&self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut state = self.rig.files.state();
        if let Some(image) = state.bytes_mut(&self.path()) {
            change(image);
        }
        let rig = Rig::over(Self::config(), MemoryFiles::with_state(state, 1, true));
        let space = rig.core.space("a").unwrap();
        Self { rig, space }
    }

    fn path(&self) -> String {
        format!("partition-000/index/{:016x}.index", self.space.options.id.0)
    }

    fn has_image(&self) -> bool {
        self.rig.files.state().paths().contains(&self.path())
    }

    fn forget(&self, ids: impl IntoIterator<Item = u64>, purge: bool) {
        let wanted = Wanted::Ids(ids.into_iter().map(Generation).collect());
        let ticket = self.rig.core.submit_forget(&self.space, wanted, purge).unwrap().ok().unwrap();
        while ticket.outcome().is_none() {
            self.rig.turn();
        }
        ticket.outcome().unwrap().unwrap();
    }

    /// Until there is nothing to do for the index: its rows, how many are linked, in the image, and whether it was rebuilt.
    fn rest(&self) -> (u64, u64, u64, u64) {
        (0..40).for_each(|_| {
            while self.rig.core.step_builder() {}
            self.rig.clock.advance_micros(1_000);
        });
        let ((rows, linked), (imaged, rebuilt)) = (self.space.indexed(), self.space.imaged());
        (rows, linked, imaged, rebuilt)
    }

    /// The same by index as by looking at all rows.
    fn agrees(&self, reading: Reading<'_>) {
        for cue in [[1.0, 2.0, 3.0], [-1.0, 0.3, 0.2], [0.1, -0.9, 0.5], [0.7, 0.7, -0.7]] {
            let ids = |exact, width| {
                let reading = Reading { exact, width, ..reading };
                self.rig.core.recall_batch(&self.space, &cue, 10, reading).unwrap().ids
            };
            assert_eq!(ids(false, Width::Ef(200)), ids(true, Width::Default));
        }
    }
}

/// D5: with the image nothing is built again; without it, or with one that is damaged, everything is; the answers are the same.
#[test]
fn an_image_spares_the_building() {
    let kept = Kept::new();
    let n = KEPT_ROWS;
    assert_eq!(kept.rest(), (n, n, n, 0));
    // Some die, some come, after the image.
    kept.forget((1..=n).step_by(7), false);
    kept.rig.observe("a", &(n + 1..n + 51).collect::<Vec<_>>()).unwrap();
    kept.agrees(Reading::default());
    let with = kept.reopened(|_| {});
    assert_eq!(with.space.absorbed(), Generation(0), "it is read after the start");
    with.agrees(Reading::default());
    assert_eq!(with.rest(), (n + 50, n + 50, n, 0));
    with.agrees(Reading::default());
    let answers = with.space.index_at(with.space.watermark()).unwrap();
    let health = answers.index.check().unwrap();
    assert_eq!((health.rows, health.reached, answers.index.dead() as u64), (n + 50, n + 50, n.div_ceil(7)));
    let damages: [fn(&mut Vec<u8>); 6] = [
        Vec::clear,
        |image| image.truncate(image.len() - 1),
        |image| image.truncate(40),
        |image| image[30] ^= 1,
        |image| image[5_000] ^= 4,
        |image| *image.last_mut().unwrap() ^= 128,
    ];
    for damage in damages {
        let without = kept.reopened(damage);
        let living = n + 50 - n.div_ceil(7);
        assert_eq!(without.rest(), (living, living, living, 1), "made of the rows that live, and written down again");
        without.agrees(Reading::default());
        assert_eq!(without.reopened(|_| {}).rest(), (living, living, living, 0));
    }
}

/// K3, G3: those that died leave the index when they are many, or were purged, and nobody looks at when they lived; then an image may come again.
#[test]
fn the_dead_leave_the_index() {
    let kept = Kept::new();
    let n = KEPT_ROWS;
    kept.rest();
    let pin = kept.rig.core.pin(&kept.space).unwrap();
    kept.forget((1..=n).filter(|id| id % 2 == 0), false);
    assert_eq!(kept.rest().0, n, "a pin sees them");
    let pinned = Reading { snapshot: Some(pin), ..Reading::default() };
    for reading in [pinned, Reading::default()] {
        kept.agrees(reading);
    }
    kept.space.pins.release(pin);
    let absorbed = kept.space.absorbed();
    assert_eq!(kept.rest(), (n / 2, n / 2, n / 2, 0));
    assert_eq!(
        (kept.space.absorbed(), kept.space.index_at(Generation(n)).is_none()),
        (absorbed, true),
        "O5: it never goes back"
    );
    kept.agrees(Reading::default());
    // Purged: one row is enough, and its code is in no file any more.
    kept.forget([1], true);
    assert_eq!(kept.rest().0, n / 2);
    assert!(kept.has_image());
    kept.space.purge_index(&kept.rig.core.tools(&kept.space)).unwrap();
    assert!(!kept.has_image());
    assert_eq!(kept.rest(), (n / 2 - 1, n / 2 - 1, n / 2 - 1, 0));
    let image = kept.space.image(&kept.rig.core.tools(&kept.space)).unwrap().unwrap();
    assert!((0..image.rows()).all(|row| image.generation(row).0 % 2 == 1 && image.generation(row).0 > 1));
    kept.agrees(Reading::default());
    // A space that is dropped takes it along.
    let dropped = kept.rig.core.submit_drop(kept.space.options.id);
    kept.rig.turns(600);
    dropped.outcome().unwrap().unwrap();
    assert!(!kept.has_image());
}

/// O5: what was absorbed without a graph stays so when there are enough rows for one; it stands still until the graph passes it.
#[test]
fn absorbed_stands_still_until_the_graph_passes_it() {
    let rig = Rig::new(Config { index_graph_rows_min: 50, ..Kept::config() });
    rig.create("a", Durability::Sync);
    let space = rig.core.space("a").unwrap();
    let push = |first: u64| {
        let ticket = rig.push("a", &(first..first + 40).collect::<Vec<_>>()).unwrap();
        while ticket.outcome().is_none() {
            rig.core.step_partition(0);
            rig.core.partitions[0].port.run_one();
            rig.core.step_maintenance();
            rig.core.maintenance_port.run_one();
        }
    };
    push(1);
    assert_eq!(space.absorbed(), Generation(40));
    push(41);
    assert_eq!((space.absorbed(), space.indexed()), (Generation(40), (80, 0)));
    while rig.core.step_builder() {}
    assert_eq!((space.absorbed(), space.indexed()), (Generation(80), (80, 80)));
}
