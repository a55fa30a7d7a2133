"""A server in a crowd: steps of load until it refuses, sessions that only stand there, neighbours that do not behave.

    python benchmarks/crowds.py ramp        # offered, acknowledged, refused, how late, at each step; --plot FILE.svg
    python benchmarks/crowds.py drain       # the retry-after that is told, beside the time it took until there was room
    python benchmarks/crowds.py sessions    # memory of a session that stands idle, beside a bare grpc.aio stream
    python benchmarks/crowds.py neighbours  # latencies of one client: alone, beside a heavy one, beside four bad ones;
                                            # and beside something else that uses as much CPU and disk (P6)

Loopback, client and server on the same cores; vectors as in `service.py`.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import service
from service import DIM, FRAME, Rows, ServerProcess, Source, quantiles

import engram
from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb

USED = ("cpu", "niced_cpu", "mib_written")  # of each second
SLICE = 0.005  # seconds, of computing and resting
STEPS = (10_000, 20_000, 40_000, 60_000, 80_000, 120_000)


@contextmanager
def served(*more: str) -> Iterator[ServerProcess]:
    with tempfile.TemporaryDirectory(prefix="engram-bench-") as folder:
        server = ServerProcess(Path(folder) / "data", *more)
        try:
            yield server
        finally:
            server.stop()


# ---- steps of load ---------------------------------------------------------------------------------------------------


def step(rate: float, seconds: float, spaces: int) -> dict[str, Any]:
    """So much offered for so long to a new server; the levels are those that the client hears."""
    with served() as server, engram.connect(server.url) as engine:
        acks: list[float] = []
        sources = [Source(engine.space(f"s{n}", dim=DIM).stream(buffer_bytes=64 << 20), acks) for n in range(spaces)]
        rows, given, levels, begun = Rows(), 0, [], time.perf_counter()
        while (due := given / rate) < seconds and time.perf_counter() - begun < seconds:
            time.sleep(max(0.0, begun + due - time.perf_counter()))
            source = sources[given // FRAME % spaces]
            source.due(source.stream.observe_batch(vectors=rows.next())[-1], begun + due)
            levels.append(source.stream.level)
            given += FRAME
        took = time.perf_counter() - begun
        accepted = sum(source.stream.committed for source in sources)
        refusals = sum(source.stream.refusals for source in sources)
        for source in sources:
            source.stream.detach()
    worst = max(levels, key=("NORMAL", "WARNING", "CRITICAL", "OVERLOADED").index)
    return {
        "offered": rate,
        "given": round(given / took),
        "acknowledged": round(accepted / took),
        "frames refused": refusals,
        **quantiles(acks),
        "level": worst,
    }


def ramp(rates: list[float], seconds: float, spaces: int, plot: Path | None) -> None:
    lines = []
    for rate in rates:
        lines.append(step(rate, seconds, spaces))
        print(json.dumps({"what": "ramp", "spaces": spaces, **lines[-1]}), flush=True)
    if plot is not None:
        import plots

        plots.steps(lines, f"{spaces} space(s), frames of {FRAME}, sync", plot)


def drain(spaces: int) -> dict[str, Any]:
    """As fast as it goes until the first refusal; then nothing, until all are below half of what they may hold."""
    told: list[tuple[float, int]] = []
    with served() as server, engram.connect(server.url) as engine:
        there = [engine.space(f"s{n}", dim=DIM) for n in range(spaces)]
        streams = [space.stream(buffer_bytes=64 << 20) for space in there]

        def watch(stream: engram.ObserveStream) -> None:
            refused = stream._flow._refused

            def first(fault: frame_pb2.Fault) -> None:
                if fault.code == "OVERLOADED":
                    told.append((time.perf_counter(), fault.retry_after_ms))
                refused(fault)

            stream._flow._refused = first

        for stream in streams:
            watch(stream)
        rows, given = Rows(), 0
        while not told:
            streams[given % spaces].observe_batch(vectors=rows.next())
            given += 1
        for stream in streams:
            stream.detach()

        def pressed() -> bool:
            own = max(space.stats()["pressure"] for space in there[:8])
            return own > 0.5 or engine.stats()["unsealed_bytes"] > 256 << 20

        while pressed():
            time.sleep(0.02)
        at, retry_ms = told[0]
        return {"rows": given * FRAME, "told_ms": retry_ms, "took_ms": round((time.perf_counter() - at) * 1000)}


# ---- sessions that only stand there ----------------------------------------------------------------------------------


async def _stand(address: str, path: str, hello: bytes, count: int, anonymous: Any) -> float:
    """Kibibytes a stream in the server, when each has said hello and was answered."""
    async with grpc.aio.insecure_channel(address) as channel:

        async def one() -> Any:
            call = channel.stream_stream(path)()
            await call.write(hello)
            await call.read()
            return call

        held = [await one() for _ in range(50)]  # what grows once has grown
        before = anonymous()
        for _ in range(count // 50):
            held += await asyncio.gather(*(one() for _ in range(50)))
        await asyncio.sleep(2)
        grown: float = (anonymous() - before) * 1024 / (count // 50 * 50)
        return grown


def sessions(count: int) -> dict[str, Any]:
    process = subprocess.Popen([sys.executable, service.__file__, "echo"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    address = f"127.0.0.1:{int(process.stdout.readline())}"
    bare = asyncio.run(_stand(address, "/bare/Echo", b"x", count, lambda: service.anonymous_mib(process.pid)))
    process.kill()
    process.wait()
    with served() as server, engram.connect(server.url) as engine:
        engine.space("s", dim=DIM)
        hello = pb.ObserveRequest(open=pb.Open(space="s")).SerializeToString()
        address = server.url.removeprefix("grpc://")
        own = asyncio.run(_stand(address, "/engram.v1.Engram/Observe", hello, count, server.anonymous_mib))
    return {"sessions": count, "kib_each": round(own, 1), "bare_kib_each": round(bare, 1), "over": round(own - bare, 1)}


# ---- neighbours ------------------------------------------------------------------------------------------------------


def heavy(url: str, stop: threading.Event) -> None:
    """As much as it may."""
    with engram.connect(url) as engine:
        stream, rows = engine.space("other", dim=DIM).stream(), Rows()
        while not stop.is_set():
            stream.observe_batch(vectors=rows.next())
        stream.detach()


def bad(url: str, stop: threading.Event, kind: str) -> None:
    """It does not read, ignores its window, lies about sequences, or sends garbage."""
    rows = Rows(2)

    def messages() -> Iterator[bytes]:
        yield pb.ObserveRequest(open=pb.Open(space="other")).SerializeToString()
        for turn in range(200):
            if stop.is_set():
                return
            if kind == "garbage":
                yield random.randbytes(300_000)
            first = (1, 7, 1 << 60, 3)[turn % 4] if kind == "liar" else turn * FRAME + 1
            vectors = rows.next().tobytes()
            frame = frame_pb2.Frame(first_sequence=first, count=FRAME, dim=DIM, vectors=vectors)
            yield pb.ObserveRequest(frame=frame).SerializeToString()

    while not stop.is_set():
        with grpc.insecure_channel(url.removeprefix("grpc://")) as channel:
            call = channel.stream_stream("/engram.v1.Engram/Observe")(messages())
            try:
                for _ in call:
                    if kind == "deaf":
                        stop.wait(5)
            except grpc.RpcError:
                pass
            call.cancel()


def compute(share: float, steps_back: bool) -> None:
    os.nice(10 if steps_back else 0)
    rows = np.ones((FRAME, DIM), dtype=np.float32)
    while True:
        until = time.perf_counter() + share * SLICE
        while time.perf_counter() < until:
            np.linalg.norm(rows, axis=1)
        time.sleep((1 - share) * SLICE)


def write(bytes_a_second: float) -> None:
    block = random.randbytes(1 << 20)
    due = time.perf_counter()
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        while bytes_a_second > 0:
            time.sleep(max(0.0, due - time.perf_counter()))
            due = max(time.perf_counter() - 1, due + len(block) / bytes_a_second)
            if file.tell() > 256 << 20:
                file.seek(0)
            file.write(block)
            os.fdatasync(file.fileno())


def outside(cpu: float, niced: float, bytes_a_second: float) -> None:
    """Compute for so many seconds a second, in part stepping back at least as the engine does; write and sync."""
    jobs: list[tuple[Any, ...]] = [(write, bytes_a_second)]
    for seconds, steps_back in ((cpu, False), (niced, True)):
        jobs += [(compute, min(1.0, seconds - core), steps_back) for core in range(math.ceil(seconds))]
    processes = [multiprocessing.Process(target=job, args=arguments, daemon=True) for job, *arguments in jobs]
    for process in processes:
        process.start()
    sys.stdin.read()
    for process in processes:
        process.kill()


def used(pid: int) -> tuple[float, float, float]:
    """Return the CPU that a process's threads have used, and that of those that step back, in seconds; MiB written."""
    cpu = [0.0, 0.0]
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # it has ended
            fields = task.read_text().rpartition(")")[2].split()
            cpu[int(fields[16]) > 0] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    written = re.search(r"^write_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)
    assert written is not None
    return cpu[0], cpu[1], int(written[1]) / (1 << 20)


def columns(rows: list[tuple[float, ...]]) -> Iterator[tuple[float, ...]]:
    return zip(*rows, strict=True)


def beside(kind: str, seconds: float, *more: str) -> dict[str, Any]:
    """One client at 2,000 observations and 50 recalls a second, beside others in a process of their own."""
    with served() as server, engram.connect(server.url) as engine:
        engine.space("other", dim=DIM)
        acks: list[float] = []
        recalls: list[float] = []
        source, rows = Source(engine.space("s", dim=DIM).stream(), acks), Rows()
        source.stream.observe_batch(vectors=rows.next())
        source.stream.flush(60)
        others = subprocess.Popen([sys.executable, __file__, kind, "--url", server.url, *more], stdin=subprocess.PIPE)
        time.sleep(1)
        children = Path(f"/proc/{others.pid}/task/{others.pid}/children").read_text().split()
        pids = (server.pid, others.pid, *map(int, children))
        before = [used(pid) for pid in pids]
        stop, space, cues = threading.Event(), engine.space("s"), Rows(2)

        def recall() -> None:
            begun = time.perf_counter()
            while not stop.is_set():
                due = begun + len(recalls) / 50
                time.sleep(max(0.0, due - time.perf_counter()))
                space.recall(vector=cues.next(1)[0], k=10)
                recalls.append(time.perf_counter() - due)

        thread = threading.Thread(target=recall)
        thread.start()
        begun, given = time.perf_counter(), 0
        while (due := given / 2_000) < seconds:
            time.sleep(max(0.0, begun + due - time.perf_counter()))
            source.due(source.stream.observe_batch(vectors=rows.next(32))[-1], begun + due)
            given += 32
        source.stream.flush(60)
        took = time.perf_counter() - begun
        now = [used(pid) for pid in pids]
        spent = [(sum(after) - sum(first)) / took for first, after in zip(columns(before), columns(now), strict=True)]
        stop.set()
        thread.join()
        others.communicate()
        refusals = source.stream.refusals
        source.stream.detach()
    return {
        "beside": kind,
        "acknowledgement": quantiles(acks),
        "recall": quantiles(recalls),
        "refusals": refusals,
        **{name: round(value, 2) for name, value in zip(USED, spent, strict=True)},
    }


def neighbours(seconds: float) -> Iterator[dict[str, Any]]:
    """Each kind, and as much as it used from outside; the goal: recall p99 of the first at most 1.2 x the second's."""
    alone = beside("nobody", seconds)
    yield alone
    for kind in ("heavy", "bad"):
        figures = beside(kind, seconds)
        yield figures
        more = [f"--{name}={max(0.0, figures[name] - alone[name])}" for name in USED]
        yield {"instead_of": kind, **beside("outside", seconds, *more)}


def others(kind: str, url: str) -> None:
    stop = threading.Event()
    jobs = {"heavy": [(heavy, ())], "bad": [(bad, (one,)) for one in ("deaf", "greedy", "liar", "garbage")]}
    threads = [threading.Thread(target=job, args=(url, stop, *more)) for job, more in jobs.get(kind, [])]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whats = ("ramp", "drain", "sessions", "neighbours")
    parser.add_argument("what", choices=(*whats, "nobody", "heavy", "bad", "outside"))
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--spaces", type=int, default=1)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--rates", type=float, nargs="*", default=STEPS)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--url")
    for name in USED:
        parser.add_argument(f"--{name}", type=float, default=1.0)
    given = parser.parse_args()
    if given.what == "ramp":
        ramp(given.rates, given.seconds, given.spaces, given.plot)
    elif given.what == "drain":
        print(json.dumps({"what": "drain", "spaces": given.spaces, **drain(given.spaces)}))
    elif given.what == "sessions":
        print(json.dumps({"what": "sessions", **sessions(given.count)}))
    elif given.what == "neighbours":
        for figures in neighbours(given.seconds):
            print(json.dumps({"what": "neighbours", **figures}), flush=True)
    elif given.what == "outside":
        outside(min(given.cpu, os.cpu_count() or 1), given.niced_cpu, given.mib_written * (1 << 20))
    else:
        others(given.what, given.url)


if __name__ == "__main__":
    main()
