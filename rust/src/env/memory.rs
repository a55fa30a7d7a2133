//! A disk in RAM: for engines without a directory, and, with a trace, the simulated disk of the tests.
//!
//! Contents are copy-on-write (`Arc<Vec<u8>>`): mapping an immutable file costs nothing. With a trace every change, sync and
//! mark is recorded in order; `crash::CrashModel` turns it into what a power cut may leave. A failed fsync is `lose_dirty`: the
//! pages read back fine and are never on disk. One mutex guards the whole disk: it is a test tool and a small engine's home.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rand_core::Rng;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{Bytes, Clock, Entry, File, Files, LockError, Random, Site};

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    File(u64),
    Dir,
}

/// What is on a disk: contents by inode, entries by (directory, name). The root directory is "".
#[derive(Clone, Debug, Default)]
pub struct DiskState {
    pub inodes: BTreeMap<u64, Arc<Vec<u8>>>,
    pub entries: BTreeMap<(String, String), Node>,
}

impl DiskState {
    /// A name for the state: equal states have equal hashes.
    pub fn hash(&self) -> u64 {
        let mut hasher = Xxh3::new();
        for ((dir, name), node) in &self.entries {
            hasher.update(dir.as_bytes());
            hasher.update(b"/");
            hasher.update(name.as_bytes());
            if let Node::File(inode) = node {
                let bytes = self.inodes.get(inode).map_or(&[][..], |b| b);
                hasher.update(&(bytes.len() as u64).to_le_bytes());
                hasher.update(bytes);
            }
        }
        hasher.digest()
    }

    /// Paths of all files, sorted.
    pub fn paths(&self) -> Vec<String> {
        let file = |((dir, name), node): (&(String, String), &Node)| {
            matches!(node, Node::File(_)).then(|| if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") })
        };
        self.entries.iter().filter_map(file).collect()
    }

    /// The bytes of the file at `path`, to be changed by a test.
    pub fn bytes_mut(&mut self, path: &str) -> Option<&mut Vec<u8>> {
        match self.entries.get(&split(path)) {
            Some(Node::File(inode)) => self.inodes.get_mut(inode).map(Arc::make_mut),
            _ => None,
        }
    }
}

/// One traced operation.
#[derive(Clone, Debug)]
pub enum TraceOp {
    Write {
        inode: u64,
        offset: u64,
        data: Arc<Vec<u8>>,
    },
    Truncate {
        inode: u64,
    },
    Sync {
        inode: u64,
        site: Site,
    },
    LoseDirty {
        inode: u64,
    },
    Link {
        dir: String,
        name: String,
        node: Node,
    },
    Unlink {
        dir: String,
        name: String,
    },
    Rename {
        dir: String,
        from: String,
        to: String,
    },
    SyncDir {
        dir: String,
        site: Site,
    },
    /// Put by a test: what it had been told by then.
    Mark(u64),
}

/// What happened to a disk, from a start state on.
#[derive(Clone, Default)]
pub struct Trace {
    pub start: DiskState,
    pub ops: Vec<TraceOp>,
}

#[derive(Default)]
struct Disk {
    state: DiskState,
    next_inode: u64,
    used: u64,
    capacity: Option<u64>,
    trace: Option<Trace>,
    boot: u64,
    hash: u64,
}

impl Disk {
    fn record(&mut self, op: impl FnOnce() -> TraceOp) {
        if let Some(trace) = &mut self.trace {
            trace.ops.push(op());
        }
    }

    fn note(&mut self, what: &[u8]) {
        if self.trace.is_some() {
            self.hash = xxhash_rust::xxh3::xxh3_64_with_seed(what, self.hash);
        }
    }
}

#[derive(Clone, Default)]
pub struct MemoryFiles {
    disk: Arc<Mutex<Disk>>,
    /// Not under the mutex: a forked child gives its copy up while a thread of its parent's holds that, for ever.
    locked: Arc<AtomicBool>,
}

impl MemoryFiles {
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk that holds `state`, as after a restart of the machine numbered `boot`; traced if asked.
    pub fn with_state(state: DiskState, boot: u64, traced: bool) -> Self {
        let next_inode = state.inodes.keys().last().map_or(1, |i| i + 1);
        let used = state.inodes.values().map(|b| b.len() as u64).sum();
        let trace = traced.then(|| Trace { start: state.clone(), ops: Vec::new() });
        let disk = Disk { state, next_inode, used, trace, boot, ..Disk::default() };
        Self { disk: Arc::new(Mutex::new(disk)), ..Self::default() }
    }

    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk.lock().capacity = bytes;
    }

