"""Metrics of generated texts, as columns of the examples' rows: everything that a metric needs is
in its column, so that reading a record takes none of the metrics' libraries."""

from __future__ import annotations

import importlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from precision_explorer.errors import TaskError
from precision_explorer.tasks import squad
from precision_explorer.tasks.generation import GenerationRules, cleaned

if TYPE_CHECKING:
    import numpy as np

ROUGE = ("rouge1", "rouge2", "rougeL")
# {metric: column of integer counts per example}
COUNTS = {"bleu": "bleu_counts", "chrf": "chrf_counts"}
# {metric: the distribution that computes it}
LIBRARIES = dict.fromkeys(ROUGE, "rouge-score") | dict.fromkeys(COUNTS, "sacrebleu")
_BLEU_ORDER, _CHRF_BETA = 4, 2

Answers = Sequence["str | None"]
References = Sequence[Sequence[str]]


def answer_columns(
    metrics: Sequence[str], answers: Answers, references: References, rules: GenerationRules
) -> dict[str, list[Any]]:
    """The columns, one value per example, that `metrics` are made of; metrics of other kinds have
    none. An answer that is None (nothing could be extracted) scores as an empty text.

    - exact_match: ``score``, 1.0 where the answer is one of the references, both cleaned by the
      rule, else 0.0;
    - token_f1: ``token_f1``, `squad.token_f1`;
    - rouge1, rouge2, rougeL: a column of their name, the F-measure of the package rouge-score
      against the best reference, with or without its stemmer;
    - bleu: ``bleu_counts``, sacrebleu's sums for its default BLEU: the lengths of answer and
      reference, then 4 counts of matching n-grams, then 4 of all;
    - chrf: ``chrf_counts``, sacrebleu's for chrF2: (of the answer, of the reference, matching)
      character n-grams for n = 1 to 6.

    TaskError where there are not as many references as answers, where an example has none, or where
    a library is missing.
    """
    _check_lengths(answers, references)
    texts = [answer or "" for answer in answers]
    columns: dict[str, list[Any]] = {}
    if "exact_match" in metrics:
        clean = [{cleaned(r, rules.extract) for r in refs} for refs in references]
        columns["score"] = [
            float(a is not None and a in right) for a, right in zip(answers, clean, strict=True)
        ]
    if "token_f1" in metrics:
        columns["token_f1"] = [
            squad.token_f1(text, refs) for text, refs in zip(texts, references, strict=True)
        ]
    rouge = [name for name in ROUGE if name in metrics]
    if rouge:
        columns |= _rouge_columns(rouge, texts, references, rules.rouge_stemmer)
    for name in COUNTS:
        if name in metrics:
            columns[COUNTS[name]] = _sacrebleu(name, texts, references)[1]
    return columns


def signatures(
    metrics: Sequence[str], references: References, rules: GenerationRules
) -> dict[str, str]:
    """{metric: how its library was asked}: sacrebleu's signature, rouge-score's version and
    stemmer. Other metrics have none."""
    found = {}
    for name in metrics:
        if name in ROUGE:
            stemmer = "yes" if rules.rouge_stemmer else "no"
            made_by = version("rouge-score")
            found[name] = f"rouge-score:{made_by}|stemmer:{stemmer}|fmeasure|best reference"
        if name in COUNTS:
            found[name] = _sacrebleu(name, [""] * len(references), references)[0]
    return found


def metric_libraries(
    metrics: Sequence[str], versions: Mapping[str, str] | None = None
) -> dict[str, str]:
    """{distribution: version} of what computes `metrics`; by `versions` where they are known.

    TaskError with what installs it where one is not there, so that it is said before anything runs.
    """
    found = {}
    for library in dict.fromkeys(LIBRARIES[name] for name in metrics if name in LIBRARIES):
        try:
            found[library] = (versions or {}).get(library) or version(library)
        except PackageNotFoundError as error:
            raise TaskError(_missing(library)) from error
    return found


