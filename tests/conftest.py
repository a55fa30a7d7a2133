"""Hypothesis profiles: `ci` by default, `campaign` (hours) with ENGRAM_CAMPAIGN=1. Engines with and without a graph."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

CAMPAIGN = os.environ.get("ENGRAM_CAMPAIGN") == "1"

# Deadlines fail on a busy machine, not on a wrong answer; pytest-timeout guards against hangs.
settings.register_profile("ci", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "campaign", parent=settings.get_profile("ci"), max_examples=20_000, stateful_step_count=200, print_blob=True
)
settings.load_profile("campaign" if CAMPAIGN else "ci")

GRAPHS: dict[str, dict[str, int]] = {"graph from the first row": {"index_graph_rows_min": 0}, "default": {}}


@pytest.fixture(scope="module", params=GRAPHS.values(), ids=GRAPHS)
def both_graphs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Engines that a module opens, in an `EngineChild` too, have a graph from the first row; then, as users have it."""
    import engram  # not installed yet when the tidy tests run
    from property.engine_child import EngineChild

    opened, called = engram.open, EngineChild.call

    def open(path: Any = None, *, limits: Mapping[str, int] | None = None, **options: Any) -> Any:
        return opened(path, limits={**request.param, **(limits or {})}, **options)

    def call(self: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if name == "open":
            path, limits = arguments
            arguments = (path, {**request.param, **limits})
        return called(self, name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engram, "open", open)
        patch.setattr(engram._engine, "open", open)
        patch.setattr(EngineChild, "call", call)
        yield
