"""The Pareto columns of the rows of one (model, task, method), and those over all tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from precision_explorer.errors import UsageError
from precision_explorer.pareto import front, front_probability, knee
from precision_explorer.table.against import is_in_looks
from precision_explorer.table.curve import is_below
from precision_explorer.table.figures import DEFAULT, FIGURES, energy_problem, unfit_energy
from precision_explorer.table.groups import by_devices, by_meter
from precision_explorer.table.limits import Check, Limits, checks
from precision_explorer.table.samples import DRAWS, Samples
from precision_explorer.table.serving import is_steady_load

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry

# Central share of the paired draws of a difference: what holds 0 is no difference.
_TAIL = 0.025


@dataclass(frozen=True)
class Front:
    """What the front of one group was taken over. `values` (rows, objectives) and `draws` (DRAWS,
    rows, objectives) of the `samples` that were compared."""

    names: list[str]
    maximise: list[bool]
    samples: list[Samples]
    values: np.ndarray
    draws: np.ndarray
    told: bool
    """Whether the draws can say how sure the front is."""
    alike: np.ndarray
    """(rows, rows, objectives) bool: the rates between which the two answers lie overlap."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Of its rows, in their order."""
        return tuple(dict.fromkeys(str(s.row["device"]) for s in self.samples))


def fronts_of(ok: list[Entry]) -> list[Front]:
    """The front of a group's entries, all ok, with their columns filled in: one over all devices,
    unless a reader wants energy and they have different meters, when each meter's have one."""
    wanted = (ok[0].reader.get("objectives") or ()) if ok else ()
    parts = [ok]
    if "energy" in wanted and energy_problem([e.row for e in ok]) is not None:
        parts = list(by_meter(ok, [e.row for e in ok]).values())
    return [found for part in parts if (found := _front_of(part)) is not None]


def _front_of(ok: list[Entry]) -> Front | None:
    # As little is known of the others' latency as of a failed row's.
    stands = []
    for entry in ok:
        if is_steady_load(entry.record.measurements.serving or []):
            stands.append(entry)
        elif entry.row["search_slo"] is not None and entry.samples is not None:
            # Even the lowest rate was more than it can serve.
            _lacks(entry.samples, "rate")
    reader = ok[0].reader if ok else {}
    return mark_front(
        [e.samples for e in stands if e.samples is not None],
        reader.get("objectives"),
        reader.get("limits"),
        # Scores of early examples are no measure beside those of all.
        not any(is_in_looks(e) for e in ok),
    )


def mark_front(
    samples: list[Samples],
    wanted: tuple[str, ...] | None = None,
    limits: Limits | None = None,
    with_quality: bool = True,
) -> Front | None:
    """Fill `pareto`, its probability, ties and note of the rows (all ok, none of them saturated or
    refused, which stay without); None where nothing can be compared.

    `wanted`: names of `FIGURES`, by default those of `DEFAULT` that every row has, and the rate
    where it was searched; a row without one of those wanted, or without a rate, is left out with a
    note, as is one that breaks a limit. No probability where a percentile rests on too few
    requests. `with_quality`: False where the rows' quality can't be compared.
    """
    left = [s for s in samples if not _breaks(s, limits)]
    if wanted is None and any(s.row["search_slo"] is not None for s in left):
        left = [s for s in left if not _lacks(s, "rate")]
    names = _names(left, wanted, with_quality)
    if wanted is not None and "energy" in names and _has_no_energy(left):
        return None
    for name in names if wanted is not None else []:
        left = [s for s in left if not _lacks(s, name)]
    if not left or not names:
        return None
    higher = [bool(left[0].higher_is_better)]
    maximise = [
        bool(m) for n in names for m in ([FIGURES[n].maximise] if n != "quality" else higher)
    ]
    values = np.array([[s.value(name) for name in names] for s in left], dtype=float)
    draws = np.repeat(values[None], DRAWS, axis=0)
    for index, sample in enumerate(left):
        for column, name in enumerate(names):
            drawn = sample.draws(name)
            if drawn is not None:
                draws[:, index, column] = drawn
    told = all(sample.tells(name) for sample in left for name in names)
    found = Front(names, maximise, left, values, draws, told, _alike(left, names))
    _enter(found)
    return found


