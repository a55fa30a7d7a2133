//! Appends groups to a partition's log through a port; never waits.
//!
//! One writer owns it (T1). Groups go in submission order; their completions come back in the same order. A group's bytes are
//! gathered as chunks, so that a large frame is written from where it lies. After a failed write or sync nothing more is submitted
//! (D4): the partition is poisoned, and recovery decides what the disk holds. A new segment is entered only after everything
//! before it was synced, and its header goes with its first group.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::format::{GroupHeader, SEGMENT_HEADER, SegmentHeader, group_len};
use super::quarantine::keep_records;
use super::restamp::NewSegment;
use super::scan::segment_path;
use super::supply::Supply;
use crate::env::{File, Output, Port, Site};
use crate::types::codec::Seed;
use crate::types::{Durability, Generation, LogPosition, PartitionId, SpaceId};

/// Frames below this are copied into the group's own buffer.
const COPY_BELOW: usize = 4096;

enum Chunk {
    Own(Vec<u8>),
    Frame(Arc<Vec<u8>>),
}

/// The records of a group under construction.
#[derive(Default)]
pub struct GroupBuilder {
    chunks: Vec<Chunk>,
    body: u64,
    records: u32,
}

impl GroupBuilder {
    pub fn body_len(&self) -> u64 {
        self.body
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// A record: `prefix`, then the frame it carries, if any.
    pub fn push(&mut self, prefix: &[u8], frame: Option<&Arc<Vec<u8>>>) {
        self.records += 1;
        self.body += prefix.len() as u64;
        self.own().extend_from_slice(prefix);
        let Some(frame) = frame else { return };
        self.body += frame.len() as u64;
        if frame.len() < COPY_BELOW {
            self.own().extend_from_slice(frame);
        } else {
            self.chunks.push(Chunk::Frame(Arc::clone(frame)));
        }
    }

    fn own(&mut self) -> &mut Vec<u8> {
        if !matches!(self.chunks.last(), Some(Chunk::Own(_))) {
            self.chunks.push(Chunk::Own(Vec::new()));
        }
        match self.chunks.last_mut() {
            Some(Chunk::Own(bytes)) => bytes,
            _ => unreachable!("just pushed"),
        }
    }

    fn slices(&self) -> Vec<&[u8]> {
        self.chunks
            .iter()
            .map(|c| match c {
                Chunk::Own(bytes) => bytes.as_slice(),
                Chunk::Frame(bytes) => bytes.as_slice(),
            })
            .collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// In the segment at hand.
    Here,
    /// In a ready segment.
    Next,
    /// Nowhere until a segment is made.
    None,
}

#[derive(Debug)]
pub enum LogEvent {
    /// The operating system has the group.
    Written(u64),
    /// The group, and all before it, are on the disk.
    Synced(u64),
    Failed {
        path: String,
        error: io::Error,
    },
    /// What could not be applied could not be kept aside either.
    NotKept,
    /// The side file of a poisoned partition is written, or could not be.
    Noted,
}

struct Segment {
    header: SegmentHeader,
    file: Arc<parking_lot::Mutex<Option<Arc<dyn File>>>>,
    path: String,
}

struct InFlight {
    ticket: u64,
    end: LogPosition,
    synced: bool,
}

pub struct LogWriter {
    port: Arc<Port>,
    supply: Arc<Supply>,
    dir: String,
    seed: Seed,
    partition: PartitionId,
    boot_id: u64,
    durability: Durability,
    segment: Option<Segment>,
    next_number: u64,
    epoch: u64,
    end: LogPosition,
    synced: LogPosition,
    committed_at: i64,
    next_ticket: u64,
    in_flight: VecDeque<InFlight>,
    /// The next group goes into another segment.
    leaving: bool,
    dead: bool,
}

/// Tags: ticket × 4 + what.
const WRITE: u64 = 1;
const SYNC: u64 = 2;
const BOTH: u64 = 3;
const NOTE: u64 = u64::MAX;
const KEEP: u64 = u64::MAX - 1;

impl LogWriter {
    #[allow(clippy::too_many_arguments, reason = "wired once, at open")]
    pub fn new(
        port: Arc<Port>,
        supply: Arc<Supply>,
        dir: String,
        seed: Seed,
        partition: PartitionId,
        boot_id: u64,
        durability: Durability,
        start: NewSegment,
    ) -> Self {
        let segment = start.segment.map(|(header, file)| Segment {
            path: segment_path(&dir, header.number),
            header,
            file: Arc::new(parking_lot::Mutex::new(Some(file))),
        });
        Self {
            port,
            supply,
            dir,
            seed,
            partition,
            boot_id,
            durability,
            segment,
            next_number: start.next_number,
            epoch: start.epoch,
            end: start.end,
            synced: start.end,
            committed_at: start.committed_at,
            next_ticket: 1,
            in_flight: VecDeque::new(),
            leaving: false,
            dead: false,
        }
    }

    /// Where the next group will begin.
    pub fn end(&self) -> LogPosition {
        self.end
    }

    /// The end of what is known to be on the disk.
    pub fn synced(&self) -> LogPosition {
        self.synced
    }

    /// The greatest `committed_at` given.
    pub fn committed_at(&self) -> i64 {
        self.committed_at
    }

    pub fn unsynced_bytes(&self) -> u64 {
        self.end.offset - self.synced.offset
    }

    /// Whether this run put anything into the log.
    pub fn touched(&self) -> bool {
        self.segment.is_some()
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    pub fn current_segment(&self) -> u64 {
        self.segment.as_ref().map_or(0, |s| s.header.number)
    }

    /// Where a group with a body of `body` bytes can go.
    pub fn room(&self, body: u64, use_reserve: bool) -> Room {
        let len = group_len(body);
        if self.fits(len) {
            return Room::Here;
        }
        if self.supply.ready(len + SEGMENT_HEADER as u64, use_reserve) { Room::Next } else { Room::None }
    }

    /// The segment at hand gets no further group: when checkpoints have passed it, it can be freed.
    pub fn leave_segment(&mut self) {
        self.leaving = true;
    }

    fn fits(&self, len: u64) -> bool {
        let segment = self.segment.as_ref().filter(|_| !self.leaving);
        segment.is_some_and(|s| SEGMENT_HEADER as u64 + (self.end.offset - s.header.base) + len <= s.header.bytes)
    }

    /// Sends a group for which `room` said where; `now` is the wall clock. Returns its ticket and `committed_at` (D6).
    /// With `sync` the disk is waited for; `written` asks for the earlier notice too.
    pub fn submit(&mut self, group: GroupBuilder, sync: bool, written: bool, now: i64) -> Option<(u64, i64)> {
        let committed_at = self.committed_at.max(now);
        let len = group_len(group.body);
        let entry = if self.fits(len) { None } else { Some(self.enter_segment(len)?) };
        let segment = self.segment.as_ref()?;
        let mut header = GroupHeader {
            partition: self.partition,
            body_len: u32::try_from(group.body).ok()?,
            segment: segment.header.number,
            epoch: self.epoch,
            offset: self.end.offset,
            synced_through: if entry.is_some() { self.end.offset } else { self.synced.offset },
            chain: self.end.chain,
            committed_at,
            records: group.records,
            checksum: 0,
        };
        let (head, padding) = header.seal(self.seed, &group.slices());
        let at = SEGMENT_HEADER as u64 + (self.end.offset - segment.header.base);
        let (file, path) = (Arc::clone(&segment.file), segment.path.clone());
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let with_sync = sync && !written;
        let what = if with_sync { BOTH } else { WRITE };
        self.port.submit(
            ticket * 4 + what,
            Box::new(move |files| {
                if let Some(entry) = entry {
                    entry.run(files, &file)?;
                }
                let file = file.lock().clone().ok_or_else(|| io::Error::other("the segment is not open"))?;
                let pad = [0; 512];
                let mut slices = vec![head.as_slice()];
                slices.extend(group.slices());
                slices.push(&pad[..padding]);
                file.write_at(at, &slices).map_err(|e| at_path(&path, e))?;
                if with_sync {
                    file.sync(Site::GroupSync).map_err(|e| at_path(&path, e))?;
                }
                Ok(Output::Nothing)
            }),
        );
        self.committed_at = committed_at;
        self.end = LogPosition {
            offset: self.end.offset + len,
            segment: header.segment,
            epoch: self.epoch,
            chain: header.checksum,
        };
        self.in_flight.push_back(InFlight { ticket, end: self.end, synced: sync });
        if sync && written {
            self.submit_sync(ticket);
        }
        Some((ticket, committed_at))
    }

    /// Syncs what was only written; the answer is `Synced` for the last group.
    pub fn sync_now(&mut self) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.in_flight.push_back(InFlight { ticket, end: self.end, synced: true });
        self.submit_sync(ticket);
    }

    /// Leaves a side file for the next start, before anyone is told of the failure (D11).
    pub fn note_poisoned(&self, dir: String, cause: &str) {
        let text = cause.to_owned().into_bytes();
        self.port.submit(
            NOTE,
            Box::new(move |files| {
                let file = files.create(&format!("{dir}/poisoned"))?;
                file.write_at(0, &[&text])?;
                file.sync(Site::PoisonSync)?;
                files.sync_dir(&dir, Site::PoisonDir)?;
                Ok(Output::Nothing)
            }),
        );
    }

    /// Keeps a batch's records aside, for people, before whatever is submitted next.
    pub fn keep_records(&self, space: SpaceId, first: Generation, records: Vec<u8>) {
        let (seed, partition) = (self.seed, self.partition);
        self.port.submit(KEEP, Box::new(move |files| keep_records(files, seed, partition, (space, first), &records)));
    }

    fn submit_sync(&mut self, ticket: u64) {
        let Some(segment) = &self.segment else { return };
        let (file, path) = (Arc::clone(&segment.file), segment.path.clone());
        self.port.submit(
            ticket * 4 + SYNC,
            Box::new(move |_| {
                if let Some(file) = &*file.lock() {
                    file.sync(Site::GroupSync).map_err(|e| at_path(&path, e))?;
                }
                Ok(Output::Nothing)
            }),
        );
    }

    fn enter_segment(&mut self, len: u64) -> Option<Entry> {
        let spare = self.supply.take(len + SEGMENT_HEADER as u64)?;
        let header = SegmentHeader {
            partition: self.partition,
            number: self.next_number,
            epoch: self.epoch,
            base: self.end.offset,
            bytes: spare.bytes,
            boot_id: self.boot_id,
            durability: self.durability,
            predecessor: self.end,
        };
        self.next_number += 1;
        self.leaving = false;
        let path = segment_path(&self.dir, header.number);
        let old = self.segment.take().map(|s| (s.file, s.path));
        let entry = Entry {
            old,
            dir: self.dir.clone(),
            spare: spare.path,
            path: path.clone(),
            header: header.encode(self.seed),
        };
        self.segment = Some(Segment { header, file: Arc::default(), path });
        Some(entry)
    }

    /// The next completion, if any.
    pub fn poll(&mut self) -> Option<LogEvent> {
        loop {
            let done = self.port.poll()?;
            if done.tag == NOTE {
                return Some(LogEvent::Noted);
            }
            if done.tag == KEEP {
                if done.result.is_ok() {
                    continue;
                }
                return Some(LogEvent::NotKept);
            }
            if self.dead {
                continue;
            }
            if let Err(error) = done.result {
                self.dead = true;
                let path = self.segment.as_ref().map_or_else(|| self.dir.clone(), |s| s.path.clone());
                return Some(LogEvent::Failed { path, error });
            }
            let (ticket, what) = (done.tag / 4, done.tag % 4);
            if what == WRITE {
                if self.in_flight.front().is_some_and(|f| f.ticket == ticket && !f.synced) {
                    self.in_flight.pop_front();
                }
                return Some(LogEvent::Written(ticket));
            }
            while let Some(front) = self.in_flight.front() {
                if front.ticket > ticket {
                    break;
                }
                if front.end.offset > self.synced.offset {
                    self.synced = front.end;
                }
                self.in_flight.pop_front();
            }
            return Some(LogEvent::Synced(ticket));
        }
    }
}

fn at_path(path: &str, e: io::Error) -> io::Error {
    match e.raw_os_error() {
        // Keep the errno: it says whether the disk is full.
        Some(_) => e,
        None => io::Error::other(format!("{path}: {e}")),
    }
}

/// Changing into a ready segment, on the I/O thread.
struct Entry {
    old: Option<(Arc<parking_lot::Mutex<Option<Arc<dyn File>>>>, String)>,
    dir: String,
    spare: String,
    path: String,
    header: Vec<u8>,
}

impl Entry {
    fn run(self, files: &dyn crate::env::Files, slot: &parking_lot::Mutex<Option<Arc<dyn File>>>) -> io::Result<()> {
        if let Some((old, path)) = self.old
            && let Some(file) = old.lock().take()
        {
            file.sync(Site::RotateSync).map_err(|e| at_path(&path, e))?;
        }
        files.rename(&self.spare, &self.path, Site::SegmentRename)?;
        files.sync_dir(&self.dir, Site::SegmentDir)?;
        let file = files.open(&self.path)?;
        file.write_at(0, &[&self.header])?;
        *slot.lock() = Some(file);
        Ok(())
    }
}
