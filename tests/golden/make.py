"""Make the golden directory of the newest format version: `vN.tar.xz`, and what it holds, `vN.json`.

Version 2 has history files, and batches whose last row was purged.
Run once a version, when it freezes; what is there is never made again.
Needs a build with the fault hooks (`make dev`).
"""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

import engram

GOLDEN = Path(__file__).resolve().parent
VERSION = 2
LIMITS = {
    "partitions": 2,
    "segment_bytes_first": 16 << 10,
    "segment_bytes_max": 32 << 10,
    "seal_own_file_bytes_min": 4 << 10,
    "merge_files": 2,
}


def vectors(first: int, count: int, dim: int) -> np.ndarray:
    """Make vectors that follow from their numbers."""
    return np.array([[1 + (i * 7 + j * 3) % 11 for j in range(dim)] for i in range(first, first + count)], np.float32)


def first_life(path: str) -> None:
    """Fill the directory, and be killed: a renewed space, a torn end, a batch in quarantine."""
    engine = engram.open(path, limits=LIMITS)
    notes = engine.space("notes", dim=4)
    notes.observe_batch(
        texts=[f"note {i}" if i % 5 else None for i in range(40)],
        vectors=vectors(0, 40, 4),
        metadata=[{"n": i, "tags": ["a", "b"], "deep": {"x": None}} if i % 2 else None for i in range(40)],
        confidence=[1 - i / 100 for i in range(40)],
        observed_at=[1_600_000_000 + i if i % 3 else None for i in range(40)],
        keys=[f"key {i % 7}" if i < 7 else None for i in range(40)],
    )
    engine.space("mem", dim=3, metric="ip", durability="memory").observe_batch(vectors=vectors(0, 5, 3))
    engine.space("gone", dim=2).observe("dropped with its space")
    engine.drop_space("gone")
    engine.checkpoint()
    notes.forget(range(30, 34))
    notes.forget(20, purge=True)
    far = engine.space("far", dim=2, metric="l2", durability="os")
    far.observe_batch(vectors=vectors(0, 60, 2), texts=["x" * 200] * 60)
    engine.checkpoint()
    far.observe_batch(vectors=vectors(60, 60, 2), texts=["y" * 200] * 60)
    engine.checkpoint()
    far.forget(range(1, 60, 2))
    far.forget([120, 60], purge=True)
    engine.checkpoint()
    engine._core.inject("apply:poison=panic")
    try:
        notes.observe_batch(texts=["fine", "poison"], keys=["key 1", None])
    except engram.Quarantined:
        print("quarantined", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def second_life(path: Path) -> dict[str, object]:
    """Go on from the kill, end cleanly, and say what is there."""
    with engram.open(path, limits=LIMITS) as engine:
        notes, mem, far = engine.space("notes"), engine.space("mem"), engine.space("far")
        mem.observe_batch(vectors=vectors(5, 3, 3), keys=["k", None, None])
        with notes.session(priority="high") as session:
            session.observe_batch(texts=["said 1", "said 2"], keys=[None, "key 2"])
        session = notes.session(priority="low")
        session.observe_batch(texts=["said 3", "", "said 5"], vectors=None, atomic=False)
        session.observe_batch(texts=["ok", None, "ok too"], atomic=False)
        token, committed = session.token, session.committed
        session.detach()
        notes.forget(key="key 3")
        far.set_quota(memories=1_000, bytes=1 << 20)
        engine.checkpoint()
        # Behind the last checkpoint: only the log has it.
        notes.observe("in the log", vector=[1, 2, 3, 4], key="key 2", metadata={"last": True})
        mem.forget(where={"key": "k"})
        return {
            "state_hash": engine._core.state_hash(),
            "session": {"space": "notes", "token": token, "committed": committed},
            "spaces": {name: described(engine.space(name)) for name in engine.spaces()},
        }


def described(space: engram.Space) -> dict[str, object]:
    """Everything of a space that can be read."""

    def row(memory: engram.Memory) -> dict[str, object]:
        observed = memory.observed_at
        return {
            "id": memory.memory_id,
            "text": memory.text,
            "vector": None if memory.vector is None else memory.vector.tolist(),
            "metadata": memory.metadata,
            "confidence": memory.confidence,
            "observed_at": None if observed is None else observed.timestamp(),
            "committed_at": memory.committed_at.isoformat(),
            "key": memory.key,
            "ended": memory.ended,
        }

    stats = space.stats()
    keys = sorted({memory.key for memory in space.list() if memory.key is not None} | {"key 3", "k"})
    generation = stats["generation"]
    moments = [generation - back for back in range(0, 60, 7) if 0 < generation - back < 2**32] or [generation]
    return {
        "dim": space.dim,
        "metric": space.metric,
        "durability": space.durability,
        "generation": generation,
        "incarnation": stats["incarnation"],
        "quota": [stats["quota_memories"], stats["quota_bytes"]],
        "rows": [row(memory) for memory in space.list()],
        "history": {key: [row(version) for version in space.history(key)] for key in keys},
        "as_of": {str(moment): [memory.memory_id for memory in space.list(as_of=moment)] for moment in moments},
        "quarantined": [
            [batch.memory_ids.start, len(batch.memory_ids), batch.reason, batch.sequence]
            for batch in space.quarantined()
        ],
        "kept": [
            memory.text for batch in space.quarantined() for memory in space.read_quarantined(batch.memory_ids[0])
        ],
    }


def main() -> None:
    """Make both files, if they are not there."""
    archive, expected = GOLDEN / f"v{VERSION}.tar.xz", GOLDEN / f"v{VERSION}.json"
    if archive.exists():
        sys.exit(f"{archive} is there: a frozen version stays as it is")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"v{VERSION}"
        killed = subprocess.run([sys.executable, __file__, str(path)], check=False)
        assert killed.returncode == -signal.SIGKILL
        found = second_life(path)
        with tarfile.open(archive, "w:xz") as tar:
            for one in sorted(path.rglob("*")):
                info = tar.gettarinfo(one, str(one.relative_to(path.parent)))
                info.uid = info.gid = info.mtime = 0
                info.uname = info.gname = ""
                tar.addfile(info, io.BytesIO(one.read_bytes()) if one.is_file() else None)
    expected.write_text(json.dumps(found, sort_keys=True) + "\n")
    print(f"{archive.stat().st_size} bytes")


if __name__ == "__main__":
    first_life(sys.argv[1]) if len(sys.argv) > 1 else main()
