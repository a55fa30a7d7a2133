"""A space as a dict and a brute-force scan in float64: what every answer is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ModelSession", "ModelSpace", "Observation"]

_TIE = 1e-6


@dataclass(frozen=True)
class Observation:
    """What is observed: the arguments of `Space.observe`."""

    text: str | None = None
    vector: tuple[float, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    confidence: float = 1.0
    key: str | None = None


class ModelSpace:
    """The slow obvious space.

    Parameters
    ----------
    dim : int
        Components of each vector.
    metric : {"cosine", "l2", "ip"}
        How scores are computed.
    last_id : int
        Ids start after it.

    Attributes
    ----------
    rows : dict of int to Observation
        The living, by id, in order.
    past : dict of int to (Observation, int)
        What was superseded or forgotten, and at which generation.
    """

    def __init__(self, dim: int, metric: str = "cosine", last_id: int = 0) -> None:
        self.dim = dim
        self.metric = metric
        self.last_id = last_id
        self.rows: dict[int, Observation] = {}
        self.past: dict[int, tuple[Observation, int]] = {}
        self._inside: set[int] = set()

    def accepts(self, observation: Observation) -> bool:
        """Whether the observation is valid here."""
        vector = observation.vector
        if (observation.text is None and vector is None) or not 0 <= observation.confidence <= 1:
            return False
        if vector is None:
            return True
        given = np.asarray(vector, dtype=np.float32)
        whole = given.shape == (self.dim,) and bool(np.isfinite(given).all())
        return whole and (self.metric != "cosine" or bool(given.any()))

    def observe(self, observation: Observation) -> int:
        """Store one; returns its id."""
        self.last_id += 1
        if observation.key is not None:
            self._end([row for row, one in self.rows.items() if one.key == observation.key], self.last_id)
        self.rows[self.last_id] = observation
        return self.last_id

    def observe_batch(self, batch: Sequence[Observation]) -> list[int]:
        """Store an atomic batch; returns the ids."""
        ids = [self.observe(observation) for observation in batch]
        self._inside.update(ids[:-1])
        return ids

    def forget(self, ids: Iterable[int], *, purge: bool = False) -> int:
        """Forget those of `ids` that live; returns how many. Takes a generation if there were any.

        With `purge` the past does not know them either, nor those that had died before.
        """
        ids = set(ids)
        found = [row for row in ids if row in self.rows]
        erased = [row for row in ids if row in self.past] if purge else []
        if found or erased:
            self.last_id += 1
            self._end(found, self.last_id)
        for row in found + erased if purge else ():
            del self.past[row]
        return len(found)

    def _end(self, ids: Sequence[int], generation: int) -> None:
        for row in ids:
            self.past[row] = (self.rows.pop(row), generation)

    def named(self, key: str) -> int | None:
        """Return the id of the memory that has the key."""
        return next((row for row, one in self.rows.items() if one.key == key), None)

    def history(self, key: str) -> list[tuple[int, int | None]]:
        """Return id and end of each version of a key, oldest first."""
        ended: list[tuple[int, int | None]] = [(row, end) for row, (one, end) in self.past.items() if one.key == key]
        living: list[tuple[int, int | None]] = [(row, None) for row, one in self.rows.items() if one.key == key]
        return sorted(ended + living)

    def skip_to(self, last_id: int) -> None:
        """Let ids go on after `last_id`, which is not below the last one."""
        if last_id < self.last_id:
            raise AssertionError(f"ids went back: {last_id} after {self.last_id}")
        self.last_id = last_id

    def rewind(self, ids: Sequence[int]) -> None:
        """Go back to the last moment when exactly `ids` lived."""
        changes = {0, self.last_id, *self.rows, *self.past, *(end for _, end in self.past.values())}
        # And just before each: what was purged has left no other trace of its own changes.
        changes |= {generation - 1 for generation in changes if generation}
        for generation in sorted(changes, reverse=True):
            then = self.at(generation)
            if list(then.rows) == list(ids):
                self.rows, self.past = then.rows, then.past
                return
        raise AssertionError(f"{list(ids)} never lived together")

    def at(self, generation: int) -> ModelSpace:
        """Return the space as it was at a generation; inside a batch, before the batch."""
        while generation in self._inside:
            generation -= 1
        seen = ModelSpace(self.dim, self.metric, generation)
        seen._inside = self._inside
        known = {**self.rows, **{row: one for row, (one, _) in self.past.items()}}
        for row in sorted(known):
            end = self.past[row][1] if row in self.past else None
            if row <= generation and end is not None and end <= generation:
                seen.past[row] = (known[row], end)
            elif row <= generation:
                seen.rows[row] = known[row]
        return seen

    def scores(self, cue: Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return ids of the rows with a vector, their scores, and the widest tie of each."""
        ids = [row for row, observation in self.rows.items() if observation.vector is not None]
        rows = np.array([self.rows[row].vector for row in ids], dtype=np.float32).astype(np.float64)
        query = np.asarray(cue, dtype=np.float32).astype(np.float64)
        if not ids:
            return np.empty(0, np.int64), np.empty(0), np.empty(0)
        sizes = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
        if self.metric == "cosine":
            found, ties = rows @ query / sizes, np.full(len(ids), _TIE)
        elif self.metric == "ip":
            found, ties = rows @ query, _TIE * sizes
        else:
            found = -((rows - query) ** 2).sum(axis=1)
            ties = _TIE * np.maximum(sizes, -found)
        return np.array(ids), found, ties + 1e-30

    def check_recall(self, cue: Sequence[float], k: int, ids: Sequence[int]) -> None:
        """Complain unless `ids` are the k nearest, in order, but for ties of 1e-6·|a||b|."""
        known, scores, ties = self.scores(cue)
        if len(ids) != min(k, len(known)) or len(set(ids)) != len(ids):
            raise AssertionError(f"{len(ids)} answers, {min(k, len(known))} expected: {list(ids)}")
        order = np.lexsort((known, -scores))[: len(ids)]
        place = {int(row): at for at, row in enumerate(known)}
        for found, wanted in zip(ids, order, strict=True):
            if found not in place:
                raise AssertionError(f"{found} is not there")
            at = place[found]
            if abs(scores[at] - scores[wanted]) > ties[at] + ties[wanted]:
                raise AssertionError(f"{found} ({scores[at]}) where {known[wanted]} ({scores[wanted]}) belongs")


