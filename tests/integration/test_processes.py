"""The engine among processes, signals and threads: locks, forks, exits, Ctrl-C, the GIL."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import engram


def python(code: str, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    return out


HOLD = """
import engram, sys
engine = engram.open("d")
print("open", flush=True)
sys.stdin.readline()
engine.close()
"""


def test_a_second_process_is_told_who_has_the_directory(tmp_path: Path) -> None:
    """D7: one process writes a directory; the kernel gives the lock back when it dies."""
    holder = python(HOLD, cwd=tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(engram.Locked) as caught:
        engram.open(tmp_path / "d")
    assert caught.value.pid == holder.pid
    assert str(holder.pid) in str(caught.value)
    for look in (engram.verify, engram.inspect):
        with pytest.raises(engram.Locked):
            look(tmp_path / "d")
    holder.kill()
    holder.communicate()
    with engram.open(tmp_path / "d") as engine, pytest.raises(engram.Locked) as caught:
        engram.open(tmp_path / "d")
    assert caught.value.pid == os.getpid()
    assert engine.path is not None


FORK = """
import engram, os, sys, time
engine = engram.open("d")
space = engine.space("s", dim=2)
space.observe("before", vector=[1, 0])
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.close(reader)
    said = []
    for call in (lambda: space.observe("child"), lambda: space.recall(vector=[1, 0]), lambda: len(space),
                 engine.spaces, engine.checkpoint, engine.close):
        try:
            call()
            said.append("ok")
        except engram.Closed as error:
            said.append("Closed" if "fork" in str(error) else str(error))
    try:
        engram.open("d")
        said.append("opened")
    except engram.Locked as error:
        said.append("Locked" if error.pid == os.getppid() else f"Locked by {error.pid}")
    os.write(writer, " ".join(said).encode())
    os.close(writer)
    if sys.argv[1] == "exit":
        sys.exit(0)
    time.sleep(30)
    os._exit(0)
os.close(writer)
print(os.read(reader, 1000).decode())
if sys.argv[1] == "exit":
    assert os.waitpid(child, 0)[1] == 0
space.observe("after", vector=[0, 1])
assert [m.text for m in space.list()] == ["before", "after"]
engine.close()
engram.open("d").close()
if sys.argv[1] != "exit":
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("child", ["exit", "stay"])
def test_a_forked_child_is_told_and_harms_nobody(tmp_path: Path, child: str) -> None:
    """The child gives up its copy of the lock: what the parent closed can be opened while the child lives."""
    said = finished(python(FORK, child, cwd=tmp_path)).split()
    assert said[:4] == ["Closed"] * 4
    assert said[-1] == "Locked"
    with engram.open(tmp_path / "d") as engine:
        assert len(engine.space("s")) == 2


BUSY = """
import engram, os, signal, threading, time
space = engram.open().space("s", dim=2)
ended = threading.Event()

def write():
    while not ended.is_set():
        space.observe_batch(texts=["x" * 5_000] * 20)

def end(child):
    until = time.monotonic() + 20
    while not (waited := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    return waited[1]

thread = threading.Thread(target=write)
thread.start()
until = time.monotonic() + 5
try:
    while time.monotonic() < until:
        if (child := os.fork()) == 0:
            os._exit(0)
        assert end(child) == 0
finally:
    ended.set()
    thread.join()
"""


def test_a_child_of_a_busy_engine_in_memory_lives(tmp_path: Path) -> None:
    """It waited for the disk in memory, which a thread of its parent's held at the fork."""
    finished(python(BUSY, cwd=tmp_path))


EXIT = """
import engram, sys
engine = engram.open("d", durability=sys.argv[1])
space = engine.space("s", dim=2)
for n in range(100):
    space.observe(str(n), vector=[1, n])
if sys.argv[2] == "error":
    raise SystemExit(0)
"""


@pytest.mark.parametrize("durability", ["sync", "os", "memory"])
@pytest.mark.parametrize("end", ["plain", "error"])
def test_an_interpreter_that_ends_without_close_ends_clean(tmp_path: Path, durability: str, end: str) -> None:
    finished(python(EXIT, durability, end, cwd=tmp_path))
    with engram.open(tmp_path / "d") as engine:
        report = engine.report
        assert (report["torn_bytes"], report["renewed"], report["damage"]) == (0, [], [])
        assert [memory.text for memory in engine.space("s").list()] == [str(n) for n in range(100)]


