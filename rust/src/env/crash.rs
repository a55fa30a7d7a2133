//! What a power cut may leave of a traced disk.
//!
//! The model keeps the durable state and, in order, what is pending. A sync of a file makes its pending writes durable; a sync
//! of a directory makes its pending entries durable. An image is the durable state plus a random subset of the rest: each write whole,
//! torn at 512-byte sectors, grown without its data, or gone; each directory entry there or not, in any combination. Writes that
//! a failed fsync lost never become durable, whatever is synced later.

use std::sync::Arc;

use rand_core::Rng;
use rand_pcg::Pcg64;

use super::memory::{DiskState, Node, Trace, TraceOp};

const SECTOR: usize = 512;

#[derive(Clone, Default)]
pub struct CrashModel {
    durable: DiskState,
    /// What the running system reads: also the pages a failed fsync lost.
    cached: DiskState,
    pending: Vec<TraceOp>,
}

impl CrashModel {
    pub fn new(trace: &Trace) -> Self {
        Self { durable: trace.start.clone(), cached: trace.start.clone(), pending: Vec::new() }
    }

    /// The next operation of the trace.
    pub fn apply(&mut self, op: &TraceOp) {
        perform(&mut self.cached, op);
        match op {
            TraceOp::Mark(_) => {}
            TraceOp::Sync { inode, .. } => self.settle(|op| file_of(op) == Some(*inode)),
            TraceOp::LoseDirty { inode } => self.pending.retain(|op| file_of(op) != Some(*inode)),
            TraceOp::SyncDir { dir, .. } => self.settle(|op| dir_of(op) == Some(dir.as_str())),
            _ => self.pending.push(op.clone()),
        }
    }

