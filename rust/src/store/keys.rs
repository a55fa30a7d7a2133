//! Which memory does a key name? (K1)
//!
//! Every version a key ever had in the rows that are here, oldest first. The writer adds a version when it numbers it, so that the next one
//! in the same group knows its predecessor; a reader at W takes the last version ≤ W and looks itself whether that one still lives.
//! Entries of a group that failed lie above every watermark and are seen by nobody.

use std::collections::HashMap;

use parking_lot::RwLock;

use crate::types::Generation;

#[derive(Debug)]
struct Versions {
    last: Generation,
    older: Vec<Generation>,
}

#[derive(Debug, Default)]
pub struct Keys {
    by_key: RwLock<HashMap<Box<str>, Versions>>,
}

impl Keys {
    /// A version with a greater generation than all before. Returns the one it follows.
    pub fn add(&self, key: &str, generation: Generation) -> Option<Generation> {
        let mut all = self.by_key.write();
        let Some(versions) = all.get_mut(key) else {
            all.insert(key.into(), Versions { last: generation, older: Vec::new() });
            return None;
        };
        debug_assert!(versions.last < generation, "versions come in order");
        let before = std::mem::replace(&mut versions.last, generation);
        versions.older.push(before);
        Some(before)
    }

    /// A version found in rows that are here, in any order.
    pub fn learn(&self, key: &str, generation: Generation) {
        let mut all = self.by_key.write();
        let Some(versions) = all.get_mut(key) else {
            all.insert(key.into(), Versions { last: generation, older: Vec::new() });
            return;
        };
        let (last, older) = (versions.last.max(generation), versions.last.min(generation));
        versions.last = last;
        let at = versions.older.partition_point(|g| *g < older);
        versions.older.insert(at, older);
    }

    /// A version that never came to be.
    pub fn remove(&self, key: &str, generation: Generation) {
        let mut all = self.by_key.write();
        let Some(versions) = all.get_mut(key) else { return };
        if versions.last != generation {
            versions.older.retain(|g| *g != generation);
            return;
        }
        match versions.older.pop() {
            Some(before) => versions.last = before,
            None => drop(all.remove(key)),
        }
    }

    /// The last version at or before `upto`.
    pub fn at(&self, key: &str, upto: Generation) -> Option<Generation> {
        let all = self.by_key.read();
        let versions = all.get(key)?;
        if versions.last <= upto {
            return Some(versions.last);
        }
        let known = versions.older.partition_point(|g| *g <= upto);
        known.checked_sub(1).map(|i| versions.older[i])
    }

    /// All versions at or before `upto`, oldest first.
    pub fn history(&self, key: &str, upto: Generation) -> Vec<Generation> {
        let all = self.by_key.read();
        let Some(versions) = all.get(key) else { return Vec::new() };
        versions.older.iter().chain([&versions.last]).copied().filter(|g| *g <= upto).collect()
    }

    pub fn len(&self) -> usize {
        self.by_key.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_last_version() {
        let (keys, g) = (Keys::default(), Generation);
        assert_eq!(keys.add("a", g(3)), None);
        assert_eq!(keys.add("a", g(5)), Some(g(3)));
        assert_eq!(keys.add("a", g(9)), Some(g(5)));
        assert_eq!(keys.add("b", g(10)), None);
        let at: Vec<_> = [2, 3, 4, 5, 8, 9, 99].map(|w| keys.at("a", g(w)).map(|g| g.0)).into();
        assert_eq!(at, [None, Some(3), Some(3), Some(5), Some(5), Some(9), Some(9)]);
        assert_eq!(keys.history("a", g(8)), [g(3), g(5)]);
        assert!(keys.history("c", g(99)).is_empty() && keys.len() == 2);
    }

    #[test]
    fn versions_are_learnt_in_any_order() {
        let (keys, g) = (Keys::default(), Generation);
        [5, 9, 3, 7].into_iter().for_each(|v| keys.learn("a", g(v)));
        assert_eq!(keys.history("a", g(99)), [3, 5, 7, 9].map(g));
    }

    /// O7: a version that could not be applied gives the key back.
    #[test]
    fn a_version_can_be_taken_out() {
        let (keys, g) = (Keys::default(), Generation);
        for v in [3, 5, 9] {
            keys.add("a", g(v));
        }
        keys.add("b", g(10));
        keys.remove("a", g(5));
        assert_eq!((keys.history("a", g(99)), keys.at("a", g(8))), (vec![g(3), g(9)], Some(g(3))));
        keys.remove("a", g(9));
        keys.remove("b", g(10));
        keys.remove("c", g(1));
        assert_eq!((keys.at("a", g(99)), keys.at("b", g(99)), keys.len()), (Some(g(3)), None, 1));
    }
}
