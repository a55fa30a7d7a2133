"""Benchmarks by area. time_: speed; track_: a figure that must not move the wrong way; timeraw_: a fresh process.

The rows are real: the full set where `load_full` finds it and ENGRAM_BENCH_ROWS allows it, else the bundled sample.
"""

import os
import shutil
import tempfile
from functools import cache

import engram
from engram._sample import Sample, load_full, load_sample

BATCH_ROWS = 256
ROWS = int(os.environ.get("ENGRAM_BENCH_ROWS") or 20_000)


@cache
def sample() -> Sample:
    """Load the rows once a process: at most ROWS of the full set, or of the sample."""
    # asv runs elsewhere: the full set is looked for by ENGRAM_BENCH_DATA only.
    full = load_full() if ROWS > 4_000 else None
    return load_sample() if full is None else full


def rows() -> int:
    """Count the rows that a benchmark uses."""
    return min(ROWS, len(sample().vectors))


def fill(space: engram.Space, texts: bool = True) -> None:
    """Stream the rows in, in batches."""
    real = sample()
    for first in range(0, rows(), BATCH_ROWS):
        part = slice(first, min(first + BATCH_ROWS, rows()))
        space.observe_batch(texts=real.texts[part] if texts else None, vectors=real.vectors[part])


class OnDisk:
    """A directory with an engine and a space; the engine is open between setup and teardown."""

    durability = "sync"
    limits: dict[str, int] | None = None

    def open(self) -> None:
        self.engine = engram.open(self.directory, durability=self.durability, limits=self.limits)
        self.space = self.engine.space("notes", dim=sample().vectors.shape[1])

    def setup(self, *_: object) -> None:
        self.directory = tempfile.mkdtemp()
        self.open()

    def teardown(self, *_: object) -> None:
        self.engine.close()
        shutil.rmtree(self.directory)
