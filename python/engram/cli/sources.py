"""What `ingest` reads: JSON lines (plain, gzip, standard input) and NumPy files, row by row, each with its place."""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram.cli.output import BadInput

_KEYS = {"text", "vector", "metadata", "observed_at", "confidence", "key", "id"}


@dataclass(slots=True)
class Row:
    """One observation to be, and where it stands."""

    place: tuple[str, int]
    text: str | None = None
    vector: Any = None
    metadata: dict[str, Any] | None = None
    observed_at: datetime | float | None = None
    confidence: float = 1.0
    key: str | None = None

    @property
    def where(self) -> str:
        """The place, for people."""
        return f"{self.place[0]}:{self.place[1]}"


def bad_row(place: tuple[str, int], reason: str) -> BadInput:
    """Return the error for a row."""
    return BadInput(f"{place[0]}:{place[1]}: {reason}", file=place[0], line=place[1], reason=reason)


def rows(source: str, texts: Path | None) -> tuple[Iterator[Row], int | None]:
    """Return the rows of a source, and how many there are if that is known."""
    if source.endswith(".npy"):
        vectors = load_vectors(Path(source))
        if vectors.ndim != 2:
            raise BadInput(f"{source}: the array must have shape (n, dim), not {vectors.shape}", file=source)
        return _paired(source, vectors, texts), len(vectors)
    if texts is not None:
        raise BadInput("--texts goes with a .npy file; JSON lines have their own texts")
    if source != "-" and not source.endswith((".jsonl", ".jsonl.gz")):
        raise BadInput(f"{source}: must be a .jsonl, .jsonl.gz or .npy file, or - for standard input", file=source)
    return _lines(source), None


def load_vectors(path: Path) -> NDArray[Any]:
    """Map a file of floating-point numbers into memory."""
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: {error}", file=str(path)) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise BadInput(f"{path}: must hold one array of floating-point numbers", file=str(path))
    vectors: NDArray[Any] = array
    return vectors


def _paired(source: str, vectors: NDArray[Any], texts: Path | None) -> Iterator[Row]:
    lines = None if texts is None else _lines(str(texts))
    for number, vector in enumerate(vectors):
        if lines is None:
            yield Row((source, number), vector=vector)
            continue
        row = next(lines, None)
        if row is None:
            raise BadInput(f"{texts}: has {number} rows, {source} has {len(vectors)}", file=str(texts))
        if row.vector is not None:
            raise bad_row(row.place, f"has a vector, and so has {source}")
        row.vector = vector
        yield row
    if lines is not None and next(lines, None) is not None:
        raise BadInput(f"{texts}: has more rows than {source}, which has {len(vectors)}", file=str(texts))


def _lines(source: str) -> Iterator[Row]:
    name = "standard input" if source == "-" else source
    number = 0
    with ExitStack() as stack:
        try:
            file = _opened(source, stack)
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row((name, number), line)
        except (OSError, EOFError, zlib.error) as error:
            place = f":{number + 1}" if number else ""
            raise BadInput(f"{name}{place}: {error}", file=name, line=number + 1) from None


def _opened(source: str, stack: ExitStack) -> Iterable[bytes]:
    if source == "-":
        return sys.stdin.buffer
    if source.endswith(".gz"):
        return stack.enter_context(gzip.GzipFile(source, "rb"))
    return stack.enter_context(Path(source).open("rb"))


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _row(place: tuple[str, int], line: bytes) -> Row:
    try:
        value = json.loads(line, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise bad_row(place, f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise bad_row(place, "must be a JSON object")
    if unknown := sorted(value.keys() - _KEYS):
        raise bad_row(place, f"unknown field {unknown[0]!r}; the fields are {', '.join(sorted(_KEYS))}")
    text, metadata, vector = value.get("text"), value.get("metadata"), value.get("vector")
    if not isinstance(text, str | None):
        raise bad_row(place, "text must be a string")
    if not isinstance(metadata, dict | None):
        raise bad_row(place, "metadata must be an object")
    if vector is not None:
        vector = _vector(place, vector)
    confidence = value.get("confidence", 1.0)
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        raise bad_row(place, "confidence must be a number")
    key = value.get("key")
    if key is not None and (not isinstance(key, str) or not key):
        raise bad_row(place, "key must be a string that is not empty")
    return Row(place, text, vector, metadata, _time(place, value.get("observed_at")), confidence, key)


def _vector(place: tuple[str, int], value: Any) -> NDArray[np.float64]:
    if not isinstance(value, list) or not value:
        raise bad_row(place, "vector must be a list of numbers")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise bad_row(place, "vector must be a list of numbers")
    try:
        return np.array([float(v) for v in value])
    except OverflowError:
        raise bad_row(place, "vector holds a number that is too large") from None


def _time(place: tuple[str, int], value: Any) -> datetime | float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise bad_row(place, "observed_at must be seconds since 1970 or an ISO 8601 time") from None
