"""A paced source that streams into a server, resumes after anything, and prints how long acknowledgements took.

    engram serve --data ./memories
    python examples/python_stream.py grpc://127.0.0.1:7637 --rate 2000 --seconds 5

Run it again with the same --position file and it goes on where it stopped; kill the server meanwhile, and start it
again: nothing is lost or stored twice.
"""

import argparse
import collections
import contextlib
import threading
import time
from pathlib import Path

import numpy as np

import engram


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--space", default="source")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rate", type=float, default=2_000, help="observations a second")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--position", type=Path, help="file that remembers the stream's token")
    return parser.parse_args()


class Latencies:
    """From the time an observation was due to its acknowledgement."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._due: collections.deque[tuple[int, float]] = collections.deque()
        self._lock = threading.Lock()

    def due(self, sequence: int, at: float) -> None:
        with self._lock:
            self._due.append((sequence, at))

    def acknowledged(self, stream: engram.ObserveStream) -> None:
        now = time.monotonic()
        with self._lock:
            while self._due and self._due[0][0] <= stream.committed:
                self.seconds.append(now - self._due.popleft()[1])


def main() -> None:
    given = arguments()
    latencies = Latencies()
    position: Path | None = given.position
    token = position.read_text().strip() if position is not None and position.exists() else None
    with engram.connect(given.url) as engine:
        space = engine.space(given.space, dim=given.dim)
        stream = space.stream(resume=token, on_progress=latencies.acknowledged)
        if position is not None:
            position.write_text(stream.token)
        print(f"goes on behind {stream.committed}")
        random = np.random.default_rng(stream.committed)
        begun = time.monotonic()
        sent = 0
        with contextlib.suppress(KeyboardInterrupt):
            while (due := sent / given.rate) < given.seconds:
                time.sleep(max(0.0, begun + due - time.monotonic()))
                vector = random.normal(size=given.dim).astype("float32")
                sequence = stream.observe(f"observation {stream.given + 1}", vector=vector, metadata={"sent": sent})
                latencies.due(sequence, begun + due)
                sent += 1
        stream.flush()
        latencies.acknowledged(stream)
        seconds = time.monotonic() - begun
        p50, p99 = np.quantile(latencies.seconds or [np.nan], (0.5, 0.99)) * 1000
        print(f"{sent:,} observations in {seconds:.1f} s; acknowledged after p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        print(f"{len(space):,} memories in {given.space}; level {stream.level}; {stream.reconnects} reconnects")
        stream.detach()


if __name__ == "__main__":
    main()
