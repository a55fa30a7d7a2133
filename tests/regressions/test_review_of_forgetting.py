"""What a hostile reading of forgetting and sessions found."""

from typing import Any

import pytest

import engram


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"$and": [{}]},
        {"$and": []},
        {"$or": [{"a": 1}, {}]},
        {"$not": {"$not": {}}},
        {"a": 1, "$and": [{"$or": [{}]}]},
    ],
)
def test_a_part_that_says_nothing_forgets_nothing(space: engram.Space, where: dict[str, Any]) -> None:
    """K3: only the outermost mapping was looked at."""
    space.observe("kept", metadata={"a": 1})
    with pytest.raises(engram.InvalidArgument, match="forget everything"):
        space.forget(where=where)
    assert len(space) == 1
    assert space.forget(where={"$or": [{"a": 1}, {"$and": [{"b": 1}]}]}) == 1


def test_who_has_lost_the_token_is_told(space: engram.Space) -> None:
    """D11: a new session began in silence, whatever the caller knew to be acknowledged."""
    with pytest.raises(engram.DataLoss, match="token") as caught:
        space.session(acknowledged=50)
    assert caught.value.committed == 0
    session = space.session(acknowledged=caught.value.committed)
    assert session.observe("one").generation == 1
    session.close()


@pytest.mark.parametrize("wrong", [{"after": -1}, {"after": 2**64}, {"after": None}, {"limit": -1}, {"limit": True}])
def test_wrong_pages_are_named(space: engram.Space, wrong: dict[str, Any]) -> None:
    with pytest.raises(engram.InvalidArgument) as caught:
        [*space.list(**wrong)]
    assert caught.value.field == next(iter(wrong))
