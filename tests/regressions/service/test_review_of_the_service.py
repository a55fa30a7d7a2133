"""What a hostile reading of the server and its client found."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

import engram
import engram.aio
from engram.server import Server
from engram.v1 import service_pb2 as pb
from integration.service.support import ServerProcess, in_a_fork
from integration.test_processes import finished, python

NAN = np.full((1_000, 2), np.nan, "f4")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with engram.open() as engine, engram.serve(engine, grpc="127.0.0.1:0") as server:
        yield server


@pytest.fixture(scope="module")
def remote(server: Server) -> Iterator[engram.Engine]:
    with engram.connect(server.url) as engine:
        yield engine


def test_each_observation_that_holds_nothing_is_told(remote: engram.Engine) -> None:
    """S3: acknowledgements came before the faults, and a burst of faults had the stream cut."""
    session = remote.space("nothing", dim=2).session()
    for _ in range(3):
        assert len(session.observe_batch(vectors=NAN, atomic=False).rejected) == 1_000
    many = session.observe_batch(vectors=np.full((16_000, 2), np.nan, "f4"), atomic=False)
    assert len(many.rejected) == 16_000
    session.close()
    with remote.space("nothing").stream() as stream:  # type: ignore[attr-defined]
        for _ in range(20):
            stream.observe_batch(vectors=NAN)
        stream.flush()
        assert [sequence for sequence, _ in stream.rejected] == [*range(1, 20_001)]
        assert stream.reconnects == 0


def test_threads_get_the_sequences_of_their_own_observations(remote: engram.Engine) -> None:
    with remote.space("threads", dim=2).stream() as stream:  # type: ignore[attr-defined]
        given: list[tuple[int, range]] = []

        def observe(number: int) -> None:
            for _ in range(5):
                texts = [f"{number}"] * 2_000
                given.append((number, stream.observe_batch(texts=texts)))

        threads = [threading.Thread(target=observe, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream.flush()
        texts = [memory.text for memory in remote.space("threads").list()]
        assert all(set(texts[r.start - 1 : r.stop - 1]) == {f"{number}"} for number, r in given)


def test_what_no_message_can_carry_is_refused_and_the_session_goes_on(remote: engram.Engine) -> None:
    space = remote.space("wide", dim=1536)
    session = space.session()
    with pytest.raises(engram.TooLarge):
        session.observe_batch(vectors=np.ones((1_000, 1536), "f4"))
    assert session.observe("small").memory_id == 1
    session.close()
    with remote.space("wide").stream() as stream:  # type: ignore[attr-defined]
        with pytest.raises(engram.TooLarge):
            stream.observe("x" * (5 << 20))
        assert stream.observe("small") == 1
    assert len(space) == 2


def test_while_the_connection_is_away(tmp_path: Path) -> None:
    """Calls raise errors of engram, and a stream that could not be closed is let go."""
    server = ServerProcess(tmp_path / "d")
    engine = engram.connect(server.url)
    space = engine.space("s", dim=2)
    session, stream = space.session(), space.stream(reconnect=0.5)
    stream.observe("x")
    stream.flush()
    server.kill()
    time.sleep(0.2)
    for call in (session.pause, session.drain, stream.close):
        with pytest.raises(engram.EngramError):
            call()
    stream.close()
    assert stream._flow._task is not None
    assert stream._flow._task.done()
    engine.close()


def test_waits_that_were_cancelled_hold_no_thread(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "d")

    async def main() -> None:
        engine = await engram.aio.connect(server.url, threads=2)
        space = await engine.space("s", dim=2)
        stream = await space.stream()
        server.kill()
        await stream.observe("x")
        for _ in range(4):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await stream.flush()
        async with asyncio.timeout(10):
            await engine.close()

    asyncio.run(main())


def test_a_forked_child_cannot_observe_into_nothing(remote: engram.Engine) -> None:
    with remote.space("forked", dim=2).stream() as stream:  # type: ignore[attr-defined]
        said, ended = in_a_fork(lambda: stream.observe("x"))
    assert (said.partition(":")[0], ended) == ("Closed", 0)


def test_a_forked_child_that_connects_does_not_take_its_parents_answers(remote: engram.Engine, server: Server) -> None:
    space = remote.space("forked", dim=2)
    for again in (lambda: engram.connect(server.url), lambda: engram.serve(server.engine, grpc="127.0.0.1:0")):
        said, ended = in_a_fork(again)
        assert (said.partition(":")[0], ended) == ("Closed", 0)
        assert "not in a fork" in said
        assert len(space) == 0


LEAVES = """
import engram, os, signal, sys
engine = engram.open()
server = engram.serve(engine, grpc="127.0.0.1:0")
remote = engram.connect(server.url)
stream = remote.space("s", dim=2).stream()
stream.observe("x")
stream._lock.acquire()  # as a thread of the parent's might at the fork
if (child := os.fork()) == 0:
    signal.alarm(20)
    with server, remote, stream:
        pass
    sys.exit(0)
