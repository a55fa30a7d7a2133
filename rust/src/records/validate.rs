//! Validate first (O1): nothing is consumed by an invalid observation. Also the inverse norms and content hashes that a row keeps;
//! both follow from the frame's bytes alone, so replay finds the same (D6).

use std::collections::HashSet;

use xxhash_rust::xxh3::Xxh3;

use super::frame::{FrameView, TIME_ABSENT};
use super::metadata::check_metadata;
use crate::error::Error;
use crate::types::{Config, Metric};

/// Norms outside this range would over- or underflow in f32 scores.
pub const NORM_MIN: f64 = 1e-18;
pub const NORM_MAX: f64 = 1e18;

/// A frame that may be logged, or comes from the log.
pub struct Checked {
    pub view: FrameView,
    pub inverse_norms: Vec<f32>,
    pub hashes: Vec<u64>,
}

impl Checked {
    /// Of a logged frame, whose checksum was verified with its group; `path` is for messages.
    pub fn logged(bytes: &[u8], hashes: Vec<u64>, path: &str) -> Result<Self, Error> {
        let view = FrameView::parse(bytes)?;
        if view.count() != hashes.len() {
            return Err(Error::corrupted(path, 0, "an observe record and its frame disagree"));
        }
        Ok(Self { inverse_norms: inverse_norms(&view, bytes), view, hashes })
    }

    /// Memory it holds.
    pub fn heap_bytes(&self) -> usize {
        self.view.heap_bytes() + self.inverse_norms.len() * 4 + self.hashes.len() * 8
    }
}

fn floats(row: &[u8]) -> impl Iterator<Item = f32> + '_ {
    row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// 1/‖x‖ from the kernel's squared norm; 0 for the zero vector. Falls back to f64 where f32 over- or underflows.
pub fn inverse_norm(squared: f32, row: &[u8]) -> f32 {
    if (1e-30..1e30).contains(&squared) {
        return 1.0 / squared.sqrt();
    }
    let squared: f64 = floats(row).map(|v| f64::from(v) * f64::from(v)).sum();
    if squared == 0.0 { 0.0 } else { (1.0 / squared.sqrt()) as f32 }
}

/// Inverse norms of all vectors of a frame.
pub fn inverse_norms(view: &FrameView, bytes: &[u8]) -> Vec<f32> {
    let rows = view.vectors(bytes);
    let size = view.dim() * 4;
    if rows.is_empty() {
        return Vec::new();
    }
    let mut norms = vec![0.0; rows.len() / size];
    engram_kernels::norms_squared(view.dim(), rows, &mut norms);
    for (norm, row) in norms.iter_mut().zip(rows.chunks_exact(size)) {
        *norm = inverse_norm(*norm, row);
    }
    norms
}

fn check_vector(field: &'static str, inverse: f32, row: &[u8], metric: Metric) -> Result<(), Error> {
    // The usual case costs one comparison: a norm in range means all components are finite.
    let norm = 1.0 / f64::from(inverse);
    if inverse > 0.0 && (NORM_MIN..=NORM_MAX).contains(&norm) {
        return Ok(());
    }
    if let Some((i, v)) = floats(row).enumerate().find(|(_, v)| !v.is_finite()) {
        return Err(Error::invalid(field, format!("component {i} of the vector is {v}; components must be finite")));
    }
    let zero = floats(row).all(|v| v == 0.0);
    if metric == Metric::Cosine && zero {
        return Err(Error::invalid(field, "a zero vector has no direction; the cosine metric needs one".to_owned()));
    }
    if !zero && (norm > NORM_MAX || (metric == Metric::Cosine && norm < NORM_MIN)) {
        let range = "norms must lie between 1e-18 and 1e18";
        return Err(Error::invalid(field, format!("the vector's norm is {norm:e}; {range}")));
    }
    Ok(())
}

/// A cue must be usable under the metric. Returns its inverse norm.
pub fn check_query(query: &[f32], dim: u32, metric: Metric) -> Result<f32, Error> {
    if query.len() != dim as usize {
        return Err(wrong_dim("vector", query.len(), dim));
    }
    let bytes: Vec<u8> = query.iter().flat_map(|v| v.to_le_bytes()).collect();
    let inverse = inverse_norm(engram_kernels::norm_squared(&bytes), &bytes);
    check_vector("vector", inverse, &bytes, metric)?;
    Ok(inverse)
}

fn wrong_dim(field: &'static str, got: usize, dim: u32) -> Error {
    Error::invalid(field, format!("the vector has {got} dimensions, the space has {dim}"))
}

