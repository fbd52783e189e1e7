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
    """The best F1 over the references of the words that both have, counted with repeats; where one
    has no words, 1.0 if neither has any, as in version 2 of the official evaluation."""
    return max(_f1(normalised(prediction).split(), normalised(r).split()) for r in references)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))
