"""Two runs held against each other, where they declare the same method: what changed, how sure that
is, and in what their systems differ."""

from precision_explorer.comparison.compare import compare
from precision_explorer.comparison.data import Allowed, Change, Compared, Refused, RowChanges
from precision_explorer.comparison.gate import SPEEDS, Budgets, Check, Gated, gate

__all__ = [
    "SPEEDS",
    "Allowed",
    "Budgets",
    "Change",
    "Check",
    "Compared",
    "Gated",
    "Refused",
    "RowChanges",
    "compare",
    "gate",
]
