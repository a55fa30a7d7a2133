"""For tests of programs that use engram: `ModelSpace`, the slow obvious space, and hypothesis strategies for it.

The strategies need hypothesis, which engram does not install.
"""

from engram.testing.conditions import matches
from engram.testing.model import ModelSpace, Observation
from engram.testing.strategies import conditions, metadata, observations, vectors

__all__ = ["ModelSpace", "Observation", "conditions", "matches", "metadata", "observations", "vectors"]
