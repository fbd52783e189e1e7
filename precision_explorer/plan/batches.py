"""The frozen batch plan of the quality pass: its rule, and how large a batch may be."""

from __future__ import annotations

from typing import Any

from precision_explorer.hardware import DeviceFacts
from precision_explorer.models import ModelRef
from precision_explorer.records import canonical_hash
from precision_explorer.tasks import PreparedTask

# Padded tokens of one batch where no probe has fixed them, by kind of device: on an accelerator a
# language model's logits bound it, as 16,384 x 50,000 words x 2 bytes are 1.6 GB.
_MAX_TOKENS = {"cpu": 1024, "cuda": 16384}
# What a probe tries. The largest is as far as a sweep should go by itself: its activations are
# memory that a format has to find beside its weights.
_LADDER = {
    "cpu": (256, 512, 1024, 2048, 4096, 8192),
    "cuda": (2048, 4096, 8192, 16384, 32768, 65536),
}
# Rows of one batch: what bounds batches of very short inputs, whose cost is in their handling.
_MAX_ITEMS = {"cpu": 64, "cuda": 512}
# What a call costs beside its tokens, in tokens: where it is less than the padding of a larger
# batch, a smaller one is faster.
_CALL_TOKENS = {"cpu": 32, "cuda": 1024}


def ladder(kind: str) -> tuple[int, ...]:
    """The token budgets that a probe tries on a kind of device, the smallest first."""
    return _LADDER[kind]


def batch_plan(kind: str, max_tokens: int | None = None) -> dict[str, Any]:
    """The frozen rule of the quality pass, the same for all formats of a task: `max_tokens` padded
    tokens a batch, or the device kind's constant. A runtime that compiles keeps to plain rows in
    full batches: its code is made for few shapes, and for no cache of some other length."""
    return {
        "rule": "longest first, padded tokens bounded; where nothing is compiled, cut where "
        "padding and calls cost least, and prefixes that rows share computed once",
        "max_tokens": _MAX_TOKENS[kind] if max_tokens is None else max_tokens,
        "max_items": _MAX_ITEMS[kind],
        "call_tokens": _CALL_TOKENS[kind],
    }


def budget_key(
    ref: ModelRef, task: PreparedTask, facts: DeviceFacts, versions: dict[str, str], threads: int
) -> str:
    """16 hex digits of what a probed token budget is for. The number of examples counts, since few
    of them fill no large batch; which they are does not."""
    device = [facts.device, facts.name, facts.cpu_flags, facts.memory_bytes, threads]
    stack = {name: versions.get(name) for name in ("torch", "transformers", "precision-explorer")}
    asked = task.identity.model_dump(mode="json", exclude={"item_ids_hash", "order_hash"})
    return canonical_hash([ref.identity.revision, asked, device, stack])