def _names(samples: list[Samples], wanted: tuple[str, ...] | None, with_quality: bool) -> list[str]:
    # A metric without a better end is no objective.
    known = with_quality and bool(samples) and samples[0].higher_is_better is not None
    if wanted is not None:
        return [name for name in wanted if name != "quality" or known]
    names = [n for n in DEFAULT if all(s.row[FIGURES[n].column] is not None for s in samples)]
    if any(s.row["search_slo"] is not None for s in samples):
        # Each row's is that at a rate of its own.
        names = [n for n in names if n != "latency"]
    energy = unfit_energy([s.row for s in samples])
    return [n for n in names if (n != "quality" or known) and (n != "energy" or energy is None)]


def check_energy(fronts: Sequence[Front], groups: Sequence[Sequence[dict[str, Any]]]) -> None:
    """UsageError where no front holds energy that was wanted, since the rows (all ok) of no group
    can be ranked by it."""
    problems = [unfit_energy(rows) for rows in groups if rows]
    if problems and None not in problems and not any("energy" in f.names for f in fronts):
        raise UsageError(f"{problems[0]} of --objectives")


def _has_no_energy(samples: list[Samples]) -> bool:
    """Whether the rows of a group can't be ranked by energy, which their notes then say."""
    if energy_problem([s.row for s in samples]) is None:
        return False
    for sample in samples:
        why = energy_problem([sample.row]) or "energy of other formats is not from the same meter"
        sample.row["pareto_note"] = f"left out: {why}"
    return True


def _breaks(sample: Samples, limits: Limits | None) -> bool:
    """Whether the row is known to break a limit, which its note then names."""
    if limits is None:
        return False
    broken = [c for c in checks(sample, limits) if c.state == "no"]
    if broken:
        sample.row["pareto_note"] = f"left out: {'; '.join(map(_broken, broken))}"
    return bool(broken)


def _broken(check: Check) -> str:
    return f"{check.limit} ({check.found})"


def _lacks(sample: Samples, name: str) -> bool:
    figure = FIGURES[name]
    if sample.value(name) is not None:
        return False
    if name == "rate" and sample.row["search_note"]:
        sample.row["pareto_note"] = f"left out: {sample.row['search_note']}"
        return True
    needed = sample.row.get(figure.column.removesuffix("_s") + "_needed_n")
    why = f", needs n >= {needed:,}" if needed else ""
    sample.row["pareto_note"] = f"left out: no {figure.words}{why}"
    return True


def _alike(samples: list[Samples], names: list[str]) -> np.ndarray:
    found: np.ndarray = np.zeros((len(samples), len(samples), len(names)), dtype=bool)
    if "rate" in names:
        below = np.array([[is_below(a.row, b.row) for b in samples] for a in samples])
        found[:, :, names.index("rate")] = ~(below | below.T)
    return found


def _undominated(values: np.ndarray, maximise: list[bool], alike: np.ndarray) -> np.ndarray:
    """(rows,) bool: the front, on which a row stays too that only larger rates beat whose answers
    overlap with its own."""
    on: np.ndarray = front(values, maximise)
    for index in np.flatnonzero(~on & alike.any(axis=(1, 2))):
        # As good in the rate, they can beat it in another objective only.
        own = np.where(alike[index], np.minimum(values, values[index]), values)
        on[index] = front(own, maximise)[index]
    return on


