"""The observing stream, said by hand: what a client may say, and what it hears (S1 to S8 over the wire)."""

import itertools
import random
import time

import grpc
import pytest

import engram
from engram.chaos.faults import Lost, Proxy
from engram.server import Server
from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb

from .support import Stream, frame, raw, reason


def test_frames_are_acknowledged_in_order_with_their_generations(channel: grpc.Channel, space: engram.Space) -> None:
    stream = Stream(channel, space=space.name)
    assert (stream.opened.committed, stream.opened.dim, stream.opened.metric) == (0, 2, "cosine")
    assert stream.opened.window.observations > 0
    for first in range(1, 100, 3):
        stream.frame(first, 3)
    acks = stream.acknowledged(99)
    expected = 1
    for ack in acks:
        assert (ack.first_sequence, ack.first_generation, ack.durability) == (expected, expected, 1)
        expected += ack.count
    assert [memory.text for memory in space.list()] == [f"t{i}" for i in range(1, 100)]
    stream.say(close=pb.Close())
    assert stream.hear("closed").committed == 99
    assert stream.next() is None


def test_a_gap_brings_one_fault_and_the_stream_goes_on_from_expected(
    channel: grpc.Channel, space: engram.Space
) -> None:
    stream = Stream(channel, space=space.name)
    stream.frame(1, 2)
    stream.frame(5, 2)  # 3 is missing
    stream.frame(7, 2)
    stream.frame(9, 2)
    # A refusal is said at once, an acknowledgement when the disk has it.
    heard: dict[str, pb.ObserveResponse] = {}
    while not {"fault", "ack"} <= heard.keys():
        message = stream.next()
        heard[message.WhichOneof("what")] = message
    fault, ack = heard["fault"].fault, heard["ack"].ack
    assert (fault.code, fault.first_sequence, fault.expected) == ("SEQUENCE_GAP", 5, 3)
    assert (ack.first_sequence, ack.count) == (1, 2)
    stream.frame(3, 8)
    stream.acknowledged(10)  # nothing but acknowledgements: the frames behind the gap were passed over in silence
    assert [memory.text for memory in space.list()] == [f"t{i}" for i in range(1, 11)]
    stream.cancel()


def test_what_was_committed_is_acknowledged_again_with_its_ids(channel: grpc.Channel, space: engram.Space) -> None:
    stream = Stream(channel, space=space.name)
    stream.frame(1, 4)
    stream.acknowledged(4)
    stream.frame(3, 4)  # two again, two new
    acks = stream.acknowledged(6)
    assert [(a.first_sequence, a.count, a.first_generation, a.duplicate) for a in acks] == [
        (3, 2, 3, True),
        (5, 2, 5, False),
    ]
    stream.frame(1, ["other"])
    assert stream.hear("fault").code == "SEQUENCE_CONFLICT"
    stream.cancel()


def test_one_bad_observation_holds_its_sequence_and_nothing_else(channel: grpc.Channel, space: engram.Space) -> None:
    stream = Stream(channel, space=space.name)
    stream.say(frame=frame_pb2.Frame(first_sequence=1, count=3, texts=["a", "", "c"], present=bytes([1, 0, 1])))
    heard = [stream.next() for _ in range(2)]
    fault = next(m.fault for m in heard if m.WhichOneof("what") == "fault")
    assert (fault.code, fault.first_sequence, fault.expected) == ("INVALID_ARGUMENT", 2, 0)
    assert [memory.text for memory in space.list()] == ["a", "c"]
    stream.frame(4, 1)
    stream.acknowledged(4)
    stream.cancel()


def test_a_bad_frame_does_not_end_the_stream(channel: grpc.Channel, space: engram.Space) -> None:
    stream = Stream(channel, space=space.name)
    for first in (2**64 - 1, 2**63, 0):
        stream.frame(first, ["far"])
    stream.say(b"\x12\x03\xff\xff\xff")
    faults = [stream.hear("fault") for _ in range(3)]  # 2**63 followed a refused one
    assert [(fault.code, fault.expected) for fault in faults] == [
        ("SEQUENCE_GAP", 1),
        ("INVALID_ARGUMENT", 1),
        ("INVALID_ARGUMENT", 1),
    ]
    stream.say(frame=frame(1, 1, dim=3))
    assert stream.hear("fault").code == "INVALID_ARGUMENT"
    stream.frame(1, 1)
    stream.acknowledged(1)
    stream.cancel()


