//! Signals while the engine works with the GIL released.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use engram_core::error::Error;
use engram_core::queue::{Committed, Ticket};
use pyo3::prelude::*;

use crate::errors::to_py;

/// After a signal an admitted change is waited for this long (P8).
const SIGNAL_WAIT: Duration = Duration::from_secs(1);
const SLICE: Duration = Duration::from_millis(20);
/// A long read looks this often: looking takes the GIL.
const PULSE: Duration = Duration::from_millis(50);

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

    /// For the pulse of a read: looks if it is time to.
    pub(crate) fn pulse(&self, last: &std::cell::Cell<Instant>) -> Result<(), Error> {
        if last.get().elapsed() < PULSE {
            return Ok(());
        }
        last.set(now());
        self.look()
    }

    /// Waits for the outcome of what was admitted.
    pub(crate) fn wait(&self, ticket: &Ticket<Committed>) -> Result<Committed, Error> {
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
