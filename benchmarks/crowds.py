"""A server in a crowd: steps of load until it refuses, sessions that only stand there, neighbours that do not behave.

    python benchmarks/crowds.py ramp        # offered, acknowledged, refused, how late, at each step; --plot FILE.svg
    python benchmarks/crowds.py drain       # the retry-after that is told, beside the time it took until there was room
    python benchmarks/crowds.py sessions    # memory of a session that stands idle, beside a bare grpc.aio stream
    python benchmarks/crowds.py neighbours  # latencies of one client: alone, beside a heavy one, beside four bad ones;
                                            # and beside something else that uses as much, when they did (P6)

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
from concurrent.futures import ThreadPoolExecutor
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
SLOT = 0.5  # seconds: load comes in bursts
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


def heavy(url: str, stop: threading.Event, rows: Rows) -> None:
    """As much as it may."""
    with engram.connect(url) as engine:
        stream = engine.space("other", dim=DIM).stream()
        while not stop.is_set():
            stream.observe_batch(vectors=rows.next())
        stream.detach()


def bad(url: str, stop: threading.Event, rows: Rows, kind: str) -> None:
    """It does not read, ignores its window, lies about sequences, or sends garbage."""

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


def owed(slots: list[float], seconds: float) -> float:
    """Return how much of a load, so much in each slot of time and then the same again, is due by then."""
    whole, part = divmod(seconds / SLOT, len(slots))
    return float(whole * sum(slots) + np.interp(part, range(len(slots) + 1), np.cumsum([0, *slots])))


def compute(slots: list[float], steps_back: bool) -> None:
    """Use so many seconds of a core in each slot."""
    os.nice(10 if steps_back else 0)
    rows, begun = np.ones((FRAME, DIM), dtype=np.float32), time.perf_counter()
    before = time.process_time()
    while True:
        if time.process_time() - before < owed(slots, time.perf_counter() - begun):
            np.linalg.norm(rows, axis=1)
        else:
            time.sleep(0.001)


def write(slots: list[float]) -> None:
    """Write and sync so many MiB in each slot."""
    block, begun, written = random.randbytes(1 << 20), time.perf_counter(), 0
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        while True:
            if written + 1 > owed(slots, time.perf_counter() - begun):
                time.sleep(0.001)
                continue
            if file.tell() > 256 << 20:
                file.seek(0)
            file.write(block)
            os.fdatasync(file.fileno())
            written += 1


def outside(load: list[list[float]]) -> None:
    """In each slot use so many seconds of CPU, so many stepping back at least as the engine does, and write so much."""
    cpu, niced, written = ([slot[which] for slot in load] for which in range(len(USED)))
    jobs: list[tuple[Any, ...]] = [(write, written)]
    for slots, steps_back in ((cpu, False), (niced, True)):
        for core in range(math.ceil(max(slots) / SLOT)):
            jobs.append((compute, [min(SLOT, max(0.0, one - core * SLOT)) for one in slots], steps_back))
    processes = [multiprocessing.Process(target=job, args=arguments, daemon=True) for job, *arguments in jobs]
    for process in processes:
        process.start()
    print("ready", flush=True)
    sys.stdin.read()
    for process in processes:
        process.kill()


def used(pids: list[int]) -> np.ndarray:
    """Return what processes have used: seconds of CPU, those of threads that step back, and MiB written."""
    total = np.zeros(len(USED))
    for pid in pids:
        process = Path(f"/proc/{pid}")
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        niced = 0.0
        for task in (process / "task").iterdir():
            with suppress(OSError):  # it has ended; those that step back do not
                if int((task / "stat").read_text().rpartition(")")[2].split()[16]) > 0:
                    niced += int((task / "schedstat").read_text().split()[0]) / 1e9
        written = re.search(r"^write_bytes: (\d+)", (process / "io").read_text(), re.MULTILINE)
        assert written is not None
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        total += cpu - niced, niced, int(written[1]) / (1 << 20)
    return total


def beside(kind: str, seconds: float, *more: str) -> dict[str, Any]:
    """One client at 2,000 observations and 50 recalls a second, beside others, for a second or more."""
    seconds = max(seconds, 2 * SLOT)
    with served() as server, engram.connect(server.url) as engine:
        engine.space("other", dim=DIM)
        acks: list[float] = []
        recalls: list[float] = []
        source, rows = Source(engine.space("s", dim=DIM).stream(), acks), Rows()
        source.stream.observe_batch(vectors=rows.next())
        source.stream.flush(60)
        command = [sys.executable, __file__, kind, "--url", server.url, *more]
        others = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert others.stdout is not None
        others.stdout.readline()  # they have their rows
        time.sleep(1)
        children = Path(f"/proc/{others.pid}/task/{others.pid}/children").read_text().split()
        pids = [server.pid, others.pid, *map(int, children)]
        stop, space, cues = threading.Event(), engine.space("s"), Rows(2)

        def recall(cue: np.ndarray, due: float) -> None:
            space.recall(vector=cue, k=10)
            recalls.append(time.perf_counter() - due)

        def ask() -> None:
            """Each when it is due, whether or not the one before has its answer."""
            begun, asked = time.perf_counter(), []
            with ThreadPoolExecutor(50) as pool:
                while not stop.is_set():
                    due = begun + len(asked) / 50
                    time.sleep(max(0.0, due - time.perf_counter()))
                    asked.append(pool.submit(recall, cues.next(1)[0], due))
            for one in asked:
                one.result()  # or what went wrong

        thread = threading.Thread(target=ask)
        thread.start()
        spent, begun, given = [used(pids)], time.perf_counter(), 0
        while (due := given / 2_000) < seconds:
            if due >= len(spent) * SLOT:
                spent.append(used(pids))
            time.sleep(max(0.0, begun + due - time.perf_counter()))
            source.due(source.stream.observe_batch(vectors=rows.next(32))[-1], begun + due)
            given += 32
        source.stream.flush(60)
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
        **dict(zip(USED, ((spent[-1] - spent[0]) / (len(spent) - 1) / SLOT).round(2).tolist(), strict=True)),
        "load": np.diff(spent, axis=0).round(3).tolist(),
    }


def neighbours(seconds: float) -> Iterator[dict[str, Any]]:
    """Each kind, then from outside what it used when it used it. The goal: recall p99 at most 1.2 x the latter."""
    alone = beside("nobody", seconds)
    usual = np.mean(alone.pop("load"), axis=0)
    yield alone
    for kind in ("heavy", "bad"):
        figures = beside(kind, seconds)
        load = np.maximum(0, np.array(figures.pop("load")) - usual).tolist()
        yield figures
        figures = beside("outside", seconds, "--load", json.dumps(load))
        del figures["load"]
        yield {"instead_of": kind, **figures}


def others(kind: str, url: str) -> None:
    stop = threading.Event()
    jobs = {"heavy": [(heavy, ())], "bad": [(bad, (one,)) for one in ("deaf", "greedy", "liar", "garbage")]}
    threads = [
        threading.Thread(target=job, args=(url, stop, Rows(seed), *more))
        for seed, (job, more) in enumerate(jobs.get(kind, []), 2)
    ]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
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
    parser.add_argument("--load", type=json.loads)
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
        outside(given.load)
    else:
        others(given.what, given.url)


if __name__ == "__main__":
    main()
