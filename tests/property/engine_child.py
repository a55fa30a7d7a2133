"""An engine in a child process, driven over a pipe, so that a crash is a SIGKILL and never a close()."""

import atexit
import functools
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import engram

# A wire that is cut every 40 KB carries no large answer; now and then all of the client's attempts at a small one fail.
_PAGE, _ATTEMPTS = 200, 5


class Refused(Exception):
    """The engine raised: the exception's class by name, its message, its index."""


class _Nursery:
    """A process that has imported engram and opened nothing: forking it is much quicker than a new interpreter."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, __file__, str(theirs.fileno())]
        self._parent = os.getpid()
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        atexit.register(self._end)

    def fork(self, requests: int, answers: int) -> int:
        """Return the pid of a child that serves these two pipes."""
        socket.send_fds(self._socket, [b"f"], [requests, answers])
        return int(self._socket.recv(32))

    def _end(self) -> None:
        if os.getpid() != self._parent:
            return
        # Not `close`: a forked child that hangs would hold its copy open, and the wait for the end be for ever.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait()


@functools.cache
def _nursery() -> _Nursery:
    return _Nursery()


class EngineChild:
    """The parent's end: calls by name."""

    def __init__(self) -> None:
        (requests, to_child), (from_child, answers) = os.pipe(), os.pipe()
        self._pid = _nursery().fork(requests, answers)
        # Not our child, so it cannot be waited for; but its end can be seen, even after its pid is another's.
        self._death = os.pidfd_open(self._pid)
        os.close(requests)
        os.close(answers)
        self._requests, self._answers = os.fdopen(to_child, "wb"), os.fdopen(from_child, "rb")

    def send(self, name: str, *arguments: Any, **options: Any) -> None:
        pickle.dump((name, arguments, options), self._requests)
        self._requests.flush()

    def receive(self) -> Any:
        good, value = pickle.load(self._answers)
        if good:
            return value
        raise Refused(*value)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        self.send(name, *arguments, **options)
        return self.receive()

    def kill(self) -> None:
        signal.pidfd_send_signal(self._death, signal.SIGKILL)
        select.select([self._death], [], [])
        os.close(self._death)
        for pipe in (self._requests, self._answers):
            with suppress(BrokenPipeError):
                pipe.close()


