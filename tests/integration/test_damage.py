"""Bytes that are not as they were written (D3, D5): a typed error or a report, never a silently shorter answer."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import engram

pytestmark = pytest.mark.usefixtures("both_graphs")

ROWS = 300
DIM = 16
MASK = 2**64 - 1


def vectors() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(ROWS, DIM)).astype(np.float32)


def build(path: Path, sealed: bool) -> None:
    with engram.open(path, limits={"partitions": 1}) as engine:
        space = engine.space("s", dim=DIM)
        for begin in range(0, ROWS, 50):
            rows = range(begin, begin + 50)
            space.observe_batch(texts=[f"text {row}" for row in rows], vectors=vectors()[begin : begin + 50])
            if sealed and begin in (100, 200):
                engine.checkpoint()


@pytest.fixture(scope="module", params=["log", "sealed"])
def original(request: pytest.FixtureRequest, both_graphs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "d"
    build(path, request.param == "sealed")
    return path


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte[0] ^ 0x10]))


def used(file: Path) -> int:
    """Return where the last byte that is not zero stands."""
    return len(file.read_bytes().rstrip(b"\0"))


def places(file: Path) -> list[int]:
    """Return every header byte region, and a spread over what is used."""
    end = used(file)
    spread = np.linspace(0, end - 1, 12).astype(int).tolist() if end else []
    return sorted({place for place in (4, 8, 40, 100, *spread) if place < end})


def honest(path: Path) -> bool:
    """Read everything; True if some of it was refused as damaged. What is answered must be whole and right."""
    refused = False
    rows = vectors()

    def ask(call: Callable[[], object], expected: object) -> None:
        nonlocal refused
        try:
            answer = call()
        except engram.Corrupted as error:
            refused = bool(error.reason)
        else:
            assert answer == expected

    def read() -> None:
        ask(lambda: len(space), ROWS)
        ask(lambda: space.recall_batch(rows[::7], k=1)[0][:, 0].tolist(), list(range(1, ROWS + 1, 7)))
        ask(lambda: [memory.text for memory in space.list()], [f"text {row}" for row in range(ROWS)])
        for row in range(0, ROWS, 3):
            ask(lambda row=row: getattr(space.get(row + 1), "text", None), f"text {row}")  # type: ignore[misc]
        if refused:
            assert engine.report["damage"] or space.stats()["degraded"]

    # From the log, from what is made of it, and after a start from that.
    for _ in range(2):
        with engram.open(path) as engine:
            space = engine.space("s")
            read()
            for _ in range(2):
                with suppress(engram.EngramError):
                    engine.checkpoint()
                read()
    return refused


def files(path: Path, *patterns: str) -> list[Path]:
    return sorted(file for pattern in patterns for file in path.glob(pattern) if used(file))


def test_the_original_is_whole(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "d")
    assert not honest(tmp_path / "d")


@pytest.mark.parametrize("kind", ["partition-000/log/*.log", "partition-000/rows/*.rows", "partition-000/checkpoint-*"])
def test_flipped_bytes_never_shorten_an_answer(original: Path, tmp_path: Path, kind: str) -> None:
    """D3, D5."""
    found = files(original, kind)
    if not found:
        assert "log" not in kind
        return
    refused = 0
    for file in found:
        for place in places(file):
            copy = tmp_path / "d"
            shutil.copytree(original, copy)
            flip(copy / file.relative_to(original), place)
            damage = engram.verify(copy)["damage"]
            try:
                hurt = honest(copy)
            except AssertionError as error:
                raise AssertionError(f"{file.relative_to(original)} at byte {place}: {error}") from error
            assert damage or not hurt, f"verify did not see {file.name} at {place}"
            refused += hurt
            shutil.rmtree(copy)
    assert refused or "log" not in kind or files(original, "partition-000/rows/*")


@pytest.mark.parametrize("place", [0, 5, 9, 20, 30])
def test_a_damaged_manifest_is_an_error(original: Path, tmp_path: Path, place: int) -> None:
    shutil.copytree(original, tmp_path / "d")
    flip(tmp_path / "d" / "MANIFEST", place)
    before = (tmp_path / "d" / "MANIFEST").read_bytes()
    with pytest.raises(engram.Corrupted) as caught:
        engram.open(tmp_path / "d")
    assert "MANIFEST" in caught.value.path
    assert "engram verify" in str(caught.value)
    assert (tmp_path / "d" / "MANIFEST").read_bytes() == before
    assert engram.verify(tmp_path / "d")["damage"]


def test_a_damaged_catalogue_is_an_error(original: Path, tmp_path: Path) -> None:
    """Without the catalogue nothing is known: no space may silently be missing."""
    for file in files(original, "catalogue/log/*.log"):
        for place in places(file):
            copy = tmp_path / "d"
            shutil.copytree(original, copy)
            flip(copy / file.relative_to(original), place)
            try:
                with engram.open(copy) as engine:
                    assert engine.spaces() == ["s"], f"{file.name} at byte {place}: the space is gone"
                    assert len(engine.space("s")) == ROWS
            except engram.Corrupted as error:
                assert "catalogue" in error.path  # noqa: PT017
            shutil.rmtree(copy)


def test_a_degraded_space_takes_no_writes_and_others_do(tmp_path: Path) -> None:
    """D3: every space of the partition is degraded, other partitions are unharmed."""
    with engram.open(tmp_path / "d", limits={"partitions": 2}) as engine:
        engine.space("hurt", dim=2).observe_batch(texts=["a" * 300] * 20)
        engine.space("well", dim=2).observe("b")
    log = files(tmp_path / "d", "partition-000/log/*.log")[0]
    flip(log, 1_000)
    with engram.open(tmp_path / "d") as engine:
        assert engine.report["damage"][0]["path"].startswith("partition-000/log/")
        with pytest.raises(engram.Corrupted):
            engine.space("hurt").observe("no")
        with pytest.raises(engram.Corrupted):
            list(engine.space("hurt").list())
        assert engine.space("hurt").stats()["degraded"]
        assert engine.space("well").observe("yes").memory_id == 2
    assert list((tmp_path / "d" / "quarantine").iterdir())


def stamp(head: bytes) -> bytes:
    """Return XXH3-64 of eight bytes: the checksum of a file's first eight."""
    assert len(head) == 8
    low, high = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
    secret = 0x1CAD21F72C81017C ^ 0xDB979083E96DD4DE
    mixed = (high + (low << 32)) ^ secret

    def turned(value: int, bits: int) -> int:
        return (value << bits | value >> (64 - bits)) & MASK

    mixed ^= turned(mixed, 49) ^ turned(mixed, 24)
    mixed = mixed * 0x9FB21C651E98DF25 & MASK
    mixed ^= (mixed >> 35) + 8
    mixed = mixed * 0x9FB21C651E98DF25 & MASK
    return (mixed ^ mixed >> 28).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("kind", "newest"),
    [("MANIFEST", 1), ("catalogue/log/*.log", 1), ("partition-000/log/*.log", 1), ("partition-000/checkpoint-*", 2)],
)
def test_a_newer_version_is_refused_by_name_and_nothing_is_changed(
    original: Path, tmp_path: Path, kind: str, newest: int
) -> None:
    """D5."""
    copy = tmp_path / "d"
    shutil.copytree(original, copy)
    found = [file for file in files(copy, kind) if file.read_bytes()[:1] == b"E"]
    if not found:
        assert "checkpoint" in kind
        return
    file = found[-1]
    body = bytearray(file.read_bytes())
    assert stamp(bytes(body[:8])) == bytes(body[8:16]), "the stamp is not where this test thinks it is"
    body[4:6] = (newest + 1).to_bytes(2, "little")
    body[8:16] = stamp(bytes(body[:8]))
    file.write_bytes(body)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "LOCK"}
    for call in (engram.open, engram.verify):
        with pytest.raises(engram.UnsupportedVersion) as caught:
            call(copy)
        assert (caught.value.found, caught.value.supported) == (newest + 1, newest)
        assert file.name in caught.value.path
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "LOCK"}
    assert after == before