@pytest.mark.parametrize(
    "said",
    [
        pb.ObserveRequest(frame=frame(1, 1)).SerializeToString(),
        pb.ObserveRequest(close=pb.Close()).SerializeToString(),
        b"\xff\xff",
        b"",
    ],
    ids=["a frame", "close", "garbage", "nothing"],
)
def test_a_stream_begins_with_open(channel: grpc.Channel, said: bytes) -> None:
    stream = Stream(channel)
    stream.say(said)
    error = stream.error()
    assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    stream.cancel()


@pytest.mark.parametrize("said", [b"\xff\xff\xff", b"", b"\x12"], ids=["garbage", "nothing", "half a frame"])
def test_only_violations_of_the_protocol_end_a_stream(channel: grpc.Channel, space: engram.Space, said: bytes) -> None:
    """P6: whoever comes again at once, with nonsense again, is held up."""
    stream = Stream(channel, space=space.name)
    begun = time.monotonic()
    stream.say(said)
    assert stream.error().code() == grpc.StatusCode.INVALID_ARGUMENT
    assert time.monotonic() - begun >= 0.2
    stream.cancel()
    again = Stream(channel, space=space.name)
    again.say(open=pb.Open(space=space.name))
    assert "open already" in str(again.error().details())
    again.cancel()


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"space": "nowhere"}, "NOT_FOUND"),
        ({"token": "nonsense"}, "INVALID_ARGUMENT"),
        ({"priority": "urgent"}, "INVALID_ARGUMENT"),
    ],
)
def test_what_cannot_be_opened(channel: grpc.Channel, space: engram.Space, asked: dict[str, str], code: str) -> None:
    stream = Stream(channel)
    stream.say(open=pb.Open(**{"space": space.name, **asked}))
    assert reason(stream.error()) == code
    stream.cancel()


def test_a_token_goes_on_and_fences_whoever_spoke_before(channel: grpc.Channel, space: engram.Space) -> None:
    older = Stream(channel, space=space.name)
    older.frame(1, 3)
    older.acknowledged(3)
    newer = Stream(channel, space=space.name, token=older.opened.token, acknowledged=3)
    assert newer.opened.committed == 3
    error = older.error()
    assert (error.code(), reason(error)) == (grpc.StatusCode.ABORTED, "FENCED")
    newer.frame(2, 4)
    newer.acknowledged(5)
    assert len(space) == 5
    older.cancel()
    newer.cancel()


def test_who_comes_back_does_not_fence_whoever_was_given_the_session(
    channel: grpc.Channel, server: Server, space: engram.Space
) -> None:
    """S4: its connection was lost, so nothing told it. Found over a lossy wire."""
    older = Stream(channel, space=space.name, speaker=7)
    token = older.opened.token

    def comes_back(speaker: int) -> str:
        stream = Stream(channel)
        stream.say(open=pb.Open(space=space.name, token=token, speaker=speaker, again=True))
        message = stream.next()
        stream.cancel()
        return reason(message) if isinstance(message, grpc.RpcError) else str(message.WhichOneof("what"))

    assert comes_back(7) == "opened"
    newer = Stream(channel, space=space.name, token=token, speaker=8)
    assert comes_back(7) == "FENCED"
    newer.frame(1, 3)
    assert newer.acknowledged(3)
    assert comes_back(8) == "opened"
    session = space.session(resume=token)  # of this process: it drew none
    assert [comes_back(7), comes_back(8)] == ["FENCED"] * 2
    assert session.observe("four").memory_id == 4
    assert comes_back(0) == "INVALID_ARGUMENT"
    for stream in (older, newer):
        stream.cancel()


