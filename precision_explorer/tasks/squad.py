"""SQuAD's measures of an answer (Rajpurkar et al. 2016; the official evaluate-v1.1.py)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """`answer` in lower case, without ASCII punctuation, articles (a, an, the) and extra space."""
    plain = answer.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalised prediction is one of the normalised references, else 0.0."""
    return float(normalised(prediction) in {normalised(text) for text in references})


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """The best F1 over the references of the words that both have, counted with repeats."""
    return max(_f1(normalised(prediction).split(), normalised(r).split()) for r in references)


def _f1(found: list[str], wanted: list[str]) -> float:
    shared = sum((Counter(found) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)
