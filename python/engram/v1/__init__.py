"""The messages of the wire, generated from `proto/engram/v1` by `make protos`: `frame_pb2`, `service_pb2`."""
