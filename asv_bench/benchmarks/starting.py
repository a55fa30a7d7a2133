"""What a start costs: the import, an open, and the memory that rows take."""

import subprocess
import sys
import time
from pathlib import Path

from . import OnDisk, fill, rows

MEASURE = """
import engram, sys
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024
before = anonymous()
engine = engram.open(sys.argv[1])
space = engine.space("notes")
space.recall(vector=[1.0] * space.dim, k=10)
print((anonymous() - before) / len(space))
"""


class Import:
    """A fresh interpreter that imports engram."""

    def timeraw_import(self) -> str:
        return "import engram"


class Reopen(OnDisk):
    """Opening a directory and recalling once, from the log or from sealed files."""

    params = ("log", "sealed")
    param_names = ("from",)
    number = 1
    rounds = 1
    repeat = 5
    warmup_time = 0

    def setup(self, source: str) -> None:
        super().setup()
        fill(self.space)
        if source == "sealed":
            self.engine.checkpoint()
        self.engine.close()

    def time_reopen_to_first_recall(self, source: str) -> None:
        self.open()
        self.space.recall(vector=[1.0] * self.space.dim, k=10)

    def track_anonymous_bytes_per_row(self, source: str) -> float:
        """Count what a fresh process needs for each row after its first recall."""
        command = [sys.executable, "-c", MEASURE, self.directory]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(self.directory))
        assert rows() > 0
        return float(ran.stdout)


class ReopenIndex(OnDisk):
    """Until the graph answers for every row again: read from its image, or made of the rows."""

    params = ("image", "rows")
    param_names = ("from",)
    durability = "os"
    limits = {"index_graph_rows_min": 0, "index_image_idle_ms": 10}  # noqa: RUF012 - as the other classes have theirs; nothing changes it
    number = 1
    rounds = 1
    repeat = 3
    warmup_time = 0

    def setup(self, source: str) -> None:
        super().setup()
        fill(self.space, texts=False)
        self.space.wait_absorbed()
        # It is not written again for an eighth more.
        while self.space.stats()["index_imaged"] * 8 <= rows() * 7:
            time.sleep(0.02)
        self.engine.close()
        if source == "rows":
            for image in Path(self.directory).rglob("*.index"):
                image.unlink()

    def time_reopen_to_absorbed(self, source: str) -> None:
        self.open()
        self.space.wait_absorbed()
