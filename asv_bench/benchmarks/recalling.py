"""How fast, and how well, the nearest rows come out: every row scored, rows looked through by codes, and the graph."""

import time

import numpy as np

import engram

from . import fill, rows, sample

K = 10
CUES = 20
TIE = 1e-6
# Rows from which on a space has a graph.
WAYS = {"exact": None, "codes": 1 << 30, "graph": 0}


class Recall:
    """In memory, after everything is absorbed."""

    params = tuple(WAYS)
    param_names = ("way",)

    def setup(self, way: str) -> None:
        real = sample()
        self.cues = real.query_vectors[:CUES]
        self.exact = WAYS[way] is None
        self.engine = engram.open(limits={"index_graph_rows_min": WAYS[way] or 0})
        self.space = self.engine.space("notes", dim=real.vectors.shape[1], durability="memory")
        fill(self.space)
        self.space.wait_absorbed()

    def teardown(self, way: str) -> None:
        self.engine.close()

    def time_recall(self, way: str) -> None:
        self.space.recall(vector=self.cues[0], k=K, exact=self.exact)

    def time_recall_batch_of_20(self, way: str) -> None:
        self.space.recall_batch(self.cues, k=K, exact=self.exact)

    def track_recall_at_10(self, way: str) -> float:
        """Recall against NumPy: a row as near as the tenth counts."""
        vectors = sample().vectors[: rows()].astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids, _ = self.space.recall_batch(self.cues, k=K, exact=self.exact)
        hits = 0
        for cue, found in zip(self.cues.astype(np.float64), ids.astype(np.int64), strict=True):
            truth = vectors @ (cue / np.linalg.norm(cue))
            hits += int(np.count_nonzero(truth[np.unique(found) - 1] >= np.partition(truth, -K)[-K] - TIE))
        return hits / ids.size


class Absorb:
    """How fast the graph takes rows in, from the first append to the last link."""

    def track_absorbed_rows_a_second(self) -> float:
        with engram.open(limits={"index_graph_rows_min": 0}) as engine:
            space = engine.space("notes", dim=sample().vectors.shape[1], durability="memory")
            begun = time.perf_counter()
            fill(space, texts=False)
            space.wait_absorbed()
            return rows() / (time.perf_counter() - begun)
