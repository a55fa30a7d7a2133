//! Looking at a directory without changing it: every checksum (`verify`), or what is where (`inspect`).

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::core::Core;
use super::maintenance::rows_path;
use super::open::{Damage, read_catalogue, take_lock};
use super::recovery::{Careful, PartitionState, Replayed, read_partition};
use crate::env::{Env, Files};
use crate::error::Error;
use crate::queue::Pool;
use crate::records::{Row, SealedFile, TIME_ABSENT};
use crate::store::{Scope, Space, Tools, View};
use crate::types::codec::Seed;
use crate::types::{Config, Durability, Generation, PartitionId};
use crate::wal::{MANIFEST_PATH, Manifest, Spare, recover};

/// What `verify` found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub damage: Vec<Damage>,
    pub torn_bytes: u64,
    pub spaces: u64,
    pub memories: u64,
    pub files: u64,
    pub bytes: u64,
    pub leftovers: Vec<String>,
}

/// What `inspect` found: a line a thing.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    pub directory_id: String,
    pub partitions: u32,
    pub created: i64,
    /// Kind, name, and what there is to say.
    pub lines: Vec<(String, String, String)>,
}

struct Read {
    manifest: Manifest,
    seed: Seed,
    partitions: Vec<PartitionState>,
    catalogue_torn: u64,
    catalogue_spares: Vec<Spare>,
}

fn read(env: &Env) -> Result<Read, Error> {
    let missing = || Error::NotFound { what: format!("an engram directory at {}", env.files.root()) };
    let manifest = Manifest::read(env)?.ok_or_else(missing)?;
    let seed = Seed::new(&manifest.id);
    let (known, recovered) = read_catalogue(&*env.files, seed)?;
    let each = |i| read_partition(&*env.files, seed, PartitionId(i), &known, Careful::Looking);
    let partitions = (0..manifest.partitions).map(each).collect::<Result<_, _>>()?;
    Ok(Read { manifest, seed, partitions, catalogue_torn: recovered.torn_bytes, catalogue_spares: recovered.spares })
}

/// Checks every checksum of a directory that no process has open. Changes nothing.
pub fn verify(env: &Env) -> Result<Verdict, Error> {
    take_lock(env)?;
    let verdict = verify_locked(env);
    env.files.unlock();
    verdict
}

fn verify_locked(env: &Env) -> Result<Verdict, Error> {
    let mut verdict = Verdict::default();
    let read = match read(env) {
        Ok(read) => read,
        Err(error @ Error::Corrupted { .. }) => {
            verdict.damage.push(Damage::of(&error, None, None));
            return Ok(verdict);
        }
        Err(error) => return Err(error),
    };
    verdict.torn_bytes = read.catalogue_torn;
    check_spares(&*env.files, &read.catalogue_spares, &mut verdict);
    for partition in &read.partitions {
        verdict.damage.extend(partition.damage.iter().cloned());
        verdict.torn_bytes += partition.log.torn_bytes;
        verdict.leftovers.extend(partition.leftovers.iter().cloned());
        verdict.leftovers.extend(partition.log.leftovers.iter().map(|s| s.path.clone()));
        check_spares(&*env.files, &partition.log.spares, &mut verdict);
        check_rows(&*env.files, read.seed, partition, &mut verdict);
        check_older_log(&*env.files, read.seed, partition, &mut verdict)?;
        verdict.files += partition.log.segments.len() as u64;
    }
    let (config, writing) = (Config::default(), false.into());
    for partition in read.partitions {
        let tools = Tools {
            files: &*env.files,
            seed: read.seed,
            dir: &partition.dir,
            config: &config,
            now: 0,
            writes: false,
            writing: &writing,
        };
        for space in partition.spaces.into_values().map(seated) {
            verdict.spaces += 1;
            verdict.memories += space.view().memories();
            // An index is derived: whatever is wrong with its image, it will be made again. Rows that cannot be read are reported already.
            if let Err(error) = space.verify_image(&tools)
                && space.view().first_damage().is_none()
            {
                verdict.damage.push(Damage::of(&error, Some(&space.options.name), None));
            }
        }
    }
    Ok(verdict)
}

fn seated(seat: Replayed) -> Space {
    let pool = Arc::new(Pool::new(u64::MAX));
    seat.into_space(Durability::Sync, &Config::default(), &pool, 0)
}

fn check_rows(files: &dyn Files, seed: Seed, partition: &PartitionState, verdict: &mut Verdict) {
    for entry in partition.kept.current.iter().chain(&partition.kept.previous).flat_map(|c| &c.files) {
        let path = rows_path(&partition.dir, entry.id);
        let expected = Some((entry.bytes, entry.header_checksum));
        let opened = SealedFile::open(files, &path, seed, partition.id, entry.id, expected);
        let errors = match opened {
            Ok(file) => {
                verdict.files += 1;
                verdict.bytes += file.len();
                file.verify()
            }
            Err(error) => vec![error],
        };
        for error in errors {
            let damage = Damage::of(&error, None, None);
            if !verdict.damage.iter().any(|d| d.path == damage.path && d.offset == damage.offset) {
                verdict.damage.push(damage);
            }
        }
    }
}

