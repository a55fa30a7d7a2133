"""How fast rows go in, against what the disk itself can do and against LanceDB, in one run; and what a restart costs.

    python benchmarks/compare/ingest.py [--directory DIR] [--json]

Runs on the engram of this interpreter, with real rows: the full set where `load_full` finds it, else the bundled
sample, mixed to more rows. Ratios come from alternating blocks of the same bytes, so that a disk whose speed wanders
judges both sides alike; medians are printed. LanceDB is optional.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import engram
from engram._sample import Sample, load_full, load_sample

ROWS = 100_000
BATCH_ROWS = 256
BLOCK_BATCHES = 20
BLOCK_SINGLES = 200
ALTERNATIONS = 10
SECTOR = 512
K = 10
RECALL_CUES = 200
TIE = 1e-6
MIB = 1 << 20


@dataclass
class Line:
    """One figure, and what is asked of it."""

    figure: str
    value: float | None
    unit: str
    goal: str = ""
    met: bool | None = None
    note: str = ""


def rows_of(sample: Sample, count: int) -> np.ndarray:
    """Return `count` rows: the real ones, and beyond them mixtures of two (rows[a] + 0.05 rows[b])."""
    have = sample.vectors
    if len(have) >= count:
        return np.ascontiguousarray(have[:count])
    parts = [have]
    for turn in range(1, -(-count // len(have))):
        parts.append(have + np.float32(0.05) * np.roll(have, 17 * turn, axis=0))
    return np.ascontiguousarray(np.concatenate(parts)[:count])


def batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[first : first + BATCH_ROWS] for first in range(0, len(rows), BATCH_ROWS))


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


# ---- plain writes ----------------------------------------------------------------------------------------------------


class Plain:
    """A file that is written and synced as plainly as can be."""

    def __init__(self, path: Path, zeros: int = 0) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        for at in range(0, zeros, MIB):
            os.pwrite(self._fd, bytes(min(MIB, zeros - at)), at)
        os.fsync(self._fd)
        self._at = 0

    def write(self, data: bytes | memoryview) -> None:
        os.pwrite(self._fd, data, self._at)
        os.fdatasync(self._fd)
        self._at += len(data)

    def close(self) -> None:
        os.close(self._fd)


# ---- ingest ----------------------------------------------------------------------------------------------------------


def ingest_ratios(rows: np.ndarray, directory: Path, blocks: int) -> list[Line]:
    """Alternate blocks of batches with blocks of plain writes of the same bytes."""
    block_rows = BLOCK_BATCHES * BATCH_ROWS
    needed = (blocks + 1) * block_rows
    rows = np.concatenate([rows] * -(-needed // len(rows)))[:needed]
    append = Plain(directory / "append")
    overwrite = Plain(directory / "overwrite", zeros=rows.nbytes)
    to_append, to_overwrite, rates, disk_rates = [], [], [], []
    with engram.open(directory / "ratios", durability="sync") as engine:
        space = engine.space("rows", dim=rows.shape[1])
        for turn in range(blocks + 1):
            block = list(batches(rows[turn * block_rows : (turn + 1) * block_rows]))
            plain = [memoryview(batch).cast("B") for batch in block]
            ours = seconds(lambda block=block: [space.observe_batch(vectors=batch) for batch in block])
            appended = seconds(lambda plain=plain: [append.write(data) for data in plain])
            overwritten = seconds(lambda plain=plain: [overwrite.write(data) for data in plain])
            if turn:  # the first block makes files and warms caches
                to_append.append(appended / ours)
                to_overwrite.append(overwritten / ours)
                rates.append(block_rows / ours)
                disk_rates.append((block_rows / appended, block_rows / overwritten))
    append.close()
    overwrite.close()
    spread = "min {:.2f}, max {:.2f}"
    above, below = median(to_append), median(to_overwrite)
    return [
        Line("sync, batches of 256: × plain append", above, "×", "≥ 0.6", above >= 0.6, spread_of(spread, to_append)),
        Line("… × plain overwrite", below, "×", "≥ 0.35", below >= 0.35, spread_of(spread, to_overwrite)),
        Line("… rate in the blocks", median(rates), "rows/s", note=f"median of {blocks} blocks"),
        Line("… plain append beside it", median(rate for rate, _ in disk_rates), "rows/s", note="write + fdatasync"),
        Line("… plain overwrite beside it", median(rate for _, rate in disk_rates), "rows/s", note="of zeros"),
    ]


def spread_of(text: str, values: list[float]) -> str:
    return text.format(min(values), max(values))


def stream(rows: np.ndarray, directory: Path, durability: str) -> list[Line]:
    """Stream all rows without pause, sealing and checkpoints as they come."""
    # The modes are a table's rows: mypy sees any str.
    with engram.open(directory / f"stream-{durability}", durability=durability) as engine:  # type: ignore[arg-type]
        space = engine.space("rows", dim=rows.shape[1])
        took = seconds(lambda: [space.observe_batch(vectors=batch) for batch in batches(rows)])
        lines = [Line(f"{durability}, {len(rows):,} rows in batches of {BATCH_ROWS}", len(rows) / took, "rows/s")]
        if durability == "sync":
            goal = lines[0].value is not None and lines[0].value >= 250_000
            lines[0].goal, lines[0].met = "≥ 250,000", goal
            lines += memory_lines("while open, after streaming", rows.nbytes)
            unsealed = engine.stats()["unsealed_bytes"]
            engine.checkpoint()
            lines += written_lines(engine.stats(), rows.nbytes, unsealed)
    return lines


def written_lines(stats: dict[str, Any], given: int, unsealed: int) -> list[Line]:
    kinds = ("log_bytes", "sealed_bytes", "merged_bytes", "checkpoint_bytes")
    written = sum(stats[kind] for kind in kinds) / given
    detail = ", ".join(f"{kind.removesuffix('_bytes')} {stats[kind] / given:.2f}" for kind in kinds)
    fill = stats["segment_fill_bytes"] / given
    note = f"{detail}; unsealed before the checkpoint: {unsealed / MIB:.0f} MiB"
    return [
        Line("bytes written per byte given", written, "×", "≤ 3 + merges", None, note),
        Line("… zero-filling of segments beside it", fill, "×", note="off the write path"),
    ]


def memory_lines(when: str, given: int) -> list[Line]:
    """Read this process's memory: anonymous, and mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous, mapped = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    note = f"{when}; interpreter and rows of this process included"
    return [
        Line("anonymous memory", anonymous / MIB, "MiB", note=note),
        Line("mapped files, resident", mapped / MIB, "MiB", note=f"{given / MIB:.0f} MiB of vectors given"),
    ]


