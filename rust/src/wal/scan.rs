//! Reading a log back (D2, D3, D12): which groups count, where the proven part ends, what is torn and what is damaged.
//!
//! Only reads. Segments are walked from the checkpoint's to the newest; a predecessor's bytes past the end its successor names mean
//! nothing. Before `proven` an invalid region is damage (reported, walked round); after it the log ends at the first gap. Valid groups go
//! to a callback as they are met, one segment in memory at a time; the tail behind `proven` is kept, to be written again.

use std::sync::Arc;

use super::format::{GROUP_ALIGN, GROUP_HEADER, GroupHeader, SEGMENT_HEADER, SegmentHeader};
use super::record::RecordKind;
use super::supply::Spare;
use crate::env::Files;
use crate::error::Error;
use crate::types::codec::{Seed, StampError};
use crate::types::{Durability, LogPosition, PartitionId};

pub fn segment_path(dir: &str, number: u64) -> String {
    format!("{dir}/{number:010}.log")
}

fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 10).then(|| digits.parse().ok())?
}

/// A group and where it lies.
pub struct GroupAt {
    pub header: GroupHeader,
    /// The log before this group.
    pub before: LogPosition,
    pub path: String,
    segment: Arc<Vec<u8>>,
    at: usize,
}

impl GroupAt {
    /// Holds nothing but the word that the log was closed.
    pub fn only_closes(&self) -> bool {
        self.header.records == 1 && self.body().first() == Some(&(RecordKind::Close as u8))
    }

    pub fn body(&self) -> &[u8] {
        &self.segment[self.at + GROUP_HEADER..][..self.header.body_len as usize]
    }
}

/// Log bytes that were durable and are not valid any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogDamage {
    pub path: String,
    pub file_offset: u64,
    /// Log offsets [from, to); equal: nothing is lost by it. `to` is `u64::MAX` where the end is not known.
    pub from: u64,
    pub to: u64,
    pub reason: String,
}

pub struct Recovered {
    /// The end of what is known to have been durable.
    pub proven: LogPosition,
    /// Groups behind it that will count once written again.
    pub tail: Vec<GroupAt>,
    pub end: LogPosition,
    pub committed_at: i64,
    /// Nonzero bytes behind the end, lost by a crash before anyone was told of them.
    pub torn_bytes: u64,
    pub damage: Vec<LogDamage>,
    pub epoch: u64,
    pub next_number: u64,
    /// Of the last run: its boot and default durability; None if it wrote nothing.
    pub last_run: Option<(u64, Durability)>,
    pub segments: Vec<(String, SegmentHeader)>,
    pub spares: Vec<Spare>,
    /// Files that hold nothing of the log: blank segments and temporary files of a crash.
    pub leftovers: Vec<Spare>,
    pub groups: u64,
}

struct Candidate {
    number: u64,
    path: String,
    bytes: u64,
    header: Result<SegmentHeader, StampError>,
    blank: bool,
}

struct Walk<'a> {
    files: &'a dyn Files,
    seed: Seed,
    partition: PartitionId,
    at: LogPosition,
    committed_at: i64,
    damage: Vec<LogDamage>,
    groups: u64,
}

