"""The calibration set of a task: texts that a format may look at before it is measured, none of
which the task asks about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from precision_explorer.errors import TaskError
from precision_explorer.records import canonical_hash
from precision_explorer.tasks.cards import CalibrationSource, LoadedCard, TaskCard, prompt_fields
from precision_explorer.tasks.data import Example, make_examples
from precision_explorer.tasks.images import fingerprint, located
from precision_explorer.tasks.kinds import KINDS
from precision_explorer.tasks.sources import RawData, read_source

# Two texts overlap that share this many words in a row; one that is shorter, but not shorter than
# the second figure, must stand in the other whole. Runs that more calibration texts than the third
# figure share are stock phrases. All three are those of GPT-3's test of contamination (Brown et al.
# 2020, appendix C: 8 to 13 words, "more than 10 documents").
RUN_WORDS = 13
SHORTEST_RUN_WORDS = 8
COMMON_TEXTS = 10
_SHOWN = 3

Words = tuple[str, ...]


class NoCalibration(TaskError):
    """The card names no calibration set."""


@dataclass(frozen=True)
class Calibration:
    """`examples` as those of `PreparedTask`, in one seeded order; `texts`: what each of them says,
    in the same order; `hash`: 16 hex digits over what a model sees of them."""

    examples: list[Example]
    texts: list[str]
    hash: str

    @property
    def n(self) -> int:
        """How many examples there are."""
        return len(self.examples)


def load_calibration(loaded: LoadedCard, seed: int, file: Path | None = None) -> Calibration:
    """The first `n` examples (all, where there are fewer) of the card's calibration set, or of
    `file` in place of it, in the order ``numpy.random.default_rng(seed).permutation``.

    They are held against all of the task's data. Raises NoCalibration where the card names no set,
    TaskError where it can't be read, does not fit the card, or overlaps the data; one line each.
    """
    import numpy as np

    card = loaded.card
    source = _source(loaded, file)
    raw = read_source(loaded, source)
    if not raw.rows:
        raise TaskError(f"{raw.name} holds no examples; put at least one in it")
    examples = make_examples(card, raw)
    order = np.random.default_rng(seed).permutation(len(examples))[: source.n]
    texts = [_own_text(card, raw, i) for i in order]
    taken = [examples[i] for i in order]
    _refuse_overlap(card, raw.name, [e["id"] for e in taken], texts, read_source(loaded))
    seen = [[e.get("prompt", e.get("text")), e.get("choices")] for e in taken]
    if KINDS[card.kind].shown != ("text",):
        seen = [[e[role] for role in KINDS[card.kind].shown] for e in taken]
    return Calibration(taken, texts, canonical_hash(seen))


def _source(loaded: LoadedCard, file: Path | None) -> CalibrationSource:
    named = loaded.card.calibration
    if file is not None:
        if not file.is_file():
            raise TaskError(f"no calibration file at {file}; correct --calibration")
        n = named.n if named is not None else CalibrationSource(path="-").n
        return CalibrationSource(path=str(file.absolute()), n=n)
    if named is None:
        raise NoCalibration(without_calibration(loaded.card))
    return named


def without_calibration(card: TaskCard) -> str:
    """The one line for a card that names no calibration set."""
    return (
        f"task {card.name} has no calibration set; add to its card a line "
        "'calibration: {path: FILE}' with texts that are not test data, or give --calibration"
    )


def _own_text(card: TaskCard, raw: RawData, index: int) -> str:
    """What is the example's own: its text, or what it fills into the prompt that all share. Of an
    image a hash, which stands for it as one word."""
    kind, row = KINDS[card.kind], raw.rows[index]
    if "image" in kind.shown:
        return fingerprint(located(row[card.column_of("image")], raw.folder))
    fields = prompt_fields(card.prompt) if kind.prompts and card.prompt else list(kind.shown)
    return "\n".join(str(row[card.column_of(field)]) for field in fields)


def words_of(text: str) -> Words:
    """The words of `text` without case, spaces and punctuation; of a text without any word (an
    emoticon, say) the text itself."""
    return tuple(re.findall(r"\w+", text.casefold())) or (text.strip(),)


def _runs(words: Words, length: int) -> Iterator[Words]:
    return (words[i : i + length] for i in range(len(words) - length + 1))


def overlaps(calibration: list[str], test: Iterable[str]) -> list[tuple[int, int]]:
    """(index in `calibration`, index in `test`) of texts that are the same or share a run of words,
    at most one pair for each text of `test`."""
    own = [words_of(text) for text in calibration]
    whole = {words: i for i, words in enumerate(own)}
    runs: dict[Words, int] = {}
    count: Counter[Words] = Counter()
    for i, words in enumerate(own):
        lengths = range(SHORTEST_RUN_WORDS, RUN_WORDS + 1)
        found = {run for length in lengths for run in _runs(words, length)}
        count.update(found)
        runs |= dict.fromkeys(found, i)
    runs = {run: i for run, i in runs.items() if count[run] <= COMMON_TEXTS}
    # Shorter than a run of the full length: found where it stands in a test text as it is.
    short = {w: i for w, i in whole.items() if SHORTEST_RUN_WORDS <= len(w) < RUN_WORDS}
    pairs = []
    for j, text in enumerate(test):
        found_at = _found(words_of(text), whole, runs, short)
        if found_at is not None:
            pairs.append((found_at, j))
    return pairs


def _found(
    words: Words, whole: dict[Words, int], runs: dict[Words, int], short: dict[Words, int]
) -> int | None:
    if words in whole:
        return whole[words]
    length = min(RUN_WORDS, len(words))
    if length < SHORTEST_RUN_WORDS:
        return None
    for run in _runs(words, length):
        if run in runs:
            return runs[run]
    for length in {len(s) for s in short}:
        for run in _runs(words, length):
            if run in short:
                return short[run]
    return None


def _refuse_overlap(
    card: TaskCard, name: str, ids: list[str], texts: list[str], data: RawData
) -> None:
    test = [_own_text(card, data, index) for index in range(len(data.rows))]
    pairs = overlaps(texts, test)
    if not pairs:
        return
    found = list(dict.fromkeys(ids[i] for i, _ in pairs))
    shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    raise TaskError(
        f"{name}: {len(found)} of the {len(texts)} calibration examples (id {shown}) stand in the "
        f"test data of task {card.name} too, whole or in part; take them out"
    )
