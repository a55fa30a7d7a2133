//! A batch's columns, as Python gives them, to a frame.

use engram_core::records::{self, Columns, build_frame, check_frame};
use engram_core::types::{Config, Metric};
use numpy::{PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::convert::{metadata_in, texts_in};
use crate::errors::{OrRaise, invalid};

/// Vectors, texts, metadata, observed_at, confidence, keys: all of one length.
#[derive(FromPyObject)]
pub(crate) struct ColumnsIn<'py>(
    Option<PyReadonlyArray2<'py, f32>>,
    Option<Bound<'py, PyList>>,
    Option<Bound<'py, PyList>>,
    Option<PyReadonlyArray1<'py, i64>>,
    Option<PyReadonlyArray1<'py, f32>>,
    Option<Bound<'py, PyList>>,
);

fn borrow(texts: &[Option<String>]) -> Vec<Option<&str>> {
    texts.iter().map(Option::as_deref).collect()
}

impl ColumnsIn<'_> {
    pub(crate) fn frame(&self, dim: usize, depth: usize) -> PyResult<Vec<u8>> {
        let Self(vectors, texts, metadata, observed_at, confidence, keys) = self;
        let texts = texts.as_ref().map(|t| texts_in(t, "text")).transpose()?;
        let borrowed = texts.as_deref().map(borrow);
        let keys = keys.as_ref().map(|k| texts_in(k, "key")).transpose()?;
        let borrowed_keys = keys.as_deref().map(borrow);
        let metadata = metadata.as_ref().map(|m| metadata_in(m, depth)).transpose()?;
        let vectors = match vectors.as_ref().map(|v| (v.as_array(), v.as_slice())) {
            Some((shape, Ok(slice))) if shape.ncols() == dim => Some((slice, shape.nrows())),
            Some((shape, Ok(_))) => {
                let message = format!("the vectors have {} dimensions, the space has {dim}", shape.ncols());
                return Err(invalid("vectors", None, message));
            }
            Some((_, Err(_))) => {
                return Err(invalid("vectors", None, "vectors must be C-contiguous".to_owned()));
            }
            None => None,
        };
        let lengths = [
            vectors.map(|v| v.1),
            texts.as_ref().map(Vec::len),
            metadata.as_ref().map(Vec::len),
            observed_at.as_ref().map(|o| o.as_array().len()),
            confidence.as_ref().map(|c| c.as_array().len()),
            keys.as_ref().map(Vec::len),
        ];
        let count = lengths.iter().flatten().copied().next().unwrap_or(0);
        if lengths.iter().flatten().any(|n| *n != count) {
            return Err(invalid("batch", None, "the columns of a batch differ in length".to_owned()));
        }
        if count == 0 {
            return Err(invalid("batch", None, "an empty batch: there is nothing to observe".to_owned()));
        }
        Ok(build_frame(&Columns {
            count,
            dim,
            vectors: vectors.map(|v| v.0),
            texts: borrowed.as_deref(),
            metadata: metadata.as_deref(),
            observed_at: observed_at.as_ref().map(|o| o.as_slice()).transpose()?,
            confidence: confidence.as_ref().map(|c| c.as_slice()).transpose()?,
            keys: borrowed_keys.as_deref(),
        }))
    }
}

/// The columns as a frame of the wire, without a first sequence: for clients, which have no engine. With `whole` its items are checked as an
/// engine with the default limits checks them.
#[pyfunction]
#[pyo3(signature = (columns, dim, metric, whole))]
pub(crate) fn encode_frame<'py>(
    py: Python<'py>,
    columns: ColumnsIn<'py>,
    dim: u32,
    metric: &str,
    whole: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let config = Config::default();
    let frame = columns.frame(dim as usize, config.metadata_depth_max)?;
    let metric = Metric::parse(metric).or_raise()?;
    if whole {
        py.detach(|| check_frame(&frame, dim, metric, &config)).or_raise()?;
    }
    Ok(PyBytes::new(py, &frame))
}

/// Frames of one observation each, joined to frames of many: their numbers of observations, and the frames.
#[pyfunction]
pub(crate) fn join_frames<'py>(
    py: Python<'py>,
    frames: Vec<Bound<'py, PyBytes>>,
) -> PyResult<Vec<(usize, Bound<'py, PyBytes>)>> {
    let frames: Vec<&[u8]> = frames.iter().map(PyBytesMethods::as_bytes).collect();
    let joined = records::join_frames(&frames).or_raise()?;
    Ok(joined.iter().map(|(count, frame)| (*count, PyBytes::new(py, frame))).collect())
}
