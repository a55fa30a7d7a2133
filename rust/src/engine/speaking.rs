//! Orders and sessions for callers that wait: for a place, for a permit, for the outcome (P8). Waiting holds nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::sessions::{Saying, Speech, Spoken};
use super::workers::{Engine, Pulse, SLICE};
use crate::env::Task;
use crate::error::Error;
use crate::queue::{Forgotten, Ticket};
use crate::session::{Claim, Priority};
use crate::store::{Attached, Space, Speaker, Wanted};
use crate::types::Generation;

/// How a session is taken up: a new one, or an older one by its token.
pub enum TakeUp<'a> {
    Open(Priority),
    /// The token, and the last sequence its speaker knows to be acknowledged.
    Attach(&'a str, Option<u64>),
}

impl Engine {
    /// Tries until there is a place, at most `timeout_ms`; then drives what was ordered.
    fn ordered<T, U: Clone>(
        &self,
        space: &Arc<Space>,
        timeout_ms: u64,
        pulse: Pulse<'_>,
        mut order: impl FnMut() -> Result<Option<(T, Arc<Ticket<U>>)>, Error>,
    ) -> Result<(T, Arc<Ticket<U>>), Error> {
        let index = space.options.partition.0 as usize;
        let until = self.core.now().saturating_add(timeout_ms.saturating_mul(1_000_000));
        loop {
            if let Some((made, ticket)) = order()? {
                self.help(index, &ticket);
                return Ok((made, ticket));
            }
            if self.core.now() >= until {
                return Err(self.core.too_many_orders(space));
            }
            self.core.drive(index);
            space.gate.wait(SLICE, || false);
            pulse()?;
        }
    }

    /// Waits for a place in the control lane, at most `timeout_ms`, then pushes (K3).
    pub fn submit_forget(
        &self,
        space: &Arc<Space>,
        wanted: Wanted,
        purge: bool,
        timeout_ms: u64,
        pulse: Pulse<'_>,
    ) -> Result<Arc<Ticket<Forgotten>>, Error> {
        let mut waiting = Some(wanted);
        let order = || {
            let Some(wanted) = waiting.take() else { return Ok(None) };
            match self.core.submit_forget(space, wanted, purge)? {
                Ok(ticket) => Ok(Some(((), ticket))),
                Err(back) => {
                    waiting = Some(back);
                    Ok(None)
                }
            }
        };
        self.ordered(space, timeout_ms, pulse, order).map(|((), ticket)| ticket)
    }

    /// Removes the bytes of all that was forgotten with `purge`, here or before a crash (K3): from sealed files, from the log, from spares.
    /// Waits for the pins that still see them, at most their limit. Backups and `quarantine/` are not reached.
    pub fn finish_purge(&self, space: &Arc<Space>, timeout_ms: u64, pulse: Pulse<'_>) -> Result<(), Error> {
        let index = space.options.partition.0 as usize;
        let partition = &self.core.partitions[index];
        let ids = space.purging();
        if ids.is_empty() {
            return Ok(());
        }
        let pause = || {
            self.core.scheduler.wake(Task::Maintenance);
            self.core.drive(index);
            std::thread::park_timeout(SLICE);
            self.core.check_open()?;
            space.admits()?;
            if let Some(reason) = space.damage() {
                return Err(Error::corrupted(format!("space {}", space.options.name), 0, reason));
            }
            pulse()
        };
        if partition.kept.lock().damaged {
            let reason = "something of this partition is damaged: nothing is deleted, and nothing can be purged";
            return Err(Error::corrupted(&partition.dir, 0, reason));
        }
        loop {
            self.wait(&self.core.submit_checkpoint(index), pulse)?;
            let view = space.view();
            if !ids.iter().any(|id| view.holds(*id)) {
                break;
            }
            // Files that hold some are written again, unless a pin sees them.
            space.let_go(Generation(0), Vec::new());
            pause()?;
        }
        for leave in [true, false] {
            let from = partition.with_writer(&self.core, |w| {
                if leave {
                    w.log.leave_segment();
                }
                w.log.end().offset
            });
            while !partition.with_writer(&self.core, |w| w.has_passed(&self.core, from)) {
                self.core.writable(space)?;
                // What is only written must be synced too.
                partition.sync_wanted.store(true, Ordering::Release);
                pause()?;
            }
            self.wait(&self.core.submit_checkpoint(index), pulse)?;
        }
        while partition.supply.is_freeing() && partition.supply.error().is_none() {
            pause()?;
        }
        if let Some(error) = partition.supply.error() {
            return Err(error);
        }
        space.purge_index(&self.core.tools(space))?;
        let order = || Ok(self.core.submit_purged(space, &ids)?.map(|ticket| ((), ticket)));
        let ((), ticket) = self.ordered(space, timeout_ms, pulse, order)?;
        self.wait(&ticket, pulse).map(|_| ())
    }

