"""What the server takes, beside what the wire and the disk alone would: loopback, client and server on the same cores.

    python benchmarks/service.py wire     # observations/s through the service; a bare echo; the same bytes on the disk
    python benchmarks/service.py target   # so many a second offered, beside recalls: what is accepted, how late

Open loop: a latency counts from the time a frame was due. Vectors are those of the data set (ENGRAM_BENCH_DATA), or the
bundled sample, each mixed with a twentieth of another, so that hardly two are alike.
"""

import argparse
import asyncio
import collections
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np

import engram
from engram._sample import load_full, load_sample

_T = TypeVar("_T")

DIM = 384
FRAME = 256
ANSWER = 600  # bytes, of ten hits
CHECKED = 50  # recalls whose answers are compared with exact ones


@functools.cache
def vectors() -> np.ndarray:
    sample = load_full() or load_sample()
    return np.asarray(sample.vectors, dtype=np.float32)


class Rows:
    """Frames of real rows, each a little mixed with another: no two frames alike, and little work for the client."""

    def __init__(self, seed: int = 1) -> None:
        self._base, self._draw = vectors(), np.random.default_rng(seed)

    def next(self, count: int = FRAME) -> np.ndarray:
        first, other = self._draw.integers(0, len(self._base) - count + 1, 2)
        return self._base[first : first + count] + np.float32(0.05) * self._base[other : other + count]


def anonymous_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


