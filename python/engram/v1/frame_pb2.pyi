from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_UNSPECIFIED: _ClassVar[Durability]
    DURABILITY_SYNC: _ClassVar[Durability]
    DURABILITY_OS: _ClassVar[Durability]
    DURABILITY_MEMORY: _ClassVar[Durability]
DURABILITY_UNSPECIFIED: Durability
DURABILITY_SYNC: Durability
DURABILITY_OS: Durability
DURABILITY_MEMORY: Durability

class Frame(_message.Message):
    __slots__ = ("first_sequence", "count", "observed_at", "confidence", "texts", "metadata", "present", "dim", "keys", "vectors")
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_AT_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    first_sequence: int
    count: int
    observed_at: _containers.RepeatedScalarFieldContainer[int]
    confidence: _containers.RepeatedScalarFieldContainer[float]
    texts: _containers.RepeatedScalarFieldContainer[str]
    metadata: _containers.RepeatedScalarFieldContainer[bytes]
    present: bytes
    dim: int
    keys: _containers.RepeatedScalarFieldContainer[str]
    vectors: bytes
    def __init__(self, first_sequence: _Optional[int] = ..., count: _Optional[int] = ..., observed_at: _Optional[_Iterable[int]] = ..., confidence: _Optional[_Iterable[float]] = ..., texts: _Optional[_Iterable[str]] = ..., metadata: _Optional[_Iterable[bytes]] = ..., present: _Optional[bytes] = ..., dim: _Optional[int] = ..., keys: _Optional[_Iterable[str]] = ..., vectors: _Optional[bytes] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("first_sequence", "count", "first_generation", "durability", "duplicate")
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_GENERATION_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    first_sequence: int
    count: int
    first_generation: int
    durability: Durability
    duplicate: bool
    def __init__(self, first_sequence: _Optional[int] = ..., count: _Optional[int] = ..., first_generation: _Optional[int] = ..., durability: _Optional[_Union[Durability, str]] = ..., duplicate: bool = ...) -> None: ...

class Told(_message.Message):
    __slots__ = ("ack", "fault", "pressure", "absorbed")
    ACK_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    ABSORBED_FIELD_NUMBER: _ClassVar[int]
    ack: Ack
    fault: Fault
    pressure: Pressure
    absorbed: Absorbed
    def __init__(self, ack: _Optional[_Union[Ack, _Mapping]] = ..., fault: _Optional[_Union[Fault, _Mapping]] = ..., pressure: _Optional[_Union[Pressure, _Mapping]] = ..., absorbed: _Optional[_Union[Absorbed, _Mapping]] = ...) -> None: ...

class Absorbed(_message.Message):
    __slots__ = ("through_sequence", "generation")
    THROUGH_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    through_sequence: int
    generation: int
    def __init__(self, through_sequence: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class Pressure(_message.Message):
    __slots__ = ("level", "advised_batch")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    ADVISED_BATCH_FIELD_NUMBER: _ClassVar[int]
    level: str
    advised_batch: int
    def __init__(self, level: _Optional[str] = ..., advised_batch: _Optional[int] = ...) -> None: ...

class Fault(_message.Message):
    __slots__ = ("code", "message", "first_sequence", "expected", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    first_sequence: int
    expected: int
    retry_after_ms: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., first_sequence: _Optional[int] = ..., expected: _Optional[int] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...
