"""What a hammered space costs the quiet one beside it (P6), against an equal load from outside the engine.

    python benchmarks/neighbour.py [--directory DIR] [--seconds N] [--json]

The quiet space answers one recall and stores one observation again and again, at a fixed pace. Phases, alternating:
alone; while two threads hammer another space with batches of 256; while another process computes and writes and syncs
as many bytes: each MiB of the log's, and two MiB at a time what sealing, merging and the filling of segments took. Real
rows. Medians over the rounds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

import engram
from engram._sample import load_full, load_sample

_T = TypeVar("_T")

QUIET_ROWS = 4_000
BATCH = 256
THREADS = 2
PACE = 0.004  # seconds between two calls of the quiet space's client
ROUNDS = 3
MIB = 1 << 20
SYNC_MIB = 2  # after so many the engine syncs what is not its log


def percentile(values: list[float], q: float) -> float:
    """Return a percentile, in milliseconds."""
    return float(np.percentile(values, q)) * 1e3


def quiet(space: engram.Space, vectors: np.ndarray, seconds: float) -> tuple[list[float], list[float]]:
    """Recall and observe at the pace; returns how long each took."""
    recalls, acks = [], []
    until, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        cue = vectors[turn % len(vectors)]
        begun = time.perf_counter()
        space.recall(vector=cue, k=10)
        middle = time.perf_counter()
        space.observe(vector=cue)
        ended = time.perf_counter()
        recalls.append(middle - begun)
        acks.append(ended - middle)
        turn += 1
        time.sleep(PACE)
    return recalls, acks


def hammered(space: engram.Space, vectors: np.ndarray, work: Callable[[], _T]) -> tuple[_T, float]:
    """Do `work` while threads fill `space`; returns its result and the bytes a second that they stored."""
    stop, stored = threading.Event(), [0] * THREADS

    def write(number: int) -> None:
        at = number
        while not stop.is_set():
            batch = vectors[at * BATCH % (len(vectors) - BATCH) :][:BATCH]
            space.observe_batch(vectors=batch)
            stored[number] += batch.nbytes
            at += THREADS

    threads = [threading.Thread(target=write, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    begun = time.perf_counter()
    result = work()
    took = time.perf_counter() - begun
    stop.set()
    for thread in threads:
        thread.join()
    return result, sum(stored) / took


def written(engine: engram.Engine) -> np.ndarray:
    """Return how many bytes the engine has written so far: to its logs; besides."""
    stats = engine.stats()
    besides = sum(stats[f"{kind}_bytes"] for kind in ("segment_fill", "sealed", "merged", "checkpoint"))
    return np.array([stats["log_bytes"], besides], dtype=float)


def burn(path: str, log: float, besides: float, threads: int) -> None:
    """Be the equal load: each thread computes all the time; one writes and syncs so many bytes a second."""

    def compute() -> None:
        rows = np.random.default_rng(1).normal(size=(BATCH, 384)).astype(np.float32)
        while True:
            np.linalg.norm(rows, axis=1)

    for _ in range(threads - 1):
        threading.Thread(target=compute, daemon=True).start()
    block, rows = os.urandom(MIB), np.random.default_rng(1).normal(size=(BATCH, 384)).astype(np.float32)
    with Path(path).open("wb", buffering=0) as file:
        due, owed = time.perf_counter(), 0.0
        while True:
            if file.tell() > 256 * MIB:
                file.seek(0)
            file.write(block)
            os.fdatasync(file.fileno())
            due, owed = due + MIB / log, owed + besides / log
            while owed >= SYNC_MIB:
                for _ in range(SYNC_MIB):
                    file.write(block)
                os.fdatasync(file.fileno())
                owed -= SYNC_MIB
            while time.perf_counter() < due:
                np.linalg.norm(rows, axis=1)


def group_time(directory: Path) -> float:
    """Return the median time that the disk takes for a full group of 1 MiB, in milliseconds."""
    block, times = os.urandom(MIB), []
    with (directory / "group").open("wb", buffering=0) as file:
        for _ in range(40):
            begun = time.perf_counter()
            file.write(block)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begun)
    return median(times) * 1e3


def measure(directory: Path, partitions: int, seconds: float) -> dict[str, float]:
    """All phases, on one engine with so many partitions."""
    full = load_full()
    vectors = (load_sample() if full is None else full).vectors[:20_000]
    dim = vectors.shape[1]
    lines: dict[str, list[float]] = {}
    with engram.open(directory / f"engine-{partitions}", limits={"partitions": partitions}) as engine:
        space, other = engine.space("quiet", dim=dim), engine.space("hammered", dim=dim)
        space.observe_batch(vectors=vectors[:QUIET_ROWS], atomic=False)

        def note(phase: str, measured: tuple[list[float], list[float]]) -> None:
            for what, values in zip(("recall", "ack"), measured, strict=True):
                lines.setdefault(f"{phase} {what} p50 ms", []).append(percentile(values, 50))
                lines.setdefault(f"{phase} {what} p99 ms", []).append(percentile(values, 99))

        for _ in range(ROUNDS):
            note("alone", quiet(space, vectors, seconds))
            before, begun = written(engine), time.perf_counter()
            result, rate = hammered(other, vectors, lambda: quiet(space, vectors, seconds))
            disk = (written(engine) - before) / (time.perf_counter() - begun)
            note("hammered", result)
            lines.setdefault("hammered MiB/s", []).append(rate / MIB)
            lines.setdefault("written MiB/s", []).append(disk.sum() / MIB)
            load = [sys.executable, __file__, "--burn", str(directory / "burnt"), *map(str, disk), str(THREADS)]
            with subprocess.Popen(load) as process:
                time.sleep(0.5)
                note("outside", quiet(space, vectors, seconds))
                process.kill()
    return {name: median(values) for name, values in lines.items()}


def main() -> None:
    """Measure, and show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--burn", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.burn:
        path, log, besides, threads = arguments.burn
        burn(path, float(log), float(besides), int(threads))
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        directory = Path(scratch)
        group = group_time(directory)
        found = {str(partitions): measure(directory, partitions, arguments.seconds) for partitions in (1, 4)}
    verdicts = {}
    for partitions, line in found.items():
        recall, base = line["hammered recall p99 ms"], line["outside recall p99 ms"]
        ack, base_ack = line["hammered ack p99 ms"], line["outside ack p99 ms"]
        verdicts[partitions] = {
            "recall": (recall, max(1.2 * base, base + 2), recall <= max(1.2 * base, base + 2)),
            "ack": (ack, base_ack + 3 * group, ack <= base_ack + 3 * group),
        }
    if arguments.json:
        print(json.dumps({"group_ms": group, "measured": found, "verdicts": verdicts}))
        return
    table = Table("figure", *(f"{partitions} partition(s)" for partitions in found))
    for name in found["1"]:
        table.add_row(name, *(f"{line[name]:.2f}" for line in found.values()))
    for what in ("recall", "ack"):
        each = [verdicts[partitions][what] for partitions in found]
        table.add_row(
            f"P6 {what}", *(f"{'met' if met else 'MISSED'}: {got:.2f} of {most:.2f}" for got, most, met in each)
        )
    table.add_row("disk, 1 MiB group, ms", *([f"{group:.2f}"] * len(found)))
    Console().print(table)


if __name__ == "__main__":
    main()
