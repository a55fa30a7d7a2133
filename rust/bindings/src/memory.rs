//! A memory, or a hit if it was found by a cue. Fields become Python objects when they are asked for.

use engram_core::engine;
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::convert::metadata_out;

#[pyclass(frozen, module = "engram._core")]
pub(crate) struct Memory {
    inner: engine::Memory,
    score: Option<f32>,
    provisional: bool,
}

impl Memory {
    pub(crate) fn plain(inner: engine::Memory) -> Self {
        Self { inner, score: None, provisional: false }
    }

    pub(crate) fn hit(found: engine::Found) -> Self {
        Self { inner: found.memory, score: Some(found.score), provisional: found.provisional }
    }
}

#[pymethods]
impl Memory {
    #[getter]
    fn memory_id(&self) -> u64 {
        self.inner.generation.0
    }

    #[getter]
    fn score(&self) -> Option<f32> {
        self.score
    }

    #[getter]
    fn provisional(&self) -> bool {
        self.provisional
    }

    #[getter]
    fn text(&self) -> Option<&str> {
        self.inner.text.as_deref()
    }

    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        metadata_out(py, &self.inner.metadata)
    }

    #[getter]
    fn confidence(&self) -> f32 {
        self.inner.confidence
    }

    #[getter]
    fn observed_at(&self) -> Option<i64> {
        self.inner.observed_at
    }

    #[getter]
    fn key(&self) -> Option<&str> {
        self.inner.key.as_deref()
    }

    #[getter]
    fn ended(&self) -> Option<u64> {
        self.inner.ended.map(|g| g.0)
    }

    #[getter]
    fn committed_at(&self) -> i64 {
        self.inner.committed_at
    }

    #[getter]
    fn vector<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<f32>>> {
        self.inner.vector.as_ref().map(|v| PyArray1::from_slice(py, v))
    }
}
