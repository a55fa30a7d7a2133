//! Figures and reports as dicts, and the calls that look at a directory without opening it.

use std::path::{Path, PathBuf};

use engram_core::engine::{self, Damage, EngineStats, SpaceStats};
use engram_core::env::Env;
use engram_core::error::Error;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::{OrRaise, to_py};

pub(crate) fn engine_stats(py: Python<'_>, s: EngineStats) -> PyResult<Bound<'_, PyDict>> {
    let d = PyDict::new(py);
    for (name, value) in [
        ("spaces", s.spaces),
        ("observed", s.observed),
        ("quarantined", s.quarantined),
        ("quarantine_unkept", s.quarantine_unkept),
        ("worker_restarts", s.worker_restarts),
        ("takeovers", s.takeovers),
        ("queue_bytes", s.queue_bytes),
        ("unsealed_bytes", s.unsealed_bytes),
        ("log_bytes", s.log_bytes),
        ("sealed_bytes", s.sealed_bytes),
        ("merged_bytes", s.merged_bytes),
        ("checkpoint_bytes", s.checkpoint_bytes),
        ("segment_fill_bytes", s.segment_fill_bytes),
        ("seals", s.seals),
        ("scrubbed_blocks", s.scrubbed_blocks),
        ("maintenance_failures", s.maintenance_failures),
    ] {
        d.set_item(name, value)?;
    }
    d.set_item("level", s.level)?;
    d.set_item("maintenance_error", s.maintenance_error)?;
    let partitions = PyList::empty(py);
    for p in s.partitions {
        let one = PyDict::new(py);
        for (name, value) in [
            ("spaces", p.spaces),
            ("log_end", p.log_end),
            ("log_synced", p.log_synced),
            ("segment", p.segment),
            ("checkpoint", p.checkpoint),
            ("checkpoint_offset", p.checkpoint_offset),
        ] {
            one.set_item(name, value)?;
        }
        one.set_item("poisoned", p.poisoned)?;
        partitions.append(one)?;
    }
    d.set_item("partitions", partitions)?;
    Ok(d)
}

pub(crate) fn space_stats(py: Python<'_>, s: SpaceStats) -> PyResult<Bound<'_, PyDict>> {
    let d = PyDict::new(py);
    for (name, value) in [
        ("memories", s.memories),
        ("keys", s.keys),
        ("generation", s.generation),
        ("incarnation", s.incarnation),
        ("queue_observations", s.queue_observations),
        ("queue_bytes", s.queue_bytes),
        ("unsealed_bytes", s.unsealed_bytes),
        ("sealed_bytes", s.sealed_bytes),
        ("absorbed_generation", s.absorbed_generation),
        ("index_rows", s.index_rows),
        ("index_linked", s.index_linked),
        ("index_imaged", s.index_imaged),
        ("index_rebuilt", s.index_rebuilt),
        ("sealed_rows", s.sealed_rows),
        ("history_rows", s.history_rows),
        ("sealed_parts", s.sealed_parts),
        ("purging", s.purging),
        ("tail_parts", s.tail_parts),
        ("snapshots", s.snapshots),
        ("recalls", s.recalls),
        ("advised_batch", s.advised_batch),
    ] {
        d.set_item(name, value)?;
    }
    d.set_item("quota_memories", s.quota.memories)?;
    d.set_item("quota_bytes", s.quota.bytes)?;
    d.set_item("level", s.level)?;
    d.set_item("pressure", s.pressure)?;
    d.set_item("drain_rate", s.drain_rate)?;
    d.set_item("degraded", s.degraded)?;
    Ok(d)
}

pub(crate) fn directory(path: &Path) -> PyResult<Env> {
    Env::real(path).map_err(|e| {
        let path = path.display().to_string();
        let message = e.to_string();
        to_py(&match e.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                Error::PermissionDenied { path, message }
            }
            _ => Error::Storage { path, errno: e.raw_os_error().unwrap_or(0), message: message.into() },
        })
    })
}

pub(crate) fn damage_out<'py>(py: Python<'py>, all: &[Damage]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for damage in all {
        let d = PyDict::new(py);
        d.set_item("path", &damage.path)?;
        d.set_item("offset", damage.offset)?;
        d.set_item("reason", &damage.reason)?;
        d.set_item("space", &damage.space)?;
        d.set_item("lost", damage.lost)?;
        list.append(d)?;
    }
    Ok(list)
}

fn existing(path: &Path) -> PyResult<Env> {
    if path.is_dir() {
        return directory(path);
    }
    Err(to_py(&Error::NotFound { what: format!("the directory {}", path.display()) }))
}

/// Checks every checksum of a directory no process has open.
#[pyfunction]
pub(crate) fn verify(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let env = existing(&path)?;
    let verdict = py.detach(|| engine::verify(&env)).or_raise()?;
    let d = PyDict::new(py);
    d.set_item("damage", damage_out(py, &verdict.damage)?)?;
    d.set_item("torn_bytes", verdict.torn_bytes)?;
    d.set_item("spaces", verdict.spaces)?;
    d.set_item("memories", verdict.memories)?;
    d.set_item("files", verdict.files)?;
    d.set_item("bytes", verdict.bytes)?;
    d.set_item("leftovers", verdict.leftovers)?;
    Ok(d)
}

/// Says what is where in a directory no process has open.
#[pyfunction]
pub(crate) fn inspect(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let env = existing(&path)?;
    let seen = py.detach(|| engine::inspect(&env)).or_raise()?;
    let d = PyDict::new(py);
    d.set_item("directory_id", seen.directory_id)?;
    d.set_item("partitions", seen.partitions)?;
    d.set_item("created", seen.created)?;
    d.set_item("lines", seen.lines)?;
    Ok(d)
}