def lance(rows: np.ndarray, directory: Path) -> list[Line]:
    figure = f"LanceDB, batches of {BATCH_ROWS} (does not sync)"
    try:
        import lancedb
        import pyarrow as pa
    except ImportError as error:
        return [Line(figure, None, "rows/s", note=f"NOT RUN: {error}")]
    dim = rows.shape[1]
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])
    table = lancedb.connect(str(directory / "lance")).create_table("rows", schema=schema)

    def add(first: int) -> None:
        batch = rows[first : first + BATCH_ROWS]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(batch.reshape(-1)), dim)
        ids = pa.array(np.arange(first, first + len(batch)))
        table.add(pa.table([ids, vectors], schema=schema))

    took = seconds(lambda: [add(first) for first in range(0, len(rows), BATCH_ROWS)])
    return [Line(figure, len(rows) / took, "rows/s", note=f"lancedb {lancedb.__version__}")]


def singles(rows: np.ndarray, directory: Path, blocks: int) -> list[Line]:
    """Alternate blocks of single observes with blocks of sector overwrites and fdatasync."""
    disk = Plain(directory / "sectors", zeros=(blocks + 1) * BLOCK_SINGLES * SECTOR)
    ratios, rates, disk_rates = [], [], []
    sector = bytes(range(256)) * 2
    with engram.open(directory / "singles", durability="sync") as engine:
        space = engine.space("rows", dim=rows.shape[1])
        for turn in range(blocks + 1):
            first = (turn * BLOCK_SINGLES) % (len(rows) - BLOCK_SINGLES)
            block = rows[first : first + BLOCK_SINGLES]
            ours = seconds(lambda block=block: [space.observe(vector=row) for row in block])
            plain = seconds(lambda: [disk.write(sector) for _ in range(BLOCK_SINGLES)])
            if turn:
                ratios.append(plain / ours)
                rates.append(BLOCK_SINGLES / ours)
                disk_rates.append(BLOCK_SINGLES / plain)
    disk.close()
    ratio = median(ratios)
    spread = spread_of("min {:.2f}, max {:.2f}", ratios)
    return [
        Line("sync, single observes: × fdatasync rate", ratio, "×", "≥ 0.5", ratio >= 0.5, spread),
        Line("… rate", median(rates), "rows/s"),
        Line("… 512-byte overwrites + fdatasync", median(disk_rates), "/s"),
    ]


# ---- recall and restart ----------------------------------------------------------------------------------------------


def recall(sample: Sample, rows: np.ndarray) -> list[Line]:
    """Compare exact recall with NumPy in float64, ties apart, and time it."""
    cues = sample.query_vectors[:RECALL_CUES]
    with engram.open() as engine:
        space = engine.space("rows", dim=rows.shape[1])
        for batch in batches(rows):
            space.observe_batch(vectors=batch)
        ids, scores = space.recall_batch(cues, k=K)
        took = min(seconds(lambda: space.recall_batch(cues, k=K)) for _ in range(3))
        single = median(seconds(lambda cue=cue: space.recall(vector=cue, k=K)) for cue in cues[:50])
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    equal = 0
    for cue, row_ids, row_scores in zip(cues.astype(np.float64), ids, scores, strict=True):
        truth = unit @ (cue / np.linalg.norm(cue))
        best = np.sort(truth)[-K:][::-1]
        same = np.abs(truth[row_ids.astype(np.int64) - 1] - best) <= TIE
        equal += bool(same.all() and np.all(np.abs(row_scores - best) <= 1e-5) and len(set(row_ids.tolist())) == K)
    share = equal / len(cues)
    return [
        Line("exact recall equal to NumPy (k = 10)", share, "of cues", "1.0", share == 1.0, f"{len(cues)} cues"),
        Line("recall_batch", len(cues) / took, "cues/s", note=f"over {len(rows):,} rows"),
        Line("single recall", single * 1e3, "ms"),
    ]


