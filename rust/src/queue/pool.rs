//! Bytes that all spaces of a process take from together, and how many spaces hold some: what a fair share is (P2).
//!
//! A space counts as a holder from its first byte to its last. AcqRel: admission compares the sum with a limit. A holder is added before its
//! bytes can be given back (the reservation comes before the push), so the number never falls below the truth.

use engram_kernels::sync::{AtomicU64, Ordering};
use parking_lot::Mutex;

use super::pressure::{Gauge, Level, Rate};

#[derive(Debug)]
pub struct Pool {
    bytes: AtomicU64,
    holders: AtomicU64,
    max: u64,
    gauge: Gauge,
    rate: Mutex<Rate>,
}

impl Pool {
    pub fn new(max: u64) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            holders: AtomicU64::new(0),
            max,
            gauge: Gauge::default(),
            rate: Mutex::default(),
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Whether a reservation of this size could ever succeed.
    pub fn could_hold(&self, bytes: u64) -> bool {
        bytes <= self.max
    }

    /// Takes bytes whatever the limit says: they are there already.
    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Takes bytes, or nothing.
    #[must_use]
    pub fn reserve(&self, bytes: u64) -> bool {
        let grown = |now: u64| now.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown).is_ok()
    }

    pub fn release(&self, bytes: u64) {
        let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "released more bytes than taken");
    }

    /// A space that held nothing holds something.
    pub fn enter(&self, now: u64) {
        if self.holders.fetch_add(1, Ordering::AcqRel) == 0 {
            self.drains(now);
        }
    }

    /// From now on something is drained: time before does not count.
    pub fn drains(&self, now: u64) {
        self.rate.lock().resume(now);
    }

    /// So much was drained by `now`, and will be, or was, released.
    pub fn drained(&self, now: u64, bytes: u64) {
        self.rate.lock().note(now, bytes);
    }

    /// What must go before `more` bytes can come in, and the milliseconds that takes; None if nothing must.
    pub fn drain_ms(&self, more: u64) -> Option<Option<f64>> {
        let now = self.bytes();
        let above = if self.level() == Level::Overloaded { now.saturating_sub(self.max / 2) } else { 0 };
        let amount = above.max((now + more).saturating_sub(self.max));
        (amount > 0).then(|| self.rate.lock().drain_ms(amount))
    }

    /// A space holds nothing any more.
    pub fn leave(&self) {
        let before = self.holders.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "more spaces left than entered");
    }

    pub fn pressure(&self) -> f64 {
        self.bytes() as f64 / self.max.max(1) as f64
    }

    pub fn level(&self) -> Level {
        self.gauge.look(self.pressure())
    }

    /// Whether there is so much pressure that a holder of `have` bytes may not have `more` (P2).
    pub fn refuses(&self, have: u64, more: u64) -> bool {
        self.level() == Level::Overloaded && have + more > self.fair_share(have == 0)
    }

    /// How hard it presses a holder of `have` bytes who would take `more` of them: nobody below his fair share.
    pub fn level_for(&self, have: u64, more: u64) -> Level {
        let share = self.fair_share(have == 0);
        // However many they are, the first little is not too much.
        if have + more.min(share / 4) > share { self.level() } else { Level::Normal }
    }

    pub fn room(&self) -> u64 {
        self.max.saturating_sub(self.bytes())
    }

    /// What each holder may take if all take the same.
    pub fn room_each(&self) -> u64 {
        self.room() / self.holders.load(Ordering::Acquire).max(1)
    }

    /// The bytes each holder may have while there is pressure; `entering`: the one who asks holds none yet.
    fn fair_share(&self, entering: bool) -> u64 {
        self.max / (self.holders.load(Ordering::Acquire) + u64::from(entering)).max(1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// P2: each gets its share, and nothing is taken by a refusal.
    #[test]
    fn shares_are_equal() {
        let pool = Pool::new(100);
        pool.enter(0);
        assert!(pool.reserve(90) && !pool.reserve(11));
        assert_eq!((pool.bytes(), pool.fair_share(false), pool.fair_share(true)), (90, 100, 50));
        pool.enter(0);
        assert!(pool.reserve(10));
        assert!((pool.pressure() - 1.0).abs() < 1e-9 && pool.level() == Level::Overloaded);
        assert_eq!((pool.level_for(41, 10), pool.level_for(10, 40)), (Level::Overloaded, Level::Normal));
        assert_eq!((pool.level_for(0, 100), pool.room_each()), (Level::Normal, 0));
        assert!(pool.refuses(90, 1) && pool.refuses(10, 41) && !pool.refuses(10, 40) && pool.refuses(0, 34));
        pool.release(90);
        pool.leave();
        assert_eq!((pool.bytes(), pool.fair_share(false), pool.room_each()), (10, 100, 90));
        pool.add(1_000);
        assert_eq!(pool.bytes(), 1_010);
    }

    /// P4: who is refused for the sake of all is told when all will have drained.
    #[test]
    fn a_pool_knows_when_there_is_room() {
        let pool = Pool::new(1_000);
        pool.enter(0);
        pool.add(700);
        assert_eq!((pool.drain_ms(300), pool.drain_ms(400)), (None, Some(None)), "nothing was measured yet");
        pool.drained(10_000_000, 100);
        assert_eq!(pool.drain_ms(400), Some(Some(10.0)), "100 too many, 10 a millisecond");
        pool.add(300);
        assert_eq!(pool.drain_ms(0).flatten().map(f64::round), Some(50.0), "overloaded: down to half");
    }
}
