"""Keys, forgetting, and the space as it was (K1, K3, G5)."""

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engram
from engram import aio

pytestmark = pytest.mark.usefixtures("both_graphs")

LIMITS = {"partitions": 1, "seal_space_bytes": 4_096, "seal_own_file_bytes_min": 2_048, "merge_files": 2}


@pytest.fixture
def space(tmp_path: Path) -> Any:
    with engram.open(tmp_path / "data", limits=LIMITS) as engine:
        made = engine.space("s", dim=2)
        made.observe_batch(
            texts=["a", "b", "c", "d", "e"],
            vectors=[[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4]],
            metadata=[{"n": n} for n in range(5)],
        )
        yield made


def ids(space: Any, **options: Any) -> list[int]:
    return [memory.memory_id for memory in space.list(**options)]


def test_forgotten_is_gone_from_every_read_and_snapshots_keep_it(space: Any) -> None:
    with space.snapshot() as before:
        assert space.forget(2) == 1
        for reads, expected in ((space, [1, 3, 4, 5]), (before, [1, 2, 3, 4, 5])):
            assert ids(reads) == expected
            assert len(reads) == len(expected)
            assert [hit.memory_id for hit in reads.recall(vector=[1, 0], k=9)] == expected
            found, _ = reads.recall_batch([[1, 0]], k=9)
            assert [one for one in found[0].tolist() if one] == expected
            assert (reads.get(2) is None) == (2 not in expected)
            assert ids(reads, where={"n": 1}) == [row for row in [2] if row in expected]
    stats = space.stats()
    assert (stats["memories"], stats["generation"]) == (4, 6)
    assert space.forget(2) == 0
    assert space.forget([1, 1, 2, 3, 99, 0]) == 2
    assert ids(space) == [4, 5]
    assert space.observe("next").memory_id == 8, "a forget takes a generation, an empty one does not"


def test_forget_where_and_its_mistakes(space: Any) -> None:
    assert space.forget(where={"n": {"$gte": 3}}) == 2
    assert space.forget(where={"n": {"$gte": 3}}) == 0
    assert ids(space) == [1, 2, 3]
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({}, "exactly one"),
        ({"memory_id": 1, "key": "k"}, "exactly one"),
        ({"where": {}}, "empty condition"),
        ({"where": {"n": {"$like": 1}}}, "not one of"),
        ({"memory_id": -1}, "memory_id"),
        ({"memory_id": "1"}, "memory_id"),
        ({"key": ""}, "not empty"),
    ]
    for arguments, message in mistakes:
        with pytest.raises(engram.InvalidArgument, match=message):
            space.forget(**arguments)
    assert ids(space) == [1, 2, 3]


def test_a_key_names_one_living_memory(space: Any) -> None:
    first = space.observe("one", vector=[0, 1], key="k").memory_id
    second = space.observe("two", vector=[0, 2], key="k").memory_id
    assert (space.get(key="k").text, space.get(key="k").key, space.get(second).key) == ("two", "k", "k")
    assert space.get(first) is None
    assert len(space) == 6
    assert [hit.text for hit in space.recall(vector=[0, 1], k=1)] == ["two"]
    assert ids(space, where={"key": "k"}) == ids(space, where={"key": {"$exists": True}}) == [second]
    assert space.forget(key="k") == 1
    assert space.get(key="k") is None
    third = space.observe("three", key="k").memory_id
    history = space.history("k")
    assert [(one.memory_id, one.text, one.ended) for one in history] == [
        (first, "one", second),
        (second, "two", second + 1),
        (third, "three", None),
    ]
    assert space.history("unknown") == []
    assert space.get(key="unknown") is None
    assert space.forget(key="unknown") == 0


def test_bad_keys_consume_nothing(space: Any) -> None:
    with pytest.raises(engram.InvalidArgument, match="twice") as caught:
        space.observe_batch(texts=["x", "y", "z"], keys=["k", None, "k"])
    assert (caught.value.field, caught.value.index) == ("keys", 2)
    with pytest.raises(engram.TooLarge, match="limit of 256"):
        space.observe("x", key="ä" * 129)
    for bad in ("", 7, b"k", "\ud800"):
        with pytest.raises(engram.InvalidArgument):
            space.observe("x", key=bad)
    with pytest.raises(engram.InvalidArgument, match="one str"):
        space.observe_batch(texts=["x"], keys="k")
    with pytest.raises(engram.InvalidArgument, match="differ in length"):
        space.observe_batch(texts=["x"], keys=["a", "b"])
    assert len(space) == 5
    ack = space.observe_batch(texts=["x", "y", "z", "w"], keys=["k", "k", "", None], atomic=False)
    assert [index for index, _ in ack.rejected] == [1, 2]
    assert [memory.text for memory in space.list(after=5)] == ["x", "w"]
    assert space.observe("x", key="ä" * 128).memory_id == 8


