"""What went wrong, as a server tells it."""

from __future__ import annotations

import json

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from engram._exceptions import TABLE, EngramError, Timeout, TooLarge, Unavailable, from_core
from engram.v1 import service_pb2 as pb

NAME = pb.DESCRIPTOR.services_by_name["Engram"].full_name
LATE = "the server did not answer in time; whether the call had an effect is not known"
_DETAILS = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _told(status: Status, text: str) -> EngramError | None:
    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info) and info.reason in TABLE:
            fields = {name: json.loads(value) for name, value in info.metadata.items()}
            return from_core(info.reason, text, fields)
    return None


def error_of(error: grpc.aio.AioRpcError) -> EngramError:
    """Return what a call ended with as the engine's own error."""
    code, text = error.code(), error.details() or ""
    for name, value in error.trailing_metadata() or ():
        if name == _DETAILS:
            told = _told(Status.FromString(value if isinstance(value, bytes) else value.encode()), text)
            if told is not None:
                return told
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Timeout(LATE)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge(f"over the limits of a message: {text}", field="message", index=None)
    return Unavailable(f"{code.name}: {text}")


def error_in(data: bytes) -> EngramError:
    """Return the same of a status that came as a message."""
    status = Status.FromString(data)
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _told(status, status.message) or Unavailable(f"{code.name}: {status.message}")
