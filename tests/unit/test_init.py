"""The public surface: names and signatures that users rely on, and what `import engram` loads."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import engram

NAMES = """
Ack AlreadyExists BatchAck Closed Corrupted DataLoss DiskFull Engine EngramError Fenced Hit HitBatch Hits
Interrupted InvalidArgument Locked Memory NotFound ObserveStream Overloaded Paused PermissionDenied Poisoned Quarantined
QuarantinedBatch QuotaExceeded SequenceConflict SequenceGap Session SessionExpired Snapshot SnapshotExpired
Space StorageError Timeout TooLarge Unavailable UnsupportedVersion aio connect inspect open serve verify
"""

READS = {
    "recall": "self, *, vector, k=10, where=None, as_of=None, exact=False, ef=None, target_recall=None, consistency='latest', max_lag=1.0",  # noqa: E501
    "recall_stream": "self, *, vector, k=10, batch_size=10, where=None, as_of=None, exact=False, ef=None, target_recall=None, consistency='latest', max_lag=1.0",  # noqa: E501
    "recall_batch": "self, vectors, k=10, *, where=None, as_of=None, exact=False, ef=None, target_recall=None, consistency='latest', max_lag=1.0, threads=1",  # noqa: E501
    "get": "self, memory_id=None, *, key=None, as_of=None",
    "history": "self, key",
    "list": "self, *, where=None, after=0, limit=None, as_of=None",
}
METHODS: dict[type, dict[str, str]] = {
    engram.Engine: {
        "space": "self, name, dim=None, *, metric=None, durability=None",
        "spaces": "self",
        "drop_space": "self, name",
        "checkpoint": "self",
        "drain_completions": "self, most=1024",
        "stats": "self",
        "close": "self",
    },
    engram.Space: {
        **READS,
        "observe": "self, text=None, *, vector=None, confidence=1.0, metadata=None, observed_at=None, key=None, on_overload='wait', timeout=None",  # noqa: E501
        "observe_batch": "self, *, texts=None, vectors=None, metadata=None, confidence=None, observed_at=None, keys=None, atomic=True, on_overload='wait', timeout=None",  # noqa: E501
        "observe_frame": "self, frame, *, on_overload='wait', timeout=None",
        "forget": "self, memory_id=None, *, key=None, where=None, purge=False, on_overload='wait', timeout=None",
        "set_quota": "self, *, memories=None, bytes=None",
        "wait_absorbed": "self, *, timeout=None",
        "quarantined": "self",
        "read_quarantined": "self, memory_id",
        "session": "self, *, priority='normal', resume=None, acknowledged=None, timeout=None",
        "snapshot": "self",
        "stats": "self",
    },
    engram.Session: {
        "observe": "self, text=None, *, vector=None, confidence=1.0, metadata=None, observed_at=None, key=None, sequence=None, on_overload='wait', timeout=None",  # noqa: E501
        "observe_batch": "self, *, texts=None, vectors=None, metadata=None, confidence=None, observed_at=None, keys=None, sequence=None, atomic=True, on_overload='wait', timeout=None",  # noqa: E501
        "observe_frame": "self, frame, *, on_overload='wait', timeout=None",
        "submit_frame": "self, frame",
        "tell_absorbed": "self",
        "tell_levels": "self",
        "on_pressure": "self, callback",
        "pause": "self",
        "resume": "self",
        "drain": "self, timeout=None",
        "close": "self, timeout=None",
        "detach": "self",
    },
    engram.Snapshot: {**READS, "release": "self"},
}
PROPERTIES: dict[type, set[str]] = {
    engram.Engine: {"path", "limits", "report", "completions_fd"},
    engram.Space: {"name", "dim", "metric", "durability"},
    engram.Session: {
        "id",
        "token",
        "priority",
        "state",
        "admitted",
        "committed",
        "absorbed",
        "credits",
        "level",
        "advised_batch",
    },
    engram.Snapshot: {"generation"},
}


def shape(call: Callable[..., Any]) -> str:
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(call).parameters.values()
    ]
    return str(inspect.Signature(bare)).strip("()").replace(" = ", "=")


def test_names() -> None:
    assert engram.__all__ == sorted(NAMES.split())
    assert all(hasattr(engram, name) for name in engram.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        engram.nonsense  # noqa: B018


@pytest.mark.parametrize("kind", METHODS)
def test_methods(kind: type) -> None:
    assert {name: shape(getattr(kind, name)) for name in METHODS[kind]} == METHODS[kind]
    public = {name for name in dir(kind) if not name.startswith("_")}
    assert public == METHODS[kind].keys() | PROPERTIES[kind]


def test_open() -> None:
    assert shape(engram.open) == "path=None, *, durability='sync', limits=None"


def test_the_async_methods_are_the_same() -> None:
    pairs: list[tuple[type, type]] = [
        (engram.Engine, engram.aio.AsyncEngine),
        (engram.Space, engram.aio.AsyncSpace),
        (engram.Session, engram.aio.AsyncSession),
        (engram.Snapshot, engram.aio.AsyncSnapshot),
    ]
    for plain, coroutines in pairs:
        for name, expected in METHODS[plain].items():
            assert shape(getattr(coroutines, name)) == expected, name
        assert {name for name in dir(plain) if name[0] != "_"} <= {name for name in dir(coroutines) if name[0] != "_"}


def test_import_loads_little() -> None:
    big = ("typer", "rich", "asyncio", "hypothesis", "grpc", "google.protobuf")
    code = f"import engram, sys; print([m for m in {big} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
