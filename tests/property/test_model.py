"""Any order of calls, clean reopenings and SIGKILLs: the engine answers as the model does."""

import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from conftest import CAMPAIGN
from engram.testing import ModelSpace, Observation, observations, vectors
from property.engine_child import EngineChild, Refused

DIM = 3
NAMES = ("a", "b", "c")
LIMITS = {
    "partitions": 2,
    "segment_bytes_first": 16_384,
    "segment_bytes_max": 65_536,
    "seal_space_bytes": 4_096,
    "seal_own_file_bytes_min": 2_048,
    "checkpoint_log_bytes": 32_768,
    "merge_files": 2,
    "idle_close_ms": 5,
}
INVALID = st.sampled_from(
    [
        Observation(vector=(float("nan"), 1, 1)),
        Observation(vector=(1, float("inf"), 1)),
        Observation(text="x", vector=(1, 1, 1), confidence=2),
    ]
)
KEYS = ("k", "ä/1", "x" * 256)
ONE = observations(DIM, keys=st.sampled_from(KEYS))
# What a kill lets survive differs between two runs of one example: what is drawn may depend on the ids of the
# model only by position.
PLACE = st.integers(0, 9_999)
PLACES = st.lists(PLACE, max_size=5)


def batches(vector: bool) -> st.SearchStrategy[list[Observation]]:
    """Return batches in which a key comes once."""
    many = st.lists(observations(DIM, vector=vector, keys=st.sampled_from(KEYS)), min_size=1, max_size=40)

    def once(batch: list[Observation]) -> list[Observation]:
        first = {one.key: at for at, one in reversed([*enumerate(batch)])}
        return [one if first[one.key] == at else replace(one, key=None) for at, one in enumerate(batch)]

    return many.map(once)


BATCHES = batches(True) | batches(False)


@dataclass
class Held:
    """A space as the test knows it."""

    model: ModelSpace
    durability: str
    incarnation: int
    snapshots: list[tuple[int, ModelSpace]] = field(default_factory=list)


def arguments(one: Observation) -> dict[str, Any]:
    return {
        "text": one.text,
        "vector": one.vector,
        "metadata": dict(one.metadata),
        "confidence": one.confidence,
        "key": one.key,
    }


def columns(batch: list[Observation]) -> dict[str, Any]:
    return {
        "texts": [one.text for one in batch],
        "vectors": None if batch[0].vector is None else [one.vector for one in batch],
        "metadata": [dict(one.metadata) for one in batch],
        "confidence": [one.confidence for one in batch],
        "keys": [one.key for one in batch],
    }


def rows_of(model: ModelSpace) -> list[tuple[Any, ...]]:
    return [
        (row, one.text, None if one.vector is None else list(one.vector), one.metadata, one.confidence, one.key)
        for row, one in model.rows.items()
    ]


