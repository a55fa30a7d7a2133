//! What presses a space, and how fast it drains (P1, P2, P4).
//!
//! Any thread may ask; nothing here needs a monitor. Who takes or gives back permits moves the level, and so does who asks, since age
//! grows by itself. `oldest` is the time of admission that nothing waiting is older than: a batch that is committed hands it on, those behind
//! it in the lane came later. It is a hint (Relaxed): one that is late makes an age too great until the next commit, never a depth wrong.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::space::Space;
use crate::error::Error;
use crate::queue::{Gauge, Level, Pool, Rate};
use crate::types::{Config, Quota};

#[derive(Default)]
struct Rates {
    observations: Rate,
    bytes: Rate,
    sealed: Rate,
    linked: Rate,
}

/// What a recall may spend on the tail (P2), and the share of all cores that recalls together may.
const TAIL_NANOS: f64 = 5e6;
const TAIL_CORES: f64 = 0.25;
/// Recalls are counted over so long.
const RECALLS_NANOS: u64 = 200_000_000;

/// How many recalls a second there are, as last counted.
#[derive(Default)]
struct Recalls {
    at: u64,
    count: u64,
}

pub(super) struct Flow {
    gauge: Gauge,
    /// Somebody found no room: rows that are not sealed must be, whatever the policy says.
    wants_room: AtomicBool,
    oldest: AtomicU64,
    age_nanos_max: u64,
    unsealed_max: u64,
    rates: Mutex<Rates>,
    tail_rows_max: u64,
    /// What a recall takes for a row of the tail, in nanoseconds, and what recalls may take each second, all together.
    row_nanos: f64,
    recalls_nanos: f64,
    recalls: Mutex<Recalls>,
    recalls_per_second: AtomicU64,
    /// What the space may hold; 0: anything. Relaxed: an admission that races with a change of it is before or after.
    memories_max: AtomicU64,
    bytes_max: AtomicU64,
}

impl Flow {
    /// `scanned`: bytes of a row's code that a recall reads in the tail.
    pub(super) fn new(config: &Config, quota: Quota, scanned: usize) -> Self {
        let row_nanos = (scanned as u64 * config.scan_picos).max(1) as f64 / 1e3;
        Self {
            tail_rows_max: ((TAIL_NANOS / row_nanos) as u64).clamp(1, config.index_tail_rows_max.max(1)),
            row_nanos,
            recalls_nanos: TAIL_CORES * config.cores.max(1) as f64 * 1e9,
            recalls: Mutex::default(),
            recalls_per_second: AtomicU64::new(0),
            gauge: Gauge::default(),
            wants_room: AtomicBool::new(false),
            oldest: AtomicU64::new(0),
            age_nanos_max: config.queue_age_ms_max.saturating_mul(1_000_000),
            unsealed_max: config.unsealed_space_bytes_max,
            rates: Mutex::default(),
            memories_max: AtomicU64::new(quota.memories),
            bytes_max: AtomicU64::new(quota.bytes),
        }
    }

    /// Rows come that wait for the graph; none did before.
    pub(super) fn tail_begins(&self, now: u64) {
        self.rates.lock().linked.resume(now);
    }

    /// More rows are linked.
    pub(super) fn linked(&self, now: u64, rows: u64) {
        self.rates.lock().linked.note(now, rows);
    }

    pub(super) fn is_pressed(&self) -> bool {
        self.gauge.level() > Level::Normal
    }

    pub(super) fn sealed(&self, now: u64, bytes: u64) {
        self.rates.lock().sealed.note(now, bytes);
    }
}

impl Space {
    /// Takes permits of the space, or nothing. `pool` is told if the space held none.
    #[must_use]
    pub fn reserve(&self, observations: u64, bytes: u64, now: u64, pool: &Pool) -> bool {
        if self.depth.observations() == 0 {
            // Before the permit: whoever sees that something waits must not take the last commit for its age.
            self.flow.oldest.fetch_max(now, Ordering::Relaxed);
        }
        let Some(before) = self.depth.reserve(observations, bytes) else {
            self.level(now);
            return false;
        };
        if before == 0 {
            pool.enter(now);
            self.flow.oldest.fetch_max(now, Ordering::Relaxed);
            let mut rates = self.flow.rates.lock();
            rates.observations.resume(now);
            rates.bytes.resume(now);
        }
        self.level(now);
        true
    }

    /// Gives permits back. `admitted_at`: when what was committed was admitted; None: it was refused.
    pub fn release(&self, observations: u64, bytes: u64, now: u64, admitted_at: Option<u64>, pool: &Pool) {
        if let Some(admitted_at) = admitted_at {
            let mut rates = self.flow.rates.lock();
            rates.observations.note(now, observations);
            rates.bytes.note(now, bytes);
            drop(rates);
            pool.drained(now, bytes);
            self.flow.oldest.fetch_max(admitted_at, Ordering::Relaxed);
        }
        if self.depth.release(observations, bytes) == 0 {
            pool.leave();
        }
        self.level(now);
        self.gate.wake();
    }

