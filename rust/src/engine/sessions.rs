//! What a session's speaker uses: open, attach, say, pause, drain, end (S1–S8). No call here waits; waiting is in `workers`.

use std::sync::Arc;

use super::calls::Prepared;
use super::core::Core;
use super::levels::Hears;
use crate::error::Error;
use crate::queue::{Committed, Level, Reply, Ticket};
use crate::records::{
    AckRun, FrameView, Rejected, check_frame, check_items, encode_absorbed, encode_fault, encode_pressure,
};
use crate::session::{Claim, Known, Priority, Session, SessionState, Token, Window, space_tag};
use crate::store::{Attached, Order, Piece, Space, Speaker, permits};
use crate::types::{Config, Durability, Generation, Metric, SessionId};
use crate::wal::quarantined_with;

/// What is known of a frame that was said.
pub struct Saying {
    /// Sequence of its first item.
    pub first: u64,
    /// So many at its front had been committed before.
    pub known: u64,
    /// So many more were under way, and the ticket that says when they are committed.
    pub coming: Option<(u64, Arc<Ticket<Committed>>)>,
    /// The rest is new.
    pub fresh: Option<(u64, Arc<Ticket<Committed>>)>,
}

/// A frame, checked item by item.
pub struct Spoken {
    pub prepared: Box<Prepared>,
    /// Of each item; none for one that is not valid.
    pub hashes: Vec<Option<u64>>,
    /// Items that are not valid: they take a sequence and a generation, and hold nothing.
    pub rejected: Vec<(usize, Error)>,
}

/// What came of an attempt to say something.
pub enum Speech {
    Said(Saying),
    /// No permit now; nothing was consumed.
    Full(&'static str),
}

/// What a speaker that does not wait is told.
pub enum Completion {
    Frame(Box<FrameEnd>),
    /// An item that holds nothing, in a session.
    Item(SessionId, Vec<u8>),
    /// How hard its space is pressed (P5).
    Level(SessionId, Level),
    /// Up to this sequence, and generation, all is absorbed (O5).
    Absorbed(SessionId, u64, Generation),
}

/// What a part of a submitted frame came to.
pub struct FrameEnd {
    space: Arc<Space>,
    session: Arc<Speaker>,
    first: u64,
    /// Of items that had been said before.
    again: Option<Vec<Option<u64>>>,
    outcome: Result<Committed, Error>,
}

impl Core {
    pub fn token(&self, space: &Space, session: SessionId) -> String {
        let incarnation = space.state().incarnation;
        Token { space: space.options.id, session, incarnation }.sign(&self.key)
    }

    /// Tells a space from others of its name, before and after it, here and in other directories.
    pub fn space_tag(&self, space: &Space) -> u64 {
        space_tag(space.options.id, &self.key)
    }

    /// Orders a new session; None: too many orders are on their way.
    pub fn submit_open(
        &self,
        space: &Arc<Space>,
        priority: Priority,
        principal: &str,
        claim: Claim,
    ) -> Result<Option<(Arc<Speaker>, Arc<Ticket<Attached>>)>, Error> {
        self.may_attach()?;
        let max = self.config.sessions_kept_max;
        if self.sessions_kept() >= max {
            let message = format!("{max} sessions are kept, the limit; close some, or wait until they expire");
            return Err(Error::TooLarge { field: "sessions", index: None, message });
        }
        let id = loop {
            let id = SessionId(self.env.random.next_u64().max(1));
            if space.sessions.get(id).is_none() {
                break id;
            }
        };
        let session = Arc::new(Session::new(id, priority, principal.to_owned(), 0, Window::default(), 0));
        let ticket = Arc::new(Ticket::default());
        let reply = Reply::new(Arc::clone(&ticket));
        let order = Order::Open { session: Arc::clone(&session), claim, reply };
        Ok(self.order(space, order)?.is_none().then_some((session, ticket)))
    }

