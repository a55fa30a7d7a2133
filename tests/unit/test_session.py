"""Sessions: one effect for each sequence, in order, whoever says it how often (S1–S8)."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import engram
from engram import aio

pytestmark = pytest.mark.usefixtures("both_graphs")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[engram.Engine]:
    with engram.open(tmp_path / "data", limits={"partitions": 1}) as opened:
        yield opened


@pytest.fixture
def space(engine: engram.Engine) -> engram.Space:
    return engine.space("s", dim=2)


def texts(space: engram.Space) -> list[str | None]:
    return [memory.text for memory in space.list()]


def frame(first: int, *items: str) -> bytes:
    """A frame of short texts, as any protobuf library writes it."""
    fields = [bytes([1 << 3, first]), bytes([2 << 3, len(items)])]
    fields += [bytes([5 << 3 | 2, len(item.encode())]) + item.encode() for item in items]
    return b"".join(fields)


def test_sequences_are_counted_and_said_once(space: engram.Space) -> None:
    with space.session() as session:
        first = session.observe("a", vector=[1, 0])
        batch = session.observe_batch(texts=["b", "c"])
        assert (first.memory_id, batch.memory_ids.tolist(), session.committed) == (1, [2, 3], 3)
        again = session.observe("a", vector=[1, 0], sequence=1)
        assert (again.memory_id, again.duplicate, first.duplicate) == (1, True, False)
        straddling = session.observe_batch(texts=["c", "d"], sequence=3)
        assert (straddling.memory_ids.tolist(), straddling.duplicate) == ([3, 4], False)
        repeated = session.observe_batch(texts=["b", "c", "d"], sequence=2)
        assert (repeated.memory_ids.tolist(), repeated.duplicate) == ([2, 3, 4], True)
        with pytest.raises(engram.SequenceGap) as gap:
            session.observe("x", sequence=6)
        assert gap.value.expected == 5
        for wrong in ("a", "A"):
            with pytest.raises(engram.SequenceConflict) as conflict:
                session.observe_batch(texts=["b", wrong, "d", "new"], sequence=2)
            assert conflict.value.sequence == 3
        assert space.wait_absorbed()
        assert (session.committed, session.absorbed) == (4, 4)
        assert session.observe("e").memory_id == 5
    assert texts(space) == ["a", "b", "c", "d", "e"]
    assert session.state == "CLOSED"
    session.close()
    with pytest.raises(engram.SessionExpired):
        session.observe("f")


def test_an_invalid_item_is_a_void_or_a_refusal(space: engram.Space) -> None:
    session = space.session()
    with pytest.raises(engram.InvalidArgument) as refused:
        session.observe_batch(texts=["a", None, "c"])
    assert (refused.value.index, session.committed) == (1, 0)
    given: dict[str, Any] = {"texts": ["a", None, "c", "d", "e"], "keys": ["k", None, "k", None, "l"]}
    ack = session.observe_batch(**given, atomic=False)
    assert [index for index, _ in ack.rejected] == [1, 2]
    assert (ack.memory_ids.tolist(), ack.generation, session.committed) == ([1, 4, 5], 5, 5)
    again = session.observe_batch(**given, atomic=False, sequence=1)
    assert (again.memory_ids.tolist(), again.duplicate) == ([1, 4, 5], True)
    assert session.observe("f").memory_id == 6, "sequence and generation stay in step"
    assert [texts(space), len(space)] == [["a", "d", "e", "f"], 4]
    assert [memory.text for memory in space.list(as_of=4)] == [], "a batch is one moment, whatever is void in it"
    assert len([*space.list(as_of=5)]) == 3


def test_frames_of_the_wire(space: engram.Space) -> None:
    session = space.session()
    assert session.observe_frame(frame(1, "a", "b")).memory_ids.tolist() == [1, 2]
    assert session.observe_frame(frame(2, "b", "c")).memory_ids.tolist() == [2, 3]
    with pytest.raises(engram.SequenceGap):
        session.observe_frame(frame(5, "x"))
    with pytest.raises(engram.InvalidArgument, match="malformed"):
        session.observe_frame(b"\xff\xff")
    with pytest.raises(engram.InvalidArgument, match="begin at 1"):
        session.observe_frame(frame(0, "x"))
    assert texts(space) == ["a", "b", "c"]


def test_whoever_attaches_fences_the_older_speaker(space: engram.Space) -> None:
    older = space.session()
    older.observe("a")
    newer = space.session(resume=older.token, acknowledged=1)
    assert (newer.committed, older.state, newer.state) == (1, "FENCED", "ACTIVE")
    for call in (lambda: older.observe("x"), older.pause, older.drain):
        with pytest.raises(engram.Fenced):
            call()
    older.detach()
    assert newer.observe("b").memory_id == 2
    assert newer.observe("a", sequence=1).duplicate
    assert texts(space) == ["a", "b"]


def test_tokens_are_of_their_session_space_and_directory(engine: engram.Engine, space: engram.Space) -> None:
    token = space.session().token
    other = engine.space("t", dim=2)
    with pytest.raises(engram.InvalidArgument, match="not one of space"):
        other.session(resume=token)
    for made_up in ("", "es1_", token[:-1] + ("0" if token[-1] != "0" else "1"), token.upper(), "x" * 1000):
        with pytest.raises(engram.InvalidArgument, match="not a session token"):
            space.session(resume=made_up)
    with engram.open() as elsewhere, pytest.raises(engram.InvalidArgument, match="not a session token"):
        elsewhere.space("s", dim=2).session(resume=token)
    with pytest.raises(engram.InvalidArgument, match="priority"):
        space.session(priority="urgent")  # type: ignore[arg-type]
    assert space.session(priority="low").priority == "low"


def test_a_session_goes_on_over_restarts_and_checkpoints(tmp_path: Path) -> None:
    token, acknowledged = "", 0
    for life in range(4):
        with engram.open(tmp_path / "d", limits={"partitions": 1}) as engine:
            space = engine.space("s", dim=2)
            session = space.session(resume=token, acknowledged=acknowledged) if token else space.session()
            assert session.committed == acknowledged == life * 5
            token = session.token
            for n in range(5):
                session.observe(f"{life} {n}")
            acknowledged = session.committed
            repeated = session.observe_batch(texts=[f"0 {n}" for n in range(5)], sequence=1)
            assert (repeated.memory_ids.tolist(), repeated.duplicate) == ([1, 2, 3, 4, 5], True)
            if life % 2:
                engine.checkpoint()
            # Detached by the end of the process, not closed.
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("s")
        assert texts(space) == [f"{life} {n}" for life in range(4) for n in range(5)]
        with pytest.raises(engram.DataLoss) as loss:
            space.session(resume=token, acknowledged=21)
        assert loss.value.committed == 20
        space.session(resume=token, acknowledged=20).close()
        with pytest.raises(engram.SessionExpired):
            space.session(resume=token)
    with engram.open(tmp_path / "d") as engine, pytest.raises(engram.SessionExpired):
        engine.space("s").session(resume=token)


def test_ids_before_the_window_are_not_kept(space: engram.Space) -> None:
    session = space.session()
    for n in range(300):
        session.observe(f"{n}")
        space.observe("between")  # so that no two runs merge
    old = session.observe("0", sequence=1)
    assert (old.memory_id, old.duplicate) == (0, True)
    assert session.observe("299", sequence=300).memory_id == 599
    many = session.observe_batch(texts=[f"{n}" for n in range(300)], sequence=1)
    assert many.duplicate
    assert (many.memory_ids == 0).sum() == 300 - 256


def test_pause_drain_and_the_end_of_a_with_block(space: engram.Space) -> None:
    session = space.session()
    session.pause()
    assert (session.state, session.credits) == ("PAUSED", (0, 0))
    with pytest.raises(engram.Paused):
        session.observe("x")
    session.resume()
    assert session.observe("a").memory_id == 1
    assert session.credits[0] > 0
    assert (session.level, session.advised_batch) == ("NORMAL", 256)
    session.drain()
    with pytest.raises(engram.Closed):
        session.observe("x")
    session.close()
    with contextlib.suppress(RuntimeError), space.session() as broken:
        broken.observe("b")
        raise RuntimeError
    assert broken.state == "DETACHED"
    assert space.session(resume=broken.token).committed == 1


def test_threads_take_turns_and_sessions_are_apart(space: engram.Space) -> None:
    sessions = [space.session() for _ in range(3)]

    def speak(session: engram.Session, name: str) -> None:
        for n in range(40):
            session.observe_batch(texts=[f"{name} {n} {m}" for m in range(3)])

    threads = [
        threading.Thread(target=speak, args=(session, f"{number}{half}"))
        for number, session in enumerate(sessions)
        for half in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [session.committed for session in sessions] == [240] * 3
    listed = [str(text).split() for text in texts(space)]
    for name in ("0a", "0b", "1a", "1b", "2a", "2b"):
        own = [(int(n), int(m)) for one, n, m in listed if one == name]
        assert own == [(n, m) for n in range(40) for m in range(3)], "S5"
    for at in range(0, len(listed), 3):
        assert len({tuple(row[:2]) for row in listed[at : at + 3]}) == 1, "O4: a batch is contiguous"


def test_limits_of_sessions(tmp_path: Path) -> None:
    limits = {"sessions_attached_max": 2, "sessions_kept_max": 3}
    with engram.open(tmp_path / "d", limits=limits) as engine:
        space, other = engine.space("s", dim=1), engine.space("other", dim=1)
        first, second = space.session(), other.session()
        for full in (space, other):
            with pytest.raises(engram.TooLarge, match="2 sessions are attached"):
                full.session()
        first.detach()
        third = space.session()
        second.detach()
        with pytest.raises(engram.TooLarge, match="3 sessions are kept"):
            other.session()
        third.close()
        assert space.session().state == "ACTIVE"


async def test_the_async_session_is_the_same() -> None:
    async with await aio.open() as engine:
        space = await engine.space("s", dim=2)
        async with await space.session() as session:
            assert (await session.observe("a")).memory_id == 1
            assert (await session.observe_batch(texts=["b"], sequence=2)).memory_ids.tolist() == [2]
            assert (await session.observe_frame(frame(2, "b"))).duplicate
            await session.pause()
            await session.resume()
            assert (session.committed, session.absorbed, session.state) == (2, 2, "ACTIVE")
            assert (session.level, session.advised_batch, session.credits[0] > 0) == ("NORMAL", 256, True)
            token = session.token
            again = await space.session(resume=token)
            await again.detach()
            session = await space.session(resume=token)
            await session.drain()
            await session.close()
        with pytest.raises(engram.SessionExpired):
            await space.session(resume=token)
