//! The engine as a Python object.

use std::path::PathBuf;
use std::sync::Arc;

use engram_core::engine;
use engram_core::env::Env;
use engram_core::error::Error;
use engram_core::types::{Config, Durability, Metric};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::completions::{Bell, Heard};
use crate::errors::{OrRaise, to_py};
use crate::signals::Signals;
use crate::space::Space;
use crate::stats::{damage_out, directory, engine_stats};

/// One engine, and the process it belongs to.
pub(crate) struct Shared {
    engine: engine::Engine,
    pid: u32,
    completions: Bell,
    answered: Bell,
    #[cfg(feature = "chaos")]
    faults: Arc<engram_core::env::FaultPlan>,
}

impl Shared {
    /// A forked child gets a clear error: the threads are its parent's.
    pub(crate) fn engine(&self) -> PyResult<&engine::Engine> {
        if std::process::id() == self.pid {
            return Ok(&self.engine);
        }
        let what = format!("the engine belongs to process {}; after a fork open it again, and", self.pid);
        Err(to_py(&Error::Closed { what }))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::process::id() != self.pid {
            self.engine.forget_after_fork();
        }
    }
}

#[pyclass(frozen, module = "engram._core")]
pub(crate) struct Engine {
    shared: Arc<Shared>,
    path: Option<PathBuf>,
}

fn config(base: Config, durability: &str, limits: &Bound<'_, PyDict>) -> PyResult<Config> {
    let mut config = Config { durability: Durability::parse(durability).or_raise()?, ..base };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    config.partitions = Config::partitions_for(cores);
    for (name, value) in limits {
        config.set(&name.extract::<String>()?, value.extract()?).or_raise()?;
    }
    Ok(config)
}

#[pymethods]
impl Engine {
    #[staticmethod]
    #[pyo3(signature = (path, durability, limits))]
    fn open(py: Python<'_>, path: Option<PathBuf>, durability: &str, limits: &Bound<'_, PyDict>) -> PyResult<Self> {
        let (base, env) = match &path {
            Some(path) => (Config::default(), directory(path)?),
            None => (Config::in_memory(), Env::in_memory()),
        };
        let config = config(base, durability, limits)?;
        #[cfg(feature = "chaos")]
        let (env, faults) = faulty(env);
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let engine = py.detach(|| engine::Engine::open(env, config, cores)).or_raise()?;
        let shared = Shared {
            engine,
            pid: std::process::id(),
            completions: Bell::default(),
            answered: Bell::default(),
            #[cfg(feature = "chaos")]
            faults,
        };
        Ok(Self { shared: Arc::new(shared), path })
    }

    #[getter]
    fn path(&self) -> Option<PathBuf> {
        self.path.clone()
    }

    #[pyo3(signature = (name, dim, metric, durability))]
    fn create_space(
        &self,
        py: Python<'_>,
        name: &str,
        dim: u32,
        metric: Option<&str>,
        durability: Option<&str>,
    ) -> PyResult<Space> {
        let engine = self.shared.engine()?;
        let metric = metric.map(Metric::parse).transpose().or_raise()?;
        let durability = durability.map(Durability::parse).transpose().or_raise()?;
        let signals = Signals::default();
        let space = py.detach(|| engine.create_space(name, dim, metric, durability, &|| signals.look()));
        Ok(Space { inner: signals.raise(space)?, shared: Arc::clone(&self.shared) })
    }

    fn space(&self, name: &str) -> PyResult<Space> {
        let inner = self.shared.engine()?.core().space(name).or_raise()?;
        Ok(Space { inner, shared: Arc::clone(&self.shared) })
    }

    fn spaces(&self) -> PyResult<Vec<String>> {
        let core = self.shared.engine()?.core();
        core.check_open().or_raise()?;
        Ok(core.spaces.all().iter().filter(|s| !s.is_fenced()).map(|s| s.options.name.clone()).collect())
    }

    fn drop_space(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        let engine = self.shared.engine()?;
        let signals = Signals::default();
        let dropped = py.detach(|| engine.drop_space(name, &|| signals.look()));
        signals.raise(dropped)
    }

