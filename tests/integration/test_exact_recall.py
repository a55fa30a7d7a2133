"""Exact recall equals a brute-force scan in float64 (G6), on real embeddings and at the ends of the dimensions."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import engram
from engram._sample import load_sample

Metric = Literal["cosine", "l2", "ip"]
METRICS: tuple[Metric, ...] = ("cosine", "l2", "ip")
K = 10


def brute_force(metric: Metric, rows: np.ndarray, cues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and |a||b|, both (cues, rows)."""
    rows, cues = rows.astype(np.float64), cues.astype(np.float64)
    sizes = np.linalg.norm(cues, axis=1)[:, None] * np.linalg.norm(rows, axis=1)[None, :]
    products = cues @ rows.T
    if metric == "ip":
        return products, sizes
    if metric == "cosine":
        return products / sizes, np.ones_like(sizes)
    distances = np.stack([((rows - cue) ** 2).sum(axis=1) for cue in cues])
    return -distances, sizes


def assert_exact(metric: Metric, rows: np.ndarray, cues: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> None:
    """G6: ids are equal outside ties of 1e-6·|a||b|; the engine's float32 scores are near the float64 ones."""
    exact, sizes = brute_force(metric, rows, cues)
    k = min(K, len(rows))
    for cue in range(len(cues)):
        found = ids[cue][:k].astype(np.int64) - 1
        assert len(set(found.tolist())) == k
        tie = 1e-6 * sizes[cue].max()
        order = np.argsort(-exact[cue], kind="stable")[:k]
        differ = found != order
        assert (np.abs(exact[cue][found] - exact[cue][order])[differ] <= tie).all(), (metric, cue)
        # -d² of float32 inputs is summed in float32: relative to its own size.
        bound = 2e-6 * np.maximum(sizes[cue][found], np.abs(exact[cue][found])) + 1e-12
        assert (np.abs(scores[cue][:k] - exact[cue][found]) <= bound).all(), (metric, cue)
        assert (np.diff(scores[cue][:k]) <= 0).all()
        assert (ids[cue][k:] == 0).all()
        assert np.isneginf(scores[cue][k:]).all()


@pytest.mark.parametrize("metric", METRICS)
def test_real_sample(tmp_path: Path, metric: Metric) -> None:
    """G6, from the tail and from sealed files."""
    sample = load_sample()
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("notes", dim=384, metric=metric)
        for begin in range(0, 4_000, 1_000):
            space.observe_batch(vectors=sample.vectors[begin : begin + 1_000])
        ids, scores = space.recall_batch(sample.query_vectors, k=K, exact=True)
        assert_exact(metric, sample.vectors, sample.query_vectors, ids, scores)
        if metric == "cosine":
            np.testing.assert_array_equal(ids.astype(np.int64) - 1, sample.truth)
        for cue, vector in enumerate(sample.query_vectors):
            hits = space.recall(vector=vector, k=K, exact=True)
            assert [hit.memory_id for hit in hits] == ids[cue].tolist()
            assert [np.float32(hit.score) for hit in hits] == scores[cue].tolist()
        engine.checkpoint()
        sealed_ids, sealed_scores = space.recall_batch(sample.query_vectors, k=K, exact=True)
        np.testing.assert_array_equal(sealed_ids, ids)
        np.testing.assert_array_equal(sealed_scores, scores)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("dim", "count"), [(1, 50), (3, 400), (7, 33), (8_192, 40)])
def test_dimensions(metric: Metric, dim: int, count: int) -> None:
    rng = np.random.default_rng(dim)
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    cues = rng.normal(size=(6, dim)).astype(np.float32)
    with engram.open() as engine:
        space = engine.space("s", dim=dim, metric=metric)
        space.observe_batch(vectors=rows)
        ids, scores = space.recall_batch(cues, k=K, exact=True)
        assert_exact(metric, rows, cues, ids, scores)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_come_by_id_and_missing_ones_are_marked(metric: Metric) -> None:
    with engram.open() as engine:
        space = engine.space("s", dim=4, metric=metric)
        space.observe_batch(vectors=np.tile([1.0, 2.0, 3.0, 4.0], (5, 1)))
        space.observe("no vector")
        ids, scores = space.recall_batch([[1, 2, 3, 4]], k=8)
        assert ids.tolist() == [[1, 2, 3, 4, 5, 0, 0, 0]]
        assert np.isneginf(scores[0, 5:]).all()
        assert len(space.recall(vector=[1, 2, 3, 4], k=8)) == 5
        none, _ = engine.space("empty", dim=4, metric=metric).recall_batch([[1, 2, 3, 4]], k=2)
        assert none.tolist() == [[0, 0]]
