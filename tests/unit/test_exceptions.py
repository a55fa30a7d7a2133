"""The error table: the engine's codes, the exceptions and their documentation say the same."""

import errno
import pickle
import re
from pathlib import Path

import grpc
import pytest

import engram
from engram import _exceptions

ROOT = Path(__file__).resolve().parents[2]


def codes_of_the_core() -> set[str]:
    source = (ROOT / "rust/src/error.rs").read_text(encoding="utf-8")
    body = source[source.index("pub fn code(&self)") :].split("\n    }\n")[0]
    return set(re.findall(r'=> "([A-Z_]+)"', body))


def test_every_code_of_the_core_has_an_exception_and_the_other_way_round() -> None:
    assert codes_of_the_core() == set(_exceptions.TABLE) - {"UNAVAILABLE"}  # that one is of clients only


def test_every_code_has_a_status_of_grpc() -> None:
    assert set(_exceptions.GRPC) == set(_exceptions.TABLE)
    assert all(hasattr(grpc.StatusCode, status) for status in _exceptions.GRPC.values())


def test_every_exception_is_in_the_table_and_exported() -> None:
    classes = {getattr(_exceptions, name) for name in _exceptions.__all__}
    assert set(_exceptions.TABLE.values()) == classes - {engram.EngramError}
    assert len(set(_exceptions.TABLE.values())) == len(_exceptions.TABLE)
    for name in _exceptions.__all__:
        assert getattr(engram, name) is getattr(_exceptions, name)
        assert name in engram.__all__


def test_the_documentation_has_the_same_table() -> None:
    page = ROOT / "docs/reference/errors.md"
    assert page.is_file()
    rows = re.findall(r"^\| `([A-Z_]+)` \| `(\w+)`", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == {code: kind.__name__ for code, kind in _exceptions.TABLE.items()}
    statuses = re.findall(r"^\| `([A-Z_]+)` \| [^|]+ \| `([A-Z_]+)`", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(statuses) == _exceptions.GRPC


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (engram.InvalidArgument, ValueError),
        (engram.TooLarge, engram.InvalidArgument),
        (engram.NotFound, KeyError),
        (engram.AlreadyExists, ValueError),
        (engram.StorageError, OSError),
        (engram.DiskFull, engram.StorageError),
        (engram.PermissionDenied, PermissionError),
        (engram.Timeout, TimeoutError),
        (engram.Interrupted, KeyboardInterrupt),
        (engram.Poisoned, RuntimeError),
    ],
)
def test_each_is_also_the_fitting_builtin(kind: type[engram.EngramError], base: type[BaseException]) -> None:
    assert issubclass(kind, base)
    assert issubclass(kind, engram.EngramError)


@pytest.mark.parametrize(("code", "kind"), _exceptions.TABLE.items())
def test_made_from_the_core(code: str, kind: type[engram.EngramError]) -> None:
    error = _exceptions.from_core(code, "what happened", {"path": "x"})
    assert type(error) is kind
    assert error.code == code
    assert str(error) == "what happened"
    assert vars(error)["path"] == "x"


def test_a_full_disk_has_its_errno() -> None:
    error = _exceptions.from_core("DISK_FULL", "full", {})
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


def test_an_exception_survives_a_trip_to_another_process() -> None:
    error = engram.InvalidArgument("bad", field="vector", index=3)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.field, again.index) == (engram.InvalidArgument, "bad", "vector", 3)