class ModelSession:
    """A stream: what it says at each sequence, and what it was told.

    Parameters
    ----------
    stream : int
        Tells its texts from those of other streams.

    Attributes
    ----------
    ids : dict of int to int
        The id that each acknowledged sequence was told to have.
    """

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.ids: dict[int, int] = {}

    @property
    def acknowledged(self) -> int:
        """The last sequence that was acknowledged."""
        return max(self.ids, default=0)

    def text(self, sequence: int) -> str:
        """Return what the stream says at a sequence."""
        return f"{self.stream}: {sequence} " + "." * (sequence % 60)

    def acknowledge(self, first: int, ids: Sequence[int]) -> None:
        """Take an acknowledgement; complain if a sequence was told another id before. 0: its id is not kept."""
        for sequence, row in enumerate(ids, first):
            if row and self.ids.setdefault(sequence, row) != row:
                raise AssertionError(f"sequence {sequence} has another id: {row}, not {self.ids[sequence]}")

    def check(self, rows: Sequence[int]) -> None:
        """Complain unless `rows`, the ids of the stream's memories in order, are those that were acknowledged."""
        if self.acknowledged > len(rows):
            raise AssertionError(f"{self.acknowledged} were acknowledged, {len(rows)} are there")
        for sequence, row in self.ids.items():
            if rows[sequence - 1] != row:
                raise AssertionError(f"sequence {sequence} has another id: {rows[sequence - 1]}, not {row}")
