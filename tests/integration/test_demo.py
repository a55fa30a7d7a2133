"""The demonstration keeps its promises on the bundled sample: its writer is killed, nothing acknowledged is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import engram
from engram import demo
from engram._sample import load_sample


def run_demo(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # In tmp_path there is no ../shared/data: the sample is used.
    environment = {name: value for name, value in os.environ.items() if name != "ENGRAM_BENCH_DATA"}
    command = [sys.executable, "-m", "engram.demo", *options]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


def test_demo_keeps_what_was_acknowledged_before_the_kill(tmp_path: Path) -> None:
    """D1, D2: SIGKILL with a batch in flight loses nothing acknowledged."""
    ran = run_demo(tmp_path, "--json", "--data", "kept")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    figures = json.loads(ran.stdout)
    rows = len(load_sample().texts)
    assert figures["ok"]
    assert (figures["rows"], figures["stored"], figures["missing"], figures["different"]) == (rows, rows, 0, 0)
    assert figures["recall_at_10"] == 1.0
    assert all(rows // 2 <= kill["acknowledged"] < rows for kill in figures["kills"])
    assert figures["recalls_while_streaming"] > 0
    with engram.open(tmp_path / "kept") as engine:
        assert len(engine.space(demo.SPACE)) == rows


def test_demo_shows_recalls_and_rates_to_people(tmp_path: Path) -> None:
    ran = run_demo(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for word in ("SIGKILL", "nothing acknowledged is missing", "observations/s", "haymaking", "all kept"):
        assert word in ran.stdout


def test_demo_refuses_a_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    ran = run_demo(tmp_path, "--data", "mine")
    assert ran.returncode == 2
    assert "not an empty directory" in ran.stderr


def test_comparison_sees_what_is_missing_and_what_is_different() -> None:
    sample = load_sample()
    with engram.open() as engine:
        space = engine.space("notes", dim=sample.vectors.shape[1])
        space.observe_batch(texts=sample.texts[:5], vectors=sample.vectors[:5])
        assert demo.compare(space, sample, 5) == (5, 0, 0)
        assert demo.compare(space, sample, 7) == (5, 2, 0)
        space.observe(sample.texts[6], vector=sample.vectors[6])  # under the id of row 5
        assert demo.compare(space, sample, 6) == (6, 0, 1)


@pytest.mark.parametrize(
    ("stored", "missing", "different", "sound"),
    [(10, 0, 0, True), (14, 0, 0, True), (12, 0, 0, False), (9, 1, 0, False), (10, 0, 1, False)],
)
def test_only_all_or_nothing_of_the_batch_in_flight_is_sound(
    stored: int, missing: int, different: int, sound: bool
) -> None:
    kill = demo.Reopened(
        acknowledged=10, in_flight=4, stored=stored, missing=missing, different=different,
        reopen_seconds=0.0, first_recall_seconds=0.0, torn_bytes=0, damage=[],
    )  # fmt: skip
    assert kill.sound is sound
