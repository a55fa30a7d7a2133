//! The records of a log, as bytes. A kind this build does not know is refused by name; nothing is skipped in silence.
//!
//! A record is self-contained: replaying it needs no clock, no random number and no derived state (D6, T6).

use super::quarantine::QuarantineRecord;
use super::spaces::{CreateSpace, DropSpace, SetQuota, space_record};
use crate::error::Error;
use crate::types::codec::{Cursor, put_runs, put_u32, put_u64, take_runs};
use crate::types::{Generation, SessionId, SpaceId};

const RECORD_HEADER: usize = 16;
const RECORD_VERSION: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    Observe = 1,
    Void = 2,
    Quarantine = 3,
    Forget = 4,
    Purged = 5,
    Session = 6,
    Expiry = 7,
    Space = 8,
    Close = 10,
}

/// Whose observations these are, and the sequence of the first; session 0: nobody's (S2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub session: SessionId,
    pub first: u64,
}

impl Said {
    /// Of what follows `count` more.
    #[must_use]
    pub fn after(self, count: u64) -> Self {
        Self { first: self.first + if self.session.0 == 0 { 0 } else { count }, ..self }
    }
}

/// Items of one frame, numbered: item `i` has generation `first_generation + i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObserveRecord<'a> {
    pub space: SpaceId,
    pub said: Said,
    /// The batch goes on with the next record.
    pub continues: bool,
    pub first_generation: Generation,
    pub hashes: Vec<u64>,
    /// Items whose key another memory had, and that memory, which dies with them (G1, K1).
    pub supersedes: Vec<(u32, Generation)>,
    pub frame: &'a [u8],
}

/// These memories die at this generation (K3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForgetRecord {
    pub space: SpaceId,
    pub generation: Generation,
    /// Ascending.
    pub ids: Vec<Generation>,
    /// Their bytes are to be removed.
    pub purge: bool,
}

/// The bytes of these memories are gone (K3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgedRecord {
    pub space: SpaceId,
    pub ids: Vec<Generation>,
}

/// Generations that will never hold anything. With an incarnation: a renewed space begins behind them (D11); else: items of a session's
/// frame that were not valid (O1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoidRecord {
    pub space: SpaceId,
    pub first_generation: Generation,
    pub count: u64,
    pub incarnation: u64,
    pub said: Said,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    Opened { priority: u8, principal: String },
    Attached,
    Closed,
}

/// A session begins, has a new speaker, or ends (S1, S4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    pub space: SpaceId,
    pub session: SessionId,
    pub epoch: u64,
    pub event: SessionEvent,
}

/// What died at or before `history` is no longer kept (G5); nor are the records of these sessions (S1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiryRecord {
    pub space: SpaceId,
    pub history: Generation,
    pub sessions: Vec<SessionId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseRecord {
    pub clean: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    Observe(ObserveRecord<'a>),
    Void(VoidRecord),
    Quarantine(QuarantineRecord),
    Forget(ForgetRecord),
    Purged(PurgedRecord),
    Session(SessionRecord),
    Expiry(ExpiryRecord),
    Create(CreateSpace),
    Quota(SetQuota),
    Drop(DropSpace),
    Close(CloseRecord),
}

pub(super) fn head(out: &mut Vec<u8>, kind: RecordKind, space: SpaceId, payload: usize) {
    out.push(kind as u8);
    out.push(RECORD_VERSION);
    out.extend_from_slice(&[0; 2]);
    put_u32(out, u32::try_from(payload).unwrap_or(u32::MAX));
    put_u64(out, space.0);
}

const OBSERVE_FIXED: usize = 8 + 8 + 8 + 4 + 4 + 4 + 4;
const CONTINUES: u32 = 1;
const SUPERSEDES: usize = 4 + 8;

/// Everything of an observe record before the frame's own bytes.
pub fn observe_prefix(
    out: &mut Vec<u8>,
    space: SpaceId,
    said: Said,
    continues: bool,
    first: Generation,
    hashes: &[u64],
    supersedes: &[(u32, Generation)],
    frame_len: usize,
) {
    let lists = hashes.len() * 8 + supersedes.len() * SUPERSEDES;
    head(out, RecordKind::Observe, space, OBSERVE_FIXED + lists + frame_len);
    put_u64(out, said.session.0);
    put_u64(out, said.first);
    put_u64(out, first.0);
    put_u32(out, u32::try_from(hashes.len()).unwrap_or(u32::MAX));
    put_u32(out, u32::try_from(supersedes.len()).unwrap_or(u32::MAX));
    put_u32(out, if continues { CONTINUES } else { 0 });
    put_u32(out, 0);
    for hash in hashes {
        put_u64(out, *hash);
    }
    for (item, old) in supersedes {
        put_u32(out, *item);
        put_u64(out, old.0);
    }
}

impl ForgetRecord {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut ids = Vec::new();
        put_runs(&mut ids, &self.ids);
        head(out, RecordKind::Forget, self.space, 9 + ids.len());
        put_u64(out, self.generation.0);
        out.push(u8::from(self.purge));
        out.extend_from_slice(&ids);
    }
}

