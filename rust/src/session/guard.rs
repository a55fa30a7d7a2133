//! When may something durable expire? (S1)
//!
//! Expiry goes by wall time, which may be wrong: for an hour of monotonic time after a start, or after a step of more than a minute between the
//! two clocks, nothing expires; and two readings an hour apart must agree that it is due.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

const HOUR_NANOS: u64 = 3_600_000_000_000;
const STEP_MICROS: i64 = 60_000_000;

#[derive(Debug)]
pub struct ExpiryGuard<K> {
    quiet_since: u64,
    /// Wall time less monotonic time, in microseconds, at the last look.
    between: Option<i64>,
    /// What was due, and since when.
    due: HashMap<K, u64>,
}

impl<K> Default for ExpiryGuard<K> {
    fn default() -> Self {
        Self { quiet_since: 0, between: None, due: HashMap::new() }
    }
}

impl<K: Eq + Hash + Copy> ExpiryGuard<K> {
    /// Of those that are past their time by the wall clock, those that may expire now.
    pub fn look(&mut self, monotonic_nanos: u64, wall_micros: i64, past: &[K]) -> Vec<K> {
        let between = wall_micros.saturating_sub((monotonic_nanos / 1_000).cast_signed());
        let stepped = self.between.is_none_or(|b| (between.saturating_sub(b)).saturating_abs() > STEP_MICROS);
        if stepped {
            self.quiet_since = monotonic_nanos;
            self.due.clear();
        }
        self.between = Some(between);
        if monotonic_nanos - self.quiet_since < HOUR_NANOS {
            return Vec::new();
        }
        let known: HashSet<K> = past.iter().copied().collect();
        self.due.retain(|key, _| known.contains(key));
        for key in past {
            self.due.entry(*key).or_insert(monotonic_nanos);
        }
        let long_due = |since: u64| monotonic_nanos - since >= HOUR_NANOS;
        past.iter().copied().filter(|key| self.due.get(key).is_some_and(|s| long_due(*s))).collect()
    }

    /// It has expired: should it ever be due again, that is another time.
    pub fn expired(&mut self, key: &K) {
        self.due.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    #[test]
    fn nothing_expires_by_one_reading() {
        let mut guard = ExpiryGuard::default();
        let mut look = |minutes: u64, step_minutes: i64, past: &[u8]| {
            let at = minutes * MINUTE;
            guard.look(at, (at / 1_000).cast_signed() + step_minutes * 60_000_000, past)
        };
        assert_eq!(look(0, 0, &[1]), []);
        assert_eq!(look(59, 0, &[1]), [], "an hour after the start");
        assert_eq!(look(61, 0, &[1]), [], "the first reading");
        assert_eq!(look(120, 0, &[1, 2]), []);
        assert_eq!(look(122, 0, &[1, 2]), [1]);
        assert_eq!(look(123, 0, &[1, 2]), [1], "until it is said to have expired");
        assert_eq!(look(182, 0, &[2]), [2]);
        assert_eq!(look(183, 0, &[3]), []);
        assert_eq!(look(200, 10_000, &[3]), [], "the clock stepped");
        assert_eq!(look(259, 10_000, &[3]), []);
        assert_eq!(look(261, 10_000, &[3]), []);
        assert_eq!(look(300, 10_000, &[]), [], "it was used meanwhile");
        assert_eq!(look(322, 10_000, &[3]), [], "due anew");
        assert_eq!(look(383, 10_000, &[3]), [3]);
    }
}
