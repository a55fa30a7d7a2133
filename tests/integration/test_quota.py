"""What a space may hold, over restarts and under many writers (P1, K1, K3)."""

import threading
from pathlib import Path

import numpy as np
import pytest

import engram

pytestmark = pytest.mark.usefixtures("both_graphs")


def test_a_quota_is_kept_and_refuses(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d") as engine:
        space, other = engine.space("small", dim=2), engine.space("other", dim=2)
        space.set_quota(memories=3)
        space.observe_batch(texts=["one", "two"], keys=["a", "b"])
        with pytest.raises(engram.QuotaExceeded) as raised:
            space.observe_batch(texts=["three", "four"])
        assert (raised.value.what, raised.value.quota, raised.value.used) == ("memories", 3, 2)
        space.observe_batch(texts=["one again", "three"], keys=["a", None])  # one of them supersedes
        assert (len(space), space.stats()["queue_observations"]) == (3, 0)
        other.observe_batch(vectors=np.ones((10, 2)))
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("small")
        assert (space.stats()["quota_memories"], space.stats()["quota_bytes"]) == (3, 0)
        with pytest.raises(engram.QuotaExceeded), space.session() as session:
            session.observe("four")
        assert space.forget(key="a") == 1
        assert space.observe("four").memory_id == 6
        space.set_quota()
        space.observe_batch(vectors=np.ones((10, 2)))
        for bad in (0, -1, 1.5):
            with pytest.raises(engram.InvalidArgument):
                space.set_quota(memories=bad)  # type: ignore[arg-type]


def test_bytes_count_what_waits_and_the_past(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("small", dim=2)
        space.set_quota(bytes=100_000)
        text = "x" * 10_000

        def fill() -> None:
            for _ in range(100):
                space.observe(text)

        with pytest.raises(engram.QuotaExceeded) as raised:
            fill()
        stored = len(space)
        assert raised.value.what == "bytes"
        assert 5 <= stored <= 9
        engine.checkpoint()
        space.forget(1)
        with pytest.raises(engram.QuotaExceeded):
            space.observe("x" * 50_000)
        space.forget(range(2, 100), purge=True)
        space.observe_batch(texts=[text] * (stored - 1))


def test_many_writers_fill_it_exactly(tmp_path: Path) -> None:
    """Who waits while the rest is on its way gets in, or is told that it will never fit."""
    with engram.open(tmp_path / "d", durability="os") as engine:
        space = engine.space("small", dim=2)
        space.set_quota(memories=500)
        stored, refused = [0] * 8, [0] * 8

        def write(number: int) -> None:
            while refused[number] < 3:
                try:
                    space.observe(vector=[1, number])
                    stored[number] += 1
                except engram.QuotaExceeded:
                    refused[number] += 1

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (sum(stored), len(space)) == (500, 500)