/// Everything O1 asks of a frame before it may take a permit.
pub fn check_frame(bytes: &[u8], dim: u32, metric: Metric, config: &Config) -> Result<Checked, Error> {
    let (view, inverse_norms) = open_frame(bytes, dim, config)?;
    for i in 0..view.count() {
        check_item(&view, bytes, i, &inverse_norms, metric, config).map_err(|e| e.at(i))?;
    }
    if let Some(i) = repeated_keys(&view, bytes).first() {
        return Err(repeated(&view, bytes, *i));
    }
    small_enough(bytes, config)?;
    Ok(Checked { hashes: content_hashes(&view, bytes), view, inverse_norms })
}

/// A frame some items of which are not valid, and why.
pub struct Rejected {
    pub view: FrameView,
    pub items: Vec<(usize, Error)>,
}

/// The same item by item; an error only for what no item is to blame for.
pub fn check_items(
    bytes: &[u8],
    dim: u32,
    metric: Metric,
    config: &Config,
) -> Result<Result<Checked, Rejected>, Error> {
    let (view, inverse_norms) = open_frame(bytes, dim, config)?;
    small_enough(bytes, config)?;
    let check = |i: usize| check_item(&view, bytes, i, &inverse_norms, metric, config).err().map(|e| (i, e.at(i)));
    let mut bad: Vec<(usize, Error)> = (0..view.count()).filter_map(check).collect();
    let known: HashSet<usize> = bad.iter().map(|(i, _)| *i).collect();
    let twice = repeated_keys(&view, bytes).into_iter().filter(|i| !known.contains(i));
    bad.extend(twice.map(|i| (i, repeated(&view, bytes, i))));
    if bad.is_empty() {
        return Ok(Ok(Checked { hashes: content_hashes(&view, bytes), view, inverse_norms }));
    }
    bad.sort_by_key(|(i, _)| *i);
    Ok(Err(Rejected { view, items: bad }))
}

fn open_frame(bytes: &[u8], dim: u32, config: &Config) -> Result<(FrameView, Vec<f32>), Error> {
    let view = FrameView::parse(bytes)?;
    // One observation alone is told of its own limits first.
    if view.count() > 1 {
        small_enough(bytes, config)?;
    }
    if view.count() > config.batch_items_max {
        let (have, max) = (view.count(), config.batch_items_max);
        let message = format!("a batch of {have} observations is over the limit of {max}; send smaller batches");
        return Err(Error::TooLarge { field: "batch", index: None, message });
    }
    if view.has_vectors() && view.dim() != dim as usize {
        return Err(wrong_dim("vectors", view.dim(), dim));
    }
    let inverse_norms = inverse_norms(&view, bytes);
    Ok((view, inverse_norms))
}

fn small_enough(bytes: &[u8], config: &Config) -> Result<(), Error> {
    let (have, max) = (bytes.len(), config.batch_bytes_max);
    let message = format!("a batch of {have} bytes is over the limit of {max}; send smaller batches");
    if have > max { Err(Error::TooLarge { field: "batch", index: None, message }) } else { Ok(()) }
}

fn repeated(view: &FrameView, bytes: &[u8], i: usize) -> Error {
    let key = view.key(bytes, i).unwrap_or_default();
    let message =
        format!("the key {key:?} comes twice in one batch; a batch is one moment, send the later one after it");
    Error::InvalidArgument { field: "keys", index: Some(i), message }
}

/// The items whose key an earlier item of the frame has (K1).
fn repeated_keys(view: &FrameView, bytes: &[u8]) -> Vec<usize> {
    if !view.has_keys() {
        return Vec::new();
    }
    let mut seen = HashSet::new();
    (0..view.count()).filter(|i| view.key(bytes, *i).is_some_and(|k| !seen.insert(k))).collect()
}

fn check_item(
    view: &FrameView,
    bytes: &[u8],
    i: usize,
    inverse_norms: &[f32],
    metric: Metric,
    config: &Config,
) -> Result<(), Error> {
    let text = view.text_bytes(bytes, i);
    let metadata = view.metadata(bytes, i);
    let too_large = |field, have: usize, max: usize| {
        let message = format!("{field} of {have} bytes is over the limit of {max}");
        Err(Error::TooLarge { field, index: None, message })
    };
    if let Some(text) = text {
        if text.len() > config.text_bytes_max {
            return too_large("text", text.len(), config.text_bytes_max);
        }
        if std::str::from_utf8(text).is_err() {
            return Err(Error::invalid("text", "the text is not valid UTF-8".to_owned()));
        }
    }
    let key = view.key_bytes(bytes, i).unwrap_or(&[]);
    if key.len() > config.key_bytes_max {
        return too_large("key", key.len(), config.key_bytes_max);
    }
    if std::str::from_utf8(key).is_err() {
        return Err(Error::invalid("key", "the key is not valid UTF-8".to_owned()));
    }
    if metadata.len() > config.metadata_bytes_max {
        return too_large("metadata", metadata.len(), config.metadata_bytes_max);
    }
    check_metadata(metadata, config.metadata_depth_max)?;
    let vector = view.slot(i);
    if text.is_none() && vector.is_none() {
        return Err(Error::invalid("text", "an observation needs a text or a vector".to_owned()));
    }
    let size = text.map_or(0, <[u8]>::len) + metadata.len() + vector.map_or(0, |_| view.dim() * 4);
    if size > config.item_bytes_max {
        return too_large("observation", size, config.item_bytes_max);
    }
    let confidence = view.confidence(i);
    if !(0.0..=1.0).contains(&confidence) {
        return Err(Error::invalid("confidence", format!("confidence is {confidence}; it must lie in [0, 1]")));
    }
    if let (Some(slot), Some(row)) = (vector, view.vector(bytes, i)) {
        check_vector("vector", inverse_norms[slot], row, metric)?;
    }
    Ok(())
}

