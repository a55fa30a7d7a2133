"""What reads said of logs with damaged bytes, when they should have said `Corrupted`."""

from contextlib import suppress
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


def hurt(path: Path, batches: int, groups: tuple[int, ...]) -> None:
    """Flip a byte in the middle of some of as many groups of the same size."""
    used = len(min(path.glob("partition-000/log/0*.log")).read_bytes().rstrip(b"\0"))
    for group in groups:
        flip(path, used * group // batches + used // (2 * batches))


def readable(space: engram.Space, rows: int) -> list[int]:
    """Return the rows that are there; the others must be Corrupted."""
    seen = []
    for row in range(1, rows + 1):
        try:
            memory = space.get(row)
        except engram.Corrupted:
            continue
        assert memory is not None
        seen.append(memory.memory_id)
    return seen


@pytest.mark.parametrize("checkpoints", [0, 1, 3])
def test_rows_lost_between_others_stay_lost_and_nothing_else_is(tmp_path: Path, checkpoints: int) -> None:
    """D5: a file that spanned them made them missing, a replay that began behind them took whole ones for damaged."""
    build(tmp_path / "d", 7)
    hurt(tmp_path / "d", 7, (2, 4))
    for _ in range(4):
        with engram.open(tmp_path / "d", limits={"checkpoint_log_bytes": 4_096}) as engine:
            space = engine.space("s")
            for _ in range(checkpoints):
                engine.checkpoint()
            seen = readable(space, 140)
            assert seen == [*range(1, 41), *range(61, 81), *range(101, 141)]
            for after, last in ((0, 40), (60, 80), (100, 140)):
                listed: list[int] = []
                try:
                    listed.extend(memory.memory_id for memory in space.list(after=after))
                except engram.Corrupted:
                    assert after < 100
                assert listed == [] or listed == [row for row in seen if after < row <= last]


def test_a_space_made_after_the_damage_is_whole(tmp_path: Path) -> None:
    """D3: a checkpoint proves it."""
    build(tmp_path / "d", 5)
    hurt(tmp_path / "d", 5, (1, 3))
    for life in range(4):
        with engram.open(tmp_path / "d") as engine:
            assert readable(engine.space("s"), 100) == [*range(1, 21), *range(41, 61), *range(81, 101)]
            engine.space("fresh", dim=2).observe("new", vector=[1, 0])
            engine.checkpoint()
            assert len(engine.space("fresh")) == life + 1


def test_an_end_that_is_lost_is_lost_once(tmp_path: Path) -> None:
    """D5: each start said it again, until parts overlapped."""
    with engram.open(tmp_path / "d", limits={"partitions": 1}) as engine:
        spaces = {name: engine.space(name, dim=2) for name in "sb"}
        for name in "bsssbs":
            spaces[name].observe_batch(texts=["a" * 300] * 20, vectors=[[1, 2]] * 20)
    hurt(tmp_path / "d", 6, (2, 4))
    for _ in range(4):
        with engram.open(tmp_path / "d") as engine:
            assert readable(engine.space("s"), 80) == [*range(1, 21), *range(41, 81)]
            assert readable(engine.space("b"), 60) == [*range(1, 21)]
            engine.checkpoint()


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


@pytest.mark.parametrize("batch", [1, 3])
def test_a_hole_in_what_a_session_said_costs_its_space_only(tmp_path: Path, batch: int) -> None:
    """D3: the session was found to lack a sequence before the space was known to lack the rows, and nothing opened."""
    path = tmp_path / "d"
    with engram.open(path, limits={"partitions": 1}) as engine:
        session = engine.space("s", dim=2).session()
        for n in range(8):
            session.observe_batch(texts=[f"MARK{n}" + "." * 600] * batch)
        engine.space("t", dim=2).observe("whole")
        session.detach()
    (log,) = [log for log in path.glob("partition-000/log/0*.log") if b"MARK4" in log.read_bytes()]
    body = bytearray(log.read_bytes())
    body[body.find(b"MARK4")] ^= 0x10
    log.write_bytes(body)
    for _ in range(2):
        with engram.open(path) as engine:
            assert engine.space("s").stats()["degraded"]
            assert [memory.text for memory in engine.space("t").list()] == ["whole"]
            lost = range(4 * batch + 1, 5 * batch + 1)
            assert readable(engine.space("s"), 8 * batch) == [n for n in range(1, 8 * batch + 1) if n not in lost]
            with pytest.raises(engram.Corrupted):
                engine.space("s").session(resume=session.token).observe("more")
            with suppress(engram.EngramError):
                engine.checkpoint()