    /// Orders that a session's speaker is now whoever has this token. `acknowledged`: the last sequence it was told of.
    pub fn submit_attach(
        &self,
        space: &Arc<Space>,
        token: &str,
        principal: &str,
        acknowledged: Option<u64>,
        claim: Claim,
    ) -> Result<Option<(Arc<Speaker>, Arc<Ticket<Attached>>)>, Error> {
        let token = Token::verify(token, &self.key)?;
        if token.space != space.options.id {
            return Err(Error::invalid("resume", format!("the token is not one of space {:?}", space.options.name)));
        }
        let gone = || Error::SessionExpired { reason: "it was closed, or has expired".to_owned() };
        let session = space.sessions.get(token.session).ok_or_else(gone)?;
        if session.principal != principal {
            return Err(Error::invalid("resume", "the session is another principal's".to_owned()));
        }
        if acknowledged.is_none() && token.incarnation != space.state().incarnation {
            // What was acknowledged to whoever holds the token may be lost: it must say what it knows (D11).
            return Err(Error::DataLoss { committed: session.section().window.committed() });
        }
        let section = session.section();
        if acknowledged.is_some_and(|a| a > section.admitted()) {
            // More than it was ever given: whoever speaks now need not be fenced for it.
            return Err(Error::DataLoss { committed: section.window.committed() });
        }
        let detached = section.state == SessionState::Detached;
        drop(section);
        if detached {
            self.may_attach()?;
        }
        let ticket = Arc::new(Ticket::default());
        let reply = Reply::new(Arc::clone(&ticket));
        let order = Order::Attach { session: Arc::clone(&session), claim, acknowledged, reply };
        Ok(self.order(space, order)?.is_none().then_some((session, ticket)))
    }

    fn sessions_kept(&self) -> u64 {
        self.spaces.all().iter().map(|s| s.sessions.len() as u64).sum()
    }

    fn may_attach(&self) -> Result<(), Error> {
        let max = self.config.sessions_attached_max;
        // They are counted one by one only if there can be too many.
        let attached = || self.spaces.all().iter().map(|s| s.sessions.attached() as u64).sum::<u64>();
        if self.sessions_kept() >= max && attached() >= max {
            let message = format!("{max} sessions are attached, the limit; close some, or wait");
            return Err(Error::TooLarge { field: "sessions", index: None, message });
        }
        Ok(())
    }

    /// Orders a session's end, by its speaker or because it has expired.
    pub fn submit_end(
        &self,
        space: &Arc<Space>,
        session: &Arc<Speaker>,
        epoch: Option<u64>,
    ) -> Result<Option<Arc<Ticket<Committed>>>, Error> {
        let ticket = Arc::new(Ticket::default());
        let reply = Reply::new(Arc::clone(&ticket));
        let order = Order::End { session: Arc::clone(session), epoch, reply };
        Ok(self.order(space, order)?.is_none().then_some(ticket))
    }

    /// Validates a session's frame: what is wrong with an item makes a void of it, not a refusal (O1). `whole`: it is one all the same.
    pub fn prepare_spoken(&self, space: &Space, frame: Vec<u8>, whole: bool) -> Result<Spoken, Error> {
        self.check_open()?;
        let (dim, metric) = (space.options.dim, space.options.metric);
        if FrameView::parse(&frame)?.has_keys() {
            space.knows_keys()?;
        }
        let checked = match whole {
            true => Ok(check_frame(&frame, dim, metric, &self.config)?),
            false => check_items(&frame, dim, metric, &self.config)?,
        };
        let Rejected { view, items: rejected } = match checked {
            Err(rejected) => rejected,
            Ok(checked) => {
                let hashes = checked.hashes.iter().map(|h| Some(*h)).collect();
                let piece = Piece::Rows { frame: Arc::new(frame), checked: Arc::new(checked) };
                return Ok(Spoken { prepared: self.fits(space, vec![piece])?, hashes, rejected: Vec::new() });
            }
        };
        let bad: Vec<bool> = {
            let mut bad = vec![false; view.count()];
            rejected.iter().for_each(|(i, _)| bad[*i] = true);
            bad
        };
        let (mut pieces, mut hashes, mut at) = (Vec::new(), Vec::new(), 0);
        for run in bad.chunk_by(|a, b| a == b) {
            let to = at + run.len();
            if run[0] {
                pieces.push(Piece::Voids(run.len() as u64));
                hashes.extend(run.iter().map(|_| None));
            } else {
                let frame = view.slice(&frame, at, to);
                let checked = check_frame(&frame, dim, metric, &self.config)?;
                hashes.extend(checked.hashes.iter().map(|h| Some(*h)));
                pieces.push(Piece::Rows { frame: Arc::new(frame), checked: Arc::new(checked) });
            }
            at = to;
        }
        Ok(Spoken { prepared: self.fits(space, pieces)?, hashes, rejected })
    }

