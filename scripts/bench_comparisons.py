"""What the comparisons with the reference cost on SmolLM2: by a pass of their own, and from what
was heard in the passes that score. CPU time on one thread, so that a busy machine matters less.

    .venv/bin/python scripts/bench_comparisons.py [--limit 3] [--dtype float32,bfloat16]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from precision_explorer.models.adapter import other_batches, plan_batches
from precision_explorer.models.adapters import make_adapter
from precision_explorer.models.distributions import compare, first_items, keep, narrower
from precision_explorer.models.loading import load, prepare
from precision_explorer.models.states import Heard, Passes
from precision_explorer.paths import data_dir
from precision_explorer.tasks import load_card
from precision_explorer.tasks import prepare as prepare_task

PATH = data_dir() / "models" / "smollm2-135m"
KIND = "language-modeling"
BOUNDS = (1024, 4)


def timed(name: str, positions: int, call: Callable[[], Any]) -> tuple[Any, float]:
    """What `call` gives, and its CPU seconds per 1,000 positions."""
    start = time.process_time()
    found = call()
    cost = 1000 * (time.process_time() - start) / positions
    print(f"  {name}: {cost:.2f} s per 1,000 positions", flush=True)
    return found, cost


def plan(items: Any) -> list[list[int]]:
    """Batches as a sweep makes them."""
    return narrower(plan_batches([len(i.ids) for i in items], *BOUNDS), items, 49_152)


def scored(model: Any, adapter: Any, items: Any, batches: Any) -> Heard:
    """What is heard while `items` are scored."""
    heard = Heard(model, items)
    with heard.listening(adapter.scorer):
        for batch in batches:
            adapter.score([items[i] for i in batch])
    if not heard.is_whole:
        raise SystemExit("error: nothing was heard of this model; it is not what is measured here")
    return heard


def keeping(model: Any, adapter: Any, items: Any, heard: Heard) -> Any:
    """What the reference keeps; prints what either way costs."""
    count = sum(len(item.targets) for item in items)
    passes = Passes(model, adapter)
    _, own = timed("keep, own pass", count, lambda: keep(model, passes, items, plan, PATH))
    kept, less = timed("keep, heard", count, lambda: keep(model, heard, items, plan, PATH))
    print(f"  ratio {own / less:.1f}")
    return kept


def comparing(model: Any, adapter: Any, items: Any, heard: Heard, order: Any, kept: Any) -> None:
    """Print what either way costs, and both results."""
    count = sum(len(item.targets) for item in items)

    def held(source: Any) -> Any:
        return compare(source, items, order, kept.rows, kept.head, PATH, "cpu")

    first, own = timed("compare, own pass", count, lambda: held(Passes(model, adapter)))
    second, less = timed("compare, heard", count, lambda: held(heard))
    print(f"  ratio {own / less:.1f}")
    means = [sum(row["kl"] for row in rows) / count for rows in (first, second)]
    tops = [sum(row["same_top"] for row in rows) for rows in (first, second)]
    print(f"  mean KL {means[0]:.9g} and {means[1]:.9g}; same top {tops[0]} and {tops[1]}")


@torch.inference_mode()
def main() -> None:
    """Print both ways' costs and how far their results differ, the reference first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=3)
    parser.add_argument("--dtype", default="float32,bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    words = prepare(PATH, KIND, False)
    task = prepare_task(load_card("news-perplexity"), options.limit, 0)
    request = {"card": task.card.asked(), "examples": task.examples}
    request["workload"] = {"prompt_tokens": 32, "output_tokens": 4}
    kept = None
    for name in options.dtype.split(","):
        model = load(PATH, KIND, getattr(torch, name), "cpu", False)
        adapter: Any = make_adapter(model, words, "cpu", request)
        items = first_items(adapter.items())
        batches, order = adapter.share(items, *BOUNDS, 64), plan(items)
        print(f"{name}, {sum(len(item.targets) for item in items)} positions")
        heard = scored(model, adapter, items, batches)
        if kept is None:
            kept = keeping(model, adapter, items, heard)
            heard = scored(model, adapter, items, other_batches(items, batches, 0))
            order = other_batches(items, order, 0)
        comparing(model, adapter, items, heard, order, kept)


if __name__ == "__main__":
    main()
