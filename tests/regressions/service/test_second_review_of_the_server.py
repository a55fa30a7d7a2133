"""What a second hostile reading of the server found, by a peer that speaks the protocol itself."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import engram
from engram.server import Server
from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb
from integration.service.support import Stream, frame, method, raw, reason

PROMISED = frame_pb2.Frame(first_sequence=1, count=1, texts=["a"], present=b"\x02")
FAR = [2**63 - 1, -(2**63) + 1]


@pytest.fixture
def server() -> Iterator[Server]:
    with engram.open() as engine, engram.serve(engine, grpc="127.0.0.1:0", drain_seconds=5.0) as server:
        engine.space("s", dim=2)
        yield server


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with raw(server.url) as channel:
        yield channel


def test_a_vector_of_no_dimensions_is_refused(server: Server, channel: grpc.Channel) -> None:
    """It made the engine panic, and nobody was told."""
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "PutObservations")(pb.PutObservationsRequest(space="s", frame=PROMISED), timeout=5)
    assert reason(caught.value) == "INVALID_ARGUMENT"
    stream = Stream(channel, space="s")
    stream.say(frame=PROMISED)
    assert "vectors and dim" in stream.hear("fault").message
    stream.frame(1, 1)
    assert stream.acknowledged(1)
    stream.cancel()
    with pytest.raises(engram.InvalidArgument, match="vectors and dim"):
        server.engine.space("s").observe_frame(PROMISED.SerializeToString())


def test_a_panic_is_answered(server: Server, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    def panics(*_: object) -> None:
        raise Panic

    stream = Stream(channel, space="s")
    monkeypatch.setattr(engram.Session, "submit_frame", panics)
    stream.frame(1, 1)
    assert stream.error().code() == grpc.StatusCode.UNAVAILABLE
    monkeypatch.setattr(engram.Space, "stats", panics)
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "Stats")(pb.StatsRequest(space="s"), timeout=5)
    assert caught.value.code() == grpc.StatusCode.INTERNAL


def test_after_a_failed_log_a_stream_goes_on_behind_what_is_committed(tmp_path: Path) -> None:
    """It was told to go on behind what was lost; and its end took the whole time to drain."""
    engine = engram.open(tmp_path / "data")
    with engram.serve(engine, grpc="127.0.0.1:0") as server, raw(server.url) as channel:
        engine.space("s", dim=2)
        stream = Stream(channel, space="s")
        stream.frame(1, 2)
        stream.acknowledged(2)
        engine._core.inject("sync@GroupSync=EIO")
        for first in range(3, 20):
            stream.frame(first, 1)
        fault = stream.hear("fault")
        assert (fault.code, fault.expected) == ("POISONED", 3)
        begun = time.monotonic()
        stream.half_close()
        while isinstance(message := stream.next(), pb.ObserveResponse):
            assert message.fault.code == "" or message.fault.expected == 3
        assert time.monotonic() - begun < 5
    with pytest.raises(engram.Poisoned):
        engine.close()


def test_who_watches_health_or_has_not_begun_holds_up_no_stop(server: Server, channel: grpc.Channel) -> None:
    watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
    silent = Stream(channel)
    time.sleep(0.3)
    begun = time.monotonic()
    server.stop(30)
    assert time.monotonic() - begun < 10
    assert reason(silent.error()) == "UNAVAILABLE"


def test_a_stream_that_begins_while_the_server_stops_is_told_so(tmp_path: Path) -> None:
    with engram.open() as engine, engram.serve(engine, grpc="127.0.0.1:0") as server, raw(server.url) as channel:
        space = engine.space("s", dim=2)
        space.observe("a")
        purging = threading.Thread(target=lambda: channel_forget(channel))
        with space.snapshot():  # the purge waits for it, and the stop for the purge
            purging.start()
            late = Stream(channel)
            time.sleep(0.5)
            stopping = threading.Thread(target=server.stop, args=(20,))
            stopping.start()
            time.sleep(0.3)
            late.say(open=pb.Open(space="s"))
            error = late.error()
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert "stopping" in error.details()
        purging.join()
        stopping.join()


def channel_forget(channel: grpc.Channel) -> None:
    method(channel, "Forget")(pb.ForgetRequest(space="s", memory_ids=[1], purge=True, timeout_ms=9_000))


def test_what_follows_a_drain_does_not_end_the_stream(channel: grpc.Channel) -> None:
    stream = Stream(channel, space="s")
    stream.frame(1, 1)
    stream.say(drain=pb.Drain())
    stream.acknowledged(1)
    assert stream.hear("drained").committed == 1
    stream.frame(2, 1)
    fault = stream.hear("fault")
    assert (fault.code, fault.expected) == ("CLOSED", 2)
    stream.say(pause=pb.Pause())
    stream.say(resume=pb.Resume())
    stream.say(close=pb.Close())
    assert stream.hear("closed").committed == 1


def test_a_frame_that_is_no_message_is_too_large(channel: grpc.Channel) -> None:
    stream = Stream(channel, space="s")
    stream.frame(1, ["x" * 1_000] * 4_300)
    error = stream.error()
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(error) == "TOO_LARGE"


def test_answers_are_cut_or_as_large_as_one_memory(server: Server) -> None:
    text = "x" * (1 << 20)
    with engram.serve(message_bytes_max=64 << 10, grpc="127.0.0.1:0") as small, engram.connect(small.url) as remote:
        names = [f"n{i:04}{'x' * 50}" for i in range(700)]
        for name in names:
            small.engine.space(name, dim=2, durability="memory")
        assert remote.spaces() == names
        large = small.engine.space(names[0]).observe(text, vector=[1, 0], metadata={"a": "\x01" * 10_000})
        there = remote.space(names[0])
        assert [memory.text for memory in there.list()] == [text]
        assert there.recall(vector=[1, 0], k=1)[0].text == text
        memory = there.get(large.memory_id)
        assert memory is not None
        assert memory.text == text


def test_no_more_streams_than_may_be_are_begun() -> None:
    """Who had not said `Open` yet was not counted."""
    with engram.serve(streams_max=3, grpc="127.0.0.1:0") as server, raw(server.url) as channel:
        server.engine.space("s", dim=2)
        streams = [Stream(channel) for _ in range(6)]
        time.sleep(0.5)
        for stream in streams:
            stream.say(open=pb.Open(space="s"))
        answers = [stream.next() for stream in streams]
        refused = [answer for answer in answers if isinstance(answer, grpc.RpcError)]
        assert len(refused) == 3
        assert {reason(error) for error in refused} == {"TOO_LARGE"}
        for stream in streams:
            stream.cancel()


@pytest.mark.parametrize("moment", FAR)
def test_times_beyond_the_calendar_come_back_as_given(channel: grpc.Channel, moment: int) -> None:
    put = pb.PutObservationsRequest(space="s", frame=frame(1, ["far"], observed_at=[moment], keys=["k"]))
    memory_id = method(channel, "PutObservations")(put).first_memory_id
    view = pb.View(space="s")
    got = method(channel, "Get")(pb.GetRequest(view=view, memory_id=memory_id)).memory
    listed = method(channel, "List")(pb.ListRequest(view=view)).memories[0]
    versions = method(channel, "History")(pb.HistoryRequest(view=view, key="k")).memories
    cue = np.array([1, 0], "<f4").tobytes()
    (answer,) = method(channel, "Recall")(pb.RecallRequest(view=view, vector=cue, k=1))
    assert [m.observed_at for m in (got, listed, versions[0], answer.hits[0])] == [moment] * 4


def test_figures_are_of_the_space_that_was_asked_for(server: Server, channel: grpc.Channel) -> None:
    engine = server.engine
    engine.space("w", dim=2).observe("x")
    watching = method(channel, "WatchStats")(pb.WatchStatsRequest(space="w", interval_ms=500))
    assert json.loads(next(watching).stats)["memories"] == 1
    engine.drop_space("w")
    engine.space("w", dim=3)
    with pytest.raises(grpc.RpcError) as caught:
        next(watching)
    assert reason(caught.value) == "NOT_FOUND"


def test_a_space_opened_by_name_is_as_it_is_said_to_be(server: Server, channel: grpc.Channel) -> None:
    for wrong in ({"metric": "l2"}, {"durability": "os"}):
        with pytest.raises(grpc.RpcError) as caught:
            method(channel, "CreateSpace")(pb.CreateSpaceRequest(space="s", **wrong))
        assert reason(caught.value) == "ALREADY_EXISTS"
        with pytest.raises(engram.AlreadyExists):
            server.engine.space("s", **wrong)  # type: ignore[arg-type]
    assert server.engine.space("s", metric="cosine").dim == 2


def test_scans_hold_up_no_other_read(server: Server, channel: grpc.Channel) -> None:
    """Each thread for reads could be looking through all rows for a count."""
    space = server.engine.space("s")
    for _ in range(20):
        space.observe_batch(vectors=np.ones((10_000, 2), "f4"), metadata=[{"a": 1}] * 10_000)
    view = pb.View(space="s", where=json.dumps({"a": 2}))
    counts = [method(channel, "Count").future(pb.CountRequest(view=view)) for _ in range(40)]
    waited = []
    for _ in range(5):
        begun = time.monotonic()
        method(channel, "Get")(pb.GetRequest(view=pb.View(space="s"), memory_id=1))
        waited.append(time.monotonic() - begun)
    assert not all(count.done() for count in counts), "the reads came while the scans went on"
    for count in counts:
        count.cancel()


def test_long_recalls_of_one_space_hold_up_none_of_another(server: Server, channel: grpc.Channel) -> None:
    """They were done one after the other, whoever asked."""
    space = server.engine.space("s")
    for _ in range(20):
        space.observe_batch(vectors=np.ones((10_000, 2), "f4"), metadata=[{"a": 1}] * 10_000)
    server.engine.space("quiet", dim=2).observe(vector=[1, 0])
    cue = np.array([1, 0], "<f4").tobytes()
    scan = pb.RecallRequest(view=pb.View(space="s", where=json.dumps({"a": 2})), vector=cue, k=1)
    quick = pb.RecallRequest(view=pb.View(space="quiet"), vector=cue, k=1)
    with ThreadPoolExecutor(60) as pool:
        scans = [pool.submit(lambda: [*method(channel, "Recall")(scan)]) for _ in range(60)]
        time.sleep(0.1)
        for _ in range(3):
            assert [len(answer.hits) for answer in method(channel, "Recall")(quick)] == [1]
        done = sum(scan.done() for scan in scans)
    assert done < 50, "the recalls came while the scans went on"
