"""Hypothesis strategies for what a space stores."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from engram.testing.model import Observation

__all__ = ["metadata", "observations", "vectors"]

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_KEY = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
)


def metadata() -> st.SearchStrategy[dict[str, Any]]:
    """Objects that JSON can say."""
    inner: st.SearchStrategy[Any] = st.recursive(
        _LEAF, lambda part: st.lists(part, max_size=3) | st.dictionaries(_KEY, part, max_size=3), max_leaves=8
    )
    return st.dictionaries(_KEY, inner, max_size=3)


def vectors(dim: int) -> st.SearchStrategy[tuple[float, ...]]:
    """Return vectors that every metric accepts: finite and not zero; many are equal or near to each other."""
    size = st.floats(0.0009765625, 1000, width=32)
    component = st.sampled_from([0.0, 1.0, -1.0]) | size | size.map(lambda value: -value)
    return st.tuples(*[component] * dim).filter(any)


def observations(dim: int, *, vector: bool | None = None) -> st.SearchStrategy[Observation]:
    """Return valid observations; with `vector` all or none of them have one."""
    given = vectors(dim)
    given_or_not: st.SearchStrategy[tuple[float, ...] | None] = st.none() if vector is False else given
    if vector is None:
        given_or_not = st.none() | given
    confidence = st.just(1.0) | st.floats(0, 1, width=32)
    made = st.builds(Observation, st.none() | _TEXT, given_or_not, st.just({}) | metadata(), confidence)
    return made.filter(lambda one: one.text is not None or one.vector is not None)
