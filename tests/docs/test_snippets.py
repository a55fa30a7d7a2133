"""The documentation is true: its snippets run, its links lead somewhere, its tables are those of the code."""

import contextlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

import engram
from engram import _exceptions
from engram.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*sorted(ROOT.glob("*.md")), ROOT / "tests" / "README.md", *PAGES[1:]]

# Commands that other tests run as a whole, or that would install into the environment of this one.
NOT_RUN = {
    "make demo": "tests/integration/test_demo.py runs it",
    "make test": "it runs this file",
    "pip install .": "`make packages` installs the wheel into an empty environment",
}
CONSOLE = {"console", "sh"}
QUIET = {"text", "mermaid", "proto"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+?) *$", re.MULTILINE)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def parameters(pages: list[Path]) -> list[object]:
    return [pytest.param(page, id=name(page)) for page in pages]


@dataclass(frozen=True)
class Snippet:
    """One fenced block and the line of the page on which its content begins."""

    language: str
    text: str
    line: int


def snippets(page: Path) -> Iterator[Snippet]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield Snippet(found[1], found[2], text.count("\n", 0, found.start(2)) + 1)


def commands(snippet: Snippet) -> list[str]:
    """Return the commands: each line of `sh`, each `$ ` line of `console`."""
    lines = snippet.text.splitlines()
    if snippet.language == "sh":
        return [line for line in lines if line.strip()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def run_python(page: Path, snippet: Snippet, namespace: dict[str, object]) -> None:
    # Blank lines in front give the page's own line numbers to a traceback.
    code = compile("\n" * (snippet.line - 1) + snippet.text, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, namespace)


def run_command(page: Path, command: str, folder: Path) -> None:
    if command in NOT_RUN:
        return
    words = shlex.split(command)
    assert words[0] == "engram", f"{name(page)}: `{command}` is neither run nor named in NOT_RUN"
    script = Path(sys.executable).with_name("engram")
    ran = subprocess.run([str(script), *words[1:]], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{name(page)}: `{command}` ended with {ran.returncode}\n{ran.stdout}{ran.stderr}"


@pytest.mark.parametrize("page", parameters([p for p in PAGES if any(snippets(p))]))
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for snippet in snippets(page):
        if snippet.language == "python":
            run_python(page, snippet, namespace)
        elif snippet.language in CONSOLE:
            for command in commands(snippet):
                run_command(page, command, tmp_path)
        else:
            assert snippet.language in QUIET, f"{name(page)}:{snippet.line}: a block of {snippet.language!r} is not run"
    for value in namespace.values():
        if isinstance(value, engram.Engine):
            value.close()


def test_no_command_is_skipped_that_no_page_shows() -> None:
    shown = {c for page in PAGES for s in snippets(page) if s.language in CONSOLE for c in commands(s)}
    assert NOT_RUN.keys() <= shown


# ---- links -----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are made where the pages are shown."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in HEADING.findall(text))
    return {heading.strip().replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> Iterator[str]:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = Path(os.path.normpath(page.parent / path)) if path else page
        if not linked.is_file():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(linked):
            yield f"{target}: no such heading"


@pytest.mark.parametrize("page", parameters(LINKED))
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# A\n\n## B c: d\n\n[x](#b-c-d) [y](#no) [z](no.md) [w](https://example.org)\n")
    assert list(broken_links(page)) == ["#no: no such heading", "no.md: no such file"]


def test_every_page_is_reached_from_the_index() -> None:
    reached, waiting = set(), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        targets = (t.partition("#")[0] for t in LINK.findall(page.read_text(encoding="utf-8")))
        waiting += [Path(os.path.normpath(page.parent / t)) for t in targets if t and not re.match(r"[a-z]+:", t)]
    assert {name(p) for p in PAGES[1:]} <= {name(p) for p in reached}


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(page: str, first_heading: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this heading."""
    lines = iter((ROOT / page).read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {first_heading} |"):
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_errors_page_is_the_table_of_the_code() -> None:
    rows = table("docs/reference/errors.md", "code")
    shown = {row[0].strip("`"): re.findall(r"`(\w+)`", row[1]) for row in rows}
    assert len(rows) == len(shown)
    mapped = {
        code: [kind.__name__, *(base.__name__ for base in kind.__bases__ if base is not engram.EngramError)]
        for code, kind in _exceptions.TABLE.items()
    }
    assert shown == mapped
    assert all(len(row) == 6 and all(row) for row in rows)


def test_every_exported_error_is_in_the_table() -> None:
    exported = {value for value in vars(engram).values() if inspect.isclass(value) and issubclass(value, BaseException)}
    assert exported - {engram.EngramError} == set(_exceptions.TABLE.values())


def test_limits_page_has_what_can_be_set() -> None:
    source = (ROOT / "rust/src/types/config.rs").read_text(encoding="utf-8")
    body = source.partition("pub fn set(")[2].partition("pub fn check")[0]
    settable = re.findall(r'^ +"(\w+)" =>', body, re.MULTILINE)
    assert len(settable) > 20
    assert [row[0].strip("`") for row in table("docs/reference/limits.md", "name")] == settable


def test_cli_page_has_every_command_and_option() -> None:
    group = typer.main.get_command(app)
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    assert [row[0].strip("`") for row in table("docs/reference/cli.md", "command")] == list(group.commands)
    options = {
        o
        for command in group.commands.values()
        for p in command.params
        for o in p.opts + p.secondary_opts
        if o[0] == "-"
    }
    shown = set(re.findall(r"`(--?[a-z-]+)`", page))
    assert shown == options


UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def number(text: str) -> int | None:
    found = re.fullmatch(r"([\d,]+)(?: (\w+))?", text)
    return None if found is None else int(found[1].replace(",", "")) * UNITS.get(found[2], 1)


def test_limits_page_has_the_defaults_of_the_code() -> None:
    source = (ROOT / "rust/src/types/config.rs").read_text(encoding="utf-8")
    body = source.partition("impl Default for Config")[2].partition("impl Config")[0]
    defaults = {
        field: eval(value.replace("MIB", str(1 << 20)))  # digits, shifts and products only
        for field, value in re.findall(r"^ +(\w+): ([\d_ *<MIB]+),$", body, re.MULTILINE)
    }
    shown = {row[0].strip("`"): number(row[1]) for row in table("docs/reference/limits.md", "name")}
    assert {n: v for n, v in shown.items() if v is not None} == {n: defaults[n] for n in shown if n != "partitions"}
