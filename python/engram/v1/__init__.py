"""The messages of the wire, generated from `proto/engram/v1` by `make protos`: `frame_pb2`, `service_pb2`.

Whoever speaks it does so over gRPC, whose handlers of forks are off unless the environment says otherwise: they start
gRPC's threads anew in a forked child, and those crash there while the parent's were at work (grpc issue 43055), so that
a child which never calls gRPC dies of it. Without them a child has no gRPC; engram's client tells it so.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
