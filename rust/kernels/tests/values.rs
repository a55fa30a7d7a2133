//! What the distances are: closed forms, a double precision oracle, the plain forms, and the lengths they refuse.

use engram_kernels::{
    available, dot, dot_at, dot_rows, l2_squared, l2_squared_at, l2_squared_rows, norm_squared, norm_squared_at,
    norms_squared,
};
use proptest::prelude::*;

fn stored(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn closed_forms() {
    // Small whole numbers: every sum is exact, whatever the order.
    for dim in [1_u16, 2, 7, 8, 31, 32, 33, 64, 100, 255] {
        let n = f32::from(dim);
        let counting: Vec<f32> = (1..=dim).map(f32::from).collect();
        let ones = vec![1.0; usize::from(dim)];
        let row = stored(&counting);
        for &level in available() {
            let squares = n * (n + 1.0) * (2.0 * n + 1.0) / 6.0;
            assert_eq!(dot_at(level, &ones, &row), n * (n + 1.0) / 2.0, "{level} {dim}");
            assert_eq!(norm_squared_at(level, &row), squares, "{level} {dim}");
            let below = (n - 1.0) * n * (2.0 * n - 1.0) / 6.0;
            assert_eq!(l2_squared_at(level, &ones, &row), below, "{level} {dim}");
            assert_eq!(l2_squared_at(level, &counting, &row), 0.0, "{level} {dim}");
        }
    }
}

/// The order of the folds, by values where another order rounds to another result.
#[test]
fn the_fold_order_is_the_written_one() {
    let big = 16_777_216.0_f32; // 2^24: adding 1 to it is lost.
    let lane = |lanes: &[(usize, f32)]| {
        let mut values = vec![0.0; 32];
        lanes.iter().for_each(|&(j, value)| values[j] = value);
        stored(&values)
    };
    let ones = vec![1.0; 32];
    for &level in available() {
        // Lanes 0 and 16 meet first, so the big ones cancel and the 1 in lane 8 survives.
        assert_eq!(dot_at(level, &ones, &lane(&[(0, big), (16, -big), (8, 1.0)])), 1.0);
        // Lanes 0 and 8 meet before lane 4 brings the opposite: the 1 is lost.
        assert_eq!(dot_at(level, &ones, &lane(&[(0, big), (4, -big), (8, 1.0)])), 0.0);
        // Then 4 before 2, and 2 before 1.
        assert_eq!(dot_at(level, &ones, &lane(&[(0, big), (2, -big), (4, 1.0)])), 0.0);
        assert_eq!(dot_at(level, &ones, &lane(&[(0, big), (1, -big), (2, 1.0)])), 0.0);
        assert_eq!(dot_at(level, &ones, &lane(&[(0, big), (2, -big), (1, 1.0)])), 1.0);
    }
}

#[test]
fn plain_forms_equal_batched_forms() {
    let dim = 45;
    let query: Vec<f32> = (0..dim).map(|i| (i as f32).sin()).collect();
    let values: Vec<f32> = (0..4 * dim).map(|i| (i as f32).cos()).collect();
    let rows = stored(&values);
    let mut out = [0.0_f32; 4];
    let each = |f: &dyn Fn(&[u8]) -> f32| rows.chunks_exact(4 * dim).map(f).collect::<Vec<_>>();
    dot_rows(&query, &rows, &mut out);
    assert_eq!(out.to_vec(), each(&|row| dot(&query, row)));
    l2_squared_rows(&query, &rows, &mut out);
    assert_eq!(out.to_vec(), each(&|row| l2_squared(&query, row)));
    norms_squared(dim, &rows, &mut out);
    assert_eq!(out.to_vec(), each(&norm_squared));
    assert_eq!(norm_squared(&stored(&query)), dot(&query, &stored(&query)));
}

#[test]
fn empty_operands_are_zero() {
    assert_eq!(dot(&[], &[]), 0.0);
    let mut out = [7.0; 3];
    l2_squared_rows(&[], &[], &mut out);
    assert_eq!(out, [0.0; 3]);
    dot_rows(&[1.0], &[], &mut []);
}

#[test]
#[should_panic(expected = "a row of 2 elements has 4 bytes for each, got 12 bytes")]
fn a_row_of_another_length_is_refused() {
    let _ = dot(&[1.0, 2.0], &[0; 12]);
}

#[test]
#[should_panic(expected = "a row of 2 elements has 4 bytes for each, got 11 bytes")]
fn half_an_element_is_refused() {
    let _ = norm_squared(&[0; 11]);
}

#[test]
#[should_panic(expected = "3 rows of 2 elements have 4 bytes for each, got 16 bytes")]
fn missing_rows_are_refused() {
    dot_rows(&[1.0, 2.0], &[0; 16], &mut [0.0; 3]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Each lane rounds at most once per element it has, then five folds round: the error is within that many half
    /// units of the sum of the magnitudes.
    #[test]
    fn double_precision_agrees(pairs in prop::collection::vec((-10.0_f32..10.0, -10.0_f32..10.0), 1..1000)) {
        let (query, values): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
        let row = stored(&values);
        let steps = (pairs.len().div_ceil(32) + 8) as f64;
        let exact = |term: fn(f64, f64) -> f64| {
            pairs.iter().fold((0.0, 0.0), |(sum, magnitude), &(q, x)| {
                let t = term(f64::from(q), f64::from(x));
                (sum + t, magnitude + t.abs())
            })
        };
        for &level in available() {
            for (got, (sum, magnitude)) in [
                (dot_at(level, &query, &row), exact(|q, x| q * x)),
                (l2_squared_at(level, &query, &row), exact(|q, x| (q - x) * (q - x))),
                (norm_squared_at(level, &row), exact(|_, x| x * x)),
            ] {
                let tolerance = steps * f64::from(f32::EPSILON) * magnitude + 1.0e-30;
                prop_assert!((f64::from(got) - sum).abs() <= tolerance, "{level}: {got} is not {sum}");
            }
        }
    }
}
