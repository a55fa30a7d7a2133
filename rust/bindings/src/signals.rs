//! Signals while the engine works with the GIL released.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engram_core::error::Error;
use engram_core::queue::Ticket;
use pyo3::prelude::*;

use crate::errors::to_py;

/// After a signal an admitted change is waited for this long (P8).
const SIGNAL_WAIT: Duration = Duration::from_secs(1);
const SLICE: Duration = Duration::from_millis(20);
/// A long read looks this often: looking takes the GIL.
const PULSE: Duration = Duration::from_millis(50);

thread_local! {
    /// Of the call that `Cancel::run` runs on this thread.
    static CANCELLED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Ends a call from another thread, as Ctrl-C would: what it waits for, or reads, is given up within some 50 ms.
#[pyclass(frozen, module = "engram._core")]
#[derive(Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

#[pymethods]
impl Cancel {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// From now on. Relaxed: a hint that is looked at now and then.
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    #[getter]
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Calls `call` without arguments; engine calls inside it on this thread raise `Interrupted` once this is set.
    fn run(&self, call: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let before = CANCELLED.replace(Some(Arc::clone(&self.0)));
        let outcome = call.call0();
        CANCELLED.set(before);
        outcome.map(Bound::unbind)
    }
}

/// Looks for signals, and whether the call was cancelled, while the engine waits; keeps the exception the handler raised.
pub(crate) struct Signals(Mutex<Option<PyErr>>, Option<Arc<AtomicBool>>);

impl Default for Signals {
    fn default() -> Self {
        Self(Mutex::default(), CANCELLED.with_borrow(Clone::clone))
    }
}

impl Signals {
    fn swap(&self, raised: Option<PyErr>) -> Option<PyErr> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), raised)
    }

    pub(crate) fn look(&self) -> Result<(), Error> {
        if self.1.as_ref().is_some_and(|cancelled| cancelled.load(Ordering::Relaxed)) {
            return Err(Error::Interrupted);
        }
        match Python::attach(|py| py.check_signals()) {
            Ok(()) => Ok(()),
            Err(raised) => {
                self.swap(Some(raised));
                Err(Error::Interrupted)
            }
        }
    }

    /// For the pulse of a read: looks if it is time to.
    pub(crate) fn pulse(&self, last: &std::cell::Cell<Instant>) -> Result<(), Error> {
        if last.get().elapsed() < PULSE {
            return Ok(());
        }
        last.set(now());
        self.look()
    }

    /// Waits for the outcome of what was admitted.
    pub(crate) fn wait<T: Clone>(&self, ticket: &Ticket<T>) -> Result<T, Error> {
        let mut interrupted: Option<Instant> = None;
        loop {
            if let Some(outcome) = ticket.wait(SLICE) {
                let outcome = outcome?;
                return if interrupted.is_some() { Err(Error::Interrupted) } else { Ok(outcome) };
            }
            match interrupted {
                None if self.look().is_err() => interrupted = Some(now()),
                Some(since) if since.elapsed() > SIGNAL_WAIT => {
                    // The outcome stays unknown: not the handler's exception, but ours.
                    self.swap(None);
                    return Err(Error::Interrupted);
                }
                _ => {}
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

#[allow(
    clippy::disallowed_methods,
    reason = "a signal's grace period and pulse; the engine's own time comes from its clock"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
