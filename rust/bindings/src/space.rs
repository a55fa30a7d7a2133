//! One space's calls.

use std::sync::Arc;

use engram_core::engine::TakeUp;
use engram_core::error::Error;
use engram_core::queue::Forgotten;
use engram_core::session::{Claim, Priority};
use engram_core::store::{self, Wanted};
use engram_core::types::{Generation, Quota};
use engram_core::wal::{Quarantined, quarantine_path};
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray2, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::columns::ColumnsIn;
use crate::engine::Shared;
use crate::errors::{OrRaise, invalid};
use crate::memory::Memory;
use crate::reading::{Asked, How, RecallStream, Where};
use crate::session::Session;
use crate::signals::Signals;
use crate::stats::space_stats;

#[pyclass(frozen, module = "engram._core")]
pub(crate) struct Space {
    pub(crate) shared: Arc<Shared>,
    pub(crate) inner: Arc<store::Space>,
}

impl Space {
    fn put(&self, py: Python<'_>, frame: Vec<u8>, timeout_ms: u64) -> PyResult<(u64, u32)> {
        let (engine, signals) = (self.shared.engine()?, Signals::default());
        let committed = py.detach(|| {
            let prepared = engine.core().prepare(&self.inner, frame)?;
            let ticket = engine.submit(&self.inner, prepared, timeout_ms, &|| signals.look())?;
            signals.wait(&ticket)
        });
        let committed = signals.raise(committed)?;
        Ok((committed.first.0, committed.count))
    }

    fn forget(&self, py: Python<'_>, wanted: Wanted, purge: bool, timeout_ms: u64) -> PyResult<Forgotten> {
        let (engine, signals) = (self.shared.engine()?, Signals::default());
        let outcome = py.detach(|| {
            let ticket = engine.submit_forget(&self.inner, wanted, purge, timeout_ms, &|| signals.look())?;
            signals.wait(&ticket)
        });
        signals.raise(outcome)
    }
}

#[pymethods]
impl Space {
    #[getter]
    fn name(&self) -> &str {
        &self.inner.options.name
    }

