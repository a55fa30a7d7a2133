"""The bundled sample: whole, of the right shapes, and its truth is true."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from engram._sample import Sample, load_full, load_sample


@pytest.fixture(scope="module")
def sample() -> Sample:
    return load_sample()


def unit(rows: np.ndarray) -> np.ndarray:
    exact = rows.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def test_shapes_and_types(sample: Sample) -> None:
    assert sample.vectors.shape == (4_000, 384)
    assert sample.query_vectors.shape == (20, 384)
    assert sample.truth.shape == (20, 10)
    assert sample.vectors.dtype == sample.query_vectors.dtype == np.float32
    assert sample.truth.dtype == np.int32
    assert len(sample.texts) == len(sample.ids) == len(set(sample.ids)) == 4_000
    assert len(sample.query_texts) == len(set(sample.query_ids)) == 20
    assert not set(sample.query_ids) & set(sample.ids)


def test_rows_are_ready_to_observe(sample: Sample) -> None:
    for rows in (sample.vectors, sample.query_vectors):
        assert rows.flags.c_contiguous
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=2e-3)
    assert all(sample.texts)
    assert all(sample.query_texts)


def test_truth_is_the_exact_answer(sample: Sample) -> None:
    scores = unit(sample.query_vectors) @ unit(sample.vectors).T
    np.testing.assert_array_equal(np.argsort(-scores, axis=1, kind="stable")[:, :10], sample.truth)


def test_text_and_vector_of_a_row_belong_together(sample: Sample) -> None:
    beekeeper = next(row for row, text in enumerate(sample.query_texts) if text.startswith("beekeeper"))
    found = [sample.texts[row] for row in sample.truth[beekeeper]]
    assert any("honeybees" in text for text in found), found


def test_notice_ships_with_the_data() -> None:
    import engram._sample as package

    notice = (Path(package.__file__).parent / "NOTICE.md").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice
    assert "all-MiniLM-L6-v2" in notice


def test_full_set_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("ENGRAM_BENCH_DATA", raising=False)
    assert load_full() is None


def test_full_set_named_but_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_full(tmp_path)
    monkeypatch.setenv("ENGRAM_BENCH_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        load_full()


def test_full_set_splits_base_and_queries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float16).reshape(6, 2)
    np.save(tmp_path / "wordnet_minilm_384_f16.npy", vectors)
    np.save(tmp_path / "wordnet_groundtruth_100.npy", np.zeros((2, 3), np.int32))
    with gzip.open(tmp_path / "wordnet_glosses.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": f"noun:{row}", "text": f"text {row}"}) + "\n" for row in range(6))
    monkeypatch.setattr("engram._sample._FULL_BASE_ROWS", 4)
    monkeypatch.setenv("ENGRAM_BENCH_DATA", str(tmp_path))

    full = load_full()

    assert full is not None
    assert full.ids == ("noun:0", "noun:1", "noun:2", "noun:3")
    assert full.query_texts == ("text 4", "text 5")
    np.testing.assert_array_equal(full.query_vectors, [[8, 9], [10, 11]])
    assert full.vectors.dtype == np.float32