    /// Says a frame: checks the sequence, takes the permit and pushes in one critical section, or does nothing (O2). `first` None: the next.
    pub fn say(
        &self,
        space: &Arc<Space>,
        session: &Arc<Speaker>,
        epoch: u64,
        first: Option<u64>,
        spoken: &mut Spoken,
    ) -> Result<Speech, Error> {
        let partition = self.writable(space)?;
        let count = spoken.hashes.len() as u64;
        let peeked = session.section().place(epoch, first, count)?;
        // Before anything is consumed; what is under way is compared when it is committed.
        self.acknowledged(space, session, peeked.first, &spoken.hashes[..peeked.known as usize])?;
        let mut section = session.section();
        // Under the section: who fails what is under way comes after, and finds who joined it.
        self.writable(space)?;
        let placed = section.place(epoch, first, count)?;
        let mut saying = Saying { first: placed.first, known: placed.known, coming: None, fresh: None };
        if placed.fresh > 0 {
            let mut rest = None;
            if placed.fresh < count {
                let config = (space.options.dim, space.options.metric, &self.config);
                rest = Some(spoken.prepared.rest((count - placed.fresh) as usize, config)?);
            }
            if let Some(reason) = self.permit(space, rest.as_ref().unwrap_or(&spoken.prepared))? {
                return Ok(Speech::Full(reason));
            }
            let whole = || Prepared { pieces: std::mem::take(&mut spoken.prepared.pieces) };
            let prepared = rest.unwrap_or_else(whole);
            let stamp = section.push(placed.fresh);
            let ticket = self.push(space, partition, prepared, Some((Arc::clone(session), stamp)));
            saying.fresh = Some((placed.fresh, ticket));
        }
        if placed.coming > 0 {
            let ticket = Arc::new(Ticket::default());
            section.join(placed.first + placed.known + placed.coming - 1, Reply::new(Arc::clone(&ticket)));
            saying.coming = Some((placed.coming, ticket));
        }
        Ok(Speech::Said(saying))
    }

    /// The ids of what is committed already, where they are kept; other content is an error (S3).
    pub fn acknowledged(
        &self,
        space: &Space,
        session: &Speaker,
        first: u64,
        hashes: &[Option<u64>],
    ) -> Result<Vec<Known>, Error> {
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        let known = session.section().window.find(first, hashes.len() as u64);
        let (view, quarantined) = (space.view(), space.quarantined());
        for run in &known {
            let Some(generation) = run.generation else { continue };
            if let Some(batch) = (0..run.count).find_map(|i| quarantined_with(&quarantined, generation.plus(i))) {
                return Err(Error::Quarantined { reason: batch.reason.clone() });
            }
            for i in 0..run.count {
                let sequence = run.first + i;
                let row = view.version(generation.plus(i), view.watermark()).inspect_err(|e| space.note_damage(e))?;
                let said = hashes[(sequence - first) as usize];
                let other = match row {
                    Some((row, _)) => said != Some(row.hash),
                    // What was a row, or may have been, cannot be compared any more.
                    None => said.is_some() && space.was_void(generation.plus(i)),
                };
                if other {
                    return Err(Error::SequenceConflict { sequence });
                }
            }
        }
        Ok(known)
    }

    /// What a speaker may send without being refused, as it stands: a window, not a reservation (P3).
    pub fn credits(&self, space: &Space, session: &Speaker) -> (u64, u64) {
        if session.section().state != SessionState::Active {
            return (0, 0);
        }
        let share = [1.0, 0.5, 0.125, 0.0][self.level_for(space, self.now()) as usize];
        let (observations, bytes) = space.depth.room();
        // All may send what they are let at the same time.
        let bytes = bytes.min(self.process_queue.room_each()).min(self.process_unsealed.room_each());
        let part = |room: u64, most: u64| (room.min(most) as f64 * share) as u64;
        (part(observations, self.config.batch_items_max as u64), part(bytes, self.config.batch_bytes_max as u64))
    }

