"""Found by the model test: a clean end after an unclean one, of an untouched log, renewed what had lost nothing."""

from pathlib import Path

import pytest

import engram
from property.engine_child import EngineChild

pytestmark = pytest.mark.usefixtures("both_graphs")

LIMITS = {"partitions": 1, "idle_close_ms": 5}


def test_a_clean_end_renews_nothing_whoever_ended_badly_before(tmp_path: Path) -> None:
    """D11."""
    child = EngineChild()
    child.call("open", str(tmp_path / "d"), LIMITS)
    child.call("make", "x", dim=1)
    child.call("observe", "x", text="a")
    child.call("wait", 0.3)  # the log is closed, as an idle one is
    child.kill()
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        assert engine.report["renewed"] == []
        engine.space("m", dim=1, durability="memory")
    with engram.open(tmp_path / "d", limits=LIMITS) as engine:
        assert engine.report["renewed"] == []
        assert len(engine.space("x")) == 1
