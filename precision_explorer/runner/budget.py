"""Budgets of a search: bytes of weights, seconds or joules of a request. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.search import Option
from precision_explorer.units import (
    bytes_,
    joules,
    parse_duration,
    parse_energy,
    parse_share,
    parse_size,
    seconds,
    share,
)

_PARSERS: dict[str, Callable[[str], float]] = {
    "bytes": parse_size,
    "latency": parse_duration,
    "energy": parse_energy,
}
_TEXTS: dict[str, Callable[[float], str]] = {"bytes": bytes_, "latency": seconds, "energy": joules}
# A bare number of bytes may be meant as megabytes, or as percent.
_BARE = re.compile(r"\s*[0-9.]+\s*")
_UNITS = {"bytes": "bytes", "latency": "s", "energy": "j"}


@dataclass(frozen=True)
class Budget:
    """`amount` in bytes, seconds or joules, or, where `relative`, as a share of the reference's."""

    kind: str
    amount: float
    relative: bool

    def of(self, reference: float) -> float:
        """The budget in its unit, given the whole reference model's figure."""
        return self.amount * reference if self.relative else self.amount

    def missed(self, least: float, at_least: bool = False) -> str:
        """The line for a budget below `least`, what the cheapest assignment takes, or `at_least`
        takes."""
        takes = "takes at least" if at_least else "takes"
        return (
            f"no assignment keeps the {self.kind} budget: the cheapest {takes} "
            f"{_TEXTS[self.kind](least)}, the rest of the model included; raise "
            f"--budget-{self.kind} or add a cheaper format to --formats"
        )

    def document(self, base: dict[str, Any]) -> dict[str, Any]:
        """What the recipe file says of it."""
        limit = self.of(reference_of(self.kind, base))
        said = {"kind": self.kind, f"limit_{_UNITS[self.kind]}": limit}
        return said | ({"of_reference": share(self.amount)} if self.relative else {})


def parse_budget(kind: str, text: str) -> Budget:
    """The budget that `text` says: ``60%`` of the reference's, or an amount with its unit.

    UsageError in one line where it is neither, or not above 0.
    """
    relative = text.strip().endswith("%")
    if kind == "bytes" and _BARE.fullmatch(text):
        raise UsageError(
            f"--budget-bytes: '{text}' has no unit; write it as {text}MB, or as a share of the "
            f"unquantized model's as in 60%"
        )
    try:
        amount = parse_share(text) if relative else _PARSERS[kind](text)
    except ValueError as error:
        raise UsageError(
            f"--budget-{kind}: {error}; or a share of the reference's as in 60%"
        ) from (error)
    if amount <= 0:
        raise UsageError(f"--budget-{kind}: '{text}' leaves nothing; give more than 0")
    return Budget(kind, amount, relative)


def reference_of(kind: str, base: dict[str, Any]) -> float:
    """The whole reference model's bytes, seconds or joules, from what was measured of it."""
    if kind == "bytes":
        return base["weight_bytes"]
    if kind == "latency":
        return base["request_s"]
    return base["request_s"] * _power(base["power_w"])


def _power(watts: float | None) -> float:
    if watts is None:
        raise UsageError(
            "the meter gave no figure while the layers ran, so there is no energy to keep a budget "
            "of; use --budget-latency"
        )
    return watts


def costs(
    kind: str, base_format: str, formats: tuple[str, ...], state: dict[str, Any]
) -> tuple[dict[str, dict[str, Option]], float]:
    """({layer: {format: its cost and KL}}, the cost of the rest of the model, which no format
    changes), in the unit of the budget's `kind`.

    Seconds are of a request's share in the layer; joules are those times the watts that were
    measured while the whole model's layers ran in the format.
    """
    base = state["base"]
    names = list(base["layers"])
    items: dict[str, dict[str, Option]] = {name: {} for name in names}
    own = {name: _cost(kind, base["layers"][name], base["power_w"]) for name in names}
    for format_id in formats:
        if format_id == base_format:
            for name in names:
                items[name][format_id] = Option(own[name], 0.0)
            continue
        found = state["formats"][format_id]
        for name in names:
            layer = found["layers"][name]
            if not layer["held"]:
                continue
            cost = _cost(kind, layer, found["power_w"])
            items[name][format_id] = Option(cost, layer["kl_nats"])
    for name, options in items.items():
        # Layers that none of the formats takes stay as they are.
        options.update({} if options else {base_format: Option(own[name], 0.0)})
    return items, reference_of(kind, base) - sum(own.values())


def _cost(kind: str, layer: dict[str, Any], power_w: float | None) -> float:
    if kind == "bytes":
        return layer["bytes"]
    return layer["seconds"] if kind == "latency" else layer["seconds"] * _power(power_w)