impl PurgedRecord {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut ids = Vec::new();
        put_runs(&mut ids, &self.ids);
        head(out, RecordKind::Purged, self.space, ids.len());
        out.extend_from_slice(&ids);
    }

    fn decode(space: SpaceId, mut c: Cursor<'_>) -> Option<Self> {
        let ids = take_runs(&mut c)?;
        (c.remaining() == 0).then_some(Self { space, ids })
    }
}

impl VoidRecord {
    pub fn encode(&self, out: &mut Vec<u8>) {
        head(out, RecordKind::Void, self.space, 40);
        for v in [self.first_generation.0, self.count, self.incarnation, self.said.session.0, self.said.first] {
            put_u64(out, v);
        }
    }
}

const OPENED: u8 = 1;
const ATTACHED: u8 = 2;
const CLOSED: u8 = 3;
const PRINCIPAL_MAX: usize = 256;

impl SessionRecord {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, priority, principal) = match &self.event {
            SessionEvent::Opened { priority, principal } => (OPENED, *priority, principal.as_str()),
            SessionEvent::Attached => (ATTACHED, 0, ""),
            SessionEvent::Closed => (CLOSED, 0, ""),
        };
        head(out, RecordKind::Session, self.space, 8 + 8 + 2 + principal.len());
        put_u64(out, self.session.0);
        put_u64(out, self.epoch);
        out.extend_from_slice(&[kind, priority]);
        out.extend_from_slice(principal.as_bytes());
    }

    fn decode(space: SpaceId, mut c: Cursor<'_>) -> Option<Self> {
        let (session, epoch, kind, priority) = (SessionId(c.u64()?), c.u64()?, c.u8()?, c.u8()?);
        let principal = std::str::from_utf8(c.rest()).ok().filter(|p| p.len() <= PRINCIPAL_MAX)?.to_owned();
        let event = match kind {
            OPENED => SessionEvent::Opened { priority, principal },
            ATTACHED => SessionEvent::Attached,
            CLOSED => SessionEvent::Closed,
            _ => return None,
        };
        Some(Self { space, session, epoch, event })
    }
}

impl ExpiryRecord {
    pub fn encode(&self, out: &mut Vec<u8>) {
        head(out, RecordKind::Expiry, self.space, 8 + self.sessions.len() * 8);
        put_u64(out, self.history.0);
        self.sessions.iter().for_each(|s| put_u64(out, s.0));
    }

    fn decode(space: SpaceId, mut c: Cursor<'_>) -> Option<Self> {
        let history = Generation(c.u64()?);
        let sessions = (0..c.remaining() / 8).map(|_| c.u64().map(SessionId)).collect::<Option<_>>()?;
        (c.remaining() == 0).then_some(Self { space, history, sessions })
    }
}

