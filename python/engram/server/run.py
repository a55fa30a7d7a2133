"""A server's life: a thread with an event loop, from `serve` to `stop`."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from engram import _engine
from engram._convert import directory, duration
from engram._engine import Engine
from engram._exceptions import EngramError, InvalidArgument
from engram.server.grpc import GrpcServer
from engram.server.log import log
from engram.server.service import Service
from engram.server.settings import Settings
from engram.v1 import begin_grpc

_T = TypeVar("_T")


class Server:
    """A running server. Use `engram.serve`; a context manager that stops.

    Attributes
    ----------
    url : str
        What `engram.connect` takes.
    settings : Settings
    """

    def __init__(self, settings: Settings, engine: Engine | None) -> None:
        begin_grpc()
        self._pid = os.getpid()
        self.settings = settings
        self._given = engine
        self._service = Service(settings)
        self._loop = asyncio.new_event_loop()
        self._stopped = threading.Event()
        self._stopping = threading.Lock()
        self._finishing: Future[None] | None = None
        self._own: Engine | None = None  # opened here, and to be closed
        self._thread = threading.Thread(target=self._run, name="engram-server", daemon=True)
        self._thread.start()
        try:
            self._grpc, port = self._on_loop(self._listen()).result()
        except BaseException:
            self._end()
            raise
        self.url = f"grpc://{settings.grpc.rpartition(':')[0]}:{port}"
        log.info("listening", url=self.url)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _on_loop(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _listen(self) -> tuple[GrpcServer, int]:
        grpc = GrpcServer(self._service)
        return grpc, await grpc.start(self.settings.grpc)

    def _recover(self) -> None:
        """Open the engine, if none was given; until then calls are answered `Unavailable`."""
        engine = self._given
        if engine is None:
            settings = self.settings
            engine = self._own = _engine.open(settings.data, durability=settings.durability, limits=settings.limits)
            log.info("recovered", data=str(settings.data), spaces=len(engine.spaces()), **engine.report)
        else:
            engine.spaces()  # `Closed`, if it is
        self._on_loop(self._begin(engine)).result()

    async def _begin(self, engine: Engine) -> None:
        self._service.begin(engine)
        await self._grpc.ready()

    async def _finish(self, drain: float) -> None:
        await self._grpc.stop(drain)
        self._service.end()

    @property
    def engine(self) -> Engine:
        """What is served: usable in this process meanwhile. Not stopped with the server if it was given."""
        return self._service.engine

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until somebody stops it; whether it has stopped."""
        return self._stopped.wait(timeout)

    def stop(self, drain: float | None = None) -> None:
        """Take no new calls, acknowledge what streams have sent, end them; close the engine if the server opened it.

        Parameters
        ----------
        drain : float, optional
            Seconds for that; by default `drain_seconds` of the settings. What was acknowledged is safe in any case.
            In a fork nothing is done. After Ctrl-C another call goes on with what the first has begun.

        Raises
        ------
        InvalidArgument
            No such time.
        """
        if self._pid != os.getpid():
            return  # a fork has neither its threads nor its connections
        seconds = self.settings.drain_seconds if drain is None else duration("drain", drain)
        with self._stopping:
            if self._stopped.is_set():
                return
            # After Ctrl-C the next call goes on with what this one began.
            if self._finishing is None:
                self._finishing = self._on_loop(self._finish(seconds))
            try:
                self._finishing.result()
            except Exception:
                self._end()
                raise
            self._end()
            log.info("stopped", url=self.url)

    def _end(self) -> None:
        self._service.close()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        try:
            if self._own is not None:
                self._own.close()
        except EngramError:  # it is closed nevertheless
            self._stopped.set()
            raise
        self._stopped.set()

    def __enter__(self) -> Server:
        """Return the server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def __repr__(self) -> str:
        """Show where it listens."""
        return f"<engram.Server {self.url}>"


def serve(
    engine_or_path: Engine | str | os.PathLike[str] | None = None,
    *,
    grpc: str | None = None,
    settings: Settings | None = None,
    **more: Any,
) -> Server:
    """Serve an engine, or a directory, to other processes; returns when it is ready.

    Parameters
    ----------
    engine_or_path : Engine, str, PathLike or None
        An engine of this process, which stays usable here, and open when the server stops; or a directory that the
        server opens and closes; None: one in memory.
    grpc : str, optional
        Host and port; port 0 takes a free one. Only loopback addresses for now. Default "127.0.0.1:7637".
    settings : Settings, optional
        Ready-made settings; else they are read from the environment (``ENGRAM_…``) and `more`.
    **more
        Single settings by name (`docs/reference/server.md`).

    Returns
    -------
    Server
        A context manager that stops.

    Raises
    ------
    InvalidArgument
        A bad setting; an address that is not loopback, or is in use.
    Locked, Corrupted, UnsupportedVersion, PermissionDenied, StorageError
        As for `open`.
    Closed
        The engine is.
    """
    engine = engine_or_path if isinstance(engine_or_path, Engine) else None
    path = None if isinstance(engine_or_path, Engine | None) else Path(directory(engine_or_path))
    of_an_engine = {"data", "durability", "limits"} & more.keys()
    if engine is not None and of_an_engine:
        text = f"the engine has been opened: {', '.join(sorted(of_an_engine))} come too late"
        raise InvalidArgument(text, field=min(of_an_engine), index=None)
    if settings is None:
        settings = Settings.read(grpc=grpc, **{"data": path, **more} if path else more)
        if engine_or_path is None:
            settings = settings.model_copy(update={"data": more.get("data")})
    elif not isinstance(cast(Any, settings), Settings) or grpc is not None or more:
        raise InvalidArgument("give `Settings`, or single ones, not both", field="settings", index=None)
    elif path is not None:
        if settings.data not in (None, path):
            text = f"the settings say {settings.data}, not {path}: give one of them"
            raise InvalidArgument(text, field="data", index=None)
        settings = settings.model_copy(update={"data": path})
    server = Server(settings, engine)
    try:
        server._recover()
    except BaseException:
        server.stop(0)
        raise
    return server
