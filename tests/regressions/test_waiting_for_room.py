"""A refused client waits for the time it was told, or until it hears that there is room."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

import engram
from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb


def space(_: bytes, __: Any) -> bytes:
    limits = dict.fromkeys(("batch_bytes_max", "message_bytes_max"), 1 << 20)
    limits["batch_items_max"] = 100
    opened = pb.SpaceResponse(space="s", dim=4, metric="cosine", durability="sync", limits=limits)
    return opened.SerializeToString()


@pytest.mark.parametrize(
    ("code", "retry_after_ms", "level", "waits"),
    [
        ("OVERLOADED", 60_000, "NORMAL", 0.0),
        ("OVERLOADED", 400, "OVERLOADED", 0.4),
        ("OVERLOADED", 400, "", 0.4),
        ("DISK_FULL", 400, "NORMAL", 0.4),
    ],
)
def test_who_hears_that_there_is_room_waits_no_longer(code: str, retry_after_ms: int, level: str, waits: float) -> None:
    """P4, P5; what is waited for is not room in each case."""
    times = []

    def answers(requests: Iterator[bytes], _: Any) -> Iterator[bytes]:
        window = pb.Window(observations=100, bytes=1 << 20, advised_batch=10, level="NORMAL")
        next(requests)
        yield pb.ObserveResponse(opened=pb.Opened(token="t", window=window, dim=4, metric="cosine")).SerializeToString()
        next(requests)
        times.append(time.monotonic())
        fault = frame_pb2.Fault(first_sequence=1, code=code, message="full", retry_after_ms=retry_after_ms, expected=1)
        yield pb.ObserveResponse(fault=fault).SerializeToString()
        if level:
            yield pb.ObserveResponse(pressure=frame_pb2.Pressure(level=level, advised_batch=10)).SerializeToString()
        next(requests)
        times.append(time.monotonic())
        ack = frame_pb2.Ack(first_sequence=1, count=1, first_generation=1)
        yield pb.ObserveResponse(ack=ack).SerializeToString()
        for _ in requests:
            pass

    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {
        "Observe": grpc.stream_stream_rpc_method_handler(answers),
        "CreateSpace": grpc.unary_unary_rpc_method_handler(space),
    }
    name = pb.DESCRIPTOR.services_by_name["Engram"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with engram.connect(f"grpc://127.0.0.1:{port}") as engine:
            stream = engine.space("s", dim=4).stream()
            stream.observe_batch(vectors=np.ones((1, 4), np.float32))
            stream.flush(timeout=10)
            assert (stream.committed, stream.refusals) == (1, 1)
            stream.detach()
    finally:
        server.stop(0)
    assert times[1] - times[0] >= 0.95 * waits