    fn checkpoint(&self, py: Python<'_>) -> PyResult<()> {
        let engine = self.shared.engine()?;
        let signals = Signals::default();
        let done = py.detach(|| engine.checkpoint(&|| signals.look()));
        signals.raise(done)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let engine = self.shared.engine()?;
        py.detach(|| engine.close()).or_raise()
    }

    /// Called in a forked child.
    fn forget_after_fork(&self) {
        self.shared.engine.forget_after_fork();
    }

    fn state_hash(&self, py: Python<'_>) -> PyResult<u64> {
        let engine = self.shared.engine()?;
        py.detach(|| engine.core().state_hash()).or_raise()
    }

    fn limits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let c = &self.shared.engine()?.core().config;
        let d = PyDict::new(py);
        d.set_item("batch_items_max", c.batch_items_max)?;
        d.set_item("batch_bytes_max", c.batch_bytes_max)?;
        d.set_item("admission_timeout_ms", c.admission_timeout_ms)?;
        d.set_item("recall_k_max", c.recall_k_max)?;
        Ok(d)
    }

    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let r = &self.shared.engine()?.core().report;
        let d = PyDict::new(py);
        d.set_item("created", r.created)?;
        d.set_item("damage", damage_out(py, &r.damage)?)?;
        d.set_item("torn_bytes", r.torn_bytes)?;
        d.set_item("groups_replayed", r.groups_replayed)?;
        d.set_item("renewed", r.renewed.clone())?;
        d.set_item("quarantined", r.quarantined.clone())?;
        d.set_item("strays", r.strays)?;
        d.set_item("seconds", r.nanos as f64 / 1e9)?;
        Ok(d)
    }

    /// A file descriptor that is readable when there are completions.
    #[getter]
    fn completions_fd(&self) -> PyResult<i32> {
        self.shared.completions.descriptor(&self.shared.engine()?.core().completions)
    }

    /// Session and what it is told, oldest first.
    fn drain_completions<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Vec<(u64, Bound<'py, PyBytes>)>> {
        let engine = self.shared.engine()?;
        self.shared.completions.quiet();
        let told = py.detach(|| engine.core().drain_completions(most));
        Ok(told.into_iter().map(|(session, bytes)| (session.0, PyBytes::new(py, &bytes))).collect())
    }

    /// A file descriptor that is readable when there are batches of recalls.
    #[getter]
    fn answered_fd(&self) -> PyResult<i32> {
        self.shared.answered.descriptor(&self.shared.engine()?.core().answered)
    }

    /// Recalls of which the batch that was asked for is made.
    fn drain_answered(&self, most: usize) -> PyResult<Vec<u64>> {
        let engine = self.shared.engine()?;
        self.shared.answered.quiet();
        Ok(engine.core().answered.drain(most))
    }

    /// Where to wait for levels that speakers are to hear of.
    fn heard(&self) -> PyResult<Heard> {
        Ok(Heard(self.shared.engine()?.core().heard()))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let core = self.shared.engine()?.core();
        core.check_open().or_raise()?;
        engine_stats(py, core.stats())
    }

    /// Test builds: makes chosen file calls fail, by `FaultPlan`'s rules; an empty string clears them.
    #[cfg(feature = "chaos")]
    fn inject(&self, rule: &str) -> PyResult<()> {
        use engram_core::env::Rule;
        if rule.is_empty() {
            self.shared.faults.clear();
            return Ok(());
        }
        let parsed = Rule::parse(rule);
        let bad = || crate::errors::invalid("rule", None, format!("not a fault rule: {rule:?}"));
        self.shared.faults.add(parsed.ok_or_else(bad)?);
        Ok(())
    }
}

#[cfg(feature = "chaos")]
fn faulty(mut env: Env) -> (Env, Arc<engram_core::env::FaultPlan>) {
    use engram_core::env::{FaultPlan, FaultyFiles, Rule};
    let plan = Arc::new(FaultPlan::default());
    let rules = std::env::var("ENGRAM_FAULTS").unwrap_or_default();
    rules.split(',').filter_map(Rule::parse).for_each(|rule| plan.add(rule));
    env.files = Arc::new(FaultyFiles::new(env.files, Arc::clone(&plan)));
    (env, plan)
}

/// The kernels this process uses, by name.
#[pyfunction]
pub(crate) fn simd_level() -> &'static str {
    engine::simd_level()
}
