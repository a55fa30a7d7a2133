"""A directory of every frozen format version loads for ever, with everything that is in it."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

import engram
from golden.make import GOLDEN, described

ARCHIVES = sorted(GOLDEN.glob("v*.tar.xz"))


def test_they_are_here() -> None:
    assert [archive.name for archive in ARCHIVES] == ["v1.tar.xz", "v2.tar.xz"]


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_it_loads_and_goes_on(archive: Path, tmp_path: Path) -> None:
    version = archive.name.removesuffix(".tar.xz")
    expected: dict[str, Any] = json.loads((GOLDEN / f"{version}.json").read_text())
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    path = tmp_path / version
    verdict = engram.verify(path)
    assert verdict["damage"] == []
    assert verdict["memories"] == sum(len(space["rows"]) for space in expected["spaces"].values())
    for _ in range(2):
        with engram.open(path) as engine:
            assert (engine.report["damage"], engine.report["renewed"]) == ([], [])
            assert engine._core.state_hash() == expected["state_hash"]
            assert engine.spaces() == sorted(expected["spaces"])
            for name, space in expected["spaces"].items():
                assert json.loads(json.dumps(described(engine.space(name)))) == space, name
    with engram.open(path) as engine:
        told = expected["session"]
        notes = engine.space(told["space"])
        before = len(notes)
        with notes.session(resume=told["token"]) as session:
            assert session.committed == told["committed"]
            again = session.observe("said 3", sequence=1)
            assert again.duplicate
            assert session.observe("and on").memory_id > again.memory_id
        assert notes.forget(again.memory_id) == 1
        engine.checkpoint()
        assert len(notes) == before
    assert engram.verify(path)["damage"] == []
