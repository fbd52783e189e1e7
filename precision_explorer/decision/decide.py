"""`decisions`: one answer per model and task (of a format and, where machines measured alike, a
device), and one over all tasks of a model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from precision_explorer.decision.candidates import (
    OVER_TASKS,
    Candidate,
    asked_of,
    of_group,
    over_tasks,
    repeated,
    unfit,
)
from precision_explorer.decision.data import Decision, Option, Question, Status
from precision_explorer.decision.sensitivity import sensitivity
from precision_explorer.decision.words import changes, contenders, missing_value, uncovered
from precision_explorer.errors import UsageError, unknown_name
from precision_explorer.records import NOT_SCORED
from precision_explorer.table import Table
from precision_explorer.table.curve import is_below
from precision_explorer.table.figures import FIGURES, figure_words
from precision_explorer.table.groups import Group, by_devices, by_meter, groups, solves_nothing

# Central share of the paired draws of a difference: what holds 0 is no difference.
_TAIL = 0.025
Member = tuple[Group, list[Candidate], Question]
"""A group, what competes in it, and what is asked of it."""


def decisions(table: Table, question: Question, task: str | None = None) -> list[Decision]:
    """The answers to `question`, of one `task` or of all; none where no row has a result.
    UsageError for a task that is not in the table, and for energy that no group can be ranked
    by."""
    found = [group for group in groups(table) if group.ok]
    if task is not None and found:
        known = list(dict.fromkeys(str(group.rows[0]["task"]) for group in found))
        if task not in known:
            raise UsageError(unknown_name("task", task, known))
        found = [group for group in found if group.rows[0]["task"] == task]
    if question.objective == "energy":
        found = [part for group in found for part in _by_meter(group)]
    problems = [unfit(group, question.objective) for group in found]
    if question.objective == "energy" and problems and all(problems):
        raise UsageError(f"{problems[0]}; choose another --objective")
    members: list[Member] = []
    for group in found:
        own = asked_of(table, group, question)
        members.append((group, of_group(table, group, own), own))
    each = [decide(group, own, candidates, True) for group, candidates, own in members]
    overall, notes = _over_all(members, question)
    return [*(replace(one, uncovered=(*one.uncovered, *notes)) for one in each), *overall]


def _by_meter(group: Group) -> list[Group]:
    """The group, by the meters of its devices where they can't be ranked together."""
    if not group.is_joined or unfit(group, "energy") is None:
        return [group]
    parts = by_meter(group.ok, group.ok).values()
    made = [replace(group, rows=rows) for rows in parts]
    return [replace(part, title=f"{group.title}, {' and '.join(part.devices)}") for part in made]


def decide(
    group: Group, question: Question, candidates: Sequence[Candidate], with_moves: bool = False
) -> Decision:
    """The answer for one group; `with_moves`: and which input, moved, would change it."""
    return _decision(group.title, [group], question, candidates, with_moves)


def _over_all(members: list[Member], question: Question) -> tuple[list[Decision], list[str]]:
    """One decision for each model and its devices with several tasks, each of one method; none in
    quality and searched rates, which do not add up over tasks. And what is left out, in
    sentences."""
    if question.objective not in OVER_TASKS:
        return [], []
    models: dict[tuple[Any, ...], list[Member]] = defaultdict(list)
    for member in members:
        row = member[0].rows[0]
        models[row["model"], row["model_revision"]].append(member)
    found, notes = [], []
    for with_questions in _on_shared_devices(models.values()):
        model = with_questions[0][0].rows[0]["model"]
        of_model = [(group, candidates) for group, candidates, _ in with_questions]
        tasks = [group.rows[0]["task"] for group, _ in of_model]
        if len(tasks) < 2 or len(set(tasks)) < len(tasks):
            continue
        twice = repeated(of_model)
        if twice:
            notes.append(
                f"All tasks of {model} together: several runs have {', '.join(twice)}; give one "
                "run at a time."
            )
            continue
        merged = over_tasks(of_model, question.objective)
        if merged:
            of_groups = [group for group, _ in of_model]
            # All tasks of a model are asked alike.
            own = with_questions[0][2]
            found.append(_decision(f"{model} on all tasks", of_groups, own, merged, True))
    return found, notes


def _on_shared_devices(models: Iterable[list[Member]]) -> list[list[Member]]:
    """The members of each model whose groups have devices in common."""
    found = []
    for members in models:
        of = {id(member[0]): member for member in members}
        joined = by_devices(member[0] for member in members)
        found += [[of[id(group)] for group in groups_] for groups_ in joined]
    return found


