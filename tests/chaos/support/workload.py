"""The process that gets killed: opens a directory, tells what is in it, then works on it and tells of every call.

    python -m chaos.support.workload FD PLAN

Events are JSON lines, written to the socket FD (by `sendto`, so that system calls that write files can be made to fail
or to kill without touching the report): one before each call and one after. PLAN is a `Plan` as JSON.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

import engram
from engram import _core

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")
DIMS = (3, 16, 64, 384)
DURABILITIES = ("sync", "os", "memory")
FILLER = " ".join(f"the {number}th thing that was seen" for number in range(2_000))
BATCH_ROWS_MAX = 2_000


@dataclass
class Plan:
    directory: str
    seed: int
    limits: dict[str, int] = field(default_factory=dict)
    threads: int = 1
    rows: int = 5_000  # after so many, close
    batch_rows: int = BATCH_ROWS_MAX
    checkpoint_share: float = 0.03
    space_share: float = 0.03
    verify: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Teller:
    """Sends events, whole lines, from any thread."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()
        self._last_uid = os.getpid() << 32

    def tell(self, event: str, **facts: Any) -> None:
        line = json.dumps({"event": event, **facts}).encode() + b"\n"
        with self._lock:
            self._socket.sendall(line)

    def uid(self) -> int:
        with self._lock:
            self._last_uid += 1
            return self._last_uid


def digest(text: str | None, vector: np.ndarray | None, metadata: Any, confidence: float, at: int | None) -> int:
    """Name everything that was observed, in 64 bits."""
    parts = blake2b(digest_size=8)
    parts.update(b"-" if text is None else b"+" + text.encode())
    parts.update(b"\0-" if vector is None else b"\0+" + vector.tobytes())
    rest = [metadata or None, confidence, at]
    parts.update(json.dumps(rest, sort_keys=True).encode() if rest != [None, 1.0, None] else b"")
    return int.from_bytes(parts.digest(), "little")


def digest_of(memory: engram.Memory) -> int:
    at = memory.observed_at
    seconds = None if at is None else int(at.timestamp())
    return digest(memory.text, memory.vector, memory.metadata, memory.confidence, seconds)


def hexed(values: list[int]) -> str:
    return np.array(values, np.uint64).tobytes().hex()


