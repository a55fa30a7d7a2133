"""Hypothesis strategies for what a space stores."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from engram.testing.model import Observation

__all__ = ["conditions", "metadata", "observations", "vectors"]

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_KEY = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_FIELDS = ("memory_id", "observed_at", "committed_at", "confidence", "key")
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


def conditions(names: st.SearchStrategy[str] = _KEY) -> st.SearchStrategy[dict[str, Any]]:
    """Return conditions that can be read, on fields of these names and of the memory itself."""
    number = st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -2.0, 2.0**53])
    ordered = number | _TEXT
    value: st.SearchStrategy[Any] = _LEAF | number | st.lists(_LEAF | number, max_size=2)
    field = names.filter(lambda name: not name.startswith("$") and name not in _FIELDS)
    return st.recursive(
        st.dictionaries(field, value | _operators(value, ordered), min_size=1, max_size=2)
        | st.dictionaries(st.sampled_from(["memory_id", "confidence"]), _operators(number, number), min_size=1),
        lambda part: (
            st.fixed_dictionaries({"$not": part})
            | st.lists(part, min_size=1, max_size=3).flatmap(
                lambda parts: st.sampled_from([{"$and": parts}, {"$or": parts}])
            )
        ),
        max_leaves=4,
    )


def _operators(value: st.SearchStrategy[Any], ordered: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    each: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("$eq", "$ne"), value),
        **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), ordered),
        **dict.fromkeys(("$in", "$nin"), st.lists(value, max_size=3)),
        "$exists": st.booleans(),
    }
    some = st.lists(st.sampled_from(sorted(each)), min_size=1, max_size=2, unique=True)
    return some.flatmap(lambda names: st.fixed_dictionaries({name: each[name] for name in names}))


def vectors(dim: int) -> st.SearchStrategy[tuple[float, ...]]:
    """Return vectors that every metric accepts: finite and not zero; many are equal or near to each other."""
    size = st.floats(0.0009765625, 1000, width=32)
    component = st.sampled_from([0.0, 1.0, -1.0]) | size | size.map(lambda value: -value)
    return st.tuples(*[component] * dim).filter(any)


def observations(
    dim: int, *, vector: bool | None = None, keys: st.SearchStrategy[str] | None = None
) -> st.SearchStrategy[Observation]:
    """Return valid observations; with `vector` all or none of them have one, with `keys` some have a key."""
    given = vectors(dim)
    given_or_not: st.SearchStrategy[tuple[float, ...] | None] = st.none() if vector is False else given
    if vector is None:
        given_or_not = st.none() | given
    confidence = st.just(1.0) | st.floats(0, 1, width=32)
    key: st.SearchStrategy[str | None] = st.none() if keys is None else st.none() | keys
    made = st.builds(Observation, st.none() | _TEXT, given_or_not, st.just({}) | metadata(), confidence, key)
    return made.filter(lambda one: one.text is not None or one.vector is not None)
