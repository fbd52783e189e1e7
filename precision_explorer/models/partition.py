"""Cutting a sequence into runs where it costs least."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def partition(count: int, costs: Callable[[int], Iterable[float]]) -> list[range]:
    """0 .. `count` - 1 in runs whose costs add up to the least, exactly (dynamic programming; of
    equals the longer last run). ``costs(end)`` gives those of the runs that end before `end`, from
    the shortest on, as long as they are allowed; at least one.
    """
    least, begins = [0.0], [0]
    for end in range(1, count + 1):
        total, begin = min(
            (least[end - size] + cost, end - size) for size, cost in enumerate(costs(end), 1)
        )
        least.append(total)
        begins.append(begin)
    runs: list[range] = []
    end = count
    while end:
        runs.append(range(begins[end], end))
        end = begins[end]
    return runs[::-1]
