"""What a condition costs, beside the recall without one."""

import numpy as np

import engram

from . import rows, sample

K = 10
FORMS = {
    "none": None,
    "equal, 1 of 2": {"half": 1},
    "equal, 1 of 20": {"twentieth": 1},
    "equal, 1 of 200": {"two_hundredth": 1},
    "path": {"of.number": {"$lt": 100}},
    "in": {"twentieth": {"$in": [1, 2, 3]}},
    "list": {"tags": "t7"},
    "text range": {"word": {"$gte": "m", "$lt": "n"}},
    "and, or, not": {"$or": [{"$and": [{"half": 1}, {"twentieth": {"$gt": 10}}]}, {"$not": {"half": 0}}]},
    "confidence": {"confidence": {"$gte": 0.9}},
    "one row": {"memory_id": 77},
}


def columns(first: int, count: int) -> dict[str, list[object]]:
    """Metadata with a value that every 2nd, 20th, 200th row has, a list, an object and a word."""
    numbers = range(first, first + count)
    metadata: list[object] = [
        {
            "half": n % 2,
            "twentieth": n % 20,
            "two_hundredth": n % 200,
            "of": {"number": n % 1_000},
            "tags": [f"t{n % 10}", f"u{n % 3}"],
            "word": sample().texts[n].split(",")[0][:20],
        }
        for n in numbers
    ]
    return {"metadata": metadata, "confidence": [(n % 11) / 10 for n in numbers]}


class Filter:
    """Recall and list under a condition, over all rows in memory."""

    params = tuple(FORMS)
    param_names = ("form",)

    def setup(self, form: str) -> None:
        real = sample()
        self.cue = real.query_vectors[0]
        self.where = FORMS[form]
        self.engine = engram.open()
        self.space = self.engine.space("notes", dim=real.vectors.shape[1])
        for first in range(0, rows(), 4_000):
            part = slice(first, min(first + 4_000, rows()))
            # The columns come as one dict: mypy sees one type for all.
            self.space.observe_batch(vectors=real.vectors[part], **columns(first, part.stop - first))  # type: ignore[arg-type]

    def teardown(self, form: str) -> None:
        self.engine.close()

    def time_recall(self, form: str) -> None:
        self.space.recall(vector=self.cue, k=K, where=self.where)

    def time_list_to_the_end(self, form: str) -> None:
        for _ in self.space.list(where={"$and": [self.where or {"half": 1}, {"memory_id": 0}]}):
            pass

    def track_recall_at_10(self, form: str) -> float:
        """Recall among the rows that match, against NumPy."""
        meant = np.array([memory.memory_id for memory in self.space.list(where=self.where)]) - 1
        vectors = sample().vectors[meant].astype(np.float64)
        scores = vectors @ self.cue.astype(np.float64) / np.linalg.norm(vectors, axis=1)
        best = np.sort(scores)[-K:]
        found = [hit.memory_id - 1 for hit in self.space.recall(vector=self.cue, k=K, where=self.where)]
        near = {int(row): score for row, score in zip(meant, scores, strict=True)}
        return sum(near[row] >= best[0] - 1e-6 for row in found) / len(best)
