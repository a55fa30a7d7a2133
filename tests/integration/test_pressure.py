"""Overload through the public API, on a disk made slow: what is refused is told so, and what is accepted is there.

P1, P2, P4, P8. Needs a build with the fault hooks.
"""

import gc
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import engram

LIMIT = 1_000
BATCH = 100
PRODUCERS = 16


def test_a_slow_disk_refuses_and_recovers(tmp_path: Path) -> None:
    """What is accepted and refused adds up to what was sent; the depth stays below the limit; the level comes back."""
    with engram.open(tmp_path / "data", limits={"queue_observations_max": LIMIT, "partitions": 1}) as engine:
        space = engine.space("hammered", dim=4)
        space.observe(vector=[1, 0, 0, 0])
        engine._core.inject("sync@GroupSync=delay40")
        sent, accepted, refused = [0] * PRODUCERS, [0] * PRODUCERS, [0] * PRODUCERS
        told: list[engram.Overloaded] = []
        depths: list[int] = []
        levels: set[str] = set()
        stop = threading.Event()

        def watch() -> None:
            while not stop.is_set():
                stats = space.stats()
                depths.append(stats["queue_observations"])
                levels.add(stats["level"])
                time.sleep(0.0005)

        def produce(number: int) -> None:
            vectors = np.full((BATCH, 4), number + 1, np.float32)
            while not stop.is_set():
                sent[number] += BATCH
                try:
                    accepted[number] += len(space.observe_batch(vectors=vectors, on_overload="raise").memory_ids)
                except engram.Overloaded as error:
                    refused[number] += BATCH
                    told.append(error)
                    time.sleep(0.002)

        threads = [threading.Thread(target=watch)]
        threads += [threading.Thread(target=produce, args=(number,)) for number in range(PRODUCERS)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        stop.set()
        for thread in threads:
            thread.join()
        assert sum(refused) > 0
        assert sum(accepted) + sum(refused) == sum(sent)
        assert max(depths) <= LIMIT
        assert {"CRITICAL", "OVERLOADED"} & levels
        assert len(space) == sum(accepted) + 1
        assert all(10 <= error.retry_after_ms <= 60_000 for error in told)
        assert {error.level for error in told} <= {"NORMAL", "WARNING", "CRITICAL", "OVERLOADED"}
        assert space.stats()["drain_rate"] > 0
        engine._core.inject("")
        until = time.monotonic() + 10
        while space.stats()["level"] != "NORMAL" and time.monotonic() < until:
            time.sleep(0.01)
        assert space.stats()["level"] == "NORMAL"
        assert space.observe(vector=[0, 0, 0, 1], on_overload="raise").memory_id == sum(accepted) + 2


def test_who_waits_gets_in(tmp_path: Path) -> None:
    """`on_overload="wait"` loses nothing, and its timeout is told as `Overloaded`."""
    limits = {"queue_observations_max": 10, "partitions": 1}
    with engram.open(tmp_path / "data", limits=limits) as engine:
        space = engine.space("s", dim=1)
        space.observe(vector=[1])
        engine._core.inject("sync@GroupSync=delay100")
        threads = [threading.Thread(target=space.observe_batch, kwargs={"vectors": [[1.0]] * 10}) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        with pytest.raises(engram.Overloaded) as caught:
            space.observe_batch(vectors=[[1.0]] * 10, timeout=0.02)
        assert caught.value.level == "OVERLOADED"
        for thread in threads:
            thread.join()
        assert len(space) == 81


def test_a_bad_choice_is_named() -> None:
    with engram.open() as engine, pytest.raises(engram.InvalidArgument) as caught:
        engine.space("s", dim=1).observe(vector=[1], on_overload="drop")  # type: ignore[arg-type]
    assert caught.value.field == "on_overload"


def test_sessions_hear_of_levels(tmp_path: Path) -> None:
    """P5: by callback, and among the completions of frames; within 100 ms of the level, give or take a busy machine."""
    limits = {"queue_observations_max": 100, "partitions": 1}
    with engram.open(tmp_path / "data", limits=limits) as engine:
        space = engine.space("s", dim=1)
        called: list[tuple[str, int]] = []
        with space.session() as listener, space.session() as framed:
            listener.on_pressure(lambda level, advised_batch: called.append((level, advised_batch)))
            refused = framed.submit_frame(b"")  # whatever comes of it, its speaker uses frames
            assert refused is not None
            engine._core.inject("sync@GroupSync=delay200")
            ready = threading.Thread(target=space.observe_batch, kwargs={"vectors": [[1.0]] * 85})
            ready.start()
            until = time.monotonic() + 10
            while ("CRITICAL", 1024) not in called and time.monotonic() < until:
                time.sleep(0.005)
            ready.join()
            while called[-1:] != [("NORMAL", 256)] and time.monotonic() < until:
                time.sleep(0.005)
            assert [level for level, _ in called] == ["CRITICAL", "NORMAL"]
            engine._core.inject("")
            told = [data for session, data in engine.drain_completions() if session == framed.id]
            assert any(b"CRITICAL" in data for data in told)
            listener.on_pressure(None)
        with pytest.raises(engram.SessionExpired):
            listener.on_pressure(print)


def test_an_older_speaker_takes_nobodys_levels(tmp_path: Path) -> None:
    """P5: neither its end nor its late frame makes the new speaker deaf; and nobody is kept for a callback."""
    limits = {"queue_observations_max": 100, "partitions": 1}
    engine = engram.open(tmp_path / "data", limits=limits)
    space = engine.space("s", dim=1)
    older = space.session()
    newer = space.session(resume=older.token)
    called: list[str] = []
    newer.on_pressure(lambda level, _: called.append(level))
    assert older.submit_frame(b"") is not None
    with pytest.raises(engram.Fenced):
        older.on_pressure(print)
    older.detach()
    newer.submit_frame(b"")
    engine._core.inject("sync@GroupSync=delay200")
    writer = threading.Thread(target=space.observe_batch, kwargs={"vectors": [[1.0]] * 85})
    writer.start()
    until = time.monotonic() + 10
    while "CRITICAL" not in called and time.monotonic() < until:
        time.sleep(0.005)
    writer.join()
    assert "CRITICAL" in called
    assert any(b"CRITICAL" in data for _, data in engine.drain_completions())
    # A callback that raises the worst is logged, and the next is called.
    newer.on_pressure(lambda level, _: sys.exit(level))
    engine._core.inject("")
    del newer, older, space, writer, engine
    gc.collect()
    # The last reference is gone, and with it the lock: the thread of callbacks held neither.
    engram.open(tmp_path / "data").close()
