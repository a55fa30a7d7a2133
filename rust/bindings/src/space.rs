//! One space's calls.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engram_core::engine;
use engram_core::error::Error;
use engram_core::queue::{Committed, Ticket};
use engram_core::records::{Columns, build_frame};
use engram_core::store;
use engram_core::types::Generation;
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray2, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::convert::{filter_in, metadata_in, texts_in};
use crate::engine::Shared;
use crate::errors::{OrRaise, invalid, to_py};
use crate::memory::Memory;
use crate::stats::space_stats;

/// After a signal an admitted observation is waited for this long (P8).
const SIGNAL_WAIT: Duration = Duration::from_secs(1);
const SLICE: Duration = Duration::from_millis(20);

/// Looks for signals while the engine waits; keeps the exception the handler raised.
#[derive(Default)]
pub(crate) struct Signals(Mutex<Option<PyErr>>);

impl Signals {
    fn swap(&self, raised: Option<PyErr>) -> Option<PyErr> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), raised)
    }

    pub(crate) fn look(&self) -> Result<(), Error> {
        match Python::attach(|py| py.check_signals()) {
            Ok(()) => Ok(()),
            Err(raised) => {
                self.swap(Some(raised));
                Err(Error::Interrupted)
            }
        }
    }

    pub(crate) fn raise<T>(&self, result: Result<T, Error>) -> PyResult<T> {
        result.map_err(|e| match (&e, self.swap(None)) {
            (Error::Interrupted, Some(raised)) => raised,
            _ => to_py(&e),
        })
    }
}

type Snap = Option<(u64, u64)>;

fn snapshot(at: Snap) -> Option<store::Snapshot> {
    at.map(|(id, generation)| store::Snapshot { id, generation: Generation(generation) })
}

#[pyclass(frozen, module = "engram._core")]
pub(crate) struct Space {
    pub(crate) shared: Arc<Shared>,
    pub(crate) inner: Arc<store::Space>,
}

