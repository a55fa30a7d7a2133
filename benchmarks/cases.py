"""Rows that are hard on an index: their order, norms, copies, dimensions; deaths and refills; filters.

    python benchmarks/cases.py [--rows N] [--only NAME] [--json]

Real rows, jittered where more are needed. Each case streams batches of 256 into a space with its graph from the first
row; at each tenth, and when all is absorbed, the recall@10 of 200 cues against the exact answers, by default settings
(an equal score counts). "itself": the share of 10,000 rows that find themselves, or an equal vector, first. At the end
the directory is verified: every row of the graph must be reachable.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import engram
from engram._sample import load_full, load_sample

K = 10
BATCH = 256
CUES = 200
SELF = 10_000
LIMITS = {"index_graph_rows_min": 0, "index_image_idle_ms": 100, "partitions": 1}

Made = tuple[str, np.ndarray, np.ndarray]
rng = np.random.default_rng(7)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return the rows at length 1."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def more(base: np.ndarray, count: int) -> np.ndarray:
    """Return `count` rows: the real ones, then pairs of them, one with a twentieth of the other."""
    extra = max(0, count - len(base))
    pairs = rng.integers(len(base), size=(2, extra))
    return np.concatenate([base[:count], unit(base[pairs[0]] + 0.05 * base[pairs[1]])]).astype(np.float32)


def near(rows: np.ndarray) -> np.ndarray:
    """Return cues: some rows, a little off."""
    some = rows[rng.integers(len(rows), size=CUES)]
    noise = rng.normal(size=some.shape) / np.sqrt(some.shape[1])
    return (some + 0.1 * np.linalg.norm(some, axis=1, keepdims=True) * noise).astype(np.float32)


def in_clusters(rows: np.ndarray) -> np.ndarray:
    """Return the rows one cluster after the other."""
    centres = rows[rng.integers(len(rows), size=50)]
    return rows[np.argsort(np.argmax(rows @ centres.T, axis=1), kind="stable")]


def drifted(rows: np.ndarray) -> np.ndarray:
    """Return the rows on their way: at the end ten norms from where they began."""
    way = unit(rng.normal(size=(1, rows.shape[1])))
    return (rows + np.linspace(0, 10, len(rows))[:, None] * way).astype(np.float32)


def log_normal(rows: np.ndarray) -> np.ndarray:
    """Return the rows at lengths that vary by a factor of e."""
    return (rows * np.exp(rng.normal(size=(len(rows), 1)))).astype(np.float32)


def narrowed(rows: np.ndarray, dim: int) -> np.ndarray:
    """Return the rows in fewer dimensions, seen from a random side."""
    return unit(rows @ np.linalg.qr(rng.normal(size=(rows.shape[1], dim)))[0])


def cases(base: np.ndarray, count: int) -> dict[str, Callable[[], Made]]:
    """Return what to make of the real rows: metric, rows in order, cues."""
    rows = more(base, count)
    line = np.linspace(0, 1, len(rows))[:, None]

    def of(metric: str, made: np.ndarray) -> Made:
        return metric, made, near(made)

    return {
        "as they come": lambda: of("cosine", rows),
        "cluster by cluster": lambda: of("cosine", in_clusters(rows)),
        "sorted": lambda: of("cosine", rows[np.argsort(rows[:, 0])]),
        "drifting": lambda: of("cosine", unit(rows + line * rows[:1] * 2)),
        "drifting by 10 norms, l2": lambda: of("l2", drifted(rows)),
        "log-normal norms, cosine": lambda: of("cosine", log_normal(rows)),
        "log-normal norms, l2": lambda: of("l2", log_normal(rows)),
        "log-normal norms, ip": lambda: ("ip", log_normal(rows), near(rows)),
        "a half is one vector": lambda: of("cosine", np.where(rng.random((len(rows), 1)) < 0.5, rows[:1], rows)),
        "all of it twice": lambda: of("cosine", np.tile(rows[: len(rows) // 2], (2, 1))),
        "all of it twenty times": lambda: of("cosine", np.tile(rows[: len(rows) // 20], (20, 1))),
        "uniform random (hard)": lambda: of("cosine", rng.random(rows.shape, dtype=np.float32) - 0.5),
        "128 dimensions": lambda: of("cosine", narrowed(rows, 128)),
        "768 dimensions": lambda: of("cosine", unit(np.concatenate([rows, rng.permutation(rows)], axis=1))),
        "l2": lambda: of("l2", rows),
    }


def recall(reads: Any, cues: np.ndarray, **how: Any) -> float:
    """Return the share of the true neighbours found; an equal score counts."""
    _, truth = reads.recall_batch(cues, k=K, exact=True, **how)
    ids, scores = reads.recall_batch(cues, k=K, **how)
    wanted = np.isfinite(truth)
    worst = np.where(wanted, truth, np.inf).min(axis=1, keepdims=True)
    return float(np.sum((scores >= worst) & (ids > 0)) / max(1, wanted.sum()))


def themselves(space: engram.Space, rows: np.ndarray) -> float:
    """Return the share of rows that find themselves, or an equal score, first."""
    some = rows[rng.permutation(len(rows))[:SELF]]
    _, found = space.recall_batch(some, k=1)
    if space.metric == "l2":
        return float(np.mean(found[:, 0] >= -1e-6 * np.sum(some * some, axis=1)))
    return float(np.mean(found[:, 0] >= 1 - 1e-5))


def rate(space: engram.Space, cues: np.ndarray) -> float:
    """Return queries a second."""
    begun = time.perf_counter()
    space.recall_batch(cues, k=K)
    return len(cues) / (time.perf_counter() - begun)


def settle(space: engram.Space) -> None:
    """Wait for the index, its image included: one is not written again for an eighth more."""
    space.wait_absorbed()
    while (stats := space.stats())["index_imaged"] * 8 <= stats["index_linked"] * 7:
        time.sleep(0.02)


def fed(space: engram.Space, rows: np.ndarray) -> Iterator[None]:
    """Stream the rows, and come back at each tenth."""
    for first in range(0, len(rows), BATCH):
        space.observe_batch(vectors=rows[first : first + BATCH])
        if first * 10 // len(rows) != (first + BATCH) * 10 // len(rows):
            yield


def streamed(scratch: str, made: Made) -> dict[str, Any]:
    """Stream twice: as fast as it goes, then with questions at each tenth."""
    metric, rows, cues = made
    with engram.open(scratch, durability="os", limits=LIMITS) as engine:
        space = engine.space("fast", dim=rows.shape[1], metric=metric)
        begun = time.perf_counter()
        for _ in fed(space, rows):
            pass
        space.wait_absorbed()
        absorbed = time.perf_counter() - begun
        engine.drop_space("fast")
        space = engine.space("asked", dim=rows.shape[1], metric=metric)
        tenths = []
        for _ in fed(space, rows):
            with space.snapshot() as snapshot:
                tenths.append(recall(snapshot, cues))
        settle(space)
        line = {
            "rows": len(rows),
            "rows/s": len(rows) / absorbed,
            "least tenth": min(tenths),
            "recall": recall(space, cues),
            "queries/s": rate(space, cues),
            "itself": None if metric == "ip" else themselves(space, rows),
        }
    return {**line, "sound": not engram.verify(scratch)["damage"]}


def refilled(scratch: str, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """Forget a half and put as many in, three times; beside it a space made of the same rows at once."""
    half = len(rows) // 5
    cues = near(rows)
    with engram.open(scratch, durability="os", limits=LIMITS) as engine:
        space = engine.space("s", dim=rows.shape[1])
        living = dict(
            zip(space.observe_batch(vectors=rows[: 2 * half], atomic=False).memory_ids.tolist(), rows, strict=False)
        )
        for turn in range(3):
            settle(space)
            gone = rng.permutation(list(living))[:half].tolist()
            space.forget(gone)
            for one in gone:
                del living[one]
            while space.stats()["index_rows"] > half:
                time.sleep(0.02)
            new = rows[(turn + 2) * half : (turn + 3) * half]
            begun = time.perf_counter()
            living |= zip(space.observe_batch(vectors=new, atomic=False).memory_ids.tolist(), new, strict=True)
            space.wait_absorbed()
            took = time.perf_counter() - begun
            settle(space)
            line = {"rows": len(living), "rows/s": half / took, "recall": recall(space, cues)}
            yield {"case": f"half forgotten and refilled, {turn + 1}", **line, "queries/s": rate(space, cues)}
        fresh = engine.space("t", dim=rows.shape[1])
        fresh.observe_batch(vectors=np.stack(list(living.values())), atomic=False)
        settle(fresh)
        yield {
            "case": "the same, made at once",
            "rows": len(living),
            "recall": recall(fresh, cues),
            "queries/s": rate(fresh, cues),
            "sound": True,
        }


def filtered(scratch: str, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """Ask for what few rows are."""
    shares = {"one in 2": 2, "one in 20": 20, "one in 200": 200, "one row": len(rows)}
    cues = near(rows)
    with engram.open(scratch, durability="os", limits=LIMITS) as engine:
        space = engine.space("s", dim=rows.shape[1])
        for first in range(0, len(rows), 1_000):
            some = rows[first : first + 1_000]
            marks = [{name: (first + i) % every == 1 for name, every in shares.items()} for i in range(len(some))]
            space.observe_batch(vectors=some, metadata=marks)
        settle(space)
        for name in shares:
            begun = time.perf_counter()
            ids, _ = space.recall_batch(cues, k=K, where={name: True})
            took = time.perf_counter() - begun
            filled = min(K, (len(rows) + shares[name] - 2) // shares[name])
            line = {"recall": recall(space, cues, where={name: True}), "queries/s": len(cues) / took}
            yield {
                "case": f"filter: {name}",
                "rows": len(rows),
                **line,
                "sound": bool(np.all((ids > 0).sum(1) == filled)),
            }


def show(lines: list[dict[str, Any]]) -> Table:
    """Return a table."""
    names = ["case", "rows", "rows/s", "least tenth", "recall", "queries/s", "itself", "sound"]
    table = Table(*names, title=f"recall@{K} by default settings; {platform.processor() or platform.machine()}")
    for line in lines:
        cells = []
        for name in names:
            value = line.get(name)
            text = (
                f"{value:,.0f}" if name.endswith("/s") and value else f"{value:.4f}" if type(value) is float else value
            )
            cells.append("" if value is None else str(text))
        table.add_row(*cells)
    return table


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description="Rows that are hard on an index.")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    full = load_full()
    base = (full or load_sample()).vectors.astype(np.float32)
    lines = []
    made = {name: make for name, make in cases(base, arguments.rows).items() if arguments.only in name}
    for name, make in track(made.items(), "cases", console=Console(stderr=True), disable=arguments.json):
        with tempfile.TemporaryDirectory() as scratch:
            lines.append({"case": name, **streamed(scratch, make())})
    for name, run in {"refilled": refilled, "filter": filtered}.items():
        if arguments.only in name:
            with tempfile.TemporaryDirectory() as scratch:
                lines += run(scratch, more(base, arguments.rows))
    if arguments.json:
        print(json.dumps({"machine": platform.platform(), "simd": engram._core.simd_level(), "lines": lines}))
    else:
        Console(width=150).print(show(lines))


if __name__ == "__main__":
    main()
