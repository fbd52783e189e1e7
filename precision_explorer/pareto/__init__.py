"""Which rows of a table no other row beats, and how sure that is."""

from precision_explorer.pareto.dominance import Objective, dominates
from precision_explorer.pareto.fronts import front, front_probability

__all__ = ["Objective", "dominates", "front", "front_probability"]
