"""The embedded engine: `open`, `Engine`, `Space`, `Snapshot`."""

from __future__ import annotations

import atexit
import json
import os
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, get_args

from engram import _core
from engram._convert import Durability, Metric, directory, limits_in, plain, whole
from engram._core import Cancel as Cancel
from engram._core import encode_frame as encode_frame
from engram._core import join_frames as join_frames
from engram._exceptions import InvalidArgument
from engram._pressure import Watch
from engram._reads import Snapshot
from engram._space import Space

_DIM_MAX = 8192

_open_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _close_all() -> None:
    for engine in list(_open_engines):
        try:
            engine.close()
        except Exception:
            continue  # the interpreter is ending; what was acknowledged is safe


def _forget_all() -> None:
    for engine in list(_open_engines):
        engine._core.forget_after_fork()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def open(
    path: str | os.PathLike[str] | None = None,
    *,
    durability: Durability = "sync",
    limits: Mapping[str, int] | None = None,
) -> Engine:
    """Open or make a data directory, or an engine in memory.

    Parameters
    ----------
    path : str or PathLike, optional
        The directory; made if absent. None: everything is kept in memory and gone with the engine.
    durability : {"sync", "os", "memory"}
        What an acknowledgement promises unless the space says otherwise: survives a power cut, a killed
        process, or neither.
    limits : mapping of str to int, optional
        Limits by name, with units in the names (see `docs/reference/limits.md`).

    Raises
    ------
    Locked
        Another process has the directory open.
    Corrupted
        The manifest or the catalogue of spaces is damaged. Other damage degrades what it hits: see
        `Engine.report`.
    UnsupportedVersion
        A newer engram wrote it; nothing was changed.
    PermissionDenied, DiskFull, StorageError
        The directory cannot be used.
    InvalidArgument
        An unknown durability or limit, or what is no path.
    """
    core = _core.Engine.open(directory(path), durability, limits_in(limits))
    return Engine(core)


def _among(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value is not None and (not isinstance(value, str) or value not in known):
        *first, last = (f'"{one}"' for one in known)
        text = f"unknown {name} {json.dumps(value, default=repr)}; use {', '.join(first)} or {last}"
        raise InvalidArgument(text, field=name, index=None)


class Engine:
    """A running engine. Use `engram.open`; a context manager that closes."""

    def __init__(self, core: _core.Engine) -> None:
        self._core = core
        self._watch = Watch(core)
        _open_engines.add(self)

    def space(
        self,
        name: str,
        dim: int | None = None,
        *,
        metric: Metric | None = None,
        durability: Durability | None = None,
    ) -> Space:
        """Open the space `name`; made on first use if `dim` is given.

        Parameters
        ----------
        name : str
            1 to 64 of a-z, 0-9, "_" and "-", beginning with a letter or digit.
        dim : int, optional
            Components of each vector, 1 to 8192. Without it an absent space is an error.
        metric : {"cosine", "l2", "ip"}, optional
            "cosine" when made; scores are similarities, minus squared distances, or inner products.
        durability : {"sync", "os", "memory"}, optional
            For this space; otherwise the engine's.

        Raises
        ------
        NotFound
            There is none of that name, and no `dim` to make one with.
        AlreadyExists
            It exists with another dim, metric or durability.
        InvalidArgument
            A bad name, dim, metric or durability.
        """
        _among("metric", metric, get_args(Metric))
        _among("durability", durability, get_args(Durability))
        if dim is None:
            core = self._core.space(plain("name", name))
            if metric is None and durability is None:
                return Space(core, self)
            dim = core.dim
        dim = whole("dim", dim, 1, _DIM_MAX)
        return Space(self._core.create_space(plain("name", name), dim, metric, durability), self)

    def spaces(self) -> list[str]:
        """Names of all spaces, sorted."""
        return self._core.spaces()

    def drop_space(self, name: str) -> None:
        """Remove a space and everything in it, and nothing else. Raises `NotFound`."""
        self._core.drop_space(plain("name", name))

    @property
    def completions_fd(self) -> int:
        """A file descriptor that an event loop may watch: readable when submitted frames have come to something."""
        return self._core.completions_fd

    def drain_completions(self, most: int = 1024) -> list[tuple[int, bytes]]:
        """Return what submitted frames came to, oldest first.

        Parameters
        ----------
        most : int
            Completions to take; acknowledgements that continue each other are told as one.

        Returns
        -------
        list of (int, bytes)
            The session's `id`, and a `Told` of `proto/engram/v1/frame.proto`: an acknowledgement, a fault, or a
            change of the space's level.
        """
        return self._core.drain_completions(whole("most", most, 0, 2**32 - 1))

    @property
    def _answered_fd(self) -> int:
        """Readable when asked recalls have a batch."""
        return self._core.answered_fd

    def _drain_answered(self, most: int) -> list[int]:
        """Ids of asked recalls that have a batch."""
        return self._core.drain_answered(most)

    def checkpoint(self) -> None:
        """Seal everything into files, so that the next start replays next to nothing.

        Raises `DiskFull`, `StorageError` or `Poisoned` if it could not; nothing acknowledged is at risk.
        """
        self._core.checkpoint()

    def stats(self) -> dict[str, Any]:
        """Figures of the engine: spaces, bytes by what they were written for, partitions, maintenance."""
        return self._core.stats()

    @property
    def limits(self) -> dict[str, int]:
        """The limits that callers meet, by name (`docs/reference/limits.md`)."""
        return self._core.limits()

    @property
    def report(self) -> dict[str, Any]:
        """What the start found: damage, torn bytes, groups replayed, spaces renewed or with a quarantine."""
        return self._core.report()

    @property
    def path(self) -> os.PathLike[str] | None:
        """The directory, or None in memory."""
        return self._core.path

    def close(self) -> None:
        """Finish what was admitted, close the logs, give the directory back. Raises what went wrong; once."""
        try:
            self._core.close()
        finally:
            _open_engines.discard(self)  # not before: a fork meanwhile has to give up its copy of the lock

    def __enter__(self) -> Engine:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Show the directory."""
        return f"<engram.Engine {self.path or 'in memory'}>"


def verify(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Check every checksum of a directory that no process has open; nothing is changed.

    Returns
    -------
    dict
        ``damage`` (a list of path, offset, reason, space, lost), ``torn_bytes``, ``spaces``, ``memories``, ``files``,
        ``bytes`` and ``leftovers``.

    Raises
    ------
    NotFound, Locked, Corrupted, UnsupportedVersion, PermissionDenied, StorageError
        The directory cannot be looked at; `Corrupted` if its manifest is damaged.
    """
    return _core.verify(directory(path))


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Say what is where in a directory that no process has open; raises as `verify`.

    Returns
    -------
    dict
        ``directory_id``, ``partitions``, ``created``, ``lines``.
    """
    return _core.inspect(directory(path))


__all__ = ["Engine", "Snapshot", "Space", "inspect", "open", "verify"]
