"""Carries connections from one port to another, through faults: on loopback, from a seed."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from engram.chaos.faults.reset import Lost

_PIECE = 16 << 10


class Fault(Protocol):
    """What may happen to a piece of bytes."""

    def pause(self, draw: random.Random, size: int) -> float:
        """Seconds to hold it; may raise `Lost`."""
        ...


class Proxy:
    """Stands between clients and a server. A context manager.

    Parameters
    ----------
    url : str
        Of the server, ``"grpc://HOST:PORT"``.
    faults : sequence of Fault
        Asked in turn for each piece, either way.
    seed : int
        Of everything that is drawn. (When pieces come is up to the system.)

    Attributes
    ----------
    url : str
        What clients connect to.
    resets : int
        Connections broken so far.
    """

    def __init__(self, url: str, faults: Sequence[Fault] = (), seed: int = 0) -> None:
        host, _, port = url.partition("://")[2].rpartition(":")
        self._to = (host, int(port))
        self.faults = list(faults)
        self._draw = random.Random(seed)
        self.resets = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engram-proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.url = f"grpc://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accepted, "127.0.0.1", 0)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        ways = (self._carry(reader, there_writer), self._carry(there_reader, writer))
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # closed; asyncio would log it
        finally:
            for task in tasks:
                task.cancel()
            for end in (writer, there_writer):
                _abort(end)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(_PIECE):
                for fault in self.faults:
                    seconds = fault.pause(self._draw, len(piece))
                    if seconds > 0:
                        await asyncio.sleep(seconds)
                writer.write(piece)
                await writer.drain()
        except Lost:
            self.resets += 1
        except OSError:
            return

    def close(self) -> None:
        """Break all connections, and listen no more."""

        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Proxy:
        """Return the proxy."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Reset, so that the other end is told at once, whatever was on its way."""
    peer: socket.socket | None = writer.get_extra_info("socket")
    if peer is not None and peer.fileno() >= 0:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
