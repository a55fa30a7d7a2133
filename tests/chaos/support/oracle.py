"""What a data directory may hold, known from outside of the processes that are killed.

The oracle hears of each call before it begins and after it ended, and of everything that is stored after a start. It
knows items by 64-bit digests only. `Oracle.complaints` gathers what breaks the contract:

* an acknowledged item is gone or changed (`sync`, `os`: any; `memory`: more than a suffix; D1, D2)
* an item is there twice, or was never sent, or its batch is there in part or in another order (O4, D2)
* an acknowledgement names an id that an earlier one named, or one lower than it (G1, D11)
* a dropped space is there, or one that was made is not (K4)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.uint64]
BURNT = 1 << 32  # generations that a renewed space skips


@dataclass(slots=True)
class Batch:
    digests: Array
    floor: int  # ids acknowledged before the call began are not above it
    first: int = 0  # 0: no acknowledgement yet
    durable: bool = False  # must survive a killed process

    def __len__(self) -> int:
        return len(self.digests)


@dataclass(slots=True)
class SpaceFacts:
    name: str
    dim: int
    durability: str
    floor: int = 0
    renamed: bool = False  # the name had been another space's
    stored: dict[int, Batch] = field(default_factory=dict)  # acknowledged, by uid
    pending: dict[int, Batch] = field(default_factory=dict)  # called, outcome unknown
    ids: Array = field(default_factory=lambda: np.empty(0, np.uint64))  # found at the last start
    digests: Array = field(default_factory=lambda: np.empty(0, np.uint64))


@dataclass(slots=True)
class Found:
    """A space as a start found it."""

    tag: str
    dim: int
    durability: str
    ids: Array
    digests: Array


class Oracle:
    """Keeps the expected state of one data directory over all processes that use it."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.acknowledged_items = 0
        self.acknowledged_batches = 0
        self.lost_weak_items = 0  # of `memory` spaces: allowed
        self.kept_pending_items = 0  # stored though the acknowledgement never came: allowed
        # After a failed sync what `os` had acknowledged is as weak as `memory`.
        self.os_is_weak = False
        self._by_tag: dict[str, SpaceFacts] = {}
        self._by_name: dict[str, str] = {}
        self._floors: dict[str, int] = {}
        # Calls whose outcome is open: the last create of each definition (dim, durability) of a name, with its tag.
        self._making: dict[str, dict[tuple[int, str], str]] = {}
        self._creating: dict[str, tuple[int, str]] = {}
        self._dropping: set[str] = set()
        self._marked: dict[int, list[Batch]] = {}

    # ---- calls -------------------------------------------------------------------------------------------------------

    def create_called(self, tag: str, name: str, dim: int, durability: str) -> None:
        self._making.setdefault(name, {})[dim, durability] = tag
        self._creating[name] = (dim, durability)

    def create_done(self, name: str) -> None:
        dim, durability = self._creating.pop(name)
        tag = self._making.pop(name)[dim, durability]
        if name in self._by_name:
            # A drop failed: the space is there, and whoever asks for it by its definition gets it.
            facts = self._rename(name, tag)
            if name not in self._dropping or (facts.dim, facts.durability) != (dim, durability):
                self._complain(f"{name}: made with {dim}, {durability}, though one is there")
            return
        floor = self._floors.get(name, 0)
        self._by_tag[tag] = SpaceFacts(name, dim, durability, floor, renamed=name in self._floors)
        self._by_name[name] = tag

    def _rename(self, name: str, tag: str) -> SpaceFacts:
        facts = self._by_tag.pop(self._by_name[name])
        self._by_tag[tag] = facts
        self._by_name[name] = tag
        return facts

    def drop_called(self, name: str) -> None:
        self._dropping.add(name)

    def drop_done(self, name: str) -> None:
        self._dropping.discard(name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        facts = self._by_tag.pop(self._by_name.pop(name))
        self._floors[name] = max(self._floors.get(name, 0), facts.floor)

    def observe_called(self, uid: int, tag: str, digests: Array) -> None:
        facts = self._by_tag.get(tag)
        if facts is not None:
            facts.pending[uid] = Batch(digests, facts.floor)

    def observe_done(self, uid: int, tag: str, first: int, count: int) -> None:
        facts = self._by_tag.get(tag)
        if facts is None:
            return  # dropped meanwhile
        batch = facts.pending.pop(uid)
        self.acknowledged_items += count
        self.acknowledged_batches += 1
        if count != len(batch):
            self._complain(f"{facts.name}: {len(batch)} items were sent, {count} acknowledged")
        if first <= batch.floor:
            self._complain(f"{facts.name}: id {first} was given, though {batch.floor} had been acknowledged before")
        batch.first = first
        batch.durable = facts.durability == "sync" or (facts.durability == "os" and not self.os_is_weak)
        facts.stored[uid] = batch
        facts.floor = max(facts.floor, first + count - 1)

    def observe_refused(self, uid: int, tag: str) -> None:
        facts = self._by_tag.get(tag)
        if facts is not None:
            facts.pending.pop(uid)

    def checkpoint_called(self, uid: int) -> None:
        self._marked[uid] = [batch for facts in self._by_tag.values() for batch in facts.stored.values()]

    def checkpoint_done(self, uid: int) -> None:
        for batch in self._marked.pop(uid):
            batch.durable = True

    def close_called(self) -> None:
        self._marked.clear()
        self.checkpoint_called(-1)

    def close_done(self) -> None:
        self.checkpoint_done(-1)

    # ---- starts ------------------------------------------------------------------------------------------------------

    def found(self, spaces: Mapping[str, Found], renewed: list[str]) -> None:
        """Compare with everything that is there after a start; from now on exactly that is expected."""
        self._marked.clear()
        for name in sorted(self._by_name.keys() | spaces.keys()):
            self._settle_name(name, spaces.get(name))
        self._making.clear()
        self._creating.clear()
        self._dropping.clear()
        for name in renewed:
            facts = self._by_tag.get(self._by_name.get(name, ""))
            if facts is not None and (facts.durability == "sync" or (facts.durability == "os" and not self.os_is_weak)):
                self._complain(f"{name}: history renewed, though {facts.durability} had nothing to lose")

    def _settle_name(self, name: str, found: Found | None) -> None:
        if name in self._by_name:
            if found is None:
                if name not in self._dropping:
                    self._complain(f"{name}: the space is gone and nobody dropped it")
                self._forget(name)
                return
        elif found is None:
            return
        elif (found.dim, found.durability) not in self._making.get(name, {}):
            kind = f"{found.dim}, {found.durability}"
            self._complain(f"{name}: there is a space ({kind}) that was dropped or never made so")
            return
        else:
            self._creating[name] = (found.dim, found.durability)
            self.create_done(name)
        facts = self._rename(name, found.tag)
        if (found.dim, found.durability) != (facts.dim, facts.durability):
            self._complain(f"{name}: made with {facts.dim}, {facts.durability}; is {found.dim}, {found.durability}")
        self._settle(facts, found.ids, found.digests)

    def _settle(self, facts: SpaceFacts, ids: Array, digests: Array) -> None:
        name = facts.name
        steps = ids[1:].astype(np.int64) - ids[:-1].astype(np.int64)
        if len(ids) and (int(ids[0]) < 1 or np.any(steps <= 0)):
            self._complain(f"{name}: ids are listed twice or out of order")
            return
        if len(np.unique(digests)) != len(digests):
            self._complain(f"{name}: {len(digests) - len(np.unique(digests))} items are there twice")
        weak = facts.durability == "memory" or (facts.durability == "os" and self.os_is_weak)
        if weak:
            steps = steps[steps < BURNT]
        if np.any(steps != 1):
            self._complain(f"{name}: {np.count_nonzero(steps != 1)} holes in the ids of a {facts.durability} space")
        if len(ids) and not facts.renamed and not weak and int(ids[0]) != 1:
            self._complain(f"{name}: the first id is {ids[0]}")
        covered = np.zeros(len(ids), bool)
        if len(facts.ids):
            self._settle_earlier(facts, ids, digests, covered)
        lost_from = self._settle_acknowledged(facts, ids, digests, covered)
        self._settle_pending(facts, ids, digests, covered)
        if lost_from is not None and len(ids) and int(ids[-1]) >= lost_from:
            self._complain(f"{name}: id {lost_from} is gone, though a later one, {ids[-1]}, is there")
        facts.ids, facts.digests = ids, digests
        facts.stored.clear()
        facts.pending.clear()
        facts.floor = max(facts.floor, int(ids[-1]) if len(ids) else 0)

    def _settle_earlier(self, facts: SpaceFacts, ids: Array, digests: Array, covered: NDArray[np.bool_]) -> None:
        places = np.searchsorted(ids, facts.ids)
        there = places < len(ids)
        there[there] = ids[places[there]] == facts.ids[there]
        gone = np.count_nonzero(~there)
        if gone:
            self._complain(f"{facts.name}: {gone} items that an earlier start had found are gone")
        changed = np.count_nonzero(digests[places[there]] != facts.digests[there])
        if changed:
            self._complain(f"{facts.name}: {changed} items that an earlier start had found are changed")
        covered[places[there]] = True

    def _settle_acknowledged(
        self, facts: SpaceFacts, ids: Array, digests: Array, covered: NDArray[np.bool_]
    ) -> int | None:
        """Return the lowest id that a weak space lost."""
        lost_from: int | None = None
        for batch in facts.stored.values():
            begin, end = np.searchsorted(ids, [batch.first, batch.first + len(batch)])
            there = end - begin
            last = batch.first + len(batch) - 1
            what = f"{facts.name}: {{}} {facts.durability} items {batch.first}..{last}"
            if there == 0:
                if batch.durable:
                    self._complain(what.format("lost acknowledged"))
                else:
                    self.lost_weak_items += len(batch)
                    lost_from = batch.first if lost_from is None else min(lost_from, batch.first)
            elif there != len(batch):
                self._complain(what.format(f"a part ({there}) of acknowledged"))
            elif not np.array_equal(digests[begin:end], batch.digests):
                same = np.array_equal(np.sort(digests[begin:end]), np.sort(batch.digests))
                self._complain(what.format("reordered acknowledged" if same else "changed acknowledged"))
            covered[begin:end] = True
        return lost_from

    def _settle_pending(self, facts: SpaceFacts, ids: Array, digests: Array, covered: NDArray[np.bool_]) -> None:
        known = {int(digest): batch for batch in facts.pending.values() for digest in batch.digests}
        phantoms = []
        for begin in self._runs(covered):
            batch = known.get(int(digests[begin]))
            end = begin + (len(batch) if batch is not None else 1)
            if batch is None:
                phantoms.append(int(ids[begin]))
            elif not np.array_equal(digests[begin:end], batch.digests):
                self._complain(f"{facts.name}: at {ids[begin]} a batch in flight is there in part or reordered")
            elif int(ids[end - 1] - ids[begin]) != end - begin - 1:
                self._complain(f"{facts.name}: at {ids[begin]} a batch in flight has holes")
            else:
                self.kept_pending_items += len(batch)
                if int(ids[begin]) <= batch.floor:
                    self._complain(f"{facts.name}: item {ids[begin]} has an id acknowledged before its call")
            covered[begin:end] = True
        if phantoms:
            what = f"{len(phantoms)} items, {phantoms[0]} to {phantoms[-1]},"
            self._complain(f"{facts.name}: {what} were never sent (or their call was refused)")

    @staticmethod
    def _runs(covered: NDArray[np.bool_]) -> Iterator[int]:
        """Yield the first place that is not covered, until all are."""
        while not covered.all():
            yield int(np.argmin(covered))

    def _complain(self, text: str) -> None:
        self.complaints.append(text)
