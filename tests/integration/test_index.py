"""Recall by the index, beside writers, forgets, filters and restarts; with the graph from the first row, and not."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engram
from engram import aio
from engram._sample import load_sample
from unit.test_completions import fields

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


def is_imaged(space: Any) -> bool:
    """Whether no image is due any more: one is not written again for an eighth more."""
    stats = space.stats()
    return bool(stats["index_imaged"] * 8 > stats["index_linked"] * 7)


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
            wait_until(lambda: is_imaged(space))
            return space.recall_batch(rows[:50], k=K, target_recall=1.0)

    with engram.open(tmp_path / "d", limits=limits) as engine:
        space = engine.space("s", dim=384)
        space.observe_batch(vectors=rows)
        assert space.wait_absorbed(timeout=60)
        wait_until(lambda: is_imaged(space))
        first = space.recall_batch(rows[:50], k=K, target_recall=1.0)
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


def test_recall_streams_one_snapshot(limits: dict[str, int]) -> None:
    """The batches are the hits of one recall, whatever is written, superseded and forgotten meanwhile (G3)."""
    rows = load_sample().vectors
    with engram.open(limits=limits) as engine:
        space = engine.space("s", dim=384)
        space.observe_batch(vectors=rows[:3_000], keys=[f"k{n}" for n in range(3_000)])
        whole = space.recall(vector=rows[5], k=95, target_recall=1.0)
        batches = []
        for batch in space.recall_stream(vector=rows[5], k=95, batch_size=10, target_recall=1.0):
            batches.append(batch)
            space.forget(whole[len(whole) - len(batches)].memory_id)
            space.observe(vector=rows[5], key=f"k{len(batches) * 3}")
        assert [len(batch.hits) for batch in batches] == [10] * 9 + [5]
        assert [(batch.index, batch.last) for batch in batches] == [(n, n == 9) for n in range(10)]
        assert {batch.generation for batch in batches} == {whole.generation}
        found = [hit for batch in batches for hit in batch.hits]
        assert [(h.memory_id, h.score) for h in found] == [(h.memory_id, h.score) for h in whole]
        assert space.stats()["snapshots"] == 0
        (empty,) = space.recall_stream(vector=rows[5], where={"nothing": "like it"})
        assert (empty.hits, empty.index, empty.last) == ([], 0, True)
        early = space.recall_stream(vector=rows[5], k=30)
        assert next(early).last is False
        assert space.stats()["snapshots"] == 1
        early.close()
        assert space.stats()["snapshots"] == 0
        with space.snapshot() as snapshot:
            space.forget(found[3].memory_id)
            again = [h.memory_id for b in snapshot.recall_stream(vector=rows[5], k=9, exact=True) for h in b.hits]
            assert again == [h.memory_id for h in snapshot.recall(vector=rows[5], k=9, exact=True)]
        for size in (0, 101, 1.5):
            with pytest.raises(engram.InvalidArgument, match="batch_size"):
                space.recall_stream(vector=rows[0], batch_size=size)  # type: ignore[arg-type]


def test_a_stream_left_alone_expires() -> None:
    with engram.open(limits={"snapshot_idle_ms_max": 30}) as engine:
        space = engine.space("s", dim=2)
        space.observe_batch(vectors=np.eye(2))
        stream = space.recall_stream(vector=[1, 0], k=2, batch_size=1)
        assert next(stream).hits[0].memory_id == 1
        time.sleep(0.1)
        with pytest.raises(engram.SnapshotExpired):
            next(stream)


def test_settled_reads_what_is_absorbed(tmp_path: Path) -> None:
    """G7: never stale in silence; the lag is told with every recall."""
    rows = load_sample().vectors
    with engram.open(tmp_path / "d", durability="os", limits={"index_graph_rows_min": 0}) as engine:
        space = engine.space("s", dim=384)
        for begin in range(0, 4_000, 500):
            space.observe_batch(vectors=rows[begin : begin + 500])
            hits = space.recall(vector=rows[begin], k=20, consistency="settled", max_lag=60)
            assert hits.generation == min(hits.generation, hits.absorbed)
            assert not any(hit.provisional or hit.memory_id > hits.absorbed for hit in hits)
            latest = space.recall(vector=rows[begin], k=20)
            assert latest.generation == begin + 500
            assert (latest.lag > 0) == (latest.absorbed < latest.generation)
            assert [h.provisional for h in latest] == [h.memory_id > latest.absorbed for h in latest]
        space.wait_absorbed(timeout=60)
        hits = space.recall(vector=rows[0], k=5, consistency="settled", max_lag=0)
        assert (hits.generation, hits.absorbed, hits.lag) == (4_000, 4_000, 0.0)
    with engram.open(tmp_path / "d", limits={"index_graph_rows_min": 0}) as engine:
        space = engine.space("s")
        if space.stats()["absorbed_generation"] < 4_000:  # the index is read: what was there an hour ago is late
            with suppress(engram.Timeout):
                assert space.recall(vector=rows[0], consistency="settled", max_lag=0.001).generation == 4_000
        with pytest.raises(engram.InvalidArgument, match="consistency"):
            space.recall(vector=rows[0], as_of=3, consistency="settled")
        for wrong in ({"consistency": "often"}, {"consistency": "settled", "max_lag": -1}):
            with pytest.raises(engram.InvalidArgument):
                space.recall(vector=rows[0], **wrong)  # type: ignore[arg-type]


def test_a_target_says_how_wide(limits: dict[str, int]) -> None:
    """More is found for a higher target; many threads find what one finds."""
    rows = load_sample().vectors
    with engram.open(limits=limits) as engine:
        space = engine.space("s", dim=384)
        space.observe_batch(vectors=rows)
        space.wait_absorbed(timeout=60)
        cues = rows[::20] + np.random.default_rng(3).normal(size=(len(rows[::20]), 384)).astype(np.float32) / 50
        for target in (0.9, 0.99, 1.0):
            assert recall(space, cues, target_recall=target) >= target - 0.005
        one, two = (space.recall_batch(cues, threads=threads) for threads in (1, 7))
        np.testing.assert_array_equal(one, two)
        for target in (0, 1.1, float("nan")):
            with pytest.raises(engram.InvalidArgument, match="target_recall"):
                space.recall(vector=rows[0], target_recall=target)
        with pytest.raises(engram.InvalidArgument, match="give one"):
            space.recall_batch(cues, ef=10, target_recall=0.9)


def test_a_session_hears_what_is_absorbed(limits: dict[str, int]) -> None:
    """O5: cumulative, for who asked to be told."""
    rows = load_sample().vectors
    with engram.open(limits=limits) as engine:
        space = engine.space("s", dim=384)
        space.observe_batch(vectors=rows[:10])
        session = space.session()
        session.tell_absorbed()
        session.observe_batch(vectors=rows[10:2_000])
        told: list[tuple[int, int]] = []

        def all_told() -> bool:
            for of, message in engine.drain_completions():
                assert of == session.id
                ((kind, body),) = fields(message)
                assert kind == 4
                numbers = dict(fields(body))
                told.append((numbers[1], numbers[2]))
            return bool(told) and told[-1][0] == 1_990

        wait_until(all_told)
        assert told == sorted(set(told))
        assert all(generation >= through + 10 or through == 1_990 for through, generation in told)
        assert session.absorbed == session.committed == 1_990


def test_all_at_once(tmp_path: Path) -> None:
    """Writers, versions, forgets, purges, recalls, snapshots, builders, successors and images, from the first row on.

    For three seconds, or a minute with ENGRAM_CAMPAIGN: no hit without its memory, none of what was forgotten before a
    recall began, what was acknowledged is found, and what lies on the disk in the end is sound.
    """
    rows = load_sample().vectors
    limits = {"index_graph_rows_min": 0, "index_image_idle_ms": 10, "partitions": 1, "seal_space_bytes": 1 << 20}
    until = time.monotonic() + (60 if os.environ.get("ENGRAM_CAMPAIGN") else 3)
    failures: list[str] = []
    counts = dict.fromkeys(["written", "missed", "forgotten", "recalls", "purges", "successors"], 0)

    def guarded(work: Callable[[np.random.Generator], None], seed: int) -> None:
        rng = np.random.default_rng(seed)
        while time.monotonic() < until and not failures:
            try:
                work(rng)
            except Exception as error:
                failures.append(repr(error))

    with engram.open(tmp_path / "d", durability="os", limits=limits) as engine:
        space = engine.space("s", dim=384)

        def write(rng: np.random.Generator) -> None:
            some = rows[rng.integers(len(rows), size=16)]
            keys = [f"k{n}" for n in rng.permutation(3_000)[:16]]
            ids = space.observe_batch(vectors=some, keys=keys).memory_ids.tolist()
            counts["written"] += len(ids)
            with space.snapshot() as snapshot:
                if snapshot.get(ids[3]) is not None:
                    counts["missed"] += snapshot.recall(vector=some[3], k=5)[0].score < 1 - 1e-5

        def forget(rng: np.random.Generator) -> None:
            ids = [
                memory.memory_id for memory in space.list(after=int(rng.integers(1, counts["written"] + 2)), limit=8)
            ]
            purge = rng.random() < 0.02
            for one in ids:
                counts["forgotten"] += space.forget(one, purge=purge)
            counts["purges"] += purge
            found = space.recall_batch(rows[rng.integers(len(rows), size=4)], k=50)[0]
            assert not set(ids) & set(found.ravel().tolist()), "what was forgotten is not found"

        def ask(rng: np.random.Generator) -> None:
            cues = rows[rng.integers(len(rows), size=8)]
            with space.snapshot() as snapshot:
                ids, scores = snapshot.recall_batch(cues, k=10)
                true_ids, truth = snapshot.recall_batch(cues, k=10, exact=True)
                assert ((ids > 0) == (true_ids > 0)).all()
                assert (scores <= truth + 1e-6).all()
                assert all(snapshot.get(one) is not None for one in ids[0].tolist() if one)
            counts["recalls"] += len(cues)

        def watch(_: np.random.Generator) -> None:
            before = space.stats()
            time.sleep(0.005)
            after = space.stats()
            assert after["absorbed_generation"] >= before["absorbed_generation"], "O5: it never goes back"
            counts["successors"] += after["index_rows"] < before["index_rows"]

        work = [write, write, forget, ask, ask, watch]
        threads = [threading.Thread(target=guarded, args=(each, seed)) for seed, each in enumerate(work)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        space.wait_absorbed(timeout=60)
        assert recall(space, rows[:50]) >= 0.95
        wait_until(lambda: is_imaged(space))
    assert engram.verify(tmp_path / "d")["damage"] == []
    assert min(counts["written"], counts["forgotten"], counts["recalls"]) > 0
    assert counts["missed"] * 16_000 <= counts["written"] + 16_000, "of a thousand acknowledged one may be missed"
    print(counts)


async def test_async() -> None:
    rows = load_sample().vectors[:500]
    async with await aio.open() as engine:
        space = await engine.space("s", dim=384)
        await space.observe_batch(vectors=rows)
        assert await space.wait_absorbed(timeout=60)
        assert (await space.recall(vector=rows[3], k=1, ef=64))[0].memory_id == 4
        batches = [batch async for batch in space.recall_stream(vector=rows[3], k=25, consistency="settled")]
        assert [(batch.index, len(batch.hits), batch.last) for batch in batches] == [
            (0, 10, False),
            (1, 10, False),
            (2, 5, True),
        ]


def test_what_is_new_to_the_graph_is_found_among_itself() -> None:
    """G6: rows unlike all before, at once: nothing that is linked tells which of them are near each other."""
    rng = np.random.default_rng(3)
    old = (rng.normal(size=(16, 48)) * 3)[rng.integers(0, 16, 8_000)] + rng.normal(size=(8_000, 48))
    centre = rng.normal(size=48) * 3
    new, cues = (centre + rng.normal(size=(count, 48)) for count in (1_500, 100))
    with engram.open(limits={"index_graph_rows_min": 0}) as engine:
        space = engine.space("s", dim=48, metric="l2")
        for rows in (old, new):
            space.observe_batch(vectors=rows.astype(np.float32))
            assert space.wait_absorbed()
        assert recall(space, cues.astype(np.float32)) >= 0.9