class EngineAgainstModel(RuleBasedStateMachine):
    #: All calls go over a wire, by `engram.connect`.
    wire: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.path = tempfile.mkdtemp(prefix="engram-model-")
        self.child = EngineChild()
        self.spaces: dict[str, Held] = {}
        self.last_ids: dict[str, int] = {}
        self.padding = 0

    @initialize(graph=st.booleans())
    def start(self, graph: bool) -> None:
        """With a graph from the first row, or as users have it."""
        self.limits = LIMITS | ({"index_graph_rows_min": 0} if graph else {})
        assert self.child.call("open", self.path, self.limits, wire=self.wire)["created"]

    def teardown(self) -> None:
        self.child.kill()
        shutil.rmtree(self.path)

    def pick(self, data: st.DataObject) -> tuple[str, Held]:
        name = data.draw(st.sampled_from(sorted(self.spaces)))
        return name, self.spaces[name]

    # ---- spaces

    @precondition(lambda self: len(self.spaces) < len(NAMES))
    @rule(
        data=st.data(),
        metric=st.sampled_from(["cosine", "l2", "ip"]),
        durability=st.sampled_from(["sync", "os", "memory"]),
    )
    def make(self, data: st.DataObject, metric: str, durability: str) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if name not in self.spaces]))
        self.child.call("make", name, dim=DIM, metric=metric, durability=durability)
        model = ModelSpace(DIM, metric, self.last_ids.get(name, 0))
        self.spaces[name] = Held(model, durability, self.child.call("incarnation", name))

    @precondition(lambda self: self.spaces)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """K4, D11: only it goes; made again, its ids start after the last."""
        name, held = self.pick(data)
        self.child.call("drop", name)
        self.last_ids[name] = held.model.last_id
        del self.spaces[name]
        assert self.child.call("spaces") == sorted(self.spaces)

    # ---- writing

    def stored(self, held: Held, ids: list[int], batch: list[Observation]) -> None:
        if ids:
            # O4: dense and contiguous. After a renewal (D11) they go on further up.
            assert ids == list(range(ids[0], ids[0] + len(ids)))
            model = held.model
            assert ids[0] == model.last_id + 1, (ids[0], model.last_id)
        held.model.observe_batch(batch)

    @precondition(lambda self: self.spaces)
    @rule(data=st.data(), one=ONE)
    def observe(self, data: st.DataObject, one: Observation) -> None:
        name, held = self.pick(data)
        self.stored(held, [self.child.call("observe", name, **arguments(one))], [one])

    @precondition(lambda self: self.spaces)
    @rule(data=st.data(), batch=BATCHES)
    def observe_batch(self, data: st.DataObject, batch: list[Observation]) -> None:
        name, held = self.pick(data)
        ids, rejected = self.child.call("observe_batch", name, **columns(batch))
        assert (len(ids), rejected) == (len(batch), [])
        self.stored(held, ids, batch)

    @precondition(lambda self: self.spaces)
    @rule(data=st.data(), size=st.integers(1, 30))
    def observe_much(self, data: st.DataObject, size: int) -> None:
        """Enough bytes that segments rotate and files are sealed and merged."""
        name, held = self.pick(data)
        self.padding += 1
        batch = [
            Observation(f"{self.padding} {n} " + "x" * 400, (1.0, float(n), float(self.padding))) for n in range(size)
        ]
        ids, _ = self.child.call("observe_batch", name, **columns(batch))
        self.stored(held, ids, batch)

    @precondition(lambda self: self.spaces)
    @rule(data=st.data(), batch=st.lists(observations(DIM, vector=True), max_size=6), bad=INVALID, atomic=st.booleans())
    def observe_invalid(self, data: st.DataObject, batch: list[Observation], bad: Observation, atomic: bool) -> None:
        """O1: an atomic batch is refused whole with the index; otherwise the invalid one is left out."""
        name, held = self.pick(data)
        at = data.draw(st.integers(0, len(batch)))
        given = [*batch[:at], bad, *batch[at:]]
        if atomic:
            with pytest.raises(Refused) as caught:
                self.child.call("observe_batch", name, **columns(given))
            kind, _, index = caught.value.args
            assert (kind, index) == ("InvalidArgument", at)
            return
        ids, rejected = self.child.call("observe_batch", name, **columns(given), atomic=False)
        assert rejected == [at]
        self.stored(held, ids, batch)

    @precondition(lambda self: self.spaces)
    @rule(data=st.data(), how=st.sampled_from(["id", "ids", "key", "where"]), low=st.floats(0, 1))
    def forget(self, data: st.DataObject, how: str, low: float) -> None:
        """K3: what lives and is meant, and nothing else."""
        name, held = self.pick(data)
        model = held.model
        if how == "key":
            key = data.draw(st.sampled_from(KEYS))
            wanted, count = [model.named(key)], self.child.call("forget", name, key=key)
        elif how == "where":
            wanted = [row for row, one in model.rows.items() if np.float32(one.confidence) < np.float32(low)]
            count = self.child.call("forget", name, where={"confidence": {"$lt": low}})
        else:
            ids = [*model.rows, *model.past, model.last_id, model.last_id + 1, 0]
            places = [data.draw(PLACE)] if how == "id" else data.draw(PLACES)
            wanted = [ids[at % len(ids)] for at in places]
            count = self.child.call("forget", name, wanted[0] if how == "id" else wanted)
        assert count == model.forget({row for row in wanted if row is not None})

    @precondition(lambda self: any(not held.snapshots for held in self.spaces.values()))
    @rule(data=st.data(), how=st.sampled_from(["ids", "key", "where"]), low=st.floats(0, 1))
    def purge(self, data: st.DataObject, how: str, low: float) -> None:
        """K3: forgotten by every read of the past too, whatever had died before, and the bytes are gone."""
        free = [name for name, held in self.spaces.items() if not held.snapshots]
        name = data.draw(st.sampled_from(sorted(free)))
        model = self.spaces[name].model
        known = {**{row: one for row, (one, _) in model.past.items()}, **model.rows}
        if how == "key":
            key = data.draw(st.sampled_from(KEYS))
            wanted = [row for row, one in known.items() if one.key == key]
            count = self.child.call("forget", name, key=key, purge=True)
        elif how == "where":
            wanted = [row for row, one in known.items() if np.float32(one.confidence) < np.float32(low)]
            count = self.child.call("forget", name, where={"confidence": {"$lt": low}}, purge=True)
        else:
            ids = [*known, model.last_id, model.last_id + 1]
            wanted = [ids[at % len(ids)] for at in data.draw(PLACES)]
            count = self.child.call("forget", name, wanted, purge=True)
        assert count == model.forget(wanted, purge=True)

    # ---- reading

    def check_reads(self, of: str | int, model: ModelSpace) -> None:
        assert self.child.call("rows", of) == rows_of(model)
        assert self.child.call("count", of) == len(model.rows)

    @precondition(lambda self: self.spaces)
    @rule(data=st.data(), cue=vectors(DIM), k=st.integers(1, 12))
    def recall(self, data: st.DataObject, cue: tuple[float, ...], k: int) -> None:
        """G6."""
        name, held = self.pick(data)
        held.model.check_recall(cue, k, self.child.call("recall", name, cue, k))

    @precondition(lambda self: self.spaces)
    @rule(data=st.data(), after=st.integers(0, 60), limit=st.none() | st.integers(0, 20))
    def look(self, data: st.DataObject, after: int, limit: int | None) -> None:
        name, held = self.pick(data)
        rows = rows_of(held.model)
        assert self.child.call("rows", name, after, limit) == [row for row in rows if row[0] > after][:limit]
        assert self.child.call("count", name) == len(rows)
        ids = [*held.model.rows, 0, after, held.model.last_id + 1]
        wanted = ids[data.draw(PLACE) % len(ids)]
        assert self.child.call("get", name, wanted) == next((row for row in rows if row[0] == wanted), None)

    @precondition(lambda self: self.spaces)
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def look_by_key(self, data: st.DataObject, key: str) -> None:
        """K1: one living memory a key, and all its versions."""
        name, held = self.pick(data)
        assert self.child.call("named", name, key) == held.model.named(key)
        assert self.child.call("history", name, key) == held.model.history(key)

    @precondition(lambda self: self.spaces)
    @rule(data=st.data(), part=st.floats(0, 1))
    def look_back(self, data: st.DataObject, part: float) -> None:
        """G5: any earlier generation, before and after reopenings."""
        name, held = self.pick(data)
        generation = int(held.model.last_id * part)
        assert self.child.call("rows", name, as_of=generation) == rows_of(held.model.at(generation))

    @precondition(lambda self: self.spaces)
    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        name, held = self.pick(data)
        number, generation = self.child.call("snapshot", name)
        held.snapshots.append((number, held.model.at(generation)))
        assert len(held.snapshots[-1][1].rows) == len(held.model.rows)

    @precondition(lambda self: any(held.snapshots for held in self.spaces.values()))
    @rule(data=st.data(), cue=vectors(DIM), k=st.integers(1, 8))
    def read_snapshot(self, data: st.DataObject, cue: tuple[float, ...], k: int) -> None:
        """G3: what it saw when it was taken."""
        number, model = data.draw(st.sampled_from([s for held in self.spaces.values() for s in held.snapshots]))
        self.check_reads(number, model)
        model.check_recall(cue, k, self.child.call("recall", number, cue, k))

    # ---- ends and starts

    @rule()
    def checkpoint(self) -> None:
        self.child.call("checkpoint")

    def opened(self, report: dict[str, Any]) -> None:
        assert report["damage"] == []
        assert self.child.call("spaces") == sorted(self.spaces)
        for held in self.spaces.values():
            held.snapshots.clear()

    @rule()
    def reopen(self) -> None:
        """A clean end loses nothing in any mode, and renews nothing."""
        self.child.call("close")
        report = self.child.call("open", self.path, self.limits, wire=self.wire)
        assert (report["torn_bytes"], report["renewed"]) == (0, [])
        self.opened(report)
        for name, held in self.spaces.items():
            assert self.child.call("incarnation", name) == held.incarnation
            self.check_reads(name, held.model)

    @rule(data=st.data(), flying=st.none() | st.sampled_from(KEYS) | ONE, pause_us=st.integers(0, 2_000))
    def crash(self, data: st.DataObject, flying: str | Observation | None, pause_us: int) -> None:
        """D1, D2, D11: SIGKILL, perhaps with an observation, or with the forgetting of a key, on its way."""
        target = None
        if flying is not None and self.spaces:
            target, _ = self.pick(data)
            if isinstance(flying, str):
                self.child.send("forget", target, key=flying)
            else:
                self.child.send("observe", target, **arguments(flying))
            time.sleep(pause_us / 1e6)
        self.child.kill()
        self.child = EngineChild()
        self.opened(self.child.call("open", self.path, self.limits, wire=self.wire))
        for name, held in self.spaces.items():
            self.survived(name, held, flying if name == target else None)

    def survived(self, name: str, held: Held, flying: str | Observation | None) -> None:
        model, rows = held.model, self.child.call("rows", name)
        acknowledged = rows_of(model)
        if isinstance(flying, Observation) and rows and rows[-1][0] == model.last_id + 1:
            model.observe(flying)
        elif isinstance(flying, str) and (named := model.named(flying)) not in (None, *(row[0] for row in rows)):
            model.forget([named] if named is not None else [])
        incarnation = self.child.call("incarnation", name)
        if held.durability == "memory":
            if rows not in (acknowledged, rows_of(model)):
                assert incarnation != held.incarnation
            model.rewind([row[0] for row in rows])
            if incarnation != held.incarnation:
                model.skip_to(self.burnt(name, model))
        else:
            assert incarnation == held.incarnation
        held.incarnation = incarnation
        self.check_reads(name, model)

    def burnt(self, name: str, model: ModelSpace) -> int:
        """D11: a renewed space burns 2³² generations; the next observation shows that no id comes twice."""
        one = Observation("after the renewal")
        memory_id: int = self.child.call("observe", name, **arguments(one))
        assert memory_id > model.last_id
        model.rows[memory_id] = one
        return memory_id


TestEngineAgainstModel = EngineAgainstModel.TestCase
TestEngineAgainstModel.settings = settings(
    settings.get_profile("campaign" if CAMPAIGN else "ci"),
    max_examples=10_000 if CAMPAIGN else 60,
    stateful_step_count=50 if CAMPAIGN else 30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


class EngineAgainstModelOverTheWire(EngineAgainstModel):
    """The same by `engram.connect`."""

    wire = "late"


TestEngineAgainstModelOverTheWire = EngineAgainstModelOverTheWire.TestCase
TestEngineAgainstModelOverTheWire.settings = settings(
    TestEngineAgainstModel.settings, max_examples=500 if CAMPAIGN else 10
)
