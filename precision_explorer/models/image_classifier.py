"""Adapter for image-classification heads and `image-classification` tasks."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import TaskError
from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import Item
from precision_explorer.models.class_rows import class_row
from precision_explorer.tasks.images import INLINE

# Pixels that count as one token where a model has no patches: those of ViT's 16 x 16.
_PATCH = 16


class ImageClassifier:
    """`examples` hold image and label; `label_ids` maps each label in the data to its id."""

    generates = False
    pad = 0

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        device: str,
        examples: list[dict[str, Any]],
        label_ids: dict[str, int],
    ) -> None:
        self.model, self.processor, self.device = model, processor, device
        self.examples, self.label_ids = examples, label_ids
        self.names = {int(k): str(v) for k, v in model.config.id2label.items()}
        self.channels = int(getattr(model.config, "num_channels", 3) or 3)
        self.max_length = self._tokens()

    def _tokens(self) -> int:
        """How many tokens one image counts as in the batch plan: patches and the class token."""
        _, _, height, width = self.pixels([0]).shape
        patch = getattr(self.model.config, "patch_size", None)
        side = patch if isinstance(patch, int) and patch > 0 else _PATCH
        return max(height // side, 1) * max(width // side, 1) + 1

    def pixels(self, indices: Sequence[int]) -> torch.Tensor:
        """(images, channels, height, width) as the model's processor makes them, in its dtype."""
        images = [decoded(self.examples[i], self.channels) for i in indices]
        made = self.processor(images=images, return_tensors="pt")["pixel_values"]
        return made.to(self.device, self.model.dtype)

    def items(self) -> list[Item]:
        """One item per image. Its ids only count its tokens."""
        ids = tuple(range(self.max_length))
        return [Item(i, ids) for i in range(len(self.examples))]

    def scores(self, batch: Sequence[Item]) -> torch.Tensor:
        """(images, labels) logits."""
        return self.model(pixel_values=self.pixels([item.example for item in batch])).logits

    def score(self, batch: Sequence[Item]) -> list[list[float]]:
        """(labels,) logits of each image, as float32."""
        return self.scores(batch).float().cpu().tolist()

    def rows(self, items: Sequence[Item], answers: Sequence[list[float]]) -> list[dict[str, Any]]:
        """id, target, prediction (label names), score, loss (nats), logprobs per label."""
        result = []
        for item, logits in zip(items, answers, strict=True):
            example = self.examples[item.example]
            row = class_row(example, self.label_ids[str(example["label"])], self.names, logits)
            result.append(row | {"input_tokens": len(item.ids), "cut": False})
        return result

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """Encoded image or pixels in, label name out; decoding and resizing count as tokenising."""
        with phases("tokenize"):
            image = decoded(self.examples[index], self.channels)
            made = self.processor(images=[image], return_tensors="pt")["pixel_values"]
        with phases("copy"):
            pixels = made.to(self.device, self.model.dtype)
        with phases("forward"):
            logits = self.model(pixel_values=pixels).logits
            if logits.is_cuda:
                torch.cuda.synchronize()
        with phases("post"):
            answer = self.names[int(logits[0].argmax())]
        return {"answer": answer}

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """Images in, label names out."""
        logits = self.model(pixel_values=self.pixels(indices)).logits
        return {"answers": [self.names[i] for i in logits.argmax(-1).tolist()]}


def decoded(example: dict[str, Any], channels: int) -> Any:
    """The example's image as Pillow's, grey for models of one channel and RGB for all others.

    TaskError names an image that can't be decoded.
    """
    import numpy as np
    from PIL import Image

    image = example["image"]
    mode = "L" if channels == 1 else "RGB"
    if isinstance(image, list):
        return Image.fromarray(np.asarray(image, dtype=np.uint8)).convert(mode)
    try:
        inline = image.startswith(INLINE)
        source = io.BytesIO(base64.b64decode(image[len(INLINE) :])) if inline else image
        with Image.open(source) as opened:
            return opened.convert(mode)
    # Pillow's decoders raise errors of many types for damaged files.
    except Exception as error:
        raise TaskError(
            f"example {example['id']}: its image can't be decoded ({type(error).__name__}); "
            "correct or remove it"
        ) from error