    pub fn used(&self) -> u64 {
        self.disk.lock().used
    }

    pub fn mark(&self, what: u64) {
        self.disk.lock().record(|| TraceOp::Mark(what));
    }

    pub fn trace(&self) -> Trace {
        self.disk.lock().trace.clone().unwrap_or_default()
    }

    pub fn trace_len(&self) -> usize {
        self.disk.lock().trace.as_ref().map_or(0, |t| t.ops.len())
    }

    /// Hash of every call so far with its bytes.
    pub fn trace_hash(&self) -> u64 {
        self.disk.lock().hash
    }

    pub fn state(&self) -> DiskState {
        self.disk.lock().state.clone()
    }
}

fn split(path: &str) -> (String, String) {
    match path.rsplit_once('/') {
        Some((dir, name)) => (dir.to_owned(), name.to_owned()),
        None => (String::new(), path.to_owned()),
    }
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{path}: no such file"))
}

struct MemoryFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
}

impl File for MemoryFile {
    fn write_at(&self, mut offset: u64, chunks: &[&[u8]]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        for chunk in chunks {
            let at = usize::try_from(offset).map_err(io::Error::other)?;
            let end = at + chunk.len();
            let len = disk.state.inodes.get(&self.inode).map_or(0, |b| b.len());
            let grown = end.saturating_sub(len) as u64;
            if disk.capacity.is_some_and(|c| disk.used + grown > c) && grown > 0 {
                return Err(io::Error::from_raw_os_error(28));
            }
            disk.used += grown;
            let bytes = Arc::make_mut(disk.state.inodes.entry(self.inode).or_default());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(chunk);
            let inode = self.inode;
            disk.note(&[&[1], &inode.to_le_bytes()[..], &offset.to_le_bytes(), &xxh3_64(chunk).to_le_bytes()].concat());
            disk.record(|| TraceOp::Write { inode, offset, data: Arc::new(chunk.to_vec()) });
            offset = end as u64;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let disk = self.disk.lock();
        let bytes = disk.state.inodes.get(&self.inode).map_or(&[][..], |b| b);
        let at = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let n = buf.len().min(bytes.len() - at);
        buf[..n].copy_from_slice(&bytes[at..at + n]);
        Ok(n)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().state.inodes.get(&self.inode).map_or(0, |b| b.len() as u64))
    }

    fn sync(&self, site: Site) -> io::Result<()> {
        let inode = self.inode;
        let mut disk = self.disk.lock();
        disk.note(&[&[2], &inode.to_le_bytes()[..]].concat());
        disk.record(|| TraceOp::Sync { inode, site });
        Ok(())
    }

    fn map(&self) -> io::Result<Bytes> {
        let disk = self.disk.lock();
        Ok(Bytes::Memory(disk.state.inodes.get(&self.inode).cloned().unwrap_or_default()))
    }

    fn lose_dirty(&self) {
        let inode = self.inode;
        self.disk.lock().record(|| TraceOp::LoseDirty { inode });
    }
}