def restart(rows: np.ndarray, directory: Path) -> list[Line]:
    """Fill a directory in a process that ends by SIGKILL, or by close; open it in a fresh one."""
    lines = []
    np.save(directory / "rows.npy", rows)
    for end in ("kill -9", "clean close"):
        data = directory / f"restart-{end[:4]}"
        child(["--fill", str(directory / "rows.npy"), "--end", end, str(data)])
        found = json.loads(child(["--reopen", str(data)]).splitlines()[-1])
        assert found["memories"] == len(rows), found
        took = found["seconds"]
        note = f"open {found['open_seconds']:.3f} s, {found['groups_replayed']} groups replayed"
        lines += [
            Line(f"reopen to first recall, after {end}", took, "s", "< 0.5", took < 0.5, note),
            Line("… anonymous memory after it", found["anonymous"] / MIB, "MiB", note=f"before: {found['before']} MiB"),
            Line("… mapped files, resident", found["mapped"] / MIB, "MiB"),
        ]
    return lines


def child(arguments: list[str]) -> str:
    ran = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if ran.returncode not in (0, -9):
        raise SystemExit(ran.stderr)
    return ran.stdout


def fill(rows_path: Path, end: str, directory: Path) -> None:
    rows = np.load(rows_path, mmap_mode="r")
    engine = engram.open(directory, durability="sync")
    space = engine.space("rows", dim=rows.shape[1])
    for batch in batches(rows):
        space.observe_batch(vectors=np.ascontiguousarray(batch))
    if end == "kill -9":
        os.kill(os.getpid(), 9)
    engine.close()


def resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def reopen(directory: Path) -> None:
    before = resident("RssAnon")
    begin = time.perf_counter()
    engine = engram.open(directory)
    opened = time.perf_counter()
    space = engine.space("rows")
    space.recall(vector=np.ones(space.dim, np.float32), k=K)
    recalled = time.perf_counter()
    found = {
        "seconds": recalled - begin,
        "open_seconds": opened - begin,
        "memories": len(space),
        "groups_replayed": engine.report["groups_replayed"],
        "before": before // MIB,
        "anonymous": resident("RssAnon"),
        "mapped": resident("RssFile"),
    }
    engine.close()
    print(json.dumps(found))


# ---- the table -------------------------------------------------------------------------------------------------------


def machine() -> str:
    known = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    model = next((value.strip() for name, _, value in known if name.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def measure(directory: Path, count: int, blocks: int) -> tuple[str, list[Line]]:
    full = load_full()
    sample = load_sample() if full is None else full
    rows = rows_of(sample, count)
    source = "real rows" if len(sample.vectors) >= count else "bundled real rows, mixed to more"
    lines = ingest_ratios(rows, directory, blocks)
    lines += stream(rows, directory, "sync")
    lines += stream(rows, directory, "os")
    lines += lance(rows, directory)
    lines += singles(rows, directory, blocks)
    lines += recall(sample, rows)
    lines += restart(rows, directory)
    return f"{len(rows):,} × {rows.shape[1]} {source}; {machine()}", lines


def show(title: str, lines: list[Line]) -> None:
    table = Table(title=title)
    for column in ("figure", "value", "goal", "", "note"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for line in lines:
        number = "–" if line.value is None else f"{line.value:,.0f}" if line.value >= 1000 else f"{line.value:.3f}"
        mark = {None: "", True: "met", False: "MISSED"}[line.met]
        table.add_row(line.figure, f"{number} {line.unit}", line.goal, mark, line.note)
    Console(width=None if sys.stdout.isatty() else 170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", type=Path, help="where to write (default: a temporary directory)")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--blocks", type=int, default=ALTERNATIONS, help="alternations for each ratio")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--end", default="", help=argparse.SUPPRESS)
    parser.add_argument("--reopen", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("target", nargs="?", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill:
        fill(arguments.fill, arguments.end, arguments.target)
        return
    if arguments.reopen:
        reopen(arguments.reopen)
        return
    directory = Path(tempfile.mkdtemp(prefix="engram-compare-", dir=arguments.directory))
    try:
        title, lines = measure(directory, arguments.rows, arguments.blocks)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if arguments.json:
        print(json.dumps({"title": title, "figures": [asdict(line) for line in lines]}, indent=2))
    else:
        show(title, lines)


if __name__ == "__main__":
    main()
