"""The quality pass against lm-evaluation-harness's `hf` backend: same loaded model, examples,
device and threads, each at its best batch size of a few, in turns.

    python scripts/bench_quality_pass.py [--model smollm2-135m] [--device cpu] [--repeats 3] ...

Prints per task the median seconds of both (tokenisation included), their ratio beside its aim, the
largest difference of a log-likelihood, and the share of the machine's float32 matrix-product rate
that each reaches: operations of the linear layers, padding included, per second, over the roof.

The harness takes its softmax in the model's type, whose sums over a large vocabulary round: some
1e-5 a token in float32. So log-likelihoods are held against those that it gives with its own option
`softmax_dtype=float64`, and the difference from the others is printed beside. Ends with 1 where one
differs by more than 1e-3 or an aim is missed. Needs lm_eval.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import nn

from precision_explorer.measure.roof import matmul_rate
from precision_explorer.models import resolve
from precision_explorer.models.adapter import Item
from precision_explorer.models.causal_lm import LanguageModeling, MultipleChoice
from precision_explorer.models.loading import load, prepare
from precision_explorer.tasks import load_card
from precision_explorer.tasks import prepare as prepare_task

TOLERANCE = 1e-3
Values = list[float]
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Case:
    """One task, its examples and what the ratio should reach."""

    name: str
    kind: str
    examples: list[dict[str, Any]]
    max_length: int
    aim: float


def one_token(count: int) -> Case:
    """`sentiment-choice` as it is: two choices of one token."""
    task = prepare_task(load_card("sentiment-choice"), limit=count, seed=0)
    return Case("one-token choices", "multiple-choice", task.examples, 256, 1.3)


def several_tokens(count: int, words: int) -> Case:
    """Which of four sentences comes next in a news article: the true one, or one of three others'
    at the same place. About `words` words of context."""
    articles = prepare_task(load_card("news-perplexity"), limit=4 * count, seed=0).examples
    split = [_split(article["text"], words) for article in articles]
    found = [pair for pair in split if pair is not None][: count + 3]
    examples = []
    for index in range(min(count, len(found))):
        others = [found[(index + k) % len(found)][1] for k in range(4)]
        label = index % 4
        choices = [*others[1 : label + 1], others[0], *others[label + 1 :]]
        prompt = found[index][0]
        examples.append({"id": f"n{index}", "prompt": prompt, "choices": choices, "label": label})
    return Case("choices of several tokens", "multiple-choice", examples, 1024, 2.0)


def _split(text: str, words: int) -> tuple[str, str] | None:
    """(the sentences of the first `words` words or a little more, the next sentence)."""
    sentences = SENTENCE_END.split(" ".join(text.split()))
    taken = 0
    for place, sentence in enumerate(sentences[:-1]):
        taken += len(sentence.split())
        if taken >= words:
            return " ".join(sentences[: place + 1]), " " + sentences[place + 1]
    return None


def few_shot(count: int, shots: int) -> Case:
    """`sentiment-choice` after `shots` solved reviews, the same for all (none is test data)."""
    card = load_card("sentiment-choice")
    path = card.path.parent / "calibration.jsonl"
    solved = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()[:shots]]
    answers = [" negative", " positive"]
    header = "".join(
        f"Review: {row['text']}\nSentiment:{answers[int(row['label'])]}\n\n" for row in solved
    )
    task = prepare_task(card, limit=count, seed=0)
    examples = [example | {"prompt": header + example["prompt"]} for example in task.examples]
    return Case("few-shot, common header", "multiple-choice", examples, 2048, 2.0)


def rolling(count: int, words: int) -> Case:
    """`news-perplexity`, articles cut to `words` words."""
    task = prepare_task(load_card("news-perplexity"), limit=count, seed=0)
    texts = [e | {"text": " ".join(e["text"].split()[:words])} for e in task.examples]
    return Case("language modeling", "language-modeling", texts, 1024, 1.0)


class Bench:
    """Both passes on one loaded model."""

    def __init__(self, path: Path, device: str) -> None:
        self.device = device
        self.model = load(path, "multiple-choice", torch.float32, device, False)
        self.tokenizer = prepare(path, "multiple-choice", False)

    def ours(self, case: Case, plan: tuple[int, int, int]) -> Values:
        """The quality pass with the batch plan of (padded tokens, rows, tokens per call)."""
        card = {"max_length": case.max_length}
        common = (self.model, self.tokenizer, self.device, case.examples, card)
        adapter: MultipleChoice | LanguageModeling
        if case.kind == "multiple-choice":
            adapter = MultipleChoice(*common)
        else:
            adapter = LanguageModeling(*common, prompt_tokens=1, output_tokens=1)
        with torch.inference_mode():
            items: list[Item] = adapter.items()
            answers: list[Any] = [None] * len(items)
            for batch in adapter.share(items, *plan):
                found = adapter.score([items[i] for i in batch])
                for index, answer in zip(batch, found, strict=True):
                    answers[index] = answer
        rows = adapter.rows(items, answers)
        if case.kind == "multiple-choice":
            return [value for row in rows for value in row["choice_logprobs"]]
        return [-row["loss"] for row in rows]

    def harness(self, case: Case, batch_size: int, softmax: str | None = None) -> Values:
        """The `hf` backend's log-likelihoods of the same requests, its softmax in `softmax`."""
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(
            pretrained=self.model,
            tokenizer=self.tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=case.max_length,
            softmax_dtype=softmax,
        )
        if case.kind == "language-modeling":
            texts = [(e["text"],) for e in case.examples]
            asked = [Instance("loglikelihood_rolling", {}, text, 0) for text in texts]
            return [float(value) for value in lm.loglikelihood_rolling(asked, disable_tqdm=True)]
        pairs = [(e["prompt"], choice) for e in case.examples for choice in e["choices"]]
        asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        return [float(answer[0]) for answer in lm.loglikelihood(asked, disable_tqdm=True)]

    @contextmanager
    def counted(self) -> Iterator[list[float]]:
        """The operations of all linear layers meanwhile, as the one entry of a list."""
        total = [0.0]

        def count(layer: nn.Module, given: Any, result: torch.Tensor) -> None:
            total[0] += 2 * result.numel() * layer.in_features  # type: ignore[operator]

        layers = [m for m in self.model.modules() if isinstance(m, nn.Linear)]
        hooks = [layer.register_forward_hook(count) for layer in layers]
        try:
            yield total
        finally:
            for hook in hooks:
                hook.remove()


