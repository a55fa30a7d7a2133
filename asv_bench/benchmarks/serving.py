"""What the service costs: over loopback, client and server in two processes."""

import json
import subprocess
import sys
import tempfile
import time
from collections import deque

import numpy as np

import engram

from . import BATCH_ROWS, fill, rows, sample


class Served:
    """A server in another process, and a client of it."""

    def setup(self, *_: object) -> None:
        self.directory = tempfile.TemporaryDirectory()
        command = [sys.executable, "-m", "engram.cli", "serve", "--json", "--grpc", "127.0.0.1:0"]
        command += ["--data", self.directory.name]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        self.engine = engram.connect(json.loads(self.process.stdout.readline())["grpc"])
        self.space = self.engine.space("notes", dim=sample().vectors.shape[1])

    def teardown(self, *_: object) -> None:
        self.engine.close()
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.directory.cleanup()


class Stream(Served):
    """Observations through a stream until all are acknowledged."""

    number = 1

    def time_stream(self) -> None:
        with self.space.stream() as stream:
            for first in range(0, rows(), BATCH_ROWS):
                stream.observe_batch(vectors=sample().vectors[first : min(first + BATCH_ROWS, rows())])


class Steps(Served):
    """Five rates offered, open loop: how late an acknowledgement is, and a recall beside them."""

    params = (1_000, 2_000, 5_000, 10_000, 20_000)
    param_names = ("observations_a_second",)
    unit = "ms"

    def run(self, rate: int) -> tuple[list[float], list[float]]:
        acknowledged: list[float] = []
        recalled: list[float] = []
        waiting: deque[tuple[int, float]] = deque()

        def progress(stream: engram.ObserveStream) -> None:
            now = time.perf_counter()
            while waiting and waiting[0][0] <= stream.committed:
                acknowledged.append(now - waiting.popleft()[1])

        with self.space.stream(on_progress=progress) as stream:
            begun = time.perf_counter()
            for number, first in enumerate(range(0, min(rows(), rate), 100)):
                due = begun + number * 100 / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                part = sample().vectors[first : first + 100]
                waiting.append((stream.given + len(part), due))
                stream.observe_batch(vectors=part)
                if number % 10 == 0:
                    asked = time.perf_counter()
                    self.space.recall(vector=part[0], k=10)
                    recalled.append(time.perf_counter() - asked)
        return acknowledged, recalled

    def track_acknowledgement_p99(self, rate: int) -> float:
        return float(np.quantile(self.run(rate)[0], 0.99)) * 1000

    def track_recall_p50(self, rate: int) -> float:
        return float(np.quantile(self.run(rate)[1], 0.5)) * 1000


class RecallRemote(Served):
    """One recall over the wire."""

    def setup(self) -> None:
        super().setup()
        fill(self.space)
        self.space.wait_absorbed(timeout=600)
        self.cue = sample().query_vectors[0]

    def time_recall(self) -> None:
        self.space.recall(vector=self.cue, k=10)

    def time_get(self) -> None:
        self.space.get(1)
