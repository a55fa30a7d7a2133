//! One space: what it is, what waits for it, and the view readers use.
//!
//! `view` is read by any thread (ArcSwap); it is written under `growing`, by apply and by the maintenance machine when sealed rows
//! replace the tail's head. `numbered` belongs to the partition's writer. Counters are for limits and statistics: Relaxed, except the
//! unsealed bytes, which admission compares with a limit (AcqRel, like the depth).

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::apply::Delta;
use super::flow::Flow;
use super::indexing::Indexing;
use super::keys::Keys;
use super::orders::{Batch, Control};
use super::snapshot::Pins;
use super::view::{AppendList, SealedPart, View};
use super::watermark::{Ranges, Watermark};
use crate::error::Error;
use crate::index::scanned_bytes;
use crate::queue::{Committed, Depth, Gate, Lane, Pool, Reply};
use crate::records::RowSource;
use crate::session::Sessions;
use crate::types::{Config, Durability, Generation, LogPosition, SpaceOptions};
use crate::wal::Quarantined;

/// Where a space's history stands when it is put into the store.
#[derive(Clone, Debug, Default)]
pub struct SpaceState {
    pub last_generation: Generation,
    pub sealed_through: Generation,
    pub incarnation: u64,
    pub lost: Vec<(Generation, Generation)>,
    pub degraded: Option<String>,
    /// Deaths of rows that cannot be read: should the file come back, they are dead.
    pub unplaced: Vec<(Generation, Generation)>,
    /// What died at or before is not kept: `as_of` reaches back to here (G5).
    pub history_from: Generation,
    /// Rows whose bytes are to be removed, and when they died (K3).
    pub purging: BTreeMap<Generation, Generation>,
    /// Batches that could not be applied, in order (O7).
    pub quarantined: Arc<Vec<Quarantined>>,
    /// Generations inside a batch whose row is no more (G5).
    pub inside: Ranges,
    /// Generations that ended a batch and whose row is no more.
    pub ended: Ranges,
}

pub struct Space {
    pub options: SpaceOptions,
    pub durability: Durability,
    /// By priority of the session; without one it is the middle.
    pub lane: Lane<Batch, 3>,
    pub depth: Depth,
    pub controls: Lane<Control>,
    pub controls_depth: Depth,
    pub keys: Keys,
    pub sessions: Sessions<Reply<Committed>>,
    pub gate: Gate,
    pub pins: Pins,
    pub(super) flow: Flow,
    numbered: AtomicU64,
    view: ArcSwap<View>,
    pub(super) growing: Mutex<Watermark>,
    pub(super) indexing: Indexing,
    unsealed: AtomicU64,
    pub(super) process_unsealed: Arc<Pool>,
    fenced: AtomicBool,
    in_doubt: OnceLock<String>,
    pub(super) state: Mutex<SpaceState>,
    /// Generations of the horizon without a row, forgets and what was left out of files, and their times.
    pub(super) changes: Mutex<Vec<(Generation, i64)>>,
    /// Numbered forgets' ids that are not applied yet. Only the partition's writer looks.
    dying: Mutex<HashSet<Generation>>,
    pub recalls: AtomicU64,
    pub(super) thins: AtomicBool,
    keys_unknown: OnceLock<Error>,
    damage: Mutex<Option<String>>,
}

impl Space {
    pub fn new(
        options: SpaceOptions,
        durability: Durability,
        config: &Config,
        state: SpaceState,
        process_unsealed: Arc<Pool>,
    ) -> Self {
        Self {
            lane: Lane::default(),
            depth: Depth::new(config.queue_observations_max, config.queue_bytes_max),
            controls: Lane::default(),
            controls_depth: Depth::new(config.forgets_max, config.forgets_bytes_max),
            keys: Keys::default(),
            sessions: Sessions::default(),
            gate: Gate::default(),
            pins: Pins::default(),
            flow: Flow::new(config, options.quota, scanned_bytes(options.dim as usize)),
            numbered: AtomicU64::new(state.last_generation.0),
            view: ArcSwap::from_pointee(View::empty(state.last_generation)),
            growing: Mutex::new(Watermark::new(state.last_generation)),
            indexing: Indexing::new(config),
            unsealed: AtomicU64::new(0),
            process_unsealed,
            fenced: AtomicBool::new(false),
            in_doubt: OnceLock::new(),
            state: Mutex::new(state),
            changes: Mutex::default(),
            dying: Mutex::default(),
            recalls: AtomicU64::new(0),
            thins: AtomicBool::new(true),
            keys_unknown: OnceLock::new(),
            damage: Mutex::default(),
            options,
            durability,
        }
    }

    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub fn watermark(&self) -> Generation {
        self.view.load().watermark
    }

    /// Gives the next `n` generations. Only the partition's writer calls this.
    pub fn number(&self, n: u64) -> Generation {
        Generation(self.numbered.fetch_add(n, Ordering::Relaxed) + 1)
    }

    pub fn numbered(&self) -> Generation {
        Generation(self.numbered.load(Ordering::Relaxed))
    }

