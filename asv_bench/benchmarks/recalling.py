"""How fast, and how well, the nearest rows come out."""

import numpy as np

import engram

from . import rows, sample

K = 10
CUES = 20
TIE = 1e-6


class Recall:
    """Exact recall over all rows, in memory."""

    def setup(self) -> None:
        real = sample()
        self.cues = real.query_vectors[:CUES]
        self.engine = engram.open()
        self.space = self.engine.space("notes", dim=real.vectors.shape[1])
        for first in range(0, rows(), 4_000):
            part = slice(first, min(first + 4_000, rows()))
            self.space.observe_batch(texts=real.texts[part], vectors=real.vectors[part])

    def teardown(self) -> None:
        self.engine.close()

    def time_recall(self) -> None:
        self.space.recall(vector=self.cues[0], k=K)

    def time_recall_batch_of_20(self) -> None:
        self.space.recall_batch(self.cues, k=K)

    def track_recall_at_10(self) -> float:
        """Recall against NumPy: a row as near as the tenth counts."""
        vectors = sample().vectors[: rows()].astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids, _ = self.space.recall_batch(self.cues, k=K)
        hits = 0
        for cue, found in zip(self.cues.astype(np.float64), ids.astype(np.int64), strict=True):
            truth = vectors @ (cue / np.linalg.norm(cue))
            hits += int(np.count_nonzero(truth[np.unique(found) - 1] >= np.partition(truth, -K)[-K] - TIE))
        return hits / ids.size
