"""The commands.

Exit codes: 0 done; 1 `verify` found damage; 2 the input is at fault; 3 the engine refused (locked, disk full, …); 130
interrupted. With --json a command prints one JSON document on stdout, {"error": …} if it failed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

import engram
from engram.cli import output
from engram.cli.ingest import Ingest
from engram.cli.output import BadInput
from engram.cli.sources import load_vectors, rows

app = typer.Typer(
    name="engram",
    help="A streaming memory engine: observe, and recall at the same moment.",
    epilog="Exit codes: 0 done, 1 damage found, 2 bad input, 3 the engine could not, 130 interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _path(text: str) -> Path:
    """Refuse what an unset variable of a shell gives: it would mean this directory."""
    if not text:
        raise typer.BadParameter('an empty path: name a directory, or "." for this one')
    return Path(text)


Data = Annotated[Path, typer.Option("--data", help="The data directory.", parser=_path, metavar="PATH")]
SpaceName = Annotated[str, typer.Option("--space", "-s", help="The space's name.")]
Url = Annotated[str | None, typer.Option("--url", help="A server's, as grpc://127.0.0.1:7637, instead of a directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]
Directory = Annotated[Path, typer.Argument(help="The data directory.", parser=_path, metavar="PATH")]

_DATA = Path("memories")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Show rows a second."""
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


def _existing(data: Path) -> Path:
    """Refuse a directory that is not there: only `ingest` makes one."""
    if not (data / "MANIFEST").exists():
        raise engram.NotFound(f"no engram directory at {data}")
    return data


