//! Every SIMD level gives the bits of the scalar one: on any length, address and value, in the plain and the batched form.

use engram_kernels::{
    Level, available, dot_at, dot_rows_at, l2_squared_at, l2_squared_rows_at, norm_squared_at, norms_squared_at,
};
use proptest::prelude::*;

/// The bits of a result; every NaN counts as the same one.
fn bits(value: f32) -> u32 {
    if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
}

/// `offset` bytes of rubbish, then the values as stored bytes.
fn stored(values: &[f32], offset: usize) -> Vec<u8> {
    let mut bytes = vec![0xFF; offset];
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

fn singles(level: Level, query: &[f32], row: &[u8]) -> [u32; 3] {
    [dot_at(level, query, row), l2_squared_at(level, query, row), norm_squared_at(level, row)].map(bits)
}

/// The three results for each row, from the batched forms.
fn batched(level: Level, query: &[f32], rows: &[u8], count: usize) -> Vec<[u32; 3]> {
    let mut out = [vec![7.0; count], vec![7.0; count], vec![7.0; count]];
    dot_rows_at(level, query, rows, &mut out[0]);
    l2_squared_rows_at(level, query, rows, &mut out[1]);
    norms_squared_at(level, query.len(), rows, &mut out[2]);
    (0..count).map(|i| [bits(out[0][i]), bits(out[1][i]), bits(out[2][i])]).collect()
}

fn assert_levels_agree(query: &[f32], values: &[f32], offset: usize) {
    let dim = query.len();
    let count = values.len() / dim;
    let bytes = stored(values, offset);
    let rows = &bytes[offset..];
    let expected: Vec<_> = rows.chunks_exact(4 * dim).map(|row| singles(Level::Scalar, query, row)).collect();
    for &level in available() {
        let single: Vec<_> = rows.chunks_exact(4 * dim).map(|row| singles(level, query, row)).collect();
        assert_eq!(single, expected, "{level} is not scalar, dim {dim}, offset {offset}");
        let batch = batched(level, query, rows, count);
        assert_eq!(batch, expected, "{level} batched is not single, dim {dim}, offset {offset}");
    }
}

/// Plain numbers, zeros of both signs, denormals, values whose products underflow or overflow.
fn element() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -1.0_f32..1.0,
        1 => prop_oneof![Just(0.0_f32), Just(-0.0)],
        1 => (0_u32..0x0080_0000, any::<bool>())
            .prop_map(|(bits, negative)| f32::from_bits(bits | (u32::from(negative) << 31))),
        1 => -1.0e-20_f32..1.0e-20,
        1 => -1.0e25_f32..1.0e25,
    ]
}

/// Any bits at all: infinities and NaN too.
fn any_bits() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

fn operands<S: Strategy<Value = f32>>(
    dims: impl Strategy<Value = usize>,
    rows: usize,
    element: fn() -> S,
) -> impl Strategy<Value = (Vec<f32>, Vec<f32>, usize)> {
    dims.prop_flat_map(move |dim| {
        let query = prop::collection::vec(element(), dim);
        (query, prop::collection::vec(element(), dim * rows), 0_usize..64)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn levels_agree_on_small_dims((query, rows, offset) in operands(1_usize..300, 3, element)) {
        assert_levels_agree(&query, &rows, offset);
    }

    #[test]
    fn levels_agree_on_any_bits((query, rows, offset) in operands(1_usize..100, 2, any_bits)) {
        assert_levels_agree(&query, &rows, offset);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default()
    })]

    #[test]
    fn levels_agree_on_large_dims((query, rows, offset) in operands(300_usize..=8192, 2, element)) {
        assert_levels_agree(&query, &rows, offset);
    }
}

#[test]
fn every_dim_up_to_300_and_the_usual_ones() {
    for dim in (1..=300).chain([384, 512, 768, 1024, 1536, 3072, 4095, 4096, 8191, 8192]) {
        let query: Vec<f32> = (0..dim).map(|i| ((i * 37 + dim) as f32).sin()).collect();
        let rows: Vec<f32> = (0..2 * dim).map(|i| ((i * 53 + dim) as f32).cos()).collect();
        assert_levels_agree(&query, &rows, dim % 7);
    }
}

/// A product that underflows leaves -0.0 in a lane. A short last block must not turn it into +0.0.
#[test]
fn a_short_tail_keeps_negative_zero_in_other_lanes() {
    for dim in 1..=96 {
        let query = vec![1.0e-30_f32; dim];
        let row = vec![-1.0e-30_f32; dim];
        assert_levels_agree(&query, &row, 1);
        // With all 32 lanes at -0.0 the sum is -0.0 too; with fewer, a lane at +0.0 takes part in it.
        let sum = dot_at(Level::Scalar, &query, &stored(&row, 0));
        assert_eq!(sum.to_bits() == (-0.0_f32).to_bits(), dim >= 32, "dim {dim}");
    }
}

/// Says what this run proved, and what it could not.
#[test]
fn which_levels_ran() {
    for level in Level::ALL {
        if available().contains(&level) {
            println!("ran: {level}");
        } else {
            println!("NOT RUN: {level} (CPU lacks it)");
            let refused = std::panic::catch_unwind(|| dot_at(level, &[1.0], &[0; 4]));
            assert!(refused.is_err(), "{level} is not available and must be refused");
        }
    }
}
