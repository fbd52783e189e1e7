"""What an inspection says, apart from how: sentences a newcomer understands, summary tables, and
the cells of the heat-map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median_low

from precision_explorer.records.numerics import FormatNumerics, LayerNumerics, NumericsDocument
from precision_explorer.report.columns import Cell, View
from precision_explorer.report.content import Fact
from precision_explorer.report.heat import Heat, make_heat
from precision_explorer.report.text import cleaned, listed
from precision_explorer.stats import relative_error
from precision_explorer.units import MISSING, significant

_WORST = 5
# So many of a format's layers are named in a sentence; numerics.csv has all.
_NAMED = 3


@dataclass(frozen=True)
class FormatFindings:
    """What is said of one format."""

    title: str
    sentences: tuple[str, ...]
    worst: View | None


@dataclass(frozen=True)
class NumericsContent:
    """An inspection ready to be laid out; every text in it is one clean line, unescaped."""

    title: str
    lede: str
    facts: tuple[Fact, ...]
    summary: View
    model: tuple[str, ...]
    """Sentences on the model itself, whatever the format."""
    formats: tuple[FormatFindings, ...]
    skipped: View | None
    heats: tuple[Heat, ...]
    cautions: tuple[str, ...]
    notes: tuple[str, ...]


def make_numerics(document: NumericsDocument) -> NumericsContent:
    """The content of `document`."""
    ran = [f for f in document.formats if f.status == "ok"]
    content = NumericsContent(
        title=f"Numerics per layer: {document.model} on {document.task}",
        lede=f"{listed([f.format for f in ran]) or 'No format'} held against "
        f"{document.reference}, layer by layer, on the same inputs.",
        facts=_facts(document),
        summary=_summary(ran),
        model=_of_the_model(ran, document.reference),
        formats=tuple(_findings(f, document.reference) for f in ran),
        skipped=_skipped(document),
        heats=make_heat(ran),
        cautions=_cautions(document),
        notes=_NOTES,
    )
    return cleaned(content)


_NOTES = (
    "SQNR, the signal-to-quantization-noise ratio, is the size of the right values over the size "
    "of the error, in decibels (dB): 40 dB is an error of 1 % of the values' size, 20 dB of 10 %, "
    "0 dB an error as large as the values. Each 6 dB more halve the error, as one bit more would.",
    "Built up: the layer's output in the format's own run, with all errors since the input in it.",
    "Alone: the layer's output when fed the reference's inputs: the error that it adds itself.",
    "Weights: what the layer holds, read back, against the float32 weights.",
    "Outlier ratio: the largest value of the input channel that has the largest, over that of the "
    "median channel.",
    "Exact means no error at all; not finite, that there are infinities or NaN; a dash, that it "
    "could not be measured.",
    "Large errors inside need not harm the answers: what a format costs in quality, a sweep tells.",
)


def linear(found: FormatNumerics) -> list[LayerNumerics]:
    """The linear layers and heads of a format, in the order of execution."""
    return [layer for layer in found.layers if layer.kind in ("linear", "head")]


def decibels(state: str, value: float | None, digits: int = 1) -> str:
    """An SQNR as text without its unit, or its state in words."""
    if value is not None:
        return f"{value:.{digits}f}"
    return {"exact": "exact", "not-finite": "not finite"}.get(state, MISSING)


def _rank(state: str, value: float | None) -> float | None:
    """An SQNR as a number to sort by: exact is the best, not finite the worst; None: unknown."""
    if value is not None:
        return value
    return {"exact": math.inf, "not-finite": -math.inf}.get(state)


def _percent(value: float) -> str:
    return f"{significant(100 * value, 2)} %"


def _error(value: float) -> str:
    """An SQNR with what it means."""
    return f"{value:.1f} dB, an error of {_percent(relative_error(value))}"


# -- tables ----------------------------------------------------------------------------------------


def _facts(document: NumericsDocument) -> tuple[Fact, ...]:
    environment, examples = document.environment, len(document.examples)
    libraries = ", ".join(f"{k} {v}" for k, v in environment.libraries.items())
    return (
        Fact("Model", (f"{document.model} ({document.revision})",)),
        Fact(
            "Inputs",
            (
                f"the first {examples} of {document.task} version {document.task_version} in "
                f"the order of seed {document.seed}, {document.tokens:,} tokens; inputs of at "
                f"most {document.max_tokens} tokens",
            ),
        ),
        Fact("Device", (f"{environment.device_name} ({document.device})",)),
        Fact("Reference", (f"{document.reference}: float32 throughout, TF32 off",)),
        Fact("Stack", (libraries,)),
    )


def _summary(ran: list[FormatNumerics]) -> View:
    headings = (
        "Format", "Execution", "Layers", "Built up", "Worst built up", "Alone",
        "Weights", "First not finite",
    )  # fmt: skip
    rows = []
    for found in ran:
        layers, first = linear(found), found.first_non_finite
        known = (_rank(x.output_state, x.output_sqnr_db) for x in layers)
        ranks = [rank for rank in known if rank is not None]
        rows.append(
            (
                Cell(found.format),
                Cell(found.execution),
                Cell(f"{len(layers)}"),
                Cell(_median(layers, "output")),
                Cell(_ranked(min(ranks, default=None))),
                Cell(_median(layers, "local")),
                Cell(_median(layers, "weight")),
                Cell(first.module, "bad") if first else Cell("none", "good"),
            )
        )
    numeric = (False, False, True, True, True, True, True, False)
    return View(
        "SQNR of the median linear layer, in dB (more is better)", headings, tuple(rows), numeric
    )


def _median(layers: list[LayerNumerics], what: str) -> str:
    """The median over layers of one kind of SQNR. Of weights, over those that were converted."""
    if what == "weight":
        layers = [x for x in layers if x.converted] or layers
    pairs = ((getattr(x, f"{what}_state"), getattr(x, f"{what}_sqnr_db")) for x in layers)
    ranks = [r for r in (_rank(*pair) for pair in pairs) if r is not None]
    return _ranked(median_low(ranks) if ranks else None)


def _ranked(rank: float | None) -> str:
    if rank is None:
        return MISSING
    if math.isinf(rank):
        return "exact" if rank > 0 else "not finite"
    return f"{rank:.1f}"


def _worst(found: FormatNumerics) -> list[LayerNumerics]:
    ranked = [(_rank(x.output_state, x.output_sqnr_db), x) for x in linear(found)]
    known = sorted((r, x.order, x) for r, x in ranked if r is not None and r < math.inf)
    return [layer for _, _, layer in known[:_WORST]]


def _worst_view(found: FormatNumerics) -> View | None:
    headings = (
        "Layer", "Built up (dB)", "Alone (dB)", "Weights (dB)", "Largest weight", "Largest input",
        "Largest output", "Outlier ratio",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(x.layer),
            Cell(decibels(x.output_state, x.output_sqnr_db)),
            Cell(decibels(x.local_state, x.local_sqnr_db)),
            Cell(decibels(x.weight_state, x.weight_sqnr_db)),
            Cell(significant(x.weight_max_abs)),
            Cell(significant(x.input_max_abs)),
            Cell(significant(x.output_max_abs)),
            Cell(significant(x.input_outlier_ratio)),
        )
        for x in _worst(found)
    )
    title = f"{found.format}: the layers of the largest error"
    return View(title, headings, rows, (False, *[True] * 7)) if rows else None


def _skipped(document: NumericsDocument) -> View | None:
    rows = tuple(
        (Cell(f.format), Cell(f.status), Cell(f.reason))
        for f in document.formats
        if f.status != "ok"
    )
    return View("Not run", ("Format", "Status", "Why"), rows, (False,) * 3) if rows else None


def _cautions(document: NumericsDocument) -> tuple[str, ...]:
    own = [f"{c.id}: {c.message}" for c in document.cautions]
    of_formats = [f"{c.id} ({f.format}): {c.message}" for f in document.formats for c in f.cautions]
    return (*own, *of_formats)


# -- sentences -------------------------------------------------------------------------------------


def _of_the_model(ran: list[FormatNumerics], reference: str) -> tuple[str, ...]:
    """On the reference's own activations, which are the same in every format's record."""
    layers = linear(ran[0]) if ran else []
    wide = [x for x in layers if x.input_outlier_ratio is not None]
    large = [x for x in layers if x.output_max_abs is not None]
    sentences = []
    if wide:
        top = max(wide, key=lambda x: x.input_outlier_ratio or 0)
        middle = median_low([x.input_outlier_ratio or 0 for x in wide])
        sentences.append(
            f"Outliers: in the inputs of {top.layer} the largest channel reaches "
            f"{significant(top.input_outlier_ratio)} times the median channel; in the median layer "
            f"it is {significant(middle)} times. A format with one scale per token, such as "
            "int8-dynamic, has to span that, and is coarse for the small channels."
        )
    if large:
        top = max(large, key=lambda x: x.output_max_abs or 0)
        sentences.append(
            f"Range: the largest output of a linear layer in {reference} is "
            f"{significant(top.output_max_abs)}, in {top.layer}."
        )
    return tuple(sentences)


def _findings(found: FormatNumerics, reference: str) -> FormatFindings:
    sentences = [
        *_non_finite(found, reference),
        *_loss(found),
        *_beyond(found),
        *_small(found),
    ]
    title = f"{found.format} ({found.execution})"
    return FormatFindings(title, tuple(sentences), _worst_view(found))


def _non_finite(found: FormatNumerics, reference: str) -> list[str]:
    first = found.first_non_finite
    if first is None:
        return []
    start = f"First non-finite: {first.module} in {found.format}, example {first.example}"
    largest, peak = first.type_largest, first.reference_output_max_abs
    if not first.inputs_finite:
        after = f", after {first.after}" if first.after else ""
        how = (
            f"its inputs are not finite already, so a value became infinite or NaN{after}, in "
            "arithmetic between layers (attention, sums, activations)"
        )
    elif largest is not None and peak is not None and peak > largest:
        how = (
            f"inputs up to {significant(first.input_max_abs)}; in {reference} its output reaches "
            f"{significant(peak)}, against {_number(largest)} that {first.type} can hold"
        )
    else:
        how = (
            f"inputs up to {significant(first.input_max_abs)}; in {reference} its output reaches "
            f"only {significant(peak)}, so it is a value inside the layer that overflows"
        )
    return [
        f"{start}: {how}. Of the examples, {first.examples} had one: use a format of wider range, "
        "such as bf16."
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else significant(value)


def _loss(found: FormatNumerics) -> list[str]:
    layers = [x for x in linear(found) if x.output_sqnr_db is not None]
    if not layers:
        same = [x for x in linear(found) if x.output_state == "exact"]
        return ["No layer's output differs from the reference's."] if same else []
    values = [x.output_sqnr_db for x in layers if x.output_sqnr_db is not None]
    worst = min(layers, key=lambda x: x.output_sqnr_db or 0)
    assert worst.output_sqnr_db is not None
    sentence = (
        f"In the median layer the output's SQNR is {_error(median_low(values))} of its size. The "
        f"largest error built up is in {worst.layer}: {_error(worst.output_sqnr_db)}"
    )
    if worst.local_sqnr_db is not None:
        sentence += f"; fed exact inputs, that layer alone has {_error(worst.local_sqnr_db)}"
    elif worst.local_state == "exact":
        sentence += "; fed exact inputs, that layer makes none: the error comes from before it"
    return [f"{sentence}."]


def _beyond(found: FormatNumerics) -> list[str]:
    """Values beyond the largest finite one: of weights, inputs and outputs."""
    sentences = []
    for what in ("weight", "input", "output"):
        over = [x for x in found.layers if (getattr(x, f"{what}_overflow_share") or 0) > 0]
        if over:
            top = max(over, key=lambda x: getattr(x, f"{what}_max_abs") or 0)
            type_ = getattr(top, f"{what}_type")
            names = listed([x.layer for x in over[:_NAMED]])
            more = f" and {len(over) - _NAMED} more" if len(over) > _NAMED else ""
            sentences.append(
                f"Range exceeded: {what}s of {names}{more} are beyond what {type_} can hold; the "
                f"largest is {significant(getattr(top, f'{what}_max_abs'))}."
            )
    return sentences


def _small(found: FormatNumerics) -> list[str]:
    """Values too small: rounded to zero."""
    parts = []
    for what in ("weight", "input"):
        name = f"{what}_flushed_share"
        layers = [x for x in linear(found) if getattr(x, name)]
        if layers:
            top = max(layers, key=lambda x: getattr(x, name))
            parts.append(f"{_percent(getattr(top, name))} of the {what}s of {top.layer}")
    if not parts:
        return []
    return [f"Too small to hold: up to {listed(parts)} become zero."]