/// Reads the log in `dir` from `from` (a checkpoint's position; None: from its beginning).
pub fn recover(
    files: &dyn Files,
    dir: &str,
    seed: Seed,
    partition: PartitionId,
    from: Option<LogPosition>,
    on_group: &mut dyn FnMut(&GroupAt) -> Result<(), Error>,
) -> Result<Recovered, Error> {
    let (candidates, spares, mut leftovers) = candidates(files, dir, seed, partition)?;
    let start = from.unwrap_or_default();
    let newest = candidates.iter().map(|c| c.number).max().unwrap_or(0);
    let (good, broken) = sort_out(candidates)?;
    let mut walk = Walk { files, seed, partition, at: start, committed_at: i64::MIN, damage: Vec::new(), groups: 0 };
    let relevant: Vec<_> = good.iter().filter(|(_, h, _)| h.number >= start.segment.max(1)).collect();
    walk.check_first(dir, from, relevant.first().map(|(p, h, _)| (p.as_str(), h)));
    let mut tail = Vec::new();
    let mut torn_bytes = 0;
    let mut proven = start;
    for (i, (path, header, bytes)) in relevant.iter().enumerate() {
        let segment = walk.load(path)?;
        if segment.len() as u64 != header.bytes || *bytes != header.bytes {
            walk.wrong_length(path, segment.len() as u64, header.bytes, i + 1 == relevant.len());
        }
        if let Some((_, next, _)) = relevant.get(i + 1) {
            walk.through(path, header, &segment, next.predecessor, on_group)?;
        } else {
            (proven, tail, torn_bytes) = walk.last(path, header, &segment, start.offset, on_group)?;
        }
    }
    if relevant.is_empty() {
        proven = walk.at;
    }
    let oldest_needed = start.segment.max(good.first().map_or(0, |(_, h, _)| h.number));
    for headless in broken {
        let followed = good.iter().any(|(_, h, _)| h.predecessor.segment == headless.number);
        let later = good.iter().find(|(_, h, _)| h.number > headless.number).map(|(_, h, _)| h.base);
        match later.filter(|_| !followed) {
            _ if headless.number < oldest_needed => leftovers.push(headless.spare()),
            // A later segment that does not follow it was begun when it held nothing, or nothing that could be read.
            Some(_) if headless.blank => leftovers.push(headless.spare()),
            Some(base) => walk.report(&headless.path, 0, 0, base, HEADER_DAMAGED.to_owned()),
            None => walk.headless(headless, followed, &mut leftovers)?,
        }
    }
    let epoch = good.iter().map(|(_, h, _)| h.epoch).max().unwrap_or(0).max(start.epoch);
    Ok(Recovered {
        proven,
        tail,
        end: walk.at,
        committed_at: walk.committed_at,
        torn_bytes,
        damage: walk.damage,
        epoch,
        next_number: newest.max(start.segment) + 1,
        last_run: good.last().map(|(_, h, _)| (h.boot_id, h.durability)),
        segments: good.into_iter().map(|(p, h, _)| (p, h)).collect(),
        spares,
        leftovers,
        groups: walk.groups,
    })
}

impl Recovered {
    /// A tail that only closes the log says how the last run ended and holds nothing: it need not be written again, the next run's first
    /// segment begins where it began. So looking at a directory costs no segment.
    pub fn forget_closing_tail(&mut self) {
        if self.tail.iter().all(GroupAt::only_closes) {
            self.tail.clear();
            self.end = self.proven;
        }
    }
}

fn candidates(
    files: &dyn Files,
    dir: &str,
    seed: Seed,
    partition: PartitionId,
) -> Result<(Vec<Candidate>, Vec<Spare>, Vec<Spare>), Error> {
    let (mut found, mut spares, mut leftovers) = (Vec::new(), Vec::new(), Vec::new());
    for entry in files.list(dir).map_err(|e| Error::io(dir, &e))? {
        let path = format!("{dir}/{}", entry.name);
        if entry.name.ends_with(".tmp") {
            leftovers.push(Spare { path, bytes: entry.bytes });
        } else if entry.name.starts_with("spare-") && entry.name.ends_with(".log") {
            spares.push(Spare { path, bytes: entry.bytes });
        } else if let Some(number) = segment_number(&entry.name) {
            let mut head = vec![0; SEGMENT_HEADER];
            let n = read_at(files, &path, &mut head)?;
            let header = SegmentHeader::decode(&head[..n], seed, partition, number);
            let blank = head.iter().all(|b| *b == 0);
            found.push(Candidate { number, path, bytes: entry.bytes, header, blank });
        }
    }
    found.sort_by_key(|c| c.number);
    Ok((found, spares, leftovers))
}

fn read_at(files: &dyn Files, path: &str, buf: &mut [u8]) -> Result<usize, Error> {
    files.open(path).and_then(|file| file.read_at(0, buf)).map_err(|e| Error::io(path, &e))
}

type Good = Vec<(String, SegmentHeader, u64)>;
/// A segment without a valid header.
struct Headless {
    number: u64,
    path: String,
    bytes: u64,
    blank: bool,
}

