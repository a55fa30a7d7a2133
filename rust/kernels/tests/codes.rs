//! Codes are the same at every SIMD level, rotations keep lengths and products, and a code's products are near the vectors'.

use engram_kernels::{
    Arena, BLOCK, BLOCK_BITS_MAX, BLOCK_FACTORS, Level, PLANES, Rotation, WIDTH, available, blocks_limits,
    blocks_products_at, bytes_products_at, bytes_products_of, encode_at, planes_at, planes_products_at,
    planes_products_of, table, transpose,
};
use proptest::prelude::*;

fn product(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn bytes_product_at(level: Level, a: &[i8], b: &[i8]) -> i32 {
    let mut out = [0];
    bytes_products_at(level, a, b, &mut out);
    out[0]
}

fn planes_product_at(level: Level, planes: &[u64], bits: &[u64]) -> u32 {
    let mut out = [0];
    planes_products_at(level, planes, bits, &mut out);
    out[0]
}

fn padded(vector: &[f32], rotation: &Rotation) -> Vec<f32> {
    let mut out = vector.to_vec();
    out.resize(rotation.padded(), 0.0);
    out
}

/// Independent coordinates, from a seed.
fn random(dim: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..dim).map(|_| next() + next() + next()).collect()
}

struct Code {
    bytes: Vec<i8>,
    bits: Vec<u64>,
    planes: Vec<u64>,
    sum: i32,
    scale: f32,
    factor: f32,
}

fn code(level: Level, vector: &[f32]) -> Code {
    let words = vector.len() / WIDTH;
    let (mut bytes, mut bits, mut planes) = (vec![0; vector.len()], vec![0; words], vec![0; words * PLANES]);
    let coded = encode_at(level, vector, &mut bytes, &mut bits);
    let sum = planes_at(level, &bytes, &mut planes);
    let factor = if coded.absolute > 0.0 { coded.norm_squared / coded.absolute } else { 0.0 };
    Code { bytes, bits, planes, sum, scale: coded.scale, factor }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 3 } else { 200 }, ..ProptestConfig::default() })]

    /// Every level gives the scalar one's bits, on any numbers.
    #[test]
    fn levels_agree(dim in 1_usize..700, seed in any::<u64>(), size in prop_oneof![Just(1.0_f32), Just(1e-38), Just(1e30), Just(0.0)]) {
        let rotation = Rotation::new(dim, seed);
        let vector: Vec<f32> = padded(&random(dim, seed), &rotation).iter().map(|x| x * size).collect();
        let other = code(Level::Scalar, &padded(&random(dim, seed ^ 5), &rotation));
        let of = |level| {
            let mut turned = vector.clone();
            rotation.apply_at(level, &mut turned);
            let c = code(level, &turned);
            let dot = bytes_product_at(level, &c.bytes, &other.bytes);
            let bits = planes_product_at(level, &other.planes, &c.bits);
            let turned: Vec<u32> = turned.iter().map(|x| x.to_bits()).collect();
            (turned, c.bytes, c.bits, c.planes, c.sum, c.scale.to_bits(), c.factor.to_bits(), dot, bits)
        };
        let expected = of(Level::Scalar);
        prop_assert!(expected.1.iter().all(|b| *b != i8::MIN));
        for level in available() {
            prop_assert_eq!(&of(*level), &expected, "{} is not scalar", level);
        }
    }

    /// Orthogonal: products and lengths stay, whatever the dimension.
    #[test]
    fn a_rotation_keeps_products(dim in 1_usize..900, seed in any::<u64>()) {
        let rotation = Rotation::new(dim, seed);
        let (a, b) = (random(dim, seed), random(dim, seed ^ 1));
        let (mut x, mut y) = (padded(&a, &rotation), padded(&b, &rotation));
        rotation.apply(&mut x);
        rotation.apply(&mut y);
        let size = product(&a, &a).sqrt() * product(&b, &b).sqrt();
        prop_assert!((product(&x, &y) - product(&a, &b)).abs() <= 1e-5 * size);
        prop_assert!((product(&x, &x) - product(&a, &a)).abs() <= 1e-5 * product(&a, &a));
    }
}

