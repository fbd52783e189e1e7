"""Task cards: what is asked of a model, of which data, and how it is scored."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from precision_explorer.bounded import BadDocument, TooLarge, yaml_file
from precision_explorer.errors import TaskError, unknown_name
from precision_explorer.paths import cards_dir, expand_user
from precision_explorer.records import METRICS, canonical_hash
from precision_explorer.records.metrics import LM_EVAL
from precision_explorer.tasks.external import (
    ExternalMetric,
    external_label,
    external_metric,
    is_external,
)
from precision_explorer.tasks.generation import Extraction, GenerationRules
from precision_explorer.tasks.kinds import KINDS

CARD_FILE = "task.yaml"
# A prompt that shows one of these gives the answer away or is no text.
_NOT_IN_PROMPT = ("label", "choices", "reference")


_Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSource(_Part):
    """Either a file (`path`: jsonl, json, csv, tsv or parquet; relative to the card) or a hub data
    set (`hub` id, with `revision`, `split` (default ``test``) and `config`)."""

    key: ClassVar[str] = "data"
    default_split: ClassVar[str] = "test"

    path: _Text | None = None
    hub: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")] | None = None
    revision: _Text | None = None
    split: _Text | None = None
    config: _Text | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"{self.key} needs either path or hub; give one of them")
        if self.path is not None and (self.revision or self.split or self.config):
            raise ValueError("revision, split and config belong to a hub data set; remove them")
        return self


class CalibrationSource(DataSource):
    """Where the texts lie that formats with calibrated scales may look at (a hub data set's split
    is ``train`` unless it is named), and how many examples of it are taken."""

    key: ClassVar[str] = "calibration"
    default_split: ClassVar[str] = "train"

    n: Annotated[StrictInt, Field(ge=1)] = 64


_DOCUMENT: tuple[Literal["id", "text"], ...] = ("id", "text")


class CorpusSource(DataSource):
    """Where the documents lie that queries are held against (a hub data set's split is ``train``
    unless it is named), and which of its columns hold their ids and texts."""

    key: ClassVar[str] = "corpus"
    default_split: ClassVar[str] = "train"

    columns: dict[Literal["id", "text"], _Text] = {role: role for role in _DOCUMENT}

    @field_validator("columns")
    @classmethod
    def _both(cls, columns: dict[str, str]) -> dict[str, str]:
        return {role: role for role in _DOCUMENT} | columns


class TaskCard(_Part):
    """A task card (docs/tasks.md). `columns` maps roles to the data's column names.

    `prompt` counts for kinds that show one (`Kind.prompts`), `choices` for multiple-choice only.
    With a prompt, `columns` may hold further names beside the roles, if the prompt uses them as
    ``{name}``; the prompt may use the data's own column names too, where `columns` has them.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    version: Annotated[StrictInt, Field(ge=1)]
    kind: str
    data: DataSource
    columns: dict[_Text, _Text]
    prompt: str | None = None
    choices: list[_Text] | None = None
    max_length: Annotated[StrictInt, Field(gt=0)] = 1024
    """Tokens: the window of language-modeling; elsewhere longer inputs are cut."""
    metrics: Annotated[list[str], Field(min_length=1)]
    """The first is the quality of the tradeoff table."""
    higher_is_better: StrictBool | None = None
    calibration: CalibrationSource | None = None
    """Its columns are those of `data`; no text of it may stand in `data`."""
    labels: Annotated[list[_Text], Field(min_length=2)] | None = None
    """What the data's label numbers stand for; in multiple-choice, what the choices are called."""
    corpus: CorpusSource | None = None
    stride: Annotated[StrictInt, Field(ge=0)] | None = None
    """Tokens that neighbouring windows of an extractive-qa context share; None for 128."""
    generation: GenerationRules | None = None
    """How answers are generated and read; None for the defaults, and for kinds without answers."""
    licence: str = "not stated"
    source: str = "not stated"

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(unknown_name("kind", kind, KINDS))
        if not KINDS[kind].metrics:
            raise ValueError(f"kind {kind} has no cards; ask for its tasks by --task {kind}:NAME")
        return kind

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, metrics: list[str], info: ValidationInfo) -> list[str]:
        own = [name for name in metrics if not is_external(name)]
        # The kind is not there when it was refused itself.
        kind = KINDS.get(str(info.data.get("kind")))
        for name in own:
            if name not in METRICS:
                fitting = METRICS if kind is None else kind.metrics
                raise ValueError(unknown_name("metric", name, fitting))
            if kind is not None and name not in kind.metrics:
                fit = ", ".join(kind.metrics)
                raise ValueError(
                    f"metric '{name}' does not fit kind {info.data['kind']}; use {fit}"
                )
        labels = [external_label(name) if is_external(name) else name for name in metrics]
        if len(set(labels)) < len(labels):
            raise ValueError("a metric stands twice in metrics; remove one")
        return metrics

    @model_validator(mode="after")
    def _consistent(self) -> TaskCard:
        _check_direction(self)
        _check_columns(self)
        if self.kind == "multiple-choice":
            _check_choices(self)
        _check_own_keys(self)
        _check_generation(self)
        return self

    @property
    def metric(self) -> str:
        """The metric that is the quality of the tradeoff table, as files and tables call it."""
        first = self.metrics[0]
        return external_label(first) if is_external(first) else first

    @property
    def own_metrics(self) -> list[str]:
        """The built-in ones, which are computed with the cell; the kind's first where the card
        names none."""
        own = [name for name in self.metrics if not is_external(name)]
        return own or [KINDS[self.kind].metrics[0]]

    def asked(self) -> dict[str, Any]:
        """What a worker must know of the card, as JSON-able values."""
        known = {"kind": self.kind, "metrics": self.own_metrics, "max_length": self.max_length}
        if self.kind == "extractive-qa":
            known["stride"] = self.window_stride
        if KINDS[self.kind].answers:
            known["generation"] = self.rules.model_dump(mode="json")
        return known

    @property
    def window_stride(self) -> int:
        """`stride`, or 128 as in transformers' question-answering example (at most a third of a
        window)."""
        return self.stride if self.stride is not None else min(128, self.max_length // 3)

    @property
    def rules(self) -> GenerationRules:
        """How answers are generated and read, the defaults where the card says nothing."""
        return self.generation or GenerationRules()

    def column_of(self, field: str) -> str:
        """The data's column that `field` (a role, or a field of the prompt) is read from."""
        return self.columns.get(field, field)

    def used_columns(self) -> list[str]:
        """The data's columns that this card reads, each once, in a fixed order."""
        return sorted(set(self.columns.values()))


def prompt_parts(prompt: str) -> list[tuple[str, str | None]]:
    """`prompt` as (text, field that follows it or None) pairs; ``{{`` and ``}}`` are braces.

    ValueError unless every field is a plain ``{name}``: attributes, indexes, conversions and format
    specs of ``str.format`` are refused, since a card may come from a stranger.
    """
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise ValueError(f"prompt: {error}; write braces that are no field twice") from error
    for _, field, spec, conversion in parts:
        if field is not None and (spec or conversion or not field.isidentifier()):
            raise ValueError(f"prompt field '{{{field}}}' is no plain name; write it as {{text}}")
    return [(text, field) for text, field, _, _ in parts]


def prompt_fields(prompt: str) -> list[str]:
    """The names of the fields in `prompt`, in order of appearance, each once."""
    return list(dict.fromkeys(field for _, field in prompt_parts(prompt) if field is not None))


def _check_direction(card: TaskCard) -> None:
    for name in card.metrics:
        if is_external(name):
            continue
        if card.higher_is_better not in (None, METRICS[name].higher_is_better):
            truth = str(METRICS[name].higher_is_better).lower()
            raise ValueError(f"higher_is_better of '{name}' is {truth}; correct or remove it")
    if is_external(card.metrics[0]) and card.higher_is_better is None:
        raise ValueError(
            f"'{card.metric}' is the quality of the table and its direction is not known; add "
            "higher_is_better: true or false"
        )


def _check_columns(card: TaskCard) -> None:
    kind = KINDS[card.kind]
    shown = [card.prompt or "", *(card.choices or [])] if kind.prompts else []
    in_prompt = [field for text in shown for field in prompt_fields(text)]
    for role in card.columns:
        if role not in kind.roles and role not in in_prompt:
            raise ValueError(unknown_name("role in columns", role, kind.roles))
    for role in kind.required:
        if role not in card.columns:
            raise ValueError(f"{card.kind} needs columns.{role}; name the column that holds it")


def _check_choices(card: TaskCard) -> None:
    if (card.choices is None) == ("choices" not in card.columns):
        raise ValueError("multiple-choice needs either choices or columns.choices; give one")
    if card.choices is not None and len(set(card.choices)) < max(2, len(card.choices)):
        raise ValueError("choices must be at least two, each different; correct them")
    _check_prompt(card)


def _check_generation(card: TaskCard) -> None:
    kind = KINDS[card.kind]
    if not kind.answers:
        if card.generation is not None:
            fit = ", ".join(name for name, known in KINDS.items() if known.answers)
            raise ValueError(f"generation does not fit kind {card.kind} but {fit}; remove it")
        return
    if card.rules.chat and kind.head != "causal-lm":
        raise ValueError(f"generation.chat does not fit kind {card.kind}; remove it")
    # An encoder-decoder is given the text alone unless the card says more.
    if card.prompt is not None or "text" not in kind.required:
        _check_prompt(card)


def _check_prompt(card: TaskCard) -> None:
    if not card.prompt:
        raise ValueError(f"{card.kind} needs a prompt; write one such as '{{text}}'")
    fields = prompt_fields(card.prompt)
    if not fields:
        raise ValueError("the prompt has no {field}, so all examples would be the same; add {text}")
    hidden = {*_NOT_IN_PROMPT, *(card.columns[r] for r in _NOT_IN_PROMPT if r in card.columns)}
    known = [*card.columns, *card.columns.values()]
    for field in [*fields, *(f for choice in card.choices or [] for f in prompt_fields(choice))]:
        if field in hidden:
            raise ValueError(f"the prompt can't show '{{{field}}}'; remove it from the prompt")
        if field not in known:
            shown = [name for name in dict.fromkeys(known) if name not in hidden]
            raise ValueError(unknown_name("prompt field", field, shown))


# Keys that mean something for some kinds only.
_OWN_KEYS: dict[str, tuple[str, ...]] = {
    "labels": (
        "text-classification", "image-classification", "token-classification", "multiple-choice",
    ),
    "corpus": ("retrieval",),
    "stride": ("extractive-qa",),
}  # fmt: skip


def _check_own_keys(card: TaskCard) -> None:
    for key, kinds in _OWN_KEYS.items():
        if getattr(card, key) is not None and card.kind not in kinds:
            raise ValueError(
                f"{key} does not fit kind {card.kind} but {', '.join(kinds)}; remove it"
            )
    if KINDS[card.kind].corpus and card.corpus is None:
        raise ValueError(
            f"{card.kind} needs a corpus; add a line 'corpus: {{path: FILE}}' with its documents"
        )
    if card.labels is not None and len(set(card.labels)) < len(card.labels):
        raise ValueError("a name stands twice in labels; correct them")
    if card.labels is not None and "labels" in card.columns:
        raise ValueError("give either labels or columns.labels, not both")
    if card.stride is not None and card.stride >= card.max_length:
        raise ValueError(
            f"a stride of {card.stride} is no part of {card.max_length} tokens; lower it"
        )


@dataclass(frozen=True)
class LoadedCard:
    """A valid card and the absolute path of the file that it was read from."""

    card: TaskCard
    path: Path

    def data_path(self) -> Path | None:
        """The absolute path of the data file; None for a hub data set."""
        return self.path_of(self.card.data)

    def external_metrics(self) -> list[ExternalMetric]:
        """The card's metrics of the `evaluate` library; TaskError where a local module is not
        there."""
        named = [name for name in self.card.metrics if is_external(name)]
        return [external_metric(name, self.path.parent) for name in named]

    def path_of(self, source: DataSource) -> Path | None:
        """The absolute path of the file of `source`; None for a hub data set."""
        return None if source.path is None else self.path.parent / source.path


def bundled_cards() -> dict[str, Path]:
    """Name of each bundled card to its ``task.yaml``, in order of name."""
    return {path.parent.name: path for path in sorted(cards_dir().glob(f"*/{CARD_FILE}"))}


def hub_cards() -> dict[str, Path]:
    """Name of each card of a well-known hub data set to its file, in order of name."""
    return {path.stem: path for path in sorted((cards_dir() / "hub").glob("*.yaml"))}


def load_card(name_or_path: str) -> LoadedCard:
    """The card of a bundled name (`bundled_cards`, `hub_cards`), of a ``task.yaml``, or of a folder
    that holds one.

    A bundled name wins over a file of the same name (write ``./name`` for that). Raises TaskError,
    one line, where there is no such card or it is not valid.
    """
    if name_or_path.startswith(LM_EVAL):
        raise TaskError(
            f"{name_or_path} has no card; tasks of lm-eval run in sweep, plan and inspect"
        )
    bundled = bundled_cards() | hub_cards()
    path = (bundled.get(name_or_path) or expand_user(name_or_path)).absolute()
    if path.is_dir():
        path = path / CARD_FILE
    if path.is_file():
        return LoadedCard(_parse(path), path)
    looks_like_path = "/" in name_or_path or path.suffix in (".yaml", ".yml")
    if looks_like_path or path.name == CARD_FILE or not name_or_path:
        raise TaskError(f"no task card at {path}; give a bundled name, a task.yaml or its folder")
    known = list(bundled) or ["none is bundled here"]
    text = unknown_name("task", name_or_path, known)
    raise TaskError(text if text.endswith("?") else f"{text}, or give a path to a task.yaml")


def card_hash(card: TaskCard) -> str:
    """16 hex digits over what in the card changes results: not licence, source, direction (the
    registry has it) or where the data lie (the data's own hash stands for them). Nor calibration,
    which most formats don't look at: the hash of its texts is in the identity of those that do."""
    left_out = {"licence", "source", "data", "higher_is_better", "calibration"}
    if not KINDS[card.kind].prompts:
        left_out |= {"prompt", "choices"}
    # The corpus has a hash of its own. Keys of later kinds count where they are used, so that other
    # cards keep the hash that they had before.
    left_out |= {"corpus", "labels", "stride", "generation"}
    document = card.model_dump(mode="json", exclude=left_out)
    # Those of the `evaluate` library are computed afterwards, from the stored answers.
    document["metrics"] = card.own_metrics
    if card.labels is not None:
        document["labels"] = card.labels
    if card.kind == "extractive-qa":
        document["stride"] = card.window_stride
    if KINDS[card.kind].answers:
        document["generation"] = card.rules.model_dump(mode="json")
    return canonical_hash(document)


def _parse(path: Path) -> TaskCard:
    try:
        document = yaml_file(path)
    except OSError as error:
        raise TaskError(f"can't read {path} ({error.strerror}); check the file") from error
    except TooLarge as error:
        raise TaskError(f"{path} {error}; a task card is a short YAML file") from error
    except BadDocument as error:
        raise TaskError(f"{path} is no valid YAML ({error}); correct it") from error
    if not isinstance(document, dict):
        raise TaskError(f"{path} holds no mapping; write it as 'key: value' lines")
    try:
        return TaskCard.model_validate({str(key): value for key, value in document.items()})
    except ValidationError as error:
        raise TaskError(f"{path}: {_first_problem(error)}") from error


# What stands where in a card, beside the card itself.
_PARTS: dict[str, type[BaseModel]] = {
    "data": DataSource,
    "calibration": CalibrationSource,
    "corpus": CorpusSource,
    "generation": GenerationRules,
    "generation.extract": Extraction,
}


def _first_problem(error: ValidationError) -> str:
    # Unknown keys first: a misspelt key shows up as a missing one as well. Inputs are left out,
    # since YAML aliases can make them print without end.
    problems = error.errors(include_url=False, include_input=False)
    problem: Any = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        place = ".".join(map(str, problem["loc"][:-1]))
        fields = _PARTS.get(place, TaskCard).model_fields
        return unknown_name("key", str(problem["loc"][-1]), fields)
    if problem["type"] == "missing":
        return f"'{where}' is missing; add it"
    if problem["type"] == "value_error":
        return " ".join(str(problem["ctx"]["error"]).split())
    return f"'{where}' is not valid ({problem['msg']}); correct it"
