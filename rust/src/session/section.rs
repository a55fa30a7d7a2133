//! The critical section of a session (O2): where a frame is placed, and how far admitted, numbered and committed are (S2).
//!
//! committed ≤ numbered ≤ admitted. A frame is placed, its permit taken and its rows pushed under one lock, so that the lane holds a session's
//! rows in sequence order (S5). The writer takes the same lock to number: it sees by the stamp whether what it popped still counts.
//! An epoch ends with the next attach, a round when something was refused out of the lane: `admitted` falls back to what is numbered, and what was
//! pushed behind it does not count any more. Nobody waits under this lock.

use engram_kernels::sync::{Mutex, MutexGuard};

use super::window::{SequenceRun, Window};
use crate::error::Error;
use crate::types::SessionId;

/// Which lane a session's observations take (O3); fixed when it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

impl Priority {
    pub const ALL: [(Self, &'static str); 3] = [(Self::High, "high"), (Self::Normal, "normal"), (Self::Low, "low")];

    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    pub fn parse(name: &str) -> Result<Self, Error> {
        let known = Self::ALL.iter().find(|(_, n)| *n == name).map(|(p, _)| *p);
        known.ok_or_else(|| {
            Error::invalid("priority", format!("unknown priority {name:?}; use \"high\", \"normal\" or \"low\""))
        })
    }

    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).map(|(p, _)| *p)
    }
}

/// Where a session stands (S1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    Active,
    /// Its frames are refused until it is resumed (S8).
    Paused,
    /// It takes no more; what it has is acknowledged (S7).
    Draining,
    /// Nobody speaks for it; it can be attached.
    Detached,
    /// Its record is gone.
    Closed,
}

impl SessionState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Paused => "PAUSED",
            Self::Draining => "DRAINING",
            Self::Detached => "DETACHED",
            Self::Closed => "CLOSED",
        }
    }
}

/// What a pushed batch carries: whose it is, and in which epoch and round it was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub first: u64,
    pub epoch: u64,
    pub round: u64,
}

/// How a frame lies: so many items at its front are committed, so many more are under way, the rest is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub first: u64,
    pub known: u64,
    pub coming: u64,
    pub fresh: u64,
}

/// Who attaches: a number that a speaker drew for itself, 0 for one that did not; and whether it spoke before and comes back by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    pub speaker: u64,
    pub again: bool,
}

struct Join<W> {
    last: u64,
    waiter: W,
}

pub struct Section<W> {
    pub state: SessionState,
    pub epoch: u64,
    round: u64,
    admitted: u64,
    numbered: u64,
    pub window: Window,
    /// After an error in a pipeline: frames that begin elsewhere are discarded.
    expected: Option<u64>,
    joins: Vec<Join<W>>,
    /// Who attached last, as far as this run knows.
    speaker: Option<u64>,
    /// Its speaker sends frames, and hears of levels.
    listens: bool,
    /// Observations and bytes that found no room, until its speaker is told that there is some.
    pub refused: Option<(u64, u64)>,
    /// Microseconds since 1970, by the log's clock.
    pub used_at: i64,
}

pub struct Session<W> {
    pub id: SessionId,
    pub priority: Priority,
    pub principal: String,
    section: Mutex<Section<W>>,
}

impl<W> Session<W> {
    pub fn new(id: SessionId, priority: Priority, principal: String, epoch: u64, window: Window, used_at: i64) -> Self {
        let committed = window.committed();
        let section = Section {
            state: SessionState::Detached,
            epoch,
            round: 0,
            admitted: committed,
            numbered: committed,
            window,
            expected: None,
            joins: Vec::new(),
            speaker: None,
            listens: false,
            refused: None,
            used_at,
        };
        Self { id, priority, principal, section: Mutex::new(section) }
    }

    pub fn section(&self) -> MutexGuard<'_, Section<W>> {
        self.section.lock()
    }
}

impl<W> Section<W> {
    pub fn admitted(&self) -> u64 {
        self.admitted
    }

