"""Recall by the index, beside writers, forgets, filters and restarts; with the graph from the first row, and not."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engram
from engram import aio
from engram._sample import load_sample

K = 10
LIMITS = {"graph from the first row": {"index_graph_rows_min": 0}, "default": {}}


@pytest.fixture(params=LIMITS.values(), ids=LIMITS)
def limits(request: pytest.FixtureRequest) -> dict[str, int]:
    return dict(request.param)


def recall(reads: Any, cues: np.ndarray, k: int = K, **options: Any) -> float:
    """Return the share of the exact answers found, a score as good as the last one counting; scores must be exact."""
    ids, scores = reads.recall_batch(cues, k=k, **options)
    true_ids, truth = reads.recall_batch(cues, k=k, exact=True, **options)
    np.testing.assert_array_equal(ids > 0, true_ids > 0)  # k come back whenever k can (G4)
    for found, of, true, at in zip(ids, scores, true_ids, truth, strict=True):
        known = dict(zip(true.tolist(), at.tolist(), strict=True))
        assert all(known.get(one, score) == score for one, score in zip(found.tolist(), of.tolist(), strict=True))
    return float(np.mean(scores >= truth[:, -1:]))


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_real_rows_while_they_come_and_after(tmp_path: Path, limits: dict[str, int], metric: Any) -> None:
    """G6, O6: recall at every tenth; the graph takes over without a cliff; after a restart, too."""
    sample = load_sample()
    scale = np.exp(np.random.default_rng(1).normal(size=(len(sample.vectors), 1)) / 4) if metric != "cosine" else 1
    rows = (sample.vectors * scale).astype(np.float32)
    with engram.open(tmp_path / "d", durability="os", limits=limits) as engine:
        space = engine.space("s", dim=384, metric=metric)
        for begin in range(0, len(rows), 400):
            space.observe_batch(vectors=rows[begin : begin + 400])
            assert recall(space, sample.query_vectors) >= 0.95
            newest, _ = space.recall_batch(rows[begin : begin + 400 : 40], k=1)
            if metric != "ip":
                assert newest[:, 0].tolist() == list(range(begin + 1, begin + 401, 40)), "read your writes"
        assert space.wait_absorbed()
        stats = space.stats()
        assert stats["absorbed_generation"] == stats["generation"] == stats["index_rows"] == len(rows)
        assert stats["index_linked"] == (len(rows) if limits else 0)
        assert recall(space, sample.query_vectors) >= 0.95
    with engram.open(tmp_path / "d", limits=limits) as engine:
        space = engine.space("s")
        assert recall(space, sample.query_vectors) >= 0.95
        space.wait_absorbed(timeout=60)
        assert space.stats()["index_linked"] == (len(rows) if limits else 0)
        assert recall(space, sample.query_vectors) >= 0.95


def test_forgets_snapshots_and_filters(tmp_path: Path, limits: dict[str, int]) -> None:
    """G3, G4, K2: the walk passes over what may not be returned."""
    sample = load_sample()
    rows, cues = sample.vectors, sample.query_vectors
    with engram.open(tmp_path / "d", durability="os", limits=limits) as engine:
        space = engine.space("s", dim=384)
        for begin in range(0, len(rows), 500):
            batch = rows[begin : begin + 500]
            marks = [{"n": n, "half": n % 2, "rare": n % 200} for n in range(begin, begin + len(batch))]
            space.observe_batch(vectors=batch, metadata=marks)
        space.wait_absorbed()
        for where in ({"half": 1}, {"rare": 7}, {"n": 1_234}, {"n": {"$lt": 30}}, {"n": -1}):
            assert recall(space, cues, where=where) >= 0.95, where
        with space.snapshot() as before:
            assert space.forget(where={"half": 0}) == len(rows) // 2
            assert recall(before, cues) >= 0.95
            ids, _ = before.recall_batch(cues, k=K)
            assert (ids % 2 == 1).any(), "it still sees what was forgotten since"
        ids, _ = space.recall_batch(cues, k=K)
        assert (ids % 2 == 0).all()
        assert recall(space, cues) >= 0.95
        assert recall(space, cues[:3], k=len(rows)) == 1.0, "k larger than the space"
        engine.checkpoint()
        assert recall(space, cues, where={"half": 1}) >= 0.95


def test_copies_one_row_and_nothing(limits: dict[str, int]) -> None:
    with engram.open(limits=limits) as engine:
        space = engine.space("s", dim=32)
        assert len(space.recall(vector=[1] * 32, k=3)) == 0
        assert space.wait_absorbed(timeout=0)
        space.observe("one", vector=[1] * 32)
        space.observe("no vector")
        assert [hit.text for hit in space.recall(vector=[1] * 32, k=3)] == ["one"]
        copies = np.tile(np.arange(32, dtype=np.float32), (3_000, 1))
        space.observe_batch(vectors=copies)
        space.wait_absorbed(timeout=60)
        _, scores = space.recall_batch(copies[:1], k=50)
        assert (scores >= 0.999_999).all()


def test_recalls_beside_writers_and_forgets(limits: dict[str, int]) -> None:
    """O6: what was acknowledged is found at once, what was forgotten never, whatever is being built."""
    rows = load_sample().vectors
    with engram.open(limits={**limits, "seal_space_bytes": 1 << 20}) as engine:
        space = engine.space("s", dim=384, durability="memory")
        failures: list[str] = []

        def write(part: int) -> None:
            for at in range(part, len(rows), 8):
                memory_id = space.observe(vector=rows[at]).memory_id
                if at % 3 == 0 and space.recall(vector=rows[at], k=1)[0].memory_id != memory_id:
                    failures.append(f"row {at} was not found")
                if at % 5 == 0:
                    space.forget(memory_id)
                    if any(hit.memory_id == memory_id for hit in space.recall(vector=rows[at], k=5)):
                        failures.append(f"row {at} was forgotten, and found")

        threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        space.wait_absorbed(timeout=60)
        assert recall(space, rows[:50]) >= 0.95


def test_what_may_be_asked(limits: dict[str, int]) -> None:
    rows = load_sample().vectors[:2_000]
    with engram.open(limits=limits) as engine:
        space = engine.space("s", dim=384)
        space.observe_batch(vectors=rows)
        for ef in (0, 16_385, 1.5, True):
            with pytest.raises(engram.InvalidArgument, match="ef"):
                space.recall(vector=rows[0], ef=ef)  # type: ignore[arg-type]
        with pytest.raises(engram.InvalidArgument, match="timeout"):
            space.wait_absorbed(timeout=-1)
        space.wait_absorbed(timeout=60)
        narrow, wide = (recall(space, rows[:100] + 0.02, ef=ef) for ef in (1, 1_000))
        assert 0.2 < narrow <= wide
        assert wide >= 0.99


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_an_image_spares_the_building(tmp_path: Path) -> None:
    """D5: rebuilt = 0 with the image, 1 without or damaged, the same answers; a purge takes it along (K3)."""
    rows, limits = load_sample().vectors, {"index_graph_rows_min": 0, "index_image_idle_ms": 20, "partitions": 1}

    def opened(rebuilt: int) -> Any:
        with engram.open(tmp_path / "d", limits=limits) as engine:
            space = engine.space("s")
            assert recall(space, rows[:50]) >= 0.95
            assert space.wait_absorbed(timeout=60)
            assert space.stats()["index_rebuilt"] == rebuilt
            assert recall(space, rows[:50]) >= 0.95
            wait_until(lambda: space.stats()["index_imaged"] == space.stats()["index_linked"])
            return space.recall_batch(rows[:50], k=K)

    with engram.open(tmp_path / "d", limits=limits) as engine:
        space = engine.space("s", dim=384)
        space.observe_batch(vectors=rows)
        wait_until(lambda: space.stats()["index_imaged"] == len(rows))
        first = space.recall_batch(rows[:50], k=K)
    (image,) = (tmp_path / "d").rglob("*.index")
    np.testing.assert_array_equal(opened(0), first)
    image.unlink()
    np.testing.assert_array_equal(opened(1), first)
    damaged = bytearray(image.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    image.write_bytes(damaged)
    (damage,) = engram.verify(tmp_path / "d")["damage"]
    assert (damage["path"], damage["space"], damage["lost"]) == (str(image.relative_to(tmp_path / "d")), "s", None)
    np.testing.assert_array_equal(opened(1), first)
    assert engram.verify(tmp_path / "d")["damage"] == []
    with engram.open(tmp_path / "d", limits=limits) as engine:
        space = engine.space("s")
        space.wait_absorbed(timeout=60)
        before = image.stat().st_mtime_ns
        assert space.forget(7, purge=True) == 1
        wait_until(lambda: space.stats()["index_imaged"] == len(rows) - 1)
        assert image.stat().st_mtime_ns != before
        assert space.stats()["index_rows"] == len(rows) - 1
        assert recall(space, rows[:50]) >= 0.95
    assert engram.verify(tmp_path / "d")["damage"] == []


def test_the_dead_leave_the_index() -> None:
    """G6: after forgetting half and refilling, three times; nobody who looks back is disturbed."""
    rows = load_sample().vectors
    with engram.open(limits={"index_graph_rows_min": 0}) as engine:
        space = engine.space("s", dim=384)
        living = space.observe_batch(vectors=rows[:2_000]).memory_ids.tolist()
        for turn in range(3):
            space.wait_absorbed(timeout=60)
            with space.snapshot() as snapshot:
                before = snapshot.recall_batch(rows[:50], k=K, exact=True)
                assert space.forget(living[turn % 2 :: 2]) == len(living) // 2
                np.testing.assert_array_equal(snapshot.recall_batch(rows[:50], k=K, exact=True), before)
                assert recall(snapshot, rows[:50]) >= 0.95
                assert space.stats()["index_rows"] == 2_000
            wait_until(lambda: space.stats()["index_rows"] == 1_000)
            assert recall(space, rows[:50]) >= 0.95
            living = living[1 - turn % 2 :: 2] + space.observe_batch(vectors=rows[-1_000:]).memory_ids.tolist()
            assert recall(space, rows[:50]) >= 0.95


async def test_async() -> None:
    rows = load_sample().vectors[:500]
    async with await aio.open() as engine:
        space = await engine.space("s", dim=384)
        await space.observe_batch(vectors=rows)
        assert await space.wait_absorbed(timeout=60)
        assert (await space.recall(vector=rows[3], k=1, ef=64))[0].memory_id == 4
