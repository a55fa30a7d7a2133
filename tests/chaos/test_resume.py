"""kill -9 in mid-stream with a writer that resumes and forgets (S2–S5, K3).

Exactly once, in order, duplicates with their own ids; what was forgotten is gone for good.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import engram
from chaos.support import speaker

CAMPAIGN = os.environ.get("ENGRAM_CAMPAIGN") == "1"
KILLS = int(os.environ.get("ENGRAM_RESUME_KILLS") or (500 if CAMPAIGN else 25))


@pytest.mark.timeout(0 if CAMPAIGN else 180)
def test_a_resuming_writer_has_one_effect_for_each_sequence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(7)
    ids: dict[int, int] = {}
    gone: set[int] = set()
    asked: list[set[int]] = []
    again = unknown = 0
    for kill in range(KILLS):
        command = [sys.executable, speaker.__file__, str(tmp_path / "d"), str(tmp_path / "token"), str(kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline()]  # it is at work
            time.sleep(rng.random() * 0.15)
            process.kill()
            lines += process.stdout.readlines()
        for line in lines:
            word, first, *told = line.split()
            if not line.endswith("\n"):
                continue  # cut off by the kill
            if word in ("forgets", "forgot"):
                meant = set(speaker.forgotten(int(first), int(told[0])))
                gone.update(meant if word == "forgot" else ())
                asked += [meant] if word == "forgets" else []
                continue
            for sequence, memory_id in enumerate(map(int, told), int(first)):
                again += word == "again"
                unknown += memory_id == 0
                assert memory_id == 0 or ids.setdefault(sequence, memory_id) == memory_id, "another id than before"
    with engram.open(tmp_path / "d", limits=speaker.LIMITS) as engine:
        space = engine.space("s")
        session = space.session(resume=(tmp_path / "token").read_text(), acknowledged=max(ids))
        rows = [(memory.memory_id, memory.text) for memory in space.list()]
        committed = session.committed
        found = [int(str(text).split()[0]) for _, text in rows]
        assert [text for _, text in rows] == [speaker.text(n) for n in found]
        assert found == sorted(set(found))
        missing = set(range(1, committed + 1)).difference(found)
        assert gone <= missing <= set().union(*asked), "a forget happened to others, or not"
        times = Counter(sequence for meant in asked for sequence in meant)
        alone = [{sequence for sequence in meant if times[sequence] == 1} for meant in asked]
        assert all(meant <= missing or not meant & missing for meant in alone), "a forget happened in part"
        by_sequence = dict(zip(found, (memory_id for memory_id, _ in rows), strict=True))
        assert all(by_sequence.get(sequence, memory_id) == memory_id for sequence, memory_id in ids.items())
    assert engram.verify(tmp_path / "d")["damage"] == []
    # What is asked again lies inside the window: its ids are known.
    assert again > 0
    assert unknown == 0
    assert gone
    with capsys.disabled():
        print(
            f"\n{KILLS} kills, {committed:,} sequences, {len(ids):,} told, {again:,} asked again, 0 other ids, "
            f"{len(missing):,} forgotten, {len(missing - gone)} of them untold, 0 other holes"
        )