/// Segments with a valid header, and those without.
fn sort_out(candidates: Vec<Candidate>) -> Result<(Good, Vec<Headless>), Error> {
    let (mut good, mut broken) = (Vec::new(), Vec::new());
    for c in candidates {
        match c.header {
            Ok(header) => good.push((c.path, header, c.bytes)),
            Err(stamp @ StampError::Version(..)) => return Err(stamp.into_error(&c.path)),
            Err(StampError::Damaged) => {
                broken.push(Headless { number: c.number, path: c.path, bytes: c.bytes, blank: c.blank })
            }
        }
    }
    Ok((good, broken))
}

const HEADER_DAMAGED: &str = "the segment's header is damaged";

impl Headless {
    fn spare(self) -> Spare {
        Spare { path: self.path, bytes: self.bytes }
    }
}

impl Walk<'_> {
    fn wrong_length(&mut self, path: &str, have: u64, want: u64, newest: bool) {
        // What a successor does not bound may have held more groups.
        let to = if newest { u64::MAX } else { self.at.offset };
        self.report(path, have, self.at.offset, to, format!("{have} bytes long instead of {want}"));
    }

    fn report(&mut self, path: &str, file_offset: u64, from: u64, to: u64, reason: String) {
        self.damage.push(LogDamage { path: path.to_owned(), file_offset, from, to, reason });
    }

    fn load(&self, path: &str) -> Result<Arc<Vec<u8>>, Error> {
        self.files.read(path).map(Arc::new).map_err(|e| Error::io(path, &e))
    }

    /// The log must reach back to where replay starts.
    fn check_first(&mut self, dir: &str, from: Option<LogPosition>, first: Option<(&str, &SegmentHeader)>) {
        let start = self.at;
        match first {
            Some((path, h)) if h.base > start.offset => {
                self.report(path, 0, start.offset, h.base, "the segments before this one are missing".to_owned());
                self.at = LogPosition { offset: h.base, ..h.predecessor };
            }
            None if from.is_some_and(|f| f.segment > 0) => {
                let reason = "the segment named by the checkpoint is missing or its header is damaged".to_owned();
                self.report(&segment_path(dir, start.segment), 0, start.offset, u64::MAX, reason);
            }
            _ => {}
        }
    }

    fn group(&self, path: &str, header: &SegmentHeader, segment: &Arc<Vec<u8>>, offset: u64) -> Option<GroupAt> {
        let at = usize::try_from(SEGMENT_HEADER as u64 + offset.checked_sub(header.base)?).ok()?;
        let group = GroupHeader::decode(segment.get(at..)?, self.seed, self.partition, header.number, offset)?;
        (group.epoch == header.epoch).then(|| GroupAt {
            header: group,
            before: self.at,
            path: path.to_owned(),
            segment: Arc::clone(segment),
            at,
        })
    }

    fn take(&mut self, group: &GroupAt) {
        self.groups += 1;
        self.committed_at = self.committed_at.max(group.header.committed_at);
        self.at = LogPosition {
            offset: group.header.offset + group.header.len(),
            segment: group.header.segment,
            epoch: group.header.epoch,
            chain: group.header.checksum,
        };
    }

    /// All groups from where the walk stands to `end`, which must all be valid.
    fn through(
        &mut self,
        path: &str,
        header: &SegmentHeader,
        segment: &Arc<Vec<u8>>,
        end: LogPosition,
        on_group: &mut dyn FnMut(&GroupAt) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut damaged_from = None;
        while self.at.offset < end.offset {
            let group = self.group(path, header, segment, self.at.offset).filter(|g| {
                g.header.offset + g.header.len() <= end.offset
                    && (damaged_from.is_some() || g.header.chain == self.at.chain)
            });
            if let Some(group) = group {
                let mut group = group;
                if let Some(from) = damaged_from.take() {
                    self.lost(path, header, from, self.at.offset);
                    // A replay that begins here finds it in its chain.
                    let (segment, epoch, chain) = (header.number, header.epoch, group.header.chain);
                    group.before = LogPosition { offset: self.at.offset, segment, epoch, chain };
                }
                on_group(&group)?;
                self.take(&group);
            } else {
                damaged_from.get_or_insert(self.at.offset);
                self.at.offset += GROUP_ALIGN;
            }
        }
        if let Some(from) = damaged_from {
            self.lost(path, header, from, end.offset);
            self.at = end;
        } else if end.segment == header.number && self.at.chain != end.chain {
            self.report(path, 0, end.offset, end.offset, "the chain does not end as its successor says".to_owned());
        }
        Ok(())
    }

    fn lost(&mut self, path: &str, header: &SegmentHeader, from: u64, to: u64) {
        let at = SEGMENT_HEADER as u64 + from.saturating_sub(header.base);
        self.report(path, at, from, to, "log groups that were durable are not valid any more".to_owned());
    }

    /// The newest segment: proven part, then the chain up to the first gap.
    fn last(
        &mut self,
        path: &str,
        header: &SegmentHeader,
        segment: &Arc<Vec<u8>>,
        start: u64,
        on_group: &mut dyn FnMut(&GroupAt) -> Result<(), Error>,
    ) -> Result<(LogPosition, Vec<GroupAt>, u64), Error> {
        if self.at.offset < header.base {
            self.at = header.predecessor;
        }
        let mut claimed = header.base.max(start);
        let mut offset = header.base;
        while let Ok(at) = usize::try_from(SEGMENT_HEADER as u64 + (offset - header.base)) {
            if at + GROUP_HEADER > segment.len() {
                break;
            }
            if let Some(group) = self.group(path, header, segment, offset) {
                claimed = claimed.max(group.header.synced_through);
                offset += group.header.len();
            } else {
                offset += GROUP_ALIGN;
            }
        }
        let end = LogPosition { offset: claimed, segment: 0, epoch: header.epoch, chain: 0 };
        self.through(path, header, segment, end, on_group)?;
        if self.at.segment == 0 && claimed > 0 {
            // Damage reached the proven end: what follows is chained to nothing we hold.
            self.at = LogPosition { offset: claimed, segment: header.number, epoch: header.epoch, chain: 0 };
        }
        let proven = self.at;
        let any_chain = self.damage.iter().any(|d| d.to == proven.offset);
        let mut tail = Vec::new();
        while let Some(group) = self.group(path, header, segment, self.at.offset) {
            if group.header.chain != self.at.chain && !(any_chain && tail.is_empty()) {
                break;
            }
            on_group(&group)?;
            self.take(&group);
            tail.push(group);
        }
        let behind = usize::try_from(SEGMENT_HEADER as u64 + (self.at.offset - header.base)).unwrap_or(usize::MAX);
        let torn = segment.get(behind..).map_or(0, |rest| rest.iter().filter(|b| **b != 0).count() as u64);
        Ok((proven, tail, torn))
    }

    /// A segment without a valid header: what a crash left before its first group was synced, or damage. A crash leaves the header zero
    /// (it is one sector, over zeros), the length whole (segments are named when they are), and no group that proves more than the
    /// segments before.
    fn headless(&mut self, found: Headless, followed: bool, leftovers: &mut Vec<Spare>) -> Result<(), Error> {
        let Headless { number, path, bytes, blank } = found;
        let segment = self.load(&path)?;
        let mut durable = followed || !blank || segment.len() < SEGMENT_HEADER + GROUP_ALIGN as usize;
        let mut at = SEGMENT_HEADER;
        while !durable && at + GROUP_HEADER <= segment.len() {
            // Without the header the base is unknown; each group says its own offset.
            let offset = segment.get(at + 40..at + 48).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
            let group = GroupHeader::decode(&segment[at..], self.seed, self.partition, number, offset);
            durable = group.is_some_and(|g| g.synced_through > self.at.offset);
            at += GROUP_ALIGN as usize;
        }
        if durable {
            // With a successor the walk has reported the range; without one nobody knows how far it went.
            let to = if followed { self.at.offset } else { u64::MAX };
            self.report(&path, 0, self.at.offset, to, HEADER_DAMAGED.to_owned());
        } else {
            leftovers.push(Spare { path, bytes });
        }
        Ok(())
    }
}
