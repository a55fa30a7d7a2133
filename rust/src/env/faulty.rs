//! A file system that fails where a plan says so.
//!
//! The fault model (what the plans may do, and what the engine must still hold): any call may fail with an errno (EIO, ENOSPC,
//! EMFILE …), at the nth matching call, once or for ever; or be slow; a failed sync leaves its pages clean, readable and not on disk (D4); a
//! sync, rename or directory sync may silently not happen (sabotage: the tests must notice). Short writes and EINTR are below
//! this layer, in `real`. Lost, torn and reordered writes of a power cut are in `crash`; flipped bits are made by the tests.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Bytes, Entry, File, Files, LockError, Site};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Open,
    Write,
    Read,
    Sync,
    Rename,
    Remove,
    SyncDir,
    /// A frame is about to be applied.
    Apply,
    /// A thread of this name begins its next round.
    Work,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fail with this errno.
    Fail(i32),
    /// Report success and do nothing.
    Skip,
    /// Take so many milliseconds longer. For real disks: a simulated one has its clock.
    Delay(u64),
    Panic,
    /// The process ends at once.
    Abort,
}

/// Applies to calls that match all that is given, after `skip` of them, `times` times.
#[derive(Clone, Debug)]
pub struct Rule {
    pub operation: Operation,
    pub site: Option<Site>,
    pub path: Option<String>,
    pub skip: u64,
    pub times: u64,
    pub action: Action,
}

impl Rule {
    pub fn new(operation: Operation, action: Action) -> Self {
        Self { operation, site: None, path: None, skip: 0, times: u64::MAX, action }
    }

    /// Parses `sync@GroupSync+5*1=EIO`, `write:rows=ENOSPC`, `rename@RowsRename=skip`, `sync=delay20`: operation, `@site`, `:part of the path`,
    /// `+calls let through`, `*times`.
    pub fn parse(text: &str) -> Option<Self> {
        let (left, action) = text.split_once('=')?;
        let action = match action {
            "skip" => Action::Skip,
            "EIO" => Action::Fail(5),
            "ENOSPC" => Action::Fail(28),
            "EMFILE" => Action::Fail(24),
            "EROFS" => Action::Fail(30),
            "panic" => Action::Panic,
            "abort" => Action::Abort,
            _ => Action::Delay(action.strip_prefix("delay")?.parse().ok()?),
        };
        let end = left.find(['@', ':', '+', '*']).unwrap_or(left.len());
        let operation = match &left[..end] {
            "create" => Operation::Create,
            "open" => Operation::Open,
            "write" => Operation::Write,
            "read" => Operation::Read,
            "sync" => Operation::Sync,
            "rename" => Operation::Rename,
            "remove" => Operation::Remove,
            "syncdir" => Operation::SyncDir,
            "apply" => Operation::Apply,
            "work" => Operation::Work,
            _ => return None,
        };
        let mut rule = Self::new(operation, action);
        let mut rest = &left[end..];
        while let Some(mark) = rest.chars().next() {
            let body = &rest[1..];
            let end = body.find(['@', ':', '+', '*']).unwrap_or(body.len());
            let value = &body[..end];
            match mark {
                '@' => rule.site = Some(Site::parse(value)?),
                ':' => rule.path = Some(value.to_owned()),
                '+' => rule.skip = value.parse().ok()?,
                _ => rule.times = value.parse().ok()?,
            }
            rest = &body[end..];
        }
        Some(rule)
    }
}

#[derive(Default)]
pub struct FaultPlan {
    rules: Mutex<Vec<(Rule, u64)>>,
}

impl FaultPlan {
    pub fn add(&self, rule: Rule) {
        self.rules.lock().push((rule, 0));
    }

    pub fn clear(&self) {
        self.rules.lock().clear();
    }

    fn verdict(&self, operation: Operation, site: Option<Site>, path: &[u8]) -> Option<Action> {
        let mut rules = self.rules.lock();
        for (rule, seen) in rules.iter_mut() {
            let hit = rule.operation == operation
                && rule.site.is_none_or(|s| Some(s) == site)
                && rule.path.as_ref().is_none_or(|p| path.windows(p.len().max(1)).any(|w| w == p.as_bytes()));
            if hit {
                *seen += 1;
                if *seen > rule.skip && *seen - rule.skip <= rule.times {
                    return Some(rule.action);
                }
            }
        }
        None
    }

    fn check(&self, operation: Operation, site: Option<Site>, path: &str) -> io::Result<bool> {
        self.strike(operation, site, path.as_bytes())
    }

