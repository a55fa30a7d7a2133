//! Who is told how hard a space is pressed (P5), and how far it is absorbed (O5).
//!
//! A speaker that listens is told within two looks of a level that is not the one it was told last, and, if a frame of it found no room, as
//! soon as there is some. The maintenance machine looks, whose thread is always
//! there: a level also moves by age, when nobody admits or commits. Looking is cheap and at most every 20 ms.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::SegQueue;
use parking_lot::Mutex;

use super::core::Core;
use super::sessions::Completion;
use crate::error::Error;
use crate::queue::{Gate, Level};
use crate::store::{Space, Speaker};
use crate::types::SessionId;

const PACE_MS: u64 = 20;

/// How a speaker hears of a level.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hears {
    /// Among the completions of its frames.
    Frames,
    /// By who waits at `Core::heard`.
    Calls,
    /// Not of levels: among the completions, of what is absorbed (O5).
    Absorbed,
}

struct Listener {
    space: Arc<Space>,
    session: Arc<Speaker>,
    epoch: u64,
    hears: Hears,
    told: Level,
    /// The last sequence that it knows to be absorbed.
    absorbed: u64,
}

#[derive(Default)]
pub(super) struct Listeners {
    all: Mutex<Vec<Listener>>,
    /// Relaxed: who looks too often loses time only.
    next_at: AtomicU64,
    pub(super) heard: Arc<Heard>,
}

/// Levels for speakers that do not send frames; who waits here does not keep the engine.
#[derive(Default)]
pub struct Heard {
    queue: SegQueue<(SessionId, u64, Level)>,
    gate: Gate,
    ended: AtomicBool,
}

impl Heard {
    /// Waits at most `ms` for levels: whose, by session and epoch, and which. None: the engine has ended.
    pub fn next(&self, ms: u64) -> Option<Vec<(SessionId, u64, Level)>> {
        let ended = || self.ended.load(Ordering::SeqCst);
        self.gate.wait(std::time::Duration::from_millis(ms), || ended() || !self.queue.is_empty());
        (!ended()).then(|| std::iter::from_fn(|| self.queue.pop()).collect())
    }

    fn push(&self, session: SessionId, epoch: u64, level: Level) {
        self.queue.push((session, epoch, level));
        self.gate.wake();
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.gate.wake();
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.heard.end();
    }
}

impl Listener {
    fn tell_absorbed(&mut self, core: &Core) {
        let generation = self.space.absorbed();
        let through = self.session.section().window.through(generation);
        if through > self.absorbed {
            self.absorbed = through;
            core.completions.push(Completion::Absorbed(self.session.id, through, generation));
        }
    }
}

impl Core {
    /// From now on the speaker hears of the space's level: of each change, and of the level as it is if it is not the lowest.
    pub fn listen(&self, space: &Arc<Space>, session: &Arc<Speaker>, epoch: u64, hears: Hears) -> Result<(), Error> {
        session.section().speaks(epoch)?;
        let mut all = self.listeners.all.lock();
        all.retain(|l| (l.session.id, l.epoch, l.hears) != (session.id, epoch, hears));
        let (space, session) = (Arc::clone(space), Arc::clone(session));
        all.push(Listener { space, session, epoch, hears, told: Level::Normal, absorbed: 0 });
        Ok(())
    }

    pub fn heard(&self) -> Arc<Heard> {
        Arc::clone(&self.listeners.heard)
    }

    pub(super) fn tell_levels(&self) {
        let now = self.now();
        if now < self.listeners.next_at.load(Ordering::Relaxed) {
            return;
        }
        self.listeners.next_at.store(now + PACE_MS * 1_000_000, Ordering::Relaxed);
        self.listeners.all.lock().retain_mut(|l| {
            let section = l.session.section();
            let (speaks, refused) = (section.speaks(l.epoch).is_ok(), section.refused);
            drop(section);
            if !speaks || self.spaces.get(l.space.options.id).is_none() {
                return false;
            }
            if l.hears == Hears::Absorbed {
                l.tell_absorbed(self);
                return true;
            }
            let level = self.level_for(&l.space, now);
            let waits = refused.filter(|_| l.hears == Hears::Frames);
            let room = waits.is_some_and(|size| self.has_room(&l.space, size, now));
            if room {
                l.session.section().refused = None;
            }
            if level != l.told || room {
                l.told = level;
                match l.hears {
                    Hears::Frames => self.completions.push(Completion::Level(l.session.id, level)),
                    Hears::Calls => self.listeners.heard.push(l.session.id, l.epoch, level),
                    Hears::Absorbed => {}
                }
            }
            true
        });
    }
}
