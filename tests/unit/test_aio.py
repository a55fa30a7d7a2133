"""engram.aio: the same engine, from coroutines."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

import engram
from engram import aio

pytestmark = pytest.mark.usefixtures("both_graphs")


async def test_many_observe_and_recall_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(200, 8)).astype(np.float32)
    async with await aio.open(tmp_path / "d", limits={"partitions": 2}) as engine:
        notes = await engine.space("notes", dim=8)

        async def one(row: int) -> int:
            ack = await notes.observe(f"text {row}", vector=vectors[row])
            found = await notes.recall(vector=vectors[row], k=1)  # O6: read your writes
            assert found[0].memory_id == ack.memory_id
            return ack.memory_id

        ids = await asyncio.gather(*(one(row) for row in range(200)))
        assert sorted(ids) == list(range(1, 201))
        assert await notes.count() == 200
        listed = [memory.memory_id async for memory in notes.list(after=10, limit=150)]
        assert listed == list(range(11, 161))
        found, scores = await notes.recall_batch(vectors, k=1)
        np.testing.assert_array_equal(found[:, 0], ids)
        np.testing.assert_allclose(scores, 1, atol=1e-5)
    with engram.open(tmp_path / "d") as again:
        assert len(again.space("notes")) == 200


async def test_snapshot_and_the_rest_of_the_methods() -> None:
    async with await aio.open() as engine:
        assert engine.path is None
        notes = await engine.space("notes", dim=2, metric="l2", durability="os")
        assert (notes.name, notes.dim, notes.metric, notes.durability) == ("notes", 2, "l2", "os")
        await notes.observe_batch(texts=["a", "b"], vectors=[[0, 0], [1, 1]])
        async with await notes.snapshot() as seen:
            await notes.observe("c", vector=[2, 2])
            assert seen.generation == 2
            assert await seen.count() == 2
            assert await seen.get(3) is None
            assert len(await seen.recall(vector=[0, 0], k=9)) == 2
        with pytest.raises(engram.SnapshotExpired):
            await seen.count()
        third = await notes.get(3)
        assert third is not None
        assert third.text == "c"
        assert (await notes.stats())["memories"] == 3
        assert (await engine.stats())["spaces"] == 1
        await engine.checkpoint()
        assert await engine.spaces() == ["notes"]
        await engine.drop_space("notes")
        with pytest.raises(engram.NotFound):
            await engine.space("notes")


async def test_errors_come_through_and_closing_twice_is_fine() -> None:
    engine = await aio.open()
    notes = await engine.space("notes", dim=2)
    with pytest.raises(engram.InvalidArgument, match="3 dimensions"):
        await notes.observe(vector=[1, 2, 3])
    await engine.close()
    await engine.close()
    with pytest.raises(engram.Closed):
        await notes.recall(vector=[1, 2])
    with pytest.raises(engram.InvalidArgument, match="unknown limit"):
        await aio.open(limits={"nonsense": 1})


async def test_a_cancelled_wait_leaves_the_engine_well() -> None:
    async with await aio.open(threads=1) as engine:
        notes = await engine.space("notes", dim=2)
        tasks = [asyncio.create_task(notes.observe(str(i), vector=[1, i])) for i in range(50)]
        await asyncio.sleep(0)
        for task in tasks[10:]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        acknowledged = {o.memory_id for o in outcomes if isinstance(o, engram.Ack)}
        stored = {memory.memory_id async for memory in notes.list()}
        assert len(acknowledged) >= 10
        assert acknowledged <= stored


async def test_levels_quotas_and_quarantine_reach_coroutines(tmp_path: Path) -> None:
    """P5, O7: each by its effect; the callback runs on the loop."""
    async with await aio.open(tmp_path / "d", limits={"partitions": 1, "queue_observations_max": 100}) as engine:
        notes = await engine.space("notes", dim=2)
        session = await notes.session()
        heard: asyncio.Queue[tuple[str, int, bool]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        await session.on_pressure(
            lambda level, size: heard.put_nowait((level, size, asyncio.get_running_loop() is loop))
        )
        inject = engine._engine._core.inject
        inject("sync@GroupSync=delay200")
        await notes.observe_batch(vectors=np.ones((85, 2)))
        assert await asyncio.wait_for(heard.get(), 10) == ("CRITICAL", 1024, True)
        assert await asyncio.wait_for(heard.get(), 10) == ("NORMAL", 256, True)
        await session.on_pressure(None)
        inject("")
        inject("apply:poison=panic")
        with pytest.raises(engram.Quarantined):
            await notes.observe("poison")
        [batch] = await notes.quarantined()
        assert [memory.text for memory in await notes.read_quarantined(batch.memory_ids[0])] == ["poison"]
        await notes.set_quota(memories=85)
        with pytest.raises(engram.QuotaExceeded):
            await notes.observe("one too many")
        await session.close()
