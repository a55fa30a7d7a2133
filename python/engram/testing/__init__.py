"""For tests of programs that use engram: the slow obvious `ModelSpace` and `ModelSession`, and hypothesis strategies.

The strategies need hypothesis, which engram does not install.
"""

from engram.testing.conditions import matches
from engram.testing.model import ModelSession, ModelSpace, Observation
from engram.testing.strategies import conditions, metadata, observations, vectors

__all__ = ["ModelSession", "ModelSpace", "Observation", "conditions", "matches", "metadata", "observations", "vectors"]
