"""Kills a working process again and again, and asks the oracle after each start.

    PYTHONPATH=tests python -m chaos.support.killer --cycles 1000 --seed 7 --directory DIR

A *life* is one directory with some cycles of start, work and kill. Each cycle aims at a phase (a batch in flight, a
checkpoint, sealing, the start itself, the close); where the kill landed is read from the last events of the dead
process and from the temporary files it left. A life ends with a clean close, a last look and `verify`.
"""

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chaos.support.oracle import Array, Found, Oracle
from chaos.support.workload import Plan

TESTS = Path(__file__).resolve().parents[2]
AIMS = {"flight": 0.26, "checkpoint": 0.2, "seal": 0.2, "start": 0.18, "close": 0.06, "any": 0.06, "none": 0.04}
SHARES_WANTED = {"batch in flight": 0.20, "recovery": 0.05, "checkpoint": 0.05, "sealing": 0.05}
LIFE_CYCLES = 10
HANG_SECONDS = 60.0  # without a word
UNTOLD = ("uid", "digests", "ids")
KIB = 1 << 10
BATCH_BYTES_MAX = 8 << 20


@dataclass
class Tally:
    """What happened, over many lives."""

    landings: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.landings += other.landings
        self.counts += other.counts
        self.complaints += other.complaints

    @property
    def kills(self) -> int:
        return self.counts["kills"]

    def share(self, landing: str) -> float:
        return self.landings[landing] / max(1, self.kills)

    def lines(self) -> Iterator[str]:
        cycles, lives = self.counts["cycles"], self.counts["lives"]
        yield f"{cycles} cycles, {self.kills} kills, {lives} directories; where the kills landed:"
        for landing, count in self.landings.most_common():
            yield f"  {landing:28} {count:6} {self.share(landing):6.1%}"
        for name in sorted(self.counts.keys() - {"cycles", "kills", "lives"}):
            yield f"  {name:34} {self.counts[name]:12,}"
        yield f"  complaints: {len(self.complaints)}"
        for complaint in self.complaints[:50]:
            yield f"    {complaint}"


def draw_limits(rng: random.Random, partitions: int) -> dict[str, int]:
    """Draw limits so small that segments rotate and sealing, merging and checkpoints never rest; or the defaults."""
    if rng.random() < 0.15:
        return {"partitions": partitions}
    first = rng.choice((16, 32, 64)) * KIB
    seal = rng.choice((16, 64, 256)) * KIB
    return {
        "partitions": partitions,
        "segment_bytes_first": first,
        "segment_bytes_max": first * rng.choice((1, 2, 8)),
        "seal_space_bytes": seal,
        "seal_process_bytes": seal * rng.choice((1, 4)),
        "seal_own_file_bytes_min": rng.choice((1, 16, 1024)) * KIB,
        "unsealed_space_bytes_max": BATCH_BYTES_MAX,  # what is larger than this could never be admitted
        "unsealed_process_bytes_max": BATCH_BYTES_MAX * 2,
        "checkpoint_log_bytes": rng.choice((32, 128, 1024)) * KIB,
        "merge_files": rng.choice((2, 3, 8)),
        "group_bytes_max": rng.choice((4, 64, 1024)) * KIB,
        "idle_close_ms": rng.choice((1, 20, 100)),
    }


