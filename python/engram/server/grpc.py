"""The service over gRPC, on `grpc.aio`: bytes in, bytes out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engram._exceptions import EngramError, InvalidArgument, Timeout, TooLarge, Unavailable
from engram.server import streams
from engram.server.connection import Connection, Signal
from engram.server.log import log
from engram.server.messages import parse
from engram.server.questions import Questions
from engram.server.service import Service
from engram.server.status import ENDS, abort
from engram.v1 import service_pb2 as pb

NAME = pb.DESCRIPTOR.services_by_name["Engram"].full_name

_Context = grpc.aio.ServicerContext[bytes, bytes]
_CALLS_BESIDE = 1_000  # of one client, besides its streams: more wait
_OPEN_SECONDS = 10.0
_NONSENSE_SECONDS = 0.25
_TOLD_SECONDS = 5.0
_LATE_SECONDS = 0.05  # gRPC tells the loop of what it has cancelled, and complains if that is closed
_STOPPING = "the server is stopping"
_FLUSH_SECONDS = 1.0
_ANSWER_BYTES_MAX = 68 << 20  # what our clients take
_SWEEPS = 10  # looks for idle streams in the time that makes one idle


async def _refuse(context: _Context, error: BaseException) -> None:
    """End a stream with an error. Who sends nonsense may come again at once: he is held up, so that others are not."""
    if isinstance(error, InvalidArgument):
        await asyncio.sleep(_NONSENSE_SECONDS)
    try:
        async with asyncio.timeout(_TOLD_SECONDS):
            await abort(context, error)
    except TimeoutError:  # he takes nothing: the stream is reset
        raise asyncio.CancelledError from None


class GrpcServer:
    """Listens on one address; made and used on one loop."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service = service
        self._bytes_max = settings.message_bytes_max
        self._connections: set[Connection] = set()
        self._questions: set[Questions] = set()
        self._streams = 0  # those that have not begun, too
        self._under_way = 0
        self._over = Signal()  # one of them
        self._sweeping: asyncio.Task[None] | None = None
        self._health = health.aio.HealthServicer()
        calls_max = settings.streams_max + _CALLS_BESIDE
        options = [
            ("grpc.so_reuseport", 0),
            # More than is taken: who sends it is told so. What is larger still gRPC refuses in its own way.
            ("grpc.max_receive_message_length", 2 * settings.message_bytes_max),
            # One memory may be larger than what else goes into a message.
            ("grpc.max_send_message_length", _ANSWER_BYTES_MAX),
            ("grpc.max_metadata_size", settings.metadata_bytes_max),
            ("grpc.max_concurrent_streams", calls_max),
            # What the loop has not taken up yet: from a thousand on gRPC would drop some by chance.
            ("grpc.server.max_pending_requests", calls_max),
            ("grpc.server.max_pending_requests_hard_limit", calls_max),
            ("grpc.keepalive_time_ms", round(settings.keepalive_seconds * 1000)),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, self._handlers()),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in pb.DESCRIPTOR.services_by_name["Engram"].methods:
            kind = getattr(pb, method.input_type.name)
            if method.name == "Observe":
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(self._observe)
            elif method.name == "Recalls":
                handlers[method.name] = grpc.stream_stream_rpc_method_handler(self._recalls)
            elif method.server_streaming:
                call = streams.recall if method.name == "Recall" else streams.watch
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(self._streaming(kind, call))
            else:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(self._unary(method.name, kind))
        return handlers

    def _unary(self, name: str, kind: Any) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        async def handler(message: bytes, context: _Context) -> bytes:
            with self._call():
                return await answered(message, context)

        async def answered(message: bytes, context: _Context) -> bytes:
            try:
                answer = await self._service.answer(name, parse(kind, message, self._bytes_max))
                return answer.SerializeToString()
            except ENDS:
                raise
            except BaseException as error:
                await abort(context, error)
                raise

        return handler

    def _streaming(self, kind: Any, call: Any) -> Callable[[bytes, _Context], AsyncIterator[bytes]]:
        async def handler(message: bytes, context: _Context) -> AsyncIterator[bytes]:
            began, count = time.perf_counter(), 0
            try:
                with self._call():
                    async for answer in call(self._service, parse(kind, message, self._bytes_max)):
                        count += 1
                        yield answer
            except ENDS:
                raise
            except BaseException as error:
                await abort(context, error)
            micros = round((time.perf_counter() - began) * 1e6)
            context.set_trailing_metadata((("engram-micros", str(micros)), ("engram-batches", str(count))))

        return handler

    # ---- recalls that share a call -----------------------------------------------------------------------------------

    async def _recalls(self, _messages: AsyncIterator[bytes], context: _Context) -> None:
        questions = Questions(self._service, context.write)
        self._questions.add(questions)
        try:
            with self._call():
                await self._answer(context, questions)
        except ENDS:
            raise
        except BaseException as error:
            self._questions.discard(questions)  # its place is free before it is told
            await _refuse(context, error)
        finally:
            self._questions.discard(questions)

    async def _answer(self, context: _Context, questions: Questions) -> None:
        self._check(len(self._questions))
        if self._service.is_leaving:
            raise Unavailable(_STOPPING)
        reading = asyncio.create_task(self._ask(context, questions))
        try:
            done, _ = await asyncio.wait((reading, questions.ended), return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            await questions.finish()
            if reading in done:
                reading.result()
            if questions.ended.done():
                raise questions.ended.result()
        finally:
            reading.cancel()
            questions.cancel()

    @staticmethod
    async def _ask(context: _Context, questions: Questions) -> None:
        while True:
            message: Any = await context.read()
            if message is grpc.aio.EOF:
                break
            await questions.receive(message)

    # ---- observing ---------------------------------------------------------------------------------------------------

    async def _observe(self, _: AsyncIterator[bytes], context: _Context) -> None:
        self._streams += 1
        try:
            with self._call():
                await self._serve(context)
        finally:
            self._streams -= 1

    async def _serve(self, context: _Context) -> None:
        try:
            connection = await self._open(context)
        except ENDS:
            raise
        except BaseException as error:
            await _refuse(context, error)
            return
        self._connections.add(connection)
        reading = asyncio.create_task(self._read(context, connection))
        try:
            await self._write(context, connection)
        finally:
            reading.cancel()
            self._connections.discard(connection)
            connection.detach()
        if connection.outbound.error is not None:
            await _refuse(context, connection.outbound.error)

    async def _open(self, context: _Context) -> Connection:
        self._check(self._streams)
        message = await self._first(context)
        asked = pb.ObserveRequest() if message is grpc.aio.EOF else parse(pb.ObserveRequest, message, self._bytes_max)
        if asked.WhichOneof("what") != "open":
            raise InvalidArgument("a stream begins with Open", field="message", index=None)
        connection = await Connection.open(self._service, asked.open)
        if self._service.is_leaving:
            connection.detach()
            raise Unavailable(_STOPPING)
        return connection

    async def _first(self, context: _Context) -> Any:
        """What the peer says first, unless the server ends."""
        read: Any = context.read()
        reading, leaving = asyncio.ensure_future(read), asyncio.ensure_future(self._service.left())
        try:
            both = (reading, leaving)
            done, _ = await asyncio.wait(both, timeout=_OPEN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            reading.cancel()
        if leaving in done:
            raise Unavailable(_STOPPING)
        if reading not in done:
            raise Timeout("the stream did not begin with Open in time")
        return reading.result()

    async def _read(self, context: _Context, connection: Connection) -> None:
        try:
            while True:
                message: Any = await context.read()
                if message is grpc.aio.EOF:
                    break
                if not await connection.receive(message):
                    return
                await connection.ready()
            await connection.finish()
        except EngramError as error:
            connection.outbound.end(error)
        except ENDS:
            raise
        except BaseException as error:
            log.error("a stream failed", exc_info=error)
            connection.end("the stream failed: this is a bug, please report it")

    async def _write(self, context: _Context, connection: Connection) -> None:
        """Send what is owed. A peer that does not read holds the send for ever: it is cut."""
        outbound, task = connection.outbound, asyncio.current_task()
        assert task is not None
        outbound.on_cut = task.cancel
        try:
            while (message := await outbound.next()) is not None:
                await context.write(message)
        except asyncio.CancelledError:
            if not outbound.is_cut or task.uncancel():
                raise
        finally:
            outbound.on_cut = None

    async def _sweep(self) -> None:
        """End streams without traffic, and those that have ended and whose peers do not hear it."""
        idle = self._service.settings.idle_seconds_max
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(idle / _SWEEPS)
            now = loop.time()
            for connection in [*self._connections]:
                connection.outbound.cut_if_stuck()
                if now - connection.last_traffic > idle:
                    connection.end(f"nothing was said for {idle:g} s")
            for questions in [*self._questions]:
                questions.end_if_idle(idle)

    # ---- starting and ending -----------------------------------------------------------------------------------------

    async def start(self, address: str) -> int:
        """Listen; not ready yet. Returns the port."""
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise InvalidArgument(f"cannot listen on {address}: is it in use?", field="grpc", index=None)
        for name in ("", NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        return port

    async def ready(self) -> None:
        """The service has its engine."""
        self._sweeping = asyncio.create_task(self._sweep())
        for name in ("", NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, drain_seconds: float) -> None:
        """Take no new calls; end streams when what they sent is acknowledged; then GOAWAY."""
        await self._health.enter_graceful_shutdown()
        self._service.leave()
        stopping = asyncio.create_task(self._server.stop(drain_seconds))
        await asyncio.sleep(0)
        connections = [*self._connections]
        for connection in connections:
            connection.leave(_STOPPING)
        for questions in [*self._questions]:
            questions.end(_STOPPING)
        until = asyncio.get_running_loop().time() + drain_seconds
        for connection in connections:
            await connection.settle(until)
            connection.end(_STOPPING)
        await self._ended(stopping)
        await asyncio.sleep(_LATE_SECONDS)
        if self._sweeping is not None:
            self._sweeping.cancel()

    async def _ended(self, stopping: asyncio.Task[None]) -> None:
        """Wait for the calls that are under way. Who watches our health would stay to the end: it is not waited for."""
        quiet = asyncio.create_task(self._no_call())
        await asyncio.wait((stopping, quiet), return_when=asyncio.FIRST_COMPLETED)
        quiet.cancel()
        await asyncio.wait((stopping,), timeout=_FLUSH_SECONDS)  # what was answered is on its way
        if not stopping.done():
            await self._server.stop(None)
        await stopping

    async def _no_call(self) -> None:
        while self._under_way:
            await self._over.wait()

    def _check(self, streams: int) -> None:
        if streams > self._service.settings.streams_max:
            text = f"{streams - 1} streams are open; close some"
            raise TooLarge(text, field="streams", index=None)

    @contextmanager
    def _call(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._over.set()
