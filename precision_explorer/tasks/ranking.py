"""How good a ranked list of documents is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

DEPTH = 10


def ndcg(ranked: Sequence[str], relevant: Mapping[str, float], depth: int = DEPTH) -> float:
    """Normalised discounted cumulative gain at `depth` (Järvelin & Kekäläinen 2002).

    The gain is the grade itself and the discount 1 / log2(rank + 1), as trec_eval's ndcg_cut and
    BEIR have it; the ideal list holds the `depth` best of all relevant documents.
    """
    gains = [relevant.get(document, 0.0) for document in ranked[:depth]]
    ideal = sorted(relevant.values(), reverse=True)[:depth]
    return _discounted(gains) / _discounted(ideal)


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))


def recall(ranked: Sequence[str], relevant: Mapping[str, float], depth: int = DEPTH) -> float:
    """The share of the relevant documents that are among the first `depth`."""
    return len(set(ranked[:depth]) & set(relevant)) / len(relevant)
