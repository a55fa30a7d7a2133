//! How hard a queue is pressed, as one of four levels (P2), and how long it takes to drain (P4).
//!
//! A level is entered and left at different pressures, so that it does not flutter. `Gauge` is the level that any thread reads and
//! whoever changes or looks at a depth moves: two that move it at once may leave it one look behind (Relaxed is enough: it carries no
//! data), and the next look, always before a refusal, sets it right. `Rate` measures while there is something to drain; time without work does not count.

use engram_kernels::sync::{AtomicU8, Ordering};

/// Four levels, from idle to refusing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Normal,
    Warning,
    Critical,
    Overloaded,
}

/// At this pressure a level is entered …
const ENTER: [f64; 4] = [0.0, 0.50, 0.80, 0.95];
/// … and at this one it is left.
const LEAVE: [f64; 4] = [0.0, 0.40, 0.70, 0.90];

impl Level {
    pub const ALL: [Self; 4] = [Self::Normal, Self::Warning, Self::Critical, Self::Overloaded];

    pub fn name(self) -> &'static str {
        ["NORMAL", "WARNING", "CRITICAL", "OVERLOADED"][self as usize]
    }

    /// Observations a batch that use the writer best (P3).
    pub fn advised_batch(self) -> u64 {
        256 << self as u64
    }

    /// What a space may put into one group, where `base` is its share at rest (P3).
    pub fn quantum(self, base: usize) -> usize {
        base << self as usize
    }

    /// Where this level goes at `pressure`: up at once, down only below the mark where it is left.
    #[must_use]
    pub fn next(self, pressure: f64) -> Self {
        let reached = |marks: &[f64; 4]| Self::ALL.into_iter().rev().find(|l| pressure >= marks[*l as usize]);
        let up = reached(&ENTER).unwrap_or_default();
        let kept = reached(&LEAVE).unwrap_or_default().min(self);
        up.max(kept)
    }
}

/// The level of one queue.
#[derive(Debug)]
pub struct Gauge(AtomicU8);

impl Default for Gauge {
    fn default() -> Self {
        Self(AtomicU8::new(Level::Normal as u8))
    }
}

impl Gauge {
    pub fn level(&self) -> Level {
        Level::ALL[usize::from(self.0.load(Ordering::Relaxed)) % 4]
    }

    /// Moves to where `pressure` leads from here.
    pub fn look(&self, pressure: f64) -> Level {
        let before = self.level();
        let after = before.next(pressure);
        if after != before {
            self.0.store(after as u8, Ordering::Relaxed);
        }
        after
    }
}

/// Time over which a rate forgets.
const MEMORY_NANOS: f64 = 500e6;
/// Amounts closer together than this count as one: the end of a group is not a rate.
const STEP_NANOS: u64 = 1_000_000;

/// Amount a second: what was drained over the time it took, both forgotten exponentially. A short first measurement does not weigh more than it lasted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    amount: f64,
    nanos: f64,
    waiting: u64,
    busy: u64,
    since: u64,
}

impl Rate {
    /// Work begins after a pause: the pause does not count.
    pub fn resume(&mut self, now: u64) {
        self.since = self.since.max(now);
    }

    /// So much was drained by `now`. What ends together is one measurement.
    pub fn note(&mut self, now: u64, amount: u64) {
        let spent = now.saturating_sub(self.since);
        if spent > 0 && self.busy >= STEP_NANOS {
            (self.amount, self.nanos) = self.all();
            (self.waiting, self.busy) = (0, 0);
        }
        self.waiting += amount;
        self.busy += spent;
        self.since = self.since.max(now);
    }

    /// What was drained, and over how long, with the last measurement.
    fn all(&self) -> (f64, f64) {
        let kept = (-(self.busy as f64) / MEMORY_NANOS).exp();
        (self.amount * kept + self.waiting as f64, self.nanos * kept + self.busy as f64)
    }

    fn per_nano(&self) -> f64 {
        let (amount, nanos) = self.all();
        if nanos >= STEP_NANOS as f64 { amount / nanos } else { 0.0 }
    }

    pub fn per_second(&self) -> f64 {
        self.per_nano() * 1e9
    }

    /// Milliseconds until `amount` is drained, if the rate stays; None before there was one.
    pub fn drain_ms(&self, amount: u64) -> Option<f64> {
        let per_nano = self.per_nano();
        (per_nano > 0.0).then(|| amount as f64 / per_nano / 1e6)
    }
}

/// The shortest and the longest retry-after, and what is said before anything was measured.
const RETRY_MS: (f64, f64) = (10.0, 60_000.0);
const RETRY_MS_UNKNOWN: f64 = 1_000.0;

