"""Simulate `--until-decided`: how often its verdict is wrong, and how many examples it takes.

Each scenario draws examples of a task as the format and the reference would score them, and decides
as a sweep does. Rates of flips are those seen on the bundled tasks: 0 to 0.4 % of the examples for
the demo model (results/demo-sentiment-cpu), some per cent for int8 on SmolLM2. A verdict is wrong
that says `within` of a format whose true loss is the budget or more, or `outside` of one whose true
loss is the budget or less; each side is held to 5 %, so on the margin itself, where both are wrong,
the more frequent one counts. The fixed plan is the task's own number of examples, all of which a
sweep without the option scores.

Prints a table; fails where more than 5 % of the verdicts are wrong, or where a clear difference
does not save two thirds of the examples. For comparison, `naive` is Tango's fixed-n test repeated
at the same looks until it says something.

    python scripts/simulate_until_decided.py --runs 1000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from precision_explorer.stats import (
    Verdict,
    resample_counts,
    sequential,
    verdict_for_bootstrap,
    verdict_for_share,
)
from precision_explorer.stats.sequential import SequentialVerdict
from precision_explorer.table.quality import Quality
from precision_explorer.table.sequential import decide

BUDGET = 0.01
MOST_WRONG = 0.05
LEAST_SAVING = 3.0


@lru_cache(maxsize=4)
def resampled(n: int) -> np.ndarray:
    """(1000, n) counts of a bootstrap, the same in every run."""
    return resample_counts(n, 1000, 0).astype(float)


def at_looks(
    wealth: tuple[np.ndarray, np.ndarray], at_the_end: Callable[[float], Verdict]
) -> SequentialVerdict:
    """The verdict from log wealth after each of all planned examples."""
    made = sequential.looks(len(wealth[0]))
    index = np.array(made) - 1
    return sequential.decide(made, wealth[0][index], wealth[1][index], made[-1], at_the_end)


@dataclass(frozen=True)
class Flips:
    """0/1 scores: shares of examples right in the reference only, and in the format only."""

    name: str
    worse: float
    better: float
    clear: bool = False
    n: int = 2063  # The bundled sentiment task.

    @property
    def loss(self) -> float:
        """The format's true loss, in points."""
        return self.worse - self.better

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """(n,) format minus reference."""
        shares = [self.worse, 1 - self.worse - self.better, self.better]
        return generator.choice([-1.0, 0.0, 1.0], p=shares, size=self.n)

    def decide(self, drawn: np.ndarray) -> SequentialVerdict:
        """As a sweep decides."""

        def at_the_end(confidence: float) -> Verdict:
            b, c = int((drawn < 0).sum()), int((drawn > 0).sum())
            return verdict_for_share(b, c, self.n, BUDGET, confidence)

        return at_looks(sequential.wealth_of_shares(drawn, -BUDGET), at_the_end)

    def naive(self, drawn: np.ndarray) -> SequentialVerdict:
        """Tango's test at every look, as if it were the only one."""
        for look, n in enumerate(sequential.looks(self.n), 1):
            b, c = int((drawn[:n] < 0).sum()), int((drawn[:n] > 0).sum())
            found = verdict_for_share(b, c, n, BUDGET)
            if found.verdict != "cannot-tell":
                return SequentialVerdict(found.verdict, n, look)
        return SequentialVerdict("cannot-tell", self.n, look)


@dataclass(frozen=True)
class Losses:
    """A language model's loss per document: the format's is `loss` higher, and moves by `noise` of
    itself from document to document (Student's t with 3 degrees of freedom)."""

    name: str
    loss: float
    noise: float
    clear: bool = False
    n: int = 498  # The bundled news-perplexity task.

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """(n,) what each document leaves of the budget, in nats; lengths are log-normal."""
        tokens = np.exp(generator.normal(5, 0.8, self.n))
        reference = tokens * generator.normal(3.5, 0.4, self.n)
        noise = self.noise * generator.standard_t(3, self.n)
        return (1 + BUDGET) * reference - reference * (1 + self.loss + noise)

    def decide(self, drawn: np.ndarray) -> SequentialVerdict:
        """As a sweep decides."""

        def at_the_end(confidence: float) -> Verdict:
            left = resampled(self.n) @ drawn / self.n
            return verdict_for_bootstrap(left - BUDGET, BUDGET, self.n, confidence)

        return at_looks(sequential.wealth_of_values(drawn, BUDGET), at_the_end)

    naive = None


@dataclass(frozen=True)
class Classes:
    """Macro F1 over three classes of 60, 30 and 10 %, nine tenths of which the reference finds: a
    metric that is no sum over examples, decided by its influence values. In the format as many
    predictions are replaced by any class as makes it lose `loss` points."""

    name: str
    loss: float
    clear: bool = False
    n: int = 1000

    def draw(self, generator: np.random.Generator) -> tuple[Quality, Quality]:
        """The reference's rows and the format's."""
        target = generator.choice(3, p=_SHARES, size=self.n)
        wrong = (target + generator.integers(1, 3, self.n)) % 3
        reference = np.where(generator.random(self.n) < _FOUND, target, wrong)
        moved = generator.random(self.n) < _moved(self.loss)
        other = np.where(moved, generator.integers(0, 3, self.n), reference)
        ids, targets = list(range(self.n)), target.astype(str).tolist()
        pair = [
            {"id": ids, "target": targets, "prediction": p.astype(str).tolist()}
            for p in (reference, other)
        ]
        return Quality.of("macro_f1", pair[0]), Quality.of("macro_f1", pair[1])

    def decide(self, drawn: tuple[Quality, Quality]) -> SequentialVerdict:
        """As a sweep decides."""
        return decide(*drawn, BUDGET, self.n, 0)

    naive = None


