"""The house keeps its walls: floors, sizes, module heads, names, and tags that a test stands for.

Each rule is a function from files (path → text) to complaints. It runs twice: over the repository, where it must find
nothing, and over a small sample that breaks it, where it must find something. Only files are read; nothing is imported.
"""

import ast
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

Files = Mapping[str, str]
Rule = Callable[[Files], list[str]]

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("rust", "python", "proto", "tests", "tools", "asv_bench", "benchmarks", "docs", "examples", ".github", ".ci")
FOLDERS_NOT_OURS = {"target", "node_modules", "__pycache__", "env", "results", "html", ".hypothesis"}
GENERATED = ("_pb2.py", "_pb2.pyi", ".v1.rs")
SUFFIXES = {".rs", ".py", ".pyi", ".proto", ".toml", ".md", ".yml", ".json", ".sh", ".ts", ".tsx"}
CODE = (".rs", ".py", ".pyi", ".ts", ".tsx")

# Which module of rust/src stands on which floor. A lower floor never uses a higher one; neighbours never meet.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("types", "error"),
    ("env",),
    ("queue", "wal", "index", "records", "text", "graph", "session"),
    ("store",),
    ("cognition",),
    ("query",),
    ("engine",),
)
GROUND = FLOORS[0]  # used by everybody, and by each other
USING_CORE = ("__init__", "_engine", "_pressure", "_reads", "_session", "_space", "_types", "_exceptions")
CORE_USERS = {f"python/engram/{name}.py" for name in USING_CORE}

LINES_MAX = 500
LINES_MAX_NAMED = 800
LONG_FILES: dict[str, str] = {}  # path: why it is one file
BINDINGS_LINES_MAX = 300
FUNCTION_LINES_MAX = 70
FOLDER_FILES_MAX = 12
FOLDER_DOORS = {"mod.rs", "lib.rs", "__init__.py"}  # a folder's door is not counted among its rooms
ARCHITECTURE_LINES_MAX = 300
PUBLIC_NAMES_MAX = 48  # of which the errors are half

TAG = re.compile(r"\b[TODGSPK]\d{1,2}\b")
BANNED_NAME = re.compile(r"Manager|Helper|Processor|Cognitive[A-Z]|Enhanced|Smart|(?:^|_)utils(?:_|$)")
RUST_DEFINITION = re.compile(
    r"\b(?:struct|enum|union|trait|fn|mod|type|const|static|macro_rules!|let(?: mut)?)\s+(\w+)"
)
UNFINISHED = re.compile(r"\b(?:todo|unimplemented)!")
MACHINE_PATH = re.compile(r"(?:^|[^A-Za-z0-9_.])/(?:" + "|".join(("work", "farm", "root", "home")) + r")/")
RUST_NOISE = re.compile(
    r'//[^\n]*|/\*.*?\*/|b?r(?P<hashes>#*)".*?"(?P=hashes)|b?"(?:\\.|[^"\\])*"|b?\'(?:\\.[^\']*|[^\\\'])\'', re.DOTALL
)


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_repository() -> dict[str, str]:
    paths = [path for path in ROOT.iterdir() if path.suffix in SUFFIXES or path.name == "Makefile"]
    for folder in FOLDERS:
        for where, folders, names in os.walk(ROOT / folder):
            folders[:] = [name for name in folders if name not in FOLDERS_NOT_OURS]
            names = [name for name in names if not name.endswith(GENERATED)]
            paths += [Path(where, name) for name in names if Path(name).suffix in SUFFIXES or name == "run"]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def rust_code(text: str) -> str:
    """Return the text without comments and literals, line numbers kept."""
    return RUST_NOISE.sub(lambda found: "\n" * found[0].count("\n") or " ", text)


def below(files: Files, folder: str, *suffixes: str) -> Iterator[tuple[str, str]]:
    return ((path, text) for path, text in files.items() if path.startswith(folder) and path.endswith(suffixes))


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def parse(path: str, text: str) -> ast.Module:
    return ast.parse(text, filename=path)


# ---- floors ----------------------------------------------------------------------------------------------------------


def rust_module(path: str) -> str:
    return path.removeprefix("rust/src/").split("/")[0].removesuffix(".rs")


def grouped(code: str, start: int) -> Iterator[str]:
    """Yield the first name of each item in the `{…}` that begins at `start`."""
    depth, first = 0, True
    for token in re.finditer(r"[{},]|\w+", code[start:]):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                return
        elif token[0] == ",":
            first = first or depth == 1
        elif depth == 1 and first:
            yield token[0]
            first = False