    /// Takes a frame of the wire or refuses it, at once (O2): what it comes to is told by `completions`. A refusal is told here, as bytes, and
    /// what follows it is passed over in silence until the frame that is expected comes (S3).
    pub fn submit_frame(
        &self,
        space: &Arc<Space>,
        session: &Arc<Speaker>,
        epoch: u64,
        frame: Vec<u8>,
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut first = 0;
        if session.section().begins_to_listen(epoch) {
            self.listen(space, session, epoch, Hears::Frames)?;
        }
        let take = || {
            let view = FrameView::parse(&frame)?;
            first = view.first_sequence();
            if session.section().discards(first, view.count() as u64) {
                return Ok(());
            }
            let mut spoken = self.prepare_spoken(space, frame, false)?;
            match self.say(space, session, epoch, Some(first), &mut spoken)? {
                Speech::Said(saying) => self.follow(space, session, &saying, &spoken),
                Speech::Full(reason) => {
                    let size = permits(&spoken.prepared.pieces);
                    // Else it is not for room that it has to wait.
                    if !self.has_room(space, size, self.now()) {
                        session.section().refused = Some(size);
                    }
                    return Err(self.overloaded(space, &spoken.prepared, reason));
                }
            }
            Ok(())
        };
        match take() {
            Ok(()) => Ok(None),
            Err(error @ (Error::NotFound { .. } | Error::SessionExpired { .. } | Error::Fenced)) => Err(error),
            Err(error @ Error::Closed { .. }) if self.check_open().is_err() => Err(error),
            Err(error) => {
                let mut section = session.section();
                section.rewind();
                Ok(Some(encode_fault(&error, first, section.goes_on_at(&error))))
            }
        }
    }

    /// Tells what a frame comes to: at once what is known, later what is not.
    fn follow(&self, space: &Arc<Space>, session: &Arc<Speaker>, saying: &Saying, spoken: &Spoken) {
        let tell = |first: u64, count: u64, duplicate: bool, ticket: Option<&Arc<Ticket<Committed>>>| {
            let from = (first - saying.first) as usize;
            let again = duplicate.then(|| spoken.hashes[from..from + count as usize].to_vec());
            let (space, session) = (Arc::clone(space), Arc::clone(session));
            let made = move |outcome| Completion::Frame(Box::new(FrameEnd { space, session, first, again, outcome }));
            let Some(ticket) = ticket else {
                let none = Committed { first: Generation(0), count: count as u32, durability: Durability::Memory };
                self.completions.push(made(Ok(none)));
                return;
            };
            let (completions, looked) = (Arc::clone(&self.completions), Arc::clone(ticket));
            ticket.on_complete(Box::new(move || {
                if let Some(outcome) = looked.outcome() {
                    completions.push(made(outcome));
                }
            }));
        };
        // Before the acknowledgement: who has that has heard of all items that hold nothing.
        for (item, error) in &spoken.rejected {
            let refused = encode_fault(error, saying.first + *item as u64, 0);
            self.completions.push(Completion::Item(session.id, refused));
        }
        let mut at = saying.first;
        if saying.known > 0 {
            tell(at, saying.known, true, None);
            at += saying.known;
        }
        for (count, ticket, again) in [(&saying.coming, true), (&saying.fresh, false)]
            .into_iter()
            .filter_map(|(part, again)| part.as_ref().map(|(count, ticket)| (*count, ticket, again)))
        {
            tell(at, count, again, Some(ticket));
            at += count;
        }
    }

