"""`where=` against the plain meaning of a condition (K2, G4), over rows in memory and in sealed files."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engram
from conftest import CAMPAIGN
from engram.testing import conditions, matches, metadata

pytestmark = pytest.mark.usefixtures("both_graphs")

NAMES = st.sampled_from(["a", "b", "c", "a.b", "b.a", "c.a.b", ""])
SMALL = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.5, 1.0, -2.0, 2.0**53, 2**53 + 1, "x", "y", "é"])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SMALL,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), part, max_size=2),
    max_leaves=5,
)
ROWS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(["a", "b", "c", ""]), VALUES, max_size=3) | metadata(),
        st.floats(0, 1, width=32),
    ),
    min_size=1,
    max_size=12,
)


@pytest.fixture(scope="module")
def engine(both_graphs: None) -> Iterator[engram.Engine]:
    with engram.open(limits={"idle_close_ms": 1}) as opened:
        yield opened


@settings(settings.get_profile("campaign" if CAMPAIGN else "ci"), max_examples=5_000 if CAMPAIGN else 150)
@given(rows=ROWS, wheres=st.lists(conditions(NAMES), min_size=1, max_size=6), seal=st.booleans())
def test_a_condition_means_what_it_says(
    engine: engram.Engine, rows: list[tuple[dict[str, Any], float]], wheres: list[dict[str, Any]], seal: bool
) -> None:
    space = engine.space("s", dim=2)
    try:
        angles = np.arange(1, len(rows) + 1) / 10
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        space.observe_batch(vectors=vectors, metadata=[row[0] for row in rows], confidence=[row[1] for row in rows])
        if seal:
            engine.checkpoint()
        first = next(iter(space.list())).memory_id
        for where in wheres:
            expected = [
                first + number
                for number, (fields, confidence) in enumerate(rows)
                if matches(where, fields, {"memory_id": first + number, "confidence": confidence})
            ]
            assert [memory.memory_id for memory in space.list(where=where)] == expected
            assert [hit.memory_id for hit in space.recall(vector=[1, 0], k=20, where=where)] == expected
            nearest = expected[:3] + [0] * (3 - len(expected[:3]))
            ids, _ = space.recall_batch(np.tile([[1.0, 0.0]], (3, 1)), k=3, where=where)
            assert ids.tolist() == [nearest] * 3
    finally:
        engine.drop_space("s")