def test_a_client_that_comes_back_is_fenced(server: Server, space: engram.Space) -> None:
    """S4: the same of clients. One loses its connection; before it is back another is given its session."""

    class Down:
        now = False

        def pause(self, draw: random.Random, size: int) -> float:
            if self.now:
                raise Lost
            return 0.0

    down = Down()
    with Proxy(server.url, [down]) as proxy, engram.connect(proxy.url) as lost, engram.connect(server.url) as given:
        older = lost.space(space.name).session()
        older.observe("one")
        down.now = True  # not even that it is fenced is heard
        newer = given.space(space.name).session(resume=older.token)
        assert newer.observe("two").memory_id == 2
        until = time.monotonic() + 30
        while proxy.resets == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert proxy.resets > 0
        down.now = False
        with pytest.raises(engram.Fenced):
            older.observe("three")
        assert newer.observe("three").memory_id == 3
        assert (older.state, newer.state) == ("FENCED", "ACTIVE")


def test_a_client_fenced_by_its_own_older_attempt_comes_back(
    server: Server, channel: grpc.Channel, space: engram.Space
) -> None:
    """S4: a lost connection may deliver what was said on it after the next one attached. Found over a lossy wire."""
    with engram.connect(server.url) as engine:
        session = engine.space(space.name).session()
        assert session.observe("one").memory_id == 1
        flow = session._core._flow
        late = Stream(channel, space=space.name, token=session.token, speaker=flow._asked.speaker, again=True)
        assert [session.observe(text).memory_id for text in ("two", "three")] == [2, 3]
        assert reason(late.error()) == "FENCED"
        assert (session.state, flow.reconnects) == ("ACTIVE", 1)
        late.cancel()


def test_acknowledged_beyond_committed_is_data_loss(channel: grpc.Channel, space: engram.Space) -> None:
    stream = Stream(channel, space=space.name)
    stream.frame(1, 1)
    stream.acknowledged(1)
    lost = Stream(channel)
    lost.say(open=pb.Open(space=space.name, token=stream.opened.token, acknowledged=9))
    error = lost.error()
    assert (error.code(), reason(error)) == (grpc.StatusCode.DATA_LOSS, "DATA_LOSS")
    stream.cancel()
    lost.cancel()


def test_paused_frames_are_refused_in_band(channel: grpc.Channel, space: engram.Space) -> None:
    stream = Stream(channel, space=space.name)
    stream.say(pause=pb.Pause())
    assert stream.hear("window").observations == 0
    stream.frame(1, 1)
    fault = stream.hear("fault")
    assert (fault.code, fault.expected) == ("PAUSED", 1)
    stream.say(resume=pb.Resume())
    while stream.hear("window").observations == 0:
        pass
    stream.frame(1, 1)
    stream.acknowledged(1)
    stream.cancel()


def test_the_end_of_the_stream_detaches_after_the_last_acknowledgement(
    channel: grpc.Channel, space: engram.Space
) -> None:
    stream = Stream(channel, space=space.name)
    for first in range(1, 200, 2):
        stream.frame(first, 2)
    stream.half_close()
    stream.acknowledged(200)
    assert stream.next() is None
    again = Stream(channel, space=space.name, token=stream.opened.token)
    assert again.opened.committed == 200
    again.cancel()


def test_drain_takes_no_more_and_close_ends_the_session(channel: grpc.Channel, space: engram.Space) -> None:
    stream = Stream(channel, space=space.name)
    for first in range(1, 100):
        stream.frame(first, 1)
    stream.say(drain=pb.Drain())
    stream.acknowledged(99)
    assert stream.hear("drained").committed == 99
    stream.say(close=pb.Close())
    stream.hear("closed")
    gone = Stream(channel)
    gone.say(open=pb.Open(space=space.name, token=stream.opened.token))
    assert reason(gone.error()) == "SESSION_EXPIRED"
    gone.cancel()


def test_absorbed_is_told_to_who_asked(channel: grpc.Channel, space: engram.Space) -> None:
    stream = Stream(channel, space=space.name, absorbed=True)
    stream.frame(1, 5)
    told = 0
    while told < 5:
        message = stream.next()
        if message.WhichOneof("what") == "absorbed":
            told = message.absorbed.through_sequence
    stream.cancel()