    /// The pressure now, 1 at a limit, and what it comes from.
    pub fn pressure(&self, now: u64) -> (f64, &'static str) {
        let queue = self.depth.pressure();
        let age = if self.depth.observations() == 0 {
            0
        } else {
            now.saturating_sub(self.flow.oldest.load(Ordering::Relaxed))
        };
        let terms = [
            (queue, "the space's queue is full"),
            (age as f64 / self.flow.age_nanos_max as f64, "what waits in the space's queue is not getting through"),
            (
                self.unsealed_bytes() as f64 / self.flow.unsealed_max.max(1) as f64,
                "the space holds too much that is not sealed yet",
            ),
            (self.tail_pressure(), "the space's index is too far behind"),
        ];
        terms.into_iter().fold((0.0, terms[0].1), |most, term| if term.0 > most.0 { term } else { most })
    }

    /// P2: rows that recalls must look through, as a share of what they may; and the time that all recalls take for it, of what they may.
    fn tail_pressure(&self) -> f64 {
        let (tail, flow) = (self.tail_rows() as f64, &self.flow);
        // Relaxed: a statistic.
        let recalls = flow.recalls_per_second.load(Ordering::Relaxed) as f64;
        (tail / flow.tail_rows_max as f64).max(tail * flow.row_nanos * recalls / flow.recalls_nanos)
    }

    /// Counts the recalls of the last while; called now and then.
    pub fn count_recalls(&self, now: u64) {
        let mut last = self.flow.recalls.lock();
        let nanos = now.saturating_sub(last.at);
        if nanos < RECALLS_NANOS {
            return;
        }
        let count = self.recalls.load(Ordering::Relaxed);
        let rate = (count - last.count) as f64 * 1e9 / nanos as f64;
        let rate = if last.at == 0 { 0.0 } else { rate };
        *last = Recalls { at: now, count };
        drop(last);
        self.flow.recalls_per_second.store(rate as u64, Ordering::Relaxed);
    }

    pub fn level(&self, now: u64) -> Level {
        self.flow.gauge.look(self.pressure(now).0)
    }

    /// Sealing of this space's rows begins: the time before does not count as sealing.
    pub fn sealing_begins(&self, now: u64) {
        self.flow.wants_room.store(false, Ordering::Relaxed);
        self.flow.rates.lock().sealed.resume(now);
        self.process_unsealed.drains(now);
    }

    /// Milliseconds until all is below half of its limit, and there is room for so much more, at the measured rates; None if there is
    /// none yet.
    pub fn drain_ms(&self, observations: u64, bytes: u64, process_queue: &Pool) -> Option<f64> {
        let rates = self.flow.rates.lock();
        let surplus = self.depth.surplus(observations, bytes);
        let (unsealed, coming) = (self.unsealed_bytes(), self.depth.bytes() + bytes);
        let max = self.flow.unsealed_max;
        let unsealed = unsealed.saturating_sub(max / 2).max((unsealed + coming).saturating_sub(max).min(unsealed));
        let tail = self.tail_rows().saturating_sub(self.flow.tail_rows_max / 2);
        let own =
            [(surplus.0, rates.observations), (surplus.1, rates.bytes), (unsealed, rates.sealed), (tail, rates.linked)];
        let mut times: Vec<Option<f64>> =
            own.into_iter().filter(|(amount, _)| *amount > 0).map(|(amount, rate)| rate.drain_ms(amount)).collect();
        times.extend(process_queue.drain_ms(bytes));
        times.extend(self.process_unsealed.drain_ms(bytes));
        if times.is_empty() {
            // Pressed by age: what waits must go first.
            times.push(rates.bytes.drain_ms(self.depth.bytes()));
        }
        times.into_iter().try_fold(0.0, |most, time| time.map(|t| f64::max(most, t)))
    }

    /// Asks for sealing: an admission was refused for what is not sealed. Relaxed: the refused come again, and ask again.
    pub fn want_room(&self) {
        self.flow.wants_room.store(true, Ordering::Relaxed);
    }

    pub fn wants_room(&self) -> bool {
        self.flow.wants_room.load(Ordering::Relaxed)
    }

    /// Observations committed a second, while there were any to commit.
    pub fn drain_rate(&self) -> f64 {
        self.flow.rates.lock().observations.per_second()
    }

    pub fn quota(&self) -> Quota {
        let value = |of: &AtomicU64| of.load(Ordering::Relaxed);
        Quota { memories: value(&self.flow.memories_max), bytes: value(&self.flow.bytes_max) }
    }

    /// From now on the space may hold so much. What it holds already stays.
    pub fn limit(&self, quota: Quota) {
        self.flow.memories_max.store(quota.memories, Ordering::Relaxed);
        self.flow.bytes_max.store(quota.bytes, Ordering::Relaxed);
        self.gate.wake();
    }

    /// Whether `growth` memories more fit into the quota, beside all else that holds permits; `permits`: the own ones. False: perhaps when the
    /// rest has come to something. An error: not before something is forgotten.
    pub fn within_quota(&self, growth: u64, permits: (u64, u64)) -> Result<bool, Error> {
        let quota = self.quota();
        if quota == Quota::default() {
            return Ok(true);
        }
        let mut fits = true;
        // The depth first: what is published in between is counted twice, never not at all.
        let others = (self.depth.observations() - permits.0, self.depth.bytes() - permits.1);
        let view = self.view();
        for (what, most, used, new, others) in [
            ("memories", quota.memories, view.memories(), growth, others.0),
            ("bytes", quota.bytes, view.sealed_bytes() + self.unsealed_bytes(), permits.1, others.1),
        ] {
            if most > 0 && new > 0 && used + new > most {
                return Err(Error::QuotaExceeded { what, quota: most, used });
            }
            fits &= most == 0 || new == 0 || used + new + others <= most;
        }
        Ok(fits)
    }
}
