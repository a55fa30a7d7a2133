"""Recalls that share a call: side by side, each with its own end; and a client whose recalls do."""

import asyncio
import collections
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

import engram
import engram.aio
from engram._reads import AskedRecall
from engram.server import Server
from engram.server.grpc import GrpcServer
from engram.server.hub import Hub
from engram.server.questions import QUESTIONS_MAX, Questions
from engram.v1 import service_pb2 as pb

from .support import SECONDS, ServerProcess, method, raw, reason

DIM = 64
ROWS = np.random.default_rng(1).normal(size=(2_000, DIM)).astype("f4")
_END = object()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def asked(space: str, row: int = 0, k: int = 10, where: str = "", **how: bool) -> pb.RecallRequest:
    view = pb.View(space=space, where=where)
    return pb.RecallRequest(view=view, vector=ROWS[row].tobytes(), k=k, how=pb.How(**how))


class Asking:
    """A call that recalls share, by hand."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = method(channel, "Recalls")(iter(self._said.get, _END))

    def say(self, question: int, recall: pb.RecallRequest | None = None, timeout_ms: int = 0) -> None:
        self._said.put(pb.RecallsRequest(question=question, recall=recall, timeout_ms=timeout_ms))

    def answers(self, count: int) -> Iterator[pb.RecallsResponse]:
        for _ in range(count):
            yield next(self.call)

    def half_close(self) -> None:
        self._said.put(_END)

    def cancel(self) -> None:
        self.call.cancel()
        self.half_close()


@pytest.fixture(scope="module")
def rows(server: Server) -> engram.Space:
    space = server.engine.space("rows", dim=DIM)
    space.observe_batch(vectors=ROWS, metadata=[{"a": 1}] * len(ROWS))
    space.wait_absorbed()
    return space


class Gate(threading.Event):
    """Batches wait here to be made, until it is set."""

    held = 0

    async def hold(self) -> None:
        self.held += 1
        try:
            while not self.is_set():
                await asyncio.sleep(0.001)
        finally:
            self.held -= 1


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, batch = Gate(), Hub.batch

    async def gated(self: Hub, recall: AskedRecall) -> tuple[bytes, bool]:
        await gate.hold()
        return await batch(self, recall)

    monkeypatch.setattr(Hub, "batch", gated)
    yield gate
    gate.set()


@pytest.fixture
def asking(channel: grpc.Channel, rows: engram.Space) -> Iterator[Asking]:
    asking = Asking(channel)
    yield asking
    asking.cancel()
    until(lambda: rows.stats()["snapshots"] == 0)


def test_each_answer_names_its_question(asking: Asking, channel: grpc.Channel) -> None:
    for row in range(200):
        asking.say(1_000 - row, asked("rows", row, k=25))
    heard: dict[int, list[pb.RecallResponse]] = {}
    while len(heard) < 200 or not all(batches[-1].last for batches in heard.values()):
        (answer,) = asking.answers(1)
        heard.setdefault(answer.question, []).append(answer.batch)
    for question, batches in heard.items():
        assert [batch.index for batch in batches] == [0, 1, 2]
        assert len({batch.generation for batch in batches}) == 1
        assert batches[0].hits[0].memory_id == 1_000 - question + 1
    alone = [*method(channel, "Recall")(asked("rows", 7, k=25))]
    assert alone == heard[1_000 - 7]


def test_a_quick_question_overtakes(asking: Asking, gate: Gate) -> None:
    asking.say(1, asked("rows"))
    asking.say(2, asked("none"))
    assert [answer.question for answer in asking.answers(1)] == [2]
    gate.set()
    assert [answer.question for answer in asking.answers(1)] == [1]


def test_an_error_is_of_its_question_only(asking: Asking) -> None:
    asking.say(1, asked("none"))
    asking.say(2, asked("rows", where="["))
    asking.say(3, asked("rows"))
    answers = {answer.question: answer for answer in asking.answers(3)}
    for question, code, number in ((1, "NOT_FOUND", 5), (2, "INVALID_ARGUMENT", 3)):
        status = Status.FromString(answers[question].status)
        info = ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (info.reason, status.code) == (code, number)
    assert len(answers[3].batch.hits) == 10


def test_a_panic_is_answered_and_the_others_go_on(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As PyO3's."""

    def panic(*_: Any, **__: Any) -> None:
        raise Panic

    with monkeypatch.context() as patch:
        patch.setattr("engram.server.streams._ask", panic)
        asking.say(1, asked("rows"))
        (answer,) = asking.answers(1)
        assert "Panic: this is a bug" in Status.FromString(answer.status).message
    asking.say(2, asked("rows"))
    assert [len(answer.batch.hits) for answer in asking.answers(1)] == [10]


def test_questions_that_are_given_up_are_not_worked_on(asking: Asking, rows: engram.Space, gate: Gate) -> None:
    """Also when there are as many as may be."""
    made = rows.stats()["recalls"]
    for question in range(QUESTIONS_MAX):
        asking.say(question, asked("rows"))
    until(lambda: gate.held == QUESTIONS_MAX)
    for question in range(QUESTIONS_MAX):
        asking.say(question)
    until(lambda: gate.held == 0)
    gate.set()
    asking.say(100, asked("rows"))
    assert [answer.question for answer in asking.answers(1)] == [100]
    assert rows.stats()["recalls"] == made + 1


