"""Makes python/engram/_sample from the full data set (ENGRAM_BENCH_DATA, or ../shared/data).

The data set is 101,000 WordNet 3.0 glosses embedded with all-MiniLM-L6-v2: rows below 100,000 are the base set in
random order, the rest are queries. The sample takes the first base rows, and queries that a person chose because
everybody knows the thing. Running it again gives the same bytes.
"""

import gzip
import json
import os
from pathlib import Path

import numpy as np

BASE_ROWS = 4_000
NEAREST = 10
QUERY_ROWS = [
    100_017,  # raft
    100_078,  # carbonara
    100_126,  # widower
    100_177,  # astrophysicist
    100_190,  # roulette
    100_367,  # server
    100_381,  # cube
    100_452,  # twilight
    100_486,  # tooth decay
    100_655,  # glove
    100_670,  # door
    100_749,  # squeezer
    100_777,  # meadow
    100_825,  # horse race
    100_852,  # speedskater
    100_891,  # helium
    100_897,  # horseradish
    100_954,  # violinist
    100_964,  # beekeeper
    100_982,  # pterodactyl
]


def unit(rows: np.ndarray) -> np.ndarray:
    exact = rows.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def main() -> None:
    source = Path(os.environ.get("ENGRAM_BENCH_DATA", "../shared/data"))
    target = Path(__file__).resolve().parent.parent / "python" / "engram" / "_sample"
    vectors = np.load(source / "wordnet_minilm_384_f16.npy", mmap_mode="r", allow_pickle=False)
    with gzip.open(source / "wordnet_glosses.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.dumps(json.loads(line), ensure_ascii=False) for line in file]

    base, queries = vectors[:BASE_ROWS], vectors[QUERY_ROWS]
    scores = unit(queries) @ unit(base).T
    truth = np.argsort(-scores, axis=1, kind="stable")[:, :NEAREST].astype(np.int32)

    np.save(target / "vectors.npy", np.ascontiguousarray(base), allow_pickle=False)
    np.save(target / "queries.npy", np.ascontiguousarray(queries), allow_pickle=False)
    np.save(target / "truth.npy", truth, allow_pickle=False)
    texts = "".join(line + "\n" for line in lines[:BASE_ROWS]).encode()
    (target / "texts.jsonl.gz").write_bytes(gzip.compress(texts, 9, mtime=0))
    (target / "queries.jsonl").write_text("".join(lines[row] + "\n" for row in QUERY_ROWS), encoding="utf-8")


if __name__ == "__main__":
    main()
