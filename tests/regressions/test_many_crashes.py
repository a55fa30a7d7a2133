"""A process that crashes again and again does not fill the disk with segments that hold next to nothing."""

import time
from pathlib import Path

from property.engine_child import EngineChild

LIMITS = {
    "partitions": 1,
    "segment_bytes_first": 65_536,
    "segment_bytes_max": 65_536,
    "checkpoint_log_bytes": 262_144,
}


def test_segments_of_crashed_runs_are_freed(tmp_path: Path) -> None:
    for run in range(60):
        child = EngineChild()
        child.call("open", str(tmp_path / "d"), LIMITS)
        if run == 0:
            child.call("make", "s", dim=2)
        child.call("observe", "s", text=f"{run}")
        until = time.monotonic() + 10
        # Eight, and four for each of the two checkpoints.
        while len(segments := list((tmp_path / "d").glob("partition-*/log/[0-9]*.log"))) > 18:
            assert time.monotonic() < until, f"{len(segments)} segments after {run} crashes"
            time.sleep(0.02)
        assert [row[1] for row in child.call("rows", "s")] == [f"{n}" for n in range(run + 1)]
        child.kill()