def test_time_is_over_for_one_question(asking: Asking, gate: Gate) -> None:
    asking.say(1, asked("rows"))
    asking.say(2, asked("rows"), timeout_ms=50)
    (answer,) = asking.answers(1)
    assert answer.question == 2
    assert Status.FromString(answer.status).code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    gate.set()
    (answer,) = asking.answers(1)
    assert (answer.question, len(answer.batch.hits)) == (1, 10)


def test_nonsense_ends_the_call_behind_what_was_asked(asking: Asking, gate: Gate) -> None:
    asking.say(1, asked("rows"))
    asking.say(1, asked("rows"))
    time.sleep(0.1)
    gate.set()
    assert [answer.question for answer in asking.answers(1)] == [1]
    with pytest.raises(grpc.RpcError) as caught:
        next(asking.call)
    assert reason(caught.value) == "INVALID_ARGUMENT"
    assert "question 1 is under way" in caught.value.details()


def test_who_does_not_read_is_cut(asking: Asking, server: Server, remote: engram.Engine) -> None:
    wide = server.engine.space("wide", dim=DIM)
    wide.observe_batch(vectors=ROWS[:200], texts=["x" * 20_000] * 200)
    before = wide.stats()["recalls"]
    for question in range(300):
        asking.say(question, asked("wide", k=200))
    until(lambda: wide.stats()["snapshots"] > 0)
    space = remote.space("rows")
    for row in range(50):
        space.recall(vector=ROWS[row], k=1)
    assert wide.stats()["recalls"] - before <= QUESTIONS_MAX
    assert wide.stats()["snapshots"] <= QUESTIONS_MAX
    until(lambda: wide.stats()["snapshots"] == 0)
    with pytest.raises(grpc.RpcError, match="not read"):
        collections.deque(asking.call)


def slowly(monkeypatch: pytest.MonkeyPatch, before: float, after: float) -> None:
    """Answers take so many seconds to be sent, before the peer has them and after."""
    begin = Questions.__init__

    def slow(self: Questions, service: Any, send: Any) -> None:
        async def late(message: bytes) -> None:
            await asyncio.sleep(before)
            await send(message)
            await asyncio.sleep(after)

        begin(self, service, late)

    monkeypatch.setattr(Questions, "__init__", slow)


def test_a_number_is_free_at_the_end(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, rows: engram.Space
) -> None:
    """Whoever had read the answer might ask sooner than the server had sent it."""
    slowly(monkeypatch, 0, 0.05)
    asking = Asking(channel)
    for row in range(5):
        asking.say(1, asked("rows", row, k=1))
        (answer,) = asking.answers(1)
        assert answer.batch.hits[0].memory_id == row + 1
    asking.cancel()


def test_a_question_has_one_end(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, rows: engram.Space) -> None:
    """Time was over while the last answer was being sent: a status came behind it."""
    slowly(monkeypatch, 0.2, 0)
    asking = Asking(channel)
    asking.say(1, asked("rows"), timeout_ms=100)
    asking.say(2, asked("rows"))
    assert [(answer.question, answer.batch.last) for answer in asking.answers(2)] == [(1, True), (2, True)]
    asking.half_close()
    assert [*asking.call] == []


def test_a_silent_call_is_ended() -> None:
    with engram.serve(grpc="127.0.0.1:0", idle_seconds_max=1) as server, raw(server.url) as channel:
        asking = Asking(channel)
        asking.say(1, asked("none"))
        next(asking.call)
        unavailable(asking)
        with engram.connect(server.url) as remote:
            space = remote.space("s", dim=DIM)
            space.observe(vector=ROWS[0])
            for _ in range(2):
                assert len(space.recall(vector=ROWS[0])) == 1
                until(lambda: not server._grpc._questions)


def test_the_server_stops_behind_what_was_asked(gate: Gate) -> None:
    with engram.serve(grpc="127.0.0.1:0") as server, raw(server.url) as channel:
        space = server.engine.space("rows", dim=DIM)
        space.observe_batch(vectors=ROWS)
        idle, asking = Asking(channel), Asking(channel)
        idle.say(1, asked("none"))
        next(idle.call)
        for question in range(20):
            asking.say(question, asked("rows"))
        until(lambda: gate.held == 20)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        unavailable(idle)
        gate.set()
        assert {answer.question for answer in asking.answers(20)} == {*range(20)}
        unavailable(asking)
        stopping.join(5)
        assert not stopping.is_alive()


def unavailable(asking: Asking) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(asking.call)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    asking.half_close()


def test_there_are_only_so_many_calls() -> None:
    with engram.serve(grpc="127.0.0.1:0", streams_max=2) as small, raw(small.url) as channel:
        callers = [Asking(channel) for _ in range(3)]
        for one in callers[:2]:
            one.say(1, asked("none"))
            next(one.call)
        callers[2].say(1, asked("none"))
        with pytest.raises(grpc.RpcError) as caught:
            next(callers[2].call)
        assert reason(caught.value) == "TOO_LARGE"
        for one in callers:
            one.cancel()


# ---- our client ------------------------------------------------------------------------------------------------------


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
