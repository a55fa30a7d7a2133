//! Zero-filled segments, made ready off the write path (D9) so that a full disk is met before anything is numbered (D10).
//!
//! Shared by a partition's writer (takes) and the maintenance machine (makes, one job at a time). The last spare is kept back for
//! recovery and closing groups. A crash leaves a `.tmp` file or a whole spare; both are found at the next start.

use std::io;

use parking_lot::Mutex;

use crate::env::{Files, Output, Site};
use crate::error::Error;

const FILL: usize = 1 << 20;
/// Spares that a partition must have, the reserve and the next; and that are kept, so that there is a next one while another is made.
const NEEDED: usize = 2;
pub const KEPT: usize = 3;
/// Synced after each so many bytes: a log's sync never waits for more than this behind it.
const SYNC_EVERY: u64 = 2 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spare {
    pub path: String,
    pub bytes: u64,
}

/// One piece of work for the maintenance machine.
#[derive(Clone, Debug)]
pub struct SupplyWork {
    dir: String,
    /// A freed segment to fill with zeros again; None: a new file.
    recycle: Option<String>,
    spare: Spare,
    /// A writer waits for it, or soon will; or a purge.
    urgent: bool,
}

struct State {
    spares: Vec<Spare>,
    /// How many are made: one less after the disk had no room for the last of them, until one is taken.
    most: usize,
    freed: Vec<Spare>,
    active: bool,
    smallest: u64,
    next_bytes: u64,
    next_name: u64,
    making: bool,
    error: Option<Error>,
}

pub struct Supply {
    dir: String,
    bytes_max: u64,
    state: Mutex<State>,
}

impl Supply {
    /// `found` are the spares a recovery saw; nothing is made until the partition is `activate`d.
    pub fn new(dir: String, first: u64, max: u64, found: Vec<Spare>, largest_seen: u64) -> Self {
        let number = |s: &Spare| s.path.rsplit_once("spare-").and_then(|(_, n)| n.strip_suffix(".log")?.parse().ok());
        let next_name = found.iter().filter_map(number).max().unwrap_or(0) + 1;
        let next_bytes = (largest_seen * 2).clamp(first, max);
        let state = State {
            spares: found,
            most: KEPT,
            freed: Vec::new(),
            active: false,
            smallest: 0,
            next_bytes,
            next_name,
            making: false,
            error: None,
        };
        Self { dir, bytes_max: max, state: Mutex::new(state) }
    }

    /// From now on spares are kept ready.
    pub fn activate(&self) {
        self.state.lock().active = true;
    }

    /// Whether a segment with room for `bytes` can be had without touching the reserve. What cannot is asked for.
    pub fn ready(&self, bytes: u64, use_reserve: bool) -> bool {
        let mut state = self.state.lock();
        state.active = true;
        if let Some(at) = state.spares.iter().position(|s| s.bytes >= bytes) {
            // The first that fits is the next one.
            state.spares.swap(0, at);
            if state.spares.len() > 1 || use_reserve {
                return true;
            }
        } else {
            state.smallest = state.smallest.max(bytes);
        }
        false
    }

    pub fn take(&self, bytes: u64) -> Option<Spare> {
        let mut state = self.state.lock();
        let at = state.spares.iter().position(|s| s.bytes >= bytes)?;
        let spare = state.spares.remove(at);
        // A log that is used gets larger segments.
        state.next_bytes = state.next_bytes.max((spare.bytes * 2).min(self.bytes_max));
        state.most = KEPT;
        Some(spare)
    }

    /// A segment no kept checkpoint needs.
    pub fn free(&self, path: String, bytes: u64) {
        // Two checkpoints may free it before it is taken up.
        let mut state = self.state.lock();
        if !state.freed.iter().any(|f| f.path == path) {
            state.freed.push(Spare { path, bytes });
        }
    }

    /// Whether freed segments wait to be filled with zeros, or removed.
    pub fn is_freeing(&self) -> bool {
        let state = self.state.lock();
        state.making || !state.freed.is_empty()
    }

    /// Why nothing is ready, if making a spare failed last time.
    pub fn error(&self) -> Option<Error> {
        self.state.lock().error.clone()
    }

    pub fn spares(&self) -> Vec<Spare> {
        self.state.lock().spares.clone()
    }

