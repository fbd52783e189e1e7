"""Print how long the probability of being on the Pareto front takes for a large table.

By default 10,000 cells with 5 objectives and 1,000 draws, on one core, against an aim of 10 s. Two
tables: cells without a pattern (values independent of each other), and cells that trade one
objective for another, of which several thousand are on the front of every draw. The draws are made
in blocks, so that memory stays bounded; making them is timed apart.

    .venv/bin/python scripts/bench_pareto.py [--cells 10000] [--objectives 5] [--draws 1000]
"""

from __future__ import annotations

import argparse
import os

# Read when numpy is imported.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import resource
import time
from collections.abc import Iterator

import numpy as np

from precision_explorer.pareto import front_probability

AIM_S = 10.0
BLOCK = 20
# Of the spread of the cells: what a resample moves a cell by.
NOISE = 0.02


def independent(rng: np.random.Generator, cells: int, objectives: int) -> np.ndarray:
    """Values of which none foretells another."""
    return rng.random((cells, objectives))


def traded(rng: np.random.Generator, cells: int, objectives: int) -> np.ndarray:
    """Cells near a sphere: who is better in one objective is worse in others."""
    values = np.abs(rng.normal(size=(cells, objectives)))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values * rng.random((cells, 1)) ** 0.2


def measure(truth: np.ndarray, draws: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """(CPU seconds of the probability, of making the draws, mean cells on the front)."""
    spread = NOISE * truth.std(axis=0)
    making = 0.0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal making
        for start in range(0, draws, BLOCK):
            begun = time.process_time()
            size = min(BLOCK, draws - start)
            block = truth + spread * rng.standard_normal((size, *truth.shape))
            making += time.process_time() - begun
            yield block

    begun = time.process_time()
    probability = front_probability(blocks(), [True] * truth.shape[1])
    return time.process_time() - begun - making, making, float(probability.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("cells", 10_000), ("objectives", 5), ("draws", 1_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    print(f"{asked.cells:,} cells, {asked.objectives} objectives, {asked.draws:,} draws; one core")
    for make in (independent, traded):
        rng = np.random.default_rng(0)
        took, making, on = measure(make(rng, asked.cells, asked.objectives), asked.draws, rng)
        print(
            f"{make.__name__:12} {took:6.1f} s of CPU time (aim {AIM_S:.0f} s), draws made in "
            f"{making:.1f} s; {on:,.0f} cells on the front of a draw"
        )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"largest memory {peak_mb:,.0f} MB")


if __name__ == "__main__":
    main()
