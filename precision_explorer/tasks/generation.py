"""How the answers of a generating task are asked for and read: the card's `generation` key, where
an output ends, and the declared rule by which the answer is taken out of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, field_validator

from precision_explorer.errors import TaskError

# The rule's bound on one example: a pattern with nested repeats can take longer than the universe.
PATTERN_SECONDS = 1.0
MAX_PATTERN = 500

# A comma between digits, with three digits after it: 1,234,567.
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"([+-]?)\$?([+-]?)(\d*)(?:\.(\d*))?\.?", re.ASCII)

_Text = Annotated[str, Field(min_length=1, max_length=200)]
Clean = Literal["strip", "casefold", "thousands", "number"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Extraction(_Part):
    """The rule by which the answer is taken out of an output.

    `pattern`: a regular expression of the package `regex` (Python's syntax); the answer is its
    first group that took part, or the whole match where it has no group. None: the whole output.
    `take`: which match counts. `clean`: what is done to answer and references alike before they are
    compared, in this order:

    - ``strip``: white space at both ends is removed;
    - ``casefold``: case does not count;
    - ``thousands``: commas that separate thousands are removed;
    - ``number``: a number is written in its shortest form, without dollar sign, final full stop or
      final zeros behind the point: ``$18.00`` and ``18.`` are ``18``. Other texts stay.
    """

    pattern: Annotated[str, Field(min_length=1, max_length=MAX_PATTERN)] | None = None
    take: Literal["first", "last"] = "first"
    clean: tuple[Clean, ...] = ("strip",)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            import regex

            try:
                regex.compile(pattern)
            except regex.error as error:
                text = f"extract.pattern is no regular expression ({error}); correct it"
                raise ValueError(text) from error
        return pattern


class GenerationRules(_Part):
    """The card's `generation` key. Decoding is greedy, so the same model gives the same answer."""

    max_new_tokens: Annotated[StrictInt, Field(ge=1, le=8192)] = 256
    """The most tokens of an answer; fewer where the model ends it."""
    stop: Annotated[tuple[_Text, ...], Field(max_length=16)] = ()
    """Texts that end an answer; they and what follows belong to it no more."""
    chat: StrictBool = False
    """The prompt is a user's turn in the tokenizer's chat template, not a text to go on with."""
    extract: Extraction = Extraction()
    rouge_stemmer: StrictBool = False
    """ROUGE on stems of words (Porter's) instead of on words."""


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """`text` before the first place where one of `stops` begins; all of it where none does."""
    places = [place for place in map(text.find, stops) if place >= 0]
    return text[: min(places)] if places else text


def cleaned(text: str, rule: Extraction) -> str:
    """`text` after the rule's `clean`, whose order is fixed."""
    if "strip" in rule.clean:
        text = text.strip()
    if "casefold" in rule.clean:
        text = text.casefold()
    if "thousands" in rule.clean:
        text = _THOUSANDS.sub("", text)
    return _shortest_number(text) if "number" in rule.clean else text


def _shortest_number(text: str) -> str:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return text
    before, after, whole, rest = found.groups()
    if (before and after) or not (whole or rest):
        return text
    # By characters, since a float or a Decimal would round a long number.
    whole, rest = whole.lstrip("0") or "0", (rest or "").rstrip("0")
    number = f"{whole}.{rest}" if rest else whole
    return f"-{number}" if "-" in (before, after) and number != "0" else number


def extract(text: str, rule: Extraction) -> str | None:
    """The answer in `text` by `rule`, cleaned; None where its pattern matches nothing.

    TaskError where the pattern takes more than `PATTERN_SECONDS` on this text.
    """
    if rule.pattern is None:
        return cleaned(text, rule)
    import regex

    answer = None
    try:
        for match in regex.finditer(rule.pattern, text, timeout=PATTERN_SECONDS):
            groups = [group for group in match.groups() if group is not None]
            answer = groups[0] if groups else match.group()
            if rule.take == "first":
                break
    except TimeoutError as error:
        raise TaskError(
            f"extract.pattern takes more than {PATTERN_SECONDS:g} s on an output of {len(text)} "
            "characters; write it without repeats inside repeats"
        ) from error
    return None if answer is None else cleaned(answer, rule)
