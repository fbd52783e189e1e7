"""Which input, moved alone and by how much, would change the choice: prices and what they are made
of, worth, and limits. Everything measured stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from precision_explorer.decision.candidates import OVER_TASKS, Candidate, Part
from precision_explorer.decision.data import Change, Question, Sensitivity
from precision_explorer.economics import (
    Price,
    Slo,
    cost_per_1k,
    net_per_1k,
    ownership_per_hour,
    value_per_usd,
)
from precision_explorer.table.figures import FIGURES
from precision_explorer.table.limits import SURE, Limits, slowest_held
from precision_explorer.table.samples import Samples

REACH = 10.0
"""Inputs are moved from a tenth to ten times what they are, as far as they can be."""
# Steps of a tenfold move, each 8 %: a choice that comes and goes within one of them is not seen.
_STEPS = 30
_EXACT = 1e-9
ZERO = "not moved: no factor changes a 0; give a value to see what it would"
_MONEY = ("cost", "value", "net")
_OWNED = ("purchase_usd", "life_years", "utilisation", "power_w", "pue", "usd_per_kwh")
_UNITS = {
    "price_per_hour_usd": "usd",
    "purchase_usd": "usd",
    "life_years": "years",
    "utilisation": "share",
    "power_w": "watts",
    "pue": "",
    "usd_per_kwh": "usd",
    "usd_per_correct": "usd",
    "usd_per_error": "usd",
    "slo": "seconds",
    "quality_budget": "share",
    "max_memory_bytes": "bytes",
    "max_cost_per_1k_usd": "usd",
}
INPUTS = tuple(_UNITS)
"""Names of all inputs that may be moved, in the order in which they are shown."""
_ENDS = {"utilisation": (0.0, 1.0), "pue": (1.0, math.inf), "quality_budget": (0.0, 0.999)}
"""Between which values an input can be at all, where that is not any above 0."""

World = Mapping[str, float]
"""{key: value} of the inputs that are moved; all others are what they are. A key is the input's
name, and of a price, where several devices stand together, the device after it (`_key`)."""


def sensitivity(
    chosen: Candidate, candidates: Sequence[Candidate], question: Question, higher: bool
) -> tuple[Sensitivity, ...]:
    """One row per input of the choice, in the order of `INPUTS`."""
    model = _Model(candidates, question, higher)
    return tuple(_moved(model, key, value, chosen.name) for key, value in model.inputs.items())


@dataclass(frozen=True)
class _Model:
    """The choice as a function of the inputs, by the rules of `decide`."""

    candidates: Sequence[Candidate]
    question: Question
    higher: bool
    _stars: dict[tuple[int, str], float] = field(default_factory=dict)

    @cached_property
    def parts(self) -> list[Part]:
        """Those of all candidates."""
        return [part for candidate in self.candidates for part in candidate.parts]

    @cached_property
    def inputs(self) -> dict[str, float]:
        """What each input is now; without those that there are none of."""
        limits = self.question.limits
        row = self.parts[0].samples.row
        found = {
            "usd_per_correct": row["usd_per_correct"],
            "usd_per_error": row["usd_per_error"],
            "slo": None if limits.slo is None else limits.slo.limit_s,
            "quality_budget": limits.max_quality_loss,
            "max_memory_bytes": limits.max_memory_bytes,
            "max_cost_per_1k_usd": limits.max_cost_per_1k_usd,
        }
        rest = {name: float(value) for name, value in found.items() if value is not None}
        return self._prices() | rest

    @cached_property
    def devices(self) -> list[str]:
        """Those of the candidates."""
        return list(dict.fromkeys(str(part.samples.row["device"]) for part in self.parts))

    def _key(self, name: str, device: str) -> str:
        return name if len(self.devices) == 1 else f"{name}\t{device}"

    def _prices(self) -> dict[str, float]:
        """The price per hour of each device, or of an owned one what it is made of; a power of
        each row's own is no input."""
        found: dict[str, float] = {}
        for device in self.devices:
            of_device = (p.samples for p in self.parts if p.samples.row["device"] == device)
            prices = [s.price for s in of_device if s.price is not None]
            if not prices:
                continue
            first = prices[0]
            made = {"price_per_hour_usd": first.per_hour_usd}
            if first.kind == "ownership":
                alike = len({p.inputs.get("power_w") for p in prices}) == 1
                made = {n: first.inputs[n] for n in _OWNED if n != "power_w" or alike}
            found |= {self._key(name, device): value for name, value in made.items()}
        return found

    def _per_hour(self, samples: Samples, price: Price, world: World) -> float:
        """Dollars per hour where the inputs in `world` are moved: each row's own by as much."""

        def moved(name: str, value: float) -> float:
            key = self._key(name, samples.row["device"])
            if key not in world:
                return value
            least, most = _ENDS.get(name, (0.0, math.inf))
            return min(max(value * world[key] / self.inputs[key], least), most)

        if price.kind != "ownership":
            return moved("price_per_hour_usd", price.per_hour_usd)
        found = ownership_per_hour(*(moved(name, price.inputs[name]) for name in _OWNED))
        assert found is not None
        return found * price.inputs.get("devices", 1)

    @cached_property
    def one_price(self) -> bool:
        """Whether all rows are of one device and have one price, made of the same inputs."""
        found = {
            None if p is None else tuple(sorted(p.inputs.items()))
            for p in (part.samples.price for part in self.parts)
        }
        return len(found) == 1 and len(self.devices) == 1

    def choice(self, world: World) -> str | None:
        """The format that `decide` would name; None where it would name none."""
        return self.answer(world)[0]

    def answer(self, world: World) -> tuple[str | None, str | None]:
        """The format that `decide` would name, or None and why it would name none."""
        fit = []
        for candidate in self.candidates:
            if candidate.barred or not all(self._holds(part, world) for part in candidate.parts):
                continue
            value = self._value(candidate, world)
            if value is not None:
                fit.append((candidate, value))
        if not fit:
            return None, "none is known to hold the limits"
        disturbed = [c.name for c, _ in fit if c.disturbed]
        if FIGURES[self.question.objective].timed and len(fit) > 1 and disturbed:
            return None, f"other work disturbed the timing of {', '.join(disturbed)}"
        pick = max if self.higher else min
        best, value = pick(fit, key=lambda one: one[1])
        nothing = self.higher and value == 0 and self.question.objective != "net"
        return (None, "nothing is above 0") if nothing else (best.name, None)

    def _holds(self, part: Part, world: World) -> bool:
        """Whether the format is known to hold every limit; a limit that is not moved, and that no
        price is in, as its check has it."""
        for check in part.checks:
            name = _LIMITS.get(check.limit, "slo")
            priced = name == "max_cost_per_1k_usd" and world.keys() - {"max_cost_per_1k_usd"}
            if name not in world and not priced:
                if check.state != "yes":
                    return False
                continue
            limit = world.get(name, self.inputs[name])
            if self.star(part, name, world) > limit:
                return False
        return True

    def star(self, part: Part, name: str, world: World | None = None) -> float:
        """The least limit `name` that the format is known to hold; infinity where there is none."""
        key = (id(part), name)
        if key not in self._stars:
            self._stars[key] = _STARS[name](part.samples, self.question.limits)
        star = self._stars[key]
        price = part.samples.price
        if name != "max_cost_per_1k_usd" or not world or price is None:
            return star
        return star * self._per_hour(part.samples, price, world) / price.per_hour_usd

    def _value(self, candidate: Candidate, world: World) -> float | None:
        name = self.question.objective
        values = [self._figure(part.samples, world) for part in candidate.parts]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        if len(known) == 1:
            return known[0]
        return float(OVER_TASKS[name][0]([np.array(value) for value in known]))

    def _figure(self, samples: Samples, world: World) -> float | None:
        """The objective of one row."""
        name, price = self.question.objective, samples.price
        if name not in _MONEY or price is None:
            return samples.value(name)
        per_hour = self._per_hour(samples, price, world)
        if name == "cost":
            return cost_per_1k(per_hour, samples.row["throughput_per_s"])
        slo = samples.slo
        if "slo" in world and slo is not None:
            slo = Slo(slo.quantile, world["slo"])
        rate = self._rate(samples, slo)
        if name == "net":
            row = samples.row
            return net_per_1k(
                samples.share,
                rate,
                per_hour,
                world.get("usd_per_correct", row["usd_per_correct"]),
                world.get("usd_per_error", row["usd_per_error"]),
            )
        # Requests that are neither right nor wrong count where the loss is within the budget, which
        # those that are compared here hold.
        is_share = samples.quality is not None and samples.quality.is_share
        return value_per_usd(samples.share if is_share else 1.0, rate, per_hour)

    def _rate(self, samples: Samples, slo: Slo | None) -> float | None:
        key = (id(samples), f"rate {slo}")
        if key not in self._stars:
            rate = samples.rate_within(slo)
            self._stars[key] = math.nan if rate is None else rate
        rate = self._stars[key]
        return None if math.isnan(rate) else rate

    def never(self, name: str) -> str | None:
        """Why the input can't change the choice, or was not moved; None where it was."""
        objective, limits = self.question.objective, self.question.limits
        money = name in ("price_per_hour_usd", *_OWNED)
        capped = limits.max_cost_per_1k_usd is not None
        if money and objective not in _MONEY and not capped:
            return f"not in {FIGURES[objective].words}"
        if money and objective in ("cost", "value") and self.one_price and not capped:
            return "one price for all formats moves them alike"
        if name in ("usd_per_correct", "usd_per_error") and objective != "net":
            return f"not in {FIGURES[objective].words}"
        if name == "slo" and objective in ("value", "net") and self._is_searched:
            return "not moved: the rates were searched at this objective; search at another"
        if name == "quality_budget" and any(map(_is_fixed, self.parts)):
            return "not moved: verdicts here are known at this budget only"
        return None

    @property
    def _is_searched(self) -> bool:
        return any(part.samples.record.measurements.tried for part in self.parts)


