"""The `engram` command as users run it: the installed script, in its own process, on real files."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engram
from engram import _sample

SCRIPT = Path(sys.executable).parent / "engram"
SAMPLE = Path(_sample.__file__).parent


def engram_command(cwd: Path, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, check=False, timeout=60)


def document(ran: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert ran.returncode == code, ran.stdout + ran.stderr
    value = json.loads(ran.stdout)
    assert isinstance(value, dict)
    return value


@pytest.fixture
def memories(tmp_path: Path) -> Path:
    ran = engram_command(
        tmp_path, "ingest", SAMPLE / "vectors.npy", "--texts", SAMPLE / "texts.jsonl.gz", "--space", "notes", "--json"
    )
    made = document(ran)
    assert (made["stored"], made["ids"]) == (4_000, [1, 4_000])
    return tmp_path


def test_ingest_recall_stats_verify_inspect(memories: Path) -> None:
    sample = _sample.load_sample()
    ran = engram_command(
        memories, "recall", "--vector", f"{SAMPLE / 'queries.npy'}:3", "-s", "notes", "-k", "5", "--json"
    )
    found = document(ran)
    assert [hit["id"] - 1 for hit in found["hits"]] == sample.truth[3][:5].tolist()
    assert found["hits"][0]["text"] == sample.texts[sample.truth[3][0]]
    assert set(found["hits"][0]) == {"id", "score", "confidence", "text", "metadata", "key", "observed_at"}

    like = document(engram_command(memories, "recall", "--like", "17", "--space", "notes", "-k", "1", "--json"))
    assert like["hits"][0]["id"] == 17

    where = '{"memory_id": {"$gt": 17}}'
    other = engram_command(memories, "recall", "--like", "17", "-s", "notes", "-k", "1", "--where", where, "--json")
    assert document(other)["hits"][0]["id"] > 17

    shown = engram_command(memories, "recall", "--like", "17", "--space", "notes", "-k", "3")
    assert shown.returncode == 0
    assert sample.texts[16][:40] in shown.stdout
    assert "\x1b" not in shown.stdout + shown.stderr

    figures = document(engram_command(memories, "stats", "--json"))
    assert figures["spaces"]["notes"]["memories"] == 4_000
    assert figures["report"]["damage"] == []
    assert "notes" in engram_command(memories, "stats").stdout

    sound = document(engram_command(memories, "verify", "memories", "--json"))
    assert (sound["damage"], sound["memories"]) == ([], 4_000)
    assert engram_command(memories, "verify", "memories").stdout.startswith("sound: ")
    assert document(engram_command(memories, "inspect", "memories", "--json"))["partitions"] >= 4
    assert "partition-000" in engram_command(memories, "inspect", "memories").stdout


def test_module_and_script_are_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "engram.cli", "--help"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    assert all(name in ran.stdout for name in ("ingest", "recall", "stats", "verify", "inspect"))


def test_json_lines_of_every_field(tmp_path: Path) -> None:
    lines = [
        {"text": "one", "vector": [1, 0], "metadata": {"a": [1, None]}, "observed_at": 1.5, "confidence": 0.5},
        {"text": "two words", "observed_at": "2020-01-01T00:00:00+00:00"},
        {"vector": [0, 1]},
    ]
    body = "\n".join(json.dumps(line) for line in lines)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(body)
    made = document(
        engram_command(tmp_path, "ingest", "rows.jsonl.gz", "-s", "s", "--data", "d", "--durability", "os", "--json")
    )
    assert made["stored"] == 3
    assert document(engram_command(tmp_path, "ingest", "-", "-s", "s", "--data", "d", "--json", stdin=body))["ids"] == [
        4,
        6,
    ]
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("s")
        assert (space.dim, space.durability) == (2, "os")
        first, second, third = space.list(limit=3)
        assert (first.text, first.metadata, first.confidence) == ("one", {"a": [1, None]}, 0.5)
        assert first.observed_at is not None
        assert first.observed_at.timestamp() == 1.5
        assert second.vector is None
        assert third.text is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"text": "a", "vektor": [1]}', "unknown field 'vektor'"),
        ('{"text": 5}', "text must be a string"),
        ('{"vector": [1, "x"]}', "vector must be a list of numbers"),
        ('{"vector": [1, NaN]}', "not JSON"),
        ('{"vector": [1, 1e999]}', "must be finite"),
        ('{"vector": [0, 0]}', "zero vector"),
        ('{"vector": [1, 2, 3]}', "3 dimensions"),
        ('{"text": "a", "confidence": 2}', "must lie in [0, 1]"),
        ('{"text": "a", "observed_at": "soon"}', "observed_at must be"),
        ('{"text": "\\ud800"}', "lone surrogate"),
        ("{}", "needs a text or a vector"),
    ],
)
def test_a_bad_line_is_named_and_what_stands_before_it_is_stored(tmp_path: Path, line: str, reason: str) -> None:
    good = '{"text": "good", "vector": [1, 2]}\n'
    (tmp_path / "rows.jsonl").write_text(good * 3 + line + "\n" + good, encoding="utf-8")
    ran = engram_command(tmp_path, "ingest", "rows.jsonl", "-s", "s", "--batch", "2")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("engram: rows.jsonl:4: "), ran.stderr
    assert reason in ran.stderr
    assert ran.stderr.rstrip().endswith("(stored before: 3)")
    assert ran.stderr.count("\n") == 1
    with engram.open(tmp_path / "memories") as engine:
        assert len(engine.space("s")) == 3
    said = document(engram_command(tmp_path, "ingest", "rows.jsonl", "-s", "s", "--json"), 2)["error"]
    assert (said["code"], said["line"], said["stored"]) == ("BAD_INPUT", 4, 3)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "three.npy", np.ones((3, 2), np.float16))
    np.save(tmp_path / "whole.npy", np.ones((3, 2), np.int64))
    np.save(tmp_path / "flat.npy", np.ones(2))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "two.jsonl").write_text('{"text": "a"}\n' * 2, encoding="utf-8")
    (tmp_path / "four.jsonl").write_text('{"text": "a"}\n' * 4, encoding="utf-8")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-12])
    for arguments, part in [
        (["three.npy", "--texts", "two.jsonl"], "has 2 rows"),
        (["three.npy", "--texts", "four.jsonl"], "more rows"),
        (["whole.npy"], "floating-point"),
        (["flat.npy"], "shape (n, dim)"),
        (["objects.npy"], "objects.npy"),
        (["absent.jsonl"], "No such file"),
        (["cut.jsonl.gz", "--dim", "2"], "cut.jsonl.gz:"),
        (["rows.csv"], "must be a .jsonl"),
        (["two.jsonl", "--space", "new"], "give --dim"),
        (["two.jsonl", "--texts", "four.jsonl"], "--texts goes with"),
    ]:
        ran = engram_command(tmp_path, "ingest", "--space", "s", *arguments)
        assert (ran.returncode, ran.stdout) == (2, ""), arguments
        assert part in ran.stderr, (arguments, ran.stderr)


def test_exit_codes(memories: Path) -> None:
    with engram.open(memories / "memories"):
        locked = document(engram_command(memories, "stats", "--json"), 3)["error"]
        assert (locked["code"], locked["pid"]) == ("LOCKED", os.getpid())
        assert engram_command(memories, "verify", "memories").returncode == 3
    for arguments in (
        ["recall", "--space", "absent", "--like", "1"],
        ["recall", "--space", "notes", "--like", "99999"],
        ["recall", "--space", "notes"],
        ["recall", "--space", "notes", "--vector", f"{SAMPLE / 'queries.npy'}"],
        ["recall", "--space", "notes", "--vector", f"{SAMPLE / 'queries.npy'}:20"],
        ["recall", "--space", "notes", "--like", "1", "--where", "{"],
        ["recall", "--space", "notes", "--like", "1", "--where", "[1]"],
        ["recall", "--space", "notes", "--like", "1", "--where", '{"$near": 1}'],
        ["stats", "--data", "nowhere"],
        ["verify", "nowhere"],
        ["verify"],
        ["nonsense"],
    ):
        ran = engram_command(memories, *arguments)
        assert (ran.returncode, ran.stdout) == (2, ""), arguments
        assert ran.stderr.startswith("engram: ")
        assert ran.stderr.count("\n") == 1
        error = document(engram_command(memories, *arguments, "--json"), 2)["error"]
        assert error["code"] in ("BAD_INPUT", "NOT_FOUND", "INVALID_ARGUMENT")
        assert error["message"]
    assert not (memories / "nowhere").exists()


def test_verify_finds_a_flipped_byte(memories: Path) -> None:
    log = max((memories / "memories").glob("partition-*/log/*.log"), key=lambda path: path.stat().st_blocks)
    with log.open("r+b") as file:
        file.seek(5_000)
        byte = file.read(1)[0]
        file.seek(5_000)
        file.write(bytes([byte ^ 1]))
    found = document(engram_command(memories, "verify", "memories", "--json"), 1)
    assert found["damage"][0]["path"].endswith(log.name)
    shown = engram_command(memories, "verify", "memories")
    assert shown.returncode == 1
    assert log.name in shown.stdout
    assert "damaged: " in shown.stdout


def test_ingest_takes_keys(tmp_path: Path) -> None:
    lines = tmp_path / "k.jsonl"
    lines.write_text("".join(json.dumps({"text": f"v{n}", "key": f"k{n % 3}"}) + "\n" for n in range(7)))
    ran = engram_command(tmp_path, "ingest", str(lines), "-s", "s", "--dim", "2", "--json")
    assert document(ran)["stored"] == 7
    with engram.open(tmp_path / "memories") as engine:
        space = engine.space("s")
        assert {memory.key: memory.text for memory in space.list()} == {"k0": "v6", "k1": "v4", "k2": "v5"}
    lines.write_text('{"text": "x", "key": 7}\n')
    ran = engram_command(tmp_path, "ingest", str(lines), "-s", "s", "--json")
    assert ran.returncode == 2, ran.stderr
    assert "key must be a string" in ran.stdout + ran.stderr


def test_ingest_goes_on_after_kills_and_stores_each_row_once(tmp_path: Path) -> None:
    """S4: kill -9 in mid-stream, again and again; in the end every row is there, once, in order."""
    count = 2_000
    lines = [json.dumps({"text": f"row {n}", "vector": [n + 1, 1]}) + "\n" for n in range(count)]
    command = [SCRIPT, "ingest", "-", "-s", "s", "--batch", "16", "--resume", "position", "--json"]
    reached = [0]
    for cut in (7, 400, 900, 901, 1_500, 1_990):
        with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, text=True, bufsize=1) as process:
            assert process.stdin is not None
            process.stdin.writelines(lines[:cut])
            if cut >= 16:
                wait_until((tmp_path / "position").exists)
            process.kill()
        if (tmp_path / "memories" / "MANIFEST").exists():
            with engram.open(tmp_path / "memories") as engine:
                stored = [memory.text for memory in engine.space("s", dim=2).list()]
            assert stored == [f"row {n}" for n in range(len(stored))]
            reached.append(len(stored))
    assert reached == sorted(reached)
    assert reached[-1] > 0
    ran = engram_command(tmp_path, *map(str, command[1:]), stdin="".join(lines))
    done = document(ran)
    assert (done["stored"] + done["skipped"], done["skipped"]) == (count, reached[-1])
    assert not (tmp_path / "position").exists()
    with engram.open(tmp_path / "memories") as engine:
        assert [memory.text for memory in engine.space("s").list()] == [f"row {n}" for n in range(count)]

    (tmp_path / "position").write_text("not a token\n")
    refused = engram_command(tmp_path, *map(str, command[1:-1]), stdin=lines[0])
    assert refused.returncode == 2
    assert "remove the file" in " ".join(refused.stderr.split())


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)
