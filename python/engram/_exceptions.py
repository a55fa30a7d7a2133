"""Errors: whose fault it is, whether to retry, and what to look at.

The tree::

    EngramError
    ├── InvalidArgument(ValueError)       field, index
    │   └── TooLarge                      field, index
    ├── NotFound(KeyError)
    ├── AlreadyExists(ValueError)
    ├── Overloaded(RuntimeError)          retry_after_ms, level
    ├── QuotaExceeded(RuntimeError)       what, quota, used
    ├── SnapshotExpired(RuntimeError)
    ├── SequenceGap(RuntimeError)         expected
    ├── SequenceConflict(ValueError)      sequence
    ├── SessionExpired(RuntimeError)
    ├── Fenced(RuntimeError)
    ├── Paused(RuntimeError)
    ├── DataLoss(RuntimeError)            committed
    ├── StorageError(OSError)             path, errno
    │   ├── DiskFull
    │   └── PermissionDenied(PermissionError)
    ├── UnsupportedVersion(RuntimeError)  path, found, supported
    ├── Corrupted(RuntimeError)           path, offset, reason
    ├── Poisoned(RuntimeError)            cause
    ├── Quarantined(RuntimeError)         reason
    ├── Closed(RuntimeError)
    ├── Unavailable(ConnectionError)
    ├── Locked(RuntimeError)              pid
    ├── Timeout(TimeoutError)
    └── Interrupted(KeyboardInterrupt)
"""

from __future__ import annotations

import errno as _errno
from typing import Any

__all__ = [
    "AlreadyExists",
    "Closed",
    "Corrupted",
    "DataLoss",
    "DiskFull",
    "EngramError",
    "Fenced",
    "Interrupted",
    "InvalidArgument",
    "Locked",
    "NotFound",
    "Overloaded",
    "Paused",
    "PermissionDenied",
    "Poisoned",
    "Quarantined",
    "QuotaExceeded",
    "SequenceConflict",
    "SequenceGap",
    "SessionExpired",
    "SnapshotExpired",
    "StorageError",
    "Timeout",
    "TooLarge",
    "Unavailable",
    "UnsupportedVersion",
]


class EngramError(Exception):
    """The root of everything engram raises.

    Attributes
    ----------
    code : str
        The stable name of the kind, a key of `TABLE`.
    """

    @property
    def code(self) -> str:
        """The stable name of the kind."""
        return next((code for code, kind in TABLE.items() if kind is type(self)), "ENGRAM")

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        for name, value in fields.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        """Return the message alone, whatever the built-in base would add."""
        return self.message


class InvalidArgument(EngramError, ValueError):
    """The caller's fault: nothing was consumed; do not retry unchanged."""

    field: str
    index: int | None


class TooLarge(InvalidArgument):
    """Over a limit: never "retry later"; send less at once."""


class NotFound(EngramError, KeyError):
    """No such space, directory or memory."""


class AlreadyExists(EngramError, ValueError):
    """A space of that name exists with other properties."""


class Overloaded(EngramError, RuntimeError):
    """No room in time: nothing was consumed; retry after `retry_after_ms`."""

    retry_after_ms: int
    level: str


class QuotaExceeded(EngramError, RuntimeError):
    """The space holds as much as it may; nothing was consumed: forget some, or raise the quota."""

    what: str
    quota: int
    used: int


class SnapshotExpired(EngramError, RuntimeError):
    """A snapshot lived too long, or unused too long; take a new one."""


class SequenceGap(EngramError, RuntimeError):
    """Observations of a session are missing before this one; nothing was consumed: go on from `expected`."""

    expected: int


class SequenceConflict(EngramError, ValueError):
    """Another observation was committed with this sequence; nothing was consumed."""

    sequence: int


class SessionExpired(EngramError, RuntimeError):
    """The session was closed, or has expired: what it committed stays; open a new one."""


class Fenced(EngramError, RuntimeError):
    """Another speaker has attached to the session since; what was not acknowledged may be committed or not."""


class Paused(EngramError, RuntimeError):
    """The session is paused; nothing was consumed."""


class DataLoss(EngramError, RuntimeError):
    """What was acknowledged, in a weaker mode or to a session not named, is lost; committed is up to `committed`."""

    committed: int


class StorageError(EngramError, OSError):
    """The operating system refused a file operation."""

    path: str


class DiskFull(StorageError):
    """No space for the log: nothing was consumed; writing resumes by itself when space returns."""


class PermissionDenied(StorageError, PermissionError):
    """The directory may not be written, or the caller may not do this."""