def test_the_space_as_it_was(space: Any) -> None:
    space.observe_batch(texts=["f", "g", "h"], keys=["k", None, None])  # 6, 7, 8
    time.sleep(0.002)
    between = datetime.now(UTC)
    time.sleep(0.002)
    space.observe("i", key="k")  # 9, 6 ends
    space.forget([1, 7])  # 10
    expected = {
        0: [],
        4: [],  # inside the first batch: the one before it
        5: [1, 2, 3, 4, 5],
        7: [1, 2, 3, 4, 5],
        8: [1, 2, 3, 4, 5, 6, 7, 8],
        9: [1, 2, 3, 4, 5, 7, 8, 9],
        10: [2, 3, 4, 5, 8, 9],
    }
    for _ in range(3):
        for generation, rows in expected.items():
            assert ids(space, as_of=generation) == rows, generation
            hits = space.recall(vector=[1, 0], k=9, as_of=np.int64(generation))
            assert [hit.memory_id for hit in hits] == [row for row in rows if row <= 5]
            found, _ = space.recall_batch([[1, 0]], k=9, as_of=generation)
            assert sum(map(bool, found[0].tolist())) == len(hits)
        assert ids(space, as_of=between) == expected[8]
        assert space.get(key="k", as_of=between).text == "f"
        assert space.get(1, as_of=9).text == "a"
        assert ids(space, as_of=datetime.now(UTC) + timedelta(days=1)) == expected[10]
        assert ids(space, as_of=datetime(1999, 1, 1, tzinfo=UTC)) == []
        space._engine.checkpoint()  # then the same from files
    with space.snapshot() as seen:
        space.forget(2)
        assert ids(seen, as_of=8) == expected[8]
        with pytest.raises(engram.InvalidArgument, match="the space is at 10"):
            ids(seen, as_of=11)
    for bad in (12, -1, True, 1.5, "1"):
        with pytest.raises(engram.InvalidArgument, match="as_of"):
            ids(space, as_of=bad)


def test_what_was_forgotten_stays_so_over_files_and_restarts(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    living: dict[int, str] = {}
    named: dict[str, int] = {}
    for life in range(4):
        with engram.open(tmp_path / "d", limits=LIMITS) as engine:
            space = engine.space("s", dim=4)
            assert {memory.memory_id: memory.text for memory in space.list()} == living
            assert len(space) == len(living) == space.stats()["memories"]
            for key, memory_id in named.items():
                memory = space.get(key=key)
                assert (memory and memory.memory_id) == (memory_id if memory_id in living else None)
            for step in range(60):
                key = f"k{rng.integers(9)}" if step % 3 == 0 else None
                text = f"{life} {step} " + "x" * 100
                memory_id = space.observe(text, vector=rng.normal(size=4), key=key).memory_id
                if key is not None:
                    living.pop(named.get(key, 0), None)
                    named[key] = memory_id
                living[memory_id] = text
                if step % 7 == 0:
                    gone = int(rng.choice(list(living)))
                    assert space.forget(gone) == 1
                    del living[gone]
            if life % 2:
                engine.checkpoint()
                assert space.stats()["sealed_parts"] > 0
    verdict = engram.verify(tmp_path / "d")
    assert (verdict["damage"], verdict["memories"]) == ([], len(living))


def test_a_forget_covers_what_was_acknowledged_before_it(space: Any) -> None:
    stop = threading.Event()
    acknowledged: list[int] = []

    def write() -> None:
        while not stop.is_set():
            acknowledged.append(space.observe("w", metadata={"w": 1}).memory_id)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    total = 0
    for _ in range(20):
        known = list(acknowledged)
        total += space.forget(where={"w": 1})
        assert not set(known) & set(ids(space, where={"w": 1}))
    stop.set()
    for writer in writers:
        writer.join()
    assert total + len(ids(space, where={"w": 1})) == len(acknowledged), "none twice, none by the way"


async def test_the_async_ones_are_the_same() -> None:
    async with await aio.open() as engine:
        space = await engine.space("s", dim=1)
        await space.observe("one", key="k")
        await space.observe_batch(texts=["two"], keys=["k"])
        assert await space.forget(key="k") == 1
        assert [one.ended for one in await space.history("k")] == [2, 3]
        assert await space.get(key="k") is None
        old = await space.get(key="k", as_of=2)
        assert old is not None
        assert old.text == "two"


def test_after_the_end(tmp_path: Path) -> None:
    engine = engram.open(tmp_path / "d")
    space = engine.space("s", dim=1)
    space.observe("x", key="k")
    engine.drop_space("s")
    for call in (lambda: space.forget(1), lambda: space.history("k"), lambda: space.get(key="k")):
        with pytest.raises(engram.NotFound):
            call()
    engine.close()
    with pytest.raises(engram.Closed):
        space.forget(where={"a": 1})


def test_superseded_versions_leave_the_files_that_recalls_read(tmp_path: Path) -> None:
    for life in range(2):
        with engram.open(tmp_path / "d", limits=LIMITS) as engine:
            space = engine.space("s", dim=2)
            for version in range(life * 20, life * 20 + 20):
                space.observe_batch(
                    texts=[f"{number} in version {version}" for number in range(50)],
                    vectors=[[1, number] for number in range(50)],
                    keys=[str(number) for number in range(50)],
                )
            until = time.monotonic() + 20
            engine.checkpoint()
            while (stats := space.stats())["sealed_rows"] > 100 and time.monotonic() < until:
                engine.checkpoint()
            assert stats["sealed_rows"] <= 100 < stats["history_rows"], stats
            assert stats["sealed_rows"] + stats["history_rows"] == 1_000 * (life + 1)
            for version in (0, 7, life * 20 + 19):
                then = space.list(as_of=50 * version + 50)
                assert [memory.text for memory in then] == [f"{n} in version {version}" for n in range(50)]
            assert [memory.text for memory in space.list()] == [f"{n} in version {version}" for n in range(50)]
            assert len(space.history("7")) == 20 * (life + 1)
    assert engram.verify(tmp_path / "d")["damage"] == []
