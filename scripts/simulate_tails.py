"""How often the 95 % interval of a percentile holds where requests depend on each other, and how
often a queue that is steady is called drifting.

Three series: independent exponential values, a Gaussian AR(1) with coefficient 0.8, and the times
in system of an M/M/1 queue at utilisation 0.7 (Lindley 1952), of which every percentile is known:
-ln(1 - q) / (1 - 0.7) mean services. `naive` counts every request as independent. `shown` is the
share of series whose percentile is printed; an interval takes a few values more. `wrong` counts
intervals that miss the truth among all series, shown or not. `chance` is the share of independent
series that look correlated. Exits with 1 where the aims below are missed.

    python scripts/simulate_tails.py            # some minutes
    python scripts/simulate_tails.py --series 1000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
from scipy.signal import lfilter
from scipy.special import ndtri

from precision_explorer.stats import assess, correlation_time, needed_n, order_interval, tail
from precision_explorer.stats.correlation import surely_correlated
from precision_explorer.stats.steady import DRIFT, mann_kendall_p, rank_sum_p, sen_slope

COEFFICIENT, UTILISATION = 0.8, 0.7
MOST_WRONG, MOST_DRIFTING, MOST_CHANCE = 0.12, 0.05, 0.02
"""Of all series: intervals that miss the truth, at n = 1,000 or more; steady queues called
drifting, at n = 300 or more (two tests at 1 % each); independent series called correlated."""
_BURN_IN = 2000

Maker = Callable[[np.random.Generator, int], np.ndarray]


def independent(generator: np.random.Generator, n: int) -> np.ndarray:
    """Exponential with mean 1."""
    return generator.exponential(1.0, n)


def autoregressive(generator: np.random.Generator, n: int) -> np.ndarray:
    """AR(1) with variance 1."""
    noise = generator.normal(size=n + _BURN_IN) * np.sqrt(1 - COEFFICIENT**2)
    return lfilter([1.0], [1.0, -COEFFICIENT], noise)[_BURN_IN:]


def queue(generator: np.random.Generator, n: int, utilisation: float = UTILISATION) -> np.ndarray:
    """Times in system of an M/M/1 queue with mean service 1."""
    gaps = generator.exponential(1 / utilisation, n + _BURN_IN)
    services = generator.exponential(1.0, n + _BURN_IN)
    walk = np.r_[0.0, np.cumsum(services[:-1] - gaps[1:])]
    return (walk - np.minimum.accumulate(walk) + services)[_BURN_IN:]


TRUTHS: dict[str, tuple[Maker, Callable[[float], float]]] = {
    "independent": (independent, lambda q: -np.log1p(-q)),
    f"AR(1) {COEFFICIENT}": (autoregressive, lambda q: float(ndtri(q))),
    f"M/M/1 {UTILISATION}": (queue, lambda q: -np.log1p(-q) / (1 - UTILISATION)),
}


def coverage(make: Maker, truth: float, n: int, q: float, series: int) -> dict[str, float]:
    """Shares over `series` series; of intervals there are, for `holds` and `naive`."""
    generator = np.random.default_rng(n)
    shown, intervals, held, naive, sizes = 0, 0, 0, [], []
    for _ in range(series):
        values = make(generator, n)
        found = tail(values, q)
        sizes.append(found.n_eff)
        shown += found.value is not None
        plain = order_interval(values, q)
        if plain is not None:
            naive.append(plain[0] <= truth <= plain[1])
        if found.low is not None and found.high is not None:
            intervals += 1
            held += found.low <= truth <= found.high
    return {
        "n_eff": float(np.median(sizes)),
        "shown": shown / series,
        "holds": held / intervals if intervals else float("nan"),
        "naive": float(np.mean(naive)) if naive else float("nan"),
        "wrong": (intervals - held) / series,
    }


def drifts_if_independent(values: np.ndarray) -> bool:
    """The tests of `assess` without their correlation, for comparison."""
    half = len(values) // 2
    matters = DRIFT * abs(np.median(values))
    step = abs(np.median(values[half:]) - np.median(values[:half]))
    if step > matters and rank_sum_p(values[:half], values[half:]) < 0.01:
        return True
    width = -(-len(values) // 200)
    means = values[: len(values) // width * width].reshape(-1, width).mean(axis=1)
    return bool(abs(sen_slope(means)) * len(means) > matters and mann_kendall_p(means) < 0.01)


def check_coverage(series: int) -> int:
    """Print the table of intervals; how many aims are missed."""
    missed = 0
    heads = ("n_eff", "shown", "holds", "naive", "wrong")
    print(f"{'series':13}{'n':>7}{'q':>7}" + "".join(f"{h:>7}" for h in heads))
    for n in (300, 1000, 3000, 20000):
        for q in (0.5, 0.9, 0.99, 0.999):
            if n < needed_n(q):
                continue
            for name, (make, truth) in TRUTHS.items():
                found = coverage(make, truth(q), n, q, series)
                missed += n >= 1000 and found["wrong"] > MOST_WRONG
                shares = "".join(f"{found[k]:7.3f}" for k in heads[1:])
                print(f"{name:13}{n:7,}{q:7}{found['n_eff']:7.0f}{shares}", flush=True)
    return missed


def check_chance(series: int) -> int:
    """Print how often independent series look correlated; how many aims are missed."""
    missed = 0
    levels = (0.5, 0.9, 0.99)
    print(f"\n{'chance':13}{'n':>7}" + "".join(f"{q:7}" for q in levels))
    for n in (30, 100, 300, 1000, 3000):
        generator = np.random.default_rng(n)
        found = np.zeros((series, len(levels)))
        for row in found:
            values = generator.random(n)
            for k, q in enumerate(levels):
                above = values > np.quantile(values, q, method="inverted_cdf")
                row[k] = surely_correlated(correlation_time(above), n)
        shares = found.mean(axis=0)
        missed += bool(shares.max() > MOST_CHANCE)
        print(f"{'independent':13}{n:7,}" + "".join(f"{s:7.3f}" for s in shares), flush=True)
    return missed


def check_drift(series: int) -> int:
    """Print how often steady series are called drifting; how many aims are missed."""
    missed = 0
    print(f"\n{'drifting':13}{'n':>7}{'found':>7}{'if independent':>16}")
    for n in (30, 100, 300, 1000, 5000, 20000):
        for rho in (0.0, 0.5, UTILISATION):
            generator = np.random.default_rng(n)
            found = plain = 0
            for _ in range(series):
                values = queue(generator, n, rho) if rho else independent(generator, n)
                found += assess(values, False).label == "drifting"
                plain += drifts_if_independent(values)
            missed += n >= 300 and found / series > MOST_DRIFTING
            name = f"M/M/1 {rho}" if rho else "independent"
            print(f"{name:13}{n:7,}{found / series:7.3f}{plain / series:16.3f}", flush=True)
    return missed


def main() -> int:
    """Print three tables; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=200)
    series = parser.parse_args().series
    missed = check_coverage(series) + check_chance(5 * series) + check_drift(series)
    print(f"\n{missed} aims missed" if missed else "\nall aims met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
