"""Every benchmark still runs: the asv suite once, on a few rows, and the comparison in small."""

import importlib
import inspect
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "asv_bench" / "benchmarks"
AREAS = sorted(path.stem for path in SUITE.glob("*.py") if path.stem != "__init__")


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ENGRAM_BENCH_ROWS", "600")
    monkeypatch.setenv("ENGRAM_BENCH_CARGO", "--profile ci --features chaos")  # what is built for the tests anyway
    monkeypatch.syspath_prepend(str(SUITE.parent))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


def benchmarks_of(area: str) -> Iterator[tuple[type[Any], str, tuple[object, ...]]]:
    """Find them as asv does: by the prefix of their name, once for each combination of parameters."""
    module = importlib.import_module(f"benchmarks.{area}")
    for _, group in inspect.getmembers(module, inspect.isclass):
        if group.__module__ != module.__name__:
            continue
        params = getattr(group, "params", ())
        listed = params if params and isinstance(params[0], list | tuple) else (params,) if params else ()
        for name in dir(group):
            if name.startswith(("time_", "track_", "timeraw_", "peakmem_")):
                for arguments in itertools.product(*listed):
                    yield group, name, arguments


@pytest.mark.parametrize("area", AREAS)
def test_each_benchmark_runs_once(area: str) -> None:
    ran, caches = 0, {}
    for group, name, arguments in benchmarks_of(area):
        benchmark = group()
        if hasattr(group, "setup_cache"):
            if group not in caches:
                caches[group] = benchmark.setup_cache()
            arguments = (caches[group], *arguments)
        if hasattr(benchmark, "setup"):
            benchmark.setup(*arguments)
        result = getattr(benchmark, name)(*arguments)
        if hasattr(benchmark, "teardown"):
            benchmark.teardown(*arguments)
        if name.startswith("track_"):
            assert isinstance(result, int | float), name
            assert result > 0, name
        if name.startswith("track_recall"):
            assert result == 1.0 if "exact" in arguments else result >= 0.95
        if name.startswith("timeraw_"):
            subprocess.run([sys.executable, "-c", result], check=True)
        ran += 1
    assert ran > 0


@pytest.mark.timeout(180)  # it fills two directories in processes of their own
def test_comparison_runs_in_small(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "compare" / "ingest.py"
    command = [sys.executable, str(script), "--json", "--rows", "3000", "--directory", str(tmp_path), "--blocks", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "ENGRAM_BENCH_DATA"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    figures = {line["figure"]: line for line in json.loads(ran.stdout)["figures"]}
    assert figures["exact recall equal to NumPy (k = 10)"]["value"] == 1.0
    for figure, line in figures.items():
        assert line["value"] is not None or "NOT RUN" in line["note"], figure
    assert list(tmp_path.iterdir()) == []


def test_recall_comparison_runs_in_small(tmp_path: Path) -> None:
    script, picture = ROOT / "benchmarks" / "compare" / "recall.py", tmp_path / "recall.svg"
    ran = subprocess.run(
        [sys.executable, str(script), "--json", "--rows", "1500", "--plot", str(picture)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    engine = json.loads(ran.stdout)["engram"]
    assert len(engine["settled"]) == 10
    assert min(engine["settled"]) >= 0.95
    assert engine["reopened"]["index_imaged"] * 8 > 1500 * 7
    assert engine["reopened"]["index_rebuilt"] == 0
    assert engine["image stood after, s"] > 0
    assert ">engram</text>" in picture.read_text()
    assert engine["default"]["recall"] >= 0.95
    assert engine["rows/s"] > 0
    assert engine["at"]["0.95"] > 0


@pytest.mark.timeout(180)  # more than a dozen directories
def test_cases_run_in_small() -> None:
    """G6: by default settings 0.95 at every tenth and at the end, whatever the rows are like."""
    script = ROOT / "benchmarks" / "cases.py"
    environment = {name: value for name, value in os.environ.items() if name != "ENGRAM_BENCH_DATA"}
    ran = subprocess.run(
        [sys.executable, str(script), "--json", "--rows", "2000"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = json.loads(ran.stdout)["lines"]
    assert len(lines) == 23
    for line in lines:
        assert line["recall"] >= 0.95, line
        assert line.get("least tenth", 1.0) >= 0.95, line
        assert line.get("sound", True), line


def test_databases_and_spaces_run_in_small(tmp_path: Path) -> None:
    picture = tmp_path / "spaces.svg"
    for script, more in {
        "compare/databases.py": ["--only", "engram"],
        "spaces.py": ["--plot", str(picture)],
    }.items():
        command = [sys.executable, str(ROOT / "benchmarks" / script), "--json", "--rows", "2000", *more]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        figures = json.loads(ran.stdout)
        for line in figures["lines"].values() if "lines" in figures else [figures["engram"]]:
            assert line["recall"] >= 0.9, line
    assert "rows/s absorbed" in picture.read_text()


def test_the_service_is_measured_in_small() -> None:
    """S2, P3: what was offered is acknowledged; beside it stand the wire and the disk alone."""
    script = ROOT / "benchmarks" / "service.py"
    environment = {name: value for name, value in os.environ.items() if name != "ENGRAM_BENCH_DATA"}
    for what, more in {"wire": [], "target": ["--rate", "1000", "--recalls", "20"]}.items():
        command = [sys.executable, str(script), what, "--seconds", "1.2", "--spaces", "2", *more]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
        assert ran.returncode == 0, ran.stderr
        figures = json.loads(ran.stdout)
        if what == "wire":
            assert figures["per_second"] > 0
            assert figures["echo_per_second"] > 0
        else:
            assert figures["generation_s0"] > 0
            assert figures["acknowledgement"]["p50_ms"] > 0
            assert figures["visibility"]["p50_ms"] > 0
            assert figures["recalls"] > 0
            assert figures["recall_at_10"] >= 0.9


def test_a_server_in_a_crowd_is_measured_in_small(tmp_path: Path) -> None:
    script, picture = ROOT / "benchmarks" / "crowds.py", tmp_path / "steps.svg"
    wanted = {
        "sessions": (["--count", "100"], ["kib_each", "bare_kib_each"]),
        "ramp": (["--seconds", "0.5", "--rates", "1000", "--plot", str(picture)], ["acknowledged", "p99_ms"]),
    }
    for what, (more, names) in wanted.items():
        command = [sys.executable, str(script), what, *more]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert ran.returncode == 0, ran.stderr
        for line in ran.stdout.splitlines():
            assert all(json.loads(line)[name] for name in names), line
    assert "acknowledged" in picture.read_text()
