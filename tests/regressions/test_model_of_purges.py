"""The model missed the moment behind a batch whose last row was purged: a right recovery looked like a wrong one."""

import pytest

from engram.testing import ModelSpace, Observation


def test_a_moment_that_only_purged_rows_tell_of_is_found() -> None:
    model = ModelSpace(2, "ip")
    model.observe(Observation(text="first"))
    model.observe_batch([Observation(text=f"{n}", key=f"k{n}") for n in range(2, 10)])
    model.forget([4, 9], purge=True)
    model.observe(Observation(text="lost", key="k7"))
    assert [*model.rows] == [1, 2, 3, 5, 6, 8, 11]
    model.rewind([1, 2, 3, 5, 6, 7, 8])
    with pytest.raises(AssertionError, match="never lived together"):
        model.rewind([1, 2, 4])