stream._lock.release()
assert os.waitpid(child, 0)[1] == 0
stream.close()
assert len(remote.space("s")) == 1
remote.close()
server.stop()
engine.close()
"""


def test_a_forked_child_leaves_blocks_and_ends(tmp_path: Path) -> None:
    finished(python(LEAVES, cwd=tmp_path))


def test_forked_children_live_while_threads_of_grpc_work(remote: engram.Engine) -> None:
    """gRPC's handlers of forks started its threads in the child, where one child in forty crashed."""
    space = remote.space("many", dim=2)
    with space.stream() as stream:  # type: ignore[attr-defined]
        for number in range(200):
            space.session().observe("x")
            stream.observe(f"{number}")
            assert in_a_fork(lambda: time.sleep(0.002)) == ("nothing", 0), number


def test_a_callback_that_raises_does_not_end_the_stream(remote: engram.Engine) -> None:
    def broken(_: object) -> None:
        raise ValueError("mine")

    with remote.space("callback", dim=2).stream(on_progress=broken) as stream:  # type: ignore[attr-defined]
        for number in range(5):
            stream.observe(f"{number}")
            stream.flush()
        assert stream.committed == 5


def test_sessions_that_nobody_holds_are_let_go(server: Server, remote: engram.Engine) -> None:
    space = remote.space("held", dim=2)
    before = len(server._grpc._connections)
    for _ in range(20):
        space.session().observe("x")
        space.stream().observe("y")  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while len(server._grpc._connections) > before:
        gc.collect()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_close_ends_the_waits_of_others_with_an_error_of_ours(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "d")
    engine = engram.connect(server.url)
    stream = engine.space("s", dim=2).stream()
    server.kill()
    stream.observe("x")
    caught: list[BaseException] = []

    def flush() -> None:
        try:
            stream.flush()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    time.sleep(0.2)
    engine.close()
    thread.join(10)
    assert [isinstance(error, engram.EngramError) for error in caught] == [True]


def test_an_engine_has_one_server(server: Server) -> None:
    with pytest.raises(engram.InvalidArgument, match="another server"):
        engram.serve(server.engine, grpc="127.0.0.1:0")
    with engram.connect(server.url) as engine:
        assert "held" in engine.spaces()


def test_a_key_that_comes_again_at_once_supersedes(remote: engram.Engine) -> None:
    """K1: two observations of one key that fell into one frame were a batch with a key twice; the later was dropped."""
    space = remote.space("again", dim=2)
    with space.stream() as stream:  # type: ignore[attr-defined]
        for version in range(100):
            stream.observe(f"{version}", key="k")
            stream.observe(f"other {version}", key=f"{version}")
        stream.flush()
        assert stream.rejected == []
    found = space.get(key="k")
    assert found is not None
    assert found.text == "99"
    assert [one.text for one in space.history("k")] == [f"{version}" for version in range(100)]
    assert len(space) == 101


def test_observations_that_fit_make_frames_that_fit(tmp_path: Path) -> None:
    """A frame of many with much metadata was larger than any message, and failed the stream."""
    much, vector = {"a": "x" * 30_000}, np.ones(64, "f4")
    with ServerProcess(tmp_path / "data") as server, engram.connect(server.url) as remote:
        with remote.space("much", dim=64).stream() as stream:  # type: ignore[attr-defined]
            for _ in range(255):
                stream.observe("x", vector=vector, metadata=much)
            stream.observe("ü" * 300_000)
        assert len(remote.space("much")) == 256
    with engram.serve(grpc="127.0.0.1:0", message_bytes_max=64 << 10) as few, engram.connect(few.url) as remote:
        with remote.space("little", dim=64).stream() as stream:  # type: ignore[attr-defined]
            for _ in range(400):
                stream.observe(vector=vector)
            stream.observe_batch(vectors=np.ones((1_000, 64), "f4"))
        assert len(remote.space("little")) == 1_400


