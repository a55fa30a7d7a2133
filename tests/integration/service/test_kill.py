"""kill -9 of the server in mid-stream: clients that resume lose nothing, double nothing, and keep their order (S4)."""

import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import engram

from .support import ServerProcess

KILLS = int(os.environ.get("ENGRAM_SERVER_KILLS", "6"))
DIM = 16


class Source:
    """Says 1, 2, 3 … to its stream until told to stop; in texts, vectors and keys."""

    def __init__(self, url: str, name: str, seed: int) -> None:
        self._random = random.Random(seed)
        self.prefix = f"{name}-{seed}"
        self._engine = engram.connect(url)
        self.stream = self._engine.space(name, dim=DIM).stream(reconnect=60.0)
        self.said = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                count = self._random.choice((1, 1, 7, 40))
                texts = [f"{self.prefix}-{self.said + i + 1}" for i in range(count)]
                vectors = np.arange(self.said + 1, self.said + count + 1, dtype="f4")[:, None] + np.ones(DIM, "f4")
                if count == 1:
                    assert self.stream.observe(texts[0], vector=vectors[0]) == self.said + 1
                else:
                    sequences = self.stream.observe_batch(texts=texts, vectors=vectors)
                    assert sequences == range(self.said + 1, self.said + count + 1)
                self.said += count
                time.sleep(self._random.uniform(0.01, 0.05))
            self.stream.flush(60)
        except BaseException as error:
            self.failure = error

    def end(self) -> None:
        self._stop.set()
        self._thread.join(90)
        if self.failure is not None:
            raise self.failure
        assert self.stream.committed == self.stream.given == self.said
        self.stream.close()
        self._engine.close()


@pytest.mark.timeout(200 + 8 * KILLS)
def test_exactly_once_and_in_order_across_kills(tmp_path: Path) -> None:
    random_ = random.Random(7)
    data = tmp_path / "data"
    server = ServerProcess(data)
    sources = [Source(server.url, name, seed) for name in ("a", "b") for seed in (1, 2)]
    reconnects = 0
    try:
        for _ in range(KILLS):
            before, until = [source.stream.committed for source in sources], time.monotonic() + 30
            while any(source.stream.committed == b for source, b in zip(sources, before, strict=True)):
                assert time.monotonic() < until, "not all go on"
                time.sleep(0.01)
            time.sleep(random_.uniform(0, 0.4))
            server.kill()
            server = ServerProcess(data, server.port)
        time.sleep(0.3)
        for source in sources:
            source.end()
            reconnects += source.stream.reconnects
    finally:
        for source in sources:
            source._stop.set()
        server.stop()
    assert reconnects >= KILLS, "the kills met the streams"
    print(f"{KILLS} kills, {sum(s.said for s in sources)} observations, {reconnects} reconnects")
    with engram.open(data) as engine:
        for name in ("a", "b"):
            texts = [memory.text or "" for memory in engine.space(name).list()]
            for source in (s for s in sources if s.prefix.startswith(name)):
                mine = [text for text in texts if text.startswith(f"{source.prefix}-")]
                assert mine == [f"{source.prefix}-{i + 1}" for i in range(source.said)]
            assert len(texts) == sum(s.said for s in sources if s.prefix.startswith(name))
