"""Check that int8-dynamic is sound with the instruction set as it is and capped to AVX2.

Without VNNI, 8-bit GEMMs add pairs of products in 16 bits and saturate: SmolLM2's loss rises by
more than 1 nat a token. The dry run must refuse such kernels. This prints the loss of fp32 and of
int8-dynamic on some news articles, with the kernel that was chosen, and fails where they differ by
more than 0.06. Needs SmolLM2 (precision-explorer fetch smollm2-135m); takes some minutes.

    python scripts/check_int8_soundness.py --articles 3 --tokens 256
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

# A sound int8 costs 0.03 to 0.04 nats on this model, a saturating one more than 1.
LIMIT_NATS = 0.06
CAPPED = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
}
SETTINGS: dict[str, dict[str, str]] = {"as it is": {}, "capped to AVX2": CAPPED}


def loss(model: Any, tokenizer: Any, articles: int, tokens: int) -> float:
    """Nats per token over the first `tokens` tokens of each of `articles` news articles."""
    import torch

    from precision_explorer.models.causal_lm import LanguageModeling
    from precision_explorer.tasks import load_card, prepare

    examples = prepare(load_card("news-perplexity"), articles, 0).examples
    card = {"max_length": tokens}
    adapter = LanguageModeling(
        model, tokenizer, "cpu", examples, card, prompt_tokens=1, output_tokens=1
    )
    total = count = 0.0
    with torch.inference_mode():
        first = {item.example: item for item in reversed(adapter.items())}
        for item in first.values():
            total -= adapter.score([item])[0][0]
            count += len(item.targets)
    return total / count


def measure(articles: int, tokens: int) -> dict[str, Any]:
    """The losses in this process, whose environment says which instructions there are."""
    import torch

    from precision_explorer.formats.apply import apply_format
    from precision_explorer.formats.dryrun import dry_run
    from precision_explorer.models.loading import load, prepare
    from precision_explorer.paths import data_dir

    answer = dry_run("cpu", ["int8-dynamic"])["int8-dynamic"]
    if not answer["ok"]:
        raise SystemExit(f"int8-dynamic: {answer['why']}")
    path = data_dir() / "models" / "smollm2-135m"
    tokenizer = prepare(path, "language-modeling", False)
    model = load(path, "language-modeling", torch.float32, "cpu", False)
    before = loss(model, tokenizer, articles, tokens)
    apply_format(model, "int8-dynamic", answer["recipe"], "unverified", "soundness")
    after = loss(model, tokenizer, articles, tokens)
    return {"kernel": answer["kernel"], "fp32": before, "int8-dynamic": after}


def measured_with(variables: dict[str, str], articles: int, tokens: int) -> dict[str, Any]:
    """`measure` in a process of its own, since libraries read `variables` when they are loaded."""
    command = [sys.executable, __file__, "--measure", "--articles", str(articles)]
    done = subprocess.run(
        [*command, "--tokens", str(tokens)],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--articles", type=int, default=3, metavar="N")
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="of each article")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.articles, args.tokens)))
        return 0
    worst = 0.0
    print(f"{'instructions':16}{'kernel':24}{'fp32':>9}{'int8':>9}{'more':>9}  nats per token")
    for name, variables in SETTINGS.items():
        found = measured_with(variables, args.articles, args.tokens)
        more = found["int8-dynamic"] - found["fp32"]
        worst = max(worst, abs(more))
        figures = "".join(f"{v:9.4f}" for v in (found["fp32"], found["int8-dynamic"], more))
        print(f"{name:16}{found['kernel']:24}{figures}", flush=True)
    if worst > LIMIT_NATS:
        print(f"not sound: a difference of {worst:.3f} is above {LIMIT_NATS}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