    /// What submitted frames came to, oldest first: the session, and what it is told. Acknowledgements that continue each other are one.
    pub fn drain_completions(&self, most: usize) -> Vec<(SessionId, Vec<u8>)> {
        let (mut told, mut open): (Vec<(SessionId, Vec<u8>)>, Option<(SessionId, AckRun)>) = (Vec::new(), None);
        for done in self.completions.drain(most) {
            let (id, all) = match done {
                Completion::Frame(end) => (end.session.id, self.told(*end)),
                Completion::Item(id, refused) => (id, vec![Err(refused)]),
                Completion::Level(id, level) => (id, vec![Err(encode_pressure(level.name(), level.advised_batch()))]),
                Completion::Absorbed(id, through, generation) => (id, vec![Err(encode_absorbed(through, generation))]),
            };
            for what in all {
                if let (Some((of, run)), Ok(next)) = (&mut open, &what)
                    && *of == id
                    && run.takes(next)
                {
                    continue;
                }
                told.extend(open.take().map(|(of, run)| (of, run.encode())));
                match what {
                    Ok(run) => open = Some((id, run)),
                    Err(fault) => told.push((id, fault)),
                }
            }
        }
        told.extend(open.map(|(of, run)| (of, run.encode())));
        told
    }

    fn told(&self, done: FrameEnd) -> Vec<Result<AckRun, Vec<u8>>> {
        let FrameEnd { space, session, first, again, outcome } = done;
        let durability = space.durability;
        // Refused when it had been taken: nothing behind it counts, either. What is kept aside has its sequences.
        let expected = match &outcome {
            Err(Error::Quarantined { .. }) | Ok(_) => 0,
            Err(error) => session.section().goes_on_at(error),
        };
        let known = outcome.and_then(|committed| match &again {
            Some(hashes) => self.acknowledged(&space, &session, first, hashes).map(|known| (committed, known)),
            None => Ok((committed, Vec::new())),
        });
        match known {
            Err(error) => vec![Err(encode_fault(&error, first, expected))],
            Ok((committed, _)) if again.is_none() => {
                let (count, generation) = (u64::from(committed.count), committed.first.0);
                vec![Ok(AckRun { first, count, generation, durability, duplicate: false })]
            }
            Ok((_, known)) => {
                let run = |k: &Known| {
                    let generation = k.generation.map_or(0, |g| g.0);
                    Ok(AckRun { first: k.first, count: k.count, generation, durability, duplicate: true })
                };
                known.iter().map(run).collect()
            }
        }
    }

    /// Pauses or resumes a session (S8).
    pub fn pause(&self, session: &Speaker, epoch: u64, paused: bool) -> Result<(), Error> {
        let mut section = session.section();
        section.speaks(epoch)?;
        section.state = match (section.state, paused) {
            (SessionState::Draining, _) => return Err(Error::Closed { what: "the session".to_owned() }),
            (_, true) => SessionState::Paused,
            (_, false) => SessionState::Active,
        };
        Ok(())
    }

    /// Nobody speaks for the session any more; what is admitted goes on.
    pub fn detach(&self, session: &Speaker, epoch: u64) {
        let mut section = session.section();
        if section.speaks(epoch).is_ok() {
            section.state = SessionState::Detached;
        }
    }

    /// Takes no more; true when everything is committed (S7).
    pub fn drain(&self, session: &Speaker, epoch: u64) -> Result<bool, Error> {
        let mut section = session.section();
        section.speaks(epoch)?;
        section.state = SessionState::Draining;
        Ok(section.is_drained())
    }
}

impl Prepared {
    /// Without the first `n` items.
    fn rest(&self, n: usize, (dim, metric, config): (u32, Metric, &Config)) -> Result<Self, Error> {
        let (mut left, mut pieces) = (n, Vec::new());
        for piece in &self.pieces {
            let count = piece.count() as usize;
            let skip = left.min(count);
            left -= skip;
            pieces.extend(match piece {
                _ if skip == count => None,
                Piece::Voids(_) => Some(Piece::Voids((count - skip) as u64)),
                Piece::Rows { frame, checked } => {
                    let frame = checked.view.slice(frame, skip, count);
                    let checked = check_frame(&frame, dim, metric, config)?;
                    Some(Piece::Rows { frame: Arc::new(frame), checked: Arc::new(checked) })
                }
            });
        }
        Ok(Self { pieces })
    }
}
