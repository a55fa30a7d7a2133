from engram.v1 import frame_pb2 as _frame_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ObserveRequest(_message.Message):
    __slots__ = ("open", "frame", "pause", "resume", "drain", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: Open
    frame: _frame_pb2.Frame
    pause: Pause
    resume: Resume
    drain: Drain
    close: Close
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., frame: _Optional[_Union[_frame_pb2.Frame, _Mapping]] = ..., pause: _Optional[_Union[Pause, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("space", "priority", "token", "acknowledged", "absorbed", "speaker", "again", "space_id")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    ABSORBED_FIELD_NUMBER: _ClassVar[int]
    SPEAKER_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    SPACE_ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    priority: str
    token: str
    acknowledged: int
    absorbed: bool
    speaker: int
    again: bool
    space_id: int
    def __init__(self, space: _Optional[str] = ..., priority: _Optional[str] = ..., token: _Optional[str] = ..., acknowledged: _Optional[int] = ..., absorbed: bool = ..., speaker: _Optional[int] = ..., again: bool = ..., space_id: _Optional[int] = ...) -> None: ...

class Pause(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Resume(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ObserveResponse(_message.Message):
    __slots__ = ("ack", "fault", "pressure", "absorbed", "opened", "window", "drained", "closed", "leaving")
    ACK_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    ABSORBED_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    ack: _frame_pb2.Ack
    fault: _frame_pb2.Fault
    pressure: _frame_pb2.Pressure
    absorbed: _frame_pb2.Absorbed
    opened: Opened
    window: Window
    drained: Drained
    closed: Closed
    leaving: Leaving
    def __init__(self, ack: _Optional[_Union[_frame_pb2.Ack, _Mapping]] = ..., fault: _Optional[_Union[_frame_pb2.Fault, _Mapping]] = ..., pressure: _Optional[_Union[_frame_pb2.Pressure, _Mapping]] = ..., absorbed: _Optional[_Union[_frame_pb2.Absorbed, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ..., drained: _Optional[_Union[Drained, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("token", "committed", "absorbed", "window", "dim", "metric", "durability", "priority")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ABSORBED_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    token: str
    committed: int
    absorbed: int
    window: Window
    dim: int
    metric: str
    durability: str
    priority: str
    def __init__(self, token: _Optional[str] = ..., committed: _Optional[int] = ..., absorbed: _Optional[int] = ..., window: _Optional[_Union[Window, _Mapping]] = ..., dim: _Optional[int] = ..., metric: _Optional[str] = ..., durability: _Optional[str] = ..., priority: _Optional[str] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("observations", "bytes", "advised_batch", "level")
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ADVISED_BATCH_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    observations: int
    bytes: int
    advised_batch: int
    level: str
    def __init__(self, observations: _Optional[int] = ..., bytes: _Optional[int] = ..., advised_batch: _Optional[int] = ..., level: _Optional[str] = ...) -> None: ...

class Drained(_message.Message):
    __slots__ = ("committed",)
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    committed: int
    def __init__(self, committed: _Optional[int] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("committed",)
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    committed: int
    def __init__(self, committed: _Optional[int] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class PutObservationsRequest(_message.Message):
    __slots__ = ("space", "frame", "timeout_ms", "space_id")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SPACE_ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    frame: _frame_pb2.Frame
    timeout_ms: int
    space_id: int
    def __init__(self, space: _Optional[str] = ..., frame: _Optional[_Union[_frame_pb2.Frame, _Mapping]] = ..., timeout_ms: _Optional[int] = ..., space_id: _Optional[int] = ...) -> None: ...

class PutObservationsResponse(_message.Message):
    __slots__ = ("first_memory_id", "count", "durability")
    FIRST_MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    first_memory_id: int
    count: int
    durability: _frame_pb2.Durability
    def __init__(self, first_memory_id: _Optional[int] = ..., count: _Optional[int] = ..., durability: _Optional[_Union[_frame_pb2.Durability, str]] = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("space", "snapshot", "generation", "time", "where", "space_id")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    SPACE_ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    snapshot: str
    generation: int
    time: int
    where: str
    space_id: int
    def __init__(self, space: _Optional[str] = ..., snapshot: _Optional[str] = ..., generation: _Optional[int] = ..., time: _Optional[int] = ..., where: _Optional[str] = ..., space_id: _Optional[int] = ...) -> None: ...

class How(_message.Message):
    __slots__ = ("exact", "ef", "target_recall", "settled_within_ms", "threads")
    EXACT_FIELD_NUMBER: _ClassVar[int]
    EF_FIELD_NUMBER: _ClassVar[int]
    TARGET_RECALL_FIELD_NUMBER: _ClassVar[int]
    SETTLED_WITHIN_MS_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    exact: bool
    ef: int
    target_recall: float
    settled_within_ms: int
    threads: int
    def __init__(self, exact: bool = ..., ef: _Optional[int] = ..., target_recall: _Optional[float] = ..., settled_within_ms: _Optional[int] = ..., threads: _Optional[int] = ...) -> None: ...

class RecallRequest(_message.Message):
    __slots__ = ("view", "vector", "k", "batch_size", "how")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    HOW_FIELD_NUMBER: _ClassVar[int]
    view: View
    vector: bytes
    k: int
    batch_size: int
    how: How
    def __init__(self, view: _Optional[_Union[View, _Mapping]] = ..., vector: _Optional[bytes] = ..., k: _Optional[int] = ..., batch_size: _Optional[int] = ..., how: _Optional[_Union[How, _Mapping]] = ...) -> None: ...

class RecallResponse(_message.Message):
    __slots__ = ("hits", "generation", "index", "last", "absorbed", "lag_micros")
    HITS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ABSORBED_FIELD_NUMBER: _ClassVar[int]
    LAG_MICROS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Memory]
    generation: int
    index: int
    last: bool
    absorbed: int
    lag_micros: int
    def __init__(self, hits: _Optional[_Iterable[_Union[Memory, _Mapping]]] = ..., generation: _Optional[int] = ..., index: _Optional[int] = ..., last: bool = ..., absorbed: _Optional[int] = ..., lag_micros: _Optional[int] = ...) -> None: ...

class RecallsRequest(_message.Message):
    __slots__ = ("question", "recall", "timeout_ms")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    question: int
    recall: RecallRequest
    timeout_ms: int
    def __init__(self, question: _Optional[int] = ..., recall: _Optional[_Union[RecallRequest, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class RecallsResponse(_message.Message):
    __slots__ = ("question", "batch", "status")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    question: int
    batch: RecallResponse
    status: bytes
    def __init__(self, question: _Optional[int] = ..., batch: _Optional[_Union[RecallResponse, _Mapping]] = ..., status: _Optional[bytes] = ...) -> None: ...

class Memory(_message.Message):
    __slots__ = ("memory_id", "text", "metadata", "key", "confidence", "observed_at", "committed_at", "ended", "vector", "score", "provisional")
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_AT_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    memory_id: int
    text: str
    metadata: str
    key: str
    confidence: float
    observed_at: int
    committed_at: int
    ended: int
    vector: bytes
    score: float
    provisional: bool
    def __init__(self, memory_id: _Optional[int] = ..., text: _Optional[str] = ..., metadata: _Optional[str] = ..., key: _Optional[str] = ..., confidence: _Optional[float] = ..., observed_at: _Optional[int] = ..., committed_at: _Optional[int] = ..., ended: _Optional[int] = ..., vector: _Optional[bytes] = ..., score: _Optional[float] = ..., provisional: bool = ...) -> None: ...

class RecallBatchRequest(_message.Message):
    __slots__ = ("view", "vectors", "count", "k", "how")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    HOW_FIELD_NUMBER: _ClassVar[int]
    view: View
    vectors: bytes
    count: int
    k: int
    how: How
    def __init__(self, view: _Optional[_Union[View, _Mapping]] = ..., vectors: _Optional[bytes] = ..., count: _Optional[int] = ..., k: _Optional[int] = ..., how: _Optional[_Union[How, _Mapping]] = ...) -> None: ...

class RecallBatchResponse(_message.Message):
    __slots__ = ("ids", "scores")
    IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    scores: bytes
    def __init__(self, ids: _Optional[bytes] = ..., scores: _Optional[bytes] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("view", "memory_id", "key")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    view: View
    memory_id: int
    key: str
    def __init__(self, view: _Optional[_Union[View, _Mapping]] = ..., memory_id: _Optional[int] = ..., key: _Optional[str] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("memory",)
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    memory: Memory
    def __init__(self, memory: _Optional[_Union[Memory, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("view", "after", "limit")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    view: View
    after: int
    limit: int
    def __init__(self, view: _Optional[_Union[View, _Mapping]] = ..., after: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("memories",)
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    memories: _containers.RepeatedCompositeFieldContainer[Memory]
    def __init__(self, memories: _Optional[_Iterable[_Union[Memory, _Mapping]]] = ...) -> None: ...

class CountRequest(_message.Message):
    __slots__ = ("view",)
    VIEW_FIELD_NUMBER: _ClassVar[int]
    view: View
    def __init__(self, view: _Optional[_Union[View, _Mapping]] = ...) -> None: ...

class CountResponse(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class HistoryRequest(_message.Message):
    __slots__ = ("view", "key")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    view: View
    key: str
    def __init__(self, view: _Optional[_Union[View, _Mapping]] = ..., key: _Optional[str] = ...) -> None: ...

class OpenSnapshotRequest(_message.Message):
    __slots__ = ("space", "space_id")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    SPACE_ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    space_id: int
    def __init__(self, space: _Optional[str] = ..., space_id: _Optional[int] = ...) -> None: ...

class OpenSnapshotResponse(_message.Message):
    __slots__ = ("snapshot", "generation")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    generation: int
    def __init__(self, snapshot: _Optional[str] = ..., generation: _Optional[int] = ...) -> None: ...

class ReleaseSnapshotRequest(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    def __init__(self, snapshot: _Optional[str] = ...) -> None: ...

class ReleaseSnapshotResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("space", "memory_ids", "key", "where", "purge", "timeout_ms", "space_id")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_IDS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    PURGE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SPACE_ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    memory_ids: _containers.RepeatedScalarFieldContainer[int]
    key: str
    where: str
    purge: bool
    timeout_ms: int
    space_id: int
    def __init__(self, space: _Optional[str] = ..., memory_ids: _Optional[_Iterable[int]] = ..., key: _Optional[str] = ..., where: _Optional[str] = ..., purge: bool = ..., timeout_ms: _Optional[int] = ..., space_id: _Optional[int] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class CreateSpaceRequest(_message.Message):
    __slots__ = ("space", "dim", "metric", "durability")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    space: str
    dim: int
    metric: str
    durability: str
    def __init__(self, space: _Optional[str] = ..., dim: _Optional[int] = ..., metric: _Optional[str] = ..., durability: _Optional[str] = ...) -> None: ...

class SpaceResponse(_message.Message):
    __slots__ = ("space", "dim", "metric", "durability", "limits", "id")
    class LimitsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SPACE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    dim: int
    metric: str
    durability: str
    limits: _containers.ScalarMap[str, int]
    id: int
    def __init__(self, space: _Optional[str] = ..., dim: _Optional[int] = ..., metric: _Optional[str] = ..., durability: _Optional[str] = ..., limits: _Optional[_Mapping[str, int]] = ..., id: _Optional[int] = ...) -> None: ...

class ListSpacesRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: str
    def __init__(self, after: _Optional[str] = ...) -> None: ...

class ListSpacesResponse(_message.Message):
    __slots__ = ("spaces", "more")
    SPACES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    spaces: _containers.RepeatedScalarFieldContainer[str]
    more: bool
    def __init__(self, spaces: _Optional[_Iterable[str]] = ..., more: bool = ...) -> None: ...

class DropSpaceRequest(_message.Message):
    __slots__ = ("space",)
    SPACE_FIELD_NUMBER: _ClassVar[int]
    space: str
    def __init__(self, space: _Optional[str] = ...) -> None: ...

class DropSpaceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetQuotaRequest(_message.Message):
    __slots__ = ("space", "memories", "bytes", "space_id")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SPACE_ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    memories: int
    bytes: int
    space_id: int
    def __init__(self, space: _Optional[str] = ..., memories: _Optional[int] = ..., bytes: _Optional[int] = ..., space_id: _Optional[int] = ...) -> None: ...

class SetQuotaResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WaitAbsorbedRequest(_message.Message):
    __slots__ = ("space", "timeout_ms", "space_id")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SPACE_ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    timeout_ms: int
    space_id: int
    def __init__(self, space: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., space_id: _Optional[int] = ...) -> None: ...

class WaitAbsorbedResponse(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: int
    def __init__(self, generation: _Optional[int] = ...) -> None: ...

class QuarantinedRequest(_message.Message):
    __slots__ = ("space", "memory_id", "space_id")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
    SPACE_ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    memory_id: int
    space_id: int
    def __init__(self, space: _Optional[str] = ..., memory_id: _Optional[int] = ..., space_id: _Optional[int] = ...) -> None: ...

class QuarantinedResponse(_message.Message):
    __slots__ = ("batches", "memories")
    class Batch(_message.Message):
        __slots__ = ("first_memory_id", "count", "quarantined_at", "first_sequence", "reason", "path")
        FIRST_MEMORY_ID_FIELD_NUMBER: _ClassVar[int]
        COUNT_FIELD_NUMBER: _ClassVar[int]
        QUARANTINED_AT_FIELD_NUMBER: _ClassVar[int]
        FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
        REASON_FIELD_NUMBER: _ClassVar[int]
        PATH_FIELD_NUMBER: _ClassVar[int]
        first_memory_id: int
        count: int
        quarantined_at: int
        first_sequence: int
        reason: str
        path: str
        def __init__(self, first_memory_id: _Optional[int] = ..., count: _Optional[int] = ..., quarantined_at: _Optional[int] = ..., first_sequence: _Optional[int] = ..., reason: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedCompositeFieldContainer[QuarantinedResponse.Batch]
    memories: _containers.RepeatedCompositeFieldContainer[Memory]
    def __init__(self, batches: _Optional[_Iterable[_Union[QuarantinedResponse.Batch, _Mapping]]] = ..., memories: _Optional[_Iterable[_Union[Memory, _Mapping]]] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ("space", "space_id")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    SPACE_ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    space_id: int
    def __init__(self, space: _Optional[str] = ..., space_id: _Optional[int] = ...) -> None: ...

class WatchStatsRequest(_message.Message):
    __slots__ = ("space", "interval_ms", "space_id")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    SPACE_ID_FIELD_NUMBER: _ClassVar[int]
    space: str
    interval_ms: int
    space_id: int
    def __init__(self, space: _Optional[str] = ..., interval_ms: _Optional[int] = ..., space_id: _Optional[int] = ...) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("stats",)
    STATS_FIELD_NUMBER: _ClassVar[int]
    stats: str
    def __init__(self, stats: _Optional[str] = ...) -> None: ...
