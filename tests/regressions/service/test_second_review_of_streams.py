"""What a second hostile reading found of `ObserveStream`: what is lost, or waits for ever."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engram
import engram.aio
from engram.client import frames as frames_module
from engram.client import stream as stream_module
from engram.client import turns as turns_module
from engram.server import Server
from integration.service.support import ServerProcess, freeze, interrupted

# ---- a stream keeps what it was given --------------------------------------------------------------------------------


def test_what_is_changed_after_it_was_given_is_stored_as_given(there: Any) -> None:
    vector, metadata = np.zeros(2, "f4"), {"n": 0, "deep": {"list": [0]}}
    with there.stream() as stream:
        for n in range(1, 21):
            vector[:] = (n, 1)
            metadata["n"] = metadata["deep"]["list"][0] = n  # type: ignore[index]
            stream.observe(f"t{n}", vector=vector, metadata=metadata)
        metadata["n"] = float("nan")
    for n, memory in enumerate(there.list(), 1):
        assert memory.metadata == {"n": n, "deep": {"list": [n]}}
        assert there.get(memory.memory_id).vector.tolist() == [n, 1]


def test_an_observation_of_nothing_is_refused_and_the_stream_goes_on(there: Any) -> None:
    """The whole stream failed, when its frame had neither texts nor vectors."""
    with there.stream() as stream:
        for nothing in ({}, {"metadata": {"a": 1}}, {"key": "k"}, {"confidence": 0.5}):
            with pytest.raises(engram.InvalidArgument, match="needs a text or a vector"):
                stream.observe(**nothing)
        stream.observe("one")
    assert len(there) == 1


def test_observations_of_all_forms_leave_together(there: Any) -> None:
    forms: list[dict[str, Any]] = [
        {"text": "a"},
        {"vector": [1, 2]},
        {"text": "", "vector": [3, 4], "key": "k", "confidence": 0.5},
        {"text": "b", "metadata": {"m": [1]}, "observed_at": 7},
        {"text": "c", "key": "k"},
        {"vector": [5, 6], "key": "l"},
    ]
    with there.stream() as stream:
        for form in forms:
            stream.observe(**form)
    stored = [there.get(memory_id) or there.history("k")[0] for memory_id in range(1, 7)]
    for form, memory in zip(forms, stored, strict=True):
        vector = None if memory.vector is None else memory.vector.tolist()
        assert (memory.text, memory.key, vector) == (form.get("text"), form.get("key"), form.get("vector"))
        assert (memory.metadata, memory.confidence) == (form.get("metadata", {}), form.get("confidence", 1.0))
        assert (memory.observed_at and memory.observed_at.timestamp()) == form.get("observed_at")


def test_a_program_that_leaves_a_stream_open_loses_nothing(server: Server) -> None:
    program = f"""
import engram
stream = engram.connect({server.url!r}).space("s", dim=2).stream()
for n in range(1000):
    stream.observe(str(n))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert len(server.engine.space("s")) == 1_000


def test_ctrl_c_anywhere_in_observe_loses_nothing() -> None:
    """What was given was lost, and `flush` said that it was acknowledged; or the sequences had a gap."""
    texts = [f"t{n}" for n in range(1, 20)]

    def observes(space: Any, place: int) -> bool:
        stream, there = space.stream(), len(space)
        with (
            contextlib.suppress(KeyboardInterrupt),
            interrupted(place, stream_module, frames_module, turns_module) as seen,
        ):
            for text in texts[:10]:
                stream.observe(text)
            stream.observe_batch(texts=texts[10:])
        stream.observe("after", key=f"{place}")
        stream.flush(20)
        stored = [memory.text for memory in space.list()][there:]
        assert stream.committed == stream.given == len(stored), place
        assert stored == [*texts[: len(stored) - 1], "after"], place
        stream.close()
        return seen[0] == place

    limits = {"batch_items_max": 3}
    with engram.serve(grpc="127.0.0.1:0", limits=limits) as server, engram.connect(server.url) as remote:
        space = remote.space("s", dim=2)
        places = itertools.count(1, 3)
        assert sum(1 for _ in itertools.takewhile(lambda place: observes(space, place), places)) > 100


def test_limits_below_the_advice_are_heeded() -> None:
    for limits in ({"batch_items_max": 100}, {"batch_bytes_max": 64 << 10}):
        with (
            engram.open(limits=limits) as engine,
            engram.serve(engine, grpc="127.0.0.1:0") as server,
            engram.connect(server.url) as remote,
        ):
            space: Any = remote.space("s", dim=2)
            with space.stream() as stream:
                for _ in range(300):
                    stream.observe("x" * 500)
                stream.observe_batch(texts=["y" * 500] * 1_000)
            assert len(space) == 1_300
            assert stream.rejected == []
    limits = {"batch_bytes_max": 1_000}
    with engram.serve(grpc="127.0.0.1:0", limits=limits) as server, engram.connect(server.url) as remote:
        small: Any = remote.space("s", dim=2)
        with small.stream() as stream, pytest.raises(engram.TooLarge, match="takes 1000"):
            stream.observe("x" * 2_000)