impl CloseRecord {
    pub fn encode(&self, out: &mut Vec<u8>) {
        head(out, RecordKind::Close, SpaceId(0), 1);
        out.push(u8::from(self.clean));
    }
}

impl<'a> Record<'a> {
    /// The records of a group's body, in order. `path` is for messages.
    pub fn all(body: &'a [u8], path: &str) -> Result<Vec<Self>, Error> {
        let mut records = Vec::new();
        let mut rest = body;
        while !rest.is_empty() {
            let (record, len) = Self::first(rest, path)?;
            records.push(record);
            rest = &rest[len..];
        }
        Ok(records)
    }

    fn first(bytes: &'a [u8], path: &str) -> Result<(Self, usize), Error> {
        let bad = || Error::corrupted(path, 0, "a group with a valid checksum holds a malformed record");
        let mut c = Cursor::new(bytes);
        let (kind, version) = (c.u8().ok_or_else(bad)?, c.u8().ok_or_else(bad)?);
        c.u16().ok_or_else(bad)?;
        let len = c.u32().ok_or_else(bad)? as usize;
        let space = SpaceId(c.u64().ok_or_else(bad)?);
        let payload = Cursor::new(c.take(len).ok_or_else(bad)?);
        let unsupported = |what: String, found: u8| Error::UnsupportedVersion {
            path: path.to_owned(),
            what,
            found: u64::from(found),
            supported: u64::from(RECORD_VERSION),
        };
        if version != RECORD_VERSION {
            return Err(unsupported(format!("record kind {kind}"), version));
        }
        let record = match kind {
            1 => Self::observe(space, payload),
            2 => Self::void(space, payload),
            3 => QuarantineRecord::decode(space, payload).map(Self::Quarantine),
            4 => Self::forget(space, payload),
            5 => PurgedRecord::decode(space, payload).map(Self::Purged),
            6 => SessionRecord::decode(space, payload).map(Self::Session),
            7 => ExpiryRecord::decode(space, payload).map(Self::Expiry),
            8 => space_record(space, payload),
            10 => Self::close(payload),
            9 => return Err(unsupported("a record of kind 9 (checkpoint)".to_owned(), kind)),
            _ => return Err(unsupported(format!("a record of unknown kind {kind}"), kind)),
        };
        Ok((record.ok_or_else(bad)?, RECORD_HEADER + len))
    }

    fn observe(space: SpaceId, mut c: Cursor<'a>) -> Option<Self> {
        let said = Said { session: SessionId(c.u64()?), first: c.u64()? };
        let first_generation = Generation(c.u64()?);
        let (count, supersedes) = (c.u32()? as usize, c.u32()? as usize);
        let flags = c.u32()?;
        if c.u32()? != 0 || flags & !CONTINUES != 0 {
            return None;
        }
        if count.checked_mul(8)?.checked_add(supersedes.checked_mul(SUPERSEDES)?)? > c.remaining() {
            return None;
        }
        let hashes = (0..count).map(|_| c.u64()).collect::<Option<_>>()?;
        let supersedes = (0..supersedes).map(|_| Some((c.u32()?, Generation(c.u64()?)))).collect::<Option<_>>()?;
        let continues = flags & CONTINUES != 0;
        let frame = c.rest();
        Some(Self::Observe(ObserveRecord { space, said, continues, first_generation, hashes, supersedes, frame }))
    }

    fn forget(space: SpaceId, mut c: Cursor<'_>) -> Option<Self> {
        let (generation, purge) = (Generation(c.u64()?), c.u8()? != 0);
        let ids = take_runs(&mut c)?;
        (c.remaining() == 0).then_some(Self::Forget(ForgetRecord { space, generation, ids, purge }))
    }