class Work:
    """A seeded random workload on an open engine."""

    def __init__(self, plan: Plan, engine: engram.Engine, teller: Teller) -> None:
        self.plan = plan
        self.engine = engine
        self.teller = teller
        self.spaces: dict[str, tuple[engram.Space, str]] = {}
        self.rows_left = plan.rows

    def report_all(self) -> None:
        for name in self.engine.spaces():
            space = self.engine.space(name)
            tag = f"{name}#{self.teller.uid()}"
            self.spaces[name] = (space, tag)
            ids, digests = [], []
            for memory in space.list():
                ids.append(memory.memory_id)
                digests.append(digest_of(memory))
            if len(space) != len(ids):
                self.teller.tell("wrong", what=f"{name}: len() is {len(space)}, list() gives {len(ids)}")
            facts = {"name": name, "tag": tag, "dim": space.dim, "durability": space.durability}
            self.teller.tell("found", **facts, ids=hexed(ids), digests=hexed(digests))

    def run(self) -> None:
        """Work in `threads` threads; the first one also makes and drops spaces."""
        workers = [threading.Thread(target=self._guarded, args=(number,)) for number in range(self.plan.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _guarded(self, number: int) -> None:
        try:
            self._work(number)
        except BaseException as error:
            self.teller.tell("wrong", what=f"{type(error).__name__}: {error}")
            raise

    def _work(self, number: int) -> None:
        rng = np.random.default_rng([self.plan.seed, number])
        while self.rows_left > 0:
            draw = rng.random()
            if number == 0 and (not self.spaces or draw < self.plan.space_share):
                self._make_or_drop(rng)
            elif draw > 1 - self.plan.checkpoint_share:
                self._checkpoint()
            elif self.spaces:
                self._observe(rng)
            else:
                time.sleep(0.001)

    def _call(self, event: str, call: Any, uid: int, **facts: Any) -> Any:
        """Tell, call, tell; None if the engine refused or failed, by a typed error."""
        self.teller.tell(event, uid=uid, **facts)
        try:
            answer = call()
        except (engram.NotFound, engram.Overloaded, engram.DiskFull) as error:
            self.teller.tell("refused", of=event, uid=uid, **facts, error=type(error).__name__)
        except engram.EngramError as error:
            self.teller.tell("failed", of=event, uid=uid, **facts, error=f"{type(error).__name__}: {error}")
            self.rows_left -= self.plan.rows // 50  # what fails may fail for ever
        else:
            return answer if answer is not None else True
        return None

    def _make_or_drop(self, rng: np.random.Generator) -> None:
        name = str(rng.choice(NAMES))
        uid = self.teller.uid()
        if name in self.spaces:
            if len(self.spaces) > 1 and rng.random() < 0.5:
                del self.spaces[name]
                if self._call("drop", lambda: self.engine.drop_space(name), uid, name=name):
                    self.teller.tell("dropped", name=name)
            return
        tag = f"{name}#{uid}"
        dim, durability = int(rng.choice(DIMS)), str(rng.choice(DURABILITIES))

        def make() -> engram.Space:
            return self.engine.space(name, dim, durability=durability)  # type: ignore[arg-type]

        space = self._call("create", make, uid, name=name, tag=tag, dim=dim, durability=durability)
        if space is not None:
            self.teller.tell("created", name=name)
            self.spaces[name] = (space, tag)

    def _checkpoint(self) -> None:
        uid = self.teller.uid()
        if self._call("checkpoint", self.engine.checkpoint, uid):
            self.teller.tell("checkpointed", uid=uid)

    def _observe(self, rng: np.random.Generator) -> None:
        names = list(self.spaces.items())
        _, (space, tag) = names[int(rng.integers(len(names)))]
        uid = self.teller.uid()
        count = int(np.exp(rng.uniform(0, np.log(self.plan.batch_rows + 1))))
        self.rows_left -= count
        columns = make_columns(rng, uid, count, space.dim)
        digests = [digest(*item) for item in items_of(columns, count)]

        def observe() -> tuple[int, int]:
            if count == 1 and rng.random() < 0.7:
                texts, vectors, metadata = columns["texts"], columns["vectors"], columns["metadata"]
                ack = space.observe(
                    None if texts is None else texts[0],
                    vector=None if vectors is None else vectors[0],
                    confidence=1.0 if columns["confidence"] is None else columns["confidence"][0],
                    metadata=None if metadata is None else metadata[0],
                    observed_at=None if columns["observed_at"] is None else columns["observed_at"][0],
                )
                return ack.memory_id, 1
            batch = space.observe_batch(**columns)
            dense = batch.memory_ids - batch.memory_ids[0] == np.arange(len(batch.memory_ids), dtype=np.uint64)
            assert dense.all()
            return int(batch.memory_ids[0]), len(batch.memory_ids)

        done = self._call("observe", observe, uid, tag=tag, digests=hexed(digests))
        if done:
            self.teller.tell("observed", uid=uid, tag=tag, first=done[0], count=done[1])
            if rng.random() < 0.2:
                self._read_own_write(space, done[0], digests[0])

    def _read_own_write(self, space: engram.Space, first: int, expected: int) -> None:
        try:
            memory = space.get(first)
        except (engram.NotFound, engram.Closed):
            return  # dropped meanwhile
        if memory is None or digest_of(memory) != expected:
            self.teller.tell("wrong", what=f"{space.name}: {first} was acknowledged; get() gives {memory}")


def make_columns(rng: np.random.Generator, uid: int, count: int, dim: int) -> dict[str, Any]:
    """Draw a batch; each item is unlike any other."""
    kind = rng.random()
    vectors = rng.standard_normal((count, dim), dtype=np.float32) if kind < 0.8 else None
    texts: list[str | None] | None = None
    if kind > 0.3 or dim < 16:
        length = int(np.exp(rng.uniform(0, np.log(20_000)))) if count < 20 else int(rng.integers(0, 60))
        begin = int(rng.integers(0, 1_000))
        texts = [f"{uid}.{number} " + FILLER[begin : begin + length] for number in range(count)]
        if vectors is not None and kind < 0.5 and dim >= 16:
            step = int(rng.integers(2, 5))
            texts = [None if number % step == 0 else text for number, text in enumerate(texts)]
    with_metadata = rng.random() < 0.2
    return {
        "texts": texts,
        "vectors": vectors,
        "metadata": [{"number": number, "of": [uid, "x", 0.5]} for number in range(count)] if with_metadata else None,
        "confidence": [0.25 + 0.5 * (number % 2) for number in range(count)] if rng.random() < 0.2 else None,
        "observed_at": [1_700_000_000 + number for number in range(count)] if rng.random() < 0.2 else None,
    }


def items_of(columns: dict[str, Any], count: int) -> list[tuple[Any, ...]]:
    absent = {"texts": None, "vectors": None, "metadata": None, "confidence": 1.0, "observed_at": None}
    listed = (columns[name] if columns[name] is not None else [other] * count for name, other in absent.items())
    return list(zip(*listed, strict=True))


def main() -> int:
    faulthandler.enable()
    teller = Teller(int(sys.argv[1]))
    plan = Plan(**json.loads(sys.argv[2]))
    teller.tell("opening")
    try:
        engine = engram.open(Path(plan.directory), limits=plan.limits)
    except engram.EngramError as error:
        teller.tell("not-opened", error=f"{type(error).__name__}: {error}")
        return 0
    report = engine.report
    teller.tell("opened", damage=report["damage"], renewed=report["renewed"], torn_bytes=report["torn_bytes"])
    work = Work(plan, engine, teller)
    work.report_all()
    teller.tell("ready")
    work.run()
    stats = engine.stats()
    teller.tell("closing", seals=stats["seals"], merged=stats["merged_bytes"], error=stats["maintenance_error"])
    try:
        engine.close()
    except engram.EngramError as error:
        teller.tell("failed", of="close", uid=0, error=f"{type(error).__name__}: {error}")
        return 0
    teller.tell("closed")
    if plan.verify:
        teller.tell("verified", report=_core.verify(plan.directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