def modules_used(path: str, code: str) -> Iterator[tuple[str, int]]:
    """Yield each module of the crate that the code names, with its line."""
    depth = len(path.removeprefix("rust/src/").split("/")) - path.endswith("/mod.rs")
    for found in re.finditer(r"\b(crate|(?:super::)+super|super)::(?:(\w+)|\{)", code):
        if found[1] != "crate" and found[1].count("super") < depth:
            continue  # still inside its own module
        names = [found[2]] if found[2] else grouped(code, found.end() - 1)
        for name in names:
            yield name, line_of(code, found.start())


def rust_floors(files: Files) -> list[str]:
    """Let each module of rust/src use only floors below its own."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    complaints = []
    for path, text in below(files, "rust/src/", ".rs"):
        module = rust_module(path)
        if module == "lib":
            continue
        if module not in floor:
            complaints.append(f"{path}: module `{module}` has no floor: give it one in FLOORS of tests/test_tidy.py")
            continue
        for used, line in modules_used(path, rust_code(text)):
            if used == module or used not in floor or used in GROUND:
                continue
            if floor[used] > floor[module]:
                complaints.append(f"{path}:{line}: `{module}` uses `{used}`, which stands on a higher floor")
            elif floor[used] == floor[module]:
                complaints.append(
                    f"{path}:{line}: `{module}` uses its neighbour `{used}`: let a higher floor join them"
                )
    return complaints


def core_knows_no_python(files: Files) -> list[str]:
    """Keep PyO3 out of the engine and the kernels."""
    return [
        f"{path}: only rust/bindings knows Python"
        for path in ("rust/Cargo.toml", "rust/kernels/Cargo.toml")
        if re.search(r"^(?:pyo3|numpy)\b", files.get(path, ""), re.MULTILINE)
    ]


def imports_core(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.startswith("engram._core") for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        inside = node.level > 0 or node.module == "engram"
        names = {alias.name for alias in node.names}
        return (inside and "_core" in names) or (node.module or "").split(".")[-1] == "_core"
    return False


def python_floors(files: Files) -> list[str]:
    """Let only the embedded engine's own files import engram._core."""
    return [
        f"{path}:{node.lineno}: imports engram._core; only {', '.join(sorted(CORE_USERS))} may: use the public API"
        for path, text in below(files, "python/engram/", ".py")
        if path not in CORE_USERS
        for node in ast.walk(parse(path, text))
        if isinstance(node, ast.Import | ast.ImportFrom) and imports_core(node)
    ]


# ---- sizes -----------------------------------------------------------------------------------------------------------


def file_sizes(files: Files) -> list[str]:
    """Bound the lines of each source file."""
    complaints = []
    for path, text in files.items():
        lines = text.count("\n")
        if path.endswith(CODE):
            limit = LINES_MAX_NAMED if path in LONG_FILES else LINES_MAX
            if path.startswith("rust/bindings/src/"):
                limit = BINDINGS_LINES_MAX
        elif path == "ARCHITECTURE.md":
            limit = ARCHITECTURE_LINES_MAX
        else:
            continue
        if lines > limit:
            complaints.append(f"{path}: {lines} lines, at most {limit}: split it where its ideas part")
    return complaints


