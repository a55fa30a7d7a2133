"""Kill, or fail, a fixed workload at exactly its Nth system call of a kind, by strace.

strace counts calls for each thread apart: N is the Nth call of the first thread that comes so far. The report of the
workload travels by `sendto`, so that no injected call touches it.
"""

import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from chaos.support.killer import Cycle, Tally
from chaos.support.oracle import Oracle
from chaos.support.workload import Plan

WRITES = "pwrite64,pwritev,pwritev2"
SYNCS = "fdatasync,fsync"
RENAMES = "rename,renameat,renameat2"
UNLINKS = "unlink,unlinkat"
KINDS = (WRITES, SYNCS, RENAMES, UNLINKS)
ACTIONS = ("signal=SIGKILL", "error=EIO")
ADDRESS = re.compile(r"0x[0-9a-f]+")
STRACE = ("strace", "-f", "-qq")  # with --seccomp-bpf strace 6.1 injects no signal after the first call
KIB = 1 << 10
LIMITS = {
    "partitions": 1,
    "segment_bytes_first": 32 * KIB,
    "segment_bytes_max": 64 * KIB,
    "seal_space_bytes": 32 * KIB,
    "seal_process_bytes": 64 * KIB,
    "seal_own_file_bytes_min": 4 * KIB,
    "checkpoint_log_bytes": 64 * KIB,
    "merge_files": 2,
    "idle_close_ms": 5,
}


@dataclass(frozen=True)
class Point:
    calls: str
    action: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.calls.split(',')[0]}-{self.action.split('=')[1]}-{self.number}"


def strace_works() -> bool:
    """Tell whether strace is here and may trace."""
    if shutil.which("strace") is None:
        return False
    return (
        subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], check=False, capture_output=True).returncode == 0
    )


def plan(directory: Path, rows: int = 700, seed: int = 20) -> Plan:
    """Make the fixed workload: one thread, a seed, tiny limits: every kind of file is made, merged and freed."""
    return Plan(
        str(directory), seed=seed, limits=LIMITS, rows=rows, batch_rows=60, checkpoint_share=0.12, space_share=0.12
    )


def count_calls(directory: Path) -> Counter[str]:
    """Run the workload once, and count the calls of the thread that makes most of a kind."""
    trace = directory / "trace"
    cycle = Cycle(Oracle(), plan(directory / "data"), "none", random.Random(0), {})
    kinds = ",".join(KINDS)
    cycle.run((*STRACE, "-e", f"trace={kinds}", "-e", "signal=none", "-o", str(trace)))
    assert cycle.errors + cycle.failures == [], cycle.errors + cycle.failures
    calls: Counter[tuple[str, str]] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        thread, _, call = line.partition(" ")
        name = call.strip().partition("(")[0]
        calls.update((kind, thread) for kind in KINDS if name in kind.split(","))
    most: Counter[str] = Counter()
    for (kind, _), number in calls.items():
        most[kind] = max(most[kind], number)
    return most


def points(calls: Counter[str], how_many: int, seed: int) -> list[Point]:
    """Spread points over kinds and actions: the first calls, the last ones, and some between."""
    rng = random.Random(seed)
    each = -(-how_many // (len(KINDS) * len(ACTIONS)))
    chosen = []
    for kind in KINDS:
        for action in ACTIONS:
            there = range(1, calls[kind] + 1)
            numbers = list(there) if len(there) <= each else sorted({1, *rng.sample(there, each - 1)})
            chosen += [Point(kind, action, number) for number in numbers]
    return chosen


def injected(point: Point, directory: Path) -> Tally:
    """Run the workload with the fault, then start twice without it, and ask the oracle."""
    tally = Tally()
    oracle = Oracle()
    oracle.os_is_weak = "error" in point.action  # D4, D11: what a poisoned log had only written may be gone
    rng = random.Random(0)
    inject = f"inject={point.calls}:{point.action}:when={point.number}"
    prefix = (*STRACE, "-e", f"trace={point.calls}", "-e", inject, "-o", "/dev/null")
    first = Cycle(oracle, plan(directory), "none", rng, {})
    first.run(prefix)
    tally.counts["kills"] += first.killed
    tally.counts["told of an error"] += bool(first.failures)
    tally.landings.update(first.landings() if first.killed else [])
    # The call in flight when an error struck is told of as failed: its outcome is open until the next start.
    problems = list(first.errors)
    told = list(first.told)
    for rows in (100, 0):
        # Another seed: a vector without a text is told from another by its numbers only.
        later = Cycle(oracle, plan(directory, rows, seed=21), "none", rng, {})
        later.plan.verify = rows == 0
        later.run()
        problems += [*later.errors, *later.failures]
        told += ["started again", *later.told]
        tally.counts += later.counts
    tally.counts["points"] += 1
    problems += oracle.complaints
    if problems:
        problems += ["what the processes told:", *told]
    tally.complaints += [f"{point.name}: {ADDRESS.sub('…', what)}" for what in problems]
    return tally


if __name__ == "__main__":
    base = Path(sys.argv[1])
    total = Tally()
    for at in points(count_calls(base), int(sys.argv[2]), seed=1):
        total.add(injected(at, base / at.name))
    print(*total.lines(), sep="\n")
