//! The answer a caller waits for. Set once, by the writer; read by whoever holds the ticket.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::types::{Durability, Generation};

/// An acknowledgement (O5): what it says is already true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub first: Generation,
    pub count: u32,
    pub durability: Durability,
}

/// What a forget did (K3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// The generation it took; 0: none, for nothing that is meant was there.
    pub generation: Generation,
    pub count: u32,
    /// One record did not name all: who asked asks again.
    pub more: bool,
}

/// The side that answers. Dropped without an answer (its holder panicked), it answers that the outcome is unknown: nobody waits for ever.
pub struct Reply<T: Clone>(Arc<Ticket<T>>);

impl<T: Clone> Reply<T> {
    pub fn new(ticket: Arc<Ticket<T>>) -> Self {
        Self(ticket)
    }

    pub fn complete(self, outcome: Result<T>) {
        self.0.complete(outcome);
    }
}

impl<T: Clone> Drop for Reply<T> {
    fn drop(&mut self) {
        self.0.complete(Err(Error::Poisoned { cause: "the writer stopped before it answered".to_owned() }));
    }
}

type Callback = Box<dyn FnOnce() + Send>;

struct State<T> {
    outcome: Option<Result<T>>,
    callback: Option<Callback>,
}

pub struct Ticket<T> {
    state: Mutex<State<T>>,
    set: Condvar,
}

impl<T> Default for Ticket<T> {
    fn default() -> Self {
        Self { state: Mutex::new(State { outcome: None, callback: None }), set: Condvar::new() }
    }
}

impl<T: Clone> Ticket<T> {
    pub fn complete(&self, outcome: Result<T>) {
        let callback = {
            let mut state = self.state.lock();
            if state.outcome.is_some() {
                return;
            }
            state.outcome = Some(outcome);
            state.callback.take()
        };
        self.set.notify_all();
        if let Some(call) = callback {
            call();
        }
    }

    pub fn outcome(&self) -> Option<Result<T>> {
        self.state.lock().outcome.clone()
    }

    /// The outcome, waited for at most `slice`.
    pub fn wait(&self, slice: Duration) -> Option<Result<T>> {
        let mut state = self.state.lock();
        if state.outcome.is_none() {
            self.set.wait_for(&mut state, slice);
        }
        state.outcome.clone()
    }

    /// Calls `call` once the outcome is set, at once if it is.
    pub fn on_complete(&self, call: Callback) {
        let mut state = self.state.lock();
        if state.outcome.is_none() {
            state.callback = Some(call);
            return;
        }
        drop(state);
        call();
    }
}
