"""A section for a model card on the Hugging Face hub: results as ``model-index`` metadata, then the
tables for people.

The keys are those of https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from precision_explorer.export.document import finite
from precision_explorer.report.content import Content, Fact, Section, make_content
from precision_explorer.report.groups import Group, Row
from precision_explorer.report.markdown import escape, grid, listing
from precision_explorer.report.text import clean
from precision_explorer.table import Table

MARK = "<!-- written by precision-explorer export -->"
"""By which a file is known to be replaceable."""

# The hub's task identifiers (huggingface.co/tasks) of our kinds, where they are called otherwise.
_TASK_TYPES = {
    "language-modeling": "text-generation",
    "generation": "text-generation",
    "lm-eval": "text-generation",
    "extractive-qa": "question-answering",
    "similarity": "sentence-similarity",
    "retrieval": "text-retrieval",
}
# The hub's metric identifiers (huggingface.co/metrics) of our metrics, where they have one.
_METRIC_TYPES = {
    "macro_f1": "f1",
    "entity_f1": "f1",
    "entity_precision": "precision",
    "entity_recall": "recall",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "spearman": "spearmanr",
    "word_perplexity": "perplexity",
    "token_perplexity": "perplexity",
}
# What else a row is known by, under the column's own name, and how it is called.
_MEASURED = {
    "latency_p50_s": "median latency (s)",
    "throughput_per_s": "offline requests per second",
    "weight_bytes": "weights (bytes)",
    "peak_memory_bytes": "peak memory of serving (bytes)",
}


def to_model_card(table: Table, source_url: str | None = None) -> bytes:
    """YAML between two lines of dashes, then Markdown. `source_url`: where the run's folder can be
    seen, which the results then name as their source."""
    content = make_content(table)
    name = f"precision-explorer, run {clean(table.context.run)}"
    source = {"source": {"name": name, "url": source_url}} if source_url else {}
    index = {"model-index": _index(content, source)}
    text = yaml.dump(index, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)
    return f"---\n{text}---\n\n{_markdown(content)}".encode()


class _Dumper(yaml.SafeDumper):
    """Writes what stands twice twice: readers of cards need not know YAML's aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _index(content: Content, source: dict[str, Any]) -> list[dict[str, Any]]:
    """An entry per model, with a result per task, device and method that has any metric."""
    found: dict[str, list[dict[str, Any]]] = {}
    for section in content.sections:
        metrics = [m for row in section.group.ok for m in _metrics(section.group, row)]
        if metrics:
            found.setdefault(section.group.rows[0]["model"], []).append(
                _result(section.group, metrics) | source
            )
    return [{"name": name, "results": results} for name, results in found.items()]


def _result(group: Group, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    task, row = group.task, group.rows[0]
    kind = task.kind if task else "other"
    return {
        "task": {"type": _TASK_TYPES.get(kind, kind)},
        "dataset": {
            # The hub asks for an identifier; what is none of the hub's keeps the task's name.
            "type": re.sub(r"[^\w.-]+", "-", row["task"]).strip("-.") or "task",
            "name": row["task"],
            "args": {"task_version": row["task_version"], "data": task.source if task else None},
        },
        "metrics": metrics,
    }


def _metrics(group: Group, row: Row) -> Iterable[dict[str, Any]]:
    """Of one format: its quality, and what it takes."""
    label = group.named(row)
    said = {"format": row["format"], "runtime": row["runtime"], "device": row["device"],
            "execution": row["execution"], "method_id": row["method_id"],
            "model_revision": row["model_revision"], "run": row["run"],
            "measured_on": row["measured_on"]}  # fmt: skip
    if row["cautions"]:
        said["cautions"] = row["cautions"].split(";")
    quality, name = finite(row["quality"]), row["quality_metric"]
    if quality is not None:
        compared = ("quality_ci_low", "quality_ci_high", "quality_n", "quality_delta", "verdict")
        known = {key: row[key] for key in compared if finite(row[key]) is not None}
        yield {
            "type": _METRIC_TYPES.get(name, name),
            "value": quality,
            "name": f"{name}, {label}",
            "args": said | known,
        }
    for column, words in _MEASURED.items():
        value = finite(row[column])
        if value is not None:
            yield {"type": column, "value": value, "name": f"{words}, {label}", "args": said}


def _markdown(content: Content) -> str:
    """The section: what was compared, the main tables, and what the numbers do not say."""
    facts = [*content.compared, content.price, *content.method]
    cautions = [f"{name}: {text}" for name, text in content.cautions.items()]
    blocks = [MARK, "## Numeric formats", *(b for s in content.sections for b in _section(s))]
    blocks += listing("### How it was measured", map(_line, facts))
    blocks += listing("### What the numbers do not say", [*content.caveats, *cautions])
    blocks += listing("### How to read the tables", content.notes)
    return "\n\n".join(blocks) + "\n"


def _section(section: Section) -> list[str]:
    views = [block for view in section.views for block in (f"#### {view.title}", grid(view))]
    lines = [f"{answer.topic}: {answer.text}" for answer in section.answers]
    return [f"### {escape(section.title)}", escape(section.line), *listing(None, lines), *views]


def _line(fact: Fact) -> str:
    return f"{fact.label}: {' '.join(fact.lines)}"
