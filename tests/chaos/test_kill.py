"""kill -9 at any moment, again and again: nothing acknowledged is lost, nothing is there twice, every start succeeds.

D1, D2, D9, D11, D12, G1, K4. ENGRAM_KILL_CYCLES says how many cycles (60 by default, 1,000 in a campaign).
"""

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from chaos.support.killer import LIFE_CYCLES, SHARES_WANTED, Cycle, campaign
from chaos.support.oracle import Oracle
from chaos.support.workload import Plan

CAMPAIGN = os.environ.get("ENGRAM_CAMPAIGN") == "1"
CYCLES = int(os.environ.get("ENGRAM_KILL_CYCLES") or (1_000 if CAMPAIGN else 60))
SEED = int(os.environ.get("ENGRAM_KILL_SEED") or 1)


@pytest.mark.timeout(0 if CAMPAIGN else 300)  # a minute on two free cores
def test_nothing_acknowledged_is_lost_by_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = campaign(CYCLES, SEED, tmp_path)
    with capsys.disabled():
        print("", *tally.lines(), sep="\n")
    assert tally.complaints == []
    assert tally.counts["cycles"] >= CYCLES
    assert tally.counts["starts compared"] > 0
    assert tally.counts["directories verified"] == 2 * tally.counts["lives"]
    # In a few kills a share says little; where there are many, each kind must have been met.
    short = {what: tally.share(what) for what, wanted in SHARES_WANTED.items() if tally.share(what) < wanted}
    assert tally.kills < 200 or not short
    assert all(tally.landings[what] for what in SHARES_WANTED)


def test_the_harness_kills_where_it_aims(tmp_path: Path) -> None:
    landed: Counter[str] = Counter()
    oracle = Oracle()
    rng = random.Random(SEED)
    paces: dict[str, float] = {}
    for aim in ("none", "start", "checkpoint", "flight") * 2:
        plan = Plan(
            str(tmp_path / "data"), rng.getrandbits(32), {"partitions": 1}, rows=1_000 if aim == "none" else 50_000
        )
        plan.checkpoint_share = 0.2
        cycle = Cycle(oracle, plan, aim, rng, paces)
        cycle.run()
        assert cycle.killed is (aim != "none")
        landed.update(cycle.landings() if cycle.killed else [])
        assert cycle.errors + cycle.failures + oracle.complaints == []
    assert landed["recovery"] + landed["first look"] >= 1
    assert landed["batch in flight"] + landed["checkpoint"] >= 1


def test_a_life_is_long_enough_to_be_killed_more_than_once() -> None:
    assert LIFE_CYCLES >= 5
