"""Why a format is or is not faster: stored profiles held against the device's roofs. No torch."""

from precision_explorer.diagnose.diagnosis import CellWhy, Ranking, Why, WrongPair, explain
from precision_explorer.diagnose.roofline import (
    ABOVE_ROOF,
    Expected,
    expected,
    is_above_roof,
    share_of_roof,
)

__all__ = [
    "ABOVE_ROOF",
    "CellWhy",
    "Expected",
    "Ranking",
    "Why",
    "WrongPair",
    "expected",
    "explain",
    "is_above_roof",
    "share_of_roof",
]
