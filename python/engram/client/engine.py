"""A server as an engine: `connect`, `RemoteEngine`, `RemoteSpace`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from engram._convert import Durability, Metric, Priority, duration, plain, whole
from engram._engine import Engine
from engram._exceptions import InvalidArgument
from engram._reads import At, How, Snapshot
from engram._space import Space
from engram.client.link import Link
from engram.client.session import Levels
from engram.client.space import RemoteSpaceCore
from engram.client.stream import ObserveStream, OnProgress
from engram.v1 import service_pb2 as pb

_CHECKPOINT_SECONDS = 600.0


class _RemoteCore:
    """The inside of an `Engine`, over a link."""

    path = None

    def __init__(self, link: Link) -> None:
        self.link = link
        self._levels = Levels()

    def _opened(self, request: pb.CreateSpaceRequest) -> RemoteSpaceCore:
        return RemoteSpaceCore(self.link, self._levels, self.link.unary("CreateSpace", request, pb.SpaceResponse))

    def create_space(self, name: str, dim: int, metric: str | None, durability: str | None) -> RemoteSpaceCore:
        request = pb.CreateSpaceRequest(space=name, dim=dim, metric=metric or "", durability=durability or "")
        return self._opened(request)

    def space(self, name: str) -> RemoteSpaceCore:
        return self._opened(pb.CreateSpaceRequest(space=name))

    def spaces(self) -> list[str]:
        names: list[str] = []
        while True:
            request = pb.ListSpacesRequest(after=names[-1] if names else "")
            answer = self.link.unary("ListSpaces", request, pb.ListSpacesResponse)
            names += answer.spaces
            if not answer.more:
                return names

    def drop_space(self, name: str) -> None:
        self.link.unary("DropSpace", pb.DropSpaceRequest(space=name), pb.DropSpaceResponse)

    def checkpoint(self) -> None:
        self.link.unary("Checkpoint", pb.CheckpointRequest(), pb.CheckpointResponse, _CHECKPOINT_SECONDS)

    def _figures(self) -> dict[str, Any]:
        answer = self.link.unary("Stats", pb.StatsRequest(), pb.StatsResponse)
        figures: dict[str, Any] = json.loads(answer.stats)
        return figures

    def stats(self) -> dict[str, Any]:
        figures = self._figures()
        del figures["report"], figures["limits"]
        return figures

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = self._figures()["report"]
        return found

    def limits(self) -> dict[str, int]:
        found: dict[str, int] = self._figures()["limits"]
        return found

    def heard(self) -> Levels:
        return self._levels

    def forget_after_fork(self) -> None:
        """The link looks at the process itself."""

    def close(self) -> None:
        if not self.link.is_elsewhere:
            self._levels.end()
            self.link.close()


class RemoteSpace(Space):
    """A space on a server: what `Space` has, and `stream`."""

    _core: Any

    def _limits(self) -> Mapping[str, int]:
        limits: Mapping[str, int] = self._core.limits
        # A message carries it.
        return {**limits, "batch_bytes_max": min(limits["batch_bytes_max"], limits["message_bytes_max"] * 3 // 4)}

    def _stream(self, cue: NDArray[np.float32], k: int, at: At, how: How, size: int) -> Any:
        return self._core.stream(cue, k, at, how, size)

    def snapshot(self) -> Snapshot:
        """Pin what is visible now: repeatable reads, at most 60 s unused and 10 min in all."""
        return _RemoteSnapshot(self._core)

    def stream(
        self,
        *,
        priority: Priority = "normal",
        resume: str | None = None,
        acknowledged: int | None = None,
        reconnect: float = 60.0,
        buffer_bytes: int = 16 << 20,
        on_progress: OnProgress | None = None,
    ) -> ObserveStream:
        """Open a stream of observations, or go on with one: sent in frames, each with its effect once.

        Parameters
        ----------
        priority : {"high", "normal", "low"}
            Of a new session.
        resume : str, optional
            The token of a session: `ObserveStream.committed` says where to go on.
        acknowledged : int, optional
            The last sequence that the caller knows to be acknowledged.
        reconnect : float
            Seconds to try for when the connection is lost, before the stream fails; at most a day.
        buffer_bytes : int
            What may be kept here, sent or not; who observes more waits.
        on_progress : callable, optional
            Called with the stream, on a thread of the client, after acknowledgements. It must not wait.

        Raises
        ------
        InvalidArgument, SessionExpired, DataLoss, TooLarge, Unavailable, NotFound, Closed
            As for `Space.session`.
        """
        known = None if acknowledged is None else whole("acknowledged", acknowledged, 0, 2**63 - 1)
        token = None if resume is None else plain("resume", resume)
        asked = self._core.open(plain("priority", priority), token, known)
        seconds, kept = duration("reconnect", reconnect), whole("buffer_bytes", buffer_bytes, 0, 2**63 - 1)
        if not (on_progress is None or callable(cast(Any, on_progress))):
            text = f"on_progress is {on_progress!r}; it must be callable"
            raise InvalidArgument(text, field="on_progress", index=None)
        return ObserveStream(self._core._link, asked, seconds, kept, self._core.limits, on_progress)


class _RemoteSnapshot(Snapshot):
    _core: Any

    def _stream(self, cue: NDArray[np.float32], k: int, at: At, how: How, size: int) -> Any:
        return self._core.stream(cue, k, at, how, size)


class RemoteEngine(Engine):
    """An engine in another process. Use `engram.connect`; a context manager that closes the connection."""

    _core: Any

    def __init__(self, link: Link) -> None:
        super().__init__(cast(Any, _RemoteCore(link)))

    @property
    def url(self) -> str:
        """Where it is."""
        url: str = self._core.link.url
        return url

    def space(
        self,
        name: str,
        dim: int | None = None,
        *,
        metric: Metric | None = None,
        durability: Durability | None = None,
    ) -> RemoteSpace:
        """Open the space `name`; made on first use if `dim` is given. See `Engine.space`."""
        core = super().space(name, dim, metric=metric, durability=durability)._core
        return RemoteSpace(core, self)

    @property
    def completions_fd(self) -> int:
        """Only where the engine is."""
        raise InvalidArgument("completions are told to the process that has the engine", field="engine", index=None)

    def drain_completions(self, most: int = 1024) -> list[tuple[int, bytes]]:
        """Only where the engine is."""
        raise InvalidArgument("completions are told to the process that has the engine", field="engine", index=None)

    def __repr__(self) -> str:
        """Show where it is."""
        return f"<engram.Engine at {self.url}>"


def connect(url: str, *, timeout: float = 10.0) -> RemoteEngine:
    """Connect to a server: the same methods as an engine in this process, and `Space.stream`.

    Parameters
    ----------
    url : str
        ``"grpc://HOST:PORT"``, as the server prints it.
    timeout : float
        Seconds to try for.

    Raises
    ------
    Unavailable
        No server answers.
    InvalidArgument
        Not such a url.
    """
    return RemoteEngine(Link(url, timeout))


__all__ = ["RemoteEngine", "RemoteSpace", "connect"]
