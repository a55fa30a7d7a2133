"""Generate `python/engram/v1` from `proto/`: `make protos`. With `--check` say what would change; change nothing."""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
MADE = ROOT / "python/engram/v1"


def generate(into: Path) -> dict[str, str]:
    """Return what protoc makes of each file."""
    sources = sorted((ROOT / "proto").rglob("*.proto"))
    options = [f"--proto_path={ROOT / 'proto'}", f"--python_out={into}", f"--pyi_out={into}"]
    if protoc.main(["protoc", *options, *map(str, sources)]):
        raise SystemExit("protoc failed")
    return {path.name: path.read_text(encoding="utf-8") for path in (into / "engram/v1").iterdir()}


def main() -> None:
    """Write, or check."""
    with tempfile.TemporaryDirectory() as folder:
        made = generate(Path(folder))
    there = {path.name: path.read_text(encoding="utf-8") for path in MADE.glob("*_pb2.py*")}
    if "--check" in sys.argv:
        changed = sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))
        if changed:
            raise SystemExit(f"python/engram/v1 is not what proto/ says: {', '.join(changed)}: run `make protos`")
        return
    for name in there.keys() - made.keys():
        (MADE / name).unlink()
    for name, text in made.items():
        (MADE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