    /// Opens a session, or attaches to one; returns when that is durable (S1, S4).
    pub fn take_up(
        &self,
        space: &Arc<Space>,
        (how, claim): (&TakeUp<'_>, Claim),
        principal: &str,
        timeout_ms: u64,
        pulse: Pulse<'_>,
    ) -> Result<(Arc<Speaker>, Attached), Error> {
        let order = || match how {
            TakeUp::Open(priority) => self.core.submit_open(space, *priority, principal, claim),
            TakeUp::Attach(token, acknowledged) => {
                self.core.submit_attach(space, token, principal, *acknowledged, claim)
            }
        };
        let (session, ticket) = self.ordered(space, timeout_ms, pulse, order)?;
        match self.wait(&ticket, pulse) {
            Ok(attached) => Ok((session, attached)),
            Err(error) => {
                // Nobody will speak in the epoch that may still come.
                let looked = Arc::clone(&ticket);
                ticket.on_complete(Box::new(move || {
                    if let Some(Ok(attached)) = looked.outcome() {
                        session.section().let_go(attached.epoch);
                    }
                }));
                Err(error)
            }
        }
    }

    /// Waits for a permit, at most `timeout_ms`, then says the frame (O2, P8).
    pub fn say(
        &self,
        space: &Arc<Space>,
        (session, epoch): (&Arc<Speaker>, u64),
        first: Option<u64>,
        mut spoken: Spoken,
        timeout_ms: u64,
        pulse: Pulse<'_>,
    ) -> Result<Saying, Error> {
        let begun = self.core.now();
        let index = space.options.partition.0 as usize;
        loop {
            let reason = match self.core.say(space, session, epoch, first, &mut spoken)? {
                Speech::Said(saying) => {
                    let ticket = saying.fresh.as_ref().or(saying.coming.as_ref()).map(|(_, ticket)| ticket);
                    ticket.into_iter().for_each(|ticket| self.help(index, ticket));
                    return Ok(saying);
                }
                Speech::Full(reason) => reason,
            };
            let waited_ms = (self.core.now() - begun) / 1_000_000;
            if waited_ms >= timeout_ms {
                let full = self.core.maintenance_error().filter(Error::is_disk_full);
                return Err(full.unwrap_or_else(|| self.core.overloaded(space, &spoken.prepared, reason)));
            }
            self.core.scheduler.wake(Task::Maintenance);
            self.core.drive(index);
            space.gate.wait(SLICE.min(Duration::from_millis(timeout_ms - waited_ms)), || false);
            pulse()?;
        }
    }

    /// Waits until all that the session has admitted is committed (S7), at most `timeout_ms`.
    pub fn drain_session(
        &self,
        space: &Arc<Space>,
        (session, epoch): (&Arc<Speaker>, u64),
        timeout_ms: u64,
        pulse: Pulse<'_>,
    ) -> Result<(), Error> {
        let until = self.core.now().saturating_add(timeout_ms.saturating_mul(1_000_000));
        while !self.core.drain(session, epoch)? {
            if self.core.now() >= until {
                return Err(Error::Timeout { what: "draining the session".to_owned() });
            }
            self.core.writable(space)?;
            self.core.drive(space.options.partition.0 as usize);
            space.gate.wait(SLICE, || false);
            pulse()?;
        }
        Ok(())
    }

    /// Ends a drained session: its record is gone when this returns.
    pub fn end_session(
        &self,
        space: &Arc<Space>,
        (session, epoch): (&Arc<Speaker>, u64),
        timeout_ms: u64,
        pulse: Pulse<'_>,
    ) -> Result<(), Error> {
        let order = || Ok(self.core.submit_end(space, session, Some(epoch))?.map(|ticket| ((), ticket)));
        let ((), ticket) = self.ordered(space, timeout_ms, pulse, order)?;
        self.wait(&ticket, pulse).map(|_| ())
    }
}
