"""The client: an engine in another process, with the methods of one in this.

`link` is the connection and its one loop thread. On that loop live `flow`, the state machine of a session, and
`recalls`, the call that recalls share. `space`, `session` and `engine` are the insides of `engram.Space`,
`engram.Session` and `engram.Engine`, call by call, so that arguments, results and errors are the same; `stream` is what
only a client has.
"""

import engram.v1  # noqa: F401 - before gRPC is imported
from engram.client.engine import RemoteEngine, RemoteSpace, connect
from engram.client.stream import ObserveStream

__all__ = ["ObserveStream", "RemoteEngine", "RemoteSpace", "connect"]
