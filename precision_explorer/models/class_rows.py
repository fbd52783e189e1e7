"""Sample rows of examples that have one label each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


def class_row(
    example: Mapping[str, Any], target: int, names: Mapping[int, str], logits: list[float]
) -> dict[str, Any]:
    """id, target, prediction (label names), score, loss (nats), logprobs per label; None where the
    logits are not finite."""
    row = {
        "id": example["id"],
        "group": example.get("group"),
        "target": names[target],
        "prediction": None,
        "score": None,
        "loss": None,
        "logprobs": None,
    }
    if all(map(math.isfinite, logits)):
        logprobs = torch.tensor(logits, dtype=torch.float64).log_softmax(-1).tolist()
        best = max(range(len(logits)), key=logits.__getitem__)
        row |= {
            "prediction": names[best],
            "score": float(best == target),
            "loss": -logprobs[target],
            "logprobs": logprobs,
        }
    return row