_SHARES = np.array([0.6, 0.3, 0.1])
_FOUND = 0.9


def _macro_f1(moved: float) -> float:
    """Of all examples there could be, where `moved` of the predictions are any class."""
    found = np.where(np.eye(3) > 0, _FOUND, (1 - _FOUND) / 2) * _SHARES[:, None]
    joint = (1 - moved) * found + moved * _SHARES[:, None] / 3
    return float((2 * np.diag(joint) / (joint.sum(0) + _SHARES)).mean())


@lru_cache(maxsize=8)
def _moved(loss: float) -> float:
    """The share of replaced predictions that loses `loss`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _macro_f1(0) - _macro_f1(middle) < loss:
            low = middle
        else:
            high = middle
    return low


Scenario = Flips | Losses | Classes
SCENARIOS: tuple[Scenario, ...] = (
    Flips("no flip", 0.0, 0.0, clear=True),
    Flips("0.1 % flip, none lost", 0.0005, 0.0005, clear=True),
    Flips("0.4 % flip, none lost", 0.002, 0.002),
    Flips("4 % flip, none lost", 0.02, 0.02),
    Flips("0.4 % flip, gains 0.1 points", 0.0015, 0.0025),
    Flips("loses 0.5 points", 0.01, 0.005),
    Flips("on the margin, 1 % flip", 0.01, 0.0),
    Flips("on the margin, 2 % flip", 0.015, 0.005),
    Flips("on the margin, 9 % flip", 0.05, 0.04),
    Flips("on the margin, 9 % flip, 200 examples", 0.05, 0.04, n=200),
    Flips("loses 1.5 points", 0.02, 0.005),
    Flips("loses 5 points, 7 % flip", 0.06, 0.01, clear=True),
    Flips("loses 10 points, 14 % flip", 0.12, 0.02, clear=True),
    Losses("losses 0.1 % higher", 0.001, 0.005, clear=True),
    Losses("losses 0.5 % higher", 0.005, 0.01),
    Losses("losses on the margin", 0.01, 0.005),
    Losses("losses on the margin, noisy", 0.01, 0.03),
    Losses("losses on the margin, 2,000 documents", 0.01, 0.01, n=2000),
    Losses("losses 2 % higher", 0.02, 0.005, clear=True),
    Losses("losses 5 % higher, noisy", 0.05, 0.03, clear=True),
    Classes("macro F1 on the margin", 0.01),
    Classes("macro F1 on the margin, 300 examples", 0.01, n=300),
    Classes("macro F1 loses 10 points", 0.1, clear=True),
)


@dataclass(frozen=True)
class Result:
    """Shares of runs, and the mean number of examples over all of them; `wrong` is of one side."""

    wrong: float
    decided: float
    examples: float


def simulate(
    scenario: Scenario,
    runs: int,
    seed: int,
    rule: Callable[[Any], SequentialVerdict] | None = None,
) -> Result:
    """`runs` runs of `scenario`, decided by `rule` (the sweep's)."""
    generator = np.random.default_rng(seed)
    found = [(rule or scenario.decide)(scenario.draw(generator)) for _ in range(runs)]
    distance = scenario.loss - BUDGET
    within = sum(f.verdict == "within" for f in found) if distance > -1e-12 else 0
    outside = sum(f.verdict == "outside" for f in found) if distance < 1e-12 else 0
    return Result(
        wrong=max(within, outside) / runs,
        decided=sum(f.verdict != "cannot-tell" for f in found) / runs,
        examples=sum(f.n for f in found) / runs,
    )


def main() -> int:
    """Print every scenario; 1 if one of them misses its aim."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{given.runs} runs each, budget {BUDGET:.0%}; `fewer`: the task's n over the mean used")
    print(f"{'scenario':40}{'n':>6}{'wrong':>8}{'decided':>9}{'used':>7}{'fewer':>8}{'naive':>8}")
    missed = []
    for scenario in SCENARIOS:
        found = simulate(scenario, given.runs, given.seed)
        fewer = scenario.n / found.examples
        naive = ""
        if scenario.naive is not None:
            naive = f"{simulate(scenario, given.runs, given.seed, scenario.naive).wrong:.1%}"
        print(
            f"{scenario.name:40}{scenario.n:6}{found.wrong:8.1%}{found.decided:9.1%}"
            f"{found.examples:7.0f}{fewer:7.1f}x{naive:>8}"
        )
        if found.wrong > MOST_WRONG or (scenario.clear and fewer < LEAST_SAVING):
            missed.append(scenario.name)
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