def _not_compared(candidates: Sequence[Candidate], words: str) -> list[str]:
    """That formats which hold the limits lack the figure that is asked for."""
    names = [c.name for c in candidates if c.state == "yes" and c.value is None]
    if not names or len(names) == len(candidates):
        return []
    return [f"Not compared, for want of the {words}: {', '.join(names)}."]


def _decision(
    title: str,
    of_groups: list[Group],
    question: Question,
    candidates: Sequence[Candidate],
    with_moves: bool,
) -> Decision:
    higher = _higher(of_groups[0], question.objective)
    words = figure_words(question.objective, [group.is_share for group in of_groups])
    fit = [c for c in candidates if c.state == "yes" and c.value is not None]
    chances = _best_probabilities(fit, higher)
    options = {c.name: _option(c, chances.get(c.name)) for c in candidates}
    ranked = _ranked(candidates, higher)
    reason = _reason(of_groups, question, candidates)
    status, chosen, missing = _answer(candidates, fit, higher, question.objective, words)
    if reason is not None:
        status = "cannot-tell" if status == "recommended" else status
        chosen = missing = None
    nearest = None if chosen or reason else _nearest(candidates, fit, higher)
    if missing is None and nearest is not None and status == "cannot-tell":
        missing = "; ".join(c.needs for c in nearest.checks if c.needs) or None
    row = of_groups[0].rows[0]
    return Decision(
        title=title,
        model=row["model"],
        device=", ".join(dict.fromkeys(d for group in of_groups for d in group.devices)),
        tasks=tuple(str(group.rows[0]["task"]) for group in of_groups),
        objective=question.objective,
        limits=question.limits.words,
        status=status,
        chosen=options[chosen.name] if chosen else None,
        ties=_ties(chosen, fit, question.objective) if chosen else (),
        contender=_contender(options, chosen, ranked, higher),
        nearest=options[nearest.name] if nearest else None,
        missing=missing,
        reason=reason,
        doubt=_doubt(fit, question.objective) if chosen else None,
        words=words,
        options=tuple(options[c.name] for c in ranked),
        changes=() if reason else tuple(changes(chosen, ranked, question, higher, words)),
        uncovered=(*_not_compared(candidates, words), *uncovered(of_groups, chosen or nearest)),
        sensitivity=sensitivity(chosen, candidates, question, higher)
        if with_moves and chosen is not None
        else (),
    )


def _reason(
    of_groups: list[Group], question: Question, candidates: Sequence[Candidate]
) -> str | None:
    """Why no format can be the answer, whatever its figures are."""
    if candidates and all(c.barred for c in candidates):
        return "what ran was not verified (a server's format is declared, not proved)"
    if question.objective in ("quality", "value", "net") and any(g.is_synthetic for g in of_groups):
        return NOT_SCORED
    for group in of_groups:
        unsolved = solves_nothing(group)
        if unsolved is not None:
            return unsolved + (f" of {group.rows[0]['task']}" if len(of_groups) > 1 else "")
    return next(filter(None, (unfit(group, question.objective) for group in of_groups)), None)


def _doubt(fit: list[Candidate], objective: str) -> str | None:
    """Why the draws can't say how sure the choice is; of searched rates `_alike` says it."""
    if len(fit) < 2 or objective == "rate":
        return None
    if not all(c.tells for c in fit):
        return "too few requests were timed"
    return "each was measured once" if all(c.draws is None for c in fit) else None


def _contender(
    options: dict[str, Option], chosen: Candidate | None, ranked: list[Candidate], higher: bool
) -> Option | None:
    found = contenders(chosen, ranked, higher) if chosen is not None else []
    return options[found[0].name] if found else None


def _higher(group: Group, objective: str) -> bool:
    maximise = FIGURES[objective].maximise
    return group.higher_is_better if maximise is None else maximise


def _answer(
    candidates: Sequence[Candidate],
    fit: list[Candidate],
    higher: bool,
    objective: str,
    words: str,
) -> tuple[Status, Candidate | None, str | None]:
    """(status, chosen, what is missing)."""
    if candidates and all(c.barred for c in candidates):
        return "unverified", None, None
    qualifying = [c for c in candidates if c.state == "yes"]
    if not qualifying:
        open_ = any(c.state == "cannot-tell" for c in candidates)
        return ("cannot-tell" if open_ else "none"), None, None
    if not fit:
        return "cannot-tell", None, missing_value(objective, words, qualifying)
    disturbed = [c.name for c in fit if c.disturbed]
    if FIGURES[objective].timed and disturbed and len(fit) > 1:
        which = ", ".join(disturbed)
        return "cannot-tell", None, f"timing on an idle machine: other work disturbed {which}"
    best = _best(fit, higher)
    if higher and best.value == 0 and objective != "net":
        return "cannot-tell", None, f"any {words} above 0"
    return "recommended", best, None