    /// Tells it from others of its name, in any directory.
    #[getter]
    fn tag(&self) -> PyResult<u64> {
        Ok(self.shared.engine()?.core().space_tag(&self.inner))
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
    #[pyo3(signature = (columns, timeout_ms))]
    fn observe(&self, py: Python<'_>, columns: ColumnsIn<'_>, timeout_ms: u64) -> PyResult<(u64, u32)> {
        let depth = self.shared.engine()?.core().config.metadata_depth_max;
        self.put(py, columns.frame(self.inner.options.dim as usize, depth)?, timeout_ms)
    }

    /// The same of a frame of the wire; its first sequence is not looked at.
    #[pyo3(signature = (frame, timeout_ms))]
    fn observe_frame(&self, py: Python<'_>, frame: &[u8], timeout_ms: u64) -> PyResult<(u64, u32)> {
        self.put(py, frame.to_vec(), timeout_ms)
    }

    /// A new session, or the one of a token: with it, the last sequence its speaker knows to be acknowledged. `claim`: a number that
    /// the speaker drew for itself, and whether it comes back by itself: then it must not take the session from another.
    #[pyo3(signature = (priority, resume, acknowledged, timeout_ms, claim = None))]
    fn session(
        &self,
        py: Python<'_>,
        priority: &str,
        resume: Option<String>,
        acknowledged: Option<u64>,
        timeout_ms: u64,
        claim: Option<(u64, bool)>,
    ) -> PyResult<Session> {
        let claim = claim.map_or_else(Claim::default, |(speaker, again)| Claim { speaker, again });
        let new = TakeUp::Open(Priority::parse(priority).or_raise()?);
        let how = resume.as_ref().map_or(new, |token| TakeUp::Attach(token, acknowledged));
        Session::take_up(py, (&self.shared, &self.inner), &how, claim, timeout_ms)
    }

    /// Generation, up to which all is absorbed, how far that is behind in microseconds, and the hits.
    #[pyo3(signature = (vector, k, at, how))]
    fn recall(
        &self,
        py: Python<'_>,
        vector: PyReadonlyArray1<'_, f32>,
        k: usize,
        at: Where<'_>,
        how: How,
    ) -> PyResult<(u64, u64, i64, Vec<Memory>)> {
        let query = vector.as_slice()?.to_vec();
        let (looked, hits) =
            self.read(py, &at, |core, reading| core.recall(&self.inner, &query, k, how.of(reading)))?;
        let hits = hits.into_iter().map(Memory::hit).collect();
        Ok((looked.generation.0, looked.absorbed.0, looked.lag_micros, hits))
    }

    #[pyo3(signature = (vector, k, at, how))]
    fn recall_stream(
        &self,
        py: Python<'_>,
        vector: PyReadonlyArray1<'_, f32>,
        k: usize,
        at: Where<'_>,
        how: How,
    ) -> PyResult<RecallStream> {
        let query = vector.as_slice()?.to_vec();
        let inner = self.read(py, &at, |core, reading| core.recall_stream(&self.inner, &query, k, how.of(reading)))?;
        Ok(RecallStream::new(Arc::clone(&self.shared), inner))
    }

    /// `batch`: hits of a batch, and bytes unless one hit has more.
    #[pyo3(signature = (vector, k, at, how, batch))]
    fn ask_recall(
        &self,
        vector: PyReadonlyArray1<'_, f32>,
        k: usize,
        at: Where<'_>,
        how: How,
        batch: (usize, usize),
    ) -> PyResult<Asked> {
        Asked::new(self, vector.as_slice()?.to_vec(), k, &at, how, batch)
    }

    #[pyo3(signature = (vectors, k, at, how))]
    fn recall_batch<'py>(
        &self,
        py: Python<'py>,
        vectors: PyReadonlyArray2<'py, f32>,
        k: usize,
        at: Where<'_>,
        how: How,
    ) -> PyResult<(u64, Bound<'py, PyArray2<u64>>, Bound<'py, PyArray2<f32>>)> {
        let (rows, dim) = (vectors.as_array().nrows(), vectors.as_array().ncols());
        if dim != self.inner.options.dim as usize {
            let message = format!("the vectors have {dim} dimensions, the space has {}", self.inner.options.dim);
            return Err(invalid("vectors", None, message));
        }
        let queries = vectors.as_slice()?.to_vec();
        let found = self.read(py, &at, |core, reading| core.recall_batch(&self.inner, &queries, k, how.of(reading)))?;
        let shaped = |e: numpy::ndarray::ShapeError| invalid("vectors", None, e.to_string());
        let ids = Array2::from_shape_vec((rows, k), found.ids).map_err(shaped)?;
        let scores = Array2::from_shape_vec((rows, k), found.scores).map_err(shaped)?;
        Ok((found.generation.0, ids.into_pyarray(py), scores.into_pyarray(py)))
    }

    #[pyo3(signature = (memory_id, at))]
    fn get(&self, py: Python<'_>, memory_id: u64, at: Where<'_>) -> PyResult<Option<Memory>> {
        let found = self.read(py, &at, |core, reading| core.get(&self.inner, memory_id, reading))?;
        Ok(found.map(Memory::plain))
    }

    #[pyo3(signature = (key, at))]
    fn get_key(&self, py: Python<'_>, key: &str, at: Where<'_>) -> PyResult<Option<Memory>> {
        Ok(self.read(py, &at, |core, reading| core.get_key(&self.inner, key, reading))?.map(Memory::plain))
    }

    #[pyo3(signature = (key, at))]
    fn history(&self, py: Python<'_>, key: &str, at: Where<'_>) -> PyResult<Vec<Memory>> {
        let versions = self.read(py, &at, |core, reading| core.history(&self.inner, key, reading))?;
        Ok(versions.into_iter().map(Memory::plain).collect())
    }

    #[pyo3(signature = (after, limit, at))]
    fn list(&self, py: Python<'_>, after: u64, limit: usize, at: Where<'_>) -> PyResult<Vec<Memory>> {
        let found = self.read(py, &at, |core, reading| core.list(&self.inner, after, limit, reading))?;
        Ok(found.into_iter().map(Memory::plain).collect())
    }

    #[pyo3(signature = (at))]
    fn count(&self, py: Python<'_>, at: Where<'_>) -> PyResult<u64> {
        self.read(py, &at, |core, reading| core.count(&self.inner, reading))
    }

