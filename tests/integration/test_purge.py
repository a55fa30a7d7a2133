"""Purging: the bytes are nowhere in the directory (K3)."""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import engram
from property.engine_child import EngineChild

pytestmark = pytest.mark.usefixtures("both_graphs")

LIMITS: dict[str, int] = {
    "partitions": 1,
    "segment_bytes_first": 65_536,
    "segment_bytes_max": 65_536,
    "seal_space_bytes": 32_768,
    "seal_own_file_bytes_min": 8_192,
    "checkpoint_log_bytes": 131_072,
    "merge_files": 3,
}
SECRET = "the rose garden at dawn"


def holding(directory: Path, needle: str = SECRET) -> list[str]:
    """Files that hold the bytes; `quarantine/` is not looked into."""
    found = []
    for path in directory.rglob("*"):
        if path.is_file() and "quarantine" not in path.parts:
            with suppress(FileNotFoundError):  # the engine runs: a merge may just have ended
                if needle.encode() in path.read_bytes():
                    found.append(str(path.relative_to(directory)))
    return sorted(found)


def fill(space: engram.Space, tag: str, count: int = 400) -> None:
    for first in range(0, count, 50):
        space.observe_batch(texts=[f"{tag} {first + n} " + "." * 200 for n in range(50)])


@pytest.mark.parametrize("where", ["log", "sealed", "merged", "shared"])
def test_the_bytes_are_nowhere(tmp_path: Path, where: str) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space, other = engine.space("s", dim=2), engine.space("t", dim=2)
        if where != "shared":
            fill(space, "before")
        secrets = space.observe_batch(
            texts=[f"{SECRET} {n}" for n in range(3)], metadata=[{"said": SECRET}] * 3, keys=[SECRET + "!", None, None]
        )
        other.observe("other", key="kept")
        if where != "log":
            engine.checkpoint()
        if where == "merged":
            for n in range(4):
                fill(space, f"later {n}")
                engine.checkpoint()
        assert holding(tmp_path / "d")
        expected = [memory.text for memory in space.list() if SECRET not in str(memory.text)]
        assert space.forget(secrets.memory_ids.tolist(), purge=True) == 3
        assert holding(tmp_path / "d") == []
        assert [memory.text for memory in space.list()] == expected
        then = [memory.text for memory in space.list(as_of=secrets.generation)]
        assert then == [text for text in expected if str(text).startswith("before")]
        assert space.get(key=SECRET + "!") is None
        assert space.history(SECRET + "!") == []
        fill(space, "after")
        assert len(other) == 1
    assert holding(tmp_path / "d") == []
    verdict = engram.verify(tmp_path / "d")
    assert (verdict["damage"], verdict["memories"]) == ([], len(expected) + 401)
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("s")
        assert len(space) == len(expected) + 400
        assert space.get(int(secrets.memory_ids[0])) is None
        assert space.observe("x", key=SECRET + "?").memory_id == space.stats()["generation"]


@pytest.mark.parametrize("how", ["key", "ids", "where"])
@pytest.mark.parametrize("when", ["at once", "after a checkpoint", "after a start"])
def test_what_had_died_before_goes_too(tmp_path: Path, how: str, when: str) -> None:
    """Superseded versions, and what was forgotten without a purge: nobody could erase them for a week."""
    path = tmp_path / "d"
    with engram.open(path, limits=LIMITS) as engine:
        space = engine.space("s", dim=2)
        fill(space, "before", 50)
        old = space.observe(SECRET + " 1", key="k", metadata={"of": "ada"})
        gone = space.observe(SECRET + " 2", key="gone", metadata={"of": "ada"})
        kept = space.observe("kept", key="k", metadata={"of": "bob"})
        assert space.forget(gone.memory_id) == 1
        if when == "after a checkpoint":
            engine.checkpoint()
        if when != "after a start":
            erased(space, path, how, [old.memory_id, gone.memory_id], kept.memory_id)
    if when == "after a start":
        with engram.open(path, limits=LIMITS) as engine:
            erased(engine.space("s"), path, how, [old.memory_id, gone.memory_id], kept.memory_id)
    assert engram.verify(path)["damage"] == []