def test_a_stream_is_closed_by_a_server_that_comes_back(tmp_path: Path) -> None:
    """What was asked of a lost connection was asked again for 0.8 s only, however long the stream may reconnect."""
    server = ServerProcess(tmp_path / "data")
    with engram.connect(server.url) as remote:
        stream = remote.space("back", dim=2).stream()  # type: ignore[attr-defined]
        stream.observe("x")
        stream.flush()
        server.kill()
        closing = threading.Thread(target=stream.close)
        closing.start()
        time.sleep(2)
        with ServerProcess(tmp_path / "data", server.port):
            closing.join(20)
            assert not closing.is_alive()
            with pytest.raises(engram.SessionExpired):
                remote.space("back").session(resume=stream.token)


def test_a_flush_that_a_closed_connection_ends_is_an_error(server: Server) -> None:
    """It ended as if the caller's task had been cancelled."""

    async def run() -> None:
        remote = await engram.aio.connect(server.url)
        stream = await (await remote.space("flushed", 2)).stream()
        stream._stream._flow._hold_until = float("inf")  # as after a refusal
        await stream.observe("x")
        flushing = asyncio.create_task(stream.flush())
        await asyncio.sleep(0.2)
        await remote.close()
        with pytest.raises(engram.Closed):
            await flushing

    asyncio.run(run())


@pytest.mark.parametrize("where", ["embedded", "remote"])
def test_values_that_make_no_sense_are_named(server: Server, remote: engram.Engine, where: str) -> None:
    """They were what Python made of them: UnicodeEncodeError, TypeError, another memory, a wait without an end."""
    with engram.open() as own:
        engine = remote if where == "remote" else own
        space = engine.space("named", dim=2)
        memory = space.observe("x", vector=[1, 2])
        bad = [
            ("name", lambda: engine.space("\ud800")),
            ("name", lambda: engine.drop_space("\ud800")),
            ("key", lambda: space.get(key="\ud800")),
            ("key", lambda: space.history("\ud800")),
            ("memory_id", lambda: space.get(1.5)),  # type: ignore[arg-type]
            ("memory_id", lambda: space.get(True)),
            ("memory_id", lambda: space.get("1")),  # type: ignore[arg-type]
            ("resume", lambda: space.session(resume="\ud800")),
            ("resume", lambda: space.session(resume=5)),  # type: ignore[arg-type]
            ("priority", lambda: space.session(priority=5)),  # type: ignore[arg-type]
            ("where", lambda: space.recall(vector=[1, 2], where={1: 2})),  # type: ignore[dict-item]
            ("where", lambda: space.recall(vector=[1, 2], where={"a": {"$in": {1, 2}}})),
            ("where", lambda: space.forget(where={1: 2})),  # type: ignore[dict-item]
        ]
        if where == "remote":
            stream = space.stream  # type: ignore[attr-defined]
            bad += [
                ("buffer_bytes", lambda: stream(buffer_bytes=-1)),
                ("buffer_bytes", lambda: stream(buffer_bytes=None)),
                ("reconnect", lambda: stream(reconnect="x")),
                ("reconnect", lambda: stream(reconnect=float("nan"))),
                ("resume", lambda: stream(resume=5)),
                ("priority", lambda: stream(priority=5)),
                ("url", lambda: engram.connect(5)),  # type: ignore[arg-type]
                ("timeout", lambda: engram.connect(server.url, timeout="x")),  # type: ignore[arg-type]
            ]
            with stream() as one:
                for timeout in ("x", float("nan")):
                    with pytest.raises(engram.InvalidArgument, match="timeout"):
                        one.flush(timeout)
        for field, call in bad:
            with pytest.raises(engram.InvalidArgument) as raised:
                call()
            assert raised.value.field == field
        found = space.get(np.int64(memory.memory_id))  # type: ignore[arg-type]
        assert found is not None
        assert found.text == "x"
        assert space.get(-1) is None
        assert space.get(2**64) is None


def test_thousands_of_streams_may_open_at_once(tmp_path: Path) -> None:
    """gRPC drops some of what is not taken up yet, by chance, from a thousand on; unless it is told otherwise."""
    hello = pb.ObserveRequest(open=pb.Open(space="s")).SerializeToString()

    async def every(address: str) -> list[pb.ObserveResponse]:
        async with grpc.aio.insecure_channel(address) as channel:

            async def one() -> pb.ObserveResponse:
                call = channel.stream_stream("/engram.v1.Engram/Observe")()
                await call.write(hello)
                return pb.ObserveResponse.FromString(await call.read())

            return await asyncio.gather(*(one() for _ in range(2_000)))

    with ServerProcess(tmp_path / "data") as process, engram.connect(process.url) as engine:
        engine.space("s", dim=2)
        answers = asyncio.run(every(process.url.removeprefix("grpc://")))
    assert all(answer.HasField("opened") for answer in answers)