    /// What to do next if there are fewer than `most` spares: fill one; or remove a freed segment that is not wanted. Files to remove come
    /// with `bytes == 0`.
    pub fn work(&self, most: usize) -> Option<SupplyWork> {
        let mut state = self.state.lock();
        if state.making || !state.active {
            return None;
        }
        let fits = state.spares.iter().any(|s| s.bytes >= state.smallest);
        let wanted = state.spares.len() < most.min(state.most) || !fits;
        // What is not wanted now may be the next to be filled.
        if !wanted && (state.spares.len() < state.most || state.freed.is_empty()) {
            return None;
        }
        let freed = state.freed.pop();
        let bytes = state.next_bytes.max(state.smallest.next_multiple_of(FILL as u64));
        let recycle = freed.as_ref().filter(|f| wanted && f.bytes >= bytes);
        let spare = match (&freed, recycle) {
            (Some(f), None) => Spare { path: f.path.clone(), bytes: 0 },
            (Some(f), Some(_)) => Spare { path: self.name(&mut state), bytes: f.bytes },
            (None, _) => Spare { path: self.name(&mut state), bytes },
        };
        state.making = true;
        // For a removal a purge may wait.
        let urgent = state.spares.len() < NEEDED || !fits || spare.bytes == 0;
        Some(SupplyWork { dir: self.dir.clone(), recycle: recycle.map(|f| f.path.clone()), spare, urgent })
    }

    fn name(&self, state: &mut State) -> String {
        let n = state.next_name;
        state.next_name += 1;
        format!("{}/spare-{n}.log", self.dir)
    }

    /// Forgets work whose outcome is lost with the step that had it.
    pub fn abandon(&self) {
        self.state.lock().making = false;
    }

    pub fn finished(&self, work: &SupplyWork, result: Result<(), Error>) {
        let mut state = self.state.lock();
        state.making = false;
        match result {
            Ok(()) if work.spare.bytes > 0 => {
                state.spares.push(work.spare.clone());
                state.smallest = 0;
                state.error = None;
            }
            Ok(()) => state.error = None,
            Err(e) => {
                // What was to be removed, or filled with zeros, still is.
                let path = if work.spare.bytes == 0 { Some(&work.spare.path) } else { work.recycle.as_ref() };
                state.freed.extend(path.map(|path| Spare { path: path.clone(), bytes: 0 }));
                if work.urgent {
                    state.error = Some(e);
                } else {
                    // Nobody misses it: the room that is left is for others.
                    state.most = NEEDED;
                }
            }
        }
    }
}

impl SupplyWork {
    pub fn path(&self) -> &str {
        &self.spare.path
    }

    /// Whether somebody misses what it makes.
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Runs on the maintenance port.
    pub fn run(&self, files: &dyn Files) -> io::Result<Output> {
        if self.spare.bytes == 0 {
            return match files.remove(&self.spare.path) {
                // A recovery may have taken the name for its own file and given it its place.
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(Output::Count(0)),
            };
        }
        let tmp = format!("{}.tmp", self.spare.path);
        let recycled = match &self.recycle {
            Some(path) => match files.rename(path, &tmp, Site::SegmentRename) {
                Ok(()) => Some(files.open(&tmp)?),
                // A leftover whose name another spare has taken meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(e),
            },
            None => None,
        };
        let file = match recycled {
            Some(file) => file,
            None => files.create(&tmp)?,
        };
        let filled = fill(&*file, self.spare.bytes, self.urgent).and_then(|()| file.sync(Site::SegmentZeroSync));
        if let Err(e) = filled {
            // A half-made spare only takes room that others may need.
            let _ = files.remove(&tmp);
            return Err(e);
        }
        files.rename(&tmp, &self.spare.path, Site::SegmentRename)?;
        files.sync_dir(&self.dir, Site::SegmentDir)?;
        Ok(Output::Count(self.spare.bytes))
    }
}

