"""`engram ingest --resume FILE`, killed while it wrote the file, left an empty one: no later run could go on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import engram

DIES = """
import os, sys
def die(*_):
    os._exit(9)
setattr(os, sys.argv.pop(1), die)
from engram.cli.app import main
main()
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_while_the_position_is_written_is_gone_on_from(tmp_path: Path, call: str) -> None:
    """S4."""
    rows = "".join(json.dumps({"text": f"row {n}", "vector": [n + 1, 1]}) + "\n" for n in range(40))
    ingest = ["ingest", "-", "-s", "s", "--batch", "16", "--resume", "position"]
    died = subprocess.run([sys.executable, "-c", DIES, call, *ingest], input=rows, cwd=tmp_path, text=True, check=False)
    assert died.returncode == 9
    assert not (tmp_path / "position").exists(), "it is there when it is whole"
    subprocess.run([sys.executable, "-m", "engram.cli", *ingest], input=rows, cwd=tmp_path, text=True, check=True)
    assert [*tmp_path.glob("position*")] == []
    with engram.open(tmp_path / "memories") as engine:
        assert [memory.text for memory in engine.space("s").list()] == [f"row {n}" for n in range(40)]
