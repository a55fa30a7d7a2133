//! Opening a directory: lock, identity, catalogue, partitions; then, and only then, spaces are published (D12).
//!
//! A crash at any point of this, any number of times, ends the same: what is read is not changed, what is written is new files under
//! temporary names. Stray files never stop a start; they are removed only where nothing is damaged (D9).

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::catalogue::{Catalogue, CatalogueState, Known};
use super::core::{Core, Partition, Written};
use super::ingest::Writer;
use super::levels::Listeners;
use super::maintenance::Maintenance;
use super::recovery::{Careful, PartitionState, end_note, read_partition};
use crate::env::{Env, Files, LockError, Port, Scheduler, Task};
use crate::error::Error;
use crate::index::scan_picos;
use crate::queue::{Completions, Pool, Turn};
use crate::store::{Delta, Spaces};
use crate::types::codec::Seed;
use crate::types::{Config, Durability, Generation, LogPosition, PartitionId};
use crate::wal::{
    LogWriter, Manifest, NewSegment, Record, Recovered, Said, Spare, Supply, VoidRecord, keep_aside, recover, restamp,
};

/// Generations a renewed incarnation burns (D11).
pub(super) const RENEWAL: u64 = 1 << 32;

/// The catalogue's log is small.
const CATALOGUE_SEGMENT: u64 = 256 << 10;

/// Something on the disk that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub path: String,
    pub offset: u64,
    pub reason: String,
    pub space: Option<String>,
    /// Generations that cannot be read, first and last.
    pub lost: Option<(u64, u64)>,
}

impl Damage {
    pub(super) fn of(error: &Error, space: Option<&str>, lost: Option<(Generation, Generation)>) -> Self {
        let (path, offset, reason) = match error {
            Error::Corrupted { path, offset, reason } => (path.clone(), *offset, reason.clone()),
            other => (String::new(), 0, other.to_string()),
        };
        Self { path, offset, reason, space: space.map(str::to_owned), lost: lost.map(|(a, b)| (a.0, b.0)) }
    }
}

/// What a start found.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    pub created: bool,
    pub damage: Vec<Damage>,
    /// Bytes behind the end of a log that a crash left half-written; nobody had been told of them.
    pub torn_bytes: u64,
    pub groups_replayed: u64,
    /// Spaces whose history may have lost acknowledged rows of a weaker mode (D11).
    pub renewed: Vec<String>,
    /// Spaces of which something could not be applied by this start (O7).
    pub quarantined: Vec<String>,
    pub strays: u64,
    pub nanos: u64,
}

pub(super) fn take_lock(env: &Env) -> Result<(), Error> {
    env.files.lock().map_err(|e| match e {
        LockError::Held(pid) => Error::Locked { pid },
        LockError::Io(e) => Error::io(&env.files.root(), &e),
    })
}

impl Core {
    /// Opens or makes the directory of `env`. Nothing runs yet: the caller drives the steps.
    pub fn open(env: Env, config: Config, scheduler: Arc<dyn Scheduler>) -> Result<Arc<Self>, Error> {
        config.check()?;
        let scan_picos = if config.scan_picos > 0 { config.scan_picos } else { scan_picos(&*env.clock) };
        let config = Config { scan_picos, ..config };
        take_lock(&env)?;
        let files = Arc::clone(&env.files);
        Self::open_locked(env, config, scheduler).inspect_err(|_| files.unlock())
    }

    fn open_locked(env: Env, config: Config, scheduler: Arc<dyn Scheduler>) -> Result<Arc<Self>, Error> {
        let begun = env.clock.monotonic_nanos();
        let mut report = OpenReport::default();
        let manifest = match Manifest::read(&env)? {
            Some(manifest) => manifest,
            None => {
                report.created = true;
                Manifest::create(&env, &config)?
            }
        };
        let seed = Seed::new(&manifest.id);
        let mut opener = Opener { env: &env, config: &config, scheduler: &scheduler, seed, report };
        let (known, recovered) = read_catalogue(&*env.files, seed)?;
        let process_unsealed = Arc::new(Pool::new(config.unsealed_process_bytes_max));
        let spaces = Spaces::default();
        let mut partitions = Vec::new();
        for i in 0..manifest.partitions {
            let state = read_partition(&*env.files, seed, PartitionId(i), &known, Careful::Starting)?;
            partitions.push(opener.partition(state, &spaces, &process_unsealed)?);
        }
        let catalogue = opener.catalogue(recovered, known, partitions.len())?;
        opener.report.nanos = env.clock.monotonic_nanos() - begun;
        let report = opener.report;
        let port = Arc::new(Port::new(Arc::clone(&env.files), Arc::clone(&scheduler), Task::Io(partitions.len() + 1)));
        Ok(Arc::new(Self {
            process_queue: Pool::new(config.queue_process_bytes_max),
            process_unsealed,
            wants_room: false.into(),
            writing: false.into(),
            unabsorbed: Default::default(),
            seed,
            directory_id: manifest.id,
            key: manifest.key,
            spaces,
            partitions,
            catalogue,
            maintenance: Mutex::new(Maintenance::default()),
            maintenance_port: port,
            written: Written::default(),
            report,
            completions: Arc::new(Completions::default()),
            answered: Completions::default(),
            listeners: Listeners::default(),
            dropped: crossbeam::queue::SegQueue::new(),
            closing: false.into(),
            observed: AtomicU64::new(0),
            worker_restarts: AtomicU64::new(0),
            takeovers: AtomicU64::new(0),
            quarantined: AtomicU64::new(0),
            quarantine_unkept: AtomicU64::new(0),
            scheduler,
            config,
            env,
        }))
    }
}