    /// How many of these died.
    #[pyo3(signature = (ids, purge, timeout_ms))]
    fn forget_ids(&self, py: Python<'_>, ids: Vec<u64>, purge: bool, timeout_ms: u64) -> PyResult<u32> {
        let wanted = Wanted::Ids(ids.into_iter().map(Generation).collect());
        Ok(self.forget(py, wanted, purge, timeout_ms)?.count)
    }

    #[pyo3(signature = (key, purge, timeout_ms))]
    fn forget_key(&self, py: Python<'_>, key: String, purge: bool, timeout_ms: u64) -> PyResult<u32> {
        let (mut count, mut more) = (0, true);
        while more {
            let forgotten = self.forget(py, Wanted::Key(key.clone()), purge, timeout_ms)?;
            (count, more) = (count + forgotten.count, forgotten.more);
        }
        Ok(count)
    }

    /// How many died, and whether that was all: one call names a limited number.
    #[pyo3(signature = (condition, purge, timeout_ms))]
    fn forget_where(
        &self,
        py: Python<'_>,
        condition: Bound<'_, PyDict>,
        purge: bool,
        timeout_ms: u64,
    ) -> PyResult<(u32, bool)> {
        let at = Where(None, None, Some(condition));
        let (wanted, whole) = self.read(py, &at, |core, reading| {
            let filter = reading.filter.ok_or_else(|| Error::Closed { what: "the condition".to_owned() })?;
            core.matching(&self.inner, filter, purge, reading.pulse)
        })?;
        let forgotten = self.forget(py, wanted, purge, timeout_ms)?;
        Ok((forgotten.count, whole && !forgotten.more))
    }

    /// Removes the bytes of what was forgotten with `purge`.
    #[pyo3(signature = (timeout_ms))]
    fn finish_purge(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<()> {
        let (engine, signals) = (self.shared.engine()?, Signals::default());
        let finished = py.detach(|| engine.finish_purge(&self.inner, timeout_ms, &|| signals.look()));
        signals.raise(finished)
    }

    #[pyo3(signature = (memories, bytes))]
    fn set_quota(&self, py: Python<'_>, memories: u64, bytes: u64) -> PyResult<()> {
        let (engine, signals) = (self.shared.engine()?, Signals::default());
        let set = py.detach(|| engine.set_quota(&self.inner, Quota { memories, bytes }, &|| signals.look()));
        signals.raise(set)
    }

    /// First id, count, time, first sequence (0: none), reason, and the file that keeps it.
    fn quarantined(&self) -> Vec<(u64, u64, i64, u64, String, String)> {
        let all = self.inner.quarantined();
        let id = self.inner.options.id;
        let one =
            |q: &Quarantined| (q.first.0, q.count, q.at, q.said.first, q.reason.clone(), quarantine_path(id, q.first));
        all.iter().map(one).collect()
    }

    fn read_quarantined(&self, py: Python<'_>, memory_id: u64) -> PyResult<Vec<Memory>> {
        let core = self.shared.engine()?.core();
        let kept = py.detach(|| core.read_quarantined(&self.inner, Generation(memory_id))).or_raise()?;
        Ok(kept.into_iter().map(Memory::plain).collect())
    }

    /// The generation that is absorbed now.
    fn wait_absorbed(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<u64> {
        let (engine, signals) = (self.shared.engine()?, Signals::default());
        let absorbed = py.detach(|| engine.wait_absorbed(&self.inner, timeout_ms, &|| signals.look()));
        Ok(signals.raise(absorbed)?.0)
    }

    /// A snapshot's id and generation.
    fn pin(&self) -> PyResult<(u64, u64)> {
        let pin = self.shared.engine()?.core().pin(&self.inner).or_raise()?;
        Ok((pin.id, pin.generation.0))
    }

    /// Whether a snapshot may be looked at still.
    fn pinned(&self, id: u64) -> PyResult<bool> {
        let pin = store::Snapshot { id, generation: Generation(0) };
        Ok(self.shared.engine()?.core().is_pinned(&self.inner, pin))
    }

    fn release(&self, id: u64) {
        self.inner.pins.release(store::Snapshot { id, generation: Generation(0) });
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let core = self.shared.engine()?.core();
        core.readable(&self.inner).or_raise()?;
        space_stats(py, core.space_stats(&self.inner))
    }
}