def _enter(found: Front) -> None:
    on = _undominated(found.values, found.maximise, found.alike)
    probability = front_probability(found.draws, found.maximise) if found.told else None
    ties = _ties(found, on) if found.told else {}
    hint = knee(found.values[on], found.maximise)
    devices = ";".join(found.devices)
    for index, sample in enumerate(found.samples):
        row = sample.row
        row["pareto"] = "yes" if on[index] else "no"
        row["pareto_devices"] = devices
        row["pareto_probability"] = None if probability is None else float(probability[index])
        others = [found.samples[k].row for k in ties.get(index, ())]
        row["pareto_ties"] = ";".join(_label(other, row) for other in others) or None
    if hint is not None:
        row = found.samples[int(np.flatnonzero(on)[hint])].row
        # A hint at what loses too much would be none.
        row["pareto_note"] = "knee" if row["verdict"] != "outside" else None


def _label(row: dict[str, Any], beside: dict[str, Any]) -> str:
    same = row["runtime"] in (None, beside["runtime"])
    text = str(row["format"]) if same else f"{row['format']} ({row['runtime']})"
    return text if row["device"] == beside["device"] else f"{text} on {row['device']}"


def _ties(found: Front, on: np.ndarray) -> dict[int, list[int]]:
    """{row of the front: the others that no objective tells from it}: the paired draws' difference
    holds 0 within its central 95 %, or, of what can't be resampled, both values read the same;
    searched rates where their answers overlap."""
    rows = np.flatnonzero(on)
    fixed = np.array([[s.draws(n) is None for n in found.names] for s in found.samples])
    searched = np.array([n == "rate" for n in found.names])
    shown = [
        [FIGURES[n].show(v) for n, v in zip(found.names, row, strict=True)] for row in found.values
    ]
    ties = {}
    for i in rows:
        apart = found.draws[:, [i]] - found.draws[:, rows]
        same = np.minimum((apart >= 0).mean(axis=0), (apart <= 0).mean(axis=0)) > _TAIL
        read = np.array([[a == b for a, b in zip(shown[i], shown[j], strict=True)] for j in rows])
        same = np.where(searched, found.alike[i, rows], same)
        alike = np.where(fixed[i] & fixed[rows], read, same).all(axis=1)
        ties[int(i)] = [int(j) for j in rows[alike] if j != i]
    return ties


def mark_all_tasks(fronts: Sequence[Front]) -> None:
    """Fill the columns of the front over all tasks, of each model and its devices that several
    tasks have fronts of.

    A format on a device beats another there if it is at least as good in every objective on every
    task and better in one: nothing is added up over tasks. One that is missing on a task is no
    candidate.
    """
    models: dict[tuple[Any, ...], list[Front]] = defaultdict(list)
    for found in fronts:
        row = found.samples[0].row
        models[row["model"], row["model_revision"]].append(found)
    joined = [one for of_model in models.values() for one in by_devices(of_model)]
    for of_model in joined:
        tasks = [found.samples[0].row["task"] for found in of_model]
        if len(tasks) > 1 and len(set(tasks)) == len(tasks):
            _all_tasks(of_model)


def _all_tasks(fronts: list[Front]) -> None:
    places = [{_key(s): i for i, s in enumerate(found.samples)} for found in fronts]
    whole = all(len(p) == len(f.samples) for p, f in zip(places, fronts, strict=True))
    keys = [key for key in places[0] if all(key in p for p in places)]
    if not keys or not whole:
        return
    both = list(zip(fronts, places, strict=True))
    picked = [(f, [p[key] for key in keys]) for f, p in both]
    values = np.concatenate([f.values[index] for f, index in picked], axis=1)
    draws = np.concatenate([f.draws[:, index] for f, index in picked], axis=2)
    maximise = [m for found in fronts for m in found.maximise]
    alike = np.concatenate([f.alike[np.ix_(index, index)] for f, index in picked], axis=2)
    on = _undominated(values, maximise, alike)
    told = all(found.told for found in fronts)
    probability = front_probability(draws, maximise) if told else None
    for found, index in picked:
        for k, place in enumerate(index):
            row = found.samples[place].row
            row["pareto_all_tasks"] = "yes" if on[k] else "no"
            row["pareto_all_tasks_probability"] = (
                None if probability is None else float(probability[k])
            )


def _key(sample: Samples) -> tuple[Any, ...]:
    return sample.row["format"], sample.row["runtime"], sample.row["device"]