    fn void(space: SpaceId, mut c: Cursor<'a>) -> Option<Self> {
        let (first_generation, count, incarnation) = (Generation(c.u64()?), c.u64()?, c.u64()?);
        let said = Said { session: SessionId(c.u64()?), first: c.u64()? };
        Some(Self::Void(VoidRecord { space, first_generation, count, incarnation, said }))
    }

    fn close(mut c: Cursor<'a>) -> Option<Self> {
        Some(Self::Close(CloseRecord { clean: c.u8()? == 1 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Durability, Metric, PartitionId, Quota, SpaceOptions};

    #[test]
    fn records_come_back_as_they_went() {
        let (space, said) = (SpaceId(4), Said { session: SessionId(6), first: 8 });
        let void = VoidRecord { space, first_generation: Generation(9), count: 1 << 32, incarnation: 77, said };
        let event = SessionEvent::Opened { priority: 2, principal: "ä".to_owned() };
        let opened = SessionRecord { space, session: SessionId(6), epoch: 1, event };
        let attached = SessionRecord { epoch: 2, event: SessionEvent::Attached, ..opened.clone() };
        let gone = SessionRecord { epoch: 2, event: SessionEvent::Closed, ..opened.clone() };
        let expiry = ExpiryRecord { space, history: Generation(8), sessions: vec![SessionId(6), SessionId(7)] };
        let create = CreateSpace(SpaceOptions {
            id: SpaceId(4),
            name: "notes".to_owned(),
            partition: PartitionId(2),
            dim: 384,
            metric: Metric::L2,
            durability: Some(Durability::Os),
            incarnation: 5,
            first_generation: Generation(1),
            quota: Quota::default(),
        });
        let drop = DropSpace { id: SpaceId(4), last_generation: Generation(12) };
        let mut body = Vec::new();
        let forget = ForgetRecord {
            space: SpaceId(4),
            generation: Generation(40),
            ids: [3, 4, 5, 9, 30, 31].map(Generation).to_vec(),
            purge: true,
        };
        let purged = PurgedRecord { space, ids: forget.ids.clone() };
        let supersedes = vec![(1, Generation(2))];
        observe_prefix(&mut body, SpaceId(4), said, true, Generation(3), &[1, 2], &supersedes, 5);
        body.extend_from_slice(b"frame");
        forget.encode(&mut body);
        void.encode(&mut body);
        [&opened, &attached, &gone].into_iter().for_each(|r| r.encode(&mut body));
        expiry.encode(&mut body);
        purged.encode(&mut body);
        create.encode(&mut body);
        let quota = SetQuota { id: SpaceId(4), quota: Quota { memories: 7, bytes: 9 } };
        quota.encode(&mut body);
        drop.encode(&mut body);
        CloseRecord { clean: true }.encode(&mut body);
        let observe = ObserveRecord {
            space: SpaceId(4),
            said,
            continues: true,
            first_generation: Generation(3),
            hashes: vec![1, 2],
            supersedes,
            frame: b"frame",
        };
        let expected = [
            Record::Observe(observe),
            Record::Forget(forget),
            Record::Void(void),
            Record::Session(opened),
            Record::Session(attached),
            Record::Session(gone),
            Record::Expiry(expiry),
            Record::Purged(purged),
            Record::Create(create),
            Record::Quota(quota),
            Record::Drop(drop),
            Record::Close(CloseRecord { clean: true }),
        ];
        assert_eq!(Record::all(&body, "x").unwrap(), expected);
        for cut in 1..body.len() {
            if let Ok(some) = Record::all(&body[..cut], "x") {
                assert!(some.len() < expected.len(), "a cut body is never whole");
            }
        }
    }

    #[test]
    fn unknown_kinds_are_refused_by_name() {
        for (kind, name) in [(9, "checkpoint"), (99, "unknown kind 99")] {
            let mut body = vec![kind, 1, 0, 0, 0, 0, 0, 0];
            body.extend_from_slice(&[0; 8]);
            let error = Record::all(&body, "x").unwrap_err();
            assert_eq!(error.code(), "UNSUPPORTED_VERSION");
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