CTRL_C = """
import engram, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without it
limits = {"unsealed_space_bytes_max": 65536, "partitions": 1}
engine = engram.open("d", limits=limits)
engine._core.inject("create:rows=EIO")
space = engine.space("s", dim=2)
try:
    while True:
        space.observe("x" * 20_000, timeout=0)
except engram.EngramError as error:
    print(type(error).__name__, flush=True)
try:
    space.observe("x" * 20_000, timeout=60)
    print("stored")
except BaseException as error:
    print(type(error).__name__, isinstance(error, KeyboardInterrupt), flush=True)
before = len(space)
print(before == sum(1 for _ in space.list()), flush=True)
"""


def test_ctrl_c_ends_a_waiting_observe(tmp_path: Path) -> None:
    """P8: Ctrl-C is raised within a second."""
    process = python(CTRL_C, cwd=tmp_path)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first in ("Overloaded\n", "DiskFull\n", "StorageError\n"), first + process.communicate()[1]
    time.sleep(1)
    assert process.poll() is None, "the second observe should still wait"
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    said = process.stdout.readline()
    assert time.monotonic() - begun < 2.5
    name, interrupted = said.split()
    assert name in ("KeyboardInterrupt", "Interrupted")
    assert interrupted == "True"
    assert process.stdout.readline() == "True\n", "what can be read is what was counted"
    process.communicate(timeout=30)


def test_the_gil_is_released_during_a_large_recall() -> None:
    rng = np.random.default_rng(1)
    with engram.open() as engine:
        space = engine.space("s", dim=256)
        for _ in range(4):
            space.observe_batch(vectors=rng.normal(size=(5_000, 256)).astype(np.float32))
        cues = rng.normal(size=(400, 256)).astype(np.float32)
        ticks: list[float] = []
        running = threading.Event()

        def tick() -> None:
            while not running.is_set():
                ticks.append(time.perf_counter())
                time.sleep(0.001)

        thread = threading.Thread(target=tick)
        thread.start()
        begun = time.perf_counter()
        space.recall_batch(cues, k=10)
        ended = time.perf_counter()
        running.set()
        thread.join()
        inside = [t for t in ticks if begun < t < ended]
        assert ended - begun > 0.02, "the recall is too small to show anything"
        # Far fewer than one a millisecond: other work shares the cores. Without the release there would be none.
        assert len(inside) >= (ended - begun) * 100


def test_threads_write_and_read_together(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("s", dim=4)
        seen: list[int] = []
        lock = threading.Lock()

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(40):
                vector = rng.normal(size=4)
                ack = space.observe(f"{seed}", vector=vector)
                hits = space.recall(vector=vector, k=1)
                assert hits[0].memory_id == ack.memory_id  # O6
                with lock:
                    seen.append(ack.memory_id)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == list(range(1, 321))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all threads of a process step back, or none")
def test_threads_that_work_long_leave_the_cpu_to_those_that_answer() -> None:
    expected = {"engram-io-0": 5, "engram-io-1": 5, "engram-builder": 10, "engram-images": 10}
    expected |= dict.fromkeys(("engram-writer", "engram-io-cata", "engram-io-main", "engram-mainten"), 0)

    def seen() -> dict[str, int]:
        nice = {}
        for task in Path("/proc/self/task").iterdir():
            try:
                name = (task / "comm").read_text(encoding="utf-8").strip()
            except OSError:  # it has ended
                continue
            short = next((known for known in expected if name.startswith(known)), name)
            nice[short] = os.getpriority(os.PRIO_PROCESS, int(task.name)) - os.getpriority(os.PRIO_PROCESS, os.getpid())
        return {name: value for name, value in nice.items() if name.startswith("engram-")}

    with engram.open(limits={"partitions": 2}):
        end = time.monotonic() + 20
        while seen() != expected and time.monotonic() < end:
            time.sleep(0.05)
        assert seen() == expected
