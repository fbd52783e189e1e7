"""Which rows of a table no other row beats, and how sure that is."""

from precision_explorer.pareto.dominance import Objective, dominates
from precision_explorer.pareto.fronts import front, front_probability
from precision_explorer.pareto.knee import knee

__all__ = ["Objective", "dominates", "front", "front_probability", "knee"]