    /// Publishes what a group did to this space, by one swap.
    pub fn publish(&self, delta: Delta, now: u64) {
        let mut watermark = self.growing.lock();
        let mut view = View::clone(&self.view.load());
        if self.tail_rows() == 0 {
            self.flow.tail_begins(now);
        }
        for part in delta.parts {
            let last = view.tail_to.checked_sub(1).and_then(|i| view.tail.get(i)).map(|p| p.rows.last());
            debug_assert!(!part.sound || last.is_none_or(|l| l < part.rows.first()), "parts come in order");
            self.grow(part.bytes, now);
            self.indexing.append(&part);
            view.damaged |= !part.sound;
            view.memories += if part.sound { part.rows.rows() as u64 } else { 0 };
            view.tail.set(view.tail_to, part);
            view.tail_to += 1;
        }
        let mut dying = self.dying.lock();
        for (row, death) in delta.deaths {
            dying.remove(&row);
            match view.kill(row, death) {
                Some(died) => {
                    self.indexing.kill(row, death);
                    view.memories -= u64::from(died.new);
                    // Relaxed: a hint; who rewrites looks again.
                    self.thins.fetch_or(died.due, Ordering::Relaxed);
                }
                None if view.unsound_at(row) => self.state.lock().unplaced.push((row, death)),
                // Compacted away.
                None => {}
            }
        }
        drop(dying);
        self.changes.lock().extend(delta.changes);
        if !delta.purging.is_empty() || delta.history_from.0 > 0 {
            self.let_go(delta.history_from, delta.purging);
        }
        for (first, last) in delta.ranges {
            watermark.finish(first, last);
        }
        view.watermark = watermark.get();
        self.numbered.fetch_max(view.watermark.0, Ordering::Relaxed);
        if let Some(incarnation) = delta.incarnation {
            self.state.lock().incarnation = incarnation;
        }
        self.view.store(Arc::new(view));
    }

    // Both under `growing`.
    fn grow(&self, bytes: u64, now: u64) {
        if self.unsealed.fetch_add(bytes, Ordering::AcqRel) == 0 && bytes > 0 {
            self.process_unsealed.enter(now);
        }
        self.process_unsealed.add(bytes);
    }

    fn shrink(&self, bytes: u64, now: u64) {
        // Nothing is left to give back if the space was detached.
        let bytes = bytes.min(self.unsealed_bytes());
        if bytes > 0 {
            self.process_unsealed.drained(now, bytes);
            self.flow.sealed(now, bytes);
            self.give_back(bytes);
        }
        self.gate.wake();
    }

    fn give_back(&self, bytes: u64) {
        self.process_unsealed.release(bytes);
        if self.unsealed.fetch_sub(bytes, Ordering::AcqRel) == bytes && bytes > 0 {
            self.process_unsealed.leave();
        }
    }

    /// The space was dropped: what it holds goes with its last reader, and counts for nobody from now on.
    pub fn detach(&self) {
        let _growing = self.growing.lock();
        self.give_back(self.unsealed_bytes());
    }

    /// Replaces what lies in files, sealed parts and history, and drops the first `sealed_parts` parts of the tail, which they hold now.
    pub fn install(&self, (sealed, history): (Vec<SealedPart>, Vec<SealedPart>), sealed_parts: usize, now: u64) {
        debug_assert!(sealed.is_sorted_by(|a, b| a.rows.last() <= b.rows.first()), "parts do not overlap");
        let growing = self.growing.lock();
        let old = self.view.load_full();
        let tail = AppendList::default();
        let mut freed = 0;
        for (i, part) in old.tail().enumerate() {
            if i < sealed_parts {
                freed += part.bytes;
            } else {
                tail.set(i - sealed_parts, part.clone());
            }
        }
        let mut state = self.state.lock();
        let through = sealed.iter().chain(&history).filter(|s| s.sound).map(|s| s.place.last).max();
        state.sealed_through = state.sealed_through.max(through.unwrap_or_default());
        drop(state);
        let (tail_to, watermark) = (old.tail_to - sealed_parts, old.watermark);
        let (sealed, history, tail) = (Arc::new(sealed), Arc::new(history), Arc::new(tail));
        let mut view = View { sealed, history, tail, tail_to, watermark, memories: 0, damaged: false };
        // New files begin without deaths: what died before or while they were written is carried over here, under the lock.
        let gone = old.filed().filter(|p| !view.has_file(p.place.file)).map(|p| (&p.rows, &p.deaths));
        let gone: Vec<_> = gone.chain(old.tail().take(sealed_parts).map(|p| (&p.rows, &p.deaths))).collect();
        for (rows, deaths) in &gone {
            deaths.each(Generation(u64::MAX)).for_each(|(row, death)| {
                view.kill(rows.generation_at(row), death);
            });
        }
        view.memories = view.count_living();
        view.damaged = view.first_damage().is_some();
        let view = Arc::new(view);
        self.view.store(Arc::clone(&view));
        self.shrink(freed, now);
        drop(growing);
        // What was not in a checkpoint before, or was seen by a pin, may be left out now. Relaxed: a hint.
        self.thins.store(true, Ordering::Relaxed);
        // Only what has died is ever left out.
        for (rows, _) in gone.iter().filter(|(_, deaths)| deaths.any()) {
            self.forget_keys(&***rows, &view);
        }
    }

