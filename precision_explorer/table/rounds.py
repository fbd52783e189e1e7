"""What the rounds of a cell show: the values of each, and whether the machine changed meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from precision_explorer.records import Caution
from precision_explorer.records.record import BatchRate
from precision_explorer.stats import rank_sum_p
from precision_explorer.stats.steady import ALPHA, time_beside_drift
from precision_explorer.units import seconds, share

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry

DRIFT = 0.1
"""From a tenth on the first and last round are called two machines: twice what `stats.steady` lets
pass within a series, since minutes lie between them."""

REPEATED = 0.02
"""Medians of the same measurement, made again, that lie further apart are no repetition: a declared
aim for an idle machine."""


def by_round(values: np.ndarray, labels: Sequence[int]) -> list[np.ndarray]:
    """`values` (n,) split by the rounds' numbers, in their order."""
    numbers = np.asarray(labels)
    return [values[numbers == number] for number in np.unique(numbers)]


def end_to_end(ends: np.ndarray, latencies: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """(n,) seconds at which requests ended, on one clock: each round's has its own begin, and what
    other formats were timed in between is left out."""
    numbers, last = np.asarray(labels), 0.0
    joined: np.ndarray = ends.astype(float)
    for number in np.unique(numbers):
        mine = numbers == number
        joined[mine] += last - float((ends[mine] - latencies[mine]).min())
        last = float(joined[mine].max())
    return joined


def batches_by_round(rate: BatchRate) -> list[np.ndarray]:
    """Seconds of the batches of each round; all in one where there were no rounds."""
    seconds_ = np.array(rate.batch_s)
    if not rate.rounds:
        return [seconds_]
    ends = np.cumsum([r.batches for r in rate.rounds])[:-1]
    return list(np.split(seconds_, ends))


def mark_drift(entries: Sequence[Entry]) -> None:
    """Give all ok rows of a (model, task, method) a caution where their reference tells of
    a machine that changed; each run's rows by its own reference."""
    for run in dict.fromkeys(entry.folder.path for entry in entries):
        rows = [entry for entry in entries if entry.folder.path == run]
        found = _machine_drifted(
            [entry for entry in rows if entry.row["format"] == entry.reader["reference"]]
        )
        for entry in rows:
            if found is not None and len(entry.latencies) > 1:
                entry.cautions.append(found)


def mark_repeats(entries: Sequence[Entry]) -> None:
    """Give rows of one cell (the same format, kernel, libraries, device and method) that several
    runs measured a caution where their median latencies lie further apart than `REPEATED`."""
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.row["latency_p50_s"] is not None and not entry.tried:
            alike.setdefault(entry.record.cell.cell_id, []).append(entry)
    for rows in alike.values():
        if len({entry.folder.path for entry in rows}) < 2:
            continue
        medians = [entry.row["latency_p50_s"] for entry in rows]
        low, high = min(medians), max(medians)
        if high / low - 1 <= REPEATED:
            continue
        text = (
            f"{len(rows)} runs of the same cell found medians from {seconds(low)} to "
            f"{seconds(high)} ({share(high / low - 1)} apart), above {share(REPEATED, 0)}: too few "
            "requests, or a machine that does not repeat itself; don't rely on differences between "
            "formats that are smaller"
        )
        for entry in rows:
            entry.cautions.append(Caution(id="not-repeated", message=text))


def _machine_drifted(references: Sequence[Entry]) -> Caution | None:
    """A caution where the reference, which is timed first and last, changed by more than `DRIFT` in
    between and a rank-sum test at `ALPHA` says so too; of several runtimes' references the first,
    which is the one that stands at both ends.

    Of requests that came by their own clock it compares the service, since each round draws its own
    arrivals and so has a queue of its own; requests of one batch share theirs, so that the test
    allows for their correlation (`time_beside_drift`)."""
    if not references or len(references[0].latencies) < 2:
        return None
    entry = references[0]
    times = entry.services or entry.latencies
    first, last = times[0], times[-1]
    before, after = float(np.median(first)), float(np.median(last))
    time = time_beside_drift(np.concatenate([first, last])) if entry.services else 1.0
    if abs(after / before - 1) <= DRIFT or rank_sum_p(first, last, time) >= ALPHA:
        return None
    what = "served a request in" if entry.services else "took"
    text = (
        f"the reference {entry.row['format']}, timed first and last, {what} {seconds(before)} in "
        f"the first round and {seconds(after)} in the last ({share(abs(after / before - 1), 0)} "
        f"{'more' if after > before else 'less'}): the machine itself changed while formats were "
        "timed. The rounds spread a steady change over all formats alike, not a sudden one: "
        "measure again on a machine that does nothing else before you rely on small differences"
    )
    return Caution(id="machine-drifted", message=text)
