"""What reads said of logs with damaged bytes, when they should have said `Corrupted`."""

from pathlib import Path

import pytest

import engram

pytestmark = pytest.mark.usefixtures("both_graphs")


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


def test_rows_lost_between_others_stay_lost_when_those_are_sealed(tmp_path: Path) -> None:
    """D5: a file that spanned them made them missing."""
    build(tmp_path / "d", 7)
    log = min((tmp_path / "d").glob("partition-000/log/0*.log"))
    used = len(log.read_bytes().rstrip(b"\0"))
    for group in (2, 4):
        flip(tmp_path / "d", used * group // 7 + used // 14)
    for _ in range(5):
        with engram.open(tmp_path / "d", limits={"checkpoint_log_bytes": 4_096}) as engine:
            space = engine.space("s")
            for _ in range(3):
                engine.checkpoint()
                seen = []
                for row in range(1, 141):
                    try:
                        memory = space.get(row)
                        assert memory is not None
                        seen.append(memory.memory_id)
                    except engram.Corrupted:
                        pass
                assert seen == [*range(1, 41), *range(61, 81), *range(101, 141)]
                for after in (0, 60, 100):
                    listed: list[int] = []
                    try:
                        for memory in space.list(after=after):
                            listed.append(memory.memory_id)
                        assert after == 100
                    except engram.Corrupted:
                        assert after < 100
                    assert listed == [row for row in seen if after < row <= {0: 40, 60: 80, 100: 140}[after]]


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
