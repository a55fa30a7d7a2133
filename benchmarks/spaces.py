"""The same rows over 1 to 64 spaces, in all partitions and in one; and the alternative: threads that share one graph.

    python benchmarks/spaces.py [--rows N] [--json] [--plot FILE.svg]

Real rows; as many feeding threads as cores, batches of 256, `os`, graphs from the first row; then 1,000 spaces of 1,000
rows each. Of each: rows a second appended, and absorbed (the callers help), and recall@10 in the first space. hnswlib
and usearch, where they are installed, add the rows with 1, 2, 4 and 8 threads to one graph.
"""

import argparse
import contextlib
import json
import os
import platform
import tempfile
import threading
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
BATCH = 256
M = 16
EF_CONSTRUCTION = 64
SPACES = (1, 2, 4, 8, 16, 64)
THREADS = (1, 2, 4, 8)
CORES = os.cpu_count() or 1


def together(work: Callable[[int], None], threads: int) -> float:
    """Run on so many threads; returns the seconds."""
    begun = time.perf_counter()
    running = [threading.Thread(target=work, args=(turn,)) for turn in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return time.perf_counter() - begun


def found(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the true neighbours found; an equal score counts."""
    return float(np.mean(scores >= truth[:, -1:]))


def spread(rows: np.ndarray, cues: np.ndarray, spaces: int, limits: dict[str, int]) -> dict[str, Any]:
    """Stream the rows over so many spaces, and absorb."""
    with tempfile.TemporaryDirectory() as scratch, engram.open(scratch, durability="os", limits=limits) as engine:
        made = [engine.space(f"s{n}", dim=rows.shape[1]) for n in range(spaces)]
        pieces = [range(first, min(first + BATCH, len(rows))) for first in range(0, len(rows), BATCH)]

        def feed(turn: int) -> None:
            for n in range(turn, len(pieces), CORES):
                made[n % spaces].observe_batch(vectors=rows[pieces[n].start : pieces[n].stop])

        def absorb(turn: int) -> None:
            for space in made[turn::CORES] if spaces > 1 else made:
                space.wait_absorbed()

        appended = together(feed, CORES)
        absorbed = appended + together(absorb, CORES)
        _, truth = made[0].recall_batch(cues, k=K, exact=True)
        _, scores = made[0].recall_batch(cues, k=K)
        line = {"appended rows/s": len(rows) / appended, "absorbed rows/s": len(rows) / absorbed}
        return {**line, "recall": found(scores, truth)}


def shared(rows: np.ndarray, cues: np.ndarray, threads: int) -> dict[str, dict[str, Any]]:
    """Add the rows to one graph of each library, with so many threads."""
    truth = np.sort(cues @ rows.T, axis=1)[:, ::-1][:, :K]
    lines = {}
    with contextlib.suppress(ImportError):
        import hnswlib

        graph = hnswlib.Index("cosine", rows.shape[1])
        graph.init_index(len(rows), M=M, ef_construction=EF_CONSTRUCTION)
        begun = time.perf_counter()
        graph.add_items(rows, num_threads=threads)
        took = time.perf_counter() - begun
        graph.set_ef(EF_CONSTRUCTION)
        scores = 1 - graph.knn_query(cues, k=K)[1]
        lines["hnswlib"] = {"absorbed rows/s": len(rows) / took, "recall": found(scores + 1e-5, truth)}
    with contextlib.suppress(ImportError):
        from usearch.index import Index

        index = Index(ndim=rows.shape[1], metric="cos", dtype="i8", connectivity=M, expansion_add=EF_CONSTRUCTION)
        begun = time.perf_counter()
        index.add(np.arange(len(rows)), rows, threads=threads)
        took = time.perf_counter() - begun
        keys = np.asarray(index.search(cues, K).keys).astype(np.int64)
        scores = np.einsum("qd,qkd->qk", cues, rows[keys])
        lines["usearch int8"] = {"absorbed rows/s": len(rows) / took, "recall": found(scores + 1e-5, truth)}
    return lines


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description="The same rows over many spaces.")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="an SVG file: rows a second over spaces, and over threads")
    arguments = parser.parse_args()
    sample = load_full() or load_sample()
    rows, cues = (m.astype(np.float32) for m in (sample.vectors[: arguments.rows], sample.query_vectors[:200]))
    rows, cues = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (rows, cues))
    first = {"index_graph_rows_min": 0}
    own = {spaces: spread(rows, cues, spaces, first) for spaces in SPACES}
    lines = {f"{spaces} spaces": line for spaces, line in own.items()}
    lines["64 spaces, one partition"] = spread(rows, cues, 64, {**first, "partitions": 1})
    many = np.tile(rows, (20, 1))[:1_000_000]  # no row twice in one space
    lines[f"{len(many) // 1_000:,} spaces of 1,000"] = spread(many, cues, max(1, len(many) // 1_000), {})
    theirs = {threads: shared(rows, cues, threads) for threads in THREADS}
    for threads, of in theirs.items():
        lines |= {f"{name}, one graph, {threads} threads": line for name, line in of.items()}
    if arguments.plot:
        import plots  # needs matplotlib, which nothing else here does

        rate = "absorbed rows/s"
        panels = {"spaces, engram": {"engram": {n: line[rate] for n, line in own.items()}}}
        names = sorted({name for of in theirs.values() for name in of})
        if names:
            one = {name: {threads: theirs[threads][name][rate] for threads in THREADS} for name in names}
            panels["threads into one shared graph"] = one
        plots.rates(panels, f"{len(rows):,} rows, {CORES} cores", arguments.plot)
    if arguments.json:
        print(json.dumps({"machine": platform.platform(), "rows": len(rows), "lines": lines}))
        return
    names = ["appended rows/s", "absorbed rows/s", "recall"]
    table = Table("", *names, title=f"{len(rows):,} rows, {platform.machine()}, {CORES} cores")
    for name, line in lines.items():
        table.add_row(name, *(f"{line[n]:{'.4f' if n == 'recall' else ',.0f'}}" if n in line else "" for n in names))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
