//! The machine: files through the operating system, its clocks, its random numbers.
//!
//! `write_at` retries short writes and EINTR; every other error is the caller's to judge (D4: a failed sync is final for its file).
//! The lock is the kernel's (`flock`), so that a killed process leaves none behind (D7).
#![allow(clippy::disallowed_methods, reason = "the one place that touches the machine")]

use std::fs;
use std::io::{self, IoSlice, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::{Bytes, Clock, Entry, File, Files, LockError, Random, Site};

/// How far a thread steps back from the CPU for others, as its nice value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepBack {
    /// It gets about a third of what one gets that does not.
    Some = 5,
    /// About a tenth.
    Far = 10,
}

/// From now on this thread leaves the CPU to others, as far as they want it. Linux only: elsewhere it would be the whole process.
pub fn step_back(how: StepBack) {
    // Where it may not, it goes on as it was.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(how as i32);
}

pub struct RealClock {
    start: Instant,
}

impl RealClock {
    #[allow(clippy::new_without_default, reason = "a clock has a start, not a default")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for RealClock {
    fn monotonic_nanos(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wall_micros(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(d) => i64::try_from(d.as_micros()).unwrap_or(i64::MAX),
            Err(e) => -i64::try_from(e.duration().as_micros()).unwrap_or(i64::MAX),
        }
    }
}

pub struct RealRandom;

impl Random for RealRandom {
    fn next_u64(&self) -> u64 {
        // Ids must differ between directories and runs; they need not be secret.
        getrandom::u64().unwrap_or_else(|_| {
            let now = RealClock::new().wall_micros().unsigned_abs();
            xxhash_rust::xxh3::xxh3_64_with_seed(&now.to_le_bytes(), u64::from(std::process::id()))
        })
    }
}

pub struct RealFiles {
    root: PathBuf,
    lock: Mutex<Option<fs::File>>,
}

impl RealFiles {
    pub fn new(root: &Path) -> io::Result<Self> {
        if !root.exists() {
            fs::create_dir_all(root)?;
            // Its own entry must outlive a power cut like what is in it.
            let parent = root.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::File::open(parent)?.sync_all()?;
        }
        Ok(Self { root: fs::canonicalize(root)?, lock: Mutex::new(None) })
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }
}

/// A system that does not interrupt what it does for a thread may take milliseconds for a MiB of fresh pages; whoever waits for a group of
/// the log waits for them too.
const PATIENT_PIECE: usize = 128 << 10;

struct RealFile(fs::File);

impl File for RealFile {
    fn write_at(&self, mut offset: u64, chunks: &[&[u8]]) -> io::Result<()> {
        // All in one call: between two of them, on busy cores, another thread has its turn, and whoever waits for the group waits for it.
        let mut slices: Vec<IoSlice<'_>> = chunks.iter().filter(|c| !c.is_empty()).map(|c| IoSlice::new(c)).collect();
        let mut left: &mut [IoSlice<'_>] = &mut slices;
        while !left.is_empty() {
            match rustix::io::pwritev(&self.0, left, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    offset += n as u64;
                    IoSlice::advance_slices(&mut left, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write_patiently(&self, mut offset: u64, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PATIENT_PIECE) {
            self.write_at(offset, &[piece])?;
            offset += piece.len() as u64;
            std::thread::yield_now();
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.0.read_at(&mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn sync(&self, _site: Site) -> io::Result<()> {
        self.0.sync_data()
    }

    fn map(&self) -> io::Result<Bytes> {
        Ok(Bytes::Mapped(Arc::new(engram_kernels::MappedFile::map(&self.0)?)))
    }
}

impl Files for RealFiles {
    fn create_dir(&self, path: &str) -> io::Result<()> {
        fs::create_dir_all(self.path(path))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.path(dir))? {
            let entry = entry?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(Entry { name, bytes: meta.len(), is_dir: meta.is_dir() });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(self.path(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.path(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str, _site: Site) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path))
    }

    fn sync_dir(&self, dir: &str, _site: Site) -> io::Result<()> {
        fs::File::open(self.path(dir))?.sync_all()
    }

    fn lock(&self) -> Result<(), LockError> {
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path("LOCK"))
            .map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                return Err(LockError::Held(pid.trim().parse().unwrap_or(0)));
            }
            Err(fs::TryLockError::Error(e)) => return Err(LockError::Io(e)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        written.map_err(LockError::Io)?;
        *self.lock.lock() = Some(file);
        Ok(())
    }

    fn unlock(&self) {
        // Closing is enough, and in a forked child it leaves the parent's lock alone.
        let file = self.lock.lock().take();
        drop(file); // not under the mutex, which a fork at this moment would keep held in the child
    }

    fn boot_id(&self) -> u64 {
        let id = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        xxhash_rust::xxh3::xxh3_64(&id)
    }

    fn root(&self) -> String {
        self.root.display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_patiently_is_written() {
        let scratch = std::env::temp_dir().join(format!("engram-patient-{}", std::process::id()));
        let files = RealFiles::new(&scratch).expect("a directory");
        let bytes: Vec<u8> = (0..3 * PATIENT_PIECE + 7).map(|i| (i % 251) as u8).collect();
        let file = files.create("f").expect("a file");
        file.write_patiently(5, &bytes).expect("written");
        let mut found = vec![0; bytes.len() + 6];
        let read = file.read_at(0, &mut found);
        let _ = fs::remove_dir_all(&scratch);
        assert_eq!(read.expect("read"), bytes.len() + 5);
        assert!(found[..5] == [0; 5] && found[5..5 + bytes.len()] == bytes);
    }

    /// More pieces than one call takes, some of them empty.
    #[test]
    fn any_number_of_pieces_is_written_in_order() {
        let scratch = std::env::temp_dir().join(format!("engram-pieces-{}", std::process::id()));
        let files = RealFiles::new(&scratch).expect("a directory");
        let pieces: Vec<Vec<u8>> = (0..3_000_usize).map(|i| vec![i as u8; i % 5]).collect();
        let file = files.create("f").expect("a file");
        file.write_at(3, &pieces.iter().map(Vec::as_slice).collect::<Vec<_>>()).expect("written");
        file.write_at(0, &[]).expect("nothing");
        file.write_at(0, &[b"", b"abc", b""]).expect("written");
        let expected = [b"abc".to_vec(), pieces.concat()].concat();
        let mut found = vec![0; expected.len() + 1];
        let read = file.read_at(0, &mut found);
        let _ = fs::remove_dir_all(&scratch);
        assert_eq!(read.expect("read"), expected.len());
        assert_eq!(found[..expected.len()], expected);
    }
}