_LIMITS = {"quality": "quality_budget", "memory": "max_memory_bytes", "cost": "max_cost_per_1k_usd"}
"""A check's limit to the input; all others are percentiles of the latency."""


def _is_fixed(part: Part) -> bool:
    """Whether the row's verdict is known at its own budget only."""
    samples = part.samples
    return (
        samples.margin is None
        and samples is not samples.reference
        and samples.row["verdict"] is not None
    )


def _least_loss(samples: Samples, limits: Limits) -> float:
    budget = limits.max_quality_loss
    assert budget is not None
    if samples is samples.reference:
        return 0.0
    if samples.margin is None:
        return math.inf
    return samples.margin.least_budget(*_ends("quality_budget", budget))


def _least_latency(samples: Samples, limits: Limits) -> float:
    assert limits.slo is not None
    saturated = "serving-saturated" in (samples.row["cautions"] or "").split(";")
    if saturated or not samples.latencies:
        return math.inf
    found = slowest_held(samples, limits.slo)
    return math.inf if found is None else found


def _peak(samples: Samples, limits: Limits) -> float:
    peak = samples.row["peak_memory_bytes"]
    return math.inf if peak is None else float(peak)


def _least_cost(samples: Samples, limits: Limits) -> float:
    """As `table.limits` has it: the cost, and what that many of the draws hold."""
    cost, draws = samples.row["cost_per_1k_requests_usd"], samples.draws("cost")
    if cost is None or draws is None:
        return math.inf
    return max(float(cost), float(np.quantile(draws, SURE, method="inverted_cdf")))