def erased(space: engram.Space, path: Path, how: str, ids: list[int], kept: int) -> None:
    assert holding(path)
    assert [memory.text for memory in space.history("k")] == [SECRET + " 1", "kept"]
    if how == "key":
        assert space.forget(key="gone", purge=True) == 0, "it was forgotten before"
        assert space.history("gone") == []
        assert space.forget(key="k", purge=True) == 1
        assert space.history("k") == []
    else:
        wanted: dict[str, Any] = {"where": {"of": "ada"}} if how == "where" else {"memory_id": ids}
        assert space.forget(**wanted, purge=True) == 0
        assert [memory.text for memory in space.history("k")] == ["kept"]
        assert space.get(key="k") is not None
    assert holding(path) == []
    for moment in range(50, kept):
        assert all(str(memory.text).startswith("before") for memory in space.list(as_of=moment))
    generation = space.stats()["generation"]
    assert space.forget(ids, purge=True) == 0
    assert space.stats()["generation"] == generation, "nothing of them was left to name"


def test_a_snapshot_is_waited_for(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("s", dim=2)
        fill(space, "before", 100)
        space.observe(SECRET, key="k")
        snapshot = space.snapshot()
        done: list[int] = []
        purging = threading.Thread(target=lambda: done.append(space.forget(key="k", purge=True)))
        purging.start()
        time.sleep(0.5)
        found = snapshot.get(key="k")
        assert found is not None
        assert (found.text, done) == (SECRET, [])
        assert space.get(key="k") is None, "forgotten at once, whatever the bytes"
        assert holding(tmp_path / "d")
        snapshot.release()
        purging.join(timeout=60)
        assert done == [1]
        assert holding(tmp_path / "d") == []


def test_a_purge_that_a_crash_cut_short_is_finished(tmp_path: Path) -> None:
    for pause_ms in (0, 5, 20, 60):
        path = tmp_path / f"d{pause_ms}"
        child = EngineChild()
        child.call("open", str(path), LIMITS)
        child.call("make", "s", dim=2)
        child.call("observe_batch", "s", texts=[f"{n} " + "." * 200 for n in range(300)])
        child.call("observe", "s", text=SECRET)
        child.call("checkpoint")
        child.send("forget", "s", 301, purge=True)
        time.sleep(pause_ms / 1e3)
        child.kill()
        with engram.open(path, limits=LIMITS) as engine:
            space = engine.space("s")
            space.forget(301, purge=True)
            assert space.get(301) is None
            assert len(space) == 300
            assert holding(path) == []


def test_sessions_take_duplicates_of_what_was_purged(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("s", dim=2)
        with space.session() as session:
            session.observe(SECRET)
            assert space.forget(1, purge=True) == 1
            # Its content is gone: it cannot be compared.
            again: Any = session.observe("something else", sequence=1)
            assert (again.duplicate, again.memory_id) == (True, 1)
            assert len(space) == 0


def test_a_purged_key_is_not_kept_in_memory(tmp_path: Path) -> None:
    """K1: a key whose versions are gone is unknown at once, not only after a restart; others keep theirs."""
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("s", dim=2)
        space.observe_batch(texts=["old", "kept", "other"], keys=["a", "b", "c"])
        new = space.observe("new", key="a")
        engine.checkpoint()
        assert space.forget(new.memory_id, purge=True) == 1
        assert space.forget(key="c", purge=True) == 1
        assert [memory.text for memory in space.history("a")] == ["old"]
        assert space.history("c") == []
        assert (space.stats()["keys"], space.get(key="c")) == (2, None)
        assert space.observe("again", key="c").memory_id == 7
        assert [memory.text for memory in space.history("c")] == ["again"]
