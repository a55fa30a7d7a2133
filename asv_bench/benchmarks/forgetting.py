"""What forgetting costs, and what the forgotten cost a recall."""

import numpy as np

import engram

from . import rows, sample

K = 10
PARTS = {"nothing": 0, "1 of 100": 100, "1 of 2": 2}


def filled(engine: engram.Engine) -> engram.Space:
    real = sample()
    space = engine.space("notes", dim=real.vectors.shape[1])
    for first in range(0, rows(), 4_000):
        part = np.arange(first, min(first + 4_000, rows()))
        space.observe_batch(vectors=real.vectors[part], metadata=[{"n": int(n)} for n in part])
    return space


class Forget:
    """One call, in memory."""

    number = 1
    rounds = 5

    def setup(self) -> None:
        self.engine = engram.open()
        self.space = filled(self.engine)
        self.ids = list(range(1, rows() + 1, 2))

    def teardown(self) -> None:
        self.engine.close()

    def time_one_id(self) -> None:
        self.space.forget(rows() // 2)

    def time_half_by_ids(self) -> None:
        self.space.forget(self.ids)

    def time_half_by_condition(self) -> None:
        self.space.forget(where={"n": {"$gte": rows() // 2}})


class RecallAfter:
    """Recall over rows of which some are forgotten."""

    params = tuple(PARTS)
    param_names = ("forgotten",)

    def setup(self, forgotten: str) -> None:
        self.engine = engram.open()
        self.space = filled(self.engine)
        self.cue = sample().query_vectors[0]
        if step := PARTS[forgotten]:
            self.space.forget(range(1, rows() + 1, step))

    def teardown(self, forgotten: str) -> None:
        self.engine.close()

    def time_recall(self, forgotten: str) -> None:
        self.space.recall(vector=self.cue, k=K)


class Supersede:
    """A batch of 256 in which every observation has a key: new, or another memory's."""

    params = ("no keys", "new keys", "keys in use")
    param_names = ("keys",)
    number = 1
    rounds = 20

    def setup(self, keys: str) -> None:
        self.engine = engram.open()
        self.space = self.engine.space("notes", dim=2)
        used = [f"key {n}" for n in range(256)]
        self.keys = {"no keys": None, "new keys": [f"new {n}" for n in range(256)], "keys in use": used}[keys]
        self.space.observe_batch(texts=["before"] * 256, keys=used)

    def teardown(self, keys: str) -> None:
        self.engine.close()

    def time_observe_batch(self, keys: str) -> None:
        self.space.observe_batch(texts=["after"] * 256, keys=self.keys)