impl Space {
    fn wait(&self, ticket: &Ticket<Committed>, signals: &Signals) -> Result<Committed, Error> {
        let mut interrupted: Option<Instant> = None;
        loop {
            if let Some(outcome) = ticket.wait(SLICE) {
                let outcome = outcome?;
                return if interrupted.is_some() { Err(Error::Interrupted) } else { Ok(outcome) };
            }
            match interrupted {
                None if signals.look().is_err() => interrupted = Some(now()),
                Some(since) if since.elapsed() > SIGNAL_WAIT => {
                    // The outcome stays unknown: not the handler's exception, but ours.
                    signals.swap(None);
                    return Err(Error::Interrupted);
                }
                _ => {}
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a signal's grace period; the engine's own time comes from its clock")]
fn now() -> Instant {
    Instant::now()
}

#[pymethods]
impl Space {
    #[getter]
    fn name(&self) -> &str {
        &self.inner.options.name
    }

    #[getter]
    fn dim(&self) -> u32 {
        self.inner.options.dim
    }

    #[getter]
    fn metric(&self) -> &'static str {
        self.inner.options.metric.name()
    }

    #[getter]
    fn durability(&self) -> &'static str {
        self.inner.durability.name()
    }

    /// Returns the first generation and how many were given.
    #[pyo3(signature = (vectors, texts, metadata, observed_at, confidence, timeout_ms))]
    #[allow(clippy::too_many_arguments, reason = "the columns of a frame")]
    fn observe(
        &self,
        py: Python<'_>,
        vectors: Option<PyReadonlyArray2<'_, f32>>,
        texts: Option<Bound<'_, PyList>>,
        metadata: Option<Bound<'_, PyList>>,
        observed_at: Option<PyReadonlyArray1<'_, i64>>,
        confidence: Option<PyReadonlyArray1<'_, f32>>,
        timeout_ms: u64,
    ) -> PyResult<(u64, u32)> {
        let engine = self.shared.engine()?;
        let texts = texts.as_ref().map(texts_in).transpose()?;
        let borrowed: Option<Vec<Option<&str>>> = texts.as_ref().map(|t| t.iter().map(|t| t.as_deref()).collect());
        let depth = engine.core().config.metadata_depth_max;
        let metadata = metadata.as_ref().map(|m| metadata_in(m, depth)).transpose()?;
        let dim = self.inner.options.dim as usize;
        let vectors = vectors.as_ref().map(|v| (v.as_array(), v.as_slice()));
        let vectors = match vectors {
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
        ];
        let count = lengths.iter().flatten().copied().next().unwrap_or(0);
        if lengths.iter().flatten().any(|n| *n != count) {
            return Err(invalid("batch", None, "the columns of a batch differ in length".to_owned()));
        }
        if count == 0 {
            return Err(invalid("batch", None, "an empty batch: there is nothing to observe".to_owned()));
        }
        let columns = Columns {
            count,
            dim,
            vectors: vectors.map(|v| v.0),
            texts: borrowed.as_deref(),
            metadata: metadata.as_deref(),
            observed_at: observed_at.as_ref().map(|o| o.as_slice()).transpose()?,
            confidence: confidence.as_ref().map(|c| c.as_slice()).transpose()?,
        };
        let frame = build_frame(&columns);
        let signals = Signals::default();
        let committed = py.detach(|| {
            let prepared = engine.core().prepare(&self.inner, frame)?;
            let ticket = engine.submit(&self.inner, prepared, timeout_ms, &|| signals.look())?;
            self.wait(&ticket, &signals)
        });
        let committed = signals.raise(committed)?;
        Ok((committed.first.0, committed.count))
    }

    #[pyo3(signature = (vector, k, at, condition))]
    fn recall(
        &self,
        py: Python<'_>,
        vector: PyReadonlyArray1<'_, f32>,
        k: usize,
        at: Snap,
        condition: Option<Bound<'_, PyDict>>,
    ) -> PyResult<(u64, Vec<Memory>)> {
        let engine = self.shared.engine()?;
        let query = vector.as_slice()?.to_vec();
        let filter = filter_in(condition.as_ref())?;
        let (generation, hits) =
            py.detach(|| engine.core().recall(&self.inner, &query, k, snapshot(at), filter.as_ref())).or_raise()?;
        Ok((generation.0, hits.into_iter().map(Memory::hit).collect()))
    }

    #[pyo3(signature = (vectors, k, at, condition))]
    fn recall_batch<'py>(
        &self,
        py: Python<'py>,
        vectors: PyReadonlyArray2<'py, f32>,
        k: usize,
        at: Snap,
        condition: Option<Bound<'_, PyDict>>,
    ) -> PyResult<(u64, Bound<'py, PyArray2<u64>>, Bound<'py, PyArray2<f32>>)> {
        let engine = self.shared.engine()?;
        let (rows, dim) = (vectors.as_array().nrows(), vectors.as_array().ncols());
        if dim != self.inner.options.dim as usize {
            let message = format!("the vectors have {dim} dimensions, the space has {}", self.inner.options.dim);
            return Err(invalid("vectors", None, message));
        }
        let queries = vectors.as_slice()?.to_vec();
        let filter = filter_in(condition.as_ref())?;
        let found: engine::Neighbours = py
            .detach(|| engine.core().recall_batch(&self.inner, &queries, k, snapshot(at), filter.as_ref()))
            .or_raise()?;
        let shaped = |e: numpy::ndarray::ShapeError| invalid("vectors", None, e.to_string());
        let ids = Array2::from_shape_vec((rows, k), found.ids).map_err(shaped)?;
        let scores = Array2::from_shape_vec((rows, k), found.scores).map_err(shaped)?;
        Ok((found.generation.0, ids.into_pyarray(py), scores.into_pyarray(py)))
    }

    #[pyo3(signature = (memory_id, at))]
    fn get(&self, py: Python<'_>, memory_id: u64, at: Snap) -> PyResult<Option<Memory>> {
        let engine = self.shared.engine()?;
        let found = py.detach(|| engine.core().get(&self.inner, memory_id, snapshot(at))).or_raise()?;
        Ok(found.map(Memory::plain))
    }

    #[pyo3(signature = (after, limit, at, condition))]
    fn list(
        &self,
        py: Python<'_>,
        after: u64,
        limit: usize,
        at: Snap,
        condition: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Vec<Memory>> {
        let engine = self.shared.engine()?;
        let filter = filter_in(condition.as_ref())?;
        let found =
            py.detach(|| engine.core().list(&self.inner, after, limit, snapshot(at), filter.as_ref())).or_raise()?;
        Ok(found.into_iter().map(Memory::plain).collect())
    }

    #[pyo3(signature = (at))]
    fn count(&self, py: Python<'_>, at: Snap) -> PyResult<u64> {
        let engine = self.shared.engine()?;
        py.detach(|| engine.core().count(&self.inner, snapshot(at))).or_raise()
    }

    /// A snapshot's id and generation.
    fn pin(&self) -> PyResult<(u64, u64)> {
        let pin = self.shared.engine()?.core().pin(&self.inner).or_raise()?;
        Ok((pin.id, pin.generation.0))
    }

    fn release(&self, id: u64) {
        self.inner.pins.release(store::Snapshot { id, generation: Generation(0) });
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        space_stats(py, self.shared.engine()?.core().space_stats(&self.inner))
    }
}