pub(super) fn fill(file: &dyn crate::env::File, bytes: u64, urgent: bool) -> io::Result<()> {
    let zeros = vec![0; FILL.min(usize::try_from(bytes).unwrap_or(FILL))];
    let mut at = 0;
    while at < bytes {
        let n = zeros.len().min(usize::try_from(bytes - at).unwrap_or(FILL));
        if urgent { file.write_at(at, &[&zeros[..n]]) } else { file.write_patiently(at, &zeros[..n]) }?;
        at += n as u64;
        if at % SYNC_EVERY == 0 && at < bytes {
            file.sync(Site::SegmentZeroSync)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::MemoryFiles;

    fn supply() -> Supply {
        let supply = Supply::new("log".to_owned(), 1 << 20, 4 << 20, Vec::new(), 0);
        supply.activate();
        supply
    }

    #[test]
    fn spares_are_made_ahead_and_the_last_is_kept_back() {
        let (files, supply) = (MemoryFiles::new(), supply());
        files.create_dir("log").unwrap();
        assert!(!supply.ready(1 << 20, true));
        while let Some(work) = supply.work(KEPT) {
            assert!(supply.work(KEPT).is_none(), "one job at a time");
            supply.finished(&work, work.run(&files).map(|_| ()).map_err(|e| Error::io("x", &e)));
        }
        let sizes: Vec<u64> = supply.spares().iter().map(|s| s.bytes).collect();
        assert_eq!(sizes, [1 << 20; KEPT]);
        assert!(supply.ready(1 << 20, false));
        let first = supply.take(1 << 20).unwrap();
        let _ = supply.take(1 << 20).unwrap();
        assert!(!supply.ready(1 << 20, false) && supply.ready(1 << 20, true), "the reserve");
        supply.free(first.path.clone(), first.bytes);
        supply.free(first.path, first.bytes);
        let work = supply.work(KEPT).unwrap();
        assert_eq!(work.spare.bytes, 0, "too small to keep: removed");
        supply.finished(&work, work.run(&files).map(|_| ()).map_err(|e| Error::io("x", &e)));
        let work = supply.work(KEPT).unwrap();
        assert_eq!(
            (work.recycle.clone(), work.spare.bytes),
            (None, 2 << 20),
            "freed twice, removed once; segments grow"
        );
    }

    /// Found by the kill loop: a leftover of a killed run had the name under which a new spare was made; taking it up failed, and with it
    /// what waited for a segment.
    #[test]
    fn a_leftover_that_is_gone_is_no_error() {
        let (files, supply) = (MemoryFiles::new(), supply());
        files.create_dir("log").unwrap();
        supply.free("log/spare-9.log.tmp".to_owned(), 4 << 20);
        while let Some(work) = supply.work(KEPT) {
            supply.finished(&work, work.run(&files).map(|_| ()).map_err(|e| Error::io("x", &e)));
            assert!(supply.error().is_none());
        }
        assert_eq!(supply.spares().len(), KEPT);
    }

    /// A disk that has no room for the last of them is not full for whoever writes, and is not asked again and again.
    #[test]
    fn the_last_spare_is_not_missed() {
        let (files, supply) = (MemoryFiles::new(), supply());
        files.create_dir("log").unwrap();
        let make = || {
            let work = supply.work(KEPT).unwrap();
            supply.finished(&work, work.run(&files).map(|_| ()).map_err(|e| Error::io("x", &e)));
        };
        (0..NEEDED).for_each(|_| make());
        assert!(supply.work(NEEDED).is_none());
        files.set_capacity(Some(2 << 20));
        make();
        assert!(supply.error().is_none() && supply.spares().len() == NEEDED);
        assert!(supply.work(KEPT).is_none(), "until one is taken");
        supply.free("log/old.log".to_owned(), 1);
        let removal = supply.work(KEPT).unwrap();
        supply.finished(&removal, Err(Error::Closed { what: "the disk".to_owned() }));
        assert!(supply.error().is_some() && supply.is_freeing(), "a purge hears of what stays");
        let _ = supply.take(1 << 20).unwrap();
        assert!(supply.work(KEPT).unwrap().is_urgent());
    }

    /// D10: a full disk is an error before anything is numbered, and goes away by itself.
    #[test]
    fn a_full_disk_is_reported_and_forgotten() {
        let (files, supply) = (MemoryFiles::new(), supply());
        files.create_dir("log").unwrap();
        files.set_capacity(Some(1000));
        let work = supply.work(KEPT).unwrap();
        supply.finished(&work, work.run(&files).map(|_| ()).map_err(|e| Error::io("x", &e)));
        assert!(supply.error().unwrap().is_disk_full());
        assert!(files.list("log").unwrap().is_empty(), "nothing half-made stays");
        files.set_capacity(None);
        let work = supply.work(KEPT).unwrap();
        supply.finished(&work, work.run(&files).map(|_| ()).map_err(|e| Error::io("x", &e)));
        assert!(supply.error().is_none() && supply.spares().len() == 1);
    }
}
