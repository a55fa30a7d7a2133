"""Frames that are submitted and not waited for: taken or refused at once, told later (O2, S3, S6)."""

import asyncio
import select
from collections.abc import Iterator
from typing import Any

import pytest

import engram
from engram import aio


def frame(first: int, *items: str) -> bytes:
    fields = [bytes([1 << 3, first]), bytes([2 << 3, len(items)])]
    fields += [bytes([5 << 3 | 2, len(item.encode())]) + item.encode() for item in items]
    return b"".join(fields)


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Read a protobuf message, as far as these need."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = message[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at

    at = 0
    while at < len(message):
        tag, at = varint(at)
        value, at = varint(at)
        if tag & 7 == 2:
            yield tag >> 3, message[at : at + value]
            at += value
        else:
            yield tag >> 3, value


def told(message: bytes) -> dict[str, Any]:
    ((kind, body),) = fields(message)
    names = {1: ("first", "count", "generation", "durability", "duplicate"), 2: ("code", "text", "first", "expected")}[
        kind
    ]
    return {names[number - 1]: value for number, value in fields(body) if number <= len(names)}


def drain(engine: engram.Engine, until: int) -> list[tuple[int, dict[str, Any]]]:
    """Wait for the descriptor and drain, until so many sequences, or faults, were told."""
    all_told: list[tuple[int, dict[str, Any]]] = []
    while sum(one.get("count", 1) for _, one in all_told) < until:
        assert select.select([engine.completions_fd], [], [], 20)[0], all_told
        all_told += [(session, told(message)) for session, message in engine.drain_completions()]
    return all_told


@pytest.fixture
def engine() -> Iterator[engram.Engine]:
    with engram.open() as opened:
        yield opened


def test_frames_are_taken_at_once_and_told_later(engine: engram.Engine) -> None:
    space = engine.space("s", dim=2)
    session = space.session()
    assert engine.completions_fd >= 0
    assert select.select([engine.completions_fd], [], [], 0)[0] == []
    for first in range(1, 100, 2):
        assert session.submit_frame(frame(first, f"{first}", f"{first + 1}")) is None
    acks = drain(engine, 100)
    assert {of for of, _ in acks} == {session.id}
    at = 1
    for _, ack in acks:
        assert (ack["first"], ack["generation"], ack["durability"]) == (at, at, 1)
        assert "duplicate" not in ack
        at += ack["count"]
    assert at == 101
    assert session.submit_frame(frame(99, "99", "100", "101")) is None
    assert [(ack["first"], ack["count"], ack.get("duplicate", 0)) for _, ack in drain(engine, 3)] == [
        (99, 2, 1),
        (101, 1, 0),
    ]
    assert select.select([engine.completions_fd], [], [], 0)[0] == [], "quiet when all is drained"
    assert len(space) == 101


def test_a_refused_frame_rewinds_the_pipeline(engine: engram.Engine) -> None:
    space = engine.space("s", dim=2)
    session = space.session()
    assert session.submit_frame(frame(1, "a")) is None
    refusal = session.submit_frame(frame(3, "c"))
    assert refusal is not None
    fault = told(refusal)
    assert (fault["code"], fault["first"], fault["expected"]) == (b"SEQUENCE_GAP", 3, 2)
    for later in (4, 5, 9):
        assert session.submit_frame(frame(later, "x")) is None, "passed over in silence"
    assert session.submit_frame(frame(2, "b", "c")) is None
    drain(engine, 3)
    assert [memory.text for memory in space.list()] == ["a", "b", "c"]
    for bad in (frame(0, "x"), b"\xff", b""):
        answer = session.submit_frame(bad)
        assert answer is not None
        assert told(answer)["code"] == b"INVALID_ARGUMENT"
    assert session.submit_frame(frame(4, "d")) is None
    assert drain(engine, 1)[0][1]["first"] == 4


def test_an_invalid_item_is_told_and_the_stream_lives_on(engine: engram.Engine) -> None:
    space = engine.space("s", dim=2)
    session = space.session()
    present = bytes([7 << 3 | 2, 3, 1, 0, 1])
    assert session.submit_frame(frame(1, "a", "", "c") + present) is None
    everything = [one for _, one in drain(engine, 4)]
    faults = [one for one in everything if "code" in one]
    acks = [one for one in everything if "code" not in one]
    assert [(fault["code"], fault["first"], fault.get("expected", 0)) for fault in faults] == [
        (b"INVALID_ARGUMENT", 2, 0)
    ]
    assert [(ack["first"], ack["count"]) for ack in acks] == [(1, 3)]
    assert [memory.text for memory in space.list()] == ["a", "c"]
    session.pause()
    paused = session.submit_frame(frame(4, "d"))
    assert paused is not None
    assert told(paused)["code"] == b"PAUSED"
    session.resume()
    assert session.submit_frame(frame(4, "d")) is None
    drain(engine, 1)
    newer = space.session(resume=session.token)
    with pytest.raises(engram.Fenced):
        session.submit_frame(frame(5, "e"))
    newer.close()
    with pytest.raises(engram.SessionExpired):
        newer.submit_frame(frame(5, "e"))


async def test_an_event_loop_watches_the_descriptor() -> None:
    async with await aio.open() as engine:
        space = await engine.space("s", dim=2)
        session = await space.session()
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(engine.completions_fd, ready.set)
        assert session.submit_frame(frame(1, "a", "b")) is None
        async with asyncio.timeout(20):
            await ready.wait()
        ((of, message),) = engine.drain_completions()
        assert (of, told(message)["count"]) == (session.id, 2)
        loop.remove_reader(engine.completions_fd)
