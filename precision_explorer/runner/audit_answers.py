"""Whether what timed requests answer is what the quality pass answered. No torch.

A difference is excused where it is the format's own numeric noise, which other batches show:
floating point sums depend on the shape of what is multiplied. See `judge_answers` for the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from precision_explorer.records import AuditCheck
from precision_explorer.runner.audit_rules import check, not_judged
from precision_explorer.tasks import KINDS, cut_at_stop
from precision_explorer.units import significant

Json = dict[str, Any]
LOOKED_AT = 32
"""Most examples whose answers are held against each other: a declared choice, of which one that is
wrong in a tenth of its answers escapes in 3 % (0.9^32)."""
MOST_NOISE = 0.1
"""Nats beyond which no difference counts as numeric noise, however far the format's own scores move
from batch to batch. A declared choice: bfloat16 rounds logits around 16 by up to 0.06."""
# Examples that are scored again beside those that differ, to see how far scores move.
_BESIDE = 8
# Requests tell a cosine with six digits.
_COSINE = 1e-5


@dataclass(frozen=True)
class Pair:
    """Example `index` as the quality pass scored it, and what a timed request `served`. `ended`:
    whether a generated answer has fewer tokens than were asked for, as it came to its own end."""

    index: int
    row: Json
    served: Any
    ended: bool = False


@dataclass(frozen=True)
class Texts:
    """What ends generated answers of a task: the texts of the tokens that end one, other special
    tokens' texts, and the card's stop texts."""

    ends: Sequence[str] = ()
    special: Sequence[str] = ()
    stop: Sequence[str] = ()

    def cleaned(self, text: str) -> str:
        """`text` up to where the answer ends, as the quality pass keeps it."""
        for end in filter(None, self.ends):
            text = text.split(end, 1)[0]
        for token in filter(None, self.special):
            text = text.replace(token, "")
        # A character may be cut between its tokens.
        return cut_at_stop(text, list(self.stop)).rstrip("\ufffd")

    def has_end(self, text: str) -> bool:
        """Whether the answer ends within `text`, and not because no more tokens were asked for."""
        return any(end in text for end in filter(None, (*self.ends, *self.stop)))


def is_same(kind: str, row: Json, served: Any, texts: Texts, ended: bool = False) -> bool | None:
    """Whether an answer of a task of `kind` is that of `row`.

    A generated one that ended by itself (`ended`, or an end in its text) must be all of the row's.
    One that was cut, as timed requests have a number of tokens of their own, is compared as far as
    both go; None where that is nowhere."""
    if KINDS[kind].answers:
        first, second = texts.cleaned(row["output"] or ""), texts.cleaned(str(served))
        if ended or texts.has_end(str(served)):
            return second.startswith(first)
        both = min(len(first), len(second))
        return first[:both].rstrip("\ufffd") == second[:both].rstrip("\ufffd") if both else None
    expected = row["prediction"]
    if isinstance(expected, float):
        return abs(float(served) - expected) <= _COSINE
    if isinstance(expected, (list, tuple)):
        return " ".join(map(str, expected)) == str(served)
    return str(expected) == str(served)


def margin_nats(row: Json, served: Any, labels: Sequence[str]) -> float | None:
    """By how much `row` has its own answer above the one that was `served`; None where it does not
    hold the log-probability of each. `labels`: the names of a classifier's, by id."""
    if row.get("choice_logprobs"):
        values, names = row["choice_logprobs"], [str(k) for k in range(len(row["choice_logprobs"]))]
    else:
        values, names = row.get("logprobs"), list(labels)
    if not values or str(served) not in names:
        return None
    return float(max(values) - values[names.index(str(served))])


def noise_nats(row: Json, again: Json) -> float:
    """The largest change of a log-probability between two scorings of an example; 0 where rows hold
    none."""
    name = "choice_logprobs" if row.get("choice_logprobs") else "logprobs"
    pairs = zip(row.get(name) or (), again.get(name) or (), strict=False)
    return max((abs(a - b) for a, b in pairs if math.isfinite(a - b)), default=0.0)


