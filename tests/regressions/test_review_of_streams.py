"""Found by reading and trying hard: sessions, keys, the past and purging where two things happen at once."""

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

import engram
from property.engine_child import EngineChild

pytestmark = pytest.mark.usefixtures("both_graphs")

LIMITS = {"partitions": 1, "seal_own_file_bytes_min": 1_024}


def test_what_died_since_the_checkpoint_does_not_rewrite_files_without_end(tmp_path: Path) -> None:
    child = EngineChild()
    child.call("open", str(tmp_path / "d"), LIMITS)
    child.call("make", "s", dim=1)
    child.call("observe_batch", "s", texts=["x" * 400] * 500)
    child.call("checkpoint")
    child.send("forget", "s", 7, purge=True)
    time.sleep(0.002)
    child.kill()
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        time.sleep(1.0)
        assert engine.stats()["merged_bytes"] < 2_000_000


def test_nobody_attaches_to_a_session_that_is_being_closed(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("s", dim=1)
        session = space.session()
        session.observe("a")
        engine._core.inject("sync@GroupSync=delay200")
        closing = threading.Thread(target=session.close)
        closing.start()
        time.sleep(0.08)
        with pytest.raises(engram.SessionExpired):
            space.session(resume=session.token)
        engine._core.inject("")
        closing.join()


def test_a_purge_ends_while_others_write(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space, busy = engine.space("s", dim=1), engine.space("busy", dim=1)
        space.observe("secret", key="k")
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                busy.observe_batch(texts=["x"] * 20)

        writers = [threading.Thread(target=write) for _ in range(4)]
        for writer in writers:
            writer.start()
        try:
            assert space.forget(key="k", purge=True) == 1
            assert space.stats()["purging"] == 0
        finally:
            stop.set()
            for writer in writers:
                writer.join()


def test_a_purge_of_a_dropped_space_ends(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("s", dim=1)
        space.observe("a")
        pin = space.snapshot()
        outcome: list[type[BaseException]] = []

        def purge() -> None:
            try:
                space.forget(1, purge=True)
            except engram.EngramError as error:
                outcome.append(type(error))

        purging = threading.Thread(target=purge)
        purging.start()
        time.sleep(0.2)
        engine.drop_space("s")
        purging.join(timeout=20)
        assert outcome == [engram.NotFound]
        del pin


def test_a_time_after_a_purged_memory_does_not_bring_back_its_predecessor(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("s", dim=1)
        space.observe("v1", key="k")
        time.sleep(0.003)
        second = space.observe("v2", key="k").memory_id
        time.sleep(0.003)
        between = datetime.now(UTC)
        time.sleep(0.003)
        space.forget(second, purge=True)
        assert space.get(key="k", as_of=between) is None
        assert [*space.list(as_of=between)] == []
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        assert [*engine.space("s").list(as_of=between)] == []


def test_keys_of_rows_that_cannot_be_read_are_not_taken_for_free(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("s", dim=1)
        space.observe("v1" * 1_000, key="k")
        engine.checkpoint()
    (rows,) = (tmp_path / "d").glob("partition-000/rows/*.rows")
    rows.rename(tmp_path / "aside")
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("s")
        for call in (
            lambda: space.get(key="k"),
            lambda: space.history("k"),
            lambda: space.forget(key="k"),
            lambda: space.observe("v2", key="k"),
            lambda: space.session().observe("v2", key="k"),
        ):
            with pytest.raises(engram.Corrupted):
                call()
        assert space.observe("without a key").memory_id == 2


def test_claiming_too_much_does_not_fence_who_speaks(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("s", dim=1)
        session = space.session()
        session.observe("a")
        with pytest.raises(engram.DataLoss):
            space.session(resume=session.token, acknowledged=99)
        assert session.observe("b").memory_id == 2


def test_draining_on_a_failed_log_says_so_at_once(tmp_path: Path) -> None:
    engine = engram.open(tmp_path / "d", limits=LIMITS)
    session = engine.space("s", dim=1).session()
    session.observe("a")
    engine._core.inject("sync@GroupSync=EIO")
    with pytest.raises(engram.Poisoned):
        session.observe("b")
    begun = time.monotonic()
    with pytest.raises(engram.Poisoned):
        session.close(timeout=20)
    assert time.monotonic() - begun < 10
    with pytest.raises(engram.Poisoned):
        engine.close()


def test_the_past_never_lies_inside_a_batch_of_which_rows_were_purged(tmp_path: Path) -> None:
    """G5. Found by the long campaign: with its first row purged nobody knew that a batch had begun."""
    with engram.open(tmp_path / "d", limits={"partitions": 1}) as engine:
        space = engine.space("s", dim=2)
        space.observe("older", key="k")
        space.observe_batch(texts=["newer", "with it", "too", "last"], keys=["k", None, None, None])
        space.observe("after")
        for purged in (2, 5, 3, 4):
            assert space.forget(purged, purge=True) == 1
            for moment in (1, 2, 3, 4):
                assert [memory.text for memory in space.list(as_of=moment)] == ["older"], (purged, moment)
            assert "older" not in [memory.text for memory in space.list(as_of=5)]
        assert [memory.text for memory in space.list(as_of=5)] == []
        assert [memory.text for memory in space.list(as_of=6)] == ["after"]
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("s")
        assert [[memory.text for memory in space.list(as_of=moment)] for moment in (1, 3, 4, 5, 6)] == [
            ["older"],
            ["older"],
            ["older"],
            [],
            ["after"],
        ]


def test_voids_of_a_purged_batch_lie_inside_it(tmp_path: Path) -> None:
    """G5: also a generation that an invalid item took is inside its batch, whatever of the batch is purged."""
    with engram.open(tmp_path / "d", limits={"partitions": 1}) as engine:
        space = engine.space("s", dim=2)
        with space.session() as session:
            session.observe_batch(texts=["one", "two", None, "four", "five"], atomic=False)
        assert [memory.memory_id for memory in space.list()] == [1, 2, 4, 5]
        for purged in (5, 4, 2):
            assert space.forget(purged, purge=True) == 1
            for moment in (1, 2, 3, 4):
                assert [memory.text for memory in space.list(as_of=moment)] == [], (purged, moment)
            assert [memory.text for memory in space.list(as_of=5)][:1] == ["one"]
