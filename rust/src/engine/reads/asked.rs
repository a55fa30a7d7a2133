//! Recalls for callers that do not wait: `Readers` make their batches, and the completions tell that one is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::answer::Batch;
use super::{AsOf, Core, Reading, RecallStream};
use crate::engine::Engine;
use crate::error::Error;
use crate::index::Width;
use crate::records::{Filter, check_query};
use crate::store::{Snapshot, Space};

/// What is asked for, as `Reading` says it, and how many hits, and bytes unless one has more, a batch has.
pub struct Question {
    pub cue: Vec<f32>,
    pub k: usize,
    pub snapshot: Option<Snapshot>,
    pub as_of: Option<AsOf>,
    pub filter: Option<Filter>,
    pub exact: bool,
    pub width: Width,
    pub settled: Option<u64>,
    pub batch: usize,
    pub batch_bytes: usize,
}

/// A recall whose batches are made one by one, when they are asked for.
pub struct AskedRecall {
    /// By which completions tell of it.
    pub id: u64,
    space: Arc<Space>,
    question: Question,
    cancelled: AtomicBool,
    making: Mutex<Making>,
}

#[derive(Default)]
struct Making {
    stream: Option<RecallStream>,
    index: u64,
    made: Option<Result<(Vec<u8>, bool), Error>>,
}

/// Tells when it goes out of scope, whatever happened.
struct Telling<'a>(&'a Core, u64);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.0.answered.push(self.1);
    }
}

impl AskedRecall {
    /// The batch that was asked for, as a `RecallResponse`, and whether it is the last; None: there is none.
    pub fn take(&self) -> Option<Result<(Vec<u8>, bool), Error>> {
        self.making.lock().made.take()
    }

    /// Nobody waits for it any more: it is given up, and what it pins released.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        // Else it is being made: whoever does looks when it has let go.
        if let Some(mut making) = self.making.try_lock() {
            making.stream = None;
        }
    }
}

impl Core {
    /// A recall of which nothing is made yet. A cue of another dimension does not wait for a reader.
    pub fn ask_recall(&self, space: &Arc<Space>, question: Question) -> Result<AskedRecall, Error> {
        if question.cue.len() != space.options.dim as usize {
            check_query(&question.cue, space.options.dim, space.options.metric)?;
        }
        Ok(AskedRecall {
            id: self.env.random.next_u64(),
            space: Arc::clone(space),
            question,
            cancelled: AtomicBool::new(false),
            making: Mutex::default(),
        })
    }

    fn next_batch(&self, recall: &AskedRecall, making: &mut Making) -> Result<(Vec<u8>, bool), Error> {
        let q = &recall.question;
        let pulse = || {
            // SeqCst as in `cancel`; a scan asks now and then.
            if recall.cancelled.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            self.check_open()
        };
        pulse()?;
        let stream = match &mut making.stream {
            Some(stream) => stream,
            none => {
                let reading = Reading {
                    snapshot: q.snapshot,
                    as_of: q.as_of,
                    filter: q.filter.as_ref(),
                    exact: q.exact,
                    width: q.width,
                    settled: q.settled,
                    threads: 1,
                    pulse: &pulse,
                };
                none.insert(self.recall_stream(&recall.space, &q.cue, q.k, reading)?)
            }
        };
        let mut batch = Batch::default();
        self.each_hit(stream, q.batch, |found| batch.takes(&found, q.batch_bytes))?;
        let last = stream.is_over();
        let message = batch.finish(&stream.looked, making.index, last);
        making.index += 1;
        Ok((message, last))
    }

    fn make_batch(&self, recall: &AskedRecall) {
        let _telling = Telling(self, recall.id);
        let mut making = recall.making.lock();
        let made = self.next_batch(recall, &mut making);
        if !matches!(made, Ok((_, false))) {
            making.stream = None;
        }
        making.made = Some(made);
        drop(making);
        if recall.cancelled.load(Ordering::SeqCst) {
            *recall.making.lock() = Making::default();
        }
    }
}

impl Engine {
    /// Has the next batch of a recall made, by one of at most `threads`; when it is, `Core::answered` names the recall.
    pub fn ask_batch(&self, recall: &Arc<AskedRecall>, threads: usize) -> Result<(), Error> {
        let (core, recall) = (Arc::clone(&self.core), Arc::clone(recall));
        let space = recall.space.options.id;
        self.readers.run(threads.max(1), space, Box::new(move || core.make_batch(&recall)))
    }
}
