"""What reads said of logs with damaged bytes, when they should have said `Corrupted`."""

from pathlib import Path

import pytest

import engram


def build(path: Path, batches: int) -> None:
    with engram.open(path, limits={"partitions": 1}) as engine:
        space = engine.space("s", dim=2)
        for _ in range(batches):
            space.observe_batch(texts=["a" * 300] * 20, vectors=[[1, 2]] * 20)


def flip(path: Path, offset: int) -> None:
    log = min(path.glob("partition-000/log/0*.log"))
    body = bytearray(log.read_bytes())
    body[offset] ^= 0x10
    log.write_bytes(body)


# A byte of the only segment's header; a byte of the only group; a byte of the first of three groups.
PLACES = [(1, 0), (1, 40), (3, 0), (1, 1_000), (3, 1_000)]


@pytest.mark.parametrize(("batches", "offset"), PLACES)
def test_list_and_get_do_not_pass_over_rows_that_a_damaged_log_held(tmp_path: Path, batches: int, offset: int) -> None:
    """D3, D5: rows whose bytes are damaged are Corrupted; they are not missing."""
    build(tmp_path / "d", batches)
    flip(tmp_path / "d", offset)
    with engram.open(tmp_path / "d") as engine:
        space = engine.space("s")
        assert engine.report["damage"]
        for read in (lambda: len(space), lambda: list(space.list()), lambda: space.get(1), lambda: space.get(20)):
            with pytest.raises(engram.Corrupted):
                read()
        with pytest.raises(engram.Corrupted):
            space.wait_absorbed(timeout=20)


@pytest.mark.parametrize(("batches", "offset"), PLACES)
def test_a_checkpoint_of_a_degraded_space_does_not_panic(tmp_path: Path, batches: int, offset: int) -> None:
    build(tmp_path / "d", batches)
    flip(tmp_path / "d", offset)
    with engram.open(tmp_path / "d") as engine:
        try:
            engine.checkpoint()
        except engram.EngramError as error:
            assert "panicked" not in str(error)  # noqa: PT017
