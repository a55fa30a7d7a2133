"""A space as a dict and a brute-force scan in float64: what every answer is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ModelSpace", "Observation"]

_TIE = 1e-6


@dataclass(frozen=True)
class Observation:
    """What is observed: the arguments of `Space.observe`."""

    text: str | None = None
    vector: tuple[float, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    confidence: float = 1.0


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
        By id, in order.
    """

    def __init__(self, dim: int, metric: str = "cosine", last_id: int = 0) -> None:
        self.dim = dim
        self.metric = metric
        self.last_id = last_id
        self.rows: dict[int, Observation] = {}

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
        self.rows[self.last_id] = observation
        return self.last_id

    def skip_to(self, last_id: int) -> None:
        """Let ids go on after `last_id`, which is not below the last one."""
        if last_id < self.last_id:
            raise AssertionError(f"ids went back: {last_id} after {self.last_id}")
        self.last_id = last_id

    def keep_prefix(self, ids: Sequence[int]) -> None:
        """Forget all but the first rows, which are those of `ids`."""
        if list(self.rows)[: len(ids)] != list(ids):
            raise AssertionError(f"{list(ids)} is no prefix of {list(self.rows)}")
        self.rows = {row: self.rows[row] for row in ids}

    def at(self, generation: int) -> ModelSpace:
        """Return the space as it was at a generation."""
        seen = ModelSpace(self.dim, self.metric, generation)
        seen.rows = {row: observation for row, observation in self.rows.items() if row <= generation}
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
