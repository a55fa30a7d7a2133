"""How fast an index is built while rows stream in, and how fast it answers, against libraries in the same run.

    python benchmarks/compare/recall.py [--rows N] [--json] [--plot FILE.svg]

Real rows: the full set where `load_full` finds it, else the bundled sample. engram streams batches of 256 into a space
with its graph from the first row, and is timed until everything is absorbed; libraries add all rows at once with 2
threads (M = 16, efConstruction = 64). Queries on one thread, all as one matrix; recall@10 against the exact answers;
of engram when everything is absorbed, and again when its image is on the disk and it was opened from that. In another
pass recall is taken at each tenth of the stream, of what is settled then. Memory is what no file stands behind.
hnswlib, usearch, faiss and rabitqlib's SymphonyQG are used where they are installed (`pip install --group compare`).
"""

import argparse
import contextlib
import ctypes
import gc
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import engram
from engram._sample import load_full, load_sample

K = 10
THREADS = 2
M = 16
EF_CONSTRUCTION = 64
WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
TARGETS = (0.95, 0.99)
ROUNDS = 3

Search = Callable[[int | None], np.ndarray]


def exact(rows: np.ndarray, cues: np.ndarray) -> np.ndarray:
    """Return the K nearest rows of each cue by cosine, in float64."""
    scores = cues.astype(np.float64) @ rows.T.astype(np.float64)
    return np.argsort(-scores, axis=1, kind="stable")[:, :K]


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the true neighbours found."""
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


def measure(search: Search, truth: np.ndarray, widths: tuple[int | None, ...]) -> list[dict[str, Any]]:
    """Return width, recall and queries a second, the best of some rounds."""
    lines = []
    for width in widths:
        best, found = 0.0, np.empty(0)
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            found = search(width)
            best = max(best, len(truth) / (time.perf_counter() - begun))
        lines.append({"ef": width, "recall": recall(found, truth), "queries/s": best})
    return lines


def at(lines: list[dict[str, Any]], target: float) -> float | None:
    """Return queries a second at a recall, between the two widths around it."""
    before = None
    for line in sorted(lines, key=lambda line: line["recall"]):
        if line["recall"] >= target:
            if before is None or line["recall"] == before["recall"]:
                return line["queries/s"]
            share = (target - before["recall"]) / (line["recall"] - before["recall"])
            return before["queries/s"] * (line["queries/s"] / before["queries/s"]) ** share
        before = line
    return None


def anonymous() -> int:
    """Return the bytes of memory of this process that no file stands behind; mapped files are not in it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def timed(build: Callable[[], object]) -> tuple[float, int]:
    """Return the seconds it took, and the memory that came with it."""
    before, begun = anonymous(), time.perf_counter()
    build()
    took = time.perf_counter() - begun
    return took, anonymous() - before


def image(directory: str) -> float:
    """Wait until the image of the index is no more replaced; returns when it was written."""
    last = 0.0
    for _ in range(15):
        time.sleep(4)  # twice what an index rests before it writes
        before, last = last, max((p.stat().st_mtime for p in Path(directory).glob("*/index/*.index")), default=0.0)
        if 0 < before == last:
            break
    return last


def settled(rows: np.ndarray, cues: np.ndarray) -> list[float]:
    """Return recall@10 of what is settled at each tenth of a stream: against the exact answers up to there."""
    tenths = []
    with engram.open(limits={"index_graph_rows_min": 0}) as engine:
        space = engine.space("s", dim=rows.shape[1])
        for tenth in np.array_split(rows, 10):
            for first in range(0, len(tenth), 256):
                space.observe_batch(vectors=tenth[first : first + 256])
            shares = []
            for cue in cues:
                hits = space.recall(vector=cue, k=K, consistency="settled", max_lag=3_600)
                scores = np.sort(rows[: hits.absorbed] @ cue)[::-1][:K]
                shares.append(np.mean([hit.score >= scores[-1] - 1e-6 for hit in hits]) if len(scores) else 1.0)
            tenths.append(float(np.mean(shares)))
    return tenths


