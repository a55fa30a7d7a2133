//! What callers use to read: recall, get, list, count, history, snapshots (G3–G6). Nothing here changes anything, and only `readers` waits:
//! for recalls that are `asked` for by callers that do not.

mod answer;
mod asked;
mod memories;
mod readers;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::core::Core;
use super::workers::Pulse;
use crate::error::Error;
use crate::index::{Cue, Index, Near, TopK, Width};
use crate::records::{Filter, Row, check_query};
use crate::store::{Scope, Snapshot, Space, View};
use crate::types::Generation;

pub use asked::{AskedRecall, Question};
pub(super) use readers::Readers;
pub use stream::RecallStream;

/// A moment of a space's history (G5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsOf {
    Generation(Generation),
    /// Microseconds since 1970.
    Time(i64),
}

/// What a read looks at.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    pub snapshot: Option<Snapshot>,
    pub as_of: Option<AsOf>,
    pub filter: Option<&'a Filter>,
    /// Score every row (G6).
    pub exact: bool,
    pub width: Width,
    /// Only what is absorbed; an error if something has waited longer, in milliseconds (G7).
    pub settled: Option<u64>,
    /// Threads that many cues may take.
    pub threads: usize,
    /// Asked now and then; an error ends the read.
    pub pulse: Pulse<'a>,
}

impl Default for Reading<'_> {
    fn default() -> Self {
        let width = Width::Default;
        Self {
            snapshot: None,
            as_of: None,
            filter: None,
            exact: false,
            width,
            settled: None,
            threads: 1,
            pulse: &|| Ok(()),
        }
    }
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
    pub key: Option<String>,
    /// When it was superseded or forgotten, if it was at the moment that is looked at.
    pub ended: Option<Generation>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub score: f32,
    /// The graph does not answer for it yet.
    pub provisional: bool,
    pub memory: Memory,
}

/// What a recall looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    pub generation: Generation,
    /// Up to where the index answered without looking through a tail, and how long, in microseconds, the oldest row behind had been there (G7).
    pub absorbed: Generation,
    pub lag_micros: i64,
    /// When it began.
    at: i64,
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
            key: row.key.map(str::to_owned),
            ended: None,
        }
    }
}

impl Core {
    /// An error if nothing of the space can be asked any more.
    pub fn readable(&self, space: &Space) -> Result<(), Error> {
        self.check_open()?;
        if space.is_fenced() {
            return Err(Error::NotFound { what: format!("space {:?} (dropped)", space.options.name) });
        }
        Ok(())
    }

    /// The view to read, and up to which generation (G3, G5).
    fn view_at(&self, space: &Space, reading: Reading<'_>) -> Result<(Arc<View>, Generation), Error> {
        self.readable(space)?;
        let pinned = reading.snapshot.map(|s| space.pins.touch(s, self.now(), &self.config)).transpose()?;
        let view = space.view();
        let upto = pinned.unwrap_or_else(|| view.watermark());
        let upto = match reading.as_of {
            None => upto,
            Some(AsOf::Generation(wanted)) if wanted > upto => {
                let message = format!("as_of is generation {wanted}; the space is at {upto}");
                return Err(Error::invalid("as_of", message));
            }
            Some(AsOf::Generation(wanted)) => {
                space.whole_batches(&view, wanted).inspect_err(|e| space.note_damage(e))?
            }
            Some(AsOf::Time(time)) if time >= self.env.clock.wall_micros() => upto,
            Some(AsOf::Time(time)) => view.generation_at(time).max(space.change_at(time)).unwrap_or_default().min(upto),
        };
        let upto = reading.settled.map_or(Ok(upto), |max| self.settled(space, reading, max).map(|s| s.min(upto)))?;
        let from = space.history_from();
        if reading.as_of.is_some() && upto < from {
            let reason = format!("as_of is generation {upto}; what died before {from} is not kept any more");
            return Err(Error::SnapshotExpired { reason });
        }
        Ok((view, upto))
    }

    /// The generation up to which all is absorbed, if nothing behind has waited for more than `max_ms` (G7).
    fn settled(&self, space: &Space, reading: Reading<'_>, max_ms: u64) -> Result<Generation, Error> {
        if reading.as_of.is_some() {
            let message = "consistency=\"settled\" and as_of both say what to look at: give one";
            return Err(Error::invalid("consistency", message.to_owned()));
        }
        if let Some(error) = space.index_error() {
            return Err(error.clone());
        }
        let (absorbed, lag) = space.lag(self.env.clock.wall_micros());
        if lag.cast_unsigned() / 1_000 > max_ms {
            let (ms, last) = (lag / 1_000, space.watermark());
            let what =
                format!("the index, which is at generation {absorbed} of {last}, {ms} ms behind; {max_ms} are allowed");
            return Err(Error::Timeout { what });
        }
        Ok(absorbed)
    }

    pub fn is_pinned(&self, space: &Space, snapshot: Snapshot) -> bool {
        self.readable(space).is_ok() && space.pins.holds(snapshot, self.now(), &self.config)
    }

    pub fn pin(&self, space: &Space) -> Result<Snapshot, Error> {
        self.readable(space)?;
        Ok(space.pins.pin(|| space.watermark(), self.now(), &self.config))
    }

