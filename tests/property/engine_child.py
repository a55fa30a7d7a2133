"""An engine in a child process, driven over a pipe, so that a crash is a SIGKILL and never a close()."""

import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import engram


class Refused(Exception):
    """The engine raised: the exception's class by name, its message, its index."""


class EngineChild:
    """The parent's end: calls by name."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1)

    def send(self, name: str, *arguments: Any, **options: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump((name, arguments, options), self._process.stdin)
        self._process.stdin.flush()

    def receive(self) -> Any:
        assert self._process.stdout is not None
        good, value = pickle.load(self._process.stdout)
        if good:
            return value
        raise Refused(*value)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        self.send(name, *arguments, **options)
        return self.receive()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue


class Calls:
    """The child's end: what can be called."""

    def __init__(self) -> None:
        self.engine: engram.Engine | None = None
        self.snapshots: dict[int, engram.Snapshot] = {}
        self.sessions: dict[int, engram.Session] = {}

    def _engine(self) -> engram.Engine:
        assert self.engine is not None
        return self.engine

    def open(self, path: str, limits: dict[str, int]) -> dict[str, Any]:
        self.engine = engram.open(path, limits=limits)
        self.snapshots.clear()
        self.sessions.clear()
        return self.engine.report

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        self._engine().close()

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
        return [row(memory) for memory in self._reads(of).list(after=after, limit=limit, as_of=as_of)]

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


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[:] = [part for part in sys.path if part != str(Path(__file__).parent)]
    serve(sys.stdin.buffer, answers)
