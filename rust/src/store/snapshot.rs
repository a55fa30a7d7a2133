//! Pins: a snapshot is a number (G3). It lives at most so long unused, and at most so long in all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::Error;
use crate::types::{Config, Generation};

#[derive(Clone, Copy, Debug)]
struct Pin {
    generation: Generation,
    made: u64,
    used: u64,
}

impl Pin {
    fn counts(&self, now: u64, config: &Config) -> bool {
        let ms = |since: u64| now.saturating_sub(since) / MILLI;
        ms(self.used) <= config.snapshot_idle_ms_max && ms(self.made) <= config.snapshot_age_ms_max
    }
}

/// A pinned watermark of one space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub id: u64,
    pub generation: Generation,
}

/// The pins of one space. Times are monotonic nanoseconds.
#[derive(Default)]
pub struct Pins {
    next: AtomicU64,
    live: Mutex<HashMap<u64, Pin>>,
}

const MILLI: u64 = 1_000_000;

impl Pins {
    /// Pins what `generation` says; those that expired unreleased are forgotten. Asked under the lock: whoever looks for the oldest pin sees this
    /// one, or this one sees everything that was dead by then.
    pub fn pin(&self, generation: impl FnOnce() -> Generation, now: u64, config: &Config) -> Snapshot {
        // Relaxed: only uniqueness matters.
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut live = self.live.lock();
        live.retain(|_, pin| pin.counts(now, config));
        let generation = generation();
        live.insert(id, Pin { generation, made: now, used: now });
        Snapshot { id, generation }
    }

    /// Counts a use. An expired pin is gone.
    pub fn touch(&self, snapshot: Snapshot, now: u64, config: &Config) -> Result<Generation, Error> {
        let mut live = self.live.lock();
        let expired = |reason: String| Error::SnapshotExpired { reason };
        let Some(pin) = live.get_mut(&snapshot.id) else {
            return Err(expired("it was released or had expired before".to_owned()));
        };
        let (idle, age) = (now.saturating_sub(pin.used) / MILLI, now.saturating_sub(pin.made) / MILLI);
        let (idle_max, age_max) = (config.snapshot_idle_ms_max, config.snapshot_age_ms_max);
        pin.used = now;
        if idle <= idle_max && age <= age_max {
            return Ok(pin.generation);
        }
        live.remove(&snapshot.id);
        Err(expired(if idle > idle_max {
            format!("unused for {idle} ms, the limit is {idle_max}")
        } else {
            format!("{age} ms old, the limit is {age_max}")
        }))
    }

    /// The lowest generation that somebody looks at.
    pub fn oldest(&self, now: u64, config: &Config) -> Option<Generation> {
        let live = self.live.lock();
        live.values().filter(|pin| pin.counts(now, config)).map(|p| p.generation).min()
    }

    /// Whether it may be looked at still; asking is no use of it.
    pub fn holds(&self, snapshot: Snapshot, now: u64, config: &Config) -> bool {
        let live = self.live.lock();
        live.get(&snapshot.id).is_some_and(|pin| pin.counts(now, config))
    }

    pub fn release(&self, snapshot: Snapshot) {
        self.live.lock().remove(&snapshot.id);
    }

    pub fn len(&self) -> usize {
        self.live.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G3: 60 s without use, 10 min in all.
    #[test]
    fn pins_expire() {
        let (pins, config) = (Pins::default(), Config::default());
        let second = 1_000 * MILLI;
        let a = pins.pin(|| Generation(7), 0, &config);
        for t in 1..=10 {
            assert_eq!(pins.touch(a, t * 59 * second, &config).unwrap(), Generation(7));
        }
        assert!(pins.touch(a, 601 * second, &config).unwrap_err().to_string().contains("old"));
        let b = pins.pin(|| Generation(8), 0, &config);
        assert!(pins.holds(b, 60 * second, &config) && !pins.holds(b, 61 * second, &config));
        assert_eq!(pins.touch(b, 61 * second, &config).unwrap_err().code(), "SNAPSHOT_EXPIRED");
        assert!(pins.touch(b, 61 * second, &config).is_err() && pins.is_empty());
        pins.pin(|| Generation(9), 0, &config);
        pins.pin(|| Generation(9), 61 * second, &config);
        assert_eq!(pins.len(), 1, "the dropped one is forgotten");
    }
}