/// Replays the catalogue. Without it nothing is known: damage is an error.
pub(super) fn read_catalogue(files: &dyn Files, seed: Seed) -> Result<(Known, Recovered), Error> {
    let mut known = Known::default();
    let recovered = recover(files, "catalogue/log", seed, PartitionId::CATALOGUE, None, &mut |group| {
        for record in Record::all(group.body(), &group.path)? {
            known.apply(&record);
        }
        Ok(())
    })?;
    match recovered.damage.first() {
        Some(d) => Err(Error::corrupted(&d.path, d.file_offset, format!("the catalogue of spaces: {}", d.reason))),
        None => Ok((known, recovered)),
    }
}

struct Opener<'a> {
    env: &'a Env,
    config: &'a Config,
    scheduler: &'a Arc<dyn Scheduler>,
    seed: Seed,
    report: OpenReport,
}

impl Opener<'_> {
    fn port(&self, task: Task) -> Arc<Port> {
        Arc::new(Port::new(Arc::clone(&self.env.files), Arc::clone(self.scheduler), task))
    }

    /// Writes the unproven tail again and prepares the log for this run.
    fn log(
        &self,
        id: PartitionId,
        dir: &str,
        recovered: &mut Recovered,
        extra: (&[u8], u32),
        port: &Arc<Port>,
    ) -> Result<(LogWriter, Arc<Supply>, Vec<LogPosition>), Error> {
        let files = &*self.env.files;
        recovered.forget_closing_tail();
        let (mut first, mut max) = (self.config.segment_bytes_first, self.config.segment_bytes_max);
        if id == PartitionId::CATALOGUE {
            (first, max) = (first.min(CATALOGUE_SEGMENT), first);
        }
        let now = self.env.clock.wall_micros();
        let spare = recovered.spares.iter().max_by_key(|s| s.bytes).cloned();
        let durability = self.config.durability;
        let (mut start, used): (NewSegment, bool) =
            restamp(files, dir, self.seed, id, durability, recovered, extra, now, spare.as_ref(), first)
                .map_err(|e| Error::io(dir, &e))?;
        if used {
            recovered.spares.retain(|s| Some(s) != spare.as_ref());
        }
        let largest = recovered.segments.iter().map(|(_, h)| h.bytes).max().unwrap_or(0);
        let spares = std::mem::take(&mut recovered.spares);
        let supply = Arc::new(Supply::new(dir.to_owned(), first, max, spares, largest / 2));
        let moved = std::mem::take(&mut start.moved);
        let boot = files.boot_id();
        let log = LogWriter::new(
            Arc::clone(port),
            Arc::clone(&supply),
            dir.to_owned(),
            self.seed,
            id,
            boot,
            durability,
            start,
        );
        Ok((log, supply, moved))
    }

    fn catalogue(&mut self, mut recovered: Recovered, known: Known, index: usize) -> Result<Catalogue, Error> {
        let port = self.port(Task::Io(index));
        let id = PartitionId::CATALOGUE;
        let (log, supply, _) = self.log(id, "catalogue/log", &mut recovered, (&[], 0), &port)?;
        self.free(&supply, &recovered.leftovers);
        supply.activate();
        self.report.torn_bytes += recovered.torn_bytes;
        let state = Mutex::new(CatalogueState::new(log, known));
        Ok(Catalogue { port, supply, queue: crossbeam::queue::SegQueue::new(), state })
    }

    fn partition(
        &mut self,
        mut state: PartitionState,
        spaces: &Spaces,
        process_unsealed: &Arc<Pool>,
    ) -> Result<Partition, Error> {
        let index = state.id.0 as usize;
        let port = self.port(Task::Io(index));
        self.quarantine(&state);
        let (mut body, mut count) = (Vec::new(), 0);
        for record in &state.caught {
            record.encode(&mut body);
            count += 1;
            self.report.quarantined.extend(state.spaces.get(&record.space).map(|s| s.options.name.clone()));
        }
        self.renewals(&mut state, &mut body, &mut count);
        let log_dir = format!("{}/log", state.dir);
        let (log, supply, moved) = self.log(state.id, &log_dir, &mut state.log, (&body, count), &port)?;
        if state.noted {
            end_note(&*self.env.files, &state.dir)?;
        }
        let tail = !state.log.tail.is_empty() || count > 0;
        if !state.kept.damaged {
            self.free(&supply, &state.log.leftovers);
            for path in &state.leftovers {
                let _ = self.env.files.remove(path);
            }
        }
        self.report.strays += (state.leftovers.len() + state.log.leftovers.len()) as u64;
        self.report.torn_bytes += state.log.torn_bytes;
        self.report.groups_replayed += state.log.groups;
        self.report.damage.append(&mut state.damage);
        if !state.spaces.is_empty() {
            supply.activate();
        }
        let last_durability = self.config.durability;
        for mut seat in std::mem::take(&mut state.spaces).into_values() {
            move_positions(&mut seat.delta, &moved);
            let durability = seat.options.durability.unwrap_or(last_durability);
            let now = self.env.clock.monotonic_nanos();
            spaces.insert(Arc::new(seat.into_space(durability, self.config, process_unsealed, now)));
        }
        let after_unclean = state.log.last_run.is_some() && !state.ended_clean;
        let partition = Partition {
            id: state.id,
            index,
            dir: state.dir,
            port,
            supply,
            writer: Turn::new(Writer::new(log, !tail, !tail && state.ended_closed, after_unclean)),
            ready: crossbeam::queue::SegQueue::new(),
            controls: crossbeam::queue::SegQueue::new(),
            sync_wanted: false.into(),
            poisoned: OnceLock::new(),
            kept: Mutex::new(state.kept),
        };
        if state.poisoned {
            // The new epoch is on the disk: the note has done its work.
            let _ = self.env.files.remove(&format!("{}/poisoned", partition.dir));
        }
        Ok(partition)
    }

    /// Void records for spaces whose weaker acknowledgements the last end may not have spared (D11).
    fn renewals(&mut self, state: &mut PartitionState, body: &mut Vec<u8>, count: &mut u32) {
        let Some((boot, default)) = state.log.last_run else { return };
        let rebooted = boot != self.env.files.boot_id();
        for seat in state.spaces.values_mut() {
            let lost = match seat.options.durability.unwrap_or(default) {
                Durability::Sync => false,
                Durability::Os => state.poisoned || (rebooted && !state.ended_clean),
                Durability::Memory => state.poisoned || !state.ended_clean,
            };
            // A degraded space takes no more writes: there is nothing to tell apart.
            if !lost || seat.state.degraded.is_some() {
                continue;
            }
            let first_generation = seat.last.plus(1);
            let incarnation = self.env.random.next_u64();
            let void = VoidRecord {
                space: seat.options.id,
                first_generation,
                count: RENEWAL,
                incarnation,
                said: Said::default(),
            };
            void.encode(body);
            *count += 1;
            let last = Generation(seat.last.0 + RENEWAL);
            seat.delta.ranges.push((first_generation, last));
            seat.delta.incarnation = Some(incarnation);
            seat.last = last;
            self.report.renewed.push(seat.options.name.clone());
        }
    }

    fn free(&self, supply: &Supply, leftovers: &[Spare]) {
        for spare in leftovers {
            supply.free(spare.path.clone(), spare.bytes);
        }
    }

    /// Copies damaged files aside, for people. Failing to must not stop a start.
    fn quarantine(&self, state: &PartitionState) {
        let files = &*self.env.files;
        let mut paths: Vec<&str> = state.damage.iter().map(|d| d.path.as_str()).collect();
        paths.sort_unstable();
        paths.dedup();
        for path in paths.into_iter().filter(|p| p.starts_with(&state.dir)) {
            let copy = format!("quarantine/{}", path.replace('/', "-"));
            let known = files.list("quarantine").is_ok_and(|all| all.iter().any(|e| copy.ends_with(&e.name)));
            if known {
                continue;
            }
            let _ = files.read(path).and_then(|bytes| keep_aside(files, &copy, &bytes));
        }
    }
}

/// Rows of groups that were written again stand before the new groups: a checkpoint must never point into the old ones.
fn move_positions(delta: &mut Delta, moved: &[LogPosition]) {
    for part in &mut delta.parts {
        if let Ok(at) = moved.binary_search_by_key(&part.position.offset, |p| p.offset) {
            part.position = moved[at];
        }
    }
}