    /// Whether the speaker may change the session, or send.
    pub fn speaks(&self, epoch: u64) -> Result<(), Error> {
        match self.state {
            SessionState::Closed => Err(Error::SessionExpired { reason: "it was closed, or has expired".to_owned() }),
            _ if epoch != self.epoch => Err(Error::Fenced),
            SessionState::Detached => Err(Error::Fenced),
            _ => Ok(()),
        }
    }

    /// Where `count` items that begin at `first` (None: the next) lie (S3, S4). Takes nothing.
    pub fn place(&self, epoch: u64, first: Option<u64>, count: u64) -> Result<Placed, Error> {
        self.speaks(epoch)?;
        match self.state {
            SessionState::Paused => return Err(Error::Paused),
            SessionState::Draining => return Err(Error::Closed { what: "the session".to_owned() }),
            _ => {}
        }
        let first = first.unwrap_or(self.admitted + 1);
        if first == 0 {
            return Err(Error::invalid("first_sequence", "sequences begin at 1".to_owned()));
        }
        if first > self.admitted + 1 {
            return Err(Error::SequenceGap { expected: self.admitted + 1 });
        }
        let end = first
            .checked_add(count)
            .ok_or_else(|| Error::invalid("first_sequence", format!("sequence {first} is too great")))?;
        let upto = |mark: u64| end.min(mark + 1).saturating_sub(first);
        let known = upto(self.window.committed());
        let coming = upto(self.admitted) - known;
        Ok(Placed { first, known, coming, fresh: count - known - coming })
    }

    /// True once an epoch, for its own speaker.
    pub fn begins_to_listen(&mut self, epoch: u64) -> bool {
        epoch == self.epoch && !std::mem::replace(&mut self.listens, true)
    }

    /// Whether a frame of a pipeline is one that followed a refused one: it is passed over in silence (S3). One that lies before what is
    /// expected did not follow it.
    pub fn discards(&mut self, first: u64, count: u64) -> bool {
        let Some(expected) = self.expected else { return false };
        if first > expected {
            return true;
        }
        if first.saturating_add(count) > expected {
            self.expected = None;
        }
        false
    }

    /// A frame of a pipeline was refused: those that follow it are discarded until this one comes again.
    pub fn rewind(&mut self) {
        self.expected = Some(self.admitted + 1);
    }

    /// Where a speaker goes on after an error. What a failed log had numbered is admitted, and never committed.
    pub fn goes_on_at(&self, error: &Error) -> u64 {
        let done = if matches!(error, Error::Poisoned { .. }) { self.window.committed() } else { self.admitted };
        done + 1
    }

    /// The permit is taken: `count` items are pushed now, under this lock.
    pub fn push(&mut self, count: u64) -> Stamp {
        let first = self.admitted + 1;
        self.admitted += count;
        Stamp { first, epoch: self.epoch, round: self.round }
    }

    /// Waits for what is under way up to `last`.
    pub fn join(&mut self, last: u64, waiter: W) {
        self.joins.push(Join { last, waiter });
    }

    /// Whether what was pushed with this stamp may be numbered.
    pub fn counts(&self, stamp: Stamp) -> Result<(), Error> {
        if stamp.epoch != self.epoch {
            return Err(Error::Fenced);
        }
        if stamp.round != self.round || stamp.first != self.numbered + 1 {
            return Err(Error::SequenceGap { expected: self.numbered + 1 });
        }
        Ok(())
    }

    pub fn number(&mut self, count: u64) {
        self.numbered += count;
    }

    /// What was pushed with this stamp is refused out of the lane: nothing behind it counts (S2). Who joined it is handed back.
    pub fn fall_back(&mut self, stamp: Stamp) -> Vec<W> {
        if stamp.epoch != self.epoch || stamp.round != self.round {
            return Vec::new();
        }
        self.round += 1;
        self.admitted = self.numbered;
        self.leave()
    }

