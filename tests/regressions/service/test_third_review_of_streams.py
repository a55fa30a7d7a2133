"""What a third hostile reading found of streams: who waits in line, and who closes."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import _base as futures
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import engram
import engram.aio
from engram.client import turns as turns_module
from engram.client.turns import Turns
from engram.server import Server
from integration.service.support import TESTS, ServerProcess, freeze, interrupted

Slow = tuple[engram.Engine, str]


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    """An engine whose acknowledgements a test may slow down, and its url."""
    with engram.open(tmp_path / "data") as engine, engram.serve(engine, grpc="127.0.0.1:0") as server:
        yield engine, server.url
        engine._core.inject("")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("place", ["has the turn", "waits for it"])
def test_a_loop_that_ends_leaves_nobody_in_the_line(slow: Slow, place: str) -> None:
    """All calls of the stream waited behind one that nobody would go on with."""
    engine, url = slow
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def stream_of() -> Any:
        remote = await engram.aio.connect(url)
        return remote, await (await remote.space("s", dim=2)).stream(buffer_bytes=0)

    async def begin(text: str) -> None:
        tasks.append(asyncio.create_task(stream.observe(text)))
        await asyncio.sleep(0.1)

    tasks: list[Any] = []
    remote, stream = first.run_until_complete(stream_of())
    engine._core.inject("sync@GroupSync=delay1000")
    first.run_until_complete(begin("first"))
    if place == "waits for it":
        first.run_until_complete(begin("has the turn"))
    second.run_until_complete(begin("of a loop that ends"))
    second.close()
    engine._core.inject("")
    first.run_until_complete(stream.observe("after", timeout=20))
    first.run_until_complete(stream.close())
    first.run_until_complete(remote.close())
    first.close()
    assert [memory.text for memory in engine.space("s").list()][-1] == "after"


def test_ctrl_c_while_a_call_leaves_the_line_does_not_stop_the_next() -> None:
    """The next was woken half: it slept for ever."""
    place, went = 0, True
    while went:
        place, went = place + 1, False
        turns, second = Turns("late"), threading.Event()
        behind = threading.Thread(target=turns.run, args=(second.set, None), daemon=True)

        def first(turns: Turns = turns, behind: threading.Thread = behind) -> None:
            behind.start()
            while len(turns._line) < 2:
                time.sleep(0.001)

        with pytest.MonkeyPatch.context() as patch:
            leave = turns._leave

            def interrupted_leave(mine: Any, place: int = place, leave: Any = leave) -> None:
                nonlocal went
                patch.undo()
                with interrupted(place, turns_module, threading, futures) as seen:
                    try:
                        leave(mine)
                    finally:
                        went = seen[0] == place

            patch.setattr(turns, "_leave", interrupted_leave)
            with suppress(KeyboardInterrupt):
                turns.run(first, None)
        assert second.wait(20), place
        behind.join()
        assert not turns.taken
    assert place > 3


def test_a_flush_waits_for_what_was_given_before_it(there: Any) -> None:
    """It waited for a moment in which all was acknowledged, and others went on observing."""
    with there.stream() as stream:
        stop = threading.Event()

        def others() -> None:
            while not stop.is_set():
                stream.observe_batch(texts=["x" * 100] * 20)

        threads = [threading.Thread(target=others) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                given = stream.given
                stream.flush(20)
                assert stream.committed >= given
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_a_callback_that_exits_ends_no_thread_but_its_own(there: Any) -> None:
    """It ended the client's: every call waited for ever."""

    def leave(_: Any) -> None:
        raise SystemExit

    with there.stream(on_progress=leave) as stream:
        stream.observe("x")
        stream.flush(20)
    assert len(there) == 1


def test_closing_that_failed_is_told_again(tmp_path: Path) -> None:
    """The second `close` said that all was well, and observations were lost."""
    with ServerProcess(tmp_path / "data") as process, engram.connect(process.url) as remote:
        space: Any = remote.space("s", dim=2)
        with space.stream() as stream:
            freeze(process.pid)
            stream.observe("x")
            for _ in range(2):
                with pytest.raises(engram.Timeout, match="given up"):
                    stream.close(timeout=0.2)
        os.kill(process.pid, signal.SIGCONT)


def test_a_batch_may_observe_where_its_texts_come_from(there: Any) -> None:
    """It had the turn meanwhile, and waited for itself."""
    with there.stream() as stream:

        def texts() -> Iterator[str]:
            yield "a"
            stream.observe("inner", timeout=10)
            yield "b"

        assert stream.observe_batch(texts=texts(), timeout=10) == range(2, 4)
    assert [memory.text for memory in there.list()] == ["inner", "a", "b"]


def test_frames_do_not_wait_for_calls(server: Server) -> None:
    """A batch waited for a thread of the connection, with the turn, and beyond its timeout."""

    async def run() -> None:
        async with await engram.aio.connect(server.url, threads=1) as remote:
            stream = await (await remote.space("s", dim=2)).stream()
            held = threading.Event()
            remote._calls.submit(held.wait)
            try:
                assert await asyncio.wait_for(stream.observe_batch(texts=["a"] * 3), 20) == range(1, 4)
                texts = [f"{number}" for number in range(9_000)]  # more frames than are made at once
                assert await asyncio.wait_for(stream.observe_batch(texts=texts), 20) == range(4, 9_004)
                await asyncio.wait_for(stream.close(), 20)
            finally:
                held.set()
            stored = [memory.text async for memory in (await remote.space("s")).list()]
            assert stored == ["a"] * 3 + texts

    asyncio.run(run())


