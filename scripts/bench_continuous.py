"""Continuous batching against static batches: the same requests on one loaded model, all at hand,
in turns.

    python scripts/bench_continuous.py [--model smollm2-135m] [--requests 24] [--max-batch 8] ...

Prints per kind of lengths the requests per second of both, the ratio continuous / static, and the
smallest and largest ratio of a turn. `--clock cpu` (the default) counts this process's processor
time, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from precision_explorer.models import resolve
from precision_explorer.models.causal_lm import LanguageModeling
from precision_explorer.models.loading import load, prepare
from precision_explorer.runner.continuous import stepping
from precision_explorer.tasks import load_card
from precision_explorer.tasks import prepare as prepare_task
from precision_explorer.workload import Lengths, Schedule, Workload, plan_schedule

CASES: dict[str, dict[str, Any]] = {
    "64 in, 8 out": {
        "input": {"kind": "fixed", "tokens": 64},
        "output": {"kind": "fixed", "tokens": 8},
    },
    "128 in, 16 out": {
        "input": {"kind": "fixed", "tokens": 128},
        "output": {"kind": "fixed", "tokens": 16},
    },
    # An eighth of the preset `chat`.
    "lognormal, median 128 in, 16 out": {
        "input": {"kind": "lognormal", "median": 128, "p99": 518, "max": 1024},
        "output": {"kind": "lognormal", "median": 16, "p99": 75, "max": 128},
    },
    "32 in, lognormal, median 64 out": {
        "input": {"kind": "fixed", "tokens": 32},
        "output": {"kind": "lognormal", "median": 64, "p99": 300, "max": 512},
    },
}


def static(adapter: LanguageModeling, plan: Schedule, max_batch: int) -> None:
    """Batches of `max_batch`, each to its longest answer."""
    asked = [plan.items.tolist(), plan.input_tokens.tolist(), plan.output_tokens.tolist()]  # type: ignore[union-attr]
    for first in range(0, plan.n, max_batch):
        indices, made_of, made = (values[first : first + max_batch] for values in asked)
        adapter.serve_batch(indices, made_of, made)


def continuous(adapter: LanguageModeling, plan: Schedule, max_batch: int) -> None:
    """Each joins as soon as another is done."""
    with stepping(adapter, plan, max_batch) as stepper:
        joined = done = 0
        while done < plan.n:
            while joined < min(plan.n, done + max_batch):
                stepper.join(joined)
                joined += 1
            done += len(stepper.step().finished)


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.clock == "cpu" else time.perf_counter
    path = resolve(asked.model).path
    model = load(path, "language-modeling", torch.float32, "cpu", False)
    tokenizer = prepare(path, "language-modeling", False)
    task = prepare_task(load_card("news-perplexity"), limit=asked.requests, seed=0)
    adapter = LanguageModeling(
        model, tokenizer, "cpu", task.examples, {"max_length": 1024},
        prompt_tokens=128, output_tokens=16,
    )  # fmt: skip
    print(f"{asked.requests} requests, at most {asked.max_batch} at once, {asked.threads} threads")
    for name, lengths in CASES.items():
        rules = Workload(lengths=None).model_copy(update={"lengths": Lengths(**lengths)})
        plan = plan_schedule(rules, len(task.examples), 0, n=asked.requests)
        seconds: dict[Callable[..., None], list[float]] = {static: [], continuous: []}
        with torch.inference_mode():
            for turn in range(asked.repeats + 1):
                for serve, found in seconds.items():
                    begun = clock()
                    serve(adapter, plan, asked.max_batch)
                    if turn:  # The first one warms up.
                        found.append(clock() - begun)
        ratios = [s / c for s, c in zip(*seconds.values(), strict=True)]
        both = [plan.n / median(found) for found in seconds.values()]
        print(
            f"{name}: static {both[0]:.3g} /s, continuous {both[1]:.3g} /s, "
            f"ratio {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
            flush=True,
        )


if __name__ == "__main__":
    main()