def end(child: "subprocess.Popen[bytes]", by: signal.Signals) -> None:
    """End the child and what it traces."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, by)


def unhex(text: str) -> Array:
    return np.frombuffer(bytes.fromhex(text), np.uint64)


class Cycle:
    """One process from its start to its end, by kill or by itself."""

    def __init__(self, oracle: Oracle, plan: Plan, aim: str, rng: random.Random, paces: dict[str, float]) -> None:
        self.oracle = oracle
        self.plan = plan
        self.aim = aim
        self.rng = rng
        self.paces = paces  # seconds that a phase took, the last time it was seen whole
        self.phase = "process start"
        self.in_flight: dict[int, str] = {}
        self.found: dict[str, Found] = {}
        self.renewed: list[str] = []
        self.kill_at: float | None = None
        self.countdown = rng.randrange(1, 12)
        self.began: dict[str, float] = {}
        self.failures: list[str] = []  # typed errors the process told of
        self.errors: list[str] = []  # what must never be
        self.told: list[str] = []  # all events, shortened
        self.counts: Counter[str] = Counter()
        self.killed = False
        self.clean = False
        self.look_for_seal = False

    # ---- events ------------------------------------------------------------------------------------------------------

    def hear(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        self.told.append(" ".join([kind, *(f"{n}={str(v)[:60]}" for n, v in event.items() if n not in UNTOLD)]))
        getattr(self, "on_" + kind.replace("-", "_"))(event)

    def aimed(self, phase: str, spread: float | None = None) -> None:
        """A phase we may aim at begins: plan the kill somewhere inside it."""
        self.began[phase] = time.monotonic()
        if self.aim == phase and self.kill_at is None:
            self.countdown -= 1
            if self.countdown <= 0 or phase in ("start", "close"):
                self.kill_at = self.began[phase] + self.rng.uniform(0, spread or 1.1 * self.paces.get(phase, 0.01))

    def ended(self, phase: str) -> None:
        if phase in self.began:
            self.paces[phase] = time.monotonic() - self.began.pop(phase)

    def on_opening(self, _: dict[str, Any]) -> None:
        self.phase = "recovery"
        if self.aim == "any":
            self.kill_at = time.monotonic() + self.rng.uniform(0, 0.6)
        self.aimed("start")

    def on_not_opened(self, event: dict[str, Any]) -> None:
        self.failures.append(f"open: {event['error']}")

    def on_opened(self, event: dict[str, Any]) -> None:
        self.ended("start")
        self.phase = "first look"
        self.renewed = event["renewed"]
        self.counts["torn bytes"] += event["torn_bytes"]
        if event["damage"]:
            self.errors.append(f"damage reported: {event['damage']}")

    def on_found(self, event: dict[str, Any]) -> None:
        ids, digests = unhex(event["ids"]), unhex(event["digests"])
        self.counts["rows compared"] += len(ids)
        self.found[event["name"]] = Found(event["tag"], event["dim"], event["durability"], ids, digests)

    def on_ready(self, _: dict[str, Any]) -> None:
        self.phase = "work"
        self.counts["starts compared"] += 1
        self.oracle.found(self.found, self.renewed)
        if self.aim == "seal":
            self.look_for_seal = True

    def on_observe(self, event: dict[str, Any]) -> None:
        self.in_flight[event["uid"]] = "observe"
        self.oracle.observe_called(event["uid"], event["tag"], unhex(event["digests"]))
        self.aimed("flight", 0.003)

    def on_observed(self, event: dict[str, Any]) -> None:
        del self.in_flight[event["uid"]]
        self.oracle.observe_done(event["uid"], event["tag"], event["first"], event["count"])

    def on_checkpoint(self, event: dict[str, Any]) -> None:
        self.in_flight[event["uid"]] = "checkpoint"
        self.oracle.checkpoint_called(event["uid"])
        self.aimed("checkpoint")

    def on_checkpointed(self, event: dict[str, Any]) -> None:
        self.ended("checkpoint")
        self.counts["checkpoints"] += 1
        del self.in_flight[event["uid"]]
        self.oracle.checkpoint_done(event["uid"])

    def on_create(self, event: dict[str, Any]) -> None:
        self.in_flight[event["uid"]] = "create or drop"
        self.oracle.create_called(event["tag"], event["name"], event["dim"], event["durability"])

    def on_created(self, event: dict[str, Any]) -> None:
        self._end("create or drop")
        self.counts["spaces made"] += 1
        self.oracle.create_done(event["name"])

    def on_drop(self, event: dict[str, Any]) -> None:
        self.in_flight[event["uid"]] = "create or drop"
        self.oracle.drop_called(event["name"])

    def on_dropped(self, event: dict[str, Any]) -> None:
        self._end("create or drop")
        self.counts["spaces dropped"] += 1
        self.oracle.drop_done(event["name"])

    def _end(self, what: str) -> None:
        self.in_flight = {uid: kind for uid, kind in self.in_flight.items() if kind != what}

    def on_refused(self, event: dict[str, Any]) -> None:
        self.in_flight.pop(event["uid"], None)
        self.counts[f"refused: {event['error']}"] += 1
        if event["of"] == "observe":
            self.oracle.observe_refused(event["uid"], event["tag"])

    def on_failed(self, event: dict[str, Any]) -> None:
        self.in_flight.pop(event["uid"], None)
        self.failures.append(f"{event['of']}: {event['error']}")

    def on_wrong(self, event: dict[str, Any]) -> None:
        self.errors.append(event["what"])

    def on_closing(self, event: dict[str, Any]) -> None:
        self.phase = "close"
        self.counts["seals in processes that ended"] += event["seals"]
        if event["error"]:
            self.failures.append(f"maintenance: {event['error']}")
        self.oracle.close_called()
        self.aimed("close")

    def on_closed(self, _: dict[str, Any]) -> None:
        self.ended("close")
        self.phase = "closed"
        self.clean = True
        self.oracle.close_done()

    def on_verified(self, event: dict[str, Any]) -> None:
        self.counts["directories verified"] += 1
        if event["report"].get("damage"):
            self.errors.append(f"verify: {event['report']}")

    # ---- the process -------------------------------------------------------------------------------------------------

    def run(self, prefix: Sequence[str] = ()) -> None:
        """Start the process, listen, kill it when its time has come, and hear what it had said."""
        ours, theirs = socket.socketpair()
        plan = self.plan.to_json()
        command = [*prefix, sys.executable, "-m", "chaos.support.workload", str(theirs.fileno()), plan]
        with (
            ours,
            subprocess.Popen(
                command, cwd=TESTS, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, start_new_session=True
            ) as child,
        ):
            theirs.close()
            try:
                self._listen(ours, child)
            except BaseException:
                end(child, signal.SIGKILL)
                raise
            stderr = child.stderr.read() if child.stderr is not None else b""
        self.counts["cycles"] += 1
        if child.returncode not in (0, -signal.SIGKILL) and not (prefix and child.returncode == 128 + signal.SIGKILL):
            self.errors.append(f"the process ended with {child.returncode}: {stderr.decode(errors='replace')[-800:]}")
        self.killed = self.killed or child.returncode != 0

    def _listen(self, ours: socket.socket, child: "subprocess.Popen[bytes]") -> None:
        rest = b""
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            now = time.monotonic()
            if now > deadline:
                self.errors.append(f"hangs in phase {self.phase}, calls {self.in_flight}")
                end(child, signal.SIGABRT)  # faulthandler prints where
                return
            if self.look_for_seal and self.kill_at is None and self._sealing():
                self.kill_at = now + self.rng.uniform(0, 0.001)
            if self.kill_at is not None and now >= self.kill_at and not self.killed and not self.clean:
                child.kill()
                self.killed = True
            wait = deadline - now if self.kill_at is None or self.killed else max(0.0, self.kill_at - now)
            if self.look_for_seal and self.kill_at is None:
                wait = 0.0003
            if not select.select([ours], [], [], wait)[0]:
                continue
            data = ours.recv(1 << 18)
            if not data:
                return
            deadline = time.monotonic() + HANG_SECONDS
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.hear(json.loads(line))

    def _sealing(self) -> bool:
        return any(Path(self.plan.directory).glob("partition-*/rows/*.tmp"))

    def landings(self) -> list[str]:
        """Name the phases that the kill cut short."""
        directory = Path(self.plan.directory)
        kinds = set(self.in_flight.values())
        where = []
        if "observe" in kinds:
            where.append("batch in flight")
        if "checkpoint" in kinds:
            where.append("checkpoint")
        if "create or drop" in kinds:
            where.append("create or drop")
        if self.phase in ("recovery", "close", "first look", "process start", "closed"):
            where.append(self.phase)
        if self.phase != "recovery":
            if any(directory.glob("partition-*/rows/*.tmp")):
                where.append("sealing")
            if any(directory.glob("partition-*/checkpoint-*.tmp")):
                where.append("checkpoint file being written")
        if any(directory.glob("**/log/*.tmp")):
            where.append("log segment being made")
        return where or ["between calls"]


def live(seed: int, cycles: int, directory: Path) -> Tally:
    """Live one life in `directory`; it is kept if there is a complaint."""
    rng = random.Random(seed)
    oracle = Oracle()
    tally = Tally()
    shutil.rmtree(directory, ignore_errors=True)
    partitions = rng.choice((1, 2, 4))
    paces: dict[str, float] = {}
    for number in range(cycles + 2):
        last = number >= cycles
        plan = Plan(
            directory=str(directory),
            seed=rng.getrandbits(32),
            limits=draw_limits(rng, partitions),
            threads=rng.choice((1, 2, 3)),
            rows=0 if number == cycles + 1 else rng.choice((500, 2_000, 6_000)),
            batch_rows=rng.choice((1, 20, 300, 2_000)),
            checkpoint_share=rng.choice((0.01, 0.1)),
            space_share=rng.choice((0.02, 0.1)),
            verify=last,
        )
        aim = "none" if last else rng.choices(list(AIMS), list(AIMS.values()))[0]
        if aim != "none":
            plan.rows *= 20 if aim != "close" else 1  # it shall not end before it is killed
        if aim == "checkpoint":
            plan.checkpoint_share = 0.15
        cycle = Cycle(oracle, plan, aim, rng, paces)
        cycle.run()
        tally.counts += cycle.counts
        if cycle.killed:
            tally.counts["kills"] += 1
            tally.landings.update(cycle.landings())
        elif aim != "none":
            tally.counts["ended before the kill"] += 1
        new = list(dict.fromkeys([*cycle.errors, *cycle.failures, *oracle.complaints]))
        oracle.complaints.clear()
        tally.complaints += [f"seed {seed}, cycle {number}, {directory}: {what}" for what in new]
        if new:
            tally.complaints.append(f"seed {seed}, cycle {number}, {directory}: the plan was {plan.to_json()}")
        if new:
            break
    tally.counts["lives"] = 1
    tally.counts["acknowledged observations"] += oracle.acknowledged_items
    tally.counts["acknowledged batches"] += oracle.acknowledged_batches
    tally.counts["lost with memory spaces (allowed)"] += oracle.lost_weak_items
    tally.counts["kept though not acknowledged"] += oracle.kept_pending_items
    if not tally.complaints:
        shutil.rmtree(directory)
    return tally


def campaign(cycles: int, seed: int, directory: Path, workers: int = 2, progress: bool = False) -> Tally:
    """Live as many lives as `cycles` cycles need."""
    total = Tally()
    lives = -(-cycles // (LIFE_CYCLES + 2))
    directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(live, seed + n, LIFE_CYCLES, directory / f"life-{seed + n}") for n in range(lives)]
        for number, one in enumerate(running, 1):
            total.add(one.result())
            if progress and (number % 10 == 0 or one.result().complaints):
                print(f"{number} of {lives} lives, {total.kills} kills, {len(total.complaints)} complaints", flush=True)
                print(*one.result().complaints, sep="\n", flush=True)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a working process again and again.")
    parser.add_argument("--cycles", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    tally = campaign(arguments.cycles, arguments.seed, arguments.directory, arguments.workers, progress=True)
    print(*tally.lines(), sep="\n")
    return 1 if tally.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