class Calls:
    """The child's end: what can be called."""

    def __init__(self) -> None:
        self.engine: engram.Engine | None = None
        self._served: tuple[Any, ...] = ()
        self._lossy = False
        self.snapshots: dict[int, engram.Snapshot] = {}
        self.sessions: dict[int, engram.Session] = {}

    def _engine(self) -> engram.Engine:
        assert self.engine is not None
        return self.engine

    def open(self, path: str, limits: dict[str, int], wire: str | None = None) -> dict[str, Any]:
        """With `wire` all calls go over one that is "late", or "lossy": it also breaks connections."""
        here = self.engine = engram.open(path, limits=limits)
        self._lossy = wire == "lossy"
        if wire is not None:
            self._served = self._reach(here, self._lossy)
        self.snapshots.clear()
        self.sessions.clear()
        return here.report

    def _reach(self, here: engram.Engine, lossy: bool) -> tuple[Any, ...]:
        from engram.chaos.faults import Delay, Proxy, Reset

        server = engram.serve(here, grpc="127.0.0.1:0")
        proxy = Proxy(server.url, [Delay(0.001), *([Reset(40_000)] if lossy else [])], 1)
        self.engine = engram.connect(proxy.url)
        return proxy, server, here

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        self._engine().close()
        if self._served:
            proxy, server, here = self._served
            proxy.close()
            server.stop()
            here.close()

    def checkpoint(self) -> None:
        self._engine().checkpoint()

    def spaces(self) -> list[str]:
        return self._engine().spaces()

    def make(self, name: str, **options: Any) -> None:
        self._engine().space(name, **options)

    def drop(self, name: str) -> None:
        self._engine().drop_space(name)

    def observe(self, name: str, **options: Any) -> int:
        return self._engine().space(name).observe(**options).memory_id

    def observe_batch(self, name: str, **options: Any) -> tuple[list[int], list[int]]:
        ack = self._engine().space(name).observe_batch(**options)
        return ack.memory_ids.tolist(), [index for index, _ in ack.rejected]

    def session(self, name: str, **options: Any) -> tuple[int, str]:
        session = self._engine().space(name).session(**options)
        self.sessions[len(self.sessions)] = session
        return len(self.sessions) - 1, session.token

    def committed(self, handle: int) -> int:
        return self.sessions[handle].committed

    def say(self, handle: int, texts: list[str], first: int) -> tuple[list[int], bool]:
        ack = self.sessions[handle].observe_batch(texts=texts, sequence=first)
        return ack.memory_ids.tolist(), ack.duplicate

    def say_at_once(self, work: list[tuple[int, list[str], int]]) -> list[list[int]]:
        def speak(handle: int, texts: list[str], first: int) -> list[int]:
            session = self.sessions[handle]
            return [session.observe(text, sequence=first + n).memory_id for n, text in enumerate(texts)]

        with ThreadPoolExecutor(len(work)) as pool:
            return [done.result() for done in [pool.submit(speak, *one) for one in work]]

    def forget(self, name: str, memory_id: Any = None, **options: Any) -> int:
        return self._engine().space(name).forget(memory_id, **options)

    def history(self, of: str | int, key: str) -> list[tuple[int, int | None]]:
        return [(version.memory_id, version.ended) for version in self._reads(of).history(key)]

    def named(self, of: str | int, key: str) -> int | None:
        memory = self._reads(of).get(key=key)
        return None if memory is None else memory.memory_id

    def snapshot(self, name: str) -> tuple[int, int]:
        number = len(self.snapshots)
        self.snapshots[number] = self._engine().space(name).snapshot()
        return number, self.snapshots[number].generation

    def _reads(self, of: str | int) -> engram.Space | engram.Snapshot:
        return self._engine().space(of) if isinstance(of, str) else self.snapshots[of]

    def recall(self, of: str | int, vector: Any, k: int) -> list[int]:
        reads = self._reads(of)
        ids = [hit.memory_id for hit in reads.recall(vector=vector, k=k)]
        batch = reads.recall_batch([vector], k=k)[0][0]
        assert [one for one in batch.tolist() if one] == ids
        return ids

    def rows(self, of: str | int, after: int = 0, limit: int | None = None, as_of: Any = None) -> list[tuple[Any, ...]]:
        reads = self._reads(of)
        if limit is not None or not self._served:
            return [row(memory) for memory in reads.list(after=after, limit=limit, as_of=as_of)]
        rows: list[tuple[Any, ...]] = []
        while page := self._page(reads, after, as_of):
            rows += page
            after = page[-1][0]
        return rows

    def _page(self, reads: engram.Space | engram.Snapshot, after: int, as_of: Any) -> list[tuple[Any, ...]]:
        def once() -> list[tuple[Any, ...]]:
            return [row(memory) for memory in reads.list(after=after, limit=_PAGE, as_of=as_of)]

        for _ in range(_ATTEMPTS - 1 if self._lossy else 0):
            with suppress(engram.Unavailable):
                return once()
        return once()

    def get(self, of: str | int, memory_id: int) -> tuple[Any, ...] | None:
        memory = self._reads(of).get(memory_id)
        return None if memory is None else row(memory)

    def count(self, of: str | int) -> int:
        return len(self._reads(of))

    def incarnation(self, name: str) -> int:
        return int(self._engine().space(name).stats()["incarnation"])


def row(memory: engram.Memory) -> tuple[Any, ...]:
    vector = memory.vector
    return (
        memory.memory_id,
        memory.text,
        None if vector is None else vector.tolist(),
        memory.metadata,
        memory.confidence,
        memory.key,
    )


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    calls = Calls()
    while True:
        try:
            name, arguments, options = pickle.load(requests)
        except EOFError:
            os._exit(0)
        try:
            answer = (True, getattr(calls, name)(*arguments, **options))
        except engram.EngramError as error:
            answer = (False, (type(error).__name__, str(error), getattr(error, "index", None)))
        pickle.dump(answer, answers)
        answers.flush()


def nurse(orders: socket.socket) -> None:
    """Forks a child for each order, until the parent has gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _ = engram.serve, engram.connect  # imported once, not by each child
    while True:
        _, pipes, _, _ = socket.recv_fds(orders, 1, 2)
        if not pipes:
            os._exit(0)
        if (pid := os.fork()) == 0:
            orders.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            serve(os.fdopen(pipes[0], "rb"), os.fdopen(pipes[1], "wb"))
        for pipe in pipes:
            os.close(pipe)
        orders.send(str(pid).encode())


if __name__ == "__main__":
    sys.path[:] = [part for part in sys.path if part != str(Path(__file__).parent)]
    nurse(socket.socket(fileno=int(sys.argv[1])))