impl Files for MemoryFiles {
    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let (dir, name) = split(path);
        if disk.state.entries.insert((dir.clone(), name.clone()), Node::Dir).is_none() {
            disk.note(path.as_bytes());
            disk.record(|| TraceOp::Link { dir, name, node: Node::Dir });
        }
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let disk = self.disk.lock();
        if !dir.is_empty() && disk.state.entries.get(&split(dir)) != Some(&Node::Dir) {
            return Err(not_found(dir));
        }
        let inside = disk.state.entries.range((dir.to_owned(), String::new())..).take_while(|((d, _), _)| d == dir);
        let entry = |((_, name), node): (&(String, String), &Node)| Entry {
            name: name.clone(),
            is_dir: *node == Node::Dir,
            bytes: match node {
                Node::File(inode) => disk.state.inodes.get(inode).map_or(0, |b| b.len() as u64),
                Node::Dir => 0,
            },
        };
        Ok(inside.map(entry).collect())
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn File>> {
        let (dir, name) = split(path);
        if !dir.is_empty() {
            self.list(&dir)?;
        }
        let mut disk = self.disk.lock();
        disk.note(path.as_bytes());
        // An existing file keeps its inode and loses its bytes, as with O_TRUNC: no entry changes.
        let existing = match disk.state.entries.get(&(dir.clone(), name.clone())) {
            Some(Node::File(inode)) => Some(*inode),
            _ => None,
        };
        let inode = existing.unwrap_or(disk.next_inode);
        disk.next_inode = disk.next_inode.max(inode + 1);
        disk.used -= disk.state.inodes.insert(inode, Arc::default()).map_or(0, |b| b.len() as u64);
        disk.record(|| TraceOp::Truncate { inode });
        if existing.is_none() {
            disk.state.entries.insert((dir.clone(), name.clone()), Node::File(inode));
            disk.record(|| TraceOp::Link { dir, name, node: Node::File(inode) });
        }
        Ok(Arc::new(MemoryFile { disk: Arc::clone(&self.disk), inode }))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn File>> {
        match self.disk.lock().state.entries.get(&split(path)) {
            Some(Node::File(inode)) => Ok(Arc::new(MemoryFile { disk: Arc::clone(&self.disk), inode: *inode })),
            _ => Err(not_found(path)),
        }
    }

    fn rename(&self, from: &str, to: &str, _site: Site) -> io::Result<()> {
        let ((dir, from_name), (to_dir, to_name)) = (split(from), split(to));
        assert_eq!(dir, to_dir, "renames stay in one directory");
        let mut disk = self.disk.lock();
        let node = disk.state.entries.remove(&(dir.clone(), from_name.clone())).ok_or_else(|| not_found(from))?;
        if let Some(Node::File(old)) = disk.state.entries.insert((dir.clone(), to_name.clone()), node) {
            let freed = disk.state.inodes.remove(&old).map_or(0, |b| b.len() as u64);
            disk.used -= freed;
        }
        disk.note(&[from.as_bytes(), b">", to.as_bytes()].concat());
        disk.record(|| TraceOp::Rename { dir, from: from_name, to: to_name });
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let (dir, name) = split(path);
        let mut disk = self.disk.lock();
        match disk.state.entries.remove(&(dir.clone(), name.clone())) {
            Some(Node::File(inode)) => {
                // Open handles read nothing afterwards; the engine drops its handles before it removes.
                let freed = disk.state.inodes.remove(&inode).map_or(0, |b| b.len() as u64);
                disk.used -= freed;
            }
            _ => return Err(not_found(path)),
        }
        disk.note(&[b"rm", path.as_bytes()].concat());
        disk.record(|| TraceOp::Unlink { dir, name });
        Ok(())
    }

    fn sync_dir(&self, dir: &str, site: Site) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.note(&[b"sd", dir.as_bytes()].concat());
        let dir = dir.to_owned();
        disk.record(|| TraceOp::SyncDir { dir, site });
        Ok(())
    }

    fn lock(&self) -> Result<(), LockError> {
        // Acquire: who opens sees all that the one before did. Release in `unlock`.
        match self.locked.swap(true, Ordering::Acquire) {
            true => Err(LockError::Held(std::process::id())),
            false => Ok(()),
        }
    }

    fn unlock(&self) {
        self.locked.store(false, Ordering::Release);
    }

    fn boot_id(&self) -> u64 {
        self.disk.lock().boot
    }

    fn root(&self) -> String {
        "memory".to_owned()
    }
}

/// A clock that moves only when told.
#[derive(Default)]
pub struct SimClock {
    monotonic: AtomicU64,
    wall: AtomicU64,
}

impl SimClock {
    pub fn new(wall_micros: u64) -> Self {
        Self { monotonic: AtomicU64::new(1), wall: AtomicU64::new(wall_micros) }
    }

    pub fn advance_micros(&self, micros: u64) {
        // Relaxed: single-threaded tests; the value carries no other data.
        self.monotonic.fetch_add(micros * 1_000, Ordering::Relaxed);
        self.wall.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn monotonic_nanos(&self) -> u64 {
        self.monotonic.load(Ordering::Relaxed)
    }

    fn wall_micros(&self) -> i64 {
        self.wall.load(Ordering::Relaxed).cast_signed()
    }
}

/// Random numbers from a seed.
pub struct SimRandom(Mutex<rand_pcg::Pcg64>);

impl SimRandom {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(rand_pcg::Pcg64::new(u128::from(seed), 0x0a02_bdbf_7bb3_c0a7_ac28_fa16_a64a_bf96)))
    }
}

impl Random for SimRandom {
    fn next_u64(&self) -> u64 {
        self.0.lock().next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gives_its_copy_up_though_a_thread_of_its_parents_holds_the_disk() {
        let files = MemoryFiles::new();
        files.lock().expect("nobody has it");
        assert!(matches!(files.clone().lock(), Err(LockError::Held(_))));
        let held = files.disk.lock();
        files.unlock();
        drop(held);
        files.lock().expect("given up");
    }
}