_STARS: dict[str, Callable[[Samples, Limits], float]] = {
    "quality_budget": _least_loss,
    "slo": _least_latency,
    "max_memory_bytes": _peak,
    "max_cost_per_1k_usd": _least_cost,
}


def _ends(name: str, value: float) -> tuple[float, float]:
    least, most = _ENDS.get(name, (0.0, math.inf))
    return max(value / REACH, least), min(value * REACH, most)


def _moved(model: _Model, key: str, value: float, chosen: str) -> Sensitivity:
    name, _, device = key.partition("\t")
    least, most = _ends(name, value)
    note = model.never(name) or (None if value > 0 else ZERO)
    found = Sensitivity(name, _UNITS[name], value, least, most, None, None, note, device or None)
    if found.note is not None:
        return found
    # Where a limit lets another format in or shuts the choice out, the answer may change at once.
    marks = [model.star(part, name) for part in model.parts] if name in _STARS else []
    up = _grid(value, most, [mark for mark in marks if value < mark <= most])
    down = _grid(value, least, [mark * (1 - _EXACT) for mark in marks if least < mark <= value])
    return replace(
        found,
        lower=_first(model, key, value, down, chosen),
        higher=_first(model, key, value, up, chosen),
    )


def _grid(start: float, end: float, marks: Sequence[float]) -> list[float]:
    """Values from `start` (left out) to `end`, the nearest first, with `marks` among them."""
    if start == end:
        return []
    steps = max(round(_STEPS * abs(math.log10(end / start))), 1)
    places = np.geomspace(start, end, steps + 1)[1:-1]
    return sorted({*map(float, places), end, *marks}, reverse=end < start)


def _first(
    model: _Model, key: str, value: float, places: Sequence[float], chosen: str
) -> Change | None:
    """The nearest of `places` at which another format is named, refined by bisection towards the
    one before it, where the choice stands."""
    before = value
    for place in places:
        if model.choice({key: place}) != chosen:
            break
        before = place
    else:
        return None
    same, other = before, place
    while abs(other / same - 1) > _EXACT:
        middle = math.sqrt(same * other)
        if middle in (same, other):
            break
        if model.choice({key: middle}) == chosen:
            same = middle
        else:
            other = middle
    return Change(other, other / value, *model.answer({key: other}))