    #[allow(clippy::disallowed_methods, clippy::panic, reason = "slow disks and panics are faults")]
    fn strike(&self, operation: Operation, site: Option<Site>, what: &[u8]) -> io::Result<bool> {
        match self.verdict(operation, site, what) {
            None => Ok(true),
            Some(Action::Skip) => Ok(false),
            Some(Action::Delay(ms)) => {
                std::thread::sleep(std::time::Duration::from_millis(ms));
                Ok(true)
            }
            Some(Action::Fail(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Action::Panic) => panic!("an injected panic"),
            Some(Action::Abort) => std::process::abort(),
        }
    }
}

pub struct FaultyFiles {
    inner: Arc<dyn Files>,
    plan: Arc<FaultPlan>,
}

impl FaultyFiles {
    pub fn new(inner: Arc<dyn Files>, plan: Arc<FaultPlan>) -> Self {
        Self { inner, plan }
    }

    fn wrap(&self, path: &str, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultyFile { inner: file, plan: Arc::clone(&self.plan), path: path.to_owned() })
    }
}

struct FaultyFile {
    inner: Arc<dyn File>,
    plan: Arc<FaultPlan>,
    path: String,
}

impl File for FaultyFile {
    fn write_at(&self, offset: u64, chunks: &[&[u8]]) -> io::Result<()> {
        if self.plan.check(Operation::Write, None, &self.path)? { self.inner.write_at(offset, chunks) } else { Ok(()) }
    }

    fn write_patiently(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let goes_on = self.plan.check(Operation::Write, None, &self.path)?;
        if goes_on { self.inner.write_patiently(offset, bytes) } else { Ok(()) }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.plan.check(Operation::Read, None, &self.path)?;
        self.inner.read_at(offset, buf)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn sync(&self, site: Site) -> io::Result<()> {
        match self.plan.check(Operation::Sync, Some(site), &self.path) {
            Ok(true) => self.inner.sync(site),
            Ok(false) => Ok(()),
            Err(e) => {
                self.inner.lose_dirty();
                Err(e)
            }
        }
    }

    fn map(&self) -> io::Result<Bytes> {
        self.plan.check(Operation::Read, None, &self.path)?;
        self.inner.map()
    }

    fn lose_dirty(&self) {
        self.inner.lose_dirty();
    }
}

impl Files for FaultyFiles {
    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.inner.create_dir(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        self.inner.list(dir)
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn File>> {
        self.plan.check(Operation::Create, None, path)?;
        Ok(self.wrap(path, self.inner.create(path)?))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn File>> {
        self.plan.check(Operation::Open, None, path)?;
        Ok(self.wrap(path, self.inner.open(path)?))
    }

    fn rename(&self, from: &str, to: &str, site: Site) -> io::Result<()> {
        if self.plan.check(Operation::Rename, Some(site), to)? { self.inner.rename(from, to, site) } else { Ok(()) }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        if self.plan.check(Operation::Remove, None, path)? { self.inner.remove(path) } else { Ok(()) }
    }

    fn sync_dir(&self, dir: &str, site: Site) -> io::Result<()> {
        if self.plan.check(Operation::SyncDir, Some(site), dir)? { self.inner.sync_dir(dir, site) } else { Ok(()) }
    }

    fn lock(&self) -> Result<(), LockError> {
        self.inner.lock()
    }

    fn unlock(&self) {
        self.inner.unlock();
    }

    fn boot_id(&self) -> u64 {
        self.inner.boot_id()
    }

    fn root(&self) -> String {
        self.inner.root()
    }

    fn reached(&self, operation: Operation, what: &[u8]) -> io::Result<()> {
        self.plan.strike(operation, None, what).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_parse_and_count() {
        let rule = Rule::parse("sync@GroupSync+2*1=EIO").unwrap();
        assert_eq!((rule.site, rule.skip, rule.times), (Some(Site::GroupSync), 2, 1));
        assert!(Rule::parse("sync@Nowhere=EIO").is_none() && Rule::parse("sync").is_none());
        let plan = FaultPlan::default();
        plan.add(rule);
        let failed: Vec<bool> =
            (0..5).map(|_| plan.check(Operation::Sync, Some(Site::GroupSync), "x").is_err()).collect();
        assert_eq!(failed, [false, false, true, false, false]);
        assert!(plan.check(Operation::Sync, Some(Site::RowsSync), "x").is_ok());
    }
}