def function_sizes(files: Files) -> list[str]:
    """Bound the lines of each Python function, its docstring apart (clippy does the same for Rust)."""
    complaints = []
    for path, text in below(files, "", ".py"):
        for node in ast.walk(parse(path, text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if lines > FUNCTION_LINES_MAX:
                complaints.append(
                    f"{path}:{node.lineno}: {node.name}() has {lines} lines, at most {FUNCTION_LINES_MAX}"
                )
    return complaints


def folder_sizes(files: Files) -> list[str]:
    """Bound the files of each source folder."""
    rooms = defaultdict(list)
    for path in files:
        folder, _, name = path.rpartition("/")
        if name.endswith((*CODE, ".proto")) and name not in FOLDER_DOORS:
            rooms[folder].append(name)
    return [
        f"{folder}/: {len(names)} source files, at most {FOLDER_FILES_MAX}: find the folder that is missing"
        for folder, names in rooms.items()
        if len(names) > FOLDER_FILES_MAX
    ]


def public_names(files: Files) -> list[str]:
    """Bound `engram.__all__`."""
    path = "python/engram/__init__.py"
    if path not in files:
        return []
    names = [
        element
        for node in parse(path, files[path]).body
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        and "__all__" in {ast.unparse(t) for t in (node.targets if isinstance(node, ast.Assign) else [node.target])}
        and isinstance(node.value, ast.List | ast.Tuple)
        for element in node.value.elts
    ]
    if not names:
        return [f"{path}: no literal __all__ found"]
    if len(names) > PUBLIC_NAMES_MAX:
        return [f"{path}: {len(names)} names in __all__, at most {PUBLIC_NAMES_MAX}"]
    return []


# ---- heads, names, paths ---------------------------------------------------------------------------------------------


def module_heads(files: Files) -> list[str]:
    """Make each Rust module begin with its `//!` head."""
    return [
        f"{path}: no `//!` head: say the idea, the invariants with their tags, the threads, what an error leaves behind"
        for path, text in below(files, "rust/", ".rs")
        if "/src/" in path and "@generated" not in text[:500]
        if not text.lstrip().startswith("//!")
    ]


def python_definitions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


def names(files: Files) -> list[str]:
    """Ban names that say nothing, in what we define and in what we call our files."""
    complaints = []
    for path, text in files.items():
        defined: list[tuple[str, int]] = [(Path(part).stem, 0) for part in path.split("/")]
        if path.endswith(".rs"):
            code = rust_code(text)
            defined += [(found[1], line_of(code, found.start())) for found in RUST_DEFINITION.finditer(code)]
        elif path.endswith((".py", ".pyi")):
            defined += python_definitions(parse(path, text))
        complaints += [
            f"{path}:{line}: `{name}`: name the thing, not that it manages, helps or processes"
            for name, line in defined
            if BANNED_NAME.search(name)
        ]
    return complaints


def unfinished(files: Files) -> list[str]:
    """Ban code that is not there yet."""
    return [
        f"{path}:{line_of(code, found.start())}: {found[0]}"
        for path, code in ((path, rust_code(text)) for path, text in below(files, "rust/", ".rs"))
        for found in UNFINISHED.finditer(code)
    ]


def machine_paths(files: Files) -> list[str]:
    """Ban paths of somebody's machine."""
    return [
        f"{path}:{line_of(text, found.start() + 1)}: a path of one machine: {found[0].strip()}…"
        for path, text in files.items()
        for found in MACHINE_PATH.finditer(text)
    ]


# ---- walls inside Rust -----------------------------------------------------------------------------------------------


def unsafe_in_kernels(files: Files) -> list[str]:
    """Keep `unsafe` in rust/kernels."""
    return [
        f"{path}:{line_of(code, found.start())}: `unsafe` belongs in rust/kernels"
        for path, code in ((path, rust_code(text)) for path, text in below(files, "rust/", ".rs"))
        if not path.startswith("rust/kernels/")
        for found in re.finditer(r"\bunsafe\b", code)
    ]


def one_dashmap(files: Files) -> list[str]:
    """Keep the only DashMap in one module of rust/src/store."""
    users = [
        path for path, text in below(files, "rust/", ".rs") if re.search(r"\bDashMap\b|\bdashmap::", rust_code(text))
    ]
    complaints = [
        f"{path}: DashMap belongs in rust/src/store" for path in users if not path.startswith("rust/src/store/")
    ]
    if len(users) > 1:
        complaints.append(f"DashMap is used by {len(users)} files, at most one: {', '.join(users)}")
    return complaints


def tags_have_tests(files: Files) -> list[str]:
    """Ask for a test that quotes each tag which a module head quotes."""
    promised: dict[str, str] = {}
    tested: set[str] = set()
    for path, text in files.items():
        if path.startswith("rust/src/") and path.endswith(".rs"):
            head = "\n".join(line for line in text.splitlines() if line.startswith("//!"))
            for tag in TAG.findall(head):
                promised.setdefault(tag, path)
            if path.endswith("/tests.rs") or "/tests/" in path:
                tested.update(TAG.findall(text.replace(head, "")))
            else:
                tested.update(TAG.findall(text.partition("#[cfg(test)]")[2]))
        elif path == "tests/test_tidy.py":
            continue  # its samples quote tags that it does not test
        elif path.startswith(("rust/tests/", "tests/")) and path.endswith((".rs", ".py")):
            tested.update(TAG.findall(text))
    return [
        f"{promised[tag]}: the head quotes {tag}, but no test does: quote it in the test that would fail without it"
        for tag in sorted(promised.keys() - tested, key=lambda tag: (tag[0], int(tag[1:])))
    ]


# ---- the rules, over the repository and over samples that break them -------------------------------------------------

PYTHON_LONG_FUNCTION = "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX

RULES: list[tuple[Rule, list[Files]]] = [
    (
        rust_floors,
        [
            {"rust/src/wal/mod.rs": "use crate::store::Space;"},
            {"rust/src/wal/record.rs": "use crate::{types::Id, engine::{self, Config}};"},
            {"rust/src/wal/record.rs": "fn f() { crate::index::flat() }"},
            {"rust/src/queue/mod.rs": "use super::records::Text;"},
            {"rust/src/queue/lane.rs": "use super::super::engine;"},
            {"rust/src/env/mod.rs": "use crate::wal;"},
            {"rust/src/attic.rs": ""},
        ],
    ),
    (core_knows_no_python, [{"rust/Cargo.toml": "[dependencies]\npyo3.workspace = true\n"}]),
    (
        python_floors,
        [
            {"python/engram/cli/app.py": "from engram import _core"},
            {"python/engram/cli.py": "from engram._core import Engine"},
            {"python/engram/demo.py": "def f():\n    from . import _core"},
            {"python/engram/server/session.py": "import engram._core as core"},
        ],
    ),
    (
        file_sizes,
        [
            {"rust/src/wal/segment.rs": "\n" * (LINES_MAX + 1)},
            {"rust/bindings/src/space.rs": "\n" * (BINDINGS_LINES_MAX + 1)},
            {"ARCHITECTURE.md": "\n" * (ARCHITECTURE_LINES_MAX + 1)},
        ],
    ),
    (function_sizes, [{"tools/a.py": PYTHON_LONG_FUNCTION}]),
    (folder_sizes, [{f"rust/src/wal/{number}.rs": "" for number in range(FOLDER_FILES_MAX + 1)}]),
    (
        public_names,
        [
            {"python/engram/__init__.py": f"__all__ = {[str(number) for number in range(PUBLIC_NAMES_MAX + 1)]}"},
            {"python/engram/__init__.py": "x = 1"},
        ],
    ),
    (module_heads, [{"rust/src/types/mod.rs": "// a comment\npub struct Id;"}]),
    (
        names,
        [
            {"rust/src/store/space.rs": "pub(crate) struct SpaceManager;"},
            {"rust/src/store/space.rs": "fn utils() {}"},
            {"python/engram/utils.py": ""},
            {"python/engram/a.py": "class CognitiveEngine: ..."},
            {"python/engram/a.py": "def f(batch_utils): ..."},
        ],
    ),
    (unfinished, [{"rust/src/lib.rs": "fn f() { todo!() }"}, {"rust/src/lib.rs": 'fn f() { unimplemented!("x") }'}]),
    (machine_paths, [{"Makefile": "all:\n\tcp /" + "home/me/x ."}, {"docs/a.md": "/" + "root/x"}]),
    (unsafe_in_kernels, [{"rust/src/lib.rs": "fn f() { unsafe { g() } }"}]),
    (
        one_dashmap,
        [
            {"rust/src/engine/mod.rs": "use dashmap::DashMap;"},
            {"rust/src/store/a.rs": "use dashmap::DashMap;", "rust/src/store/b.rs": "use dashmap::DashMap;"},
        ],
    ),
    (
        tags_have_tests,
        [
            {"rust/src/wal/mod.rs": "//! Keeps D3.\n"},
            {"rust/src/wal/mod.rs": "//! Keeps D3.\n// D3\nfn f() {}\n", "tests/unit/test_a.py": "# D33 and D4"},
        ],
    ),
]

SOUND: Files = {
    "rust/src/lib.rs": "//! engram-core.\n#![forbid(unsafe_code)]\nmod wal;\n",
    "rust/src/wal/mod.rs": "//! Keeps D3 and S10.\nuse crate::{env::Files, error::{self, Wal}};\n// not crate::store\n"
    'const SAYS: &str = "unsafe todo!() crate::store";\n'
    "#[cfg(test)]\nmod tests { use super::*; fn torn() {} /* D3 */ }\n",
    "rust/src/wal/record.rs": "//! A record.\nuse super::segment; use crate::types;\n",
    "rust/src/types/mod.rs": "//! Ids.\nuse crate::error::Error;\n",
    "rust/src/store/spaces.rs": "//! Spaces.\nuse dashmap::DashMap;\nuse crate::{wal, index};\n"
    "fn f<'a>(c: &'a u8) -> char { '\"' }\n",
    "rust/kernels/src/lib.rs": "//! Kernels.\nfn f() { unsafe { g() } }\n",
    "python/engram/__init__.py": 'from engram._core import version\n__all__ = ["open"]\n',
    "python/engram/cli.py": "import contextlib\nfrom contextlib import AbstractContextManager\nimport engram\n",
    "tests/unit/test_a.py": "def test_sequence():\n    '''S10: sequences.'''\n",
}


def title(rule: Rule) -> str:
    return rule.__name__


@pytest.fixture(scope="module")
def repository() -> dict[str, str]:
    return read_repository()


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES], ids=title)
def test_house_is_tidy(rule: Rule, repository: dict[str, str]) -> None:
    complaints = rule(repository)
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.mark.parametrize(("rule", "bad"), [(rule, bad) for rule, samples in RULES for bad in samples])
def test_rule_sees_what_breaks_it(rule: Rule, bad: Files) -> None:
    assert rule(bad)


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES], ids=title)
def test_rule_passes_what_is_sound(rule: Rule) -> None:
    assert rule(SOUND) == []


def test_repository_was_read(repository: dict[str, str]) -> None:
    assert {"Makefile", "pyproject.toml", "rust/src/lib.rs", "tests/test_tidy.py", ".ci/run"} <= repository.keys()
    assert LONG_FILES.keys() <= repository.keys(), "LONG_FILES names a file that is gone"
