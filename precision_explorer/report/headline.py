"""A decision in a sentence or two."""

from __future__ import annotations

from precision_explorer.decision import Decision
from precision_explorer.report.text import listed
from precision_explorer.table.figures import FIGURES
from precision_explorer.units import share


def headline(decision: Decision, short: bool = False) -> str:
    """The answer in a few sentences; `short` where what was asked stands before it."""
    if decision.chosen is not None:
        return " ".join([_chosen(decision, short), *_beside(decision)])
    if decision.status == "unverified":
        return f"No recommendation: {decision.reason}."
    if decision.reason is not None:
        return f"Can't tell: {decision.reason}."
    if decision.status == "none":
        text = "No format qualifies."
        if decision.nearest is not None:
            broken = [f"{c.limit}: {c.found}" for c in decision.nearest.checks if c.state != "yes"]
            text += f" The nearest is {decision.nearest.name} ({'; '.join(broken)})."
        return text
    nearest = f" The nearest is {decision.nearest.name}." if decision.nearest is not None else ""
    missing = f" Missing: {decision.missing}." if decision.missing else ""
    return f"Can't tell.{nearest}{missing}"


def _chosen(decision: Decision, short: bool) -> str:
    assert decision.chosen is not None
    figure, chosen = FIGURES[decision.objective], decision.chosen
    what = decision.words if short else asked(decision)
    return f"{chosen.name}, {what} {figure.show(chosen.value)}{sure(decision)}."


def _beside(decision: Decision) -> list[str]:
    """What keeps the choice from being the whole answer."""
    figure, found = FIGURES[decision.objective], []
    if decision.ties:
        found.append(f"Can't be told from it: {listed(decision.ties)}.")
    if decision.contender is not None:
        option = decision.contender
        needs = "; ".join(check.needs for check in option.checks if check.needs)
        found.append(f"May be better: {option.name}, {figure.show(option.value)}, but {needs}.")
    if figure.timed and decision.chosen and "machine-busy" in decision.chosen.cautions:
        found.append("Timed beside other work: take the figure as rough.")
    return found


def superlative(objective: str) -> str:
    """``lowest`` or ``highest``; ``best`` of the quality, whose metric knows."""
    maximise = FIGURES[objective].maximise
    return "best" if maximise is None else "highest" if maximise else "lowest"


def asked(decision: Decision) -> str:
    """What the best is asked for; the largest rate says so itself."""
    if decision.objective == "rate":
        return decision.words
    return f"{superlative(decision.objective)} {decision.words}"


def sure(decision: Decision) -> str:
    """How sure the choice is, in brackets; how that is known stands in the docs."""
    chosen = decision.chosen
    if chosen is None:
        return ""
    compared = [option for option in decision.qualifying if option.value is not None]
    if len(decision.qualifying) == 1 and set(chosen.verdicts) == {"reference"}:
        return " (the reference; no other format is known to hold the limits)"
    if len(decision.qualifying) == 1:
        return " (the only format known to hold the limits)"
    if len(compared) == 1:
        return " (the only one of those that hold the limits with this figure)"
    if decision.doubt is not None:
        return f" (how sure can't be told: {decision.doubt})"
    if chosen.best_probability is None:
        return ""
    best = share(chosen.best_probability, 0)
    return f" (the best of {len(compared)} in {best} of the resamples)"
