"""Documents as windows of tokens, and what a document's row says. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from precision_explorer.tasks import example_bytes, example_words


def document_row(example: dict[str, Any], loss: float, tokens: int) -> dict[str, Any]:
    """id, loss (summed nats), tokens, words, bytes of a document."""
    return {
        "id": example["id"],
        "group": example.get("group"),
        "target": None,
        "prediction": None,
        "score": None,
        "loss": loss if math.isfinite(loss) else None,
        "tokens": tokens,
        "words": example_words(example["text"]),
        "bytes": example_bytes(example["text"]),
        "input_tokens": tokens,
        "cut": False,
    }


def rolling_windows(
    ids: list[int], prefix: int, max_length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """(inputs, targets) so that each token of `ids` is a target once, in windows of `max_length`.

    The first window is conditioned on `prefix`, each later full one on the one token before it, and
    a last one of k tokens on the ``max_length - k + 1`` before it: lm-evaluation-harness's
    `get_rolling_token_windows` with context_len=1 (its `make_disjoint_window` changes only how the
    pair is cut, not which tokens the model sees).
    """
    if not ids:
        return
    first = ids[:max_length]
    yield [prefix, *first[:-1]], first
    done = len(first)
    while done < len(ids):
        count = min(len(ids) - done, max_length)
        end = done + count
        yield ids[max(end - max_length - 1, 0) : end - 1], ids[done:end]
        done = end
