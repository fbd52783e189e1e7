"""The metric registry: unit and direction of every quality metric the tool knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricInfo:
    """`is_share`: a share of examples in [0, 1], whose budget is in points; all else is relative.

    `zero_one`: each example scores 0 or 1, so McNemar's test and Tango's interval apply.
    """

    name: str
    unit: str
    higher_is_better: bool
    is_share: bool
    zero_one: bool
    source: str


METRICS: dict[str, MetricInfo] = {
    m.name: m
    for m in [
        MetricInfo("accuracy", "share", True, True, True, "scikit-learn accuracy_score"),
        MetricInfo("macro_f1", "share", True, True, False, "scikit-learn f1_score, average=macro"),
        MetricInfo(
            "accuracy_norm", "share", True, True, True,
            "log-likelihood per byte of the choice; lm-evaluation-harness acc_norm if in ASCII",
        ),
        MetricInfo(
            "bits_per_byte", "bits", False, False, False,
            "lm-evaluation-harness bits_per_byte: summed nll / (bytes x ln 2)",
        ),
        MetricInfo(
            "word_perplexity", "perplexity", False, False, False,
            "lm-evaluation-harness word_perplexity: exp(summed nll / words)",
        ),
        MetricInfo(
            "token_perplexity", "perplexity", False, False, False,
            "exp(summed nll / tokens); compares only within one tokenizer",
        ),
        MetricInfo(
            "exact_match", "share", True, True, True,
            "share of answers equal to a reference, both cleaned by the card's rule",
        ),
        MetricInfo(
            "token_f1", "share", True, True, False,
            "mean F1 of shared words against the best reference; SQuAD's official evaluation",
        ),
        MetricInfo(
            "entity_f1", "share", True, True, False,
            "conlleval's FB1 over all entities, as seqeval's f1_score",
        ),
        MetricInfo("entity_precision", "share", True, True, False, "conlleval, as seqeval's"),
        MetricInfo("entity_recall", "share", True, True, False, "conlleval, as seqeval's"),
        MetricInfo(
            "spearman", "rho", True, False, False,
            "scipy spearmanr of the texts' cosines and the labels",
        ),
        MetricInfo(
            "ndcg_at_10", "share", True, True, False,
            "mean nDCG@10, gain = grade, discount 1 / log2(rank + 1); trec_eval's ndcg_cut",
        ),
        MetricInfo(
            "recall_at_10", "share", True, True, False,
            "mean share of the relevant documents that are among the first 10",
        ),
        MetricInfo("rouge1", "share", True, True, False, "rouge-score, mean F-measure of words"),
        MetricInfo("rouge2", "share", True, True, False, "rouge-score, mean F-measure of pairs"),
        MetricInfo(
            "rougeL", "share", True, True, False,
            "rouge-score, mean F-measure of the longest common subsequence",
        ),
        MetricInfo("bleu", "BLEU", True, False, False, "sacrebleu corpus BLEU, 0 to 100"),
        MetricInfo("chrf", "chrF", True, False, False, "sacrebleu corpus chrF2, 0 to 100"),
    ]
}  # fmt: skip


LM_EVAL = "lm-eval:"
"""What the names of lm-evaluation-harness's tasks and metrics begin with."""
# Its metrics by its own names (lm_eval/api/metrics.py): unit, whether higher is better.
_HARNESS: dict[str, tuple[str, bool]] = {
    **dict.fromkeys(
        ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1"), ("share", True)
    ),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), ("perplexity", False)),
    "bits_per_byte": ("bits", False),
    "brier_score": ("score", False),
    "ter": ("TER", False),
}


def metric_info(name: str) -> MetricInfo | None:
    """The registry's entry, or None for a metric it does not know.

    A metric of lm-evaluation-harness is called ``lm-eval:acc``, with a filter of its task
    ``lm-eval:exact_match,strict-match``.
    """
    if name.startswith(LM_EVAL):
        base = name.removeprefix(LM_EVAL).partition(",")[0]
        if base not in _HARNESS:
            return None
        unit, higher = _HARNESS[base]
        return MetricInfo(name, unit, higher, unit == "share", False, "lm-evaluation-harness")
    return METRICS.get(name)