    /// Versions of keys whose rows were left out of the new files are no more (K1).
    fn forget_keys(&self, rows: &dyn RowSource, view: &View) {
        if !rows.has_keys() {
            return;
        }
        for row in 0..rows.rows() {
            let generation = rows.generation_at(row);
            if !view.holds(generation)
                && let Ok(Some(key)) = rows.key(row)
            {
                self.keys.remove(key, generation);
            }
        }
    }

    pub fn unsealed_bytes(&self) -> u64 {
        self.unsealed.load(Ordering::Acquire)
    }

    /// The log before the oldest row that is not sealed.
    pub fn first_unsealed(&self) -> Option<LogPosition> {
        self.view.load().tail().next().map(|p| p.position)
    }

    /// Whether nothing of this space is on its way; whoever takes a permit after this sees what was written before it.
    pub fn is_drained(&self) -> bool {
        self.depth.is_drained() && self.controls_depth.is_drained()
    }

    /// From now on nothing new is admitted (K4).
    pub fn fence(&self) {
        self.fenced.store(true, Ordering::SeqCst);
        self.gate.wake();
    }

    /// The drop did not happen: the space goes on.
    pub fn unfence(&self) {
        self.fenced.store(false, Ordering::SeqCst);
    }

    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::SeqCst)
    }

    /// The drop's record may be on the disk or not: only the next start knows, until then nothing more is admitted (D4).
    pub fn doubt(&self, cause: &str) {
        self.in_doubt
            .get_or_init(|| format!("whether the space was dropped is not known before the next start: {cause}"));
    }

    /// Whether something may be admitted. Asked after the permit was taken: who drops fences first, then waits for the depth to
    /// be zero, and unfences only after a doubt was noted.
    pub fn admits(&self) -> Result<(), Error> {
        if self.is_fenced() {
            return Err(Error::NotFound { what: format!("space {:?} (dropped)", self.options.name) });
        }
        match self.in_doubt.get() {
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// These are numbered to die. Only the partition's writer calls this, and the next.
    pub fn condemn(&self, ids: &[Generation]) {
        self.dying.lock().extend(ids);
    }

    /// These are not to die after all.
    pub fn reprieve(&self, ids: impl IntoIterator<Item = Generation>) {
        let mut dying = self.dying.lock();
        for id in ids {
            dying.remove(&id);
        }
    }

    pub fn quarantined(&self) -> Arc<Vec<Quarantined>> {
        Arc::clone(&self.state.lock().quarantined)
    }

    /// It is in the log that the batch could not be applied. They come in order: what is behind it waits for this.
    pub fn quarantine(&self, batch: Quarantined) {
        Arc::make_mut(&mut self.state.lock().quarantined).push(batch);
    }

    /// Those of them that are numbered to die, under one lock.
    pub fn condemned(&self, ids: &[Generation]) -> HashSet<Generation> {
        let dying = self.dying.lock();
        ids.iter().filter(|id| dying.contains(id)).copied().collect()
    }

    pub fn is_condemned(&self, id: Generation) -> bool {
        self.dying.lock().contains(&id)
    }

    /// An error if rows cannot be read: their keys are not known, and nobody can say what a key names (D5).
    pub fn knows_keys(&self) -> Result<(), Error> {
        self.keys_unknown.get().cloned().map_or(Ok(()), Err)
    }

    /// Learns the keys of all rows; at a start, before anyone uses the space.
    pub fn learn_keys(&self) {
        if let Some(error) = self.view().first_damage() {
            let _ = self.keys_unknown.set(error);
        }
        let learnt = self.view().keys(|key, generation| {
            self.keys.learn(key, generation);
        });
        if let Err(error) = learnt {
            // A key whose owner is not known could not be superseded.
            self.degrade(error.to_string(), None);
        }
    }

    pub fn state(&self) -> SpaceState {
        let mut state = self.state.lock().clone();
        state.last_generation = self.watermark();
        state
    }

    /// Why nothing may be written: what the log lost could be reused otherwise.
    pub fn refuses_writes(&self) -> Option<Error> {
        let state = self.state.lock();
        state
            .degraded
            .as_ref()
            .map(|reason| Error::corrupted(format!("space {}", self.options.name), 0, reason.clone()))
    }

    /// Remembers damage that a read or the scrub met: the space is degraded from then on (D5).
    pub fn note_damage(&self, error: &Error) {
        if matches!(error, Error::Corrupted { .. }) {
            self.damage.lock().get_or_insert_with(|| error.to_string());
        }
    }

    pub fn damage(&self) -> Option<String> {
        self.damage.lock().clone()
    }

    /// Marks the space as having lost rows of its log.
    pub fn degrade(&self, reason: String, lost: Option<(Generation, Generation)>) {
        let mut state = self.state.lock();
        state.degraded.get_or_insert(reason);
        state.lost.extend(lost);
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.give_back(self.unsealed_bytes());
    }
}
