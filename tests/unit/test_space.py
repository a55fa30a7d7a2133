"""Observing and reading through the public API: what goes in comes out, what may not go in is refused by name (O1)."""

import itertools
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engram

pytestmark = pytest.mark.usefixtures("both_graphs")

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), JSON, max_size=4)


NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def engine(both_graphs: None) -> Iterator[engram.Engine]:
    with engram.open() as engine:
        yield engine


@pytest.fixture
def notes(engine: engram.Engine) -> Iterator[engram.Space]:
    # A name of its own for each test: a space made again continues the ids of the one dropped (D11).
    name = f"notes-{next(NUMBERS)}"
    yield engine.space(name, dim=3)
    engine.drop_space(name)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE
BAD = {
    "dimension": ({"vector": [1, 2]}, "vectors", "2 dimensions"),
    "nan": ({"vector": [1, np.nan, 0]}, "vector", "component 1 of the vector is NaN"),
    "infinity": ({"vector": [1, 0, -np.inf]}, "vector", "component 2 of the vector is -inf"),
    "beyond float32": ({"vector": np.array([1e300, 0, 0])}, "vector", "component 0 of the vector is inf"),
    "zero": ({"vector": [0, 0, 0]}, "vector", "zero vector has no direction"),
    "shape": ({"vector": [[1, 2, 3]]}, "vector", "shape (dim,)"),
    "words": ({"vector": ["1", "2", "3"]}, "vector", "must be numbers"),
    "complex": ({"vector": [1j, 0, 0]}, "vector", "must be numbers"),
    "nothing": ({}, "batch", "empty batch"),
    "surrogate": ({"text": "a\ud800"}, "text", "lone surrogate"),
    "bytes": ({"text": b"abc"}, "text", "must be a str"),
    "surrogate value": ({"text": "a", "metadata": {"a": "\udfff"}}, "metadata", "lone surrogate"),
    "surrogate key": ({"text": "a", "metadata": {"\udfff": 1}}, "metadata", "lone surrogate"),
    "depth": ({"text": "a", "metadata": nested(1_000)}, "metadata", "nested too deeply"),
    "cycle": ({"text": "a", "metadata": CYCLE}, "metadata", "nested too deeply"),
    "list": ({"text": "a", "metadata": [1]}, "metadata", "must be a mapping"),
    "key": ({"text": "a", "metadata": {1: 1}}, "metadata", "keys must be strings"),
    "set": ({"text": "a", "metadata": {"a": {1}}}, "metadata", "a set has no JSON form"),
    "not finite": ({"text": "a", "metadata": {"a": float("nan")}}, "metadata", "must be finite"),
    "65 bits": ({"text": "a", "metadata": {"a": 2**63}}, "metadata", "fit 64 bits"),
    "confidence": ({"text": "a", "confidence": 1.5}, "confidence", "must lie in [0, 1]"),
    "confidence nan": ({"text": "a", "confidence": float("nan")}, "confidence", "must lie in [0, 1]"),
    "confidence word": ({"text": "a", "confidence": "high"}, "confidence", "must be numbers"),
    "time": ({"text": "a", "observed_at": "now"}, "observed_at", "must be a datetime or seconds"),
    "time nan": ({"text": "a", "observed_at": float("nan")}, "observed_at", "out of range"),
    "time far": ({"text": "a", "observed_at": 1e30}, "observed_at", "out of range"),
    "timeout": ({"text": "a", "timeout": -1}, "timeout", "seconds from 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_observation_is_refused_and_consumes_nothing(notes: engram.Space, name: str) -> None:
    """O1: nothing is consumed by an invalid one."""
    arguments, field, part = BAD[name]
    with pytest.raises(engram.InvalidArgument) as caught:
        notes.observe(**arguments)
    assert part in str(caught.value)
    assert caught.value.field.startswith(field)
    assert type(caught.value) is engram.InvalidArgument
    assert notes.observe("good").memory_id == 1


def test_too_large(notes: engram.Space) -> None:
    for arguments, field in (({"text": "x" * (10 << 20)}, None), ({"text": "x" * (2 << 20)}, "text")):
        with pytest.raises(engram.TooLarge, match="over the limit") as caught:
            notes.observe(**arguments)  # type: ignore[arg-type]
        assert field is None or caught.value.field == field
    with pytest.raises(engram.TooLarge, match="metadata of"):
        notes.observe("a", metadata={"a": "x" * 70_000})
    with pytest.raises(engram.TooLarge, match="of 16385 observations") as caught:
        notes.observe_batch(texts=["x"] * 16_385)
    assert (caught.value.field, caught.value.index) == ("batch", None)
    with pytest.raises(engram.TooLarge, match="bytes is over the limit"):
        notes.observe_batch(texts=["x" * 1_000_000] * 9)
    assert len(notes) == 0


def test_batches_that_cannot_be(notes: engram.Space) -> None:
    for arguments in ({}, {"texts": []}, {"vectors": np.empty((0, 3), np.float32)}):
        with pytest.raises(engram.InvalidArgument, match="empty batch") as caught:
            notes.observe_batch(**arguments)
        assert caught.value.field == "batch"
    with pytest.raises(engram.InvalidArgument, match="differ in length"):
        notes.observe_batch(texts=["a", "b"], vectors=[[1, 2, 3]])
    with pytest.raises(engram.InvalidArgument, match="differ in length"):
        notes.observe_batch(texts=["a", "b"], confidence=[1.0], atomic=False)
    with pytest.raises(engram.InvalidArgument, match="not one str"):
        notes.observe_batch(texts="ab")
    with pytest.raises(engram.InvalidArgument, match="must be finite") as caught:
        notes.observe_batch(vectors=[[1, 0, 0], [1, 0, 0], [np.nan, 0, 0]])
    assert caught.value.index == 2
    assert len(notes) == 0


def test_not_atomic_reports_what_it_left_out_and_cuts_what_is_large(notes: engram.Space) -> None:
    vectors = np.ones((40_000, 3), np.float32)
    vectors[[5, 20_000, 39_999]] = np.nan
    times: list[Any] = [0.0] * 40_000
    times[7] = "soon"
    ack = notes.observe_batch(vectors=vectors, observed_at=times, atomic=False)
    assert [index for index, _ in ack.rejected] == [5, 7, 20_000, 39_999]
    assert "must be finite" in ack.rejected[0][1]
    np.testing.assert_array_equal(ack.memory_ids, np.arange(1, 39_997))
    assert (len(notes), ack.generation) == (39_996, 39_996)
    none = notes.observe_batch(texts=["\ud800"], atomic=False)
    assert (len(none.memory_ids), none.generation, none.rejected[0][0]) == (0, 0, 0)
    large = notes.observe_batch(texts=["x" * 1_000_000] * 9, metadata=[{"n": n} for n in range(9)], atomic=False)
    assert len(large.memory_ids) == 9


@pytest.mark.parametrize("name", ["../x", "a" * 65, "Notes", "", "-a", "a/b", "a b", "ä", "a\x00"])
def test_bad_space_names(engine: engram.Engine, name: str) -> None:
    for call in (lambda: engine.space(name, dim=3), lambda: engine.space(name)):
        with pytest.raises(engram.InvalidArgument, match="bad space name") as caught:
            call()
        assert caught.value.field == "name"


def test_bad_properties(engine: engram.Engine) -> None:
    for arguments, field in (
        ({"dim": 0}, "dim"),
        ({"dim": 8_193}, "dim"),
        ({"dim": True}, "dim"),
        ({"dim": 3.0}, "dim"),
        ({"dim": 3, "metric": "euclid"}, "metric"),
        ({"dim": 3, "durability": "maybe"}, "durability"),
    ):
        with pytest.raises(engram.InvalidArgument) as caught:
            engine.space("other", **arguments)  # type: ignore[arg-type]
        assert caught.value.field == field
    assert "other" not in engine.spaces()
    with pytest.raises(engram.NotFound, match="other"):
        engine.space("other")
    with pytest.raises(engram.NotFound):
        engine.drop_space("other")
    with pytest.raises(engram.InvalidArgument, match="unknown durability"):
        engram.open(durability="maybe")  # type: ignore[arg-type]
    for limits in ({"nonsense": 1}, {"merge_files": 1}, {"partitions": 0}):
        with pytest.raises(engram.InvalidArgument):
            engram.open(limits=limits)


def test_a_space_is_what_it_was_made(engine: engram.Engine, notes: engram.Space) -> None:
    assert engine.space(notes.name).dim == engine.space(notes.name, dim=3).dim == 3
    for arguments in ({"dim": 4}, {"dim": 3, "metric": "l2"}, {"dim": 3, "durability": "os"}):
        with pytest.raises(engram.AlreadyExists):
            engine.space(notes.name, **arguments)  # type: ignore[arg-type]


def test_bad_reads(notes: engram.Space) -> None:
    notes.observe("a", vector=[1, 0, 0])
    for k in (0, -1, 16_385, True, 2.0):
        with pytest.raises(engram.InvalidArgument, match="k is"):
            notes.recall(vector=[1, 0, 0], k=k)  # type: ignore[arg-type]
    for vector in ([1, 2], [np.nan, 0, 0], [0, 0, 0]):
        with pytest.raises(engram.InvalidArgument):
            notes.recall(vector=vector)
    with pytest.raises(engram.InvalidArgument) as caught:
        notes.recall_batch([[1, 0, 0], [np.inf, 0, 0]])
    assert caught.value.index == 1
    assert notes.get(0) is None
    assert notes.get(2) is None
    assert notes.get(2**64) is None
    assert notes.get(-1) is None


@given(
    metadata=OBJECTS,
    text=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    confidence=st.floats(0, 1, width=32),
)
def test_round_trip(metadata: dict[str, Any], text: str | None, confidence: float) -> None:
    with engram.open() as engine:
        space = engine.space("s", dim=2)
        space.observe(text, vector=[1, 2], metadata=metadata, confidence=confidence)
        memory = space.get(1)
        assert memory is not None
        assert (memory.text, memory.metadata, memory.confidence) == (text, metadata, confidence)


def test_times(notes: engram.Space) -> None:
    east = timezone(timedelta(hours=9))
    given_times: list[Any] = [datetime(2020, 1, 2, 3, 4, 5, 678_901, tzinfo=east), -1.5, 0, np.float64(1e9), None]
    notes.observe_batch(texts=["t"] * 5, observed_at=given_times)
    seen = [memory.observed_at for memory in notes.list()]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert seen == [given_times[0], epoch - timedelta(seconds=1.5), epoch, epoch + timedelta(seconds=1e9), None]
    naive = datetime(2020, 1, 1)
    notes.observe("naive", observed_at=naive)
    memory = notes.get(6)
    assert memory is not None
    assert memory.observed_at == naive.astimezone()
    assert memory.committed_at <= datetime.now(UTC) + timedelta(seconds=5)


def test_arrays_of_all_kinds(notes: engram.Space) -> None:
    base = np.arange(1, 13, dtype=np.float64).reshape(4, 3)
    for array in (
        base,
        base.astype(np.float16),
        base.astype(np.int32),
        np.asfortranarray(base),
        base.astype(">f4"),
        np.repeat(base, 2, axis=1)[:, ::2],
        base.tolist(),
    ):
        ack = notes.observe_batch(vectors=array)
        for row, memory_id in enumerate(ack.memory_ids):
            memory = notes.get(int(memory_id))
            assert memory is not None
            assert memory.vector is not None
            np.testing.assert_array_equal(memory.vector, base[row].astype(np.float32))
            assert memory.vector.flags.writeable
    read_only = base.astype(np.float32)
    read_only.flags.writeable = False
    assert notes.observe(vector=read_only[0]).memory_id > 0


def test_snapshot_repeats_while_others_write(notes: engram.Space) -> None:
    """G3: a snapshot sees exactly what was visible when it was taken."""
    rng = np.random.default_rng(5)
    notes.observe_batch(vectors=rng.normal(size=(500, 3)))
    stop = threading.Event()

    def write() -> None:
        local = np.random.default_rng(6)
        while not stop.is_set():
            notes.observe_batch(vectors=local.normal(size=(50, 3)))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with notes.snapshot() as seen:
            cues = rng.normal(size=(5, 3))
            ids, scores = seen.recall_batch(cues, k=20)
            count = len(seen)
            assert count == seen.generation
            for _ in range(50):
                again, same = seen.recall_batch(cues, k=20)
                np.testing.assert_array_equal(again, ids)
                np.testing.assert_array_equal(same, scores)
                assert len(seen) == count
                assert seen.get(seen.generation + 1) is None
            assert sum(1 for _ in seen.list()) == count
    finally:
        stop.set()
        thread.join()
    with pytest.raises(engram.SnapshotExpired):
        len(seen)
    assert len(notes) > count


def test_texts_alone_stay_distinct(engine: engram.Engine) -> None:
    """100,000 observations without vectors are 100,000 memories."""
    space = engine.space("texts", dim=384)
    for begin in range(0, 100_000, 10_000):
        space.observe_batch(texts=[f"text {n}" for n in range(begin, begin + 10_000)])
    assert len(space) == 100_000
    seen = 0
    for memory in space.list():
        seen += 1
        assert (memory.memory_id, memory.text) == (seen, f"text {seen - 1}")
        assert memory.vector is None
    assert seen == 100_000
    rng = np.random.default_rng(3)
    for memory_id in rng.integers(1, 100_001, 2_000).tolist():
        found = space.get(memory_id)
        assert found is not None
        assert found.text == f"text {memory_id - 1}"
    assert len(space.recall(vector=np.ones(384), k=10)) == 0
    engine.drop_space("texts")


def test_closed_and_dropped() -> None:
    engine = engram.open()
    space = engine.space("s", dim=1)
    space.observe(vector=[1])
    gone = engine.space("gone", dim=1)
    engine.drop_space("gone")
    for call in (lambda: gone.observe("x"), lambda: gone.recall(vector=[1]), lambda: len(gone), gone.snapshot):
        with pytest.raises(engram.NotFound):
            call()
    again = engine.space("gone", dim=2)
    assert len(again) == 0
    seen = space.snapshot()
    engine.close()
    engine.close()
    for call in (
        lambda: space.observe("x"),
        lambda: space.recall(vector=[1]),
        lambda: space.recall_batch([[1.0]]),
        lambda: space.get(1),
        lambda: list(space.list()),
        lambda: len(space),
        lambda: len(seen),
        engine.spaces,
        engine.stats,
        engine.checkpoint,
        lambda: engine.space("s"),
        lambda: engine.space("new", dim=1),
        lambda: engine.drop_space("s"),
        space.snapshot,
    ):
        with pytest.raises(engram.Closed, match="closed"):
            call()


def test_limits_at_their_ends_are_no_panic(tmp_path: Path) -> None:
    """P2: an age or a pause beyond all times, and a queue of the process that is smaller than a batch."""
    ends = {"queue_age_ms_max": 2**63, "scrub_pause_ms": 2**63, "queue_process_bytes_max": 100_000}
    with engram.open(tmp_path / "ends", limits=ends) as engine:
        space = engine.space("s", dim=1)
        space.observe("a", vector=[1])
        assert space.stats()["level"] == "NORMAL"
        with pytest.raises(engram.TooLarge):
            space.observe("x" * 200_000)
        assert len(space) == 1
    with engram.open(tmp_path / "ends", limits=ends) as engine:
        assert len(engine.space("s")) == 1