def test_a_batch_is_one_moment_however_it_is_cut(there: Any) -> None:
    stream = there.stream()
    keys = [f"k{i}" for i in range(300)]
    with pytest.raises(engram.InvalidArgument, match="comes twice") as caught:
        stream.observe_batch(texts=["t"] * 300, keys=[*keys[:-1], "k0"])
    assert (caught.value.field, caught.value.index) == ("keys", 299)
    for nothing in ({}, {"texts": []}, {"confidence": 0.5}):
        with pytest.raises(engram.InvalidArgument, match="an empty batch"):
            stream.observe_batch(**nothing)
    assert stream.given == 0
    stream.close()


# ---- nobody waits for ever -------------------------------------------------------------------------------------------


def test_a_callback_that_observes_is_told_so(there: Any) -> None:
    """It froze the connection, when another thread waited for room meanwhile."""
    said: list[BaseException] = []

    def progress(stream: engram.ObserveStream) -> None:
        try:
            stream.observe("from the callback")
        except RuntimeError as error:
            said.append(error)

    with there.stream(buffer_bytes=3_000, on_progress=progress) as stream:
        for _ in range(20):
            stream.observe_batch(texts=["z" * 2_500] * 3)
        assert len(there) > 0
    assert said
    assert all("own thread" in str(error) for error in said)


def test_the_time_to_wait_is_that_of_the_whole_call(tmp_path: Path) -> None:
    """It did not count while another thread had the turn."""
    with ServerProcess(tmp_path / "data") as process, engram.connect(process.url) as remote:
        stream = remote.space("s", dim=2).stream(buffer_bytes=1_000)  # type: ignore[attr-defined]
        freeze(process.pid)
        stream.observe_batch(texts=["x" * 2_000])
        first = threading.Thread(target=lambda: stream.observe("first", timeout=30))
        first.start()
        while not stream.turns.taken:
            time.sleep(0.01)
        begun = time.monotonic()
        with pytest.raises(engram.Timeout):
            stream.observe("second", timeout=0.3)
        assert time.monotonic() - begun < 5
        os.kill(process.pid, signal.SIGCONT)
        first.join()
        stream.close()
        assert [memory.text for memory in remote.space("s").list()][1:] == ["first"]


def test_times_are_looked_at_though_there_is_room(there: Any) -> None:
    with there.stream() as stream:
        for wrong in ("x", -1, float("nan"), True):
            with pytest.raises(engram.InvalidArgument, match="timeout"):
                stream.observe("a", timeout=wrong)
            with pytest.raises(engram.InvalidArgument, match="timeout"):
                stream.observe_batch(texts=["a"], timeout=wrong)
        assert stream.given == 0


def test_calls_of_coroutines_keep_their_order(server: Server) -> None:
    async def run() -> None:
        async with await engram.aio.connect(server.url) as remote:
            space = await remote.space("s", dim=2)
            async with await space.stream(buffer_bytes=2_000) as stream:
                calls: list[Any] = [stream.observe(f"{i}", metadata={"p": "z" * 500}) for i in range(150)]
                calls.insert(60, stream.observe_batch(texts=["batch"] * 3))
                given = await asyncio.gather(*calls)
            assert given == [*range(1, 61), range(61, 64), *range(64, 154)]
            assert [memory.text async for memory in space.list()][60:63] == ["batch"] * 3
            stream = await space.stream(buffer_bytes=10)
            cancelled = [asyncio.ensure_future(stream.observe("x" * 1_000)) for _ in range(30)]
            await asyncio.sleep(0)
            for task in cancelled[::2]:
                task.cancel()
            await asyncio.gather(*cancelled, return_exceptions=True)
            await stream.observe("last", timeout=20)  # the cancelled stand in nobody's way
            await stream.close()

    asyncio.run(run())