    fn settle(&mut self, now_durable: impl Fn(&TraceOp) -> bool) {
        let pending = std::mem::take(&mut self.pending);
        for op in pending {
            if now_durable(&op) {
                perform(&mut self.durable, &op);
            } else {
                self.pending.push(op);
            }
        }
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// What a killed process leaves: everything written, synced or not.
    pub fn complete(&self) -> DiskState {
        let mut state = self.cached.clone();
        drop_unreachable(&mut state);
        state
    }

    /// One image a power cut now may leave.
    pub fn image(&self, random: &mut Pcg64) -> DiskState {
        let mut state = self.durable.clone();
        // Sometimes nearly all survives, sometimes nearly nothing: uniform halves would miss both ends.
        let survive = [0, 1, 4, 8, 12, 15, 16][below(random, 7)];
        for op in &self.pending {
            if below(random, 16) < survive {
                perform(&mut state, op);
            } else if let TraceOp::Write { inode, offset, data } = op {
                match below(random, 3) {
                    0 => tear(&mut state, *inode, *offset, data, random),
                    1 => {
                        grow(&mut state, *inode, *offset as usize + data.len());
                    }
                    _ => {}
                }
            }
        }
        drop_unreachable(&mut state);
        state
    }
}

fn below(random: &mut Pcg64, n: u64) -> usize {
    usize::try_from(random.next_u64() % n).unwrap_or(0)
}

fn file_of(op: &TraceOp) -> Option<u64> {
    match op {
        TraceOp::Write { inode, .. } | TraceOp::Truncate { inode } => Some(*inode),
        _ => None,
    }
}

fn dir_of(op: &TraceOp) -> Option<&str> {
    match op {
        TraceOp::Link { dir, .. } | TraceOp::Unlink { dir, .. } | TraceOp::Rename { dir, .. } => Some(dir),
        _ => None,
    }
}

fn perform(state: &mut DiskState, op: &TraceOp) {
    match op {
        TraceOp::Write { inode, offset, data } => write(state, *inode, *offset as usize, data),
        TraceOp::Truncate { inode } => {
            state.inodes.insert(*inode, Arc::default());
        }
        TraceOp::Link { dir, name, node } => {
            state.entries.insert((dir.clone(), name.clone()), *node);
        }
        TraceOp::Unlink { dir, name } => {
            state.entries.remove(&(dir.clone(), name.clone()));
        }
        TraceOp::Rename { dir, from, to } => {
            if let Some(node) = state.entries.remove(&(dir.clone(), from.clone())) {
                state.entries.insert((dir.clone(), to.clone()), node);
            }
        }
        TraceOp::Sync { .. } | TraceOp::SyncDir { .. } | TraceOp::LoseDirty { .. } | TraceOp::Mark(_) => {}
    }
}

fn grow(state: &mut DiskState, inode: u64, len: usize) -> &mut Vec<u8> {
    let bytes = Arc::make_mut(state.inodes.entry(inode).or_default());
    if bytes.len() < len {
        bytes.resize(len, 0);
    }
    bytes
}

fn write(state: &mut DiskState, inode: u64, offset: usize, data: &[u8]) {
    grow(state, inode, offset + data.len())[offset..offset + data.len()].copy_from_slice(data);
}

/// Some sectors of the write, not others.
fn tear(state: &mut DiskState, inode: u64, offset: u64, data: &[u8], random: &mut Pcg64) {
    let start = offset as usize;
    let mut at = start;
    while at < start + data.len() {
        let end = ((at / SECTOR + 1) * SECTOR).min(start + data.len());
        if random.next_u64() & 1 == 0 {
            write(state, inode, at, &data[at - start..end - start]);
        }
        at = end;
    }
}

/// A file whose directory was lost is lost, and contents without a name are gone.
fn drop_unreachable(state: &mut DiskState) {
    loop {
        let before = state.entries.len();
        let dirs: std::collections::BTreeSet<String> = state
            .entries
            .iter()
            .filter(|(_, node)| **node == Node::Dir)
            .map(|((dir, name), _)| if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") })
            .collect();
        state.entries.retain(|(dir, _), _| dir.is_empty() || dirs.contains(dir));
        if state.entries.len() == before {
            break;
        }
    }
    let named: std::collections::BTreeSet<u64> =
        state.entries.values().filter_map(|n| if let Node::File(i) = n { Some(*i) } else { None }).collect();
    state.inodes.retain(|inode, _| named.contains(inode));
    for inode in named {
        state.inodes.entry(inode).or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Files, MemoryFiles, Site};
    use super::*;

    fn images(files: &MemoryFiles, n: u64) -> Vec<DiskState> {
        let trace = files.trace();
        let mut model = CrashModel::new(&trace);
        trace.ops.iter().for_each(|op| model.apply(op));
        (0..n).map(|seed| model.image(&mut Pcg64::new(u128::from(seed), 7))).collect()
    }

    #[test]
    fn what_is_synced_is_in_every_image_and_the_rest_is_not() {
        let files = MemoryFiles::with_state(DiskState::default(), 1, true);
        let file = files.create("a").unwrap();
        file.write_at(0, &[&[1; 1024]]).unwrap();
        file.sync(Site::GroupSync).unwrap();
        files.sync_dir("", Site::GroupSync).unwrap();
        file.write_at(1024, &[&[2; 1024]]).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for mut image in images(&files, 200) {
            let bytes = image.bytes_mut("a").expect("the entry was synced");
            assert_eq!(&bytes[..1024], &[1; 1024]);
            seen.insert(bytes.get(1024..).map(<[u8]>::to_vec));
        }
        assert!(seen.len() >= 4, "lost, whole, torn and grown without data: {}", seen.len());
    }

    #[test]
    fn an_unsynced_directory_loses_entries() {
        let files = MemoryFiles::with_state(DiskState::default(), 1, true);
        let file = files.create("a.tmp").unwrap();
        file.write_at(0, &[b"x"]).unwrap();
        file.sync(Site::RowsSync).unwrap();
        files.rename("a.tmp", "a", Site::RowsRename).unwrap();
        let paths: std::collections::BTreeSet<_> = images(&files, 100).iter().map(DiskState::paths).collect();
        assert!(paths.contains(&vec![]) && paths.contains(&vec!["a".to_owned()]));
    }

    /// D4: after a failed fsync the pages read back fine and are not on disk, even if a later fsync succeeds.
    #[test]
    fn a_failed_fsync_loses_its_pages_for_ever() {
        let files = MemoryFiles::with_state(DiskState::default(), 1, true);
        let file = files.create("a").unwrap();
        files.sync_dir("", Site::GroupSync).unwrap();
        file.sync(Site::GroupSync).unwrap();
        file.write_at(0, &[b"gone"]).unwrap();
        file.lose_dirty();
        file.sync(Site::GroupSync).unwrap();
        let mut read = [0; 4];
        file.read_at(0, &mut read).unwrap();
        assert_eq!(&read, b"gone");
        for mut image in images(&files, 20) {
            assert!(image.bytes_mut("a").unwrap().is_empty());
        }
    }
}