def _missing(library: str) -> str:
    return (
        f"the task's metrics need {library}; install it by: "
        "pip install 'precision-explorer[text-metrics]'"
    )


def _check_lengths(answers: Answers, references: References) -> None:
    if len(answers) != len(references):
        raise TaskError(
            f"{len(references)} references for {len(answers)} predictions; give one reference, or "
            "one list of them, for each prediction"
        )
    for index, refs in enumerate(references):
        if isinstance(refs, str) or not refs:
            raise TaskError(f"prediction {index + 1} has no list of references; give at least one")


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskError(_missing(module.partition(".")[0].replace("_", "-"))) from error


# -- per example ---------------------------------------------------------------------------------

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _rouge_columns(
    names: list[str], texts: Sequence[str], references: References, stemmer: bool
) -> dict[str, list[float]]:
    scorer = _need("rouge_score.rouge_scorer").RougeScorer(names, use_stemmer=stemmer)
    pairs = zip(references, texts, strict=True)
    found = [scorer.score_multi(list(refs), text) for refs, text in pairs]
    return {name: [float(scores[name].fmeasure) for scores in found] for name in names}


# -- over the corpus -----------------------------------------------------------------------------


def _sacrebleu(
    name: str, texts: Sequence[str], references: References
) -> tuple[str, list[list[int]]]:
    """(signature, the sums per example) of sacrebleu's default `name`."""
    library = _need("sacrebleu.metrics")
    metric = library.BLEU(force=True) if name == "bleu" else library.CHRF()
    most = max(map(len, references))
    # One stream per place in the lists; sacrebleu takes None for a reference that is not there.
    streams = [[refs[k] if k < len(refs) else None for refs in references] for k in range(most)]
    counts = metric._extract_corpus_statistics(list(texts), streams)
    return str(metric.get_signature()), [[int(n) for n in row] for row in counts]


def bleu_of(sums: np.ndarray) -> np.ndarray:
    """(...) BLEU in [0, 100] of sums (..., 10) as in ``bleu_counts``: sacrebleu's default, up to
    4-grams with exponential smoothing of orders without a match (Papineni et al. 2002; Chen &
    Cherry 2014, method 3; sacrebleu's ``compute_bleu``). NaN for sums of nothing."""
    import numpy as np

    sums = np.asarray(sums, dtype=float)
    length, reference = sums[..., 0], sums[..., 1]
    right, total = sums[..., 2 : 2 + _BLEU_ORDER], sums[..., 2 + _BLEU_ORDER :]
    halvings = np.cumsum((right == 0) & (total > 0), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        smoothed = np.where(right == 0, 1 / (2.0**halvings * total), right / total)
        logs = np.log(np.where(total == 0, 0.0, smoothed)).mean(-1)
        penalty = np.where(length < reference, np.exp(1 - reference / length), 1.0)
        value = 100 * penalty * np.exp(logs)
    value = np.where(right.any(-1), value, 0.0)
    return np.where(sums.any(-1), value, np.nan)


def chrf_of(sums: np.ndarray) -> np.ndarray:
    """(...) chrF2 in [0, 100] of sums (..., 18) as in ``chrf_counts``: F of the mean precision and
    the mean recall over the orders that both texts have, recall weighing twice (Popović 2015;
    sacrebleu's ``_compute_f_score``). NaN for sums of nothing."""
    import numpy as np

    sums = np.asarray(sums, dtype=float)
    ours, theirs, shared = (sums[..., k::3] for k in range(3))
    there = (ours > 0) & (theirs > 0)
    orders = np.maximum(there.sum(-1), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(there, shared / ours, 0.0).sum(-1) / orders
        recall = np.where(there, shared / theirs, 0.0).sum(-1) / orders
        weight = _CHRF_BETA**2
        value = 100 * (1 + weight) * precision * recall / (weight * precision + recall)
    value = np.where(precision + recall > 0, value, 0.0)
    return np.where(sums.any(-1), value, np.nan)


FINISHES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bleu": bleu_of, "chrf": chrf_of}
