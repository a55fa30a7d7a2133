"""The messages of the wire, generated from `proto/engram/v1` by `make protos`: `frame_pb2`, `service_pb2`.

Whoever speaks it does so over gRPC, which a fork does not survive: its handlers of forks start its threads anew in the
child, where they crash while the parent's were at work (grpc issue 43055), so that a child which never calls it dies of
it; they are off unless the environment says otherwise. And what a child does with grpc.aio wakes the child instead of
the parent: `begin_grpc` refuses it.
"""

import os

from engram._exceptions import Closed

# gRPC reads it when it is imported, and when it is first used.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

_began_in: int | None = None


def begin_grpc() -> None:
    """Note that this process uses gRPC now. Raises `Closed` in a fork of one that did."""
    global _began_in
    if _began_in is None:
        _began_in = os.getpid()
    elif _began_in != os.getpid():
        text = f"gRPC was begun in process {_began_in}: use it in a process of its own, not in a fork, or fork before"
        raise Closed(text)
