"""The `engram` command. Only this package loads typer and rich."""

from engram.cli.app import main

__all__ = ["main"]
