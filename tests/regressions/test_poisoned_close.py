"""`close()` of an engine with a poisoned partition waited out its 30 s, though nothing more could be written."""

import time
from contextlib import suppress
from pathlib import Path

import pytest

import engram


@pytest.mark.parametrize("rule", ["sync@GroupSync:partition-000=EIO", "write:partition-000/log=EIO"])
def test_a_poisoned_engine_closes_at_once(tmp_path: Path, rule: str) -> None:
    """D4."""
    engine = engram.open(tmp_path / "d", limits={"partitions": 2})
    space = engine.space("s", dim=2)
    space.observe("kept")
    engine._core.inject(rule)
    with pytest.raises(engram.Poisoned):
        space.observe("lost?")
    begun = time.monotonic()
    with suppress(engram.EngramError):
        engine.close()
    assert time.monotonic() - begun < 5