/// What only the older checkpoint would replay.
fn check_older_log(
    files: &dyn Files,
    seed: Seed,
    partition: &PartitionState,
    verdict: &mut Verdict,
) -> Result<(), Error> {
    let from = partition.kept.oldest_position();
    let from = (from.segment > 0).then_some(from);
    let log = recover(files, &format!("{}/log", partition.dir), seed, partition.id, from, &mut |_| Ok(()))?;
    let reached = partition.kept.current.as_ref().map_or(0, |c| c.position.offset);
    if log.end.offset < reached && log.damage.is_empty() {
        let (path, h) = log.segments.iter().rfind(|(_, h)| h.base <= log.end.offset).ok_or_else(|| {
            Error::corrupted(format!("{}/log", partition.dir), 0, "the segments of the older checkpoint are missing")
        })?;
        let reason = format!("log groups end at {}, a checkpoint says they reached {reached}", log.end.offset);
        let error = Error::corrupted(path, 512 + log.end.offset - h.base, reason);
        verdict.damage.push(Damage::of(&error, None, None));
    }
    for d in log.damage {
        if !verdict.damage.iter().any(|known| known.path == d.path && known.offset == d.file_offset) {
            let error = Error::corrupted(&d.path, d.file_offset, d.reason);
            verdict.damage.push(Damage::of(&error, None, None));
        }
    }
    Ok(())
}

/// A spare must hold nothing but zeros: it will be written as if it did.
fn check_spares(files: &dyn Files, spares: &[Spare], verdict: &mut Verdict) {
    for spare in spares {
        verdict.files += 1;
        let zero = files.read(&spare.path).map(|bytes| bytes.iter().position(|b| *b != 0));
        if let Ok(Some(at)) = zero {
            let error = Error::corrupted(&spare.path, at as u64, "a spare segment is not all zeros");
            verdict.damage.push(Damage::of(&error, None, None));
        }
    }
}

/// What is where in a directory that no process has open. Changes nothing.
pub fn inspect(env: &Env) -> Result<Inspection, Error> {
    take_lock(env)?;
    let result = read(env).map(inspection);
    env.files.unlock();
    result
}

fn inspection(read: Read) -> Inspection {
    let mut out = Inspection {
        directory_id: read.manifest.id.iter().map(|b| format!("{b:02x}")).collect(),
        partitions: read.manifest.partitions,
        created: read.manifest.created,
        lines: Vec::new(),
    };
    let mut line = |kind: &str, name: &str, text: String| out.lines.push((kind.to_owned(), name.to_owned(), text));
    line("file", MANIFEST_PATH, "identity".to_owned());
    for p in read.partitions {
        let log = &p.log;
        line("partition", &p.dir, format!("log ends at {}, proven {}", log.end.offset, log.proven.offset));
        let from = p.kept.oldest_position();
        for (i, (path, h)) in log.segments.iter().enumerate() {
            let pred = h.predecessor;
            if h.number >= from.segment {
                // The older checkpoint may need it; the header always counts.
                let begin = 512 + from.offset.saturating_sub(h.base);
                let named = log.segments.get(i + 1).map_or(log.end.offset, |(_, next)| next.predecessor.offset);
                line("needed", path, format!("{begin} {}", 512 + named.saturating_sub(h.base)));
            }
            line(
                "segment",
                path,
                format!("number {} epoch {} base {} after {}@{}", h.number, h.epoch, h.base, pred.segment, pred.offset),
            );
        }
        for c in p.kept.current.iter().chain(&p.kept.previous) {
            line(
                "checkpoint",
                &format!("{}/checkpoint-{:010}", p.dir, c.number),
                format!("at {}, {} files, {} spaces", c.position.offset, c.files.len(), c.spaces.len()),
            );
        }
        for f in p.kept.current.iter().flat_map(|c| &c.files) {
            let kind = if f.shared { "shared" } else { "own" };
            line("rows", &rows_path(&p.dir, f.id), format!("{} bytes, tier {}, {kind}", f.bytes, f.tier));
        }
        for s in p.spaces.into_values() {
            let (o, last) = (s.options.clone(), s.last);
            line(
                "space",
                &o.name,
                format!(
                    "id {} dim {} {} memories {} generation {}",
                    o.id,
                    o.dim,
                    o.metric.name(),
                    seated(s).view().memories(),
                    last
                ),
            );
        }
    }
    out
}

impl Core {
    /// A hash of all that apply made (D6): equal histories have equal hashes, however they were replayed or sealed.
    pub fn state_hash(&self) -> Result<u64, Error> {
        let mut all = self.spaces.all();
        all.sort_by_key(|s| s.options.id);
        let mut h = Xxh3::new();
        for space in all {
            h.update(space.options.name.as_bytes());
            let view: Arc<View> = space.view();
            h.update(&view.watermark().0.to_le_bytes());
            h.update(&space.state().incarnation.to_le_bytes());
            for session in space.sessions.all() {
                let section = session.section();
                for v in [session.id.0, section.epoch, section.window.committed()] {
                    h.update(&v.to_le_bytes());
                }
            }
            for q in space.quarantined().iter() {
                for v in [q.first.0, q.count, q.at.cast_unsigned()] {
                    h.update(&v.to_le_bytes());
                }
            }
            let scope = Scope { upto: view.watermark(), filter: None, pulse: &|| Ok(()) };
            view.list(Generation(0), scope, |row| {
                hash_row(&mut h, &row);
                true
            })?;
        }
        Ok(h.digest())
    }
}

fn hash_row(h: &mut Xxh3, row: &Row<'_>) {
    h.update(&row.generation.0.to_le_bytes());
    h.update(&row.committed_at.to_le_bytes());
    h.update(&row.observed_at.unwrap_or(TIME_ABSENT).to_le_bytes());
    h.update(&row.confidence.to_bits().to_le_bytes());
    h.update(&row.inverse_norm.to_bits().to_le_bytes());
    h.update(&row.hash.to_le_bytes());
    for bytes in [row.text.map(str::as_bytes), Some(row.metadata), row.key.map(str::as_bytes), row.vector] {
        h.update(&bytes.map_or(u64::MAX, |b| b.len() as u64).to_le_bytes());
        h.update(bytes.unwrap_or(&[]));
    }
}
