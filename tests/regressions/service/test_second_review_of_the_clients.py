"""What a second hostile reading of the clients found: what is lost, waits for ever, or differs from an engine here."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import engram
import engram.aio
from engram.client import given as given_module
from engram.client import stream as stream_module
from engram.client import turns as turns_module
from engram.server import Server
from integration.service.support import ServerProcess


@pytest.fixture
def server() -> Iterator[Server]:
    with engram.open() as engine, engram.serve(engine, grpc="127.0.0.1:0") as server:
        yield server


@pytest.fixture
def there(server: Server) -> Iterator[Any]:
    with engram.connect(server.url) as remote:
        yield remote.space("s", dim=2)


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


@contextlib.contextmanager
def interrupted(place: int) -> Iterator[list[int]]:
    """Ctrl-C at the `place`th place of a stream's own code where the interpreter looks for signals; counts them."""
    files = {module.__file__ for module in (stream_module, given_module, turns_module)}
    seen = [0]

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename in files:
            seen[0] += 1
            if seen[0] == place:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_anywhere_in_observe_loses_nothing() -> None:
    """What was given was lost, and `flush` said that it was acknowledged; or the sequences had a gap."""
    texts = [f"t{n}" for n in range(1, 20)]

    def observes(space: Any, place: int) -> bool:
        stream, there = space.stream(), len(space)
        with contextlib.suppress(KeyboardInterrupt), interrupted(place) as seen:
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
        os.kill(process.pid, signal.SIGSTOP)
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
                        os.kill(process.pid, signal.SIGSTOP)

            task = asyncio.create_task(read())
            await asyncio.sleep(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            os.kill(process.pid, signal.SIGCONT)

    with ServerProcess(tmp_path / "data") as process:
        asyncio.run(run(process))


# ---- what ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "session"])
def test_the_error_of_a_block_is_the_one_that_is_seen(server: Server, kind: str) -> None:
    remote = engram.connect(server.url)

    def block() -> None:
        with getattr(remote.space("s", dim=2), kind)():
            remote.close()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        block()


def test_who_closes_a_stream_second_waits_too(there: Any) -> None:
    stream = there.stream()
    stream.observe_batch(texts=["x" * 1_000] * 5_000)
    stored: list[int] = []

    def close() -> None:
        stream.close()
        stored.append(len(there))

    threads = [threading.Thread(target=close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored == [5_000, 5_000]


def test_a_drained_session_ends_as_one_here(space: engram.Space) -> None:
    session = space.session()
    session.observe("a")
    session.drain()
    with pytest.raises(engram.Closed, match="the session is closed"):
        session.observe("late")
    assert (session.state, session.admitted, session.committed) == ("DRAINING", 1, 1)
    session.close()
    assert session.state == "CLOSED"
    for call in (session.drain, session.pause):
        with pytest.raises(engram.SessionExpired):
            call()
    given_up = space.session()
    given_up.detach()
    for call in (given_up.drain, given_up.pause, given_up.close):
        with pytest.raises(engram.Fenced):
            call()


def test_a_refusal_has_the_fields_of_its_kind(space: engram.Space) -> None:
    session = space.session()
    session.observe("a")
    with pytest.raises(engram.SequenceConflict) as caught:
        session.observe("b", sequence=1)
    assert engram._exceptions.fields_of(caught.value) == {"sequence": 1}
    with pytest.raises(engram.SequenceGap) as gap:
        session.observe("b", sequence=9)
    assert engram._exceptions.fields_of(gap.value) == {"expected": 2}
    session.close()


# ---- answers ---------------------------------------------------------------------------------------------------------

WRONG: dict[str, Callable[[engram.Space], object]] = {
    "a where of many digits": lambda s: list(s.list(where={"a": 10**5_000})),
    "a where of 65 bits": lambda s: list(s.list(where={"a": 2**64})),
    "k of 41 bits": lambda s: s.recall(vector=[1, 0], k=2**40),
    "a batch's k of 41 bits": lambda s: s.recall_batch([[1, 0]], k=2**40),
    "a batch's k of 30 bits": lambda s: s.recall_batch([[1, 0]], k=10**9),
    "a text for a recall": lambda s: s.recall(vector=[1, 0], target_recall="x"),  # type: ignore[arg-type]
    "no metric": lambda s: s._engine.space("typo", 2, metric=""),  # type: ignore[arg-type]
    "a number for a metric": lambda s: s._engine.space("typo", 2, metric=5),  # type: ignore[arg-type]
    "no durability": lambda s: s._engine.space("typo", 2, durability=""),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_told_in_the_same_words(server: Server, there: Any, name: str) -> None:
    said = []
    for space in (server.engine.space("s"), there):
        with pytest.raises(engram.InvalidArgument) as caught:
            WRONG[name](space)
        said.append((type(caught.value), caught.value.message, caught.value.field, caught.value.index))
    assert said[0] == said[1]
    assert server.engine.spaces() == ["s"]


def test_limits_are_those_of_the_engine(server: Server) -> None:
    with engram.connect(server.url) as remote:
        assert remote.limits == server.engine.limits
        remote.space("s", dim=2)
        assert remote.limits == server.engine.limits


def test_a_million_ids_are_forgotten_as_here(there: Any) -> None:
    there.observe("a")
    assert there.forget(range(2**40, 2**40 + 1_000_000)) == 0
    assert there.forget([1]) == 1


def test_a_space_of_another_directory_is_another(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    remote = engram.connect(server.url)
    space = remote.space("n", dim=2)
    assert space.observe("one").memory_id == 1
    server.stop()
    with engram.serve(grpc=f"127.0.0.1:{port}") as other:
        other.engine.space("n", dim=2)
        with pytest.raises(engram.NotFound):
            space.observe("two")
        assert len(other.engine.space("n")) == 0
    remote.close()


def test_the_proxy_of_the_environment_is_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with engram.connect(server.url, timeout=5) as remote:
        assert remote.spaces() == []


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x", "unix:foo", ":1", "h:0"])
def test_what_is_no_address_is_not_waited_for(address: str) -> None:
    begun = time.monotonic()
    with pytest.raises(engram.InvalidArgument, match="is not a url"):
        engram.connect(f"grpc://{address}")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("threads", [0, "x", 10**9])
def test_threads_of_coroutines_are_a_number(threads: Any) -> None:
    with pytest.raises(engram.InvalidArgument, match="threads"):
        asyncio.run(engram.aio.open(threads=threads))  # type: ignore[arg-type]


def test_a_callback_can_be_called(there: Any) -> None:
    with pytest.raises(engram.InvalidArgument, match="on_progress"):
        there.stream(on_progress=5)