def _engine(data: Path, url: str | None, make: bool = False) -> engram.Engine:
    """Open what a command works on."""
    if url is not None:
        return engram.connect(url)
    return engram.open(data if make else _existing(data))


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="FILE.jsonl, FILE.jsonl.gz, FILE.npy, or - for JSON lines on stdin.")],
    space: SpaceName,
    data: Data = _DATA,
    url: Url = None,
    dim: Annotated[
        int | None, typer.Option(help="Dimensions of a new space; that of the first vector if absent.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Of a new space: cosine, l2 or ip.")] = None,
    texts: Annotated[Path | None, typer.Option(help="JSON lines that go with the rows of a .npy file.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=16_384, help="Observations stored at once.")] = 256,
    durability: Annotated[str | None, typer.Option(help="sync, os or memory.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Remember in this file how far it came; run again, it goes on from there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Store observations from a file.

    A JSON line is {"text", "vector", "metadata", "observed_at", "confidence", "key"}, a text or a vector at least; an
    "id" is accepted and not stored. observed_at is seconds since 1970 or ISO 8601. A bad line ends the command; what
    stands before it is stored.
    """
    begun = time.monotonic()
    source_rows, total = rows(source, texts)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn())
    console = Console(stderr=True)
    with (
        _engine(data, url, make=True) as engine,
        Progress(*columns, console=console, disable=as_json or not console.is_terminal) as bar,
    ):
        task = bar.add_task(space, total=total)
        open_space = _space_opener(engine, space, dim, metric, durability)
        work = Ingest(open_space, lambda count: bar.update(task, advance=count), resume)
        try:
            work.run(source_rows, batch)
        except KeyboardInterrupt:
            sys.stderr.write(f"engram: interrupted; stored before: {work.stored}\n")
            raise
    seconds = time.monotonic() - begun
    rate = work.stored / seconds if seconds else 0.0
    if as_json:
        ids = None if work.first_id is None else [work.first_id, work.last_id]
        output.document(
            {
                "space": space,
                "stored": work.stored,
                "skipped": work.skipped,
                "ids": ids,
                "seconds": seconds,
                "observations_per_second": rate,
            }
        )
    else:
        which = "" if work.first_id is None else f", ids {work.first_id} to {work.last_id}"
        output.say(f"stored {work.stored:,} in {space}{which}: {seconds:.2f} s, {rate:,.0f} a second\n")


def _space_opener(
    engine: engram.Engine, name: str, dim: int | None, metric: Any, durability: Any
) -> Callable[[int | None], engram.Space]:
    def opened(found: int | None) -> engram.Space:
        wanted = dim
        if wanted is None:
            if name in engine.spaces():
                wanted = engine.space(name).dim
            elif found is None:
                raise BadInput(f"the space {name!r} is new and no vector says its dimensions: give --dim")
            else:
                wanted = found
        return engine.space(name, wanted, metric=metric, durability=durability)

    return opened


@app.command()
def recall(
    space: SpaceName,
    data: Data = _DATA,
    url: Url = None,
    like: Annotated[int | None, typer.Option(help="The vector of this memory.")] = None,
    vector: Annotated[str | None, typer.Option(help="FILE.npy, or FILE.npy:ROW.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=16_384, help="How many.")] = 10,
    where: Annotated[str | None, typer.Option(help='Only those that match: JSON, as {"source": "letter"}.')] = None,
    as_json: Json = False,
) -> None:
    """Find the nearest memories to a memory, or to a vector of a file."""
    if (like is None) == (vector is None):
        raise BadInput("give either --like or --vector")
    cue: Any = None if vector is None else _cue(vector)
    condition = None if where is None else _condition(where)
    with _engine(data, url) as engine:
        memories = engine.space(space)
        if like is not None:
            memory = memories.get(like)
            if memory is None:
                raise BadInput(f"there is no memory {like} in {space}")
            cue = memory.vector
            if cue is None:
                raise BadInput(f"memory {like} has no vector")
        hits = memories.recall(vector=cue, k=k, where=condition)
    if as_json:
        found = [
            {
                "id": hit.memory_id,
                "score": hit.score,
                "confidence": hit.confidence,
                "text": hit.text,
                "metadata": hit.metadata,
                "key": hit.key,
                "observed_at": hit.observed_at,
            }
            for hit in hits
        ]
        output.document({"space": space, "generation": hits.generation, "hits": found})
    else:
        columns = ("id", "score", "confidence", "text")
        title = f"{space}: {len(hits)} nearest at generation {hits.generation}"
        output.table(title, columns, [(hit.memory_id, hit.score, hit.confidence, hit.text) for hit in hits])


def _condition(argument: str) -> dict[str, Any]:
    try:
        condition = json.loads(argument)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--where is not JSON: {error}") from None
    if not isinstance(condition, dict):
        raise BadInput('--where must be a JSON object, as {"source": "letter"}')
    return condition


def _cue(argument: str) -> Any:
    name, _, row = argument.rpartition(":")
    if not name or not row.isdigit():
        name, row = argument, ""
    array = load_vectors(Path(name))
    if array.ndim == 1 and not row:
        return array
    if array.ndim != 2:
        raise BadInput(f"{name}: must have shape (n, dim), or (dim,) without a row; not {array.shape}")
    if not row and len(array) != 1:
        raise BadInput(f"{name}: has {len(array)} rows; say which: {name}:ROW")
    number = int(row or 0)
    if number >= len(array):
        raise BadInput(f"{name}: there is no row {number}; it has {len(array)}")
    return array[number]


@app.command()
def stats(
    data: Data = _DATA,
    url: Url = None,
    space: Annotated[str | None, typer.Option("--space", help="Only this space.")] = None,
    as_json: Json = False,
) -> None:
    """Show the figures of the engine and of its spaces."""
    with _engine(data, url) as engine:
        names = engine.spaces() if space is None else [space]
        spaces = {}
        for name in names:
            one = engine.space(name)
            spaces[name] = {"dim": one.dim, "metric": one.metric, "durability": one.durability, **one.stats()}
        figures = {"engine": engine.stats(), "spaces": spaces, "report": engine.report}
    if as_json:
        output.document(figures)
        return
    columns = ("dim", "metric", "durability", "memories", "generation", "unsealed_bytes", "sealed_bytes", "degraded")
    shown = [(name, *(one[column] for column in columns)) for name, one in spaces.items()]
    output.table(url or str(data), ("space", *columns), shown)
    plain = [(name, value) for name, value in figures["engine"].items() if isinstance(value, int | str)]
    output.table("engine", ("figure", "value"), plain)


@app.command()
def serve(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The data directory; without it, in memory.", parser=_path, metavar="PATH"),
    ] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT to listen on; port 0 takes a free one.")] = None,
    durability: Annotated[str | None, typer.Option(help="sync, os or memory.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings (docs/reference/server.md).")] = None,
    reflection: Annotated[bool | None, typer.Option(help="Tell generic clients what there is to call.")] = None,
    log: Annotated[str | None, typer.Option(help="console or json, to standard error.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Serve a directory over gRPC until Ctrl-C or SIGTERM; then drain and end.

    Settings come from options, the environment (ENGRAM_GRPC, …) and the TOML file, in that order.
    """
    from engram.cli import serve as serving  # only this command needs a server

    given = {
        "data": data,
        "grpc": grpc,
        "durability": durability,
        "reflection": reflection,
        "log": log,
    }
    serving.run(config, print_config, as_json, given)


_DAMAGE = ("path", "offset", "space", "lost", "reason")


@app.command()
def verify(directory: Directory, as_json: Json = False) -> None:
    """Check every checksum of a directory that no process has open. Exits with 1 if something is damaged."""
    verdict = engram.verify(_existing(directory))
    if as_json:
        output.document(verdict)
    else:
        if verdict["damage"]:
            output.table("damage", _DAMAGE, [[one[name] for name in _DAMAGE] for one in verdict["damage"]])
        names = ("spaces", "memories", "files", "bytes", "torn_bytes")
        figures = ", ".join(f"{verdict[name]:,} {name.replace('_', ' ')}" for name in names)
        output.say(f"{'damaged' if verdict['damage'] else 'sound'}: {figures}\n")
    if verdict["damage"]:
        sys.exit(output.DAMAGE)


@app.command()
def inspect(directory: Directory, as_json: Json = False) -> None:
    """Say what is where in a directory that no process has open."""
    seen = engram.inspect(_existing(directory))
    if as_json:
        output.document(seen)
        return
    output.table(f"{directory} ({seen['directory_id']})", ("kind", "name", "what"), seen["lines"])


def main() -> None:
    """Run the command line; ends the process."""
    as_json = "--json" in sys.argv[1:]
    try:
        code = app(standalone_mode=False)
    except (engram.EngramError, BadInput, OSError) as error:
        if isinstance(error, KeyboardInterrupt):
            sys.exit(output.INTERRUPTED)
        output.fail(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(output.INTERRUPTED)
    except typer.TyperException as error:
        said = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        # No arguments at all: the help was printed, and there is nothing to add.
        output.fail(BadInput(said or "see engram --help"), as_json)
    sys.exit(code if isinstance(code, int) else output.OK)
