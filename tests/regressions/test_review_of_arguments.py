"""What a hostile reading found between what a caller gives and what the engine takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engram

BAD: dict[str, dict[str, Any]] = {
    "surrogate": {"texts": ["a", "\ud800", "c"]},
    "no text": {"texts": ["a", 5, "c"]},
    "metadata with NaN": {"texts": ["a", "b", "c"], "metadata": [{}, {"x": float("nan")}, None]},
    "metadata of a kind": {"texts": ["a", "b", "c"], "metadata": [None, 3, {}]},
    "empty key": {"texts": ["a", "b", "c"], "keys": [None, "", "k"]},
    "key twice": {"texts": ["a", "b", "c"], "keys": ["k", "k", None]},
    "no time": {"texts": ["a", "b", "c"], "observed_at": [1, float("nan"), 2]},
    "no confidence": {"texts": ["a", "b", "c"], "confidence": [1, "high", 0.5]},
    "no vector": {"texts": ["a", "b", "c"], "vectors": [[1, 2], [float("inf"), 1], [1, 1]]},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_an_item_without_a_form_takes_its_number(space: engram.Space, bad: dict[str, Any]) -> None:
    """O1: such an item refused the whole batch of a session."""
    with space.session() as session:
        for _ in range(2):
            ack = session.observe_batch(**bad, atomic=False, sequence=1)
            assert (len(ack.memory_ids), [index for index, _ in ack.rejected]) == (2, [1])
        assert (session.committed, [memory.text for memory in space.list()]) == (3, ["a", "c"])
        with pytest.raises(engram.InvalidArgument) as caught:
            session.observe_batch(**bad, atomic=True)
        assert (caught.value.index, session.committed) == (1, 3)
    ack = space.observe_batch(**bad, atomic=False)
    assert (len(ack.memory_ids), [index for index, _ in ack.rejected]) == (2, [1])


def test_all_that_is_wrong_is_told(space: engram.Space) -> None:
    """With the reason of each, in order, however many."""
    texts = ["a", "\ud800", "b", 7, "c", None, "d"]
    with space.session() as session:
        ack = session.observe_batch(texts=texts, keys=["k", None, "k", None, None, None, ""], atomic=False)  # type: ignore[list-item]
        assert [index for index, _ in ack.rejected] == [1, 2, 3, 5, 6]
        for (_, reason), word in zip(ack.rejected, ["surrogate", "twice", "str", "", "empty"], strict=True):
            assert word in reason
        assert [memory.text for memory in space.list()] == ["a", "c"]


def test_nothing_else_is_said_where_nothing_was_stored(tmp_path: Path) -> None:
    """S3: a valid observation with the number of an invalid one was acknowledged, and stored nowhere."""

    def other(session: engram.Session, sequence: int) -> None:
        with pytest.raises(engram.SequenceConflict):
            session.observe("now valid", sequence=sequence)

    with engram.open(tmp_path / "d") as engine:
        space = engine.space("s", dim=2)
        session = space.session()
        given: dict[str, Any] = {"texts": ["a", None, "c", "d", None], "atomic": False, "sequence": 1}
        assert [index for index, _ in session.observe_batch(**given).rejected] == [1, 4]
        other(session, 2)
        engine.checkpoint()
        other(session, 2)
        assert [index for index, _ in session.observe_batch(**given).rejected] == [1, 4]
        token, committed = session.token, session.committed
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("s")
        session = space.session(resume=token, acknowledged=committed)
        other(session, 2)
        other(session, 5)
        # What was a row and is purged cannot be compared; nor, as nobody knows any more, what stood behind it.
        assert space.forget(1, purge=True) == 1
        assert space.forget(4, purge=True) == 1
        for sequence in (1, 4):
            assert session.observe("whatever", sequence=sequence).duplicate  # type: ignore[union-attr]
        assert session.observe_batch(**given).duplicate
        other(session, 3)


def nested(depth: int) -> Any:
    out: Any = 1
    for _ in range(depth):
        out = [out]
    return out


def shared(depth: int) -> Any:
    """Twice the same in each."""
    out: Any = 1
    for _ in range(depth):
        out = [out, out]
    return out


REFUSED: dict[str, Callable[[engram.Space], object]] = {
    "confidence list": lambda space: space.observe("a", confidence=[0.5]),  # type: ignore[arg-type]
    "confidence bool": lambda space: space.observe("a", confidence=True),
    "confidence matrix": lambda space: space.observe_batch(texts=["a"], confidence=[[1.0]]),  # type: ignore[list-item]
    "texts": lambda space: space.observe_batch(texts=3),  # type: ignore[arg-type]
    "keys": lambda space: space.observe_batch(texts=["a"], keys=3),  # type: ignore[arg-type]
    "metadata": lambda space: space.observe_batch(texts=["a"], metadata=3),  # type: ignore[arg-type]
    "frame of nothing": lambda space: space.observe_frame(None),  # type: ignore[arg-type]
    "frame of zeros": lambda space: space.observe_frame(5),  # type: ignore[arg-type]
    "ids as bytes": lambda space: space.forget(b"\x01"),
    "spoken frame": lambda space: space.session().observe_frame(5),  # type: ignore[arg-type]
    "submitted frame": lambda space: space.session().submit_frame("x"),  # type: ignore[arg-type]
    "callback": lambda space: space.session().on_pressure(5),  # type: ignore[arg-type]
    "purge": lambda space: space.forget(1, purge="no"),  # type: ignore[arg-type]
    "atomic": lambda space: space.observe_batch(texts=["a"], atomic="x"),  # type: ignore[arg-type]
    "atomic of a session": lambda space: space.session().observe_batch(texts=["a"], atomic=1),  # type: ignore[arg-type]
    "exact": lambda space: space.recall(vector=[1, 0], exact="yes"),  # type: ignore[arg-type]
    "parts of a kind": lambda space: space.forget(where={"$and": np.array([1])}),
    "keys of a kind": lambda space: space.forget(where={"a": {1: 2}}),
    "keys of a kind inside": lambda space: space.forget(where={"$and": [{"a": {"$eq": {"b": [{1: 2}]}}}]}),
    "too deep": lambda space: space.forget(where={"a": nested(5_000)}),
    "too many": lambda space: space.forget(where={"a": shared(40)}),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_a_wrong_argument_is_an_error_of_ours(space: engram.Space, call: Callable[[engram.Space], object]) -> None:
    """TypeErrors and OverflowErrors of what lies below, or values of another meaning."""
    space.observe("kept")
    with pytest.raises(engram.InvalidArgument):
        call(space)
    assert len(space) == 1


@pytest.mark.parametrize("limits", [{"queue_bytes_max": -1}, {"queue_bytes_max": "1"}, {"queue_bytes_max": 2**64}, 5])
def test_limits_that_are_none(limits: Any) -> None:
    with pytest.raises(engram.InvalidArgument, match="limits"):
        engram.open(limits=limits)


@pytest.mark.parametrize("path", ["\ud800", "a\0b", 5])
def test_paths_that_are_none(path: Any) -> None:
    for call in (engram.open, engram.verify, engram.inspect):
        with pytest.raises(engram.InvalidArgument, match="path"):
            call(path)


def test_a_number_of_completions_that_is_none() -> None:
    with engram.open() as engine, pytest.raises(engram.InvalidArgument, match="most"):
        engine.drain_completions(-1)


def test_numpy_in_conditions(space: engram.Space) -> None:
    """Ids come from arrays: a condition refused them."""
    ids = space.observe_batch(texts=["a", "b", "c"], metadata=[{"n": 1}, {"n": 2}, {"n": 3}]).memory_ids
    found = [memory.text for memory in space.list(where={"memory_id": {"$in": ids[:2]}})]
    assert found == ["a", "b"]
    assert [m.text for m in space.list(where={"memory_id": {"$in": [*ids[1:]]}})] == ["b", "c"]
    assert [m.text for m in space.list(where={"memory_id": ids[2]})] == ["c"]
    assert [m.text for m in space.list(where={"n": {"$lt": np.float32(2)}})] == ["a"]
    assert [m.text for m in space.list(where={"n": {"$exists": np.True_}})] == ["a", "b", "c"]


def test_who_is_fenced_has_no_credits() -> None:
    with engram.open() as engine:
        space = engine.space("s", dim=2)
        old = space.session()
        new = space.session(resume=old.token)
        assert (old.state, old.credits) == ("FENCED", (0, 0))
        assert new.credits[0] > 0
