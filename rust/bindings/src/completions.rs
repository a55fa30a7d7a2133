//! How those hear who do not wait: the descriptor by which an event loop learns that there are completions, a socket with a byte in it; and
//! levels for callbacks.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use engram_core::engine;
use engram_core::queue::Completions;
use pyo3::prelude::*;

#[derive(Default)]
pub(crate) struct Bell(OnceLock<(UnixStream, Arc<UnixStream>)>);

impl Bell {
    /// The end that is readable when the bell of a queue has rung; made when it is first asked for.
    pub(crate) fn descriptor<T>(&self, of: &Completions<T>) -> PyResult<i32> {
        if self.0.get().is_none() {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            writer.set_nonblocking(true)?;
            // Another thread may have been quicker.
            let _ = self.0.set((reader, Arc::new(writer)));
            if let Some((_, writer)) = self.0.get() {
                let writer = Arc::clone(writer);
                // A full socket is readable already.
                of.on_ring(Box::new(move || drop((&*writer).write(&[1]))));
            }
        }
        Ok(self.0.get().map_or(-1, |(reader, _)| reader.as_raw_fd()))
    }

    /// What has rung so far is heard.
    pub(crate) fn quiet(&self) {
        if let Some((reader, _)) = self.0.get() {
            let mut bytes = [0; 64];
            while matches!((&*reader).read(&mut bytes), Ok(n) if n > 0) {}
        }
    }
}

/// Levels for callbacks; it does not keep the engine.
#[pyclass(frozen, module = "engram._core")]
pub(crate) struct Heard(pub(crate) Arc<engine::Heard>);

#[pymethods]
impl Heard {
    /// Waits at most so long: session, epoch, level and advised batch of each; None: the engine has ended.
    fn next(&self, py: Python<'_>, ms: u64) -> Option<Vec<(u64, u64, &'static str, u64)>> {
        let told = py.detach(|| self.0.next(ms))?;
        Some(told.into_iter().map(|(id, epoch, level)| (id.0, epoch, level.name(), level.advised_batch())).collect())
    }
}
