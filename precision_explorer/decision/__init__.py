"""From limits and one stated objective to a format: which, how sure, and what would change it."""

from precision_explorer.decision.data import Decision, Option, Question, Sensitivity
from precision_explorer.decision.decide import decide, decisions

__all__ = ["Decision", "Option", "Question", "Sensitivity", "decide", "decisions"]
