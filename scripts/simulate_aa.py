"""A/A: how often a format that is no different from the reference is called different.

First 1,000 simulated pairs: both models are right equally often, and a share of the examples flips
between them, as seen on the bundled tasks. A true 5 % test calls at most 71 of them different (the
99.9 % point of a binomial count of 1,000 at 5 %). Then 20 real pairs: one model in the reference's
format scores the same examples in two orders and batch plans; at most 3 may come out different (the
98 % point of a count of 20 at 5 %). "Different" is the report's rule: exact McNemar, p < 0.05.

    python scripts/simulate_aa.py
    python scripts/simulate_aa.py --real    # the demo model on 300 examples
    python scripts/simulate_aa.py --real --model smollm2-135m --task sentiment-choice
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from precision_explorer import stats
from precision_explorer.stats import flips, mcnemar_exact

PAIRS, MOST_DIFFERENT = 1000, 71
REAL_PAIRS, MOST_REAL_DIFFERENT = 20, 3
LEVEL = 0.05
# Shares of examples that flip, both ways together, and examples: int8 on the demo model, int8 on
# SmolLM2, and LLM.int8() on MMLU as published (arXiv 2407.09141: 2.5 to 4.2 %), at its size.
SIMULATED = ((0.004, 2063), (0.03, 1285), (0.042, 14042), (0.2, 2063))
# Rows and padded tokens of a batch, from one at a time to more than the CPU's plan takes.
PLANS = ((1, 256), (4, 512), (16, 1024), (32, 2048), (64, 4096))


def is_different(reference: list[float], other: list[float]) -> bool:
    """The report's rule for 0/1 scores of the same examples in the same order, of one task and
    without a noise floor, which would only lower the share."""
    worse, better = flips(reference, other)
    delta = (better - worse) / len(reference)
    return stats.is_different(mcnemar_exact(worse, better), worse + better, delta, None, LEVEL)


def simulated_pair(share: float, n: int, generator: np.random.Generator) -> bool:
    """Whether two models that flip on `share` of `n` examples, either way alike, are different."""
    reference = (generator.random(n) < 0.8).astype(float)
    draw = generator.random(n)
    # Each way half of `share`, taken from those that can flip that way.
    drop = (reference == 1) & (draw < share / 2 / 0.8)
    gain = (reference == 0) & (draw < share / 2 / 0.2)
    other = np.where(drop, 0.0, np.where(gain, 1.0, reference))
    return is_different(reference.tolist(), other.tolist())


def simulate(share: float, n: int, pairs: int, seed: int) -> int:
    """How many of `pairs` simulated pairs come out different."""
    generator = np.random.default_rng(seed)
    return sum(simulated_pair(share, n, generator) for _ in range(pairs))


def neighbours(lengths: list[int], seed: int, rows: int, tokens: int) -> list[list[int]]:
    """Indices of `lengths` in a seeded order, cut into batches of at most `rows` rows and `tokens`
    padded tokens."""
    batches: list[list[int]] = [[]]
    longest = 0
    for index in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        longer = max(longest, lengths[index])
        if batches[-1] and (len(batches[-1]) >= rows or longer * (len(batches[-1]) + 1) > tokens):
            batches.append([])
            longer = lengths[index]
        batches[-1].append(index)
        longest = longer
    return batches


def real_passes(
    model_name: str, task_name: str, limit: int, dtype: str
) -> Iterator[dict[str, Any]]:
    """One model's 0/1 scores in one order of examples: first under the sweep's own batch plan, then
    under `REAL_PAIRS` others, each with an order of its own. `moved`: the largest change of an
    example's loss, in nats."""
    import torch

    from precision_explorer.models import resolve
    from precision_explorer.models.adapter import plan_batches
    from precision_explorer.models.adapters import make_adapter
    from precision_explorer.models.loading import load, prepare
    from precision_explorer.plan.batches import batch_plan
    from precision_explorer.tasks import KINDS, check_labels, load_card
    from precision_explorer.tasks import prepare as prepare_task

    ref, task = resolve(model_name), prepare_task(load_card(task_name), limit, 0)
    card, labels = task.card, None
    if KINDS[card.kind].head == "sequence-classification":
        labels = check_labels(card, task.examples, ref.id2label)
    request = {
        "card": {"kind": card.kind, "metrics": card.metrics, "max_length": card.max_length},
        "examples": task.examples,
        "label_ids": labels,
    }
    tokenizer = prepare(ref.path, card.kind, False)
    model = load(ref.path, card.kind, getattr(torch, dtype), "cpu", False)
    adapter = make_adapter(model, tokenizer, "cpu", request)
    items = adapter.items()
    own = batch_plan("cpu")
    lengths = [len(item.ids) for item in items]
    orders = [plan_batches(lengths, own["max_tokens"], own["max_items"])]
    orders += [neighbours(lengths, k, *PLANS[k % len(PLANS)]) for k in range(REAL_PAIRS)]
    first = None
    for batches in orders:
        answers: list[Any] = [None] * len(items)
        with torch.inference_mode():
            for batch in batches:
                scored = adapter.score([items[i] for i in batch])
                for index, answer in zip(batch, scored, strict=True):
                    answers[index] = answer
        rows = adapter.rows(items, answers)
        losses = np.array([row["loss"] for row in rows])
        first = losses if first is None else first
        yield {
            "scores": [row["score"] for row in rows],
            "moved": float(np.abs(losses - first).max()),
            "batches": len(batches),
        }


def real(model: str, task: str, limit: int, dtype: str) -> bool:
    """Print the real pairs; whether no more than `MOST_REAL_DIFFERENT` came out different."""
    passes = real_passes(model, task, limit, dtype)
    first = next(passes)
    n = len(first["scores"])
    print(f"\n{model} on {task}, {dtype}, {n} examples, against its own batch plan:")
    print(f"{'order':>6}{'rows':>6}{'batches':>9}{'flips':>7}{'p':>8}{'moved (nats)':>14}")
    different = 0
    for k, one in enumerate(passes):
        b, c = flips(first["scores"], one["scores"])
        different += is_different(first["scores"], one["scores"])
        print(
            f"{k:6}{PLANS[k % len(PLANS)][0]:6}{one['batches']:9}{b + c:7}"
            f"{mcnemar_exact(b, c):8.3f}{one['moved']:14.2g}",
            flush=True,
        )
    print(f"different: {different} of {REAL_PAIRS} (at most {MOST_REAL_DIFFERENT})")
    return different <= MOST_REAL_DIFFERENT


def main() -> int:
    """Print both; 1 if one of them calls too many pairs different."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="also score a model 21 times")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--task", default="sentiment")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    given = parser.parse_args()
    sound = True
    print(f"{'flips':>7}{'n':>8}{'different':>11} of {given.pairs} simulated pairs")
    for share, n in SIMULATED:
        found = simulate(share, n, given.pairs, given.seed)
        print(f"{share:7.1%}{n:8}{found:11}")
        sound = sound and found <= MOST_DIFFERENT * given.pairs / PAIRS
    if given.real:
        sound = real(given.model, given.task, given.limit, given.dtype) and sound
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
