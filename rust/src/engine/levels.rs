//! Who is told how hard a space is pressed, and when (P5).
//!
//! A speaker that listens is told within two looks of a level that is not the one it was told last. The maintenance machine looks, whose thread is always
//! there: a level also moves by age, when nobody admits or commits. Looking is cheap and at most every 20 ms.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::SegQueue;
use parking_lot::Mutex;

use super::core::Core;
use super::sessions::Completion;
use super::workers::Engine;
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
    /// By who waits in `next_levels`.
    Calls,
}

struct Listener {
    space: Arc<Space>,
    session: Arc<Speaker>,
    epoch: u64,
    hears: Hears,
    told: Level,
}

#[derive(Default)]
pub(super) struct Listeners {
    all: Mutex<Vec<Listener>>,
    /// Relaxed: who looks too often loses time only.
    next_at: AtomicU64,
    heard: SegQueue<(SessionId, Level)>,
    gate: Gate,
}

impl Core {
    /// From now on the speaker hears of the space's level: of each change, and of the level as it is if it is not the lowest.
    pub fn listen(&self, space: &Arc<Space>, session: &Arc<Speaker>, epoch: u64, hears: Hears) -> Result<(), Error> {
        session.section().speaks(epoch)?;
        let mut all = self.listeners.all.lock();
        if !all.iter().any(|l| l.session.id == session.id && l.epoch == epoch && l.hears == hears) {
            let (space, session) = (Arc::clone(space), Arc::clone(session));
            all.push(Listener { space, session, epoch, hears, told: Level::Normal });
        }
        Ok(())
    }

    pub(super) fn tell_levels(&self) {
        let now = self.now();
        if now < self.listeners.next_at.load(Ordering::Relaxed) {
            return;
        }
        self.listeners.next_at.store(now + PACE_MS * 1_000_000, Ordering::Relaxed);
        self.listeners.all.lock().retain_mut(|l| {
            if l.space.is_fenced() || l.session.section().speaks(l.epoch).is_err() {
                return false;
            }
            let level = l.space.level(now);
            if level != l.told {
                l.told = level;
                match l.hears {
                    Hears::Frames => self.completions.push(Completion::Level(l.session.id, level)),
                    Hears::Calls => {
                        self.listeners.heard.push((l.session.id, level));
                        self.listeners.gate.wake();
                    }
                }
            }
            true
        });
    }
}

impl Engine {
    /// Waits at most `ms` for levels that speakers are to hear of: whose, and which.
    pub fn next_levels(&self, ms: u64) -> Result<Vec<(SessionId, Level)>, Error> {
        let listeners = &self.core.listeners;
        listeners.gate.wait(std::time::Duration::from_millis(ms), || !listeners.heard.is_empty());
        self.core.check_open()?;
        Ok(std::iter::from_fn(|| listeners.heard.pop()).collect())
    }
}
