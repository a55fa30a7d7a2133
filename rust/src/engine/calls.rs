//! What callers use: observe, recall, get, list, snapshots, spaces. No call here waits; waiting is in `workers`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::Core;
use crate::error::Error;
use crate::index::{Cue, TopK};
use crate::queue::{Committed, Level, Reply, Ticket, retry_after_ms};
use crate::records::{Checked, Filter, Row, check_frame, check_query};
use crate::store::{Batch, Snapshot, Space, View};
use crate::types::{DIM_MAX, Generation, check_space_name};

const PROCESS_QUEUE: &str = "the process's queues are full";

/// A checked frame that may be admitted.
pub struct Prepared {
    frame: Vec<u8>,
    checked: Checked,
}

/// What came of an attempt to admit.
pub enum Admission {
    Admitted(Arc<Ticket<Committed>>),
    /// No permit now; try again when there is room.
    Full(Box<Prepared>, &'static str),
}

/// A memory, copied out.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    pub generation: Generation,
    pub committed_at: i64,
    pub observed_at: Option<i64>,
    pub confidence: f32,
    pub text: Option<String>,
    /// Canonical binary; empty if there is none.
    pub metadata: Vec<u8>,
    pub vector: Option<Vec<f32>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub score: f32,
    pub memory: Memory,
}

/// Names and scores only, row by row, `k` each; missing: 0 and -inf.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbours {
    pub generation: Generation,
    pub ids: Vec<u64>,
    pub scores: Vec<f32>,
}

impl Memory {
    fn of(row: &Row<'_>, with_vector: bool) -> Self {
        let floats = |b: &[u8]| b.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Self {
            generation: row.generation,
            committed_at: row.committed_at,
            observed_at: row.observed_at,
            confidence: row.confidence,
            text: row.text.map(str::to_owned),
            metadata: row.metadata.to_vec(),
            vector: row.vector.filter(|_| with_vector).map(floats),
        }
    }
}

impl Core {
    pub fn space(&self, name: &str) -> Result<Arc<Space>, Error> {
        self.check_open()?;
        check_space_name(name)?;
        let space = self.spaces.named(name).filter(|s| !s.is_fenced());
        space.ok_or_else(|| Error::NotFound { what: format!("space {name:?}") })
    }

    pub fn check_dim(dim: u32) -> Result<(), Error> {
        if (1..=DIM_MAX).contains(&dim) {
            return Ok(());
        }
        Err(Error::invalid("dim", format!("dim is {dim}; it must lie between 1 and {DIM_MAX}")))
    }

    /// Validates a frame (O1). Nothing is taken yet.
    pub fn prepare(&self, space: &Space, frame: Vec<u8>) -> Result<Box<Prepared>, Error> {
        self.check_open()?;
        let checked = check_frame(&frame, space.options.dim, space.options.metric, &self.config)?;
        let (count, bytes) = (checked.hashes.len() as u64, frame.len() as u64);
        if !space.depth.could_hold(count, bytes) || !self.process_queue.could_hold(bytes) {
            let message = format!("{count} observations of {bytes} bytes are over the limits of the queues");
            return Err(Error::TooLarge { field: "batch", index: None, message });
        }
        Ok(Box::new(Prepared { frame, checked }))
    }

    /// Takes a permit and pushes, or does neither (O2, P1).
    pub fn admit(&self, space: &Arc<Space>, prepared: Box<Prepared>) -> Result<Admission, Error> {
        self.check_open()?;
        let partition = &self.partitions[space.options.partition.0 as usize];
        if let Some(cause) = partition.poisoned.get() {
            return Err(Error::Poisoned { cause: cause.clone() });
        }
        if let Some(error) = space.refuses_writes() {
            return Err(error);
        }
        let (count, bytes) = (prepared.checked.hashes.len() as u64, prepared.frame.len() as u64);
        let now = self.now();
        if let Some(reason) = self.pressed(space, bytes, now) {
            return Ok(Admission::Full(prepared, reason));
        }
        if !self.process_queue.reserve(bytes) {
            return Ok(Admission::Full(prepared, PROCESS_QUEUE));
        }
        if !space.reserve(count, bytes, now, &self.process_queue) {
            self.process_queue.release(bytes);
            return Ok(Admission::Full(prepared, "the space's queue is full"));
        }
        if let Err(error) = space.admits() {
            self.process_queue.release(bytes);
            space.release(count, bytes, now, None, &self.process_queue);
            return Err(error);
        }
        let ticket = Arc::new(Ticket::default());
        let reply = Reply::new(Arc::clone(&ticket));
        let batch = Batch { admitted_at: now, frame: Arc::new(prepared.frame), checked: prepared.checked, reply };
        if space.lane.push(batch) {
            partition.ready.push(space.options.id);
        }
        Ok(Admission::Admitted(ticket))
    }