def test_a_cancelled_stream_of_hits_says_so(tmp_path: Path) -> None:
    """`ValueError: generator already executing` came instead."""

    async def run(process: ServerProcess) -> None:
        async with await engram.aio.connect(process.url) as remote:
            space = await remote.space("s", dim=2)
            await space.observe_batch(vectors=np.ones((90, 2), "f4"), texts=["x" * 30_000] * 90)

            async def read() -> None:
                async for batch in space.recall_stream(vector=[1, 0], k=90, batch_size=1):
                    if batch.index == 0:
                        freeze(process.pid)

            task = asyncio.create_task(read())
            await asyncio.sleep(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            os.kill(process.pid, signal.SIGCONT)

    with ServerProcess(tmp_path / "data") as process:
        asyncio.run(run(process))


# ---- what the first mending had left, or brought in ------------------------------------------------------------------


def test_cancelled_calls_leave_no_thread_and_no_order_behind(tmp_path: Path) -> None:
    """Their threads waited for ever for a turn that nobody gave them, and the interpreter with them."""

    async def run(process: ServerProcess) -> None:
        async with await engram.aio.connect(process.url) as remote:
            space = await remote.space("s", dim=2)
            stream = await space.stream(buffer_bytes=0)
            await stream.observe("a")
            await stream.flush()
            freeze(process.pid)
            await stream.observe("b")
            await asyncio.sleep(0.05)
            batch = asyncio.create_task(stream.observe_batch(texts=["batch"] * 600))
            waiting = [asyncio.create_task(stream.observe(f"w{i}")) for i in range(6)]
            await asyncio.sleep(0.3)
            for task in (batch, *waiting[1:5]):
                task.cancel()
            await asyncio.sleep(0.2)
            os.kill(process.pid, signal.SIGCONT)
            await asyncio.gather(batch, *waiting, return_exceptions=True)
            await stream.close()
            assert [memory.text async for memory in space.list()] == ["a", "b", "w0", "w5"]
            assert not any("turns.py" in place for place in where_threads_are("engram-aio"))

    with ServerProcess(tmp_path / "data") as process:
        asyncio.run(run(process))


def test_who_waits_for_room_holds_no_thread(tmp_path: Path) -> None:
    """Full streams held all threads of the connection, and its recalls waited for them."""

    async def run(engine: engram.Engine, url: str) -> None:
        async with await engram.aio.connect(url, threads=1) as remote:
            other, space = await remote.space("other", dim=2), await remote.space("s", dim=2)
            stream = await space.stream(buffer_bytes=0)
            engine._core.inject("sync@GroupSync=delay2000")
            await stream.observe("first")
            batch = asyncio.create_task(stream.observe_batch(texts=["batch"] * 600))
            single = asyncio.create_task(stream.observe("single"))
            await asyncio.sleep(0.1)
            assert await other.count() == 0
            assert not any(task.done() for task in (batch, single))
            with pytest.raises(engram.Timeout):
                await stream.observe_batch(texts=["late"], timeout=0)
            engine._core.inject("")
            assert await batch == range(2, 602)
            assert await single == 602
            await stream.flush()
            assert await stream.observe_batch(texts=["batch"], timeout=0) == range(603, 604)
            await stream.close()
            assert [memory.text async for memory in space.list()] == ["first", *["batch"] * 600, "single", "batch"]

    with engram.open(tmp_path / "data") as engine, engram.serve(engine, grpc="127.0.0.1:0") as server:
        asyncio.run(run(engine, server.url))


def where_threads_are(name: str) -> list[str]:
    frames = sys._current_frames()
    places = [frames[thread.ident] for thread in threading.enumerate() if thread.ident and thread.name.startswith(name)]
    return ["".join(traceback.format_stack(frame)) for frame in places]


def test_a_callback_may_not_close(there: Any) -> None:
    """It waited for itself; or what it was refused was half done."""
    said: list[BaseException] = []

    def close(stream: engram.ObserveStream) -> None:
        for end in (stream.close, stream.detach):
            try:
                end()
            except RuntimeError as error:
                said.append(error)

    stream = there.stream(on_progress=close)
    stream.observe("x")
    stream.flush(20)
    assert len(said) >= 2
    stream.observe("y")
    stream.close(20)
    assert "CLOSED" in repr(stream)
    assert len(there) == 2


def test_an_exit_does_not_wait_for_each_stream(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as process:
        program = f"""
import os, signal, engram
space = engram.connect({process.url!r}).space("s", dim=2)
streams = [space.stream() for _ in range(12)]
os.kill({process.pid}, signal.SIGKILL)
for stream in streams:
    stream.observe("x")
"""
        begun = time.monotonic()
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
        assert time.monotonic() - begun < 25


def test_what_single_observations_lack_takes_room_in_their_frame() -> None:
    limits = {"batch_bytes_max": 64 << 10}
    with engram.serve(grpc="127.0.0.1:0", limits=limits) as server, engram.connect(server.url) as remote:
        space: Any = remote.space("s", dim=2)
        for length in range(200, 260, 6):
            with space.stream() as stream:
                for i in range(600):
                    stream.observe("a" * length, **({"observed_at": 1.0} if i % 100 == 0 else {}))
        assert len(space) == 6_000


def test_who_closes_second_waits_no_longer_than_it_says(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as process, engram.connect(process.url) as remote:
        stream = remote.space("s", dim=2).stream(reconnect=4)  # type: ignore[attr-defined]
        freeze(process.pid)
        stream.observe("x")
        first: list[BaseException] = []

        def close() -> None:
            try:
                stream.close()
            except engram.EngramError as error:
                first.append(error)

        thread = threading.Thread(target=close)
        thread.start()
        time.sleep(0.3)
        begun = time.monotonic()
        with pytest.raises(engram.Timeout, match="another call"):
            stream.close(timeout=0.2)
        assert time.monotonic() - begun < 3
        process.kill()
        with pytest.raises(engram.Unavailable):
            stream.close()
        thread.join()
        assert [type(error) for error in first] == [engram.Unavailable]