/// A hash an item, over everything the client gave.
pub fn content_hashes(view: &FrameView, bytes: &[u8]) -> Vec<u64> {
    let hash = |i| {
        let mut h = Xxh3::new();
        let part = |h: &mut Xxh3, bytes: Option<&[u8]>| {
            h.update(&bytes.map_or(u64::MAX, |b| b.len() as u64).to_le_bytes());
            h.update(bytes.unwrap_or(&[]));
        };
        part(&mut h, view.text_bytes(bytes, i));
        part(&mut h, Some(view.metadata(bytes, i)));
        part(&mut h, view.vector(bytes, i));
        part(&mut h, view.key_bytes(bytes, i));
        h.update(&view.observed_at(i).unwrap_or(TIME_ABSENT).to_le_bytes());
        h.update(&view.confidence(i).to_bits().to_le_bytes());
        h.digest()
    };
    (0..view.count()).map(hash).collect()
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Columns, build_frame};
    use super::*;

    fn check(vectors: &[f32], dim: usize, metric: Metric) -> Result<Checked, Error> {
        let columns = Columns { count: vectors.len() / dim, dim, vectors: Some(vectors), ..Columns::default() };
        check_frame(&build_frame(&columns), 2, metric, &Config::default())
    }

    /// O1: each invalid observation has its own error, with the item's index.
    #[test]
    fn vectors_are_checked() {
        let index = |r: Result<Checked, Error>| match r {
            Err(Error::InvalidArgument { index, message, .. }) => (index, message),
            Err(e) => (None, e.to_string()),
            Ok(_) => (None, "ok".to_owned()),
        };
        assert_eq!(index(check(&[1.0, 2.0, 3.0, 4.0], 2, Metric::Cosine)).1, "ok");
        assert_eq!(index(check(&[1.0, 2.0, 3.0], 3, Metric::Cosine)).1, "the vector has 3 dimensions, the space has 2");
        for (bad, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
            let (at, message) = index(check(&[1.0, 2.0, 3.0, bad], 2, Metric::L2));
            assert!(at == Some(1) && message.contains(word), "{message}");
        }
        assert!(index(check(&[0.0, 0.0], 2, Metric::Cosine)).1.contains("zero vector"));
        assert!(check(&[0.0, 0.0], 2, Metric::L2).is_ok());
        assert!(index(check(&[1e30, 1e30], 2, Metric::L2)).1.contains("norm"));
        assert!(check(&[1e-17, 0.0], 2, Metric::Cosine).is_ok(), "f32 squares underflow here, f64 does not");
    }

    #[test]
    fn limits_are_typed() {
        let long = "x".repeat((1 << 20) + 1);
        let texts = [Some("a"), Some(long.as_str())];
        let columns = Columns { count: 2, texts: Some(&texts), ..Columns::default() };
        let error = check_frame(&build_frame(&columns), 2, Metric::Cosine, &Config::default()).err().unwrap();
        assert!(matches!(error, Error::TooLarge { field: "text", index: Some(1), .. }), "{error}");
        let config = Config { batch_items_max: 1, ..Config::default() };
        let columns = Columns { count: 2, texts: Some(&[Some("a"), Some("b")]), ..Columns::default() };
        assert!(matches!(
            check_frame(&build_frame(&columns), 2, Metric::Cosine, &config),
            Err(Error::TooLarge { field: "batch", .. })
        ));
        let columns = Columns { count: 1, texts: Some(&[None]), ..Columns::default() };
        assert!(check_frame(&build_frame(&columns), 2, Metric::Cosine, &Config::default()).is_err());
        let columns = Columns { count: 1, texts: Some(&[Some("a")]), confidence: Some(&[1.5]), ..Columns::default() };
        assert!(check_frame(&build_frame(&columns), 2, Metric::Cosine, &Config::default()).is_err());
    }
}
