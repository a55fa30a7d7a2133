"""What a second hostile reading of `serve`, its settings and the commands found."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import engram
from engram.server import Settings
from integration.service.support import ServerProcess

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "python_stream.py"


def command(*arguments: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "engram.cli", *arguments], capture_output=True, text=True, timeout=60, **more
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with engram.open(tmp_path / "data") as engine:
        engine.space("s", dim=2).observe("a", vector=[1, 0])
    return tmp_path / "data"


def purge_behind_a_snapshot(url: str) -> tuple[Any, threading.Thread]:
    """A call that waits, and what it waits for."""
    engine = engram.connect(url)
    space = engine.space("s", dim=2)
    space.observe("secret")
    snapshot = space.snapshot()

    def purge() -> None:
        with pytest.raises((engram.Unavailable, engram.Closed)):
            space.forget([1], purge=True)

    thread = threading.Thread(target=purge)
    thread.start()
    time.sleep(0.5)
    return snapshot, thread


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path / "data")
    _, thread = purge_behind_a_snapshot(process.url)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.5)
    begun = time.monotonic()
    assert process.stop() == 130
    assert time.monotonic() - begun < 4
    thread.join()


def test_a_stop_that_was_interrupted_is_gone_on_with(tmp_path: Path) -> None:
    """The directory stayed locked by a server that said it had stopped."""
    server = engram.serve(tmp_path / "data", grpc="127.0.0.1:0")
    _, thread = purge_behind_a_snapshot(server.url)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,)).start()
        with pytest.raises(KeyboardInterrupt):
            server.stop(3)
    finally:
        signal.signal(signal.SIGINT, before)
    server.stop(1)
    thread.join()
    engram.open(tmp_path / "data").close()


def test_an_empty_path_is_not_this_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (engram.serve, engram.open, lambda path: engram.serve(data=path)):
        with pytest.raises(engram.InvalidArgument, match="empty"):
            call("")
    monkeypatch.setenv("ENGRAM_DATA", "")
    with pytest.raises(engram.InvalidArgument, match="empty"):
        Settings.read()
    monkeypatch.delenv("ENGRAM_DATA")
    for arguments in (["serve", "--data", ""], ["stats", "--data", ""], ["verify", ""]):
        said = command(*arguments)
        assert said.returncode == 2
        assert "an empty path" in said.stderr
    assert [*tmp_path.iterdir()] == []


def test_settings_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"keepalive_seconds": float("inf")}, {"keepalive_seconds": 1e9}, {"streams_max": 10**12}):
        with pytest.raises(engram.InvalidArgument, match=next(iter(wrong))):
            engram.serve(grpc="127.0.0.1:0", **wrong)
    with pytest.raises(engram.InvalidArgument, match=r"\[::1\]:0"):
        Settings.read(grpc="::1:0")
    said = command("serve", "--print-config", "--json", env={**os.environ, "ENGRAM_LIMITS": "abc"})
    assert said.returncode == 2
    assert json.loads(said.stdout)["error"]["code"] == "INVALID_ARGUMENT"


def test_limits_are_merged_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "engram.toml"
    file.write_text("[limits]\nbatch_items_max = 7\nadmission_timeout_ms = 5\n")
    monkeypatch.setenv("ENGRAM_LIMITS__batch_items_max", "9")
    assert Settings.read(file).limits == {"batch_items_max": 9, "admission_timeout_ms": 5}
    merged = Settings.read(file, limits={"recall_k_max": 3}).limits
    assert merged == {"batch_items_max": 9, "admission_timeout_ms": 5, "recall_k_max": 3}


def test_what_an_engine_was_opened_with_is_not_said_again() -> None:
    with engram.open() as engine:
        for late in ({"data": "/x"}, {"limits": {"batch_items_max": 5}}, {"durability": "os"}):
            with pytest.raises(engram.InvalidArgument, match="too late"):
                engram.serve(engine, grpc="127.0.0.1:0", **late)


def test_commands_say_what_is_wrong_with_their_input(tmp_path: Path, data: Path) -> None:
    junk = tmp_path / "z.npy"
    junk.write_bytes(b"PK\x03\x04junk")
    large = tmp_path / "large.jsonl"
    large.write_text('{"vector":[1, 2]}\n{"vector":[1' + "0" * 400 + ",1]}\n")
    good = tmp_path / "good.jsonl"
    good.write_text('{"vector":[1, 2]}\n')
    at = ["--data", str(data), "-s", "s"]
    for arguments in (
        ["ingest", str(junk), *at],
        ["recall", "--vector", str(junk), *at],
        ["ingest", str(large), *at],
        ["recall", "--like", "1", "--where", "[" * 60_000, *at],
        ["ingest", str(good), "--resume", str(tmp_path / "none" / "position"), *at],
        ["ingest", str(good), "--resume", str(tmp_path), *at],
    ):
        said = command(*arguments)
        assert said.returncode == 2, said
        assert said.stderr.startswith("engram: ")
        assert said.stderr.count("\n") == 1
    with engram.open(data) as engine:
        assert len(engine.space("s")) == 2, "what stood before the bad row is stored, and nothing else"


def test_who_does_not_read_is_no_error_and_a_full_disk_is(data: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for more in ([], ["--json"]):
        arguments = [sys.executable, "-m", "engram.cli", "stats", "--data", str(data), *more]
        gone = subprocess.run(arguments, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
        assert (gone.returncode, gone.stderr) == (0, "")
        with Path("/dev/full").open("w") as full:
            said = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert said.returncode == 3
        if more:
            assert json.loads(said.stderr)["error"]["code"] == "STORAGE"
        else:
            assert said.stderr.startswith("engram: ")
            assert said.stderr.count("\n") == 1
    os.close(writing)


def test_output_that_is_closed_is_no_damage(data: Path) -> None:
    for more in ("", " --json"):
        line = f"exec '{sys.executable}' -m engram.cli stats --data '{data}'{more} >&-"
        said = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, timeout=60)
        assert (said.returncode, said.stderr) == (0, "")


def test_an_example_that_sends_nothing_ends_well() -> None:
    with engram.serve(grpc="127.0.0.1:0") as server:
        arguments = [sys.executable, str(EXAMPLE), server.url, "--seconds", "0", "--dim", "2"]
        said = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        assert said.returncode == 0
        assert "0 observations" in said.stdout
