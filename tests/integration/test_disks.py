"""Disks that fail: full (D10), read-only, and a failed sync (D4)."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import engram

pytestmark = pytest.mark.usefixtures("both_graphs")

LIMITS = {"partitions": 1, "segment_bytes_first": 1 << 20, "segment_bytes_max": 1 << 20}


def mounted(path: Path, *options: str) -> None:
    ran = subprocess.run(["mount", *options, str(path)], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        pytest.skip(
            f"cannot mount a tmpfs, so disks that are full or read-only are NOT tested here: {ran.stderr.strip()}"
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("not root: disks that are full or read-only are NOT tested here")
    path = tmp_path / "disk"
    path.mkdir()
    mounted(path, "-t", "tmpfs", "-o", "size=24m", "tmpfs")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=False)


def texts(space: engram.Space) -> dict[int, str | None]:
    return {memory.memory_id: memory.text for memory in space.list()}


def test_a_full_disk_refuses_loses_nothing_and_resumes(disk: Path) -> None:
    """D10: DiskFull, no damage, reads go on, intake resumes by itself when space returns."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (10 << 20))
    acknowledged: dict[int, str | None] = {}
    with engram.open(disk / "d", limits=LIMITS) as engine:
        space = engine.space("s", dim=2)

        def fill() -> None:
            for n in range(1_000):
                text = f"{n:06}" * 10_000
                acknowledged[space.observe(text, timeout=5).memory_id] = text

        with pytest.raises(engram.DiskFull) as caught:
            fill()
        assert "disk full" in str(caught.value)
        assert caught.value.errno == 28
        assert len(acknowledged) > 10
        assert texts(space) == acknowledged
        with pytest.raises((engram.DiskFull, engram.Overloaded)):
            space.observe("x" * 60_000, timeout=0.2)
        assert len(space) == len(acknowledged)
        ballast.unlink()
        give_up = time.monotonic() + 20
        while True:
            try:
                acknowledged[space.observe("room again" * 6_000, timeout=1).memory_id] = "room again" * 6_000
                break
            except (engram.DiskFull, engram.Overloaded):
                assert time.monotonic() < give_up, "intake did not resume"
        assert texts(space) == acknowledged
    assert engram.verify(disk / "d")["damage"] == []
    with engram.open(disk / "d", limits=LIMITS) as engine:
        assert texts(engine.space("s")) == acknowledged
        assert engine.report["damage"] == []


def fill(space: engram.Space) -> None:
    for _ in range(100):  # a little room may be left
        space.observe("x" * 60_000, timeout=0.2)


def test_a_stream_waits_for_a_full_disk(disk: Path) -> None:
    """D10 over the wire: a call is told, a stream waits, and both go on by themselves when space returns."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (10 << 20))
    given = [f"{n:06}" * 10_000 for n in range(400)]
    with engram.open(disk / "d", limits=LIMITS) as engine, engram.serve(engine, grpc="127.0.0.1:0") as server:
        with engram.connect(server.url) as client:
            space, other = client.space("s", dim=2), client.space("other", dim=2)
            with space.stream(buffer_bytes=64 << 20) as stream:
                for text in given:
                    stream.observe(text)
                with pytest.raises(engram.Timeout):
                    stream.flush(4)
                with pytest.raises((engram.DiskFull, engram.Overloaded)):
                    fill(other)
                assert 10 < stream.committed < len(given)
                assert stream.refusals > 0
                assert len(space) == stream.committed
                os.truncate(ballast, 0)
                subprocess.run(["mount", "-o", "remount,size=96m", str(disk)], check=True)
                stream.flush(40)
                assert (stream.committed, stream.reconnects, stream.rejected) == (len(given), 0, [])
        assert [memory.text for memory in engine.space("s").list()] == given
    assert engram.verify(disk / "d")["damage"] == []


def keep_one(path: Path) -> None:
    # In a function: a file descriptor of a log lives as long as the engine's object, and keeps the disk writable.
    with engram.open(path, limits=LIMITS) as engine:
        engine.space("s", dim=2).observe("kept")


def test_a_directory_that_cannot_be_written(disk: Path) -> None:
    keep_one(disk / "d")
    mounted(disk, "-o", "remount,ro")
    for path in (disk / "d", disk / "new"):
        with pytest.raises(engram.PermissionDenied) as caught:
            engram.open(path)
        assert "disk" in caught.value.path
    mounted(disk, "-o", "remount,rw")
    with engram.open(disk / "d", limits=LIMITS) as engine:
        assert texts(engine.space("s")) == {1: "kept"}


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(engram.StorageError):
        engram.open(tmp_path / "file")
    with pytest.raises(engram.NotFound):
        engram.verify(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(engram.NotFound):
        engram.inspect(tmp_path / "empty")


@pytest.mark.parametrize("rule", ["sync@GroupSync:partition-000=EIO", "write:partition-000/log=EIO"])
def test_a_failed_log_poisons_its_partition_alone(tmp_path: Path, rule: str) -> None:
    """D4: final for that file; reads go on, other partitions are unharmed, opening again recovers."""
    engine = engram.open(tmp_path / "d", limits={"partitions": 2})
    first, second = engine.space("first", dim=2), engine.space("second", dim=2)
    kept = {first.observe(str(n), vector=[1, n]).memory_id: str(n) for n in range(20)}
    engine._core.inject(rule)
    with pytest.raises(engram.Poisoned) as caught:
        first.observe("lost?", vector=[1, 1])
    assert "partition-000" in caught.value.cause
    assert "reads go on" in str(caught.value)
    engine._core.inject("")
    with pytest.raises(engram.Poisoned):
        first.observe("still refused")
    assert {memory.memory_id: memory.text for memory in first.list()} == kept
    assert len(first.recall(vector=[1, 0], k=30)) == 20
    assert second.observe("well", vector=[1, 0]).memory_id == 1
    assert engine.stats()["partitions"][0]["poisoned"]
    with suppress(engram.EngramError):
        engine.close()
    with engram.open(tmp_path / "d") as engine:
        stored = texts(engine.space("first"))
        assert stored.items() >= kept.items()
        assert set(stored.values()) - set(kept.values()) <= {"lost?"}
        assert texts(engine.space("second")) == {1: "well"}
        assert engine.space("first").observe("goes on").memory_id > max(stored)
        assert engine.report["damage"] == []


def test_a_failed_seal_harms_nothing(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("s", dim=2)
        space.observe_batch(texts=[str(n) for n in range(100)])
        for rule in ("sync@RowsSync=EIO", "create:rows=ENOSPC", "sync@CheckpointSync=EIO", "rename@RowsRename=EIO"):
            engine._core.inject(rule)
            with pytest.raises(engram.StorageError):
                engine.checkpoint()
            engine._core.inject("")
            assert space.observe("more").memory_id > 100
        engine.checkpoint()
        assert len(space) == 104
    assert engram.verify(tmp_path / "d")["damage"] == []
