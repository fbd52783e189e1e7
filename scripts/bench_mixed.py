"""Is a recipe better than chance? A found recipe beside random ones of equal bytes, and beside its
formats on the whole model, all on held-out text.

    python scripts/bench_mixed.py recipe.yaml --model smollm2-135m --task news-perplexity

The random recipes deal the recipe's formats anew among layers that take the same bytes in each
format, so that their bytes are exactly the recipe's. KL is the mean KL(reference || recipe) of the
next-token distribution in nats, nll the mean negative log-likelihood of the token that came, both
over the first `--tokens` tokens of the task's test data. Prints a table, the recipe's rank among
the random ones, and whether it is on the front with the whole-model formats.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from precision_explorer.errors import PrecisionExplorerError
from precision_explorer.formats.partly import held_in, stored_bytes
from precision_explorer.formats.recipe import Recipe, read_recipe
from precision_explorer.formats.verify import census
from precision_explorer.hardware import device_facts, library_versions, resolve_device
from precision_explorer.models import resolve
from precision_explorer.models.replay import kl_nats
from precision_explorer.runner.manager import prepare_environment
from precision_explorer.runner.probe import probe
from precision_explorer.runner.sensitivity import Bench
from precision_explorer.tasks import load_card, prepare
from precision_explorer.units import bytes_

Layers = dict[str, list[str]]


@dataclass(frozen=True)
class Row:
    """One assignment on the held-out text."""

    name: str
    weight_bytes: int
    kl_nats: float
    nll_nats: float


def bench_of(recipe: Recipe, given: argparse.Namespace) -> Bench:
    """The base model on the first tokens of the task's test data."""
    facts = device_facts(resolve_device(given.device))
    threads = given.threads or facts.cores
    prepare_environment(threads)
    torch.set_num_threads(threads)
    ref, task = resolve(given.model), prepare(load_card(given.task), None, given.seed)
    formats = list(recipe.formats)
    supports = probe(facts, formats, library_versions(), threads, lambda event: None)
    return Bench(
        {
            "device": facts.device,
            "facts": facts.model_dump(mode="json"),
            "path": str(ref.path),
            "trust_remote_code": False,
            "card": {"kind": task.card.kind, "max_length": task.card.max_length},
            "examples": task.examples,
            "tokens": given.tokens,
            "window": 256,
            "base": recipe.base,
            "base_recipe": supports[recipe.base].recipe,
            "formats": {name: supports[name].recipe for name in recipe.converted},
        }
    )


def measured(bench: Bench, name: str, layers: Layers) -> Row:
    """`layers` held in their formats, on all passes."""
    held = {format_id: names for format_id, names in layers.items() if names}
    losses, nlls = [], []
    with held_in(bench.model, bench.plan, held, bench.recipes):
        size = census(bench.model).weight_bytes
        scored = bench.replay.run([name for names in held.values() for name in names])
        for index, scores in enumerate(scored):
            losses.append(kl_nats(bench.replay.reference[index], scores))
            tokens = torch.tensor(bench.tokens_of(index), device=scores.device)
            nll = -scores.float().log_softmax(-1).gather(-1, tokens[:, None])
            nlls.append(nll.squeeze(-1).double())
    row = Row(name, size, float(torch.cat(losses).mean()), float(torch.cat(nlls).mean()))
    print(f"{name:24}{row.weight_bytes:>12,}{row.kl_nats:>12.5f}{row.nll_nats:>10.5f}", flush=True)
    return row


def classes_of(bench: Bench, formats: list[str]) -> dict[str, tuple[int, ...]]:
    """{layer: its bytes in each format}: layers alike in all of them are exchanged."""
    sizes: dict[str, list[int]] = {name: [] for name in bench.plan.targets}
    sizes_as_they_are = {name: stored_bytes(bench.model, name) for name in sizes}
    for format_id in formats:
        with held_in(bench.model, bench.plan, {format_id: list(sizes)}, bench.recipes):
            for name, found in sizes.items():
                found.append(stored_bytes(bench.model, name))
    return {name: (sizes_as_they_are[name], *found) for name, found in sizes.items()}


def shuffled(recipe: Recipe, classes: dict[str, tuple[int, ...]], seed: int) -> Layers:
    """The recipe's formats dealt anew within each class of layers."""
    generator = random.Random(seed)
    own = {name: f for f, names in recipe.converted.items() for name in names}
    members: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, size in classes.items():
        members[size].append(name)
    layers: Layers = {format_id: [] for format_id in recipe.converted}
    for names in members.values():
        dealt = [own.get(name) for name in names]
        generator.shuffle(dealt)
        for name, format_id in zip(names, dealt, strict=True):
            if format_id is not None:
                layers[format_id].append(name)
    return layers


def on_front(rows: list[Row], name: str, loss: str) -> bool:
    """Whether no other row has at most the bytes and the loss, and less of one."""
    (own,) = [row for row in rows if row.name == name]
    here = (own.weight_bytes, getattr(own, loss))
    others = [(row.weight_bytes, getattr(row, loss)) for row in rows if row is not own]
    return not any(a <= here[0] and b <= here[1] and (a, b) != here for a, b in others)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="news-perplexity")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the rows there too")
    given = parser.parse_args()
    recipe = read_recipe(given.recipe)
    with torch.inference_mode():
        bench = bench_of(recipe, given)
        print(f"{bench.tokens} held-out tokens of {given.task}")
        print(f"{'assignment':24}{'bytes':>12}{'KL, nats':>12}{'nll':>10}")
        classes = classes_of(bench, list(recipe.converted))
        whole = [measured(bench, recipe.base, {})]
        whole += [
            measured(bench, name, {name: list(bench.plan.targets)}) for name in recipe.converted
        ]
        found = measured(bench, "recipe", recipe.converted)
        dealt = [
            measured(bench, f"random {i + 1}", shuffled(recipe, classes, given.seed + i))
            for i in range(given.random)
        ]
    report(found, dealt, whole)
    if given.json:
        rows = [vars(row) for row in (*whole, found, *dealt)]
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf8")


def report(found: Row, dealt: list[Row], whole: list[Row]) -> None:
    """The recipe's rank, the random ones' median, and the front."""
    apart = max((abs(row.weight_bytes / found.weight_bytes - 1) for row in dealt), default=0.0)
    size = bytes_(found.weight_bytes)
    print(f"random recipes: bytes within {100 * apart:.4f} % of the recipe's {size}")
    for loss, words in (("kl_nats", "KL"), ("nll_nats", "nll")):
        values = [getattr(row, loss) for row in dealt]
        own = getattr(found, loss)
        rank = 1 + sum(value < own for value in values)
        print(
            f"{words}: recipe {own:.5f}, rank {rank} of {len(values) + 1}; random: best "
            f"{min(values):.5f}, median {median(values):.5f}, worst {max(values):.5f}"
        )
        print(
            f"{words} against bytes: the recipe is "
            f"{'' if on_front([*whole, found], found.name, loss) else 'not '}on the front with "
            f"{', '.join(row.name for row in whole)}"
        )


if __name__ == "__main__":
    try:
        main()
    except PrecisionExplorerError as error:
        sys.exit(f"error: {error}")
