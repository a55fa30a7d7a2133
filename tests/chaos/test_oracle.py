"""The oracle of the kill loop rejects each kind of bad history, and accepts the good ones beside them."""

from collections.abc import Iterable

import numpy as np
import pytest

from chaos.support.oracle import BURNT, Found, Oracle


def digests(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def start(oracle: Oracle, ids: Iterable[int], values: Iterable[int], durability: str = "sync", dim: int = 4) -> None:
    found = Found("a#2", dim, durability, digests(*ids), digests(*values))
    oracle.found({"a": found}, [])


def history(durability: str = "sync") -> Oracle:
    """Make a space; batch 1 is acknowledged as ids 1..3, batch 2 as 4..5, batch 3 (of three) is in flight."""
    oracle = Oracle()
    oracle.create_called("a#1", "a", 4, durability)
    oracle.create_done("a")
    oracle.observe_called(1, "a#1", digests(11, 12, 13))
    oracle.observe_done(1, "a#1", 1, 3)
    oracle.observe_called(2, "a#1", digests(21, 22))
    oracle.observe_done(2, "a#1", 4, 2)
    oracle.observe_called(3, "a#1", digests(31, 32, 33))
    return oracle


ACKNOWLEDGED = [11, 12, 13, 21, 22]
GOOD = {
    "sync: nothing of what was in flight": ("sync", range(1, 6), ACKNOWLEDGED),
    "sync: all of what was in flight": ("sync", range(1, 9), [*ACKNOWLEDGED, 31, 32, 33]),
    "os: nothing of what was in flight": ("os", range(1, 6), ACKNOWLEDGED),
    "memory: a suffix is gone": ("memory", range(1, 4), [11, 12, 13]),
    "memory: all is gone": ("memory", [], []),
    "memory: all is there": ("memory", range(1, 9), [*ACKNOWLEDGED, 31, 32, 33]),
}
BAD = {
    "lost": ("sync", range(1, 4), [11, 12, 13]),
    "lost by os": ("os", range(1, 4), [11, 12, 13]),
    "lost first": ("sync", [4, 5], [21, 22]),
    "lost all": ("sync", [], []),
    "half an acknowledged batch": ("sync", range(1, 5), [11, 12, 13, 21]),
    "half an acknowledged batch of memory": ("memory", range(1, 5), [11, 12, 13, 21]),
    "half a batch in flight": ("sync", range(1, 8), [*ACKNOWLEDGED, 31, 32]),
    "the other half of a batch in flight": ("sync", range(1, 8), [*ACKNOWLEDGED, 32, 33]),
    "reordered inside a batch": ("sync", range(1, 6), [11, 13, 12, 21, 22]),
    "batches reordered": ("sync", range(1, 6), [21, 22, 11, 12, 13]),
    "reordered in flight": ("sync", range(1, 9), [*ACKNOWLEDGED, 31, 33, 32]),
    "changed": ("sync", range(1, 6), [11, 12, 13, 21, 99]),
    "duplicate": ("sync", range(1, 7), [*ACKNOWLEDGED, 22]),
    "duplicate of what was in flight": ("sync", range(1, 12), [*ACKNOWLEDGED, 31, 32, 33, 31, 32, 33]),
    "phantom": ("sync", range(1, 7), [*ACKNOWLEDGED, 77]),
    "phantom in memory": ("memory", range(1, 7), [*ACKNOWLEDGED, 77]),
    "listed twice": ("sync", [1, 2, 2, 3, 4, 5], [11, 12, 12, 13, 21, 22]),
    "listed out of order": ("sync", [1, 2, 3, 5, 4], [11, 12, 13, 22, 21]),
    "hole before what was in flight": ("sync", [1, 2, 3, 4, 5, 7, 8, 9], [*ACKNOWLEDGED, 31, 32, 33]),
    "hole in memory": ("memory", [4, 5], [21, 22]),
    "id taken by another": ("memory", [1, 2, 3, 4, 5, 6], [11, 12, 13, 31, 32, 33]),
}


@pytest.mark.parametrize("title", GOOD)
def test_good_history_passes(title: str) -> None:
    durability, ids, values = GOOD[title]
    oracle = history(durability)
    start(oracle, ids, values, durability)
    assert oracle.complaints == []


@pytest.mark.parametrize("title", BAD)
def test_bad_history_is_rejected(title: str) -> None:
    durability, ids, values = BAD[title]
    oracle = history(durability)
    start(oracle, ids, values, durability)
    assert oracle.complaints


def test_what_a_start_found_must_stay() -> None:
    oracle = history("memory")
    start(oracle, range(1, 9), [*ACKNOWLEDGED, 31, 32, 33], "memory")
    assert oracle.complaints == []
    start(oracle, range(1, 6), ACKNOWLEDGED, "memory")
    assert "earlier start" in oracle.complaints[0]


def test_what_a_start_did_not_find_must_not_come_back() -> None:
    oracle = history()
    start(oracle, range(1, 6), ACKNOWLEDGED)
    start(oracle, range(1, 9), [*ACKNOWLEDGED, 31, 32, 33])
    assert "never sent" in oracle.complaints[0]


def test_a_checkpoint_makes_memory_durable() -> None:
    oracle = history("memory")
    oracle.checkpoint_called(9)
    oracle.checkpoint_done(9)
    start(oracle, range(1, 4), [11, 12, 13], "memory")
    assert "lost acknowledged" in oracle.complaints[0]


def test_ids_are_never_given_twice() -> None:
    """G1, D11: not even those of memories that a killed process took with it."""
    oracle = history("memory")
    start(oracle, range(1, 4), [11, 12, 13], "memory")
    oracle.observe_called(4, "a#2", digests(41))
    oracle.observe_done(4, "a#2", 4, 1)
    assert "id 4 was given" in oracle.complaints[0]


def test_a_renewed_history_goes_on_far_above() -> None:
    oracle = history("memory")
    start(oracle, range(1, 4), [11, 12, 13], "memory")
    oracle.observe_called(4, "a#2", digests(41))
    oracle.observe_done(4, "a#2", 4 + BURNT, 1)
    start(oracle, [1, 2, 3, 4 + BURNT], [11, 12, 13, 41], "memory")
    assert oracle.complaints == []


def test_a_call_that_was_refused_leaves_nothing() -> None:
    oracle = history()
    oracle.observe_refused(3, "a#1")
    start(oracle, range(1, 9), [*ACKNOWLEDGED, 31, 32, 33])
    assert "refused" in oracle.complaints[0]


def test_spaces_come_and_go_as_told() -> None:
    """K4: a drop removes a space and nothing else."""
    gone = history()
    gone.found({}, [])
    assert "nobody dropped it" in gone.complaints[0]
    dropping = history()
    dropping.drop_called("a")
    dropping.found({}, [])
    assert dropping.complaints == []
    start(dropping, [], [])
    assert "dropped or never made" in dropping.complaints[0]
    other = history()
    start(other, range(1, 6), ACKNOWLEDGED, dim=5)
    assert "made with" in other.complaints[0]


def test_sync_spaces_are_never_renewed() -> None:
    oracle = history()
    found = Found("a#2", 4, "sync", digests(*range(1, 6)), digests(*ACKNOWLEDGED))
    oracle.found({"a": found}, ["a"])
    assert "renewed" in oracle.complaints[0]


def test_names_made_again_never_reuse_ids() -> None:
    oracle = history()
    oracle.drop_called("a")
    oracle.drop_done("a")
    oracle.create_called("a#3", "a", 4, "sync")
    oracle.create_done("a")
    oracle.observe_called(4, "a#3", digests(41))
    oracle.observe_done(4, "a#3", 5, 1)
    assert "id 5 was given" in oracle.complaints[0]