/// A vector with one coordinate is spread over all: none of them carries much.
#[test]
fn a_rotation_spreads() {
    for dim in [96, 128, 384, 700, 1536, 8192] {
        let rotation = Rotation::new(dim, 7);
        for at in [0, dim / 2, dim - 1] {
            let mut vector = vec![0.0; rotation.padded()];
            vector[at] = 1.0;
            rotation.apply(&mut vector);
            let (most, even) =
                (vector.iter().fold(0.0_f32, |m, x| m.max(x.abs())), 1.0 / (rotation.padded() as f32).sqrt());
            assert!(most < 7.0 * even, "dim {dim}, coordinate {at}: {most} where {even} would be even");
        }
    }
}

/// How near the products of codes are to the vectors': a byte to a third of a percent of the lengths, a bit to one over the root of the dimension.
#[test]
fn codes_are_near() {
    for dim in [96, 384, 1000] {
        let rotation = Rotation::new(dim, 3);
        let (mut worst_bytes, mut squares_bits, mut bias) = (0.0_f64, 0.0_f64, 0.0_f64);
        for seed in 0..300 {
            let mut pair = [random(dim, seed), random(dim, seed + 1_000)].map(|v| padded(&v, &rotation));
            pair.iter_mut().for_each(|v| rotation.apply(v));
            let [a, b] = pair.each_ref().map(|v| code(Level::Scalar, v));
            let size = (product(&pair[0], &pair[0]) * product(&pair[1], &pair[1])).sqrt();
            let exact = product(&pair[0], &pair[1]) / size;
            let by_bytes =
                f64::from(bytes_product_at(Level::Scalar, &a.bytes, &b.bytes)) * f64::from(a.scale * b.scale) / size;
            worst_bytes = worst_bytes.max((by_bytes - exact).abs());
            let ones: u32 = b.bits.iter().map(|w| w.count_ones()).sum();
            let in_ones =
                16.0 * f64::from(planes_product_at(Level::Scalar, &a.planes, &b.bits)) - 120.0 * f64::from(ones);
            let by_bits = f64::from(b.factor) * f64::from(a.scale) * (2.0 * in_ones - f64::from(a.sum)) / size;
            squares_bits += (by_bits - exact).powi(2) / 300.0;
            bias += (by_bits - exact) / 300.0;
        }
        let root = (dim as f64).sqrt();
        assert!(worst_bytes < 0.08 / root, "dim {dim}: bytes are off by {worst_bytes}");
        assert!(squares_bits.sqrt() < 1.0 / root, "dim {dim}: bits are off by {}", squares_bits.sqrt());
        assert!(bias.abs() < 0.2 / root, "dim {dim}: bits lean by {bias}");
    }
}

/// Rows picked from an arena, and rows in a run, give what each gives alone.
#[test]
fn many_rows_at_once() {
    // An interpreter has no time for long ones.
    for dim in [64, 384, 2_048 + 64, 8_192].into_iter().take(if cfg!(miri) { 2 } else { 4 }) {
        let (bytes, bits) = (Arena::<i8>::new(dim), Arena::<u64>::new(dim / WIDTH));
        let codes: Vec<Code> = (0..100).map(|seed| code(Level::Scalar, &random(dim, seed + 1))).collect();
        for c in &codes {
            bytes.extend(1, |_, row| row.copy_from_slice(&c.bytes));
            bits.extend(1, |_, row| row.copy_from_slice(&c.bits));
        }
        let picked = [99, 0, 31, 32, 33, 50, 3, 3];
        let (mut by_bytes, mut by_bits) = ([0; 8], [0; 8]);
        bytes_products_of(&codes[7].bytes, &bytes, &picked, &mut by_bytes);
        planes_products_of(&codes[7].planes, &bits, &picked, |i, sum, row| {
            assert_eq!(row, bits.row(picked[i] as usize));
            by_bits[i] = sum;
        });
        for (i, row) in picked.iter().enumerate() {
            let other = &codes[*row as usize];
            assert_eq!(by_bytes[i], bytes_product_at(Level::Scalar, &codes[7].bytes, &other.bytes));
            assert_eq!(by_bits[i], planes_product_at(Level::Scalar, &codes[7].planes, &other.bits));
        }
        let (mut run_bytes, mut run_bits) = ([0; 2], [0; 2]);
        for level in available() {
            bytes_products_at(*level, &codes[7].bytes, bytes.run(32, 34), &mut run_bytes);
            planes_products_at(*level, &codes[7].planes, bits.run(32, 34), &mut run_bits);
            let by_bits =
                [32, 33].map(|row: usize| planes_product_at(Level::Scalar, &codes[7].planes, &codes[row].bits));
            assert_eq!((run_bytes, run_bits), ([by_bytes[3], by_bytes[4]], by_bits));
        }
    }
}