def with_engram(rows: np.ndarray, cues: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Stream, absorb, ask; wait for the image, open from it, ask again."""
    limits = {"index_graph_rows_min": 0}

    def search(width: int | None) -> np.ndarray:
        return space.recall_batch(cues, k=K, ef=width)[0].astype(np.int64) - 1

    before = anonymous()
    with tempfile.TemporaryDirectory() as scratch:
        with engram.open(scratch, durability="os", limits=limits) as engine:
            space = engine.space("s", dim=rows.shape[1])
            begun = time.perf_counter()
            for first in range(0, len(rows), 256):
                space.observe_batch(vectors=rows[first : first + 256])
            appended = time.perf_counter() - begun
            space.wait_absorbed()
            absorbed, standing = time.perf_counter() - begun, time.time()
            result = {
                "appended rows/s": len(rows) / appended,
                "rows/s": len(rows) / absorbed,
                "default": measure(search, truth, (None,))[0],
                "lines": measure(search, truth, WIDTHS),
            }
            result["image stood after, s"] = image(scratch) - standing
            result["bytes"] = anonymous() - before
        begun = time.perf_counter()
        with engram.open(scratch, limits=limits) as engine:
            space = engine.space("s")
            space.recall_batch(cues[:1], k=K)
            answered = time.perf_counter() - begun
            space.wait_absorbed()
            result["reopened"] = {"first recall, s": answered, "index, s": time.perf_counter() - begun}
            result["reopened"] |= {name: space.stats()[name] for name in ("index_imaged", "index_rebuilt")}
            result["lines, reopened"] = measure(search, truth, WIDTHS)
    return result


def with_hnswlib(rows: np.ndarray, cues: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Build with threads, ask with one."""
    import hnswlib

    index = hnswlib.Index("cosine", rows.shape[1])

    def build() -> None:
        index.init_index(len(rows), M=M, ef_construction=EF_CONSTRUCTION)
        index.add_items(rows, num_threads=THREADS)

    built, held = timed(build)

    def search(width: int | None) -> np.ndarray:
        index.set_ef(width or K)
        return index.knn_query(cues, k=K, num_threads=1)[0].astype(np.int64)

    return {"rows/s": len(rows) / built, "bytes": held, "lines": measure(search, truth, WIDTHS)}


def with_usearch(rows: np.ndarray, cues: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Build int8 codes with threads, ask with one."""
    from usearch.index import Index

    index = Index(
        ndim=rows.shape[1], metric="cos", dtype="i8", connectivity=M, expansion_add=EF_CONSTRUCTION, multi=False
    )
    built, held = timed(lambda: index.add(np.arange(len(rows)), rows, threads=THREADS))

    def search(width: int | None) -> np.ndarray:
        index.expansion_search = width or K
        return np.asarray(index.search(cues, K, threads=1).keys).astype(np.int64)

    return {"rows/s": len(rows) / built, "bytes": held, "lines": measure(search, truth, WIDTHS)}


def with_faiss(rows: np.ndarray, cues: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Build with threads, ask with one."""
    import faiss

    index = faiss.IndexHNSWFlat(rows.shape[1], M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    faiss.omp_set_num_threads(THREADS)
    built, held = timed(lambda: index.add(rows))
    faiss.omp_set_num_threads(1)

    def search(width: int | None) -> np.ndarray:
        index.hnsw.efSearch = width or K
        return index.search(cues, K)[1]

    return {"rows/s": len(rows) / built, "bytes": held, "lines": measure(search, truth, WIDTHS)}


def with_symphonyqg(rows: np.ndarray, cues: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Build with threads, once: it takes no rows afterwards. Ask with one."""
    import rabitqlib

    index = rabitqlib.SymqgIndex(rows.shape[1], 2 * M, "ip")
    built, held = timed(lambda: index.build(rows, EF_CONSTRUCTION, num_threads=THREADS))

    def search(width: int | None) -> np.ndarray:
        return np.asarray(index.search_batch(cues, K, width or K, num_threads=1)[0]).astype(np.int64)

    return {"rows/s": len(rows) / built, "bytes": held, "lines": measure(search, truth, WIDTHS)}


def single(rows: np.ndarray, cues: np.ndarray) -> dict[str, Any]:
    """Return medians of single calls at equal recall: `recall` with its hits, and hnswlib's `knn_query` of one row."""
    import hnswlib

    graph = hnswlib.Index("cosine", rows.shape[1])
    graph.init_index(len(rows), M=M, ef_construction=EF_CONSTRUCTION)
    graph.add_items(rows, num_threads=THREADS)
    truth = exact(rows, cues)
    with engram.open(limits={"index_graph_rows_min": 0}) as engine:
        space = engine.space("s", dim=rows.shape[1])
        for first in range(0, len(rows), 256):
            space.observe_batch(vectors=rows[first : first + 256])
        space.wait_absorbed()

        def ask(width: int | None) -> np.ndarray:
            return space.recall_batch(cues, k=K, ef=width)[0].astype(np.int64) - 1

        def peer(width: int | None) -> np.ndarray:
            graph.set_ef(width or K)
            return graph.knn_query(cues, k=K, num_threads=1)[0].astype(np.int64)

        own, other = (next(w for w in WIDTHS if recall(search(w), truth) >= TARGETS[0]) for search in (ask, peer))
        graph.set_ef(other)
        times: dict[str, list[float]] = {"recall": [], "knn_query": []}
        for cue in cues:
            begun = time.perf_counter()
            space.recall(vector=cue, k=K, ef=own)
            middle = time.perf_counter()
            graph.knn_query(cue, k=K, num_threads=1)
            times["recall"].append(middle - begun)
            times["knn_query"].append(time.perf_counter() - middle)
        return {name: [float(np.percentile(each, q)) * 1e6 for q in (50, 99)] for name, each in times.items()}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="an SVG file: queries a second over recall")
    arguments = parser.parse_args()
    sample = load_full() or load_sample()
    rows = np.ascontiguousarray(sample.vectors[: arguments.rows], np.float32)
    cues = np.ascontiguousarray(sample.query_vectors, np.float32)
    rows, cues = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (rows, cues))
    truth, results = exact(rows, cues), {}
    contenders = {"engram": with_engram, "hnswlib": with_hnswlib, "usearch int8": with_usearch, "faiss": with_faiss}
    contenders["SymphonyQG"] = with_symphonyqg
    for name, run in contenders.items():
        try:
            results[name] = run(rows, cues, truth)
        except ImportError:
            continue
        results[name]["at"] = {str(target): at(results[name]["lines"], target) for target in TARGETS}
    results["engram"]["settled"] = settled(rows, cues[:100])
    if arguments.plot:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        import plots  # needs matplotlib, which nothing else here does

        plots.curves(results, f"{len(rows):,} rows, {rows.shape[1]} dimensions, cosine", arguments.plot)
    with contextlib.suppress(ImportError):
        results["single, µs"] = single(rows, cues)
    if arguments.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "rows": len(rows), **results}))
        return
    names = ["", "rows/s built", *(f"queries/s at {target}" for target in TARGETS), "memory, KiB a row"]
    table = Table(*names, title=f"{len(rows):,} rows")
    calls = results.pop("single, µs", {})
    for name, result in results.items():
        speeds = [f"{speed:,.0f}" if (speed := result["at"][str(t)]) else "not reached" for t in TARGETS]
        table.add_row(name, f"{result['rows/s']:,.0f}", *speeds, f"{result['bytes'] / len(rows) / 1024:.2f}")
    Console().print(table)
    own = results["engram"]
    print(f"engram settled at each tenth: {', '.join(f'{share:.3f}' for share in own['settled'])}")
    print(f"reopened: {own['reopened']}, image stood {own['image stood after, s']:.1f} s after it was absorbed;")
    again = {str(t): round(at(own["lines, reopened"], t) or 0) for t in TARGETS}
    print(f"          queries/s {again}")
    for name, (half, most) in calls.items():
        print(f"one {name} at {TARGETS[0]}: p50 {half:,.0f} µs, p99 {most:,.0f} µs")


if __name__ == "__main__":
    main()
