"""`engram serve`: a server in the foreground, until it is told to stop."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from engram.cli.output import INTERRUPTED, say
from engram.server import Settings, serve
from engram.server.log import configure


def run(config: Path | None, print_config: bool, as_json: bool, given: dict[str, Any]) -> None:
    """Serve until SIGINT or SIGTERM; then drain and end. A second signal ends at once."""
    settings = Settings.read(config, **given)
    if print_config:
        say(settings.model_dump_json(indent=2) + "\n")
        return
    configure(settings.log)
    asked = threading.Event()

    def stop(number: int, frame: Any) -> None:
        if asked.is_set():  # as a kill would: nothing acknowledged is at risk
            os._exit(INTERRUPTED)
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with serve(settings=settings) as server:
        where = {"grpc": server.url, "data": None if settings.data is None else str(settings.data)}
        text = json.dumps(where) if as_json else f"serving {where['data'] or 'memory'} at {server.url}"
        say(text + "\n")
        while not asked.wait(0.5):
            pass