/// Lengths that have a loop of their own and others, rows with more words than the query, more rows than are looked up at once.
#[test]
fn each_length_is_summed() {
    let ones = |seed: u64| random(64, seed).iter().fold(0_u64, |word, x| word << 1 | u64::from(*x > 0.0));
    for words in (1..=25).take(if cfg!(miri) { 3 } else { 25 }) {
        let planes: Vec<u64> = (0..words * PLANES).map(|i| ones(i as u64 + 7)).collect();
        let bits = Arena::<u64>::new(words + 2);
        (0..70).for_each(|row| {
            bits.extend(1, |_, out| (0..words + 2).for_each(|at| out[at] = ones((row * 31 + at) as u64 + 900)));
        });
        let expected: Vec<u32> =
            (0..70).map(|row| planes_product_at(Level::Scalar, &planes, &bits.row(row)[..words])).collect();
        for count in [1, 31, 32, 33, 64, 65, 70] {
            let picked: Vec<u32> = (0..count as u32).rev().collect();
            let mut sums = vec![0; count];
            planes_products_of(&planes, &bits, &picked, |i, sum, row| {
                assert_eq!(row, bits.row(picked[i] as usize));
                sums[i] = sum;
            });
            assert!(picked.iter().zip(&sums).all(|(row, sum)| *sum == expected[*row as usize]), "{count} of {words}");
        }
        let rows: Vec<u64> = (0..70).flat_map(|row| bits.row(row).to_vec()).collect();
        for level in available() {
            let mut sums = [0; 70];
            planes_products_at(*level, &planes, &rows, &mut sums);
            assert_eq!(sums[..], expected, "{words} words at {level}");
        }
    }
    let mut nothing = [7; 3];
    bytes_products_at(Level::Scalar, &[], &[], &mut nothing);
    assert_eq!(nothing, [0; 3]);
}

/// Blocks give what their rows give alone, to the bit, at every level; limits what their formula says.
#[test]
fn blocks_are_their_rows() {
    for dim in [64, 384, 704, BLOCK_BITS_MAX].into_iter().take(if cfg!(miri) { 2 } else { 4 }) {
        let words = dim / WIDTH;
        let codes: Vec<Code> = (0..2 * BLOCK as u64).map(|seed| code(Level::Scalar, &random(dim, seed + 1))).collect();
        let mut blocks = vec![0; codes.len() * words * 8];
        for (rows, block) in codes.chunks(BLOCK).zip(blocks.chunks_exact_mut(BLOCK * words * 8)) {
            transpose(&rows.iter().map(|c| &c.bits[..]).collect::<Vec<_>>(), block);
        }
        let mut looked_up = Vec::new();
        // The greatest sums there are, too.
        for planes in [codes[3].planes.clone(), vec![u64::MAX; words * PLANES]] {
            table(&planes, &mut looked_up);
            for level in available() {
                let mut products = vec![0; codes.len()];
                blocks_products_at(*level, &looked_up, &blocks, &mut products);
                for (code, product) in codes.iter().zip(&products) {
                    assert_eq!(planes_product_at(Level::Scalar, &planes, &code.bits), u32::from(*product), "{level}");
                }
                let factors: Vec<f32> = (0..BLOCK_FACTORS * codes.len()).map(|i| (i as f32).sin()).collect();
                let mut limits = vec![0.0; codes.len()];
                blocks_limits(&products, &factors, (0.7, 3.0, 0.2), &mut limits);
                for (i, limit) in limits.iter().enumerate() {
                    let of = |kind| factors[(i / BLOCK * BLOCK_FACTORS + kind) * BLOCK + i % BLOCK];
                    let in_ones = 16.0 * f32::from(products[i]) - 120.0 * of(1);
                    assert_eq!(*limit, 0.7 * of(0) * (2.0 * in_ones - 3.0) + of(2) + 0.2 * of(3));
                }
            }
        }
    }
}
