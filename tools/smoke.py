"""Uses an installed engram as a user would: run in an environment that holds the wheel and its dependencies only."""

import sys
import tempfile
import time

start = time.perf_counter()
import engram  # noqa: E402

took = time.perf_counter() - start
heavy = {"typer", "rich", "asyncio"} & set(sys.modules)
assert not heavy, f"importing engram loaded {sorted(heavy)}"
assert "site-packages" in (engram.__file__ or ""), f"not the installed wheel: {engram.__file__}"

from engram._sample import load_sample  # noqa: E402

sample = load_sample()
with tempfile.TemporaryDirectory() as directory:
    with engram.open(directory) as engine:
        notes = engine.space("notes", dim=sample.vectors.shape[1])
        ack = notes.observe(sample.texts[0], vector=sample.vectors[0])
        notes.observe_batch(texts=list(sample.texts[1:500]), vectors=sample.vectors[1:500])
        hits = list(notes.recall(vector=sample.vectors[0], k=3))
        assert hits[0].memory_id == ack.memory_id, hits
        assert hits[0].text == sample.texts[0], hits
    with engram.open(directory) as engine:
        notes = engine.space("notes")
        assert len(notes) == 500, len(notes)
        again = list(notes.recall(vector=sample.vectors[0], k=3))
        assert [hit.memory_id for hit in again] == [hit.memory_id for hit in hits], again

print(f"smoke: engram imported in {took * 1000:.0f} ms, observed, recalled, reopened")