class ServerProcess:
    def __init__(self, data: Path, *more: str) -> None:
        command = [sys.executable, "-m", "engram.cli", "serve", "--json", "--grpc", "127.0.0.1:0", "--data", str(data)]
        self._process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        self.url: str = json.loads(self._process.stdout.readline())["grpc"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def anonymous_mib(self) -> float:
        return anonymous_mib(self.pid)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def quantiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    p50, p99 = np.quantile(seconds, (0.5, 0.99)) * 1000
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


# ---- the wire --------------------------------------------------------------------------------------------------------


async def _echo_server(ready: Any) -> None:
    async def echo(requests: Any, context: Any) -> Any:
        async for request in requests:
            yield request[:16]

    async def answer(request: bytes, context: Any) -> Any:
        yield request[:ANSWER]

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "Answer": grpc.unary_stream_rpc_method_handler(answer),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready(port)
    await server.wait_for_termination()


def bare(run: Callable[[grpc.aio.Channel], Coroutine[Any, Any, _T]]) -> _T:
    """Talk with a bare `grpc.aio` server in another process."""
    process = subprocess.Popen([sys.executable, __file__, "echo"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    port = int(process.stdout.readline())

    async def talk() -> _T:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            return await run(channel)

    try:
        return asyncio.run(talk())
    finally:
        process.kill()
        process.wait()


def bare_recalls(rate: float, seconds: float) -> dict[str, float]:
    """How late the answers are, as large as those to recalls, of a server that does nothing but answer; open loop."""
    latencies: list[float] = []

    async def run(channel: grpc.aio.Channel) -> None:
        call, cue = channel.unary_stream("/bare/Answer"), Rows().next(1).tobytes()

        async def one(due: float) -> None:
            async for _ in call(cue):
                pass
            latencies.append(time.perf_counter() - due)

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(round(rate * seconds)):
                due = begun + number / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one(due))

    bare(run)
    return quantiles(latencies)


def echo(seconds: float) -> float:
    """Observations/s of a bare `grpc.aio` stream that answers each frame with a few bytes."""
    message = Rows().next().tobytes()

    async def run(channel: grpc.aio.Channel) -> float:
        call = channel.stream_stream("/bare/Echo")()
        done, flying, begun = 0, 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            while flying < 16:
                await call.write(message)
                flying += 1
            await call.read()
            done, flying = done + FRAME, flying - 1
        spent = time.perf_counter() - begun
        call.cancel()
        return done / spent

    return bare(run)


def twin(folder: Path, seconds: float, rate: float = float("inf")) -> tuple[float, dict[str, float]]:
    """Write the same bytes to a log, synced, and to a file of rows: observations/s, and, of a rate, how late."""
    message, late = Rows().next().tobytes(), []
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    rows = os.open(folder / "rows", os.O_CREAT | os.O_WRONLY)
    done, begun = 0, time.perf_counter()
    while (due := begun + done / rate) - begun < seconds and time.perf_counter() - begun < seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        os.write(log, message)
        os.fdatasync(log)
        late.append(time.perf_counter() - due)
        os.write(rows, message)
        done += FRAME
    spent = time.perf_counter() - begun
    os.close(log)
    os.close(rows)
    return done / spent, quantiles(late)


def wire(seconds: float, spaces: int) -> dict[str, Any]:
    """As many as it takes over so many spaces."""
    with tempfile.TemporaryDirectory(prefix="engram-bench-") as folder:
        server = ServerProcess(Path(folder) / "data")
        rows = Rows()
        with engram.connect(server.url) as engine:
            streams = [engine.space(f"s{n}", dim=DIM).stream(buffer_bytes=4 << 20) for n in range(spaces)]
            before, given, begun = server.anonymous_mib(), 0, time.perf_counter()
            while time.perf_counter() - begun < seconds:
                streams[given // FRAME % spaces].observe_batch(vectors=rows.next())
                given += FRAME
            for stream in streams:
                stream.flush(120)
            spent = time.perf_counter() - begun
            grown = server.anonymous_mib() - before
            for stream in streams:
                stream.detach()
        server.stop()
        figures = {
            "observations": given,
            "per_second": round(given / spent),
            "anonymous_kib_a_row": round(grown * 1024 / given, 2),
        }
        figures["echo_per_second"] = round(echo(seconds / 4))
        figures["twin_per_second"] = round(twin(Path(folder), seconds / 4)[0])
    figures["of_echo"] = round(figures["per_second"] / figures["echo_per_second"], 3)
    figures["of_twin"] = round(figures["per_second"] / figures["twin_per_second"], 3)
    return figures


# ---- the target line -------------------------------------------------------------------------------------------------


class Source:
    """A stream whose frames are due at a time, whatever became of the ones before."""

    def __init__(self, stream: engram.ObserveStream, seconds: list[float]) -> None:
        self._due: collections.deque[tuple[int, float]] = collections.deque()
        self._seconds = seconds
        self.all: list[tuple[int, float]] = []
        self.stream = stream
        stream._flow.on_progress = self._progress

    def due(self, last: int, at: float) -> None:
        self.all.append((last, at))
        self._due.append((last, at))

    def _progress(self) -> None:
        now = time.perf_counter()
        while self._due and self._due[0][0] <= self.stream.committed:
            self._seconds.append(now - self._due.popleft()[1])


def visibility(due: list[tuple[int, float]], seen: list[tuple[float, int]]) -> list[float]:
    """Seconds from when each frame was due until a recall of its space that saw it had answered."""
    seconds, answers = [], iter(sorted(seen))
    at, generation = next(answers, (0.0, 0))
    for last, due_at in due:
        while generation < last:
            at, generation = next(answers, (0.0, 1 << 63))
        if at == 0.0:
            break
        seconds.append(at - due_at)
    return seconds


def target(rate: float, seconds: float, spaces: int, recalls: float) -> dict[str, Any]:
    """So many observations and recalls a second offered for so long."""
    with tempfile.TemporaryDirectory(prefix="engram-bench-") as folder:
        server = ServerProcess(Path(folder) / "data")
        rows, acks = Rows(), []
        with engram.connect(server.url) as engine, engram.connect(server.url) as other:
            sources = [Source(engine.space(f"s{n}", dim=DIM).stream(buffer_bytes=8 << 20), acks) for n in range(spaces)]
            # Another process: a second client, not a second thread of the first.
            command = [sys.executable, __file__, "recall", "--url", server.url, "--recalls", str(recalls)]
            reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert reader.stdout is not None
            reader.stdout.readline()
            given = late = 0
            first_late = None
            begun = time.perf_counter()
            while (due := given / rate) < seconds and time.perf_counter() - begun < 2 * seconds:
                time.sleep(max(0.0, begun + due - time.perf_counter()))
                source = sources[given // FRAME % spaces]
                if source.stream._flow.kept_bytes > 8 << 20 and first_late is None:
                    first_late = time.perf_counter() - begun
                sequences = source.stream.observe_batch(vectors=rows.next())
                source.due(sequences[-1], begun + due)
                given += FRAME
                if time.perf_counter() - begun - due > 0.1:
                    late += FRAME
            took = time.perf_counter() - begun
            level, refusals = sources[0].stream.level, sum(source.stream.refusals for source in sources)
            accepted = sum(source.stream.committed for source in sources)
            recalled = json.loads(reader.communicate()[0])
            seen = visibility(sources[0].all, recalled.pop("seen"))
            stats = other.space("s0").stats()
            for source in sources:
                source.stream.detach()
        server.stop()
        twins = twin(Path(folder), seconds / 4, rate)[1]
    return {
        "offered_per_second": rate,
        "spaces": spaces,
        "given_per_second": round(given / took),
        "acknowledged_per_second": round(accepted / took),
        "given_late": late,
        "frames_refused": refusals,
        "full_after_seconds": first_late,
        "level": level,
        "acknowledgement": quantiles(acks),
        "twin": twins,
        "visibility": quantiles(seen),
        **recalled,
        "bare_recall": bare_recalls(recalls, seconds / 4),
        "absorbed_s0": stats["absorbed_generation"],
        "generation_s0": stats["generation"],
    }


def recalling(url: str, rate: float) -> None:
    """Recalls at a rate, open loop, on eight threads, until standard input is closed; then some again, exactly."""
    with engram.connect(url) as engine:
        space, cues = engine.space("s0"), Rows(2)
        latencies: list[float] = []
        answers: list[tuple[float, np.ndarray, engram.Hits]] = []
        begun, lock, stop = time.perf_counter(), threading.Lock(), threading.Event()
        numbers = itertools.count(1)

        def run() -> None:
            while not stop.is_set():
                due = begun + next(numbers) / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                cue = cues.next(1)[0]
                hits = space.recall(vector=cue, k=10)
                now = time.perf_counter()
                with lock:
                    latencies.append(now - due)
                    answers.append((now, cue, hits))

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join()
        found = []
        for _, cue, hits in answers[:: max(1, len(answers) // CHECKED)]:
            if len(hits) == 10:
                truth = space.recall(vector=cue, k=10, exact=True, as_of=hits.generation)
                found.append(np.mean([hit.score >= truth[-1].score - 1e-6 for hit in hits]))
        figures = {
            "recalls": len(answers),
            "recall": quantiles(latencies),
            "recall_at_10": round(float(np.mean(found)), 4) if found else None,
            "lag_p99_s": float(np.quantile([hits.lag for *_, hits in answers], 0.99)) if answers else None,
            "seen": [(at, hits.generation) for at, _, hits in answers],
        }
        print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("wire", "target", "recall", "echo"))
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--spaces", type=int, nargs="*", default=[1, 64, 300])
    parser.add_argument("--rate", type=float, default=100_000)
    parser.add_argument("--recalls", type=float, default=200)
    parser.add_argument("--url")
    given = parser.parse_args()
    if given.what == "echo":
        asyncio.run(_echo_server(lambda port: print(port, flush=True)))
    if given.what == "recall":
        recalling(given.url, given.recalls)
        return
    for spaces in given.spaces:
        if given.what == "wire":
            figures = wire(given.seconds, spaces)
        else:
            figures = target(given.rate, given.seconds, spaces, given.recalls)
        print(json.dumps({"what": given.what, "spaces": spaces, **figures}), flush=True)


if __name__ == "__main__":
    main()
