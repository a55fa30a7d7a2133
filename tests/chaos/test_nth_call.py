"""The Nth write, sync, rename or unlink kills the process, or fails: what was acknowledged is there afterwards.

D2, D4, D9, D12. About 40 points in a normal run, every call of the workload in a campaign.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chaos.support import syscalls
from chaos.support.killer import Tally

CAMPAIGN = os.environ.get("ENGRAM_CAMPAIGN") == "1"
POINTS = 100_000 if CAMPAIGN else 40
SEED = int(os.environ.get("ENGRAM_KILL_SEED") or 1)


@pytest.mark.timeout(0 if CAMPAIGN else 300)  # some 120 processes, a third of them traced
def test_nothing_acknowledged_is_lost_at_any_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not syscalls.strace_works():
        if os.environ.get("CI") == "true":
            pytest.fail("strace is missing or may not trace")
        pytest.skip("NOT RUN: strace is missing or may not trace")
    calls = syscalls.count_calls(tmp_path)
    assert all(calls[kind] > 0 for kind in syscalls.KINDS), calls
    chosen = syscalls.points(calls, POINTS, SEED)
    total = Tally()
    with ThreadPoolExecutor(2) as pool:
        for tally in pool.map(lambda point: syscalls.injected(point, tmp_path / point.name), chosen):
            total.add(tally)
    with capsys.disabled():
        print("", *total.lines(), sep="\n")
    assert not total.complaints, "\n".join(total.complaints)
    assert total.counts["points"] == len(chosen)
    # The workload is the same each time, its threads are not: some of the points are not reached.
    deadly = sum("SIGKILL" in point.action for point in chosen)
    assert total.kills > deadly // 2
    assert total.counts["told of an error"] > (len(chosen) - deadly) // 3
