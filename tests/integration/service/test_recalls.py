"""Recalls that share a call: side by side, each with its own end."""

import collections
import threading
import time
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

import engram
import engram.aio
from engram.server import Server
from engram.server.questions import QUESTIONS_MAX
from engram.v1 import service_pb2 as pb

from .asking import DIM, ROWS, Asking, Gate, asked, slowly, unavailable, until
from .support import method, raw, reason


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
        asking.say(question, asked("wide", k=200), timeout_ms=500)
    until(lambda: wide.stats()["snapshots"] > 0)
    space = remote.space("rows")
    for row in range(50):
        space.recall(vector=ROWS[row], k=1)
    assert wide.stats()["recalls"] - before <= QUESTIONS_MAX
    assert wide.stats()["snapshots"] <= QUESTIONS_MAX
    until(lambda: wide.stats()["snapshots"] == 0)
    with pytest.raises(grpc.RpcError, match="not read"):
        collections.deque(asking.call)


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


def test_an_error_that_waits_to_be_sent_is_not_lost(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, rows: engram.Space
) -> None:
    """Time was over meanwhile, and the question had no end."""
    slowly(monkeypatch, 0.5, 0)
    asking = Asking(channel)
    asking.say(1, asked("rows"))
    time.sleep(0.2)
    asking.say(2, asked("none"), timeout_ms=100)
    assert {answer.question for answer in asking.answers(2)} == {1, 2}
    asking.cancel()


def test_who_does_not_read_errors_is_cut_too(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody read had no time."""
    slowly(monkeypatch, 60, 0)
    asking = Asking(channel)
    asking.say(1, asked("none"), timeout_ms=100)
    asking.say(2, asked("none"), timeout_ms=100)
    with pytest.raises(grpc.RpcError, match="not read"):
        next(asking.call)
    asking.half_close()


def test_who_takes_nothing_holds_no_place() -> None:
    """The status that he was to be told waited behind what he did not read, for ever."""
    with engram.serve(grpc="127.0.0.1:0", streams_max=1) as server, raw(server.url) as channel:
        server.engine.space("wide", dim=DIM).observe_batch(vectors=ROWS[:200], texts=["x" * 20_000] * 200)
        deaf = Asking(channel)
        for question in range(5):
            deaf.say(question, asked("wide", k=200), timeout_ms=200)
        until(lambda: len(server._grpc._questions) == 1)
        until(lambda: len(server._grpc._questions) == 0)
        with raw(server.url) as other:
            asking = Asking(other)
            asking.say(1, asked("wide", k=1))
            assert len(next(asking.call).batch.hits) == 1
            asking.cancel()
        until(lambda: server._grpc._under_way == 0)
        deaf.cancel()


def test_a_slow_reader_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds for each answer were too few where many share a slow link."""
    slowly(monkeypatch, 2.5, 0)
    with engram.serve(grpc="127.0.0.1:0") as server, engram.connect(server.url) as remote:
        space = remote.space("s", dim=DIM)
        space.observe(vector=ROWS[0])
        assert len(space.recall(vector=ROWS[0])) == 1
        assert space.stats()["recalls"] == 1


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


def test_there_are_only_so_many_calls() -> None:
    with engram.serve(grpc="127.0.0.1:0", streams_max=2) as small, raw(small.url) as channel:
        callers = [Asking(channel) for _ in range(2)]
        for one in callers:
            one.say(1, asked("none"))
            next(one.call)
        callers.append(Asking(channel))
        callers[2].say(1, asked("none"))
        with pytest.raises(grpc.RpcError) as caught:
            next(callers[2].call)
        assert reason(caught.value) == "TOO_LARGE"
        for one in callers:
            one.cancel()