def judge_answers(
    kind: str,
    pairs: Sequence[Pair],
    again: Callable[[int], Json] | None,
    labels: Sequence[str] = (),
    texts: Texts | None = None,
) -> AuditCheck:
    """Passed where every answer is that of the quality pass, or differs within the noise.

    `again(i)`: the row of example i scored once more, by itself, by the quality pass's own code;
    None where nothing can do so. An answer that differs is within the noise where that gives it
    too (the quality pass itself would have, in another batch), or where the quality pass has the
    two answers no further apart than twice the largest change of a log-probability between its
    batches and alone, over the examples looked at, and than `MOST_NOISE`: each of the two may have
    moved by as much. Pairs in which nothing can be compared are not counted.
    """
    known = texts or Texts()
    if not pairs:
        return not_judged("answers", "timed requests of this task give no answer to compare")
    same = [(p, is_same(kind, p.row, p.served, known, p.ended)) for p in pairs]
    pairs = [p for p, is_so in same if is_so is not None]
    found = len(pairs)
    if not pairs:
        reason = "no answer of a timed request holds any text to compare"
        return not_judged("answers", reason)
    apart = [p for p, is_so in same if is_so is False]
    figures: dict[str, float] = {"answers": found, "differing": len(apart)}
    if not apart:
        return check("answers", "passed", figures)
    if again is None:
        reason = f"{len(apart)} of {found} answers differ, and nothing tells how close they were"
        return not_judged("answers", reason, figures)
    rows = {p.index: again(p.index) for p in (*apart, *_others(pairs, apart))}
    noise = max(noise_nats(p.row, rows[p.index]) for p in pairs if p.index in rows)
    most = min(2 * noise, MOST_NOISE)

    def excused(pair: Pair) -> bool:
        margin = margin_nats(pair.row, pair.served, labels)
        near = margin is not None and margin <= most
        return near or bool(is_same(kind, rows[pair.index], pair.served, known, pair.ended))

    wrong = [p for p in apart if not excused(p)]
    figures |= {"beyond_noise": len(wrong), "noise_nats": noise}
    if not wrong:
        return check("answers", "passed", figures)
    reason = (
        f"{len(wrong)} of {found} answers of timed requests are not the quality pass's, nor within "
        f"its noise ({significant(noise)} nats); the first is example {wrong[0].row['id']}"
    )
    return check("answers", "failed", figures, reason)


def _others(pairs: Sequence[Pair], apart: Sequence[Pair]) -> list[Pair]:
    known = {p.index for p in apart}
    return [p for p in pairs if p.index not in known][:_BESIDE]


@dataclass(frozen=True)
class Reread:
    """A request's greedy tokens against passes over all of them without a cache. `margin_nats`: the
    most by which a token was below the likeliest; `noise_nats`: how far log-probabilities move with
    the shape of a pass. `whole`: whether the answer's text is that of the tokens."""

    margin_nats: float
    noise_nats: float
    whole: bool = True

    @property
    def is_same(self) -> bool:
        """Whether every token is the likeliest."""
        return self.whole and self.margin_nats == 0

    @property
    def is_near(self) -> bool:
        """Whether every token is the likeliest but for the noise; 1e-3 nats are allowed in any
        case, within which log-likelihoods count as equal (`scripts/bench_quality_pass.py`)."""
        return self.whole and self.margin_nats <= min(max(2 * self.noise_nats, 1e-3), MOST_NOISE)


def judge_tokens(found: Sequence[Reread]) -> AuditCheck:
    """The same of requests whose tokens have no counterpart in the quality pass, which scores whole
    documents: each token must be the likeliest after those before it, in passes without a cache."""
    if not found:
        return not_judged("answers", "no request was made again")
    differing = [one for one in found if not one.is_same]
    wrong = [one for one in differing if not one.is_near]
    figures: dict[str, float] = {
        "answers": len(found),
        "differing": len(differing),
        "beyond_noise": len(wrong),
        "noise_nats": max(one.noise_nats for one in found),
    }
    if not wrong:
        return check("answers", "passed", figures)
    reason = (
        f"{len(wrong)} of {len(found)} requests have tokens that passes without a cache don't "
        "give, beyond the format's noise"
    )
    return check("answers", "failed", figures, reason)
