//! A session's calls.

use std::sync::Arc;

use engram_core::engine::{Engine, Hears, Saying, Spoken, TakeUp};
use engram_core::error::Error;
use engram_core::records::FrameView;
use engram_core::session::{Claim, Known};
use engram_core::store::{self, Speaker};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::columns::ColumnsIn;
use crate::engine::Shared;
use crate::errors::OrRaise;
use crate::signals::Signals;

#[pyclass(frozen, module = "engram._core")]
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) space: Arc<store::Space>,
    pub(crate) inner: Arc<Speaker>,
    pub(crate) epoch: u64,
}

/// First sequence; runs of sequence, count and first generation (0: not kept); how many were duplicates; what was rejected, and why.
type Acknowledged = (u64, Vec<(u64, u64, u64)>, u64, Vec<(usize, String)>);

impl Session {
    fn speaker(&self) -> (&Arc<Speaker>, u64) {
        (&self.inner, self.epoch)
    }

    /// Waits for all of what was said.
    fn outcome(
        &self,
        engine: &Engine,
        saying: &Saying,
        hashes: &[Option<u64>],
        signals: &Signals,
    ) -> Result<(Vec<Known>, u64), Error> {
        let coming = saying.coming.as_ref().map_or(0, |(count, _)| *count);
        for (_, ticket) in saying.coming.iter().chain(&saying.fresh) {
            signals.wait(ticket)?;
        }
        let known = engine.core().acknowledged(&self.space, &self.inner, saying.first, hashes)?;
        Ok((known, saying.known + coming))
    }

    fn say_spoken(
        &self,
        py: Python<'_>,
        frame: Vec<u8>,
        first: Option<u64>,
        whole: bool,
        timeout_ms: u64,
    ) -> PyResult<Acknowledged> {
        let engine = self.shared.engine()?;
        let signals = Signals::default();
        let outcome = py.detach(|| {
            let spoken: Spoken = engine.core().prepare_spoken(&self.space, frame, whole)?;
            let (hashes, rejected) = (spoken.hashes.clone(), spoken.rejected.clone());
            let saying = engine.say(&self.space, self.speaker(), first, spoken, timeout_ms, &|| signals.look())?;
            let (known, duplicates) = self.outcome(engine, &saying, &hashes, &signals)?;
            Ok((saying.first, known, duplicates, rejected))
        });
        let (first, known, duplicates, rejected) = signals.raise(outcome)?;
        let runs = known.iter().map(|k| (k.first, k.count, k.generation.map_or(0, |g| g.0))).collect();
        Ok((first, runs, duplicates, rejected.into_iter().map(|(i, e)| (i, e.to_string())).collect()))
    }
}

impl Drop for Session {
    /// Nobody speaks any more: it can be attached by its token, and expire.
    fn drop(&mut self) {
        if let Ok(engine) = self.shared.engine() {
            engine.core().detach(&self.inner, self.epoch);
        }
    }
}

impl Session {
    /// Opens one, or attaches to it.
    pub(crate) fn take_up(
        py: Python<'_>,
        (shared, space): (&Arc<Shared>, &Arc<store::Space>),
        how: &TakeUp<'_>,
        claim: Claim,
        timeout_ms: u64,
    ) -> PyResult<Self> {
        let (engine, signals) = (shared.engine()?, Signals::default());
        let taken = py.detach(|| engine.take_up(space, (how, claim), "", timeout_ms, &|| signals.look()));
        let (inner, attached) = signals.raise(taken)?;
        Ok(Self { shared: Arc::clone(shared), space: Arc::clone(space), inner, epoch: attached.epoch })
    }
}

#[pymethods]
impl Session {
    #[getter]
    fn token(&self) -> PyResult<String> {
        Ok(self.shared.engine()?.core().token(&self.space, self.inner.id))
    }

