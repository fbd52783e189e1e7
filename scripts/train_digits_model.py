"""Train the bundled vision model: a small ViT for scikit-learn's 8 x 8 digits.

It learns from the training side of the digits alone (the split rule is in encoder_task_data.py).
Half a minute on one CPU core; more threads would only wait for each other on so small a model. The
numbers depend on the torch version in the last digits.

    python scripts/train_digits_model.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import encoder_task_data
import torch
import transformers
from make_task_data import ROOT
from torch import nn
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SEED = 0
EPOCHS = 40
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
# The share of images that each epoch shifts: all of them is too much to learn for so small a model.
SHIFTED = 0.3
WANTED = 0.95
# float8 and int8 kernels leave layers whose sizes are no multiples of 16 as they are.
CONFIG = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def make_model() -> ViTForImageClassification:
    """An untrained ViT of ten classes, named by their digits."""
    names = {i: str(i) for i in range(10)}
    label2id = {name: i for i, name in names.items()}
    return ViTForImageClassification(ViTConfig(id2label=names, label2id=label2id, **CONFIG))


def make_processor() -> ViTImageProcessorPil:
    """What makes pixels of images: 8 x 8, from 0..255 to -1..1."""
    return ViTImageProcessorPil(size={"height": 8, "width": 8})


def pixels_of(rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 3, 8, 8) pixels as the processor makes them, and (n,) labels."""
    from PIL import Image

    grey = [torch.tensor(row["image"], dtype=torch.uint8).numpy() for row in rows]
    images = [Image.fromarray(image).convert("RGB") for image in grey]
    found = make_processor()(images=images, return_tensors="pt")["pixel_values"]
    return found, torch.tensor([row["digit"] for row in rows])


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Some of the images moved by at most one pixel either way, background at the edge."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    moved = torch.rand(len(images), 1) < SHIFTED
    moves = torch.where(moved, torch.randint(0, 3, (len(images), 2)), 1).tolist()
    parts = [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, moves, strict=True)]
    return torch.stack(parts)


def train(model: ViTForImageClassification, images: torch.Tensor, labels: torch.Tensor) -> None:
    """AdamW with a cosine schedule; every epoch sees each image once, some shifted."""
    steps = EPOCHS * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            out = model(pixel_values=shifted(images[batch])).logits
            loss = nn.functional.cross_entropy(out, labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(folder: Path, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Of the model as it was saved."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return float((model(pixel_values=images).logits.argmax(-1) == labels).float().mean())


def report(found: float, held_out: int, trained: int, size: int) -> str:
    """The README of the model's folder."""
    return f"""\
---
license: apache-2.0
pipeline_tag: image-classification
---

# demo-digits: a small vision model

A digit for an image of 8 x 8 pixels. It is bundled so that `image-classification` has something
real to measure without a download, and isn't meant for decisions about anything but numeric
formats.

## What it is

A standard `ViTForImageClassification`, trained from random weights: {CONFIG["num_hidden_layers"]} \
layers, {CONFIG["hidden_size"]} wide,
{CONFIG["intermediate_size"]} inside, patches of 4 x 4. float32, `model.safetensors` of \
{size:,} bytes.

## Data

scikit-learn's `load_digits`: the test part of Alpaydin, E. & Kaynak, C. (1998), Optical Recognition
of Handwritten Digits, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0.
Trained on {trained:,} images, {SHIFTED:.0%} of them shifted by a pixel at a time; {EPOCHS} epochs.
An image is held out if the first 8 hex digits of the SHA-256 of its pixels, as a number modulo 100,
are below {encoder_task_data.DIGITS_HELD_OUT_PERCENT}.

## Measured

On the held-out `tasks/digits/test.jsonl`, in float32 on a CPU (torch {torch.__version__},
transformers {transformers.__version__}): **{found:.1%}** accuracy, n = {held_out:,}.

## Limits

The same 13 people wrote the images of both sides, so expect less on anybody else's digits.

## Licence

Apache-2.0, as the project; the text is in `LICENSE` of the demo model. The images are CC BY 4.0.

Made by `scripts/train_digits_model.py`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    default = ROOT / "precision_explorer" / "models" / "demo-digits"
    parser.add_argument("--out", type=Path, default=default, metavar="FOLDER")
    args = parser.parse_args()
    parts = encoder_task_data.digits()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    started = time.perf_counter()
    model = make_model()
    train(model, *pixels_of(parts["train"]))
    seconds = time.perf_counter() - started
    model.save_pretrained(args.out)
    make_processor().save_pretrained(args.out)
    weights = args.out / "model.safetensors"
    weights.chmod(0o644)  # it is written for its owner alone, and would be installed so
    found = accuracy(args.out, *pixels_of(parts["test"]))
    if found < WANTED:
        raise SystemExit(f"held-out accuracy {found:.4f} is below {WANTED}; don't bundle this one")
    counts = len(parts["test"]), len(parts["train"])
    text = report(found, *counts, weights.stat().st_size)
    (args.out / "README.md").write_text(text, encoding="utf-8")
    print(f"{counts[1]:,} images, {seconds:.0f} s of training, {weights.stat().st_size:,} bytes")
    print(f"held-out accuracy {found:.4f}, n = {counts[0]:,}")


if __name__ == "__main__":
    main()