def _best(fit: Sequence[Candidate], higher: bool) -> Candidate:
    pick = max if higher else min
    return pick(fit, key=lambda c: c.value if c.value is not None else 0.0)


def _best_probabilities(fit: list[Candidate], higher: bool) -> dict[str, float | None]:
    """{name: share of the paired draws in which it is the best, equals with it}."""
    size = next((len(c.draws) for c in fit if c.draws is not None), 0)
    if len(fit) == 1:
        return {fit[0].name: None}
    if not size or not all(c.tells for c in fit):
        return {c.name: None for c in fit}
    table = np.array([c.draws if c.draws is not None else np.full(size, c.value) for c in fit])
    best = table.max(axis=0) if higher else table.min(axis=0)
    return {c.name: float((row == best).mean()) for c, row in zip(fit, table, strict=True)}


def _ties(chosen: Candidate, fit: list[Candidate], objective: str) -> tuple[str, ...]:
    """Names of those that can't be told from the chosen: the paired draws' difference holds 0 in
    its central 95 %, or it is no larger than rounds of one of the two differ. Of searched rates:
    what the chosen held is not beyond what the other missed."""
    others = [c for c in fit if c is not chosen]
    if objective == "rate":
        return tuple(c.name for c in others if not is_below(c.rows[0], chosen.rows[0]))
    return tuple(c.name for c in others if _alike(chosen, c))


def _alike(one: Candidate, other: Candidate) -> bool:
    assert one.value is not None
    assert other.value is not None
    low, high = sorted([one.value, other.value])
    spreads = [c.spread for c in (one, other) if c.spread is not None]
    if low == high or (spreads and low > 0 and high / low - 1 <= max(spreads)):
        return True
    if one.draws is None and other.draws is None:
        return False
    first, second = (c.draws if c.draws is not None else c.value for c in (one, other))
    apart = np.subtract(first, second)
    return bool(min(np.mean(apart >= 0), np.mean(apart <= 0)) > _TAIL)


_ORDER = {"yes": 0, "cannot-tell": 1, "no": 2, "barred": 3}


def _ranked(candidates: Sequence[Candidate], higher: bool) -> list[Candidate]:
    """Those that qualify first, then those of which it can't be told, each by the objective."""

    def place(candidate: Candidate) -> tuple[int, bool, float]:
        value = candidate.value
        signed = 0.0 if value is None else (-value if higher else value)
        return _ORDER[candidate.state], value is None, signed

    return sorted(candidates, key=place)


def _nearest(
    candidates: Sequence[Candidate], fit: list[Candidate], higher: bool
) -> Candidate | None:
    """What comes nearest to an answer: the best of those that qualify, else the one with the fewest
    limits broken, then open, then the least beyond them."""
    if fit:
        return _best(fit, higher)
    allowed = [c for c in candidates if not c.barred]

    def place(candidate: Candidate) -> tuple[int, int, float, int]:
        states = [check.state for check in candidate.checks]
        ratios = [check.ratio for check in candidate.checks if check.ratio is not None]
        by_objective = _ranked(allowed, higher).index(candidate)
        beyond = max([*ratios, 1.0]) if "no" in states else 1.0
        return states.count("no"), states.count("cannot-tell"), beyond, by_objective

    return min(allowed, key=place, default=None)


def _option(candidate: Candidate, best: float | None) -> Option:
    row = candidate.rows[0]
    chances = [c.probability for c in candidate.checks]
    known = [c for c in chances if c is not None]
    single = len(candidate.rows) == 1
    figures = {n: row[f.column] if single else _shared(candidate, n) for n, f in FIGURES.items()}
    if str(row["power_source"] or "").startswith("estimated"):
        figures["energy"] = None
    return Option(
        name=candidate.name,
        format=row["format"],
        runtime=row["runtime"],
        execution=row["execution"],
        state=candidate.state,
        reason=candidate.barred,
        value=candidate.value,
        best_probability=best,
        qualifies_probability=math.prod(known) if len(known) == len(chances) else None,
        checks=candidate.checks,
        figures=figures,
        device=row["device"],
        verdicts=candidate.verdicts,
        cautions=tuple(
            dict.fromkeys(i for r in candidate.rows for i in (r["cautions"] or "").split(";") if i)
        ),
    )


def _shared(candidate: Candidate, name: str) -> float | None:
    """A figure over all tasks; None where it does not add up or is missing on one."""
    join = OVER_TASKS.get(name)
    values = [row[FIGURES[name].column] for row in candidate.rows]
    if join is None or None in values:
        return None
    return float(join[0]([np.array(v, dtype=float) for v in values]))
