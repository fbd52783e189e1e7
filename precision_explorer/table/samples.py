"""What a row's figures rest on, drawn again: one set of paired draws for all that is derived from
them (the front, how sure a decision is)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from precision_explorer.economics import Price, Slo
from precision_explorer.stats import (
    Within,
    effective_n,
    resample_counts,
    round_draws,
    share_within,
)
from precision_explorer.table.against import is_reference, reference_of
from precision_explorer.table.computed import Computed
from precision_explorer.table.figures import FIGURES
from precision_explorer.table.quality import Quality, quality_draws
from precision_explorer.table.rounds import batches_by_round
from precision_explorer.table.sequential import placed

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry

DRAWS = 500
"""A probability of 50 % is then known to 2.2 points (binomial, one standard deviation)."""
FEW_REQUESTS = 6
"""Below so many independent requests not even the median has an interval at 95 %
(`order_interval`): resampling them would show no doubt where there is much."""
# A step between seeds of rows that share nothing: a prime, so that no sweep's own seeds meet it.
_APART = 1_000_003


NO_NET = -1e30
"""Stands in draws for net dollars where no request is within the objective, so that each costs
without end; a number, since two infinities have no difference."""


class Samples:
    """One row's samples; its columns of quality, speed, cost and value are filled in."""

    def __init__(self, entry: Entry, seed: int) -> None:
        self.row, self.record = entry.row, entry.record
        self.quality, self.latencies, self.slo = entry.quality, entry.latencies, entry.slo
        self.placed = placed_beside(entry)
        """Value and (DRAWS,) draws of a quality whose own is that of fewer examples than the other
        rows'; None for all others."""
        self.value_size = entry.value_size
        """The batch size whose rate `value_per_usd` rests on; None where that is none."""
        self.value_latencies = entry.value_latencies
        """Those at the rate that `value_per_usd` rests on, where that was searched."""
        self.reference: Samples | None = None
        """What the row's quality was compared with; itself where it is a reference."""
        self.margin = entry.margin
        """Whether the loss is within any budget; None where that is known of the row's own only."""
        self.price: Price | None = None
        self.rate_within: Callable[[Slo | None], float | None] = lambda slo: None
        """Requests per second within another objective than the row's own."""
        self._seed = seed
        self._drawn: dict[str, np.ndarray | None] = {}
        self._slower_by_size: dict[int, np.ndarray] = {}
        self._others: dict[int, Samples] = {}

    def value(self, name: str) -> float | None:
        """The row's figure `name`, comparable with the other rows'."""
        if name == "quality" and self.placed is not None:
            return self.placed[0]
        found = self.row[FIGURES[name].column]
        return None if found is None else float(found)

    def draws(self, name: str) -> np.ndarray | None:
        """(DRAWS,) bootstrap values of the figure; None where there is nothing to resample (memory,
        energy of one round), so that its value stands for all draws. Of a searched rate, values
        anywhere between the rate that held and the one that missed.

        Examples are drawn as pairs (one seed for all rows), and so are rounds; requests and batches
        within them per row, of requests as many as they are worth independent ones.
        """
        if name not in self._drawn:
            self._drawn[name] = self._draw(name)
        return self._drawn[name]

    def apart(self, number: int) -> Samples:
        """The same row with draws of its own, for what shares no round with it: `number` tells one
        such row from another; 0 is the row itself. Made once."""
        if number and number not in self._others:
            made = copy.copy(self)
            made._seed = self._seed + number * _APART
            made._drawn, made._slower_by_size, made._others = {}, {}, {}
            self._others[number] = made
        return self._others[number] if number else self

    def units(self, name: str) -> float:
        """How many independent things the draws of a figure rest on: rounds where there are
        several, else batches or (what they are worth) requests."""
        measured, quantile = self.record.measurements, FIGURES[name].quantile
        if quantile is not None:
            rounds = len(self.latencies)
            return rounds if rounds > 1 else sum(effective_n(v, quantile) for v in self.latencies)
        if name == "energy":
            return len(measured.energy.rounds or []) if measured.energy else 0
        throughput = measured.throughput
        if throughput is None or throughput.best_batch_size is None:
            return 0
        rate = throughput.by_batch_size[str(throughput.best_batch_size)]
        return len(rate.rounds) if rate.rounds and len(rate.rounds) > 1 else len(rate.batch_s)

    def tells(self, name: str) -> bool:
        """Whether the sample of the figure is large enough to show how far it may be off."""
        if name == "rate":
            # Where nothing missed, the rate may be any above the one that held.
            return self.row["held_rate_per_s"] is None or self.row["missed_rate_per_s"] is not None
        quantile = FIGURES[name].quantile
        if quantile is None:
            return True
        return sum(effective_n(values, quantile) for values in self.latencies) >= FEW_REQUESTS

    def within(self, slo: Slo) -> Within | None:
        """The row's latencies against an objective; None where there are none to judge."""
        if not self.latencies:
            return None
        return share_within(np.concatenate(list(self.latencies)), slo.limit_s, slo.quantile)

    @property
    def higher_is_better(self) -> bool | None:
        """Of the quality; None where nobody said."""
        return True if self.quality is None else self.quality.higher_is_better

    def _draw(self, name: str) -> np.ndarray | None:
        figure = FIGURES[name]
        if self.value(name) is None:
            return None
        if name == "quality":
            return self._quality()
        if figure.quantile is not None:
            return self._percentile(figure.quantile)
        if name == "value":
            return self._value()
        if name == "net":
            return self._net()
        if name == "energy":
            return self._energy()
        if name == "rate":
            return self._between()
        throughput = self.record.measurements.throughput
        if name not in ("cost", "throughput") or not throughput or not throughput.best_batch_size:
            return None
        slower = self._slower(throughput.best_batch_size)
        value = self.row[figure.column]
        return value * slower if name == "cost" else value / slower

    def _quality(self) -> np.ndarray | None:
        if self.placed is not None:
            return self.placed[1]
        if isinstance(self.quality, Computed):
            draws = self.quality.score.draws
            return np.array(draws[:DRAWS]) if len(draws) >= DRAWS else None
        return None if self.quality is None else quality_draws(self.quality, self._seed, DRAWS)

    def _percentile(self, q: float) -> np.ndarray | None:
        rounds = list(self.latencies)
        if not rounds:
            return None
        # As many as they are worth: each draw of dependent requests would vary too little.
        sizes = [max(round(effective_n(values, q)), 1) for values in rounds]
        if len(rounds) > 1:
            return round_draws(
                rounds, lambda drawn: _quantile(drawn, q), DRAWS, self._seed, self._own_seed, sizes
            )
        (one,), (size,) = rounds, sizes
        index = np.random.default_rng(self._own_seed).integers(0, len(one), (DRAWS, size))
        return np.quantile(one[index], q, axis=1, method=_method(q))

    def _slower(self, size: int) -> np.ndarray:
        """(DRAWS,) times as long as measured that a batch of `size` takes; cost, throughput and
        value rest on the same."""
        if size not in self._slower_by_size:
            self._slower_by_size[size] = self._draw_slower(size)
        return self._slower_by_size[size]

    def _draw_slower(self, size: int) -> np.ndarray:
        throughput = self.record.measurements.throughput
        assert throughput is not None
        batches = batches_by_round(throughput.by_batch_size[str(size)])
        if len(batches) > 1:
            drawn = round_draws(batches, _middle_rate, DRAWS, self._seed, self._own_seed)
            return _middle_rate(batches) / drawn
        (seconds,) = batches
        counts = resample_counts(len(seconds), DRAWS, self._own_seed)
        return np.asarray(counts @ seconds / seconds.sum())

    def _between(self) -> np.ndarray | None:
        """Of a searched rate: in equal steps of its logarithm, as the ladder of rates has them."""
        held, missed = self.row["held_rate_per_s"], self.row["missed_rate_per_s"]
        if missed is None:
            return None
        places = np.random.default_rng([self._own_seed, 1]).random(DRAWS)
        return np.asarray(held * (missed / held) ** places)

    def _energy(self) -> np.ndarray | None:
        """Of a round only its sum is known, so rounds alone are drawn."""
        energy = self.record.measurements.energy
        if not energy or not energy.rounds or len(energy.rounds) < 2:
            return None
        rounds = energy.rounds

        def drawn(places: Sequence[np.ndarray]) -> float:
            chosen = [rounds[int(k)] for k in np.concatenate(list(places))]
            return sum(r.energy_j for r in chosen) / sum(r.requests for r in chosen)

        each = [np.array([k]) for k in range(len(rounds))]
        return round_draws(each, drawn, DRAWS, self._seed, self._seed)

    def _value(self) -> np.ndarray | None:
        """Of `value_per_usd`: the draws of the quality, where that is a share, times those of the
        rate."""
        value = self.row["value_per_usd"]
        rate = self._rate()
        if not self.quality or not self.quality.is_share:
            return None if rate is None else value * rate
        quality, known = self.draws("quality"), self.row["quality"]
        if quality is None or not known:
            return None
        own = quality / known if self.placed is None else quality / self.placed[0]
        return value * own * (1.0 if rate is None else rate)

    @property
    def share(self) -> float | None:
        """The share of right results, comparable with the other rows'; None where the quality is no
        share."""
        if self.quality is None or not self.quality.is_share:
            return None
        return self.value("quality")

    def gain_per_1k(self, share: Any) -> Any:
        """Dollars that 1,000 requests bring, and their errors cost, at this share of right results
        or (n,) of them."""
        worth, harm = self.row["usd_per_correct"] or 0.0, self.row["usd_per_error"] or 0.0
        return 1000 * (share * worth - (1 - share) * harm)

    def _net(self) -> np.ndarray | None:
        """Of the net dollars: the draws of the share of right results, and those of the rate that
        the cost rests on."""
        quality, rate, share = self._quality(), self._rate(), self.share
        if share is None:
            return None
        cost = self.gain_per_1k(share) - self.row["net_usd_per_1k_requests"]
        drawn = np.full(DRAWS, share) if quality is None else quality
        slowed = np.ones(DRAWS) if rate is None else rate
        net = self.gain_per_1k(drawn) - cost / np.where(slowed > 0, slowed, 1.0)
        return np.where(slowed > 0, net, NO_NET)

    def _rate(self) -> np.ndarray | None:
        """(DRAWS,) of the rate within the objective, as a multiple of the measured one."""
        if self.value_size is not None:
            return 1 / self._slower(self.value_size)
        if self.slo is None:
            return None
        found = self.within(self.slo)
        if self.value_latencies is not None:
            found = share_within(self.value_latencies, self.slo.limit_s, self.slo.quantile)
        if found is None or not found.share:
            return None
        size = max(round(found.n_eff), 1)
        shares = np.random.default_rng(self._own_seed).binomial(size, found.share, DRAWS) / size
        return np.where(shares >= self.slo.quantile, shares / found.share, 0.0)

    @property
    def _own_seed(self) -> int:
        return (int(self.record.cell_id[:8], 16) + self._seed) % 2**32


