//! The sessions of a space, by id.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::section::{Session, SessionState};
use crate::types::SessionId;

pub struct Sessions<W>(RwLock<BTreeMap<SessionId, Arc<Session<W>>>>);

impl<W> Default for Sessions<W> {
    fn default() -> Self {
        Self(RwLock::new(BTreeMap::new()))
    }
}

impl<W> Sessions<W> {
    pub fn get(&self, id: SessionId) -> Option<Arc<Session<W>>> {
        self.0.read().get(&id).cloned()
    }

    pub fn insert(&self, session: Arc<Session<W>>) {
        self.0.write().insert(session.id, session);
    }

    /// Its record is gone; who still holds it is told so.
    pub fn remove(&self, id: SessionId) {
        if let Some(session) = self.0.write().remove(&id) {
            session.section().state = SessionState::Closed;
        }
    }

    /// All, by id.
    pub fn all(&self) -> Vec<Arc<Session<W>>> {
        self.0.read().values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.0.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }

    /// Those that somebody speaks for.
    pub fn attached(&self) -> usize {
        self.0.read().values().filter(|s| !matches!(s.section().state, SessionState::Detached)).count()
    }
}