@dataclass
class Side:
    """One of the two passes on a case: its candidates, and the seconds of each."""

    run: Callable[[Any], Values]
    candidates: list[Any]
    clock: Callable[[], float]
    seconds: dict[Any, list[float]] = field(default_factory=lambda: defaultdict(list))
    values: Values = field(default_factory=list)

    @property
    def best(self) -> Any:
        """The candidate of the least median."""
        return min((c for c in self.candidates if self.seconds[c]), key=self.median)

    def median(self, candidate: Any) -> float:
        """Median seconds of `candidate`."""
        return median(self.seconds[candidate])

    def measure(self, candidate: Any) -> None:
        """Run it once more."""
        start = self.clock()
        self.values = self.run(candidate)
        self.seconds[candidate].append(self.clock() - start)


def compare(bench: Bench, case: Case, options: argparse.Namespace, roof: float) -> bool:
    """Measure both passes in turns, print a line; whether the aims are met."""
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    ours = Side(lambda plan: bench.ours(case, plan), options.ours, clock)
    harness = Side(lambda size: bench.harness(case, size), options.harness, clock)
    # The first calls choose kernels and allocate.
    few = replace(case, examples=case.examples[:2])
    bench.ours(few, options.ours[0])
    bench.harness(few, options.harness[0])
    for k in range(max(len(ours.candidates), len(harness.candidates))):
        for side in (ours, harness):
            if k < len(side.candidates):
                side.measure(side.candidates[k])
    for k in range(options.repeats - 1):
        for side in (ours, harness) if k % 2 else (harness, ours):
            side.measure(side.best)
    shares = []
    for side in (ours, harness):
        with bench.counted() as operations:
            side.run(side.best)
        shares.append(operations[0] / side.median(side.best) / roof)
    ratio = harness.median(harness.best) / ours.median(ours.best)
    exact = bench.harness(case, harness.best, "float64")
    apart, rounded = (
        max(abs(a - b) for a, b in zip(ours.values, values, strict=True))
        for values in (exact, harness.values)
    )
    same = apart <= TOLERANCE
    # Processor time of all threads is no time that a rate could be taken over.
    rates = f"  of the matmul rate {shares[0]:.0%} against {shares[1]:.0%}"
    rates = rates if options.clock == "wall" else ""
    reached = "met" if ratio >= case.aim else "missed"
    print(
        f"{case.name:26} n {len(case.examples):4}  {ours.median(ours.best):7.2f} s against "
        f"{harness.median(harness.best):7.2f} s  ratio {ratio:5.2f} (aim {case.aim}: {reached})  "
        f"|d log P| <= {apart:.1e}{'' if same else ' TOO FAR'} "
        f"({rounded:.1e} with its softmax in float32){rates}  batches {ours.best} against "
        f"{harness.best}",
        flush=True,
    )
    return same and ratio >= case.aim


def float32_roof(device: str) -> float:
    """Operations per second of the best float32 product."""

    def make(shape: tuple[int, int, int], device: str) -> Callable[[], Any]:
        rows, inner, outer = shape
        x, weight = (
            torch.randn(rows, inner, device=device),
            torch.randn(outer, inner, device=device),
        )
        return lambda: nn.functional.linear(x, weight)

    with torch.inference_mode():
        rate = matmul_rate("float32", "torch", make, device).flops_per_s
    if rate is None:
        sys.exit("no float32 matrix-product rate could be measured on this device")
    return rate


def _plans(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, plan.split("x"))) for plan in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def options() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one-token", type=int, default=48, help="examples; 0 leaves it out")
    parser.add_argument("--several", type=int, default=6)
    parser.add_argument("--few-shot", type=int, default=12)
    parser.add_argument("--rolling", type=int, default=3)
    parser.add_argument("--context-words", type=int, default=80)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--document-words", type=int, default=250)
    parser.add_argument(
        "--ours", type=_plans, default="1024x16x32,1024x16x128", help="TOKENSxROWSxCALL,..."
    )
    parser.add_argument("--harness", type=_numbers, default="4,16", help="batch sizes")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others use the machine"
    )
    return parser.parse_args()


def main() -> None:
    """Measure and print all cases."""
    given = options()
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        sys.exit(f"needs lm_eval: pip install 'lm_eval[hf]==0.4.13' ({error})")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(given.threads)
    bench = Bench(resolve(given.model).path, given.device)
    roof = float32_roof(given.device)
    print(
        f"{given.model} in fp32 on {given.device}, {given.threads} threads; roof "
        f"{roof / 1e9:.0f} GFLOP/s"
    )
    cases = [
        one_token(given.one_token) if given.one_token else None,
        several_tokens(given.several, given.context_words) if given.several else None,
        few_shot(given.few_shot, given.shots) if given.few_shot else None,
        rolling(given.rolling, given.document_words) if given.rolling else None,
    ]
    met = [compare(bench, case, given, roof) for case in cases if case is not None]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
