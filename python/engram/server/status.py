"""Errors as every client of gRPC reads them: a status, with `ErrorInfo` and `RetryInfo` (google.rpc)."""

from __future__ import annotations

import asyncio
import json

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from engram._exceptions import GRPC, EngramError, fields_of
from engram.server.log import log

DETAILS = "grpc-status-details-bin"
DOMAIN = "engram"
# A message goes out twice, once with each byte as three.
_TEXT_BYTES = 1_000
_FIELD_BYTES = 300


#: How a call ends that nobody waits for; all else is told, also what is no Exception, as a panic in the engine.
ENDS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)


def code_of(error: EngramError) -> grpc.StatusCode:
    """Return the status for an error, by the one table."""
    return grpc.StatusCode[GRPC[error.code]]


def short(text: str, bytes_max: int) -> str:
    """Return as much of a text as a status may carry: gRPC drops one that is too large, and what went wrong with it."""
    whole = text.encode(errors="replace")
    return text if len(whole) <= bytes_max else whole[:bytes_max].decode(errors="ignore") + " …"


def details_of(error: EngramError) -> bytes:
    """Return the rich form of an error."""
    fields = {
        name: json.dumps(short(value, _FIELD_BYTES) if isinstance(value, str) else value, default=str)
        for name, value in fields_of(error).items()
    }
    info = ErrorInfo(reason=error.code, domain=DOMAIN, metadata=fields)
    details: list[ErrorInfo | RetryInfo] = [info]
    retry_ms = getattr(error, "retry_after_ms", None)
    if retry_ms is not None:
        details.append(RetryInfo(retry_delay=Duration(seconds=retry_ms // 1000, nanos=retry_ms % 1000 * 1_000_000)))
    status = Status(code=code_of(error).value[0], message=short(error.message, _TEXT_BYTES))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    out: bytes = status.SerializeToString()
    return out


async def abort(context: grpc.aio.ServicerContext[bytes, bytes], error: BaseException) -> None:
    """End a call with an error; never returns."""
    if isinstance(error, EngramError):
        text = short(error.message, _TEXT_BYTES)
        await context.abort(code_of(error), text, ((DETAILS, details_of(error)),))
    await context.abort(grpc.StatusCode.INTERNAL, _bug(error))


def status_of(error: BaseException) -> bytes:
    """Return the status that a call would end with, for a stream that goes on."""
    if isinstance(error, EngramError):
        return details_of(error)
    out: bytes = Status(code=grpc.StatusCode.INTERNAL.value[0], message=_bug(error)).SerializeToString()
    return out


def _bug(error: BaseException) -> str:
    log.error("a call failed", exc_info=error)
    return f"{type(error).__name__}: this is a bug, please report it"
