"""A connection to a server: one event loop on one thread, whichever threads call.

`Link.call` waits for a coroutine on that loop. After a fork the child has neither thread nor connection: each use says
so. Errors are those of the engine: the server sends their code and fields along.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from engram._convert import duration, plain
from engram._exceptions import (
    Closed,
    Interrupted,
    InvalidArgument,
    Unavailable,
)
from engram.client.recalls import Recalls
from engram.client.status import NAME, error_of
from engram.v1 import begin_grpc

_T = TypeVar("_T")

MESSAGE_BYTES_MAX = 68 << 20  # that a server may send
SECONDS = 30.0  # for a call, unless it says otherwise
_LATE_SECONDS = 0.05  # gRPC tells the loop of what it has cancelled, and complains if that is closed
_EXIT_SECONDS = 5.0
_SIGNAL_SECONDS = 1.0
_MAKERS = 2
_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4)
#: Done twice, these would have another effect, or another answer.
_CHANGE_SOMETHING = ("PutObservations", "Forget", "DropSpace", "OpenSnapshot")


async def again(once: Callable[[], Awaitable[_T]]) -> _T:
    """Await what may be done twice; a few times, if the connection breaks or the server is starting."""
    for pause in _PAUSES:
        try:
            return await once()
        except Unavailable:
            await asyncio.sleep(pause)
    return await once()


def _is_address(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and port.isascii() and port.isdigit() and 0 < int(port) <= 65_535


def _said_elsewhere(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Of a stream that breaks gRPC leaves a task behind; the stream itself says so to who uses it."""
    if type(context.get("exception")).__name__ != "ExecuteBatchError":
        loop.default_exception_handler(context)


#: Closed at exit: an interpreter that ends under gRPC's threads may never end.
_open: weakref.WeakSet[Link] = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    """Before engines close, who know nothing of streams: what is registered last is called first."""
    atexit.register(_close_all)


def _close_all() -> None:
    until = time.monotonic() + _EXIT_SECONDS
    for link in [*_open]:
        for stream in link.streams.copy() if not link.is_over else ():
            with suppress(Exception):
                stream.flush(max(until - time.monotonic(), 0.0))
        with suppress(Exception):
            link.close(_EXIT_SECONDS)


class Link:
    """A channel, and the loop it lives on."""

    def __init__(self, url: str, timeout: float) -> None:
        scheme, _, self.address = plain("url", url).partition("://")
        timeout = duration("timeout", timeout)
        if scheme != "grpc" or not _is_address(self.address):
            text = f'{url!r} is not a url of a server, like "grpc://127.0.0.1:7637"'
            raise InvalidArgument(text, field="url", index=None)
        begin_grpc()
        _close_at_exit()
        self.url = url
        #: What is flushed at exit.
        self.streams: weakref.WeakSet[Any] = weakref.WeakSet()
        _open.add(self)
        self._pid = os.getpid()
        self._closed = False
        # Nothing is begun once it is closed. Collected garbage may begin something in the middle of that.
        self._ending = threading.RLock()
        #: Makes frames for coroutines: nothing on it waits for calls.
        self.makers = concurrent.futures.ThreadPoolExecutor(_MAKERS, "engram-frames")
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="engram-client", daemon=True)
        self._thread.start()
        try:
            self.channel = self.call(self._connect(timeout))
        except BaseException:
            self.close()
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(_said_elsewhere)
        self.loop.run_forever()

    async def _connect(self, timeout: float) -> grpc.aio.Channel:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.enable_http_proxy", 0),  # of the environment: it is for other protocols
        ]
        channel = grpc.aio.insecure_channel(self.address, options=options)
        try:
            await asyncio.wait_for(channel.channel_ready(), timeout)
        except TimeoutError:
            await channel.close()
            raise Unavailable(f"no server answers at {self.url}") from None
        self.recalls = Recalls(self, channel)
        return channel

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is a fork of the process that connected: it may take no lock of the parent's threads."""
        return self._pid != os.getpid()

    @property
    def is_over(self) -> bool:
        """Whether nothing can be called any more."""
        return self._closed or self.is_elsewhere

    def check(self) -> None:
        """Complain if there is no connection any more, or the caller is the thread that everything waits for."""
        if self.is_elsewhere:
            text = f"the connection belongs to process {self._pid}: connect in a process of its own, not in a fork"
            raise Closed(text)
        if self._closed:
            raise Closed("the connection is closed")
        if threading.current_thread() is self._thread:
            raise RuntimeError("called on the client's own thread: from a callback, hand over to another")

    def begin(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Have a coroutine run on the loop. Raises as `check`."""
        try:
            self.check()
            with self._ending:
                self.check()
                return asyncio.run_coroutine_threadsafe(work, self.loop)
        except (Closed, RuntimeError):
            work.close()
            raise

    def call(self, work: Coroutine[Any, Any, _T], timeout: float | None = None) -> _T:
        """Wait for a coroutine on the loop; after Ctrl-C at most a second, then `Interrupted`."""
        future = self.begin(work)
        try:
            return future.result(timeout)
        except concurrent.futures.CancelledError:
            raise Closed("the connection is closed") from None
        except KeyboardInterrupt:
            if self._ends(future):
                raise
            text = "interrupted before the server had answered; whether the call had an effect is not known"
            raise Interrupted(text) from None
        except BaseException:
            future.cancel()
            raise

    @staticmethod
    def _ends(future: concurrent.futures.Future[Any]) -> bool:
        """Whether what is under way comes to its end in a second; cancelled if not."""
        try:
            return future in concurrent.futures.wait((future,), _SIGNAL_SECONDS).done
        finally:
            future.cancel()

    async def _unary(self, method: str, request: Message, answer: Any, seconds: float | None) -> Any:
        path = f"/{NAME}/{method}"
        call = self.channel.unary_unary(path, type(request).SerializeToString, answer.FromString)

        async def once() -> Any:
            try:
                return await call(request, timeout=seconds)
            except grpc.aio.AioRpcError as error:
                raise error_of(error) from None

        return await once() if method in _CHANGE_SOMETHING else await again(once)

    def unary(self, method: str, request: Message, answer: type[_T], seconds: float | None = SECONDS) -> _T:
        """Call what has one answer."""
        answered: _T = self.call(self._unary(method, request, answer, seconds))
        return answered

    async def streamed(
        self, method: str, request: Message, answer: type[_T], seconds: float | None
    ) -> AsyncGenerator[_T, None]:
        """Call what answers in pieces; on the loop."""
        path, kind = f"/{NAME}/{method}", cast(Any, answer)
        call = self.channel.unary_stream(path, type(request).SerializeToString, kind.FromString)
        try:
            async for message in call(request, timeout=seconds):
                yield message
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None

    def close(self, timeout: float | None = None) -> None:
        """End it; once. Raises TimeoutError if the loop is held for longer."""
        if self.is_over:
            return
        if threading.current_thread() is self._thread:
            raise RuntimeError("closed on the client's own thread: from a callback, hand over to another")
        with self._ending:
            was_closed, self._closed = self._closed, True
        if was_closed:
            return
        self.makers.shutdown(wait=False)

        async def end() -> None:
            if hasattr(self, "channel"):
                await self.channel.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(_LATE_SECONDS)

        ended = asyncio.run_coroutine_threadsafe(end(), self.loop)
        try:
            ended.result(timeout)
        except KeyboardInterrupt:  # not half closed: see `_open`
            with suppress(Exception):
                ended.result(_EXIT_SECONDS)
            raise
        finally:
            if ended.done():
                self.loop.call_soon_threadsafe(self.loop.stop)
                self._thread.join()
                self.loop.close()