    fn search(
        &self,
        space: &Space,
        queries: &[f32],
        k: usize,
        reading: Reading<'_>,
    ) -> Result<(Arc<View>, Looked, Vec<TopK>), Error> {
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
        let at = self.env.clock.wall_micros();
        let (absorbed, lag_micros) = space.lag(at);
        let (view, upto) = self.view_at(space, reading)?;
        let scope = Scope { upto, filter: reading.filter, pulse: reading.pulse };
        let index = if reading.exact || reading.as_of.is_some() { None } else { space.index_at(upto) };
        let found = match index.filter(|_| !scope.is_narrow() && !view.is_damaged_at(upto)) {
            Some(answers) => near(&view, &answers.index, &cues, k, reading, scope),
            None => {
                let mut tops: Vec<TopK> = cues.iter().map(|_| TopK::new(k)).collect();
                view.scan(&cues, &mut tops, scope).map(|()| tops)
            }
        };
        let tops = found.inspect_err(|e| space.note_damage(e))?;
        // Relaxed: a statistic.
        space.recalls.fetch_add(cues.len() as u64, Ordering::Relaxed);
        Ok((view, Looked { generation: upto, absorbed, lag_micros, at }, tops))
    }

    /// The k nearest memories that match, to one cue under one snapshot, nearest first (G3, G4, G6).
    pub fn recall(
        &self,
        space: &Space,
        query: &[f32],
        k: usize,
        reading: Reading<'_>,
    ) -> Result<(Looked, Vec<Found>), Error> {
        let (view, looked, near) = self.nearest(space, query, k, reading)?;
        let found = near.into_iter().filter_map(|near| self.found(&view, &looked, near).transpose());
        Ok((looked, found.collect::<Result<_, _>>()?))
    }

    fn nearest(
        &self,
        space: &Space,
        query: &[f32],
        k: usize,
        reading: Reading<'_>,
    ) -> Result<(Arc<View>, Looked, Vec<Near>), Error> {
        if query.len() != space.options.dim as usize {
            check_query(query, space.options.dim, space.options.metric)?;
        }
        let (view, looked, tops) = self.search(space, query, k, reading)?;
        Ok((view, looked, tops.into_iter().flat_map(TopK::into_sorted).collect()))
    }

    /// The memory of a hit, if it is still here.
    fn found(&self, view: &View, looked: &Looked, near: Near) -> Result<Option<Found>, Error> {
        let Some(row) = view.get(near.generation, looked.generation)? else { return Ok(None) };
        let (provisional, mut memory) = (near.generation > looked.absorbed, Memory::of(&row, false));
        if provisional {
            memory.confidence *= self.settling(looked.at - row.committed_at);
        }
        Ok(Some(Found { score: near.score, provisional, memory }))
    }

    /// What is left of the confidence of a hit that is not absorbed, so long after its commit: the newest is the least settled (G7).
    fn settling(&self, age_micros: i64) -> f32 {
        let age = age_micros.max(0) as f32 / (self.config.provisional_ms.max(1) as f32 * 1_000.0);
        1.0 - self.config.provisional_percent as f32 / 100.0 * (1.0 - age).clamp(0.0, 1.0)
    }

    /// Many cues under one snapshot; `queries` is row by row.
    pub fn recall_batch(
        &self,
        space: &Space,
        queries: &[f32],
        k: usize,
        reading: Reading<'_>,
    ) -> Result<Neighbours, Error> {
        let (_, looked, tops) = self.search(space, queries, k, reading)?;
        let (mut ids, mut scores) = (Vec::with_capacity(tops.len() * k), Vec::with_capacity(tops.len() * k));
        for top in tops {
            let near = top.into_sorted();
            ids.extend(near.iter().map(|n| n.generation.0).chain(std::iter::repeat(0)).take(k));
            scores.extend(near.iter().map(|n| n.score).chain(std::iter::repeat(f32::NEG_INFINITY)).take(k));
        }
        Ok(Neighbours { generation: looked.generation, ids, scores })
    }
}

/// The nearest of each cue by the index, on as many threads as were asked for; the caller's asks for signals.
fn near(
    view: &View,
    index: &Index,
    cues: &[Cue],
    k: usize,
    reading: Reading<'_>,
    scope: Scope<'_>,
) -> Result<Vec<TopK>, Error> {
    let some = |cues: &[Cue], scope: Scope<'_>| -> Result<Vec<TopK>, Error> {
        cues.iter().map(|cue| view.near(index, cue, k, reading.width, scope)).collect()
    };
    let share = cues.len().div_ceil(reading.threads.clamp(1, cues.len().max(1))).max(1);
    let (own, others) = cues.split_at(share.min(cues.len()));
    let (upto, filter, width, ended) = (scope.upto, scope.filter, reading.width, AtomicBool::new(false));
    std::thread::scope(|threads| {
        let ended = &ended;
        let more = others.chunks(share).map(|cues| {
            threads.spawn(move || -> Result<Vec<TopK>, Error> {
                // Relaxed: a hint to stop.
                let pulse = || if ended.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
                let scope = Scope { upto, filter, pulse: &pulse };
                cues.iter().map(|cue| pulse().and_then(|()| view.near(index, cue, k, width, scope))).collect()
            })
        });
        let more: Vec<_> = more.collect();
        let mut found = some(own, scope).inspect_err(|_| ended.store(true, Ordering::Relaxed));
        for thread in more {
            let theirs = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            found = found.and_then(|mut all| theirs.map(|theirs| all.extend(theirs)).map(|()| all));
        }
        found
    })
}
