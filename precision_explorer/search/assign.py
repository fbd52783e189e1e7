"""One option for each of many items, so that the summed harm is least under a budget of cost: the
multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004,
chapter 11), solved as an integer programme by HiGHS through ``scipy.optimize.milp``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# HiGHS stops at a relative gap of 1e-4 by default; instances of this size are solved to the end in
# well under a second, and the limit only keeps an odd one from holding everything up.
_TIME_LIMIT_S = 60.0
# Costs and budget are divided by the budget, and HiGHS keeps a constraint to an absolute 1e-7
# (its option primal_feasibility_tolerance): the answer's cost is added up again and checked.
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Option:
    """What one option of an item costs (bytes, seconds or joules) and harms (nats)."""

    cost: float
    harm: float


@dataclass(frozen=True)
class Assignment:
    """`chosen` names each item's option; `cost` and `harm` are the sums over the items."""

    chosen: dict[str, str]
    cost: float
    harm: float


class Infeasible(ValueError):
    """No assignment keeps the budget; `least` is the lowest cost that any has."""

    def __init__(self, least: float) -> None:
        super().__init__(f"the cheapest assignment costs {least:g}")
        self.least = least


def assign(items: Mapping[str, Mapping[str, Option]], budget: float) -> Assignment:
    """The assignment of least summed harm whose summed cost is at most `budget`.

    `items` maps each item's name to its options by name, at least one each. Raises Infeasible.
    """
    least = sum(min(option.cost for option in options.values()) for options in items.values())
    if least > budget:
        raise Infeasible(least)
    pairs = [(item, name) for item, options in items.items() for name in options]
    found = _solve(items, pairs, budget)
    # A solver's tolerance may let the sum pass the budget by a hair: then a hair is taken off it.
    for shrink in (10 * _TOLERANCE, 1e-4):
        if found is not None and _total(items, found).cost <= budget:
            break
        found = _solve(items, pairs, budget * (1 - shrink))
    if found is None or _total(items, found).cost > budget:
        found = {i: min(o, key=lambda n: o[n].cost) for i, o in items.items()}
    return _total(items, found)


def _total(items: Mapping[str, Mapping[str, Option]], chosen: dict[str, str]) -> Assignment:
    taken = [items[item][name] for item, name in chosen.items()]
    return Assignment(chosen, sum(o.cost for o in taken), sum(o.harm for o in taken))


def _solve(
    items: Mapping[str, Mapping[str, Option]], pairs: Sequence[tuple[str, str]], budget: float
) -> dict[str, str] | None:
    """The optimal {item: option}; None where the solver found none in its time."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    row = {item: i for i, item in enumerate(items)}
    ones = csr_array(
        (np.ones(len(pairs)), ([row[item] for item, _ in pairs], range(len(pairs)))),
        shape=(len(items), len(pairs)),
    )
    costs = np.array([items[item][name].cost for item, name in pairs], dtype=float)
    harms = np.array([items[item][name].harm for item, name in pairs], dtype=float)
    # Scaled, since the solver's tolerances are absolute and harms may be 1e-6 nats.
    cost_scale, harm_scale = abs(budget) or 1.0, np.abs(harms).max() or 1.0
    result = milp(
        harms / harm_scale,
        constraints=[
            LinearConstraint(ones, 1, 1),
            LinearConstraint(costs[None, :] / cost_scale, -np.inf, budget / cost_scale),
        ],
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0, "time_limit": _TIME_LIMIT_S},
    )
    if result.x is None:
        return None
    taken = (pair for pair, x in zip(pairs, result.x, strict=True) if x > 0.5)
    return dict(taken)
