"""What a condition means, said as plainly as can be: the oracle of `where=`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["matches"]

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}


def matches(where: Mapping[str, Any], metadata: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Tell whether a memory with this metadata is meant; `fields` holds what it has beside it, as `memory_id`."""
    return all(_part(name, test, metadata, fields) for name, test in where.items())


def _part(name: str, test: Any, metadata: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    if name == "$and":
        return all(matches(part, metadata, fields) for part in test)
    if name == "$or":
        return any(matches(part, metadata, fields) for part in test)
    if name == "$not":
        return not matches(test, metadata, fields)
    values = _values(metadata, name.split(".")) if name not in fields else [fields[name]]
    if not isinstance(test, Mapping) or not any(operator.startswith("$") for operator in test):
        test = {"$eq": test}
    if name == "confidence":  # has 32 bits
        test = {operator: _narrow(operand) for operator, operand in test.items()}
    return all(_operator(operator, operand, values) for operator, operand in test.items())


def _narrow(operand: Any) -> Any:
    if isinstance(operand, list):
        return [_narrow(item) for item in operand]
    return float(np.float32(operand)) if isinstance(operand, float) else operand


def _values(value: Any, path: list[str]) -> list[Any]:
    """Return the values at the end of a path; a list counts as itself and as each of its elements."""
    if not path:
        return [value, *value] if isinstance(value, list) else [value]
    if isinstance(value, list):
        return [found for item in value if isinstance(item, Mapping) for found in _values(item, path)]
    if isinstance(value, Mapping) and path[0] in value:
        return _values(value[path[0]], path[1:])
    return []


def _operator(operator: str, operand: Any, values: list[Any]) -> bool:
    if operator == "$exists":
        return bool(values) is operand
    if operator in ("$eq", "$ne"):
        return any(_equal(value, operand) for value in values) is (operator == "$eq")
    if operator in ("$in", "$nin"):
        return any(_equal(value, one) for value in values for one in operand) is (operator == "$in")
    return any(_ordered(value, operand) and _ORDERS[operator](*_keys(value, operand)) for value in values)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ordered(a: Any, b: Any) -> bool:
    return (_number(a) and _number(b)) or (isinstance(a, str) and isinstance(b, str))


def _keys(a: Any, b: Any) -> tuple[Any, Any]:
    return (a.encode(), b.encode()) if isinstance(a, str) else (a, b)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    if _number(a) and _number(b):
        return bool(a == b)
    return type(a) is type(b) and bool(a == b)
