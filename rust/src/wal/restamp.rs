//! The last step of a recovery's log part (D12): what was found behind the proven end is written again, under a new epoch, into a
//! segment of its own; old segments are never touched.

use std::io;
use std::sync::Arc;

use super::format::{GroupHeader, SEGMENT_HEADER, SegmentHeader, group_len};
use super::scan::{Recovered, segment_path};
use super::supply::Spare;
use crate::env::{File, Files, Site};
use crate::types::codec::Seed;
use crate::types::{Durability, LogPosition, PartitionId};

/// Where a run's log goes on.
pub struct NewSegment {
    pub segment: Option<(SegmentHeader, Arc<dyn File>)>,
    pub next_number: u64,
    pub epoch: u64,
    pub end: LogPosition,
    pub committed_at: i64,
    /// Where the log stands before each group that was written again: what held the old place must move here.
    pub moved: Vec<LogPosition>,
}

/// Writes the unproven tail and `extra` records (as one group's body; empty: none) into a new segment. Without either nothing is
/// written: the first group of the run will make its segment. Uses `spare` where it is large enough.
#[allow(clippy::too_many_arguments, reason = "called from one place, at open")]
pub fn restamp(
    files: &dyn Files,
    dir: &str,
    seed: Seed,
    partition: PartitionId,
    durability: Durability,
    recovered: &Recovered,
    extra: (&[u8], u32),
    now: i64,
    spare: Option<&Spare>,
    segment_bytes: u64,
) -> io::Result<(NewSegment, bool)> {
    let epoch = recovered.epoch + 1;
    let committed_at = recovered.committed_at;
    if recovered.tail.is_empty() && extra.1 == 0 {
        let start = NewSegment {
            segment: None,
            next_number: recovered.next_number,
            epoch,
            end: recovered.end,
            committed_at,
            moved: Vec::new(),
        };
        return Ok((start, false));
    }
    let number = recovered.next_number;
    let tail: u64 = recovered.tail.iter().map(|g| g.header.len()).sum();
    let needed = SEGMENT_HEADER as u64 + tail + group_len(extra.0.len() as u64);
    let usable = spare.filter(|s| s.bytes >= needed + segment_bytes / 4);
    let bytes = usable.map_or((needed + segment_bytes).next_multiple_of(4096), |s| s.bytes);
    let header = SegmentHeader {
        partition,
        number,
        epoch,
        base: recovered.proven.offset,
        bytes,
        boot_id: files.boot_id(),
        durability,
        predecessor: recovered.proven,
    };
    let path = segment_path(dir, number);
    let tmp = format!("{path}.tmp");
    let file = empty_segment(files, dir, &tmp, usable, bytes)?;
    let groups = recovered.tail.iter().map(|g| (g.body(), g.header.records, g.header.committed_at));
    let extra = (extra.1 > 0).then_some((extra.0, extra.1, committed_at.max(now)));
    let (end, last, moved) = write_groups(&*file, seed, &header, committed_at, groups.chain(extra))?;
    file.write_at(0, &[&header.encode(seed)])?;
    file.sync(Site::RestampSync)?;
    files.rename(&tmp, &path, Site::RestampRename)?;
    files.sync_dir(dir, Site::RestampDir)?;
    let start =
        NewSegment { segment: Some((header, file)), next_number: number + 1, epoch, end, committed_at: last, moved };
    Ok((start, usable.is_some()))
}

/// An empty segment under a temporary name.
fn empty_segment(
    files: &dyn Files,
    dir: &str,
    tmp: &str,
    spare: Option<&Spare>,
    bytes: u64,
) -> io::Result<Arc<dyn File>> {
    let Some(spare) = spare else {
        let file = files.create(tmp)?;
        super::supply::fill(&*file, bytes, true)?;
        return Ok(file);
    };
    // Durable before the first write: a spare is all zeros, or it is not called a spare.
    files.rename(&spare.path, tmp, Site::RestampRename)?;
    files.sync_dir(dir, Site::RestampDir)?;
    files.open(tmp)
}

/// Writes groups one after the other into the segment of `header`; returns the log's end, the last `committed_at`, and
/// where the log stood before each group.
fn write_groups<'a>(
    file: &dyn File,
    seed: Seed,
    header: &SegmentHeader,
    committed_at: i64,
    groups: impl Iterator<Item = (&'a [u8], u32, i64)>,
) -> io::Result<(LogPosition, i64, Vec<LogPosition>)> {
    let chain = header.predecessor.chain;
    let mut end = LogPosition { segment: header.number, epoch: header.epoch, offset: header.base, chain };
    let (mut last, mut moved) = (committed_at, Vec::new());
    for (body, records, stamped) in groups {
        let mut group = GroupHeader {
            partition: header.partition,
            body_len: u32::try_from(body.len()).map_err(io::Error::other)?,
            segment: header.number,
            epoch: header.epoch,
            offset: end.offset,
            synced_through: header.base,
            chain: end.chain,
            committed_at: stamped,
            records,
            checksum: 0,
        };
        moved.push(end);
        let (head, padding) = group.seal(seed, &[body]);
        let at = SEGMENT_HEADER as u64 + (end.offset - header.base);
        file.write_at(at, &[&head, body, &[0; 512][..padding]])?;
        end = LogPosition { offset: end.offset + group.len(), chain: group.checksum, ..end };
        last = stamped;
    }
    Ok((end, last, moved))
}
