"""A space on a server: the inside of `engram.Space`, call by call."""

from __future__ import annotations

import builtins
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram._convert import Arguments
from engram._engine import encode_frame
from engram._exceptions import InvalidArgument, NotFound
from engram._reads import At, How
from engram.client.frames import fits
from engram.client.link import SECONDS, Link, again
from engram.client.recalls import RemoteMemory, RemoteStream
from engram.client.session import Levels, RemoteSession
from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb

_BATCH = 100
_UINT32_MAX = 2**32 - 1
_ID_BYTES_MAX = 10  # of a message
_IDS_BESIDE = 200  # so many less leave room for the rest of it
_TIMES = ("observed_at", "committed_at")


def _seconds(test: Any) -> Any:
    """Return the microseconds of a condition as seconds, exact to the microsecond."""
    if isinstance(test, dict):
        return {operator: value if operator == "$exists" else _seconds(value) for operator, value in test.items()}
    if isinstance(test, list | tuple):
        return [_seconds(item) for item in test]
    return test / 1e6 if isinstance(test, int) and test % 1_000_000 else test // 1_000_000


def where_out(condition: dict[str, Any] | None) -> str:
    """Return a condition, as `engram._convert.condition` makes it, in the wire's form."""

    def out(part: dict[str, Any]) -> dict[str, Any]:
        return {
            name: [out(one) for one in test]
            if name in ("$and", "$or") and isinstance(test, list)
            else out(test)
            if name == "$not"
            else _seconds(test)
            if name in _TIMES
            else test
            for name, test in part.items()
        }

    try:
        return "" if condition is None else json.dumps(out(condition), default=_plain)
    except ValueError:  # of more digits than Python prints
        raise InvalidArgument("where: integers must fit 64 bits", field="where", index=None) from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    text = f"where: {value!r} is neither a number, a str, a bool, None nor a list of them"
    raise InvalidArgument(text, field="where", index=None)


