"""What a hostile reading of the service found: where a remote space was not what a space is."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engram
from engram._exceptions import fields_of
from engram.client.status import error_of
from engram.server import Settings
from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb
from integration.service.support import TESTS, freeze

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def engine() -> Iterator[engram.Engine]:
    with engram.open() as engine:
        yield engine


@pytest.fixture
def remote(engine: engram.Engine) -> Iterator[Any]:
    with engram.serve(engine, grpc="127.0.0.1:0") as server, engram.connect(server.url) as remote:
        yield remote


def at_once(count: int, call: Callable[[], object]) -> list[object]:
    """Outcomes of so many threads."""
    outcomes: list[object] = []

    def run() -> None:
        try:
            outcomes.append(call())
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


def test_a_path_beside_settings_is_served(tmp_path: Path) -> None:
    """It was passed over, and what was acknowledged was in memory."""
    settings = Settings(grpc="127.0.0.1:0")
    for count in (1, 2):
        with engram.serve(tmp_path / "d", settings=settings) as server, engram.connect(server.url) as remote:
            remote.space("s", dim=2).observe("kept")
            assert len(remote.space("s")) == count
    with pytest.raises(engram.InvalidArgument, match="one of them"):
        engram.serve(tmp_path / "other", settings=Settings(grpc="127.0.0.1:0", data=tmp_path / "d"))


@pytest.mark.parametrize("wrong", [{"settings": {}}, {"engine_or_path": 5}, {"engine_or_path": "a\0b"}])
def test_what_is_no_setting(wrong: dict[str, Any]) -> None:
    with pytest.raises(engram.InvalidArgument):
        engram.serve(**wrong)


def test_a_closed_engine_is_not_served() -> None:
    engine = engram.open()
    engine.close()
    with pytest.raises(engram.Closed):
        engram.serve(engine, grpc="127.0.0.1:0")


def test_a_server_stops_in_a_time_that_is_one(engine: engram.Engine) -> None:
    with engram.serve(engine, grpc="127.0.0.1:0") as server:
        for wrong in (float("nan"), -1, "x"):
            with pytest.raises(engram.InvalidArgument):
                server.stop(wrong)  # type: ignore[arg-type]


def test_threads_that_end_a_session_together(remote: Any) -> None:
    """The answer went to one of them; the others waited, or met a TypeError."""
    space = remote.space("s", dim=2)
    for end in ("drain", "close"):
        session = space.session()
        session.observe("a")
        began = time.monotonic()
        assert at_once(3, lambda session=session, end=end: getattr(session, end)(timeout=20)) == [None] * 3
        assert time.monotonic() - began < 15
        session.close()


@pytest.mark.parametrize("frame", [b"", frame_pb2.Frame(count=1, texts=["q"]).SerializeToString(), b"\xff"])
def test_a_frame_that_is_none_ends_no_session(remote: Any, frame: bytes) -> None:
    space = remote.space("s", dim=2)
    session = space.session()
    session.observe("a")
    with pytest.raises(engram.InvalidArgument, match="malformed frame"):
        session.observe_frame(frame)
    assert session.observe("b").generation == 2
    if frame == b"\xff":
        with pytest.raises(engram.InvalidArgument, match="malformed frame"):
            space.observe_frame(frame)


def test_an_empty_token_is_none(remote: Any) -> None:
    """On the wire it meant a new session: everything would have been stored again."""
    space = remote.space("s", dim=2)
    for begin in (space.session, space.stream):
        with pytest.raises(engram.InvalidArgument, match="token"):
            begin(resume="")


@pytest.mark.parametrize("where", ["embedded", "remote"])
def test_a_dropped_space_is_not_the_next_of_its_name(engine: engram.Engine, remote: Any, where: str) -> None:
    """D11: the name was asked for at each call, and whatever had it by then was read, written and forgotten."""
    side = engine if where == "embedded" else remote
    old = side.space("s", dim=2)
    kept = old.observe("old")
    token = old.session().token
    snapshot = old.snapshot()
    side.drop_space("s")
    side.space("s", dim=2).observe("new")
    calls: list[Callable[[], object]] = [
        lambda: old.observe("x"),
        lambda: [*old.list()],
        lambda: len(old),
        lambda: old.recall(vector=[1, 0]),
        lambda: old.get(kept.memory_id),
        lambda: old.forget(kept.memory_id),
        lambda: old.session(),
        lambda: old.session(resume=token),
        lambda: old.snapshot(),
        lambda: old.stats(),
        lambda: old.wait_absorbed(),
        lambda: old.set_quota(memories=1),
    ]
    for call in calls:
        with pytest.raises(engram.NotFound):
            call()
    with pytest.raises((engram.NotFound, engram.SnapshotExpired)):
        len(snapshot)
    assert [memory.text for memory in side.space("s").list()] == ["new"]


def test_a_lease_is_of_its_space(engine: engram.Engine, remote: Any) -> None:
    one, other = remote.space("one", dim=2), remote.space("other", dim=2)
    lease = one.snapshot()._pin()[0]
    for view in (pb.View(space="other", snapshot=lease), pb.View(snapshot=lease)):
        with pytest.raises(engram.InvalidArgument, match="another space"):
            remote._core.link.unary("Count", pb.CountRequest(view=view), pb.CountResponse)
    assert len(other) == 0


def test_expired_leases_are_no_open_snapshots() -> None:
    """They counted for ten minutes, whatever the limits; and went after ten minutes, whatever the limits."""
    with engram.open(limits={"snapshot_idle_ms_max": 2_000}) as engine:
        settings = Settings(grpc="127.0.0.1:0", snapshots_max=2)
        with engram.serve(engine, settings=settings) as server, engram.connect(server.url) as remote:
            space = remote.space("s", dim=2)
            first, _ = space.snapshot(), space.snapshot()
            with pytest.raises(engram.TooLarge):
                space.snapshot()
            time.sleep(2.2)
            assert len(space.snapshot()) == 0
            with pytest.raises(engram.SnapshotExpired):
                len(first)


def test_purges_that_wait_hold_up_nobody(remote: Any) -> None:
    """They had the threads of checkpoints, and of who waits for the graph."""
    space = remote.space("s", dim=2)
    space.observe_batch(texts=["a"] * 8)
    snapshot = space.snapshot()
    purges = [threading.Thread(target=space.forget, args=(n + 1,), kwargs={"purge": True}) for n in range(6)]
    for purge in purges:
        purge.start()
    time.sleep(0.5)
    space.wait_absorbed(timeout=20)
    assert all(purge.is_alive() for purge in purges)
    snapshot.release()
    for purge in purges:
        purge.join(60)
    assert len(space) == 2


@pytest.mark.parametrize("long", ["z" * 20_000, "\N{PILE OF POO}" * 5_000])
def test_a_long_text_loses_no_type(remote: Any, long: str) -> None:
    """A status with too large trailers was dropped by gRPC."""
    with pytest.raises(engram.InvalidArgument, match="unknown metric"):
        remote.space("zz", 2, metric=long)
    space = remote.space("s", dim=2)
    for call in (
        lambda: space.session(priority=long),
        lambda: [*space.list(where={"$" + long: 1})],
        lambda: [*space.list(where={"a": {"$" + long: 1}})],
    ):
        with pytest.raises(engram.InvalidArgument) as caught:
            call()
        assert not isinstance(caught.value, engram.TooLarge)


def test_errno_comes_over_the_wire(tmp_path: Path) -> None:
    import grpc

    from engram.server.status import DETAILS, code_of, details_of

    (tmp_path / "file").touch()
    with pytest.raises(engram.StorageError) as caught:
        engram.open(tmp_path / "file")
    given = caught.value
    trailing = grpc.aio.Metadata((DETAILS, details_of(given)))
    error = error_of(grpc.aio.AioRpcError(code_of(given), grpc.aio.Metadata(), trailing, given.message))
    assert (error.errno, fields_of(error)) == (given.errno, fields_of(given))  # type: ignore[attr-defined]


def test_a_half_read_recall_may_be_forgotten(remote: Any) -> None:
    space = remote.space("s", dim=2)
    space.observe_batch(texts=["a"] * 5, vectors=[[1, 0]] * 5)
    batches = iter(space.recall_stream(vector=[1, 0], k=3, batch_size=1))
    next(batches)
    remote.close()
    del batches


def test_who_has_ended_a_session_is_told_so(engine: engram.Engine, remote: Any) -> None:
    """`Unavailable` says: try again."""
    for side in (engine, remote):
        space = side.space("s", dim=2)
        closed, detached = space.session(), space.session()
        closed.close()
        detached.detach()
        with pytest.raises(engram.SessionExpired):
            closed.observe("b")
        with pytest.raises(engram.Fenced):
            detached.observe("b")


def test_nothing_to_wait_for_takes_no_time(remote: Any) -> None:
    space = remote.space("s", dim=2)
    session, stream = space.session(), space.stream()
    session.observe("a")
    session.drain(timeout=0)
    session.close(timeout=0)
    stream.observe("a")
    stream.flush()
    stream.flush(timeout=0)
    stream.close(timeout=0)


def test_a_batch_with_an_item_too_large_is_refused_whole(remote: Any) -> None:
    """Part of it was taken first: who tried again stored that twice."""
    with remote.space("s", dim=2).stream() as stream:
        with pytest.raises(engram.TooLarge):
            stream.observe_batch(texts=["x"] * 2_000 + ["y" * (5 << 20)] + ["z"] * 10)
        assert stream.given == 0
        assert stream.observe_batch(texts=["x" * (300 << 10), "y"]) == range(1, 3)


def test_no_cues_have_no_neighbours(engine: engram.Engine, remote: Any) -> None:
    for side in (engine, remote):
        ids, scores = side.space("s", dim=2).recall_batch(np.zeros((0, 2), np.float32), k=3)
        assert (ids.shape, scores.shape) == ((0, 3), (0, 3))
        with pytest.raises(engram.NotFound):
            side.space("s").read_quarantined(0)


def test_a_listener_does_not_hold_up_the_end(engine: engram.Engine) -> None:
    import grpc

    server = engram.serve(engine, grpc="127.0.0.1:0", drain_seconds=30)
    with grpc.insecure_channel(server.url.removeprefix("grpc://")) as channel:
        call = channel.unary_stream("/engram.v1.Engram/WatchStats")
        answers = iter(call(pb.WatchStatsRequest().SerializeToString()))
        next(answers)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 15
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "stopping" in caught.value.details()


FROZEN = """
import os, signal, sys, threading, engram
from integration.service.support import freeze
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored
with engram.connect(sys.argv[1]) as remote:
    session = remote.space("s", dim=2).session()
    session.observe("one")
    freeze(int(sys.argv[2]))
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        session.observe("two")
    except KeyboardInterrupt as error:
        os.kill(int(sys.argv[2]), signal.SIGCONT)
        print(type(error).__name__)