    /// Those who wait for what will not come.
    pub fn leave(&mut self) -> Vec<W> {
        let numbered = self.numbered;
        self.joins.extract_if(.., |j| j.last > numbered).map(|j| j.waiter).collect()
    }

    /// All who wait: what is numbered will not be committed in this run.
    pub fn abandon(&mut self) -> Vec<W> {
        std::mem::take(&mut self.joins).into_iter().map(|j| j.waiter).collect()
    }

    /// Who comes back by itself must not take the session from whoever was given it meanwhile (S4).
    pub fn admits(&self, claim: Claim) -> Result<(), Error> {
        let other = self.speaker.is_some_and(|last| last != claim.speaker);
        if claim.again && other { Err(Error::Fenced) } else { Ok(()) }
    }

    /// Nobody was told that it speaks in this epoch: whoever spoke before may come back.
    pub fn let_go(&mut self, epoch: u64) {
        if self.epoch == epoch && self.state != SessionState::Closed {
            (self.state, self.speaker) = (SessionState::Detached, None);
        }
    }

    /// A new speaker: the older one's frames that are not numbered do not count (S4). Returns its epoch, and who joined them.
    pub fn attach(&mut self, claim: Claim) -> (u64, Vec<W>) {
        self.epoch += 1;
        self.speaker = Some(claim.speaker);
        self.round = 0;
        self.admitted = self.numbered;
        self.expected = None;
        self.refused = None;
        self.listens = false;
        (self.epoch, self.leave())
    }

    /// A run is committed and applied. Hands back who waited for it; None: it does not continue the session.
    pub fn commit(&mut self, run: SequenceRun, synced: u64, at: i64) -> Option<Vec<W>> {
        if !self.window.commit(run, synced) {
            return None;
        }
        let committed = self.window.committed();
        // Replay: nobody admitted or numbered it here.
        (self.numbered, self.admitted) = (self.numbered.max(committed), self.admitted.max(committed));
        self.used_at = self.used_at.max(at);
        Some(self.joins.extract_if(.., |j| j.last <= committed).map(|j| j.waiter).collect())
    }

