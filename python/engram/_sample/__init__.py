"""Real texts and their embeddings, small enough to ship: what the demo, the smoke test and many tests run on.

`load_sample` reads the 4,000 rows beside this file; `load_full` reads the 100,000 of the full set where a machine has
it. Both give the same shape, so a measurement runs on either. NOTICE.md has the licences.
"""

import gzip
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["Sample", "load_full", "load_sample"]

_HERE = Path(__file__).parent
_FULL_VECTORS = "wordnet_minilm_384_f16.npy"
_FULL_TEXTS = "wordnet_glosses.jsonl.gz"
_FULL_TRUTH = "wordnet_groundtruth_100.npy"
_FULL_BASE_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts with their embeddings, queries, and the exact answers.

    Attributes
    ----------
    ids, texts, vectors
        The base set: the name, the text and the embedding (float32, of about unit length) of each row.
    query_ids, query_texts, query_vectors
        The queries, which are not in the base set.
    truth
        For each query the rows of its exact nearest neighbours by cosine, nearest first (int32).
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    query_ids: tuple[str, ...]
    query_texts: tuple[str, ...]
    query_vectors: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int32]


def load_sample() -> Sample:
    """Load the sample that ships with engram: 4,000 rows of 384 dimensions, 20 queries, 10 neighbours each."""
    with gzip.open(_HERE / "texts.jsonl.gz", "rt", encoding="utf-8") as file:
        ids, texts = _columns(file)
    query_ids, query_texts = _columns((_HERE / "queries.jsonl").read_text(encoding="utf-8").splitlines())
    return Sample(
        ids=ids,
        texts=texts,
        vectors=_array(_HERE / "vectors.npy").astype(np.float32),
        query_ids=query_ids,
        query_texts=query_texts,
        query_vectors=_array(_HERE / "queries.npy").astype(np.float32),
        truth=_array(_HERE / "truth.npy").astype(np.int32),
    )


def load_full(path: str | os.PathLike[str] | None = None) -> Sample | None:
    """Load the full set: 100,000 rows of 384 dimensions, 1,000 queries, 100 neighbours each.

    Parameters
    ----------
    path
        The folder that holds it. By default the one named by ``ENGRAM_BENCH_DATA``, else ``../shared/data``.

    Returns
    -------
    Sample or None
        None if no folder was named and the default one is not there.

    Raises
    ------
    FileNotFoundError
        If a folder was named and lacks a file.
    """
    named = path if path is not None else os.environ.get("ENGRAM_BENCH_DATA") or None
    folder = Path(named) if named is not None else Path("../shared/data")
    if named is None and not all((folder / name).is_file() for name in (_FULL_VECTORS, _FULL_TEXTS, _FULL_TRUTH)):
        return None
    vectors = _array(folder / _FULL_VECTORS).astype(np.float32)
    with gzip.open(folder / _FULL_TEXTS, "rt", encoding="utf-8") as file:
        ids, texts = _columns(file)
    base = slice(0, _FULL_BASE_ROWS)
    queries = slice(_FULL_BASE_ROWS, None)
    return Sample(
        ids=ids[base],
        texts=texts[base],
        vectors=vectors[base],
        query_ids=ids[queries],
        query_texts=texts[queries],
        query_vectors=vectors[queries],
        truth=_array(folder / _FULL_TRUTH).astype(np.int32),
    )


def _array(path: Path) -> npt.NDArray[np.generic]:
    array: npt.NDArray[np.generic] = np.load(path, allow_pickle=False)
    return array


def _columns(lines: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    rows = [json.loads(line) for line in lines]
    return tuple(str(row["id"]) for row in rows), tuple(str(row["text"]) for row in rows)
