"""A process that crashes again and again does not fill the disk with segments that hold next to nothing."""

import time
from pathlib import Path

import engram
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


def test_a_start_removes_what_a_killed_run_had_freed(tmp_path: Path) -> None:
    """Freed by a checkpoint, not removed yet when the run was killed: it stayed until the next checkpoint."""
    path = tmp_path / "d"
    with engram.open(path, limits=LIMITS) as e:
        e.space("s", dim=2).observe(text="a")
    (first,) = path.glob("partition-*/log/[0-9]*.log")
    content = first.read_bytes()
    for _ in range(2):
        with engram.open(path, limits=LIMITS) as e:
            e.space("s").observe(text="b")
            e.checkpoint()
    until = time.monotonic() + 20
    with engram.open(path, limits=LIMITS) as e:
        e.space("s").observe(text="c")
        e.checkpoint()
        while first.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
    first.write_bytes(content)
    assert str(first.relative_to(path)) in engram.verify(path)["leftovers"]
    with engram.open(path, limits=LIMITS) as e:
        while first.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        assert [m.text for m in e.space("s").list()] == ["a", "b", "b", "c"]