    /// Everything admitted is committed.
    pub fn is_drained(&self) -> bool {
        self.admitted == self.window.committed()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::types::Generation;

    fn session() -> Session<u32> {
        let session = Session::new(SessionId(9), Priority::Normal, String::new(), 0, Window::default(), 0);
        session.section().attach(Claim::default());
        session.section().state = SessionState::Active;
        session
    }

    fn committed(section: &mut Section<u32>, first: u64, count: u64) -> Vec<u32> {
        let run = SequenceRun { first, count, generation: Generation(first + 100), offset: 0 };
        section.commit(run, 1, 0).unwrap()
    }

    /// O2, S2, S3: admitted with the push, committed with the record; a frame is cut at both.
    #[test]
    fn frames_are_placed() {
        let session = session();
        let mut s = session.section();
        let placed =
            |s: &Section<u32>, first, count| s.place(1, Some(first), count).map(|p| (p.known, p.coming, p.fresh));
        assert_eq!(placed(&s, 1, 4).unwrap(), (0, 0, 4));
        let a = s.push(4);
        assert_eq!((a.first, placed(&s, 1, 4).unwrap(), placed(&s, 3, 4).unwrap()), (1, (0, 4, 0), (0, 2, 2)));
        assert_eq!(placed(&s, 6, 1).unwrap_err().code(), "SEQUENCE_GAP");
        assert_eq!(placed(&s, 0, 1).unwrap_err().code(), "INVALID_ARGUMENT");
        assert!(s.counts(a).is_ok());
        s.number(4);
        s.join(2, 7);
        s.join(4, 8);
        assert_eq!(committed(&mut s, 1, 3), [7]);
        assert_eq!((placed(&s, 1, 9).unwrap(), s.place(1, None, 2).unwrap().first), ((3, 1, 5), 5));
        assert_eq!(committed(&mut s, 4, 1), [8]);
        assert!(s.is_drained() && placed(&s, u64::MAX, 1).is_err());
    }

    /// S2: what is refused out of a lane takes with it what was pushed behind it, and nothing that comes after.
    #[test]
    fn a_refusal_falls_back_once() {
        let session = session();
        let mut s = session.section();
        let (a, b) = (s.push(2), s.push(3));
        s.join(5, 1);
        assert_eq!((s.fall_back(a), s.admitted()), (vec![1], 0));
        let again = s.push(2);
        assert!(s.counts(b).is_err() && s.fall_back(b).is_empty() && s.counts(again).is_ok());
        assert_eq!(s.admitted(), 2);
    }

    /// S4: an attach fences what the older epoch has in the lanes, and keeps what is numbered.
    #[test]
    fn an_attach_fences() {
        let session = session();
        let mut s = session.section();
        let (a, b) = (s.push(2), s.push(2));
        s.number(2);
        s.join(2, 1);
        s.join(4, 2);
        let (epoch, left) = s.attach(Claim::default());
        assert_eq!((epoch, left, s.admitted()), (2, vec![2], 2));
        assert_eq!((s.counts(a).unwrap_err().code(), s.counts(b).unwrap_err().code()), ("FENCED", "FENCED"));
        assert_eq!(s.place(1, Some(3), 1).unwrap_err().code(), "FENCED");
        assert_eq!(committed(&mut s, 1, 2), [1]);
        let c = s.push(1);
        assert_eq!((c.first, s.counts(c).is_ok()), (3, true));
    }

    /// S4: who comes back by himself is let in if nobody else was; if that is not known, too.
    #[test]
    fn who_comes_back_is_known() {
        let session = session();
        let mut s = session.section();
        let claim = |speaker, again| Claim { speaker, again };
        let admitted = |s: &Section<u32>, speaker| s.admits(claim(speaker, true)).map_err(|e| e.code());
        s.attach(claim(7, false));
        assert_eq!((admitted(&s, 7), admitted(&s, 8)), (Ok(()), Err("FENCED")));
        assert!(s.admits(claim(8, false)).is_ok(), "it was given the session");
        let (epoch, _) = s.attach(claim(8, false));
        assert_eq!((admitted(&s, 7), admitted(&s, 8)), (Err("FENCED"), Ok(())));
        s.let_go(epoch - 1);
        assert_eq!(admitted(&s, 7), Err("FENCED"), "an older epoch is let go");
        s.let_go(epoch);
        assert_eq!((admitted(&s, 7), s.state), (Ok(()), SessionState::Detached), "it never heard that it speaks");
    }

    /// S3: after a refusal in a pipeline frames are discarded until the expected one comes.
    #[test]
    fn a_pipeline_rewinds() {
        let session = session();
        let mut s = session.section();
        assert!(!s.discards(5, 1), "nothing was refused yet");
        s.rewind();
        assert!(s.discards(3, 1) && s.discards(2, 1) && !s.discards(1, 1) && !s.discards(3, 1));
    }

    /// What a failed log has numbered is admitted, and will not be committed: it is to be said again.
    #[test]
    fn after_an_error_it_goes_on() {
        let session = session();
        let mut s = session.section();
        s.push(4);
        s.number(4);
        s.join(4, 7);
        assert_eq!(committed(&mut s, 1, 2), [0; 0]);
        let full = Error::DiskFull { message: String::new() };
        assert_eq!((s.goes_on_at(&full), s.goes_on_at(&Error::Poisoned { cause: String::new() })), (5, 3));
    }

    /// S8, S7, S1.
    #[test]
    fn states_refuse() {
        let session = session();
        let mut s = session.section();
        for (state, code) in [
            (SessionState::Paused, "PAUSED"),
            (SessionState::Draining, "CLOSED"),
            (SessionState::Detached, "FENCED"),
            (SessionState::Closed, "SESSION_EXPIRED"),
        ] {
            s.state = state;
            assert_eq!(s.place(1, None, 1).unwrap_err().code(), code, "{}", state.name());
        }
    }
}
