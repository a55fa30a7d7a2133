"""What cannot be applied is gone round, in a process that goes on and over starts that it ends (O7)."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import engram

pytestmark = pytest.mark.usefixtures("both_graphs")

LIMITS = {"partitions": 1}
OPENS = """
import sys
import engram

with engram.open(sys.argv[1], limits={"partitions": 1}) as engine:
    print(engine.report["quarantined"])
"""


def test_a_batch_that_panics_is_kept_and_can_be_read(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space, other = engine.space("notes", dim=2), engine.space("other", dim=2)
        before = space.observe("Ada", vector=[1, 0], key="who")
        engine._core.inject("apply:poison=panic")
        with pytest.raises(engram.Quarantined, match="an injected panic") as raised:
            space.observe_batch(
                texts=["well", "poison"], vectors=[[0, 1], [1, 1]], keys=[None, "who"], metadata=[None, {"n": 1}]
            )
        assert raised.value.code == "QUARANTINED"
        assert "panic" in raised.value.reason
        assert other.observe("Grace", vector=[0, 1]).memory_id == 1
        after = space.observe("Emmy", vector=[0, 1])
        assert (before.memory_id, after.memory_id, len(space)) == (1, 4, 2)
        assert engine.stats()["quarantined"] == 2
        owner = space.get(key="who")
        assert owner is not None
        assert owner.text == "Ada"
        assert space.get(3) is None
        [batch] = space.quarantined()
        assert (batch.memory_ids, batch.sequence) == (range(2, 4), None)
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("notes")
        assert space.quarantined() == [batch]
        assert [memory.text for memory in space.list()] == ["Ada", "Emmy"]
        well, poison = space.read_quarantined(3)
        assert (well.text, poison.key, poison.metadata) == ("well", "who", {"n": 1})
        # Once more, now that it can be applied.
        again = space.observe(poison.text, vector=poison.vector, metadata=poison.metadata, key=poison.key)
        assert again.memory_id == 5
        owner = space.get(key="who")
        assert owner is not None
        assert owner.memory_id == 5
        assert batch.path is not None
        batch.path.unlink()
        with pytest.raises(engram.NotFound):
            space.read_quarantined(3)
        with pytest.raises(engram.NotFound, match="in quarantine"):
            space.read_quarantined(5)


def test_a_session_hears_of_it_and_goes_on(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("notes", dim=2)
        engine._core.inject("apply:poison=panic")
        with space.session() as session:
            session.observe("one", vector=[1, 0])
            with pytest.raises(engram.Quarantined):
                session.observe("poison", vector=[1, 0])
            assert session.observe("three", vector=[1, 0]).memory_id == 3
            assert session.committed == 3
        assert space.quarantined()[0].sequence == 2


@pytest.mark.parametrize("poisons", [1, 2])
def test_what_ends_each_start_is_found_and_gone_round(tmp_path: Path, poisons: int) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("notes", dim=2)
        for text in ("one", "poison", "three", "poison too" if poisons == 2 else "four", "five"):
            space.observe(text, vector=[1, 0])

    def start() -> subprocess.CompletedProcess[str]:
        faults = {**os.environ, "ENGRAM_FAULTS": "apply:poison=abort"}
        command = [sys.executable, "-c", OPENS, str(tmp_path / "d")]
        return subprocess.run(command, env=faults, capture_output=True, text=True, check=False)

    # One that does not know, one that names it, and two that find it named; of the next, three.
    died = [start().returncode for _ in range(4 if poisons == 1 else 7)]
    assert all(code < 0 for code in died), died
    last = start()
    assert (last.returncode, last.stdout) == (0, f"{['notes'] * poisons}\n"), last.stderr
    with engram.open(tmp_path / "d") as engine:
        assert engine.report["quarantined"] == []
        space = engine.space("notes")
        assert [memory.text for memory in space.list() if "poison" in (memory.text or "")] == []
        assert len(space) == 5 - poisons
        assert [memory.text for memory in space.read_quarantined(2)] == ["poison"]


def test_workers_that_die_are_counted_and_nothing_is_lost(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        space = engine.space("notes", dim=2)
        engine._core.inject("work:engram*20=panic")
        for number in range(50):
            space.observe(f"note {number}", vector=[1, number])
        deadline = time.monotonic() + 20
        while engine.stats()["worker_restarts"] < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert engine.stats()["worker_restarts"] == 20
        engine.checkpoint()
        assert len(space) == 50
    with engram.open(tmp_path / "d") as engine:
        assert engine.report["damage"] == []
        assert len(engine.space("notes")) == 50
