"""The server: an engine that other processes stream into and recall from.

A request walks one way: a transport (`grpc`) hands messages to a `Service` (one call, one answer), `Questions` (recalls
that share a call) or a `Connection` (a stream that observes), and those use the engine as any user does. Nothing on the
event loop waits for a disk or takes long: calls run on pools of threads, recalls on the engine's own, streams submit
frames and hear by one file descriptor what they came to (`hub`).
"""

import engram.v1  # noqa: F401 - before gRPC is imported
from engram.server.run import Server, serve
from engram.server.settings import Settings

__all__ = ["Server", "Settings", "serve"]
