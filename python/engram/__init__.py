"""engram: a streaming memory engine.

Programs stream observations (text, embeddings) into isolated spaces and recall from them at the same moment, under one
consistent snapshot. What is acknowledged is on the disk.

>>> import engram, numpy as np
>>> engine = engram.open()
>>> notes = engine.space("notes", dim=3)
>>> notes.observe("Ada met Grace", vector=[1, 0, 0]).memory_id
1
>>> notes.recall(vector=[1, 0, 0], k=1)[0].text
'Ada met Grace'
>>> engine.close()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engram._engine import Engine, inspect, open, verify
from engram._exceptions import (
    AlreadyExists,
    Closed,
    Corrupted,
    DataLoss,
    DiskFull,
    EngramError,
    Fenced,
    Interrupted,
    InvalidArgument,
    Locked,
    NotFound,
    Overloaded,
    Paused,
    PermissionDenied,
    Poisoned,
    Quarantined,
    QuotaExceeded,
    SequenceConflict,
    SequenceGap,
    SessionExpired,
    SnapshotExpired,
    StorageError,
    Timeout,
    TooLarge,
    Unavailable,
    UnsupportedVersion,
)
from engram._reads import Snapshot
from engram._session import Session
from engram._space import Space
from engram._types import Ack, BatchAck, Hit, HitBatch, Hits, Memory, QuarantinedBatch

if TYPE_CHECKING:
    from engram import aio
    from engram.client import ObserveStream, connect
    from engram.server import serve

__all__ = [
    "Ack",
    "AlreadyExists",
    "BatchAck",
    "Closed",
    "Corrupted",
    "DataLoss",
    "DiskFull",
    "Engine",
    "EngramError",
    "Fenced",
    "Hit",
    "HitBatch",
    "Hits",
    "Interrupted",
    "InvalidArgument",
    "Locked",
    "Memory",
    "NotFound",
    "ObserveStream",
    "Overloaded",
    "Paused",
    "PermissionDenied",
    "Poisoned",
    "Quarantined",
    "QuarantinedBatch",
    "QuotaExceeded",
    "SequenceConflict",
    "SequenceGap",
    "Session",
    "SessionExpired",
    "Snapshot",
    "SnapshotExpired",
    "Space",
    "StorageError",
    "Timeout",
    "TooLarge",
    "Unavailable",
    "UnsupportedVersion",
    "aio",
    "connect",
    "inspect",
    "open",
    "serve",
    "verify",
]


_LATER = {"ObserveStream": "engram.client", "connect": "engram.client", "serve": "engram.server"}


def __getattr__(name: str) -> Any:
    """Import what is first asked for now: importing engram loads NumPy and the native module only."""
    import importlib

    if name == "aio":
        return importlib.import_module("engram.aio")
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'engram' has no attribute {name!r}")
