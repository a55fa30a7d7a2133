"""Hypothesis profiles: `ci` by default, `campaign` (hours) with ENGRAM_CAMPAIGN=1."""

import os

from hypothesis import HealthCheck, settings

CAMPAIGN = os.environ.get("ENGRAM_CAMPAIGN") == "1"

# Deadlines fail on a busy machine, not on a wrong answer; pytest-timeout guards against hangs.
settings.register_profile("ci", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "campaign", parent=settings.get_profile("ci"), max_examples=20_000, stateful_step_count=200, print_blob=True
)
settings.load_profile("campaign" if CAMPAIGN else "ci")