    #[getter]
    fn priority(&self) -> &'static str {
        self.inner.priority.name()
    }

    #[getter]
    fn state(&self) -> &'static str {
        let section = self.inner.section();
        if section.epoch == self.epoch { section.state.name() } else { "FENCED" }
    }

    /// Admitted, committed, absorbed.
    fn sequences(&self) -> (u64, u64, u64) {
        let absorbed = self.space.absorbed();
        let section = self.inner.section();
        (section.admitted(), section.window.committed(), section.window.through(absorbed))
    }

    /// Completions tell of what is absorbed, too, from now on.
    fn tell_absorbed(&self) -> PyResult<()> {
        let core = self.shared.engine()?.core();
        core.listen(&self.space, &self.inner, self.epoch, Hears::Absorbed).or_raise()
    }

    /// Completions tell of this session from now on: of levels, and of what frames come to.
    fn tell_levels(&self) -> PyResult<()> {
        let core = self.shared.engine()?.core();
        core.listen(&self.space, &self.inner, self.epoch, Hears::Frames).or_raise()
    }

    /// How hard the space is pressed, and how many observations to send at once.
    fn pressure(&self) -> PyResult<(&'static str, u64)> {
        let core = self.shared.engine()?.core();
        let level = core.level_for(&self.space, core.now());
        Ok((level.name(), level.advised_batch()))
    }

    /// Observations and bytes that may be sent without being refused, as it stands.
    fn credits(&self) -> PyResult<(u64, u64)> {
        let core = self.shared.engine()?.core();
        // Who is fenced has no say any more.
        let speaks = self.inner.section().epoch == self.epoch;
        Ok(if speaks { core.credits(&self.space, &self.inner) } else { (0, 0) })
    }

    #[pyo3(signature = (columns, first, whole, timeout_ms))]
    fn say(
        &self,
        py: Python<'_>,
        columns: ColumnsIn<'_>,
        first: Option<u64>,
        whole: bool,
        timeout_ms: u64,
    ) -> PyResult<Acknowledged> {
        let engine = self.shared.engine()?;
        let frame = columns.frame(self.space.options.dim as usize, engine.core().config.metadata_depth_max)?;
        self.say_spoken(py, frame, first, whole, timeout_ms)
    }

    /// A frame as the wire carries it; its own first sequence counts.
    #[pyo3(signature = (frame, timeout_ms))]
    fn say_frame(&self, py: Python<'_>, frame: &[u8], timeout_ms: u64) -> PyResult<Acknowledged> {
        let first = FrameView::parse(frame).or_raise()?.first_sequence();
        self.say_spoken(py, frame.to_vec(), Some(first), false, timeout_ms)
    }

    /// None, or why the frame was refused, as the wire says it. Never waits.
    fn submit_frame<'py>(&self, py: Python<'py>, frame: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let engine = self.shared.engine()?;
        let frame = PyBuffer::<u8>::get(frame)?.to_vec(py)?;
        let submitted = py.detach(|| {
            let refused = engine.core().submit_frame(&self.space, &self.inner, self.epoch, frame);
            // Not done here: a step may apply what others sent, and the caller is somebody's event loop.
            engine.core().wake_writer(self.space.options.partition.0 as usize);
            refused
        });
        Ok(submitted.or_raise()?.map(|fault| PyBytes::new(py, &fault)))
    }

    /// Tells completions of this session from those of others.
    #[getter]
    fn id(&self) -> u64 {
        self.inner.id.0
    }

    #[getter]
    fn epoch(&self) -> u64 {
        self.epoch
    }

    /// `Heard` tells of this session from now on.
    fn listen(&self) -> PyResult<()> {
        let core = self.shared.engine()?.core();
        core.listen(&self.space, &self.inner, self.epoch, Hears::Calls).or_raise()
    }

    fn pause(&self, paused: bool) -> PyResult<()> {
        self.shared.engine()?.core().pause(&self.inner, self.epoch, paused).or_raise()
    }

    fn detach(&self) -> PyResult<()> {
        self.shared.engine()?.core().detach(&self.inner, self.epoch);
        Ok(())
    }

    #[pyo3(signature = (timeout_ms))]
    fn drain(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<()> {
        let engine = self.shared.engine()?;
        let signals = Signals::default();
        let drained = py.detach(|| engine.drain_session(&self.space, self.speaker(), timeout_ms, &|| signals.look()));
        signals.raise(drained)
    }

    #[pyo3(signature = (timeout_ms))]
    fn end(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<()> {
        let engine = self.shared.engine()?;
        let signals = Signals::default();
        let ended = py.detach(|| engine.end_session(&self.space, self.speaker(), timeout_ms, &|| signals.look()));
        signals.raise(ended)
    }
}