def test_a_program_ends_though_its_close_was_given_up(tmp_path: Path) -> None:
    """The interpreter waited for the thread that closed."""
    program = """
import asyncio, sys, engram.aio
from integration.service.support import freeze
async def main():
    remote = await engram.aio.connect(sys.argv[1])
    stream = await (await remote.space("s", dim=2)).stream()
    freeze(int(sys.argv[2]))
    await stream.observe("x")
    try:
        await asyncio.wait_for(stream.close(), 0.2)
    except TimeoutError:
        print("given up")
asyncio.run(main())
"""
    with ServerProcess(tmp_path / "data") as process:
        command = [sys.executable, "-c", program, process.url, str(process.pid)]
        assert subprocess.check_output(command, text=True, timeout=40, cwd=TESTS) == "given up\n"
        os.kill(process.pid, signal.SIGCONT)


def test_who_closes_second_hears_that_the_first_gave_up(slow: Slow) -> None:
    """It heard the other thread's Ctrl-C."""
    engine, url = slow

    async def run() -> None:
        async with await engram.aio.connect(url) as remote:
            stream = await (await remote.space("s", dim=2)).stream()
            engine._core.inject("sync@GroupSync=delay1000")
            await stream.observe("x")
            first, second = (asyncio.create_task(stream.close()) for _ in range(2))
            await asyncio.sleep(0.2)
            first.cancel()
            with pytest.raises(engram.Closed, match="given up"):
                await second
            engine._core.inject("")

    asyncio.run(run())


def test_a_stream_that_is_dropped_says_what_is_lost(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    engine, url = slow
    with engram.connect(url) as remote:
        space: Any = remote.space("s", dim=2)
        stream = space.stream()
        engine._core.inject("sync@GroupSync=delay1000")
        stream.observe("x")
        del stream
        until = time.monotonic() + 20  # the timer of its frame still holds it
        while "1 observations were not acknowledged" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.01)
            gc.collect()
        caplog.clear()
        engine._core.inject("")
        stream = space.stream()
        stream.observe("y")
        stream.flush(20)
        gone = weakref.ref(stream)
        del stream
        while gone() is not None:
            assert time.monotonic() < until + 20
            time.sleep(0.01)
            gc.collect()
        assert not caplog.text


def test_a_call_that_races_with_the_end_of_its_connection_hears_of_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was begun behind the last look at what runs, and never ended."""
    remote = engram.connect(server.url)
    link: Any = remote.space("s", dim=2).stream().link  # type: ignore[attr-defined]
    check, looked = link.check, threading.Event()

    def late() -> None:
        check()
        if not looked.is_set():
            looked.set()
            time.sleep(0.5)

    monkeypatch.setattr(link, "check", late)
    said: list[BaseException] = []

    def call() -> None:
        try:
            link.call(asyncio.sleep(100))
        except engram.Closed as error:
            said.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    looked.wait()
    remote.close()
    thread.join(20)
    assert len(said) == 1


def test_a_task_that_was_cancelled_before_hears_that_the_connection_is_closed(slow: Slow) -> None:
    engine, url = slow

    async def run() -> None:
        remote = await engram.aio.connect(url)
        stream = await (await remote.space("s", dim=2)).stream()
        engine._core.inject("sync@GroupSync=delay1000")
        await stream.observe("x")

        async def work() -> None:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                with pytest.raises(engram.Closed):
                    await stream.flush()

        task = asyncio.create_task(work())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.sleep(0.1)
        await remote.close()
        await task
        await stream.detach()

    asyncio.run(run())


# ---- what the mending of these had left, or brought in ---------------------------------------------------------------


def test_frames_do_not_wait_for_the_loops_own_threads(server: Server) -> None:
    """Those waited for calls that stood behind the batch, and the batch for one of them."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2))
        async with await engram.aio.connect(server.url) as remote:
            stream = await (await remote.space("s", dim=2)).stream()

            def produce() -> None:
                for _ in range(100):
                    asyncio.run_coroutine_threadsafe(stream.observe("p"), loop).result(30)

            producing = [asyncio.create_task(asyncio.to_thread(produce)) for _ in range(2)]
            for _ in range(5):
                await asyncio.wait_for(stream.observe_batch(texts=["a"] * 300), 20)
            await asyncio.gather(*producing)
            await stream.close()
            assert stream.given == stream.committed == 1_700

    asyncio.run(run())


def test_garbage_that_closes_a_stream_may_be_collected_anywhere(there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a call of the same connection it waited for itself, and everybody for it."""
    begin = asyncio.run_coroutine_threadsafe
    other, said = there.stream(), threading.Event()

    def left_open() -> Iterator[None]:
        with there.stream() as stream:
            stream.observe("x")
            yield

    def collecting(work: Any, loop: asyncio.AbstractEventLoop) -> Any:
        garbage.clear()
        return begin(work, loop)

    def flush() -> None:
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", collecting)
        other.flush()
        said.set()

    garbage = [left_open()]
    next(garbage[0])
    threading.Thread(target=flush, daemon=True).start()
    assert said.wait(20)
    assert len(there) == 1
    other.close()


def test_an_error_in_a_block_is_seen_though_the_connection_is_closed_meanwhile(slow: Slow) -> None:
    engine, url = slow
    remote = engram.connect(url)
    stream = remote.space("s", dim=2).stream()  # type: ignore[attr-defined]
    engine._core.inject("sync@GroupSync=delay3000")
    closing = threading.Timer(0.5, remote.close)

    def block() -> None:
        with stream:
            stream.observe("x")
            closing.start()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        block()
    closing.join()


def test_a_task_that_cancels_itself_is_cancelled(server: Server) -> None:
    async def run() -> None:
        async with await engram.aio.connect(server.url) as remote:
            stream = await (await remote.space("s", dim=2)).stream()

            async def work() -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await stream.flush()

            with pytest.raises(asyncio.CancelledError):
                await asyncio.create_task(work())
            await stream.close()

    asyncio.run(run())
