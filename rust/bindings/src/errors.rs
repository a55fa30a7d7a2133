//! The engine's errors as Python exceptions, by the one table in `engram._exceptions`.

use engram_core::error::Error;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

fn fields(py: Python<'_>, error: &Error) -> PyResult<Py<PyDict>> {
    let d = PyDict::new(py);
    match error {
        Error::InvalidArgument { field, index, .. } | Error::TooLarge { field, index, .. } => {
            d.set_item("field", field)?;
            d.set_item("index", index)?;
        }
        Error::Overloaded { retry_after_ms, level, .. } => {
            d.set_item("retry_after_ms", retry_after_ms)?;
            d.set_item("level", level)?;
        }
        Error::Corrupted { path, offset, reason } => {
            d.set_item("path", path)?;
            d.set_item("offset", offset)?;
            d.set_item("reason", reason)?;
        }
        Error::QuotaExceeded { what, quota, used } => {
            d.set_item("what", what)?;
            d.set_item("quota", quota)?;
            d.set_item("used", used)?;
        }
        Error::SequenceGap { expected } => d.set_item("expected", expected)?,
        Error::SequenceConflict { sequence } => d.set_item("sequence", sequence)?,
        Error::DataLoss { committed } => d.set_item("committed", committed)?,
        Error::Quarantined { reason } => d.set_item("reason", reason)?,
        Error::Poisoned { cause } => d.set_item("cause", cause)?,
        Error::Locked { pid } => d.set_item("pid", pid)?,
        Error::UnsupportedVersion { path, found, supported, .. } => {
            d.set_item("path", path)?;
            d.set_item("found", found)?;
            d.set_item("supported", supported)?;
        }
        Error::PermissionDenied { path, .. } => d.set_item("path", path)?,
        Error::Storage { path, errno, .. } => {
            d.set_item("path", path)?;
            d.set_item("errno", errno)?;
        }
        Error::NotFound { .. }
        | Error::AlreadyExists { .. }
        | Error::SnapshotExpired { .. }
        | Error::SessionExpired { .. }
        | Error::Fenced
        | Error::Paused
        | Error::DiskFull { .. }
        | Error::Closed { .. }
        | Error::Timeout { .. }
        | Error::Interrupted => {}
    }
    Ok(d.unbind())
}

/// The Python exception for an engine error.
pub(crate) fn to_py(error: &Error) -> PyErr {
    static FROM_CORE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    Python::attach(|py| {
        let make = || -> PyResult<PyErr> {
            let from_core = FROM_CORE
                .get_or_try_init(py, || py.import("engram._exceptions")?.getattr("from_core").map(Bound::unbind))?;
            let exception = from_core.call1(py, (error.code(), error.to_string(), fields(py, error)?))?;
            Ok(PyErr::from_value(exception.into_bound(py)))
        };
        make().unwrap_or_else(|e| e)
    })
}

pub(crate) trait OrRaise<T> {
    fn or_raise(self) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T, Error> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|e| to_py(&e))
    }
}

pub(crate) fn invalid(field: &'static str, index: Option<usize>, message: String) -> PyErr {
    to_py(&Error::InvalidArgument { field, index, message })
}