def test_a_change_of_level_is_told_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    limits = {"queue_observations_max": 100, "batch_items_max": 100}
    with (
        engram.open(tmp_path_factory.mktemp("d"), limits=limits) as engine,
        engram.serve(engine, grpc="127.0.0.1:0") as server,
    ):
        space = engine.space("s", dim=2)
        engine._core.inject("sync@GroupSync=delay150")
        with raw(server.url) as channel:
            idle = Stream(channel, space="s")
            busy = Stream(channel, space="s")
            for first in range(1, 90, 10):
                busy.frame(first, 10)
            told = time.monotonic()
            while (message := idle.next()).WhichOneof("what") != "pressure":
                pass
            assert message.pressure.level != "NORMAL"
            window = idle.next()
            assert window.WhichOneof("what") == "window"
            assert time.monotonic() - told < 15
            engine._core.inject("")
            busy.acknowledged(90)
            busy.cancel()
            idle.cancel()
        assert len(space) == 90


def test_a_client_that_does_not_read_is_cut_and_can_go_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.mktemp("d")
    with engram.serve(data, grpc="127.0.0.1:0", outbound_bytes_max=16 << 10, durability="memory") as server:
        server.engine.space("s", dim=2)
        with raw(server.url) as channel:
            stream = Stream(channel, space="s")
            stream.reading.clear()
            # Refusals are not merged: each is owed by itself.
            for _ in range(60_000):
                stream.say(frame=frame(1, ["x" * 10], dim=3))
            token = stream.opened.token
            begun = time.monotonic()
            while server._grpc._connections:
                assert time.monotonic() - begun < 90, "it is not cut"
                time.sleep(0.05)
            stream.reading.set()
            stream.cancel()
            again = Stream(channel, space="s", token=token)
            again.frame(1, 1)
            again.acknowledged(1)
            again.cancel()


def test_idle_streams_are_ended_and_can_be_resumed(server: Server) -> None:
    with (
        engram.open() as engine,
        engram.serve(engine, grpc="127.0.0.1:0", idle_seconds_max=0.3) as server,
    ):
        engine.space("s", dim=2)
        with raw(server.url) as channel:
            stream = Stream(channel, space="s")
            stream.frame(1, 1)
            stream.acknowledged(1)
            error = stream.error()
            assert (error.code(), reason(error)) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
            again = Stream(channel, space="s", token=stream.opened.token)
            assert again.opened.committed == 1
            again.cancel()
            stream.cancel()


def test_who_does_not_heed_a_refusal_holds_up_himself(channel: grpc.Channel, space: engram.Space) -> None:
    """P6: frames that bring nothing new are read at 20 MB/s a stream, so that the loop has time for others."""
    stream = Stream(channel, space=space.name)
    begun = time.monotonic()
    for _ in range(100):
        stream.frame(7, ["x" * 50_000] * 4)
    stream.say(drain=pb.Drain())
    assert stream.hear("fault").code == "SEQUENCE_GAP"
    assert stream.hear("drained").committed == 0
    assert time.monotonic() - begun >= 1.0
    stream.cancel()


def test_a_stream_that_ended_unheard_is_taken_down() -> None:
    """S1: whoever does not read does not hear the end, and keeps neither the place nor the buffers."""
    settings = {"idle_seconds_max": 1.0, "outbound_bytes_max": 64 << 20}
    with engram.open() as engine, engram.serve(engine, grpc="127.0.0.1:0", **settings) as server:
        engine.space("s", dim=2)
        with raw(server.url) as channel:
            stream = Stream(channel, space="s")
            stream.reading.clear()
            for turn in range(400):  # each brings as many faults as it has observations
                bad = frame(300 * turn + 1, ["x"] * 300, present=bytes([3]) * 300)
                bad.confidence.extend([2.0] * 300)
                stream.say(frame=bad)
            connections = server._grpc._connections
            until = time.monotonic() + 30
            while connections:
                assert time.monotonic() < until, "it stays"
                time.sleep(0.05)
            stream.reading.set()
            stream.cancel()


def test_more_streams_than_there_may_be() -> None:
    with engram.open() as engine, engram.serve(engine, grpc="127.0.0.1:0", streams_max=2) as server:
        engine.space("s", dim=2)
        channels = [raw(server.url) for _ in range(3)]
        streams = [Stream(channel, space="s") for channel in channels[:2]]
        third = Stream(channels[2])
        third.say(open=pb.Open(space="s"))
        assert reason(third.error()) == "TOO_LARGE"
        for stream, channel in itertools.zip_longest([*streams, third], channels):
            stream.cancel()
            channel.close()
