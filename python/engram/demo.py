"""A demonstration with a killed process in it: ``python -m engram.demo``.

A child process streams real texts with their embeddings into a data directory, recalls from them at the same time, and
tells of each acknowledgement through a pipe. It is killed with SIGKILL while a batch is under way. The directory is
opened again and every acknowledged memory compared, bit for bit, with what was sent; then the stream goes on from what
was stored, and some recalls are shown and compared with the exact answers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import engram
from engram._sample import Sample, load_full, load_sample

SPACE = "wordnet"
K = 10
BATCH_ROWS = 256
BATCH_ROWS_OF_SAMPLE = 64
KILLS_MAX = 5
SHOWN_QUERIES = 3
SHOWN_HITS = 3
TIE = 1e-6

Event = dict[str, Any]


def load() -> Sample:
    """Load the full set where the machine has it, else the sample that ships with engram."""
    full = load_full()
    return load_sample() if full is None else full


# ---- the child: writes, recalls, tells -------------------------------------------------------------------------------


def tell(event: Event) -> None:
    """Write one event to the pipe, whole and at once."""
    line = json.dumps(event).encode() + b"\n"
    while line:
        line = line[os.write(sys.stdout.fileno(), line) :]


class Recaller(threading.Thread):
    """Recalls without pause in a second thread, and keeps the latencies.

    Parameters
    ----------
    space : Space
        Where to recall from.
    cues : ndarray
        The cues, taken in turn.
    """

    def __init__(self, space: engram.Space, cues: np.ndarray) -> None:
        super().__init__(daemon=True)
        self._space = space
        self._cues = cues
        self._stop_asked = threading.Event()
        self._latencies_us: list[int] = []

    def run(self) -> None:
        """Recall until told to stop."""
        turn = 0
        while not self._stop_asked.is_set():
            begin = time.perf_counter_ns()
            self._space.recall(vector=self._cues[turn % len(self._cues)], k=K)
            self._latencies_us.append((time.perf_counter_ns() - begin) // 1_000)
            turn += 1

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._stop_asked.set()
        if self.is_alive():
            self.join()

    def take(self) -> list[int]:
        """Return the latencies since the last call, in microseconds."""
        taken, self._latencies_us = self._latencies_us, []
        return taken


def write(directory: Path, batch_rows: int) -> None:
    """Stream the rows that are not stored yet, telling of each batch before it is sent and when it is acknowledged."""
    sample = load()
    with engram.open(directory) as engine:
        space = engine.space(SPACE, dim=sample.vectors.shape[1])
        recaller = Recaller(space, sample.query_vectors)
        for first in range(len(space), len(sample.texts), batch_rows):
            rows = slice(first, first + batch_rows)
            tell({"event": "sending", "first": first, "rows": len(sample.texts[rows])})
            begin = time.perf_counter()
            ack = space.observe_batch(texts=sample.texts[rows], vectors=sample.vectors[rows])
            seconds = time.perf_counter() - begin
            if not recaller.is_alive():
                recaller.start()  # now that there is something to recall
            ids = [int(ack.memory_ids[0]), int(ack.memory_ids[-1])]
            tell({"event": "acknowledged", "ids": ids, "seconds": seconds, "recalls_us": recaller.take()})
        recaller.stop()
        tell({"event": "complete", "recalls_us": recaller.take()})


# ---- the parent: kills, reopens, compares ----------------------------------------------------------------------------


@dataclass
class Stream:
    """What the parent learned from its writers."""

    acknowledged: int = 0
    sent: int = 0
    seconds: float = 0.0
    recalls_us: list[int] = field(default_factory=list)
    complete: bool = False

    def learn(self, event: Event) -> None:
        """Take one event into account."""
        self.recalls_us += event.get("recalls_us", [])
        if event["event"] == "sending":
            self.sent = event["first"] + event["rows"]
        elif event["event"] == "acknowledged":
            self.acknowledged = event["ids"][1]
            self.seconds += event["seconds"]
        else:
            self.complete = True

    @property
    def in_flight(self) -> int:
        """Rows that were sent and not acknowledged."""
        return max(0, self.sent - self.acknowledged)


def events(pipe: Iterator[bytes]) -> Iterator[Event]:
    """Read events; a last line that a kill cut short was never told."""
    for line in pipe:
        if line.endswith(b"\n"):
            yield json.loads(line)


def run_writer(
    directory: Path, batch_rows: int, stream: Stream, kill_at: int | None, advance: Callable[[int], None]
) -> None:
    """Run a writer process to its end, or kill it when it has just begun to send a batch past row `kill_at`."""
    command = [sys.executable, "-m", "engram.demo", "--write", str(directory), "--batch", str(batch_rows)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            for event in events(child.stdout):
                stream.learn(event)
                if kill_at is not None and event["event"] == "sending" and event["first"] >= kill_at:
                    child.kill()  # SIGKILL; what it said before is still in the pipe, and is read to the end
                    kill_at = None
                advance(stream.acknowledged)
        except BaseException:
            child.kill()
            raise
    if child.returncode > 0:
        raise SystemExit(f"the writer ended with code {child.returncode}")


@dataclass
class Reopened:
    """What a start found after a kill, compared with what was acknowledged."""

    acknowledged: int
    in_flight: int
    stored: int
    missing: int
    different: int
    reopen_seconds: float
    first_recall_seconds: float
    torn_bytes: int
    damage: list[Any]

    @property
    def beyond(self) -> int:
        """Rows that were stored though their acknowledgement had not been read."""
        return self.stored - self.acknowledged

    @property
    def sound(self) -> bool:
        """Nothing acknowledged is missing or different, and of the batch in flight there is all or nothing."""
        return not (self.missing or self.different or self.damage) and self.beyond in (0, self.in_flight)


def compare(space: engram.Space, sample: Sample, expected: int) -> tuple[int, int, int]:
    """Compare each memory with the row of its id: (stored, missing of the first `expected`, different)."""
    seen = np.zeros(len(sample.texts) + 1, dtype=bool)
    stored = different = 0
    for memory in space.list():
        stored += 1
        row = memory.memory_id - 1
        if not 0 <= row < len(sample.texts):
            different += 1
            continue
        vector = memory.vector
        same = vector is not None and vector.tobytes() == sample.vectors[row].tobytes()
        different += not (same and memory.text == sample.texts[row])
        seen[memory.memory_id] = True
    return stored, int(expected - np.count_nonzero(seen[1 : expected + 1])), different


def reopen(directory: Path, sample: Sample, stream: Stream) -> Reopened:
    """Open the directory as a user would after a crash, and look at everything."""
    begin = time.perf_counter()
    with engram.open(directory) as engine:
        space = engine.space(SPACE, dim=sample.vectors.shape[1])
        opened = time.perf_counter()
        space.recall(vector=sample.query_vectors[0], k=K)
        recalled = time.perf_counter()
        report = engine.report
        stored, missing, different = compare(space, sample, stream.acknowledged)
    return Reopened(
        acknowledged=stream.acknowledged,
        in_flight=stream.in_flight,
        stored=stored,
        missing=missing,
        different=different,
        reopen_seconds=opened - begin,
        first_recall_seconds=recalled - begin,
        torn_bytes=report["torn_bytes"],
        damage=report["damage"],
    )


def recall_at_k(space: engram.Space, sample: Sample) -> float:
    """Share of the exact nearest `K` that recall finds; a row as near as the last of them counts as one of them."""
    ids, scores = space.recall_batch(sample.query_vectors, k=K)
    found = 0
    for cue, truth, row_ids, row_scores in zip(sample.query_vectors, sample.truth, ids, scores, strict=True):
        last = sample.vectors[truth[K - 1]].astype(np.float64)
        bound = float(last @ cue / (np.linalg.norm(last) * np.linalg.norm(cue.astype(np.float64)))) - TIE
        exact = set((truth[:K] + 1).tolist())
        found += sum(int(i) in exact or score >= bound for i, score in zip(row_ids, row_scores, strict=True))
    return found / (K * len(sample.query_vectors))


def bytes_on_disk(directory: Path) -> int:
    """Bytes that the directory's files occupy, zero-filled log segments included."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def shown_recalls(space: engram.Space, sample: Sample) -> list[Event]:
    """Take a few recalls that a person can judge."""
    step = max(1, len(sample.query_texts) // SHOWN_QUERIES)
    return [
        {
            "query": sample.query_texts[row],
            "hits": [
                {"score": round(hit.score, 4), "text": hit.text}
                for hit in space.recall(vector=sample.query_vectors[row], k=SHOWN_HITS)
            ],
        }
        for row in range(0, step * SHOWN_QUERIES, step)
    ]


def run(directory: Path, sample: Sample, batch_rows: int, advance: Callable[[int], None]) -> Event:
    """Do all of it and return the figures; `ok` says whether every promise was kept."""
    total = len(sample.texts)
    stream = Stream()
    kills: list[Reopened] = []
    # The batch in flight may have been acknowledged before the signal arrived: then it is tried again further on.
    for attempt in range(KILLS_MAX):
        run_writer(directory, batch_rows, stream, total * (5 + attempt) // 10, advance)
        kills.append(reopen(directory, sample, stream))
        stream.acknowledged = stream.sent = kills[-1].stored
        if kills[-1].in_flight or not kills[-1].sound:
            break
    killed = kills[-1]
    if killed.sound and not stream.complete:
        run_writer(directory, batch_rows, stream, None, advance)
    with engram.open(directory) as engine:
        space = engine.space(SPACE, dim=sample.vectors.shape[1])
        stored, missing, different = compare(space, sample, total)
        found = recall_at_k(space, sample)
        recalls = shown_recalls(space, sample)
    latencies = np.array(stream.recalls_us or [0]) / 1_000
    return {
        "ok": all(kill.sound for kill in kills) and (stored, missing, different) == (total, 0, 0) and found == 1.0,
        "rows": total,
        "dim": int(sample.vectors.shape[1]),
        "batch_rows": batch_rows,
        "kills": [{**vars(kill), "beyond": kill.beyond, "sound": kill.sound} for kill in kills],
        "stored": stored,
        "missing": missing,
        "different": different,
        "recall_at_10": found,
        "acknowledged_per_second": round(sum_acknowledged(stream, kills) / max(stream.seconds, 1e-9)),
        "recalls_while_streaming": len(stream.recalls_us),
        "recall_ms_p50": round(float(np.percentile(latencies, 50)), 3),
        "recall_ms_p99": round(float(np.percentile(latencies, 99)), 3),
        "reopen_seconds": round(killed.reopen_seconds, 4),
        "first_recall_seconds": round(killed.first_recall_seconds, 4),
        "bytes_sent": int(sample.vectors.nbytes + sum(len(text.encode()) for text in sample.texts)),
        "bytes_on_disk": bytes_on_disk(directory),
        "recalls": recalls,
    }


def sum_acknowledged(stream: Stream, kills: list[Reopened]) -> int:
    """Count the rows whose acknowledgement was read, over all writers."""
    return stream.acknowledged - sum(kill.beyond for kill in kills)


# ---- what a person sees ----------------------------------------------------------------------------------------------


def show(console: Console, figures: Event) -> None:
    """Print what was found, and the rates."""
    for number, kill in enumerate(figures["kills"], 1):
        console.print(
            f"[bold]kill {number}[/]: SIGKILL with {kill['in_flight']} rows in flight, "
            f"{kill['acknowledged']:,} acknowledged → reopened in {kill['reopen_seconds'] * 1000:.1f} ms, "
            f"{kill['stored']:,} stored"
        )
        verdict = "[green]nothing acknowledged is missing[/]" if kill["sound"] else "[red]LOST OR CHANGED[/]"
        console.print(
            f"  {verdict}: {kill['missing']} missing, {kill['different']} different "
            f"(ids, texts and vectors compared bit for bit)"
        )
        beyond = f"{kill['beyond']} rows, the whole batch in flight" if kill["beyond"] else "nothing"
        console.print(f"  beyond the last acknowledgement: {beyond}; torn bytes: {kill['torn_bytes']}\n")
    for recall in figures["recalls"]:
        console.print(f"[bold]{recall['query']}[/]", highlight=False)
        for hit in recall["hits"]:
            console.print(f"  {hit['score']:.4f}  {hit['text']}", highlight=False)
    table = Table(title=f"{figures['rows']:,} rows × {figures['dim']}, batches of {figures['batch_rows']}, sync")
    table.add_column("figure")
    table.add_column("value", justify="right")
    mib = 1 << 20
    for name, value in (
        ("acknowledged observations/s", f"{figures['acknowledged_per_second']:,}"),
        ("recalls while streaming", f"{figures['recalls_while_streaming']:,}"),
        ("… p50 / p99", f"{figures['recall_ms_p50']:.2f} / {figures['recall_ms_p99']:.2f} ms"),
        ("reopen after the kill", f"{figures['reopen_seconds'] * 1000:.1f} ms"),
        ("… to the first recall", f"{figures['first_recall_seconds'] * 1000:.1f} ms"),
        ("recall@10 against the exact answers", f"{figures['recall_at_10']:.4f}"),
        ("sent", f"{figures['bytes_sent'] / mib:.1f} MiB"),
        ("on disk, with zero-filled log segments", f"{figures['bytes_on_disk'] / mib:.1f} MiB"),
        ("stored / missing / different", f"{figures['stored']:,} / {figures['missing']} / {figures['different']}"),
    ):
        table.add_row(name, value)
    console.print(table)


def demonstrate(directory: Path, arguments: argparse.Namespace) -> int:
    """Run in `directory` and print; the exit code."""
    sample = load()
    batch_rows = arguments.batch or (BATCH_ROWS if len(sample.texts) > 20_000 else BATCH_ROWS_OF_SAMPLE)
    if arguments.json:
        figures = run(directory, sample, batch_rows, lambda _: None)
        print(json.dumps(figures, indent=2, default=str))
        return 0 if figures["ok"] else 1
    console = Console(soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("acknowledged"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("streaming", total=len(sample.texts))
        figures = run(directory, sample, batch_rows, lambda rows: progress.update(task, completed=rows))
    show(console, figures)
    console.print("[green]all kept[/]" if figures["ok"] else "[red]SOMETHING IS MISSING OR WRONG[/]")
    return 0 if figures["ok"] else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration.

    Parameters
    ----------
    argv : sequence of str, optional
        The command line without the program's name; by default the process's.

    Returns
    -------
    int
        0 if nothing is missing, different or not found; 1 otherwise; 2 for a bad command line.
    """
    parser = argparse.ArgumentParser(prog="python -m engram.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="keep the data in this directory, new or empty (default: temporary)")
    parser.add_argument("--batch", type=int, help="rows a batch (default: 256, or 64 on the bundled sample)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.batch is not None and not 1 <= arguments.batch <= 4_096:
        parser.error("--batch: 1 to 4096")
    if arguments.write is not None:
        write(arguments.write, arguments.batch or BATCH_ROWS)
        return 0
    if arguments.data is not None:
        if arguments.data.exists() and (not arguments.data.is_dir() or any(arguments.data.iterdir())):
            parser.error(f"--data: {arguments.data} is not an empty directory")
        return demonstrate(arguments.data, arguments)
    with tempfile.TemporaryDirectory(prefix="engram-demo-") as directory:
        return demonstrate(Path(directory) / "data", arguments)


if __name__ == "__main__":
    sys.exit(main())
