"""Conditions as users write them: times, mistakes, and the same in every read method (K2)."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engram

pytestmark = pytest.mark.usefixtures("both_graphs")


@pytest.fixture
def space(tmp_path: Path) -> Any:
    with engram.open(tmp_path / "data") as engine:
        made = engine.space("s", dim=2)
        made.observe_batch(
            texts=["a", "b", "c", "d"],
            vectors=[[1, 0], [1, 0.1], [1, 0.2], [1, 0.3]],
            metadata=[{"n": 1, "tags": ["x"]}, {"n": 2, "of": {"who": "Ada"}}, None, {"n": 3}],
            observed_at=[datetime(2020, 1, 1, tzinfo=UTC), 1_600_000_000, None, 1_700_000_000.5],
            confidence=[1, 0.9, 0.5, 0.1],
        )
        yield made


def found(space: engram.Space, where: dict[str, Any]) -> str:
    """Ask each read method; all must agree."""
    texts = "".join(memory.text or "" for memory in space.list(where=where))
    assert "".join(hit.text or "" for hit in space.recall(vector=[1, 0], where=where)) == texts
    with space.snapshot() as snapshot:
        ids, _ = snapshot.recall_batch(np.array([[1, 0]]), k=4, where=where)
        assert "".join(" abcd"[i] for i in ids[0]).strip() == texts
    return texts


def test_fields(space: engram.Space) -> None:
    assert found(space, {"n": {"$gte": 2}}) == "bd"
    assert found(space, {"of.who": "Ada"}) == "b"
    assert found(space, {"tags": "x", "n": 1.0}) == "a"
    assert found(space, {"n": {"$exists": False}}) == "c"
    assert found(space, {"memory_id": {"$in": [1, 4, 9]}}) == "ad"
    assert found(space, {"confidence": 0.9}) == "b"
    assert found(space, {"$or": [{"confidence": {"$lt": 0.2}}, {"n": 1}]}) == "ad"
    assert found(space, {}) == "abcd"


def test_times(space: engram.Space) -> None:
    assert found(space, {"observed_at": {"$lt": datetime(2021, 1, 1, tzinfo=UTC)}}) == "ab"
    assert found(space, {"observed_at": {"$in": [1_600_000_000, 1_700_000_000.5]}}) == "bd"
    assert found(space, {"observed_at": {"$exists": False}}) == "c"
    assert found(space, {"$not": {"committed_at": {"$gt": 0}}}) == ""


def test_k_are_filled_from_behind_what_does_not_match(tmp_path: Path) -> None:
    """G4: few matches among many nearer rows, sealed and not."""
    with engram.open(tmp_path / "many") as engine:
        space = engine.space("s", dim=2)
        angles = np.linspace(0, 1, 3_000)
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        for begin in (0, 1_500):
            rows = slice(begin, begin + 1_500)
            space.observe_batch(vectors=vectors[rows], metadata=[{"n": n} for n in range(3_000)[rows]])
            if not begin:
                engine.checkpoint()
        where = {"n": {"$in": [700, 1_490, 1_510, 2_999]}}
        assert [hit.metadata["n"] for hit in space.recall(vector=[1, 0], k=4, where=where)] == [
            700,
            1_490,
            1_510,
            2_999,
        ]
        assert len(space.recall(vector=[1, 0], k=3, where={"n": {"$gt": 5}})) == 3


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"n": {"$like": 1}}, "is not one of"),
        ({"n": {"$gt": None}}, "a number or a text"),
        ({"n": float("nan")}, "not finite"),
        ({"n": {1, 2}}, "no JSON form"),
        ({"n": "\ud800"}, "lone surrogate"),
        ({1: 2}, "keys must be strings"),
        ({"observed_at": None}, "no time"),
        ({"observed_at": "yesterday"}, "datetime or seconds"),
        ({"memory_id": True}, "needs numbers"),
        ([("n", 1)], "must be a mapping"),
        ({"$and": [{"n": 1}, 2]}, "must be a mapping"),
    ],
)
def test_mistakes(space: engram.Space, where: Any, message: str) -> None:
    for call in (
        lambda: space.recall(vector=[1, 0], where=where),
        lambda: space.recall_batch([[1, 0]], where=where),
        lambda: [*space.list(where=where)],
    ):
        with pytest.raises(engram.InvalidArgument, match=message) as caught:
            call()
        assert caught.value.field == "where"


def test_hostile_depth(space: engram.Space) -> None:
    deep: dict[str, Any] = {"n": 1}
    for _ in range(100_000):
        deep = {"$not": deep}
    with pytest.raises(engram.InvalidArgument, match="nested too deeply"):
        space.recall(vector=[1, 0], where=deep)
    wide: dict[str, Any] = {"n": 1}
    for _ in range(20):
        wide = {"$not": wide}
    with pytest.raises(engram.InvalidArgument, match="deep"):
        space.recall(vector=[1, 0], where=wide)


def test_a_condition_used_twice_at_each_depth_is_refused() -> None:
    where: dict[str, object] = {"n": 1}
    for _ in range(14):
        where = {"$or": [where] * 8}
    with engram.open() as engine:
        space = engine.space("a", dim=1)
        with pytest.raises(engram.InvalidArgument, match="conditions"):
            list(space.list(where=where))
