"""A client whose recalls share calls."""

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import engram
import engram.aio
from engram.server import Server
from engram.server.grpc import GrpcServer
from engram.server.questions import Questions

from .asking import DIM, ROWS, Gate, asked, until
from .support import SECONDS, ServerProcess


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Questions]:
    """By whom the server hears each message of calls that recalls share."""
    messages: list[Questions] = []
    receive = Questions.receive

    async def spied(self: Questions, message: bytes) -> None:
        messages.append(self)
        await receive(self, message)

    monkeypatch.setattr(Questions, "receive", spied)
    return messages


def test_a_clients_recalls_share_a_call(remote: engram.Engine, rows: engram.Space, heard: list[Questions]) -> None:
    space = remote.space("rows")
    mine = space.recall(vector=ROWS[3], k=100)
    assert [hit.memory_id for hit in mine] == [hit.memory_id for hit in rows.recall(vector=ROWS[3], k=100)]
    assert mine.generation == rows.recall(vector=ROWS[3], k=100).generation
    assert len(heard) == 1
    space.recall(vector=ROWS[3], k=101)
    many = {"$or": [{"a": "x" * 1_000} for _ in range(70)]}
    assert len(space.recall(vector=ROWS[3], where=many)) == 0
    assert len(heard) == 1, "the large go by a call of their own"
    for row in range(20):
        space.recall(vector=ROWS[row])
    assert len({*heard}) == 1
    assert len(heard) == 21


def test_a_recall_that_is_cancelled_is_given_up(
    remote: Any, rows: engram.Space, gate: Gate, heard: list[Questions]
) -> None:
    link = remote.space("rows")._core._link

    async def under_way(count: int) -> None:
        async with asyncio.timeout(SECONDS):
            while gate.held != count:
                await asyncio.sleep(0.01)

    async def run() -> None:
        tasks = [asyncio.create_task(link.recalls.ask(asked("rows"), SECONDS)) for _ in range(30)]
        await under_way(30)
        for task in tasks[1:]:
            task.cancel()
        await under_way(1)
        gate.set()
        assert len((await tasks[0])[0].hits) == 10

    link.call(run())
    # One after the other was heard by one, others when that was busy.
    assert len({*heard}) > 1
    assert link.recalls.under_way == 0


def test_a_recall_that_takes_too_long_says_so(remote: Any, rows: engram.Space, gate: Gate) -> None:
    link = remote.space("rows")._core._link
    with pytest.raises(engram.Timeout, match="in time"):
        link.call(link.recalls.ask(asked("rows"), 0.1))
    until(lambda: gate.held == 0)
    gate.set()
    assert len(link.call(link.recalls.ask(asked("rows"), SECONDS))) == 1


def test_recalls_go_on_with_the_server_that_comes_after(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as process, engram.connect(process.url) as remote:
        space = remote.space("s", dim=DIM)
        space.observe_batch(vectors=ROWS[:100])
        assert space.recall(vector=ROWS[4], k=1)[0].memory_id == 5
        process.kill()
        with pytest.raises(engram.Unavailable):
            space.recall(vector=ROWS[4], k=1)
        with ServerProcess(tmp_path / "data", port=process.port):
            assert space.recall(vector=ROWS[4], k=1)[0].memory_id == 5


def test_threads_recall_side_by_side_while_servers_come_and_go(tmp_path: Path) -> None:
    wrong: list[object] = []
    over = threading.Event()
    process = ServerProcess(tmp_path / "data")
    try:
        with engram.connect(process.url) as remote:
            space = remote.space("s", dim=DIM)
            space.observe_batch(vectors=ROWS[:1_000])
            counts = [0] * 8

            def recall(thread: int) -> None:
                while not over.is_set():
                    row = (counts[thread] * 8 + thread) % 1_000
                    try:
                        hits = space.recall(vector=ROWS[row], k=3)
                    except engram.Unavailable:
                        continue
                    if hits[0].memory_id != row + 1 or len(hits) != 3:
                        wrong.append((row, hits))
                    counts[thread] += 1

            threads = [threading.Thread(target=recall, args=(thread,)) for thread in range(8)]
            for thread in threads:
                thread.start()
            for _ in range(3):
                time.sleep(0.5)
                before = [*counts]
                process.kill()
                process = ServerProcess(tmp_path / "data", port=process.port)
                until(lambda before=before: all(now > then for now, then in zip(counts, before, strict=True)))
            over.set()
            for thread in threads:
                thread.join()
        assert not wrong
    finally:
        process.kill()


@pytest.mark.parametrize("which", ["none", "few"])
def test_where_there_is_no_such_call_recalls_go_alone(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = GrpcServer._handlers
    if which == "none":
        without = lambda self: {name: one for name, one in handlers(self).items() if name != "Recalls"}  # noqa: E731
        monkeypatch.setattr(GrpcServer, "_handlers", without)
    with engram.serve(grpc="127.0.0.1:0", streams_max=1) as server, engram.connect(server.url) as remote:
        space = remote.space("s", dim=DIM)
        space.observe_batch(vectors=ROWS[:500])
        with ThreadPoolExecutor(6) as pool, space.stream() as stream:  # type: ignore[attr-defined]
            stream.observe("x")
            found = [*pool.map(lambda row: space.recall(vector=row, k=1)[0].memory_id, ROWS[:500])]
        assert found == [*range(1, 501)]


def test_who_gives_up_does_not_end_the_call_of_others(remote: Any, rows: engram.Space) -> None:
    """To cancel a write of gRPC ends its call: all others on it asked again."""
    recalls = remote.space("rows")._core._link.recalls

    async def run() -> None:
        call = recalls._idlest()
        for turn in range(100):
            tasks = [asyncio.create_task(call.ask(asked("rows", row), SECONDS)) for row in range(8)]
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            tasks[turn % 8].cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for row, answer in enumerate(answers):
                if row != turn % 8:
                    assert isinstance(answer, list), answer
                    assert answer[0].hits[0].memory_id == row + 1

    remote.space("rows")._core._link.call(run())


def test_a_connection_that_is_closed_in_the_middle_leaves_no_complaints(server: Server, rows: engram.Space) -> None:
    program = """
import sys, threading, time, engram
for _ in range(20):
    with engram.connect(sys.argv[1]) as remote:
        space = remote.space("rows")
        def recall():
            try:
                while True:
                    space.recall(vector=[1.0] * 64)
            except engram.Closed:
                pass
        threads = [threading.Thread(target=recall) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
"""
    command = [sys.executable, "-c", program, server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stderr) == (0, "")