def sample(ok: list[Entry], seed: int) -> None:
    """Give the rows of a group what their figures rest on."""
    for entry in ok:
        entry.samples = Samples(entry, seed)
    references = [e for e in ok if is_reference(e)]
    for entry in ok:
        base = entry if is_reference(entry) else reference_of(entry, references)
        assert entry.samples is not None
        entry.samples.reference = base.samples if base is not None else None


def placed_beside(entry: Entry) -> tuple[float, np.ndarray] | None:
    """Where a row that was scored on fewer examples than its reference stands beside it."""
    base = entry.base
    if base is None:
        return None
    assert isinstance(base.quality, Quality)
    assert isinstance(entry.quality, Quality)
    if len(entry.quality) >= len(base.quality):
        return None
    value, delta, seed = base.row["quality"], entry.row["quality_delta"], entry.record.cell.seed
    return placed(base.quality, entry.quality, value, delta, seed, DRAWS)


def _method(q: float) -> Literal["linear", "inverted_cdf"]:
    """As `stats.percentile`: a tail is a value that was measured."""
    return "linear" if q <= 0.5 else "inverted_cdf"


def _quantile(rounds: Sequence[np.ndarray], q: float) -> float:
    """Over all requests, as the table shows it."""
    return float(np.quantile(np.concatenate(list(rounds)), q, method=_method(q)))


def _middle_rate(rounds: Sequence[np.ndarray]) -> float:
    """The median of the rounds' batches per second, which the table's rate rests on."""
    return float(np.median([len(seconds) / seconds.sum() for seconds in rounds]))