class UnsupportedVersion(EngramError, RuntimeError):
    """A file was written by a newer engram; nothing was changed."""

    path: str
    found: int
    supported: int


class Corrupted(EngramError, RuntimeError):
    """Bytes on the disk are not as they were written; the read that needs them says so."""

    path: str
    offset: int
    reason: str


class Poisoned(EngramError, RuntimeError):
    """A log file failed: writes of its partition stop until the engine is opened again; reads go on."""

    cause: str


class Quarantined(EngramError, RuntimeError):
    """The observation could not be applied, three times, and is kept aside; see `Space.quarantined`. Others go on."""

    reason: str


class Closed(EngramError, RuntimeError):
    """The engine is closed, or belongs to the process this one was forked from."""


class Unavailable(EngramError, ConnectionError):
    """The server cannot be reached, or is starting or ending; whether the call had an effect is not known."""


class Locked(EngramError, RuntimeError):
    """Another process has the directory open."""

    pid: int


class Timeout(EngramError, TimeoutError):
    """Something took longer than it may."""


class Interrupted(EngramError, KeyboardInterrupt):
    """Ctrl-C while an admitted observation was under way: whether it was stored is not known."""


def fields_of(error: EngramError) -> dict[str, Any]:
    """Return what an error says besides its message, by the names in the tree."""
    fields = {name: value for name, value in vars(error).items() if name != "message" and not name.startswith("_")}
    # Of the built-in base, which keeps it to itself.
    return {**fields, "errno": error.errno} if isinstance(error, StorageError) else fields


#: The one table: the engine's code → exception. `docs/reference/errors.md` shows it.
TABLE: dict[str, type[EngramError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "TOO_LARGE": TooLarge,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "OVERLOADED": Overloaded,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "SNAPSHOT_EXPIRED": SnapshotExpired,
    "SEQUENCE_GAP": SequenceGap,
    "SEQUENCE_CONFLICT": SequenceConflict,
    "SESSION_EXPIRED": SessionExpired,
    "FENCED": Fenced,
    "PAUSED": Paused,
    "DATA_LOSS": DataLoss,
    "DISK_FULL": DiskFull,
    "PERMISSION_DENIED": PermissionDenied,
    "STORAGE": StorageError,
    "UNSUPPORTED_VERSION": UnsupportedVersion,
    "CORRUPTED": Corrupted,
    "POISONED": Poisoned,
    "QUARANTINED": Quarantined,
    "CLOSED": Closed,
    "UNAVAILABLE": Unavailable,
    "LOCKED": Locked,
    "TIMEOUT": Timeout,
    "INTERRUPTED": Interrupted,
}

#: The same codes → status of gRPC.
GRPC: dict[str, str] = {
    "INVALID_ARGUMENT": "INVALID_ARGUMENT",
    "TOO_LARGE": "INVALID_ARGUMENT",
    "NOT_FOUND": "NOT_FOUND",
    "ALREADY_EXISTS": "ALREADY_EXISTS",
    "OVERLOADED": "RESOURCE_EXHAUSTED",
    "QUOTA_EXCEEDED": "RESOURCE_EXHAUSTED",
    "SNAPSHOT_EXPIRED": "FAILED_PRECONDITION",
    "SEQUENCE_GAP": "OUT_OF_RANGE",
    "SEQUENCE_CONFLICT": "ABORTED",
    "SESSION_EXPIRED": "FAILED_PRECONDITION",
    "FENCED": "ABORTED",
    "PAUSED": "FAILED_PRECONDITION",
    "DATA_LOSS": "DATA_LOSS",
    "DISK_FULL": "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED": "PERMISSION_DENIED",
    "STORAGE": "INTERNAL",
    "UNSUPPORTED_VERSION": "FAILED_PRECONDITION",
    "CORRUPTED": "DATA_LOSS",
    "POISONED": "FAILED_PRECONDITION",
    "QUARANTINED": "ABORTED",
    "CLOSED": "UNAVAILABLE",
    "UNAVAILABLE": "UNAVAILABLE",
    "LOCKED": "FAILED_PRECONDITION",
    "TIMEOUT": "DEADLINE_EXCEEDED",
    "INTERRUPTED": "CANCELLED",
}


def from_core(code: str, message: str, fields: dict[str, Any]) -> EngramError:
    """Make the exception for an error of the native engine."""
    if code == "DISK_FULL":
        fields.setdefault("errno", _errno.ENOSPC)
    return TABLE[code](message, **fields)