    /// Why nothing more may come in now (P2, P3).
    fn pressed(&self, space: &Space, bytes: u64, now: u64) -> Option<&'static str> {
        if space.level(now) == Level::Overloaded {
            return Some(space.pressure(now).1);
        }
        let (waiting, unsealed) = (space.depth.bytes(), space.unsealed_bytes());
        if unsealed > 0 && unsealed + waiting + bytes > self.config.unsealed_space_bytes_max {
            space.want_room();
            return Some("the space holds too much that is not sealed yet");
        }
        let all = self.process_unsealed.bytes();
        if self.process_unsealed.refuses(unsealed, bytes)
            || (all > 0 && all + bytes > self.config.unsealed_process_bytes_max)
        {
            self.wants_room.store(true, Ordering::Relaxed);
            return Some("the process holds too much that is not sealed yet");
        }
        self.process_queue.refuses(waiting, bytes).then_some(PROCESS_QUEUE)
    }

    /// What a caller is told that found no room in time.
    pub(super) fn overloaded(&self, space: &Space, refused: &Prepared, reason: &str) -> Error {
        let (count, bytes) = (refused.checked.hashes.len() as u64, refused.frame.len() as u64);
        let level = space.level(self.now()).max(self.process_queue.level()).max(self.process_unsealed.level());
        let retry_after_ms =
            retry_after_ms(space.drain_ms(count, bytes, &self.process_queue), self.env.random.next_u64());
        Error::Overloaded { retry_after_ms, level: level.name(), reason: reason.to_owned() }
    }

    fn readable(&self, space: &Space) -> Result<(), Error> {
        self.check_open()?;
        if space.is_fenced() {
            return Err(Error::NotFound { what: format!("space {:?} (dropped)", space.options.name) });
        }
        Ok(())
    }

    /// The view to read, and up to which generation (G3).
    fn view_at(&self, space: &Space, at: Option<Snapshot>) -> Result<(Arc<View>, Generation), Error> {
        self.readable(space)?;
        let upto = at.map(|s| space.pins.touch(s, self.now(), &self.config)).transpose()?;
        let view = space.view();
        let upto = upto.unwrap_or_else(|| view.watermark());
        Ok((view, upto))
    }

    pub fn pin(&self, space: &Space) -> Result<Snapshot, Error> {
        self.readable(space)?;
        Ok(space.pins.pin(space.watermark(), self.now(), &self.config))
    }

    pub fn get(&self, space: &Space, id: u64, at: Option<Snapshot>) -> Result<Option<Memory>, Error> {
        let (view, upto) = self.view_at(space, at)?;
        let row = view.get(Generation(id), upto).inspect_err(|e| space.note_damage(e))?;
        Ok(row.map(|row| Memory::of(&row, true)))
    }

    /// Up to `limit` memories with ids greater than `after`, by id.
    pub fn list(
        &self,
        space: &Space,
        after: u64,
        limit: usize,
        at: Option<Snapshot>,
        filter: Option<&Filter>,
    ) -> Result<Vec<Memory>, Error> {
        let (view, upto) = self.view_at(space, at)?;
        let mut found = Vec::new();
        let listed = view.list(Generation(after), upto, filter, |row| {
            if found.len() < limit {
                found.push(Memory::of(&row, true));
            }
            found.len() < limit
        });
        // What is sound is read; the error comes with the first read that begins at the damage (D5).
        match listed {
            Err(error) if found.is_empty() => {
                space.note_damage(&error);
                Err(error)
            }
            _ => Ok(found),
        }
    }

    pub fn count(&self, space: &Space, at: Option<Snapshot>) -> Result<u64, Error> {
        let (view, upto) = self.view_at(space, at)?;
        view.len_at(upto).inspect_err(|e| space.note_damage(e))
    }

    fn search(
        &self,
        space: &Space,
        queries: &[f32],
        k: usize,
        at: Option<Snapshot>,
        filter: Option<&Filter>,
    ) -> Result<(Arc<View>, Generation, Vec<TopK>), Error> {
        if k == 0 || k > self.config.recall_k_max {
            let max = self.config.recall_k_max;
            return Err(Error::invalid("k", format!("k is {k}; it must lie between 1 and {max}")));
        }
        let (dim, metric) = (space.options.dim, space.options.metric);
        let cues = queries
            .chunks(dim as usize)
            .enumerate()
            .map(|(i, q)| {
                check_query(q, dim, metric).map(|norm| Cue::new(q.to_vec(), norm, metric)).map_err(|e| e.at(i))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (view, upto) = self.view_at(space, at)?;
        let mut tops: Vec<TopK> = cues.iter().map(|_| TopK::new(k)).collect();
        view.scan(&cues, &mut tops, upto, filter).inspect_err(|e| space.note_damage(e))?;
        // Relaxed: a statistic.
        space.recalls.fetch_add(cues.len() as u64, Ordering::Relaxed);
        Ok((view, upto, tops))
    }

    /// The k nearest memories that match, to one cue under one snapshot, nearest first (G3, G4, G6).
    pub fn recall(
        &self,
        space: &Space,
        query: &[f32],
        k: usize,
        at: Option<Snapshot>,
        filter: Option<&Filter>,
    ) -> Result<(Generation, Vec<Found>), Error> {
        if query.len() != space.options.dim as usize {
            check_query(query, space.options.dim, space.options.metric)?;
        }
        let (view, upto, tops) = self.search(space, query, k, at, filter)?;
        let mut hits = Vec::new();
        for near in tops.into_iter().flat_map(TopK::into_sorted) {
            if let Some(row) = view.get(near.generation, upto)? {
                hits.push(Found { score: near.score, memory: Memory::of(&row, false) });
            }
        }
        Ok((upto, hits))
    }

    /// Many cues under one snapshot; `queries` is row by row.
    pub fn recall_batch(
        &self,
        space: &Space,
        queries: &[f32],
        k: usize,
        at: Option<Snapshot>,
        filter: Option<&Filter>,
    ) -> Result<Neighbours, Error> {
        let (_, upto, tops) = self.search(space, queries, k, at, filter)?;
        let (mut ids, mut scores) = (Vec::with_capacity(tops.len() * k), Vec::with_capacity(tops.len() * k));
        for top in tops {
            let near = top.into_sorted();
            ids.extend(near.iter().map(|n| n.generation.0).chain(std::iter::repeat(0)).take(k));
            scores.extend(near.iter().map(|n| n.score).chain(std::iter::repeat(f32::NEG_INFINITY)).take(k));
        }
        Ok(Neighbours { generation: upto, ids, scores })
    }
}
