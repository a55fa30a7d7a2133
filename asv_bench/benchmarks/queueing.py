"""The queue alone, with its permits: `rust/benches/queue.rs` of this checkout, run once for all cases."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Queue:
    """Nanoseconds an observation takes from its permit to giving it back."""

    params = ((1, 2, 4, 8), (1, 256))
    param_names = ("producers", "batch")
    unit = "ns"
    timeout = 900

    def setup_cache(self) -> dict[str, float]:
        command = ["cargo", "bench", "--quiet", "--locked", "--package", "engram-core", "--bench", "queue"]
        command += os.environ.get("ENGRAM_BENCH_CARGO", "").split()
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        cases = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
        return {f"{case['producers']} {case['batch']}": case["ns"] for case in cases}

    def track_observation(self, cases: dict[str, float], producers: int, batch: int) -> float:
        return cases[f"{producers} {batch}"]
