//! What a read looks at and how, as Python says it; and a recall whose hits are fetched bit by bit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engram_core::engine::{self, AsOf, AskedRecall, Core, Looked, Question, Reading};
use engram_core::error::Error;
use engram_core::index::Width;
use engram_core::store;
use engram_core::types::Generation;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::convert::filter_in;
use crate::engine::Shared;
use crate::errors::OrRaise;
use crate::memory::Memory;
use crate::signals::{Signals, now};
use crate::space::Space;

type Snap = Option<(u64, u64)>;

/// Snapshot id and generation; generation or time; condition.
#[derive(FromPyObject)]
pub(crate) struct Where<'py>(pub(crate) Snap, pub(crate) Option<(String, i64)>, pub(crate) Option<Bound<'py, PyDict>>);

/// How to search: exactly; how wide to walk, or what share to find; what is settled, if it is not behind for longer, in milliseconds; threads.
#[derive(Clone, Copy, FromPyObject)]
pub(crate) struct How(bool, Option<usize>, Option<f32>, Option<u64>, usize);

impl How {
    fn width(self) -> Width {
        match (self.1, self.2) {
            (Some(ef), _) => Width::Ef(ef),
            (None, Some(share)) => Width::Recall(share),
            (None, None) => Width::Default,
        }
    }

    pub(crate) fn of(self, reading: Reading<'_>) -> Reading<'_> {
        Reading { exact: self.0, width: self.width(), settled: self.3, threads: self.4, ..reading }
    }
}

impl Where<'_> {
    fn snapshot(&self) -> Option<store::Snapshot> {
        self.0.map(|(id, generation)| store::Snapshot { id, generation: Generation(generation) })
    }

    fn as_of(&self) -> Option<AsOf> {
        self.1.as_ref().map(|(kind, value)| match kind.as_str() {
            "time" => AsOf::Time(*value),
            _ => AsOf::Generation(Generation(value.cast_unsigned())),
        })
    }
}

impl Space {
    /// Runs a read with the GIL released; a signal ends it.
    pub(crate) fn read<T: Send>(
        &self,
        py: Python<'_>,
        at: &Where<'_>,
        run: impl Fn(&Core, Reading<'_>) -> Result<T, Error> + Sync,
    ) -> PyResult<T> {
        let engine = self.shared.engine()?;
        let filter = filter_in(at.2.as_ref())?;
        let (as_of, snapshot) = (at.as_of(), at.snapshot());
        let signals = Signals::default();
        let outcome = py.detach(|| {
            let last = std::cell::Cell::new(now());
            let pulse = || signals.pulse(&last);
            run(
                engine.core(),
                Reading { snapshot, as_of, filter: filter.as_ref(), pulse: &pulse, ..Reading::default() },
            )
        });
        signals.raise(outcome)
    }
}

/// A recall whose batches other threads make; completions tell of each.
#[pyclass(frozen, module = "engram._core")]
pub(crate) struct Asked {
    shared: Arc<Shared>,
    inner: Arc<AskedRecall>,
}

impl Asked {
    pub(crate) fn new(
        space: &Space,
        cue: Vec<f32>,
        k: usize,
        at: &Where<'_>,
        how: How,
        (batch, batch_bytes): (usize, usize),
    ) -> PyResult<Self> {
        let (snapshot, as_of, filter) = (at.snapshot(), at.as_of(), filter_in(at.2.as_ref())?);
        let How(exact, _, _, settled, _) = how;
        let question =
            Question { cue, k, snapshot, as_of, filter, exact, width: how.width(), settled, batch, batch_bytes };
        let inner = Arc::new(space.shared.engine()?.core().ask_recall(&space.inner, question).or_raise()?);
        Ok(Self { shared: Arc::clone(&space.shared), inner })
    }
}

#[pymethods]
impl Asked {
    #[getter]
    fn id(&self) -> u64 {
        self.inner.id
    }

    /// Has the next batch made, by one of so many threads.
    fn ask(&self, threads: usize) -> PyResult<()> {
        self.shared.engine()?.ask_batch(&self.inner, threads).or_raise()
    }

    /// The batch, as a `RecallResponse`, and whether it is the last.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, bool)> {
        let (message, last) = match self.inner.take() {
            Some(made) => made.or_raise()?,
            None => return Err(PyRuntimeError::new_err("the recall has no answer: this is a bug, please report it")),
        };
        Ok((PyBytes::new(py, &message), last))
    }

    /// Gives it up: what it pins is released.
    fn cancel(&self) {
        self.inner.cancel();
    }
}

/// The hits of one recall, all of one snapshot, a batch at a time.
#[pyclass(frozen, module = "engram._core")]
pub(crate) struct RecallStream {
    shared: Arc<Shared>,
    /// None: given up.
    inner: Mutex<Option<engine::RecallStream>>,
    looked: Looked,
}

impl RecallStream {
    pub(crate) fn new(shared: Arc<Shared>, inner: engine::RecallStream) -> Self {
        Self { shared, looked: inner.looked, inner: Mutex::new(Some(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<engine::RecallStream>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl RecallStream {
    #[getter]
    fn generation(&self) -> u64 {
        self.looked.generation.0
    }

    #[getter]
    fn absorbed(&self) -> u64 {
        self.looked.absorbed.0
    }

    #[getter]
    fn lag_micros(&self) -> i64 {
        self.looked.lag_micros
    }

    /// The next hits, at most so many, and whether they are the last.
    fn next(&self, py: Python<'_>, most: usize) -> PyResult<(Vec<Memory>, bool)> {
        let engine = self.shared.engine()?;
        let signals = Signals::default();
        let fetched = py.detach(|| {
            let mut inner = self.lock();
            let Some(stream) = inner.as_mut() else { return Ok((Vec::new(), true)) };
            let hits = engine.core().next_hits(stream, most)?;
            let over = stream.is_over();
            if over {
                *inner = None;
            }
            Ok((hits, over))
        });
        let (hits, over) = signals.raise(fetched)?;
        Ok((hits.into_iter().map(Memory::hit).collect(), over))
    }

    /// Gives it up: what it pins is released.
    fn close(&self) {
        self.lock().take();
    }
}