"""


@pytest.fixture
def process() -> Iterator[tuple[str, int]]:
    """A server that may be stopped for a while: its url and process."""
    command = [sys.executable, "-m", "engram.cli", "serve", "--json", "--grpc", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield json.loads(server.stdout.readline())["grpc"], server.pid
        finally:
            os.kill(server.pid, signal.SIGCONT)
            server.terminate()


def test_ctrl_c_says_when_the_outcome_is_not_known(process: tuple[str, int]) -> None:
    """It was a plain KeyboardInterrupt at once, and what was under way was stored all the same."""
    command = [sys.executable, "-c", FROZEN, process[0], str(process[1])]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=TESTS)
    assert said.stdout.strip() == "Interrupted", said


def test_a_late_answer_is_not_for_the_next_question(process: tuple[str, int]) -> None:
    """A session was taken for closed when the server had only drained it."""
    url, pid = process
    with engram.connect(url) as remote:
        space = remote.space("s", dim=2)
        session = space.session()
        session.observe("a")
        freeze(pid)
        with pytest.raises(engram.Timeout):
            session.drain(timeout=0)
        threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()
        session._core.end(20_000)
        with pytest.raises(engram.SessionExpired):
            space.session(resume=session.token)


def test_errors_of_the_command_line_say_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    for name in ("bad.toml", "none.toml"):
        command = [sys.executable, "-m", "engram.cli", "serve", "--json", "--config", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, done.stderr, {*error}) == (2, "", {"code", "message", "field", "index"})
        assert error["code"] == "INVALID_ARGUMENT"


def test_small_lies_are_read_slowly_too(engine: engram.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only bytes counted: thousands of frames a second that bring nothing had the loop for themselves."""
    import grpc

    from engram.server import connection

    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    engine.space("s", dim=2)
    with engram.serve(engine, grpc="127.0.0.1:0") as server:
        monkeypatch.setattr(connection.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
        frame = frame_pb2.Frame(first_sequence=7, count=1, texts=["a lie"])
        messages = [pb.ObserveRequest(open=pb.Open(space="s")), *[pb.ObserveRequest(frame=frame)] * 1_000]
        with grpc.insecure_channel(server.url.removeprefix("grpc://")) as channel:
            call = channel.stream_stream("/engram.v1.Engram/Observe")
            told = [*call(message.SerializeToString() for message in messages)]
        assert any(pb.ObserveResponse.FromString(one).HasField("fault") for one in told)
        monkeypatch.undo()
    assert 0.05 < sum(slept) < 3