class RemoteSpaceCore:
    """One space's calls."""

    def __init__(self, link: Link, levels: Levels, opened: pb.SpaceResponse) -> None:
        self._link = link
        self._levels = levels
        self.name = opened.space
        self.id = opened.id
        self.dim = opened.dim
        self.metric = opened.metric
        self.durability = opened.durability
        self.limits = {**opened.limits}
        self.message_bytes_max = self.limits["message_bytes_max"]

    # ---- writing -----------------------------------------------------------------------------------------------------

    def observe(self, columns: Arguments, timeout_ms: int) -> tuple[int, int]:
        """Store a batch, all or nothing."""
        return self.observe_frame(encode_frame(columns, self.dim, self.metric, True), timeout_ms)

    def observe_frame(self, frame: bytes, timeout_ms: int) -> tuple[int, int]:
        """The same of a frame."""
        fits(frame, self.message_bytes_max)
        try:
            parsed = frame_pb2.Frame.FromString(frame)
        except Exception:
            raise InvalidArgument("malformed frame: not protobuf", field="frame", index=None) from None
        request = pb.PutObservationsRequest(space=self.name, space_id=self.id, frame=parsed, timeout_ms=timeout_ms)
        seconds = SECONDS + timeout_ms / 1000
        answer = self._link.unary("PutObservations", request, pb.PutObservationsResponse, seconds)
        return answer.first_memory_id, answer.count

    def open(self, priority: str, resume: str | None, acknowledged: int | None) -> pb.Open:
        """How a stream begins."""
        if resume == "":  # on the wire it would mean a new one
            raise InvalidArgument("not a session token of this directory", field="resume", index=None)
        return pb.Open(
            space=self.name, space_id=self.id, priority=priority, token=resume or "", acknowledged=acknowledged
        )

    def session(self, priority: str, resume: str | None, acknowledged: int | None, timeout_ms: int) -> RemoteSession:
        """Open a session, or attach to one."""
        asked = self.open(priority, resume, acknowledged)
        asked.absorbed = True
        return RemoteSession.open(self._link, self._levels, asked, self.message_bytes_max)

    def _forget(self, timeout_ms: int, **which: Any) -> int:
        request = pb.ForgetRequest(space=self.name, space_id=self.id, timeout_ms=timeout_ms, **which)
        # A purge waits for snapshots, and rewrites files.
        seconds = None if request.purge else SECONDS + timeout_ms / 1000
        return self._link.unary("Forget", request, pb.ForgetResponse, seconds).count

    def forget_ids(self, ids: builtins.list[int], purge: bool, timeout_ms: int) -> int:
        """How many of these died."""
        most = self.message_bytes_max // _ID_BYTES_MAX - _IDS_BESIDE
        return sum(
            self._forget(timeout_ms, memory_ids=ids[at : at + most], purge=purge) for at in range(0, len(ids), most)
        )

    def forget_key(self, key: str, purge: bool, timeout_ms: int) -> int:
        """Whether it died."""
        return self._forget(timeout_ms, key=key, purge=purge)

    def forget_where(self, condition: dict[str, Any], purge: bool, timeout_ms: int) -> tuple[int, bool]:
        """How many died: all that matched."""
        return self._forget(timeout_ms, where=where_out(condition), purge=purge), True

    def finish_purge(self, timeout_ms: int) -> None:
        """The server has done it."""

    def set_quota(self, memories: int, bytes: int) -> None:
        """Limit it."""
        request = pb.SetQuotaRequest(space=self.name, space_id=self.id, memories=memories, bytes=bytes)
        self._link.unary("SetQuota", request, pb.SetQuotaResponse)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _view(self, at: At) -> pb.View:
        pin, moment, condition = at
        lease = "" if pin is None else str(pin[0])
        view = pb.View(space=self.name, space_id=self.id, snapshot=lease, where=where_out(condition))
        if moment is not None:
            setattr(view, *moment)
        return view

    @staticmethod
    def _how(how: How) -> pb.How:
        exact, ef, target_recall, lag_ms, threads = how
        settled = 0 if lag_ms is None else max(lag_ms, 1)
        return pb.How(exact=exact, ef=ef, target_recall=target_recall, settled_within_ms=settled, threads=threads)

    def _few(self, k: int) -> int:
        """Return `k`, unless the wire has no such number."""
        if k <= _UINT32_MAX:
            return k
        text = f"k is {k}; it must lie between 1 and {self.limits['recall_k_max']}"
        raise InvalidArgument(text, field="k", index=None)

    def stream(self, cue: NDArray[np.float32], k: int, at: At, how: How, size: int) -> RemoteStream:
        """A recall, `size` hits a batch."""
        request = pb.RecallRequest(
            view=self._view(at),
            vector=cue.astype("<f4", copy=False).tobytes(),
            k=self._few(k),
            batch_size=size,
            how=self._how(how),
        )
        return RemoteStream(self._link, self._link.streamed("Recall", request, pb.RecallResponse, None))

    def recall(
        self, cue: NDArray[np.float32], k: int, at: At, how: How
    ) -> tuple[int, int, int, builtins.list[RemoteMemory]]:
        """Generation, up to which all is absorbed, how far that is behind, and the hits."""
        request = pb.RecallRequest(
            view=self._view(at),
            vector=cue.astype("<f4", copy=False).tobytes(),
            k=self._few(k),
            batch_size=min(k, _BATCH),
            how=self._how(how),
        )

        answers = self._link.call(again(lambda: self._link.recalls.ask(request, SECONDS)))
        hits = [RemoteMemory(hit) for answer in answers for hit in answer.hits]
        first = answers[0]
        return first.generation, first.absorbed, first.lag_micros, hits

    def recall_batch(
        self, cues: NDArray[np.float32], k: int, at: At, how: How
    ) -> tuple[int, NDArray[np.uint64], NDArray[np.float32]]:
        """Ids and scores of the nearest to each cue."""
        request = pb.RecallBatchRequest(
            view=self._view(at),
            vectors=cues.astype("<f4", copy=False).tobytes(),
            count=len(cues),
            k=self._few(k),
            how=self._how(how),
        )
        answer = self._link.unary("RecallBatch", request, pb.RecallBatchResponse, None)
        ids = np.frombuffer(answer.ids, dtype="<u8").astype(np.uint64).reshape(len(cues), k)
        scores = np.frombuffer(answer.scores, dtype="<f4").astype(np.float32).reshape(len(cues), k)
        return 0, ids, scores

    def _got(self, request: pb.GetRequest) -> RemoteMemory | None:
        answer = self._link.unary("Get", request, pb.GetResponse)
        return RemoteMemory(answer.memory) if answer.HasField("memory") else None

    def get(self, memory_id: int, at: At) -> RemoteMemory | None:
        """One memory."""
        return self._got(pb.GetRequest(view=self._view(at), memory_id=memory_id))

    def get_key(self, key: str, at: At) -> RemoteMemory | None:
        """The memory of a key."""
        return self._got(pb.GetRequest(view=self._view(at), key=key))

    def history(self, key: str, at: At) -> builtins.list[RemoteMemory]:
        """The versions of a key."""
        request = pb.HistoryRequest(view=self._view(at), key=key)
        return [RemoteMemory(one) for one in self._link.unary("History", request, pb.ListResponse).memories]

    def list(self, after: int, limit: int, at: At) -> builtins.list[RemoteMemory]:
        """Some memories behind `after`."""
        request = pb.ListRequest(view=self._view(at), after=after, limit=min(limit, _UINT32_MAX))
        return [RemoteMemory(one) for one in self._link.unary("List", request, pb.ListResponse).memories]

    def count(self, at: At) -> int:
        """How many there are."""
        return self._link.unary("Count", pb.CountRequest(view=self._view(at)), pb.CountResponse).count

    def pin(self) -> tuple[str, int]:
        """A lease on what is visible now, and its generation."""
        request = pb.OpenSnapshotRequest(space=self.name, space_id=self.id)
        answer = self._link.unary("OpenSnapshot", request, pb.OpenSnapshotResponse)
        return answer.snapshot, answer.generation

    def release(self, lease: str) -> None:
        """Let it go."""
        request = pb.ReleaseSnapshotRequest(snapshot=lease)
        self._link.unary("ReleaseSnapshot", request, pb.ReleaseSnapshotResponse)

    # ---- what else it can say ----------------------------------------------------------------------------------------

    def wait_absorbed(self, timeout_ms: int) -> int:
        """Wait until the graph answers for everything."""
        request = pb.WaitAbsorbedRequest(space=self.name, space_id=self.id, timeout_ms=timeout_ms)
        seconds = SECONDS + timeout_ms / 1000
        return self._link.unary("WaitAbsorbed", request, pb.WaitAbsorbedResponse, seconds).generation

    def quarantined(self) -> builtins.list[tuple[int, int, int, int, str, str]]:
        """Batches that could not be applied."""
        request = pb.QuarantinedRequest(space=self.name, space_id=self.id)
        return [
            (q.first_memory_id, q.count, q.quarantined_at, q.first_sequence, q.reason, q.path)
            for q in self._link.unary("Quarantined", request, pb.QuarantinedResponse).batches
        ]

    def read_quarantined(self, memory_id: int) -> builtins.list[RemoteMemory]:
        """What one holds."""
        if not memory_id:  # on the wire it would mean none
            raise NotFound("g0 in quarantine not found")
        request = pb.QuarantinedRequest(space=self.name, space_id=self.id, memory_id=memory_id)
        return [RemoteMemory(m) for m in self._link.unary("Quarantined", request, pb.QuarantinedResponse).memories]

    def stats(self) -> dict[str, Any]:
        """Figures."""
        answer = self._link.unary("Stats", pb.StatsRequest(space=self.name, space_id=self.id), pb.StatsResponse)
        figures: dict[str, Any] = json.loads(answer.stats)
        return figures
