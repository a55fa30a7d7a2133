//! The spaces, by id and by name: the only `DashMap`.
//!
//! A guard never leaves this file: the `Arc<Space>` is cloned and the shard released before anything else happens (a DashMap read takes
//! a shard's lock; holding it over other work can deadlock).

use std::collections::BTreeMap;
use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::RwLock;

use super::space::Space;
use crate::types::{PartitionId, SpaceId};

#[derive(Default)]
pub struct Spaces {
    by_id: DashMap<SpaceId, Arc<Space>>,
    names: RwLock<BTreeMap<String, SpaceId>>,
}

impl Spaces {
    pub fn insert(&self, space: Arc<Space>) {
        let id = space.options.id;
        self.names.write().insert(space.options.name.clone(), id);
        self.by_id.insert(id, space);
    }

    pub fn get(&self, id: SpaceId) -> Option<Arc<Space>> {
        self.by_id.get(&id).map(|entry| Arc::clone(&entry))
    }

    pub fn named(&self, name: &str) -> Option<Arc<Space>> {
        let id = *self.names.read().get(name)?;
        self.get(id)
    }

    pub fn remove(&self, id: SpaceId) -> Option<Arc<Space>> {
        let (_, space) = self.by_id.remove(&id)?;
        let mut names = self.names.write();
        if names.get(&space.options.name) == Some(&id) {
            names.remove(&space.options.name);
        }
        Some(space)
    }

    /// All spaces by name.
    pub fn all(&self) -> Vec<Arc<Space>> {
        let ids: Vec<SpaceId> = self.names.read().values().copied().collect();
        ids.into_iter().filter_map(|id| self.get(id)).collect()
    }

    /// The spaces of a partition by id: an order that is the same in every run.
    pub fn of_partition(&self, partition: PartitionId) -> Vec<Arc<Space>> {
        let mut all = self.all();
        all.retain(|s| s.options.partition == partition);
        all.sort_by_key(|s| s.options.id);
        all
    }

    pub fn len(&self) -> usize {
        self.names.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
