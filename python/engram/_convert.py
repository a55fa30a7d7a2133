"""Arguments as users write them, turned into the columns of the native engine. What is refused consumes nothing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engram._exceptions import InvalidArgument
from engram._types import EPOCH

Metric = Literal["cosine", "l2", "ip"]
Durability = Literal["sync", "os", "memory"]
OnOverload = Literal["wait", "raise"]
Priority = Literal["high", "normal", "low"]
Time = datetime | int | float | None
Metadata = Mapping[str, Any]
Where = Mapping[str, Any]
AsOf = datetime | int | None

_TIME_ABSENT = int(np.iinfo(np.int64).min)
_TIME_LIMIT = 2**62
_ITEM_OVERHEAD = 64
SECONDS_MAX = 86_400
_CONDITION_DEPTH = 32  # the engine stops earlier, and says where
_CONDITIONS_MAX = 1_000
_HELD_MAX = 100_000
_HOLDS = (Mapping, list, tuple, np.ndarray)


class ArrayLike(Protocol):
    """Anything NumPy can turn into an array."""

    def __array__(self) -> NDArray[Any]: ...


Vectors = NDArray[Any] | Sequence[Any] | ArrayLike
Arguments = tuple[
    NDArray[np.float32] | None,
    list[str | None] | None,
    list[dict[str, Any] | None] | None,
    NDArray[np.int64] | None,
    NDArray[np.float32] | None,
    list[str | None] | None,
]


def floats(name: str, value: Any, index: int | None = None) -> NDArray[np.float32]:
    """Return `value` as float32; what float32 cannot hold becomes infinite, for the engine to refuse."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "cSUmMOT":
            with np.errstate(over="ignore"):
                return np.asarray(array, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: {error}", field=name, index=index) from None
    raise InvalidArgument(f"{name} must be numbers, not {array.dtype}", field=name, index=index)


def likelihood(value: Any, index: int | None = None) -> NDArray[np.float32]:
    """Return one confidence; the engine knows its bounds."""
    number = floats("confidence", value, index)
    if number.ndim or isinstance(value, bool | np.bool_):
        raise InvalidArgument(f"confidence is {value!r}; it must be a number", field="confidence", index=index)
    return number


def octets(name: str, value: Any) -> bytes:
    """Return bytes, of whatever holds some."""
    try:
        return bytes(memoryview(value))
    except TypeError:
        text = f"{name} must be bytes, not {type(value).__name__}"
        raise InvalidArgument(text, field=name, index=None) from None


def each(name: str, values: Any) -> Iterable[Any]:
    """Complain unless it is an iterable of what has that name, and no text."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        text = f"{name} must be an iterable, one for each item, not one {type(values).__name__}"
        raise InvalidArgument(text, field=name, index=None)
    return values


def directory(path: Any) -> Any:
    """Return a path that has a form in the file system; None for none."""
    try:
        if path is not None:
            path = os.fspath(path)
            if not isinstance(path, str) or not path or b"\0" in os.fsencode(path):
                raise TypeError(f"{path!r} is not a str, is empty, or holds a zero")
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidArgument(f"path: {error}", field="path", index=None) from None
    return path


def limits_in(given: Any) -> dict[str, int]:
    """Return limits by name; the engine knows which there are."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        text = f"limits must be a mapping, not {type(given).__name__}"
        raise InvalidArgument(text, field="limits", index=None)
    return {plain("limits", name): whole(f"limits[{name!r}]", value, 0, 2**64 - 1) for name, value in given.items()}


def matrix(name: str, value: Vectors, ndim: int) -> NDArray[np.float32]:
    """Return vectors as float32 in C order; the array itself if it is so already."""
    array = floats(name, value)
    if array.ndim != ndim:
        shape = "(dim,)" if ndim == 1 else "(n, dim)"
        raise InvalidArgument(f"{name} must have shape {shape}, not {array.shape}", field=name, index=None)
    return np.ascontiguousarray(array)


def duration(name: str, seconds: Any) -> float:
    """Return a time to wait, in seconds."""
    is_number = isinstance(seconds, int | float | np.number) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= SECONDS_MAX:
        raise InvalidArgument(f"{name} is {seconds!r}; seconds from 0 to {SECONDS_MAX}", field=name, index=None)
    return float(seconds)


def millis(name: str, seconds: Any) -> int:
    """Return a time to wait, in milliseconds."""
    return round(duration(name, seconds) * 1000)


def plain(name: str, value: Any, index: int | None = None) -> str:
    """Return a text that has a UTF-8 form."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} is {value!r}; it must be a str", field=name, index=index)
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError:
        text = f"{name} holds a lone surrogate: it has no UTF-8 form"
        raise InvalidArgument(text, field=name, index=index) from None
    return value


def micros(value: object, index: int | None = None, name: str = "observed_at") -> int:
    """Return microseconds since 1970."""
    if value is None:
        return _TIME_ABSENT
    try:
        if isinstance(value, datetime):
            delta = (value if value.tzinfo else value.astimezone(UTC)) - EPOCH
            return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            exact = int(value) * 1_000_000
        elif isinstance(value, float | np.floating):
            exact = round(float(value) * 1e6)
        else:
            text = f"{name} must be a datetime or seconds, not {value!r}"
            raise InvalidArgument(text, field=name, index=index)
    except (OverflowError, ValueError) as error:
        if isinstance(error, InvalidArgument):
            raise
        exact = _TIME_LIMIT
    if not -_TIME_LIMIT < exact < _TIME_LIMIT:
        raise InvalidArgument(f"{name} is {value!r}; out of range", field=name, index=index)
    return exact


def condition(where: Where | None) -> dict[str, Any] | None:
    """Return a condition whose times are microseconds; the engine reads the rest."""
    return None if where is None else _condition(where, _CONDITION_DEPTH, itertools.count(1), itertools.count(1))


def _bad(text: str) -> InvalidArgument:
    return InvalidArgument(f"where: {text}", field="where", index=None)


def _condition(where: Any, depth: int, seen: Iterator[int], held: Iterator[int]) -> dict[str, Any]:
    if not isinstance(where, Mapping):
        raise InvalidArgument(f"where must be a mapping, not {type(where).__name__}", field="where", index=None)
    if not depth:
        raise _bad("nested too deeply")
    if next(seen) > _CONDITIONS_MAX:  # here too: one dict used twice at each depth would be copied without end
        raise _bad(f"more than {_CONDITIONS_MAX} conditions")
    out: dict[str, Any] = {}
    for name, test in where.items():
        if not isinstance(name, str):
            raise _bad(f"keys must be strings, not {name!r}")
        if name in ("$and", "$or"):
            if not isinstance(test, list | tuple):
                raise _bad(f"{name} needs a list of conditions")
            out[name] = [_condition(part, depth - 1, seen, held) for part in test]
        elif name == "$not":
            out[name] = _condition(test, depth - 1, seen, held)
        elif name in ("observed_at", "committed_at"):
            out[name] = _times(test) if isinstance(test, Mapping) else _when(test)
        else:
            out[name] = _operand(test, depth, held)
    return out


def _operand(value: Any, depth: int, held: Iterator[int]) -> Any:
    """Return what NumPy holds as Python does: an id of hits, an array of them."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if not isinstance(value, _HOLDS):
        return value
    if not depth:
        raise _bad("nested too deeply")
    if next(held) > _HELD_MAX:
        raise _bad(f"more than {_HELD_MAX} lists and objects")
    if not isinstance(value, Mapping):
        return [_operand(one, depth - 1, held) if isinstance(one, (*_HOLDS, np.generic)) else one for one in value]
    for name in value:
        if not isinstance(name, str):
            raise _bad(f"keys must be strings, not {name!r}")
    return {name: _operand(one, depth - 1, held) for name, one in value.items()}


def says_nothing(checked: dict[str, Any]) -> bool:
    """Whether a condition, or a part of it, is empty: that matches everything."""
    parts = [part for name in ("$and", "$or") if isinstance(checked.get(name), list) for part in checked[name] or [{}]]
    if "$not" in checked:
        parts.append(checked["$not"])
    return not checked or any(says_nothing(part) for part in parts)


def _times(test: Mapping[str, Any]) -> dict[str, Any]:
    listed = ("$in", "$nin")
    return {
        operator: [_when(item) for item in value]
        if operator in listed and isinstance(value, list | tuple)
        else value
        if operator == "$exists"
        else _when(value)
        for operator, value in test.items()
    }


def _when(value: Any) -> int:
    if value is None:
        text = 'where: None is no time; {"$exists": False} finds memories without one'
        raise InvalidArgument(text, field="where", index=None)
    return micros(value, None, "where")


def mapping(value: Any, index: int) -> dict[str, Any] | None:
    """Return metadata as a dict; the engine looks inside."""
    if value is None or type(value) is dict:
        return value
    if not isinstance(value, Mapping):
        text = f"metadata must be a mapping, not {type(value).__name__}"
        raise InvalidArgument(text, field="metadata", index=index)
    return dict(value)


def key_text(key: Any, index: int | None = None) -> str:
    """Return a key; the engine knows how long it may be."""
    if not isinstance(key, str) or not key:
        raise InvalidArgument(f"key is {key!r}; it must be a str, not empty", field="key", index=index)
    return plain("key", key, index)


def one_of(**given: Any) -> None:
    """Complain unless exactly one of the arguments was given."""
    if sum(value is not None for value in given.values()) != 1:
        names = ", ".join(given)
        raise InvalidArgument(f"give exactly one of {names}", field=next(iter(given)), index=None)


def moment(as_of: AsOf) -> tuple[str, int] | None:
    """Return a moment as the engine takes it."""
    if as_of is None:
        return None
    if isinstance(as_of, datetime):
        return "time", micros(as_of, None, "as_of")
    return "generation", whole("as_of", as_of, 0, 2**63 - 1)


def flag(name: str, value: Any) -> bool:
    """Return a bool."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidArgument(f"{name} is {value!r}; it must be True or False", field=name, index=None)
    return bool(value)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Return an int within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise InvalidArgument(f"{name} is {value!r}; it must be an int from {low} to {high}", field=name, index=None)
    return int(value)


def one_row(
    text: str | None,
    vector: Vectors | None,
    confidence: float,
    metadata: Metadata | None,
    observed_at: Time,
    key: str | None,
) -> Arguments:
    """Return one observation as columns."""
    return (
        None if vector is None else matrix("vector", vector, 1).reshape(1, -1),
        None if text is None else [text],
        None if metadata is None else [mapping(metadata, 0)],
        None if observed_at is None else np.array([micros(observed_at, 0)], dtype=np.int64),
        None if type(confidence) is float and confidence == 1.0 else likelihood(confidence, 0).reshape(1),
        None if key is None else [key_text(key)],
    )


class Columns:
    """A batch's columns, all of one length; the engine checks the items.

    Attributes
    ----------
    refused : list of (int, str)
        Items that have no form in a column, with the reason. Empty for an atomic batch.
    """

    def __init__(self, atomic: bool) -> None:
        self.count = 0
        self.vectors: NDArray[np.float32] | None = None
        self.texts: list[str | None] | None = None
        self.metadata: list[dict[str, Any] | None] | None = None
        self.observed_at: NDArray[np.int64] | None = None
        self.confidence: NDArray[np.float32] | None = None
        self.keys: list[str | None] | None = None
        self.refused: list[tuple[int, str]] = []
        self._atomic = atomic
        self._each: list[int] = []  # sizes

    @classmethod
    def of(
        cls,
        texts: Iterable[str | None] | None,
        vectors: Vectors | None,
        metadata: Iterable[Metadata | None] | None,
        confidence: float | Iterable[float] | None,
        observed_at: Time | Iterable[Time],
        keys: Iterable[str | None] | None,
        atomic: bool,
    ) -> Columns:
        """Convert; the length is that of the vectors or the texts."""
        self = cls(atomic)
        self.vectors = None if vectors is None else matrix("vectors", vectors, 2)
        self.texts = None if texts is None else list(each("texts", texts))
        self.count = len(self.vectors) if self.vectors is not None else len(self.texts or ())
        if metadata is not None:
            self.metadata = [self._metadata(item, i) for i, item in enumerate(each("metadata", metadata))]
        if isinstance(confidence, Iterable) and getattr(confidence, "ndim", None) != 0:
            self.confidence = self._confidences(list(confidence))
        elif confidence is not None:
            self.confidence = np.full(self.count, likelihood(confidence))
        if isinstance(observed_at, Iterable):
            self.observed_at = np.array([self._time(t, i) for i, t in enumerate(observed_at)], dtype=np.int64)
        elif observed_at is not None:
            self.observed_at = np.full(self.count, micros(observed_at), dtype=np.int64)
        if keys is not None:
            self.keys = [self._key(key, i) for i, key in enumerate(each("keys", keys))]
            self._refuse_repeated(self.keys)
        columns = (self.vectors, self.texts, self.metadata, self.observed_at, self.confidence, self.keys)
        if len({len(column) for column in columns if column is not None}) > 1:
            raise InvalidArgument("the columns of a batch differ in length", field="batch", index=None)
        return self

    def _refuse(self, error: InvalidArgument, index: int) -> None:
        if self._atomic:
            raise error
        self.refused.append((index, str(error)))

    def _metadata(self, item: Metadata | None, index: int) -> dict[str, Any] | None:
        try:
            return mapping(item, index)
        except InvalidArgument as error:
            self._refuse(error, index)
            return None

    def _confidences(self, values: list[Any]) -> NDArray[np.float32]:
        try:
            column = floats("confidence", values)
            if column.ndim == 1:
                return column
        except InvalidArgument:
            pass  # one of them is to blame
        return np.array([self._confidence(value, i) for i, value in enumerate(values)], dtype=np.float32)

    def _confidence(self, value: Any, index: int) -> float:
        try:
            return float(likelihood(value, index))
        except InvalidArgument as error:
            self._refuse(error, index)
            return np.nan

    def _time(self, item: Time, index: int) -> int:
        try:
            return micros(item, index)
        except InvalidArgument as error:
            self._refuse(error, index)
            return _TIME_ABSENT

    def _key(self, key: str | None, index: int) -> str | None:
        try:
            return None if key is None else key_text(key, index)
        except InvalidArgument as error:
            self._refuse(error, index)
            return None

    def _refuse_repeated(self, keys: list[str | None]) -> None:
        # The engine sees only what an atomic piece holds; of a batch that is not atomic the later one is refused here.
        if self._atomic:
            return
        seen: set[str] = set()
        for i, key in enumerate(keys):
            if key is not None and key in seen:
                self.refused.append((i, f"the key {key!r} comes twice in one batch"))
            elif key is not None:
                seen.add(key)

    def refuse_alone(self, check: Callable[[Arguments], object]) -> None:
        """Refuse each item that `check` refuses by itself."""
        out = {index for index, _ in self.refused}
        for i in range(self.count):
            try:
                if i not in out:
                    check(self.arguments(np.array([i])))
            except InvalidArgument as error:
                self.refused.append((i, str(error)))

    def empty_refused(self) -> None:
        """Leave nothing of the refused items but their places, which no engine stores anything at."""
        if not self.refused:
            return
        self.confidence = np.ones(self.count, np.float32) if self.confidence is None else self.confidence
        for i, _ in self.refused:
            self.confidence[i] = np.nan
            for column in (self.texts, self.metadata, self.keys):
                if column is not None:
                    column[i] = None

    def arguments(self, rows: NDArray[np.intp] | None = None) -> Arguments:
        """Return the columns, or those of `rows`."""
        if rows is None or len(rows) == self.count:
            return self.vectors, self.texts, self.metadata, self.observed_at, self.confidence, self.keys
        return (
            None if self.vectors is None else self.vectors[rows],
            None if self.texts is None else [self.texts[i] for i in rows],
            None if self.metadata is None else [self.metadata[i] for i in rows],
            None if self.observed_at is None else self.observed_at[rows],
            None if self.confidence is None else self.confidence[rows],
            None if self.keys is None else [self.keys[i] for i in rows],
        )

    def pieces(self, dim: int, items_max: int, bytes_max: int) -> Iterator[NDArray[np.intp]]:
        """Cut into runs that should fit the limits of an atomic batch; refused items are left out."""
        out = {index for index, _ in self.refused}
        rows: list[int] = []
        size = 0
        for i, item in enumerate(self._sizes(dim)):
            if i in out:
                continue
            if rows and (len(rows) >= items_max or size + item > bytes_max):
                yield np.array(rows, dtype=np.intp)
                rows, size = [], 0
            rows.append(i)
            size += item
        if rows or not self.count:
            yield np.array(rows, dtype=np.intp)

    def larger(self, dim: int, bytes_max: int) -> Iterator[NDArray[np.intp]]:
        """Items that may each take more than so many bytes."""
        return (np.array([i]) for i, size in enumerate(self._sizes(dim)) if size > bytes_max)

    def _sizes(self, dim: int) -> list[int]:
        if len(self._each) != self.count:
            self._each = [self._bytes(i, dim) for i in range(self.count)]
        return self._each

    def _bytes(self, i: int, dim: int) -> int:
        text = None if self.texts is None else self.texts[i]
        item = _ITEM_OVERHEAD + (0 if self.vectors is None else dim * 4)
        item += len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0
        item += 0 if self.keys is None else len((self.keys[i] or "").encode("utf-8", "surrogatepass"))
        metadata = None if self.metadata is None else self.metadata[i]
        if metadata:
            try:
                item += 3 * len(repr(metadata))  # never less than its binary form, but for nests of empty lists
            except RecursionError:
                item += _ITEM_OVERHEAD  # the engine will refuse it
        return item
