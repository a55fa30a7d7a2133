//! What can go wrong, as one enum: whose fault it is, whether to retry, and what to look at.
//!
//! Errors are `Clone`, because one failure (a poisoned log) answers many callers. `code()` is the stable name that the error
//! table (`docs/reference/errors.md`) maps to Python exceptions.

use std::io;
use std::sync::Arc;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{message}")]
    InvalidArgument { field: &'static str, index: Option<usize>, message: String },
    #[error("{what} not found")]
    NotFound { what: String },
    #[error("{what} already exists: {message}")]
    AlreadyExists { what: String, message: String },
    #[error("{message}")]
    TooLarge { field: &'static str, index: Option<usize>, message: String },
    #[error("overloaded: {reason}; try again in {retry_after_ms} ms")]
    Overloaded { retry_after_ms: u64, level: &'static str, reason: String },
    #[error("the space's quota is {quota} {what}, and it holds {used}; forget some, or raise the quota")]
    QuotaExceeded { what: &'static str, quota: u64, used: u64 },
    #[error("a gap in the session: the next sequence is {expected}; go on from there")]
    SequenceGap { expected: u64 },
    #[error("sequence {sequence} was committed with another content; number each observation once")]
    SequenceConflict { sequence: u64 },
    #[error("the session is gone: {reason}; open a new one")]
    SessionExpired { reason: String },
    #[error("another speaker has attached to the session, or it was given up; attach again to go on")]
    Fenced,
    #[error("the session is paused; resume it, or wait until it is")]
    Paused,
    #[error(
        "observations that were acknowledged are lost: the session is committed up to sequence {committed}; send again from there"
    )]
    DataLoss { committed: u64 },
    #[error("the snapshot expired: {reason}; take a new one")]
    SnapshotExpired { reason: String },
    #[error("disk full: {message}; free some space, writing resumes by itself")]
    DiskFull { message: String },
    #[error("{path}: {what} is of version {found}, this build reads {supported}; use a newer engram")]
    UnsupportedVersion { path: String, what: String, found: u64, supported: u64 },
    #[error("corrupted: {path} at byte {offset}: {reason}; run `engram verify`")]
    Corrupted { path: String, offset: u64, reason: String },
    #[error("writes to this partition stopped: {cause}; reads go on, reopen the engine to recover")]
    Poisoned { cause: String },
    #[error("the observation could not be applied and is kept aside: {reason}; look at `quarantined()`")]
    Quarantined { reason: String },
    #[error("{what} is closed")]
    Closed { what: String },
    #[error("the directory is in use by process {pid}")]
    Locked { pid: u32 },
    #[error("{what} timed out")]
    Timeout { what: String },
    #[error("interrupted while waiting; whether it was done is not known")]
    Interrupted,
    #[error("{path}: permission denied: {message}")]
    PermissionDenied { path: String, message: String },
    #[error("{path}: {message}")]
    Storage { path: String, errno: i32, message: Arc<str> },
}

impl Error {
    pub(crate) fn invalid(field: &'static str, message: String) -> Self {
        Self::InvalidArgument { field, index: None, message }
    }

    pub(crate) fn corrupted(path: impl Into<String>, offset: u64, reason: impl Into<String>) -> Self {
        Self::Corrupted { path: path.into(), offset, reason: reason.into() }
    }

    /// An I/O error at `path`, told apart by what its cause asks of the user.
    pub(crate) fn io(path: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { message: format!("{path}: {error}") }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::PermissionDenied { path: path.to_owned(), message: error.to_string() }
            }
            _ => Self::Storage {
                path: path.to_owned(),
                errno: error.raw_os_error().unwrap_or(0),
                message: error.to_string().into(),
            },
        }
    }

    /// The stable name of the kind.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "INVALID_ARGUMENT",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::AlreadyExists { .. } => "ALREADY_EXISTS",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::QuotaExceeded { .. } => "QUOTA_EXCEEDED",
            Self::SequenceGap { .. } => "SEQUENCE_GAP",
            Self::SequenceConflict { .. } => "SEQUENCE_CONFLICT",
            Self::SessionExpired { .. } => "SESSION_EXPIRED",
            Self::Fenced => "FENCED",
            Self::Paused => "PAUSED",
            Self::DataLoss { .. } => "DATA_LOSS",
            Self::SnapshotExpired { .. } => "SNAPSHOT_EXPIRED",
            Self::DiskFull { .. } => "DISK_FULL",
            Self::UnsupportedVersion { .. } => "UNSUPPORTED_VERSION",
            Self::Corrupted { .. } => "CORRUPTED",
            Self::Poisoned { .. } => "POISONED",
            Self::Quarantined { .. } => "QUARANTINED",
            Self::Closed { .. } => "CLOSED",
            Self::Locked { .. } => "LOCKED",
            Self::Timeout { .. } => "TIMEOUT",
            Self::Interrupted => "INTERRUPTED",
            Self::PermissionDenied { .. } => "PERMISSION_DENIED",
            Self::Storage { .. } => "STORAGE",
        }
    }

    /// Whether the cause is a full disk.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }

    /// Adds the index of the item at fault.
    pub(crate) fn at(mut self, item: usize) -> Self {
        if let Self::InvalidArgument { index, .. } | Self::TooLarge { index, .. } = &mut self {
            *index = Some(item);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_errors_are_told_apart() {
        let code = |errno| Error::io("x", &io::Error::from_raw_os_error(errno)).code();
        assert_eq!(code(28), "DISK_FULL");
        assert_eq!(code(13), "PERMISSION_DENIED");
        assert_eq!(code(30), "PERMISSION_DENIED");
        assert_eq!(code(5), "STORAGE");
    }
}
