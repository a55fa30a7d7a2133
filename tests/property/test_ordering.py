"""Any interleaving of speakers, retries, reconnects and crashes: each sequence has one effect, in order (S2–S5)."""

import shutil
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from conftest import CAMPAIGN
from engram.testing import ModelSession
from property.engine_child import EngineChild, Refused

LIMITS = {
    "partitions": 1,
    "segment_bytes_first": 16_384,
    "segment_bytes_max": 32_768,
    "seal_space_bytes": 4_096,
    "seal_own_file_bytes_min": 2_048,
    "checkpoint_log_bytes": 16_384,
    "merge_files": 2,
    "idle_close_ms": 5,
}


class Ordering(RuleBasedStateMachine):
    """Streams said by speakers of which some do not know that they are fenced."""

    #: Lossy: all calls go over a wire where frames are late, cut, and so sent twice.
    wire: str | None = None
    speakers = Bundle("speakers")
    models = Bundle("models")

    def __init__(self) -> None:
        super().__init__()
        self.path = tempfile.mkdtemp(prefix="engram-ordering-")
        self.child = EngineChild()
        self.streams: list[ModelSession] = []
        self.tokens: dict[int, str] = {}
        self.current: dict[int, int] = {}
        self.lives = 0

    @initialize()
    def start(self) -> None:
        self.child.call("open", self.path, LIMITS, wire=self.wire)
        self.child.call("make", "s", dim=2)

    def teardown(self) -> None:
        self.child.kill()
        shutil.rmtree(self.path)

    @rule(target=models)
    def open(self) -> Any:
        if len(self.streams) == 3:
            return multiple()
        stream = len(self.streams)
        self.streams.append(ModelSession(stream))
        handle, self.tokens[stream] = self.child.call("session", "s")
        self.current[stream] = handle
        return stream

    @rule(target=speakers, stream=models, crashed=st.booleans())
    def attach(self, stream: int, crashed: bool) -> tuple[int, int, int]:
        """S4: the new speaker goes on behind what is committed; whoever spoke before is fenced."""
        model = self.streams[stream]
        acknowledged = None if crashed else model.acknowledged
        handle, _ = self.child.call("session", "s", resume=self.tokens[stream], acknowledged=acknowledged)
        assert self.child.call("committed", handle) >= model.acknowledged
        self.current[stream] = handle
        return self.lives, stream, handle

    @rule(speaker=speakers, back=st.integers(-2, 6), count=st.integers(1, 5), wrong=st.booleans())
    def say(self, speaker: tuple[int, int, int], back: int, count: int, wrong: bool) -> None:
        """S2, S3: new, again, straddling, too early, or other content than before."""
        life, stream, handle = speaker
        model = self.streams[stream]
        if life != self.lives:
            return
        committed = self.child.call("committed", handle)
        first = max(1, committed + 1 - back)
        texts = [model.text(first + n) for n in range(count)]
        if wrong and first <= committed:
            texts[0] += " changed"
        try:
            ids, duplicate = self.child.call("say", handle, texts, first)
        except Refused as refused:
            kind = refused.args[0]
            if self.current[stream] != handle:
                # After a gap a client knows itself what comes next, and may not have heard yet that it is fenced.
                unheard = self.wire is not None and first > committed + 1 and kind == "SequenceGap"
                assert kind == "Fenced" or unheard
            elif first > committed + 1:
                assert kind == "SequenceGap"
            else:
                assert (kind, wrong, first <= committed) == ("SequenceConflict", True, True)
            return
        assert self.current[stream] == handle
        assert first <= committed + 1
        assert not (wrong and first <= committed)
        # One that was sent again after a lost acknowledgement is one, too.
        assert duplicate == (first + count - 1 <= committed) or (duplicate and self.wire is not None)
        model.acknowledge(first, ids)

    @rule(handles=st.lists(models, min_size=2, max_size=3), count=st.integers(1, 30))
    def say_at_once(self, handles: list[int], count: int) -> None:
        """S5: threads that speak in several sessions at the same time."""
        chosen = [(self.current[stream], self.streams[stream]) for stream in dict.fromkeys(handles)]
        starts = [self.child.call("committed", handle) for handle, _ in chosen]
        work = [
            (handle, [model.text(start + 1 + n) for n in range(count)], start + 1)
            for (handle, model), start in zip(chosen, starts, strict=True)
        ]
        for (_, model), start, ids in zip(chosen, starts, self.child.call("say_at_once", work), strict=True):
            model.acknowledge(start + 1, ids)

    @rule()
    def checkpoint(self) -> None:
        self.child.call("checkpoint")

    @rule(stream=st.none() | models, count=st.integers(1, 5))
    def crash(self, stream: int | None, count: int) -> None:
        """SIGKILL, perhaps with a frame on its way."""
        if stream is not None:
            model, handle = self.streams[stream], self.current[stream]
            first = self.child.call("committed", handle) + 1
            self.child.send("say", handle, [model.text(first + n) for n in range(count)], first)
        self.child.kill()
        self.child = EngineChild()
        assert self.child.call("open", self.path, LIMITS, wire=self.wire)["damage"] == []
        self.lives += 1
        for again, token in self.tokens.items():
            self.current[again], _ = self.child.call("session", "s", resume=token)

    @invariant()
    def every_stream_is_whole(self) -> None:
        """Once each, in order, without a hole, whatever was said twice; and what was acknowledged keeps its id."""
        if not self.streams:
            return
        rows = {row[0]: row[1] for row in self.child.call("rows", "s")}
        for stream, model in enumerate(self.streams):
            said = {row: text for row, text in rows.items() if text.startswith(f"{stream}:")}
            committed = self.child.call("committed", self.current[stream])
            assert list(said.values()) == [model.text(n) for n in range(1, committed + 1)]
            model.check(list(said))


TestOrdering = Ordering.TestCase
TestOrdering.settings = settings(
    settings.get_profile("campaign" if CAMPAIGN else "ci"),
    max_examples=10_000 if CAMPAIGN else 60,
    stateful_step_count=60 if CAMPAIGN else 30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


class OrderingOverTheWire(Ordering):
    """The same through `engram.connect`."""

    wire = "lossy"


TestOrderingOverTheWire = OrderingOverTheWire.TestCase
TestOrderingOverTheWire.settings = settings(
    TestOrdering.settings, max_examples=1_000 if CAMPAIGN else 12, stateful_step_count=60 if CAMPAIGN else 20
)


def test_the_model_complains() -> None:
    model = ModelSession(0)
    model.acknowledge(1, [4, 5])
    model.check([4, 5, 6])
    with pytest.raises(AssertionError, match="another id"):
        model.acknowledge(2, [9])
    with pytest.raises(AssertionError, match="acknowledged"):
        model.check([4])
    with pytest.raises(AssertionError, match="another id"):
        model.check([4, 7])
