//! The index against brute force: every metric, odd dimensions, while it grows, after deaths, under filters, with copies.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use common::{Rig, tiny};
use engram_core::engine::Reading;
use engram_core::index::{Cue, Index, Near, TopK, Visible};
use engram_core::types::{Config, Durability, Generation, Metric};
use rand_core::Rng;
use rand_pcg::Pcg64;

const METRICS: [Metric; 3] = [Metric::Cosine, Metric::L2, Metric::InnerProduct];

struct Rows {
    index: Index,
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
        Self { index: Index::new(dim as u32, metric, 7), metric, vectors: Vec::new(), dead: BTreeSet::new() }
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
        self.index.search(cue, k, None, visible, exact).unwrap().into_sorted()
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
                    let top = index.search(&cue, 5, None, visible, exact).unwrap().into_sorted();
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