/// What is told to who was refused: the time to drain, up to a fifth later (`dice` is any number), so that not all come back at once (P4).
pub fn retry_after_ms(drain_ms: Option<f64>, dice: u64) -> u64 {
    let jitter = 1.0 + 0.2 * (dice >> 11) as f64 / (1u64 << 53) as f64;
    (drain_ms.unwrap_or(RETRY_MS_UNKNOWN) * jitter).clamp(RETRY_MS.0, RETRY_MS.1) as u64
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// P2: up at 0.50, 0.80, 0.95; down at 0.40, 0.70, 0.90.
    #[test]
    fn levels_have_hysteresis() {
        let gauge = Gauge::default();
        let walk = [
            (0.0, Level::Normal),
            (0.49, Level::Normal),
            (0.50, Level::Warning),
            (0.41, Level::Warning),
            (0.39, Level::Normal),
            (0.81, Level::Critical),
            (0.71, Level::Critical),
            (0.69, Level::Warning),
            (0.95, Level::Overloaded),
            (0.91, Level::Overloaded),
            (0.89, Level::Critical),
            (1.0, Level::Overloaded),
            (0.1, Level::Normal),
        ];
        for (pressure, level) in walk {
            assert_eq!((gauge.look(pressure), gauge.level()), (level, level), "at {pressure}");
        }
    }

    proptest! {
        /// P2: looking again changes nothing, and a level never stands where it would neither be entered nor kept.
        #[test]
        fn a_look_settles(pressures in prop::collection::vec(0.0..1.2f64, 1..50)) {
            let mut level = Level::Normal;
            for pressure in pressures {
                level = level.next(pressure);
                prop_assert_eq!(level.next(pressure), level);
                prop_assert!(level == Level::Normal || pressure >= LEAVE[level as usize]);
                prop_assert!(Level::ALL.into_iter().all(|l| l <= level || pressure < ENTER[l as usize]));
            }
        }
    }

    /// P4: the rate is that of the busy time, and follows a change within a second.
    #[test]
    fn a_rate_counts_busy_time() {
        const MS: u64 = 1_000_000;
        let mut rate = Rate::default();
        assert_eq!(rate.drain_ms(10), None);
        rate.resume(5_000 * MS);
        (1..=100).for_each(|i| rate.note((5_000 + i * 10) * MS, 20));
        assert!((rate.per_second() - 2_000.0).abs() < 1.0, "{}", rate.per_second());
        rate.resume(90_000 * MS);
        rate.note(90_010 * MS, 20);
        assert!((rate.per_second() - 2_000.0).abs() < 1.0, "a pause is no slowness");
        (1..=100).for_each(|i| rate.note((90_010 + i * 10) * MS, 5));
        assert!((rate.per_second() - 500.0).abs() < 250.0, "{}", rate.per_second());
        assert!((rate.drain_ms(1_000).unwrap() - 1e6 / rate.per_second()).abs() < 1e-6);
    }

    /// P4: bursts much shorter than a step keep their time: 20 in every 100 µs are 200,000 a second, however long the pauses.
    #[test]
    fn short_bursts_count_their_time() {
        let mut rate = Rate::default();
        for i in 1..=1_000u64 {
            rate.resume(i * 50_000_000);
            rate.note(i * 50_000_000 + 100_000, 20);
        }
        assert!((rate.per_second() - 200_000.0).abs() < 1.0, "{}", rate.per_second());
    }

    /// P4: a job that ends for many at once counts with all of them, the first time and later.
    #[test]
    fn what_ends_together_counts_together() {
        const MS: u64 = 1_000_000;
        let mut rate = Rate::default();
        for job in 1..=5u64 {
            rate.resume(job * 10_000 * MS);
            (0..100).for_each(|_| rate.note((job * 10_000 + 1_000) * MS, 1_000));
            assert!((rate.per_second() - 100_000.0).abs() < 1_000.0, "{}", rate.per_second());
        }
    }

    /// P4: jitter only lengthens, by a fifth at most; 10 ms to 60 s.
    #[test]
    fn retry_after_is_bounded() {
        assert_eq!((retry_after_ms(Some(1_000.0), 0), retry_after_ms(Some(1_000.0), u64::MAX / 2)), (1_000, 1_100));
        assert_eq!((retry_after_ms(Some(0.0), 7), retry_after_ms(Some(1e9), 7)), (10, 60_000));
        assert_eq!(retry_after_ms(None, 0), 1_000);
    }
}
