"""Search of assignments under a budget: pure arithmetic on tables of cost and harm."""

from precision_explorer.search.assign import Assignment, Infeasible, Option, assign

__all__ = ["Assignment", "Infeasible", "Option", "assign"]
