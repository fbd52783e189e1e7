"""The words that travel with the numbers, made from the runs' own documents."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from precision_explorer.economics.price_sheet import exact_usd
from precision_explorer.endpoint import ENDPOINT
from precision_explorer.errors import StoreError
from precision_explorer.records import NOT_SCORED, metric_info
from precision_explorer.store import RunFolder
from precision_explorer.table.caveats import caveats
from precision_explorer.table.data import Context, ModelContext, TaskContext
from precision_explorer.table.disturbed import background_names
from precision_explorer.table.money import unpriced
from precision_explorer.table.scenario_words import latency_words
from precision_explorer.table.sequential import RULE
from precision_explorer.units import bytes_, significant

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry

Run = tuple[RunFolder, dict[str, Any], dict[str, Any], list[str]]
"""Folder, sweep.json, the reader's options, and the planned cells without a result."""


def make_context(runs: list[Run], entries: list[Entry], objectives: dict[str, str]) -> Context:
    """The context of a table over `runs`; duplicates over the runs are said once."""
    reader = runs[0][2]
    sweeps = [sweep for _, sweep, _, _ in runs]
    return Context(
        run=", ".join(sweep["run"] for sweep in sweeps),
        models=_unique(_model(m) for sweep in sweeps for m in sweep["models"]),
        tasks=_unique(_task(t, entries) for sweep in sweeps for t in sweep["tasks"]),
        devices=_unique([*(_device(s["environment"]) for s in sweeps), *_servers(entries)]),
        stack=_stack(sweeps),
        method_ids=tuple(sorted({e.record.method_id for e in entries})),
        method=(
            *_unique(s for sweep in sweeps for s in _methods(sweep)),
            *_clusters(entries),
            *_signatures(entries),
        ),
        prices=_prices(entries),
        reference=reader["reference"],
        quality_budget=reader["quality_budget"],
        slo=reader.get("slo"),
        caveats=caveats(runs, entries),
        cautions=_cautions(entries),
        objectives=_objective_words(objectives),
        limits=reader.get("limits"),
        manifest_root=", ".join(folder.manifest_root() for folder, _, _, _ in runs),
        measured_on=tuple(
            sorted({e.record.started_at[:10] for e in entries if e.record.status != "skipped"})
        ),
    )


def into_rows(context: Context, runs: list[Run], entries: list[Entry]) -> None:
    """Write into each row what it must keep of `context` where it goes without the words above it:
    run, day (UTC), what the reader set, and what the numbers do not say."""
    names = {folder: sweep["run"] for folder, sweep, _, _ in runs}
    slo = [f"requests count within {context.slo}"] if context.slo else []
    limits = "; ".join([*slo, *(context.limits.words if context.limits else ())])
    for entry in entries:
        record = entry.record
        entry.row.update(
            run=names[entry.folder],
            measured_on=record.started_at[:10] if record.status != "skipped" else None,
            limits=limits or None,
            caveats=" ".join(context.caveats),
        )


def _stack(sweeps: list[dict[str, Any]]) -> dict[str, str]:
    """Library name to version, or to all that the runs had."""
    found: dict[str, list[str]] = {}
    for sweep in sweeps:
        for name, version in sorted(sweep["environment"]["libraries"].items()):
            found.setdefault(name, []).append(version)
    return {name: " and ".join(dict.fromkeys(versions)) for name, versions in found.items()}


def _unique(values: Any) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _model(document: dict[str, Any]) -> ModelContext:
    cautions = tuple(c["message"] for c in document["cautions"])
    return ModelContext(document["name"], document["revision"], cautions)


def _task(document: dict[str, Any], entries: list[Entry]) -> TaskContext:
    """The task with the metric that its rows are counted in: the reader may have chosen another."""
    name, version = document["name"], document["version"]
    of_task = (e for e in entries if (e.row["task"], e.row["task_version"]) == (name, version))
    metric = next((m for e in of_task if (m := e.row["quality_metric"])), document["metric"])
    info = metric_info(metric)
    known = {
        "metric": metric,
        "unit": info.unit if info else "",
        "higher_is_better": info.higher_is_better
        if info
        else _direction(document, entries, metric),
    }
    shown = {field.name for field in fields(TaskContext)}
    return TaskContext(**{k: v for k, v in (document | known).items() if k in shown})


def _direction(document: dict[str, Any], entries: list[Entry], metric: str) -> bool | None:
    """The direction of a metric that the registry does not know: the card's, else a score's."""
    found = (
        e.quality.higher_is_better for e in entries if e.quality and e.quality.metric == metric
    )
    return next((d for d in [document.get("higher_is_better"), *found] if d is not None), None)


_SERVER = "endpoint: a server that was asked over HTTP, of whose device nothing is known"


def _servers(entries: list[Entry]) -> list[str]:
    return [_SERVER for e in entries if e.record.cell.runtime == ENDPOINT][:1]


def _device(environment: dict[str, Any]) -> str:
    if environment["device"].get("kind") == ENDPOINT:
        return _SERVER
    flags = ", ".join(environment["device"].get("cpu_flags") or ())
    extra = f"; {flags}" if flags else ""
    name, cpu = environment["device_name"], environment["cpu_model"]
    device = name if name == cpu else f"{name} with {cpu}"
    return (
        f"{device}, {environment['cores']} cores, {bytes_(environment['memory_bytes'])} memory, "
        f"{environment['threads']} threads{extra}"
    )


def _methods(sweep: dict[str, Any]) -> list[str]:
    """The run's methods in sentences; StoreError for a document that no sweep writes: workloads are
    stored as they were declared, of many kinds."""
    try:
        return [s for method in sweep["methods"].values() for s in _how(method)]
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StoreError(
            f"the methods in sweep.json of {sweep['run']} are damaged "
            f"({type(error).__name__}: {error}); run the sweep again"
        ) from error


def _how(method: dict[str, Any]) -> list[str]:
    """One method document in sentences."""
    work, batch = method["workload"], method["batch_plan"]
    paired, order = "Tango, exact McNemar; else paired bootstrap", _order(work.get("rounds", 1))
    which = "every example once"
    if RULE in method["rules"]:
        which = "the examples in one order until the format's verdict is clear, each once"
        paired = "by sequences that hold at every look: betting, else asymptotic"
    if "at_once" in batch:
        told = latency_words(work, "endpoint")
        return [_asked(which, batch["at_once"], paired), told, _OF_SERVERS, *order]
    scored = method["rules"].get("quality") != NOT_SCORED
    return [
        _scored(which, batch, paired) if scored else f"Quality: none ({NOT_SCORED}).",
        latency_words(work, "any" if "batching" in method["rules"] else ""),
        "Throughput: offline (all requests at hand), the best of the batch sizes tried. "
        "Peak memory: while serving, above the process's own memory before the load.",
        *order,
        *_beside(background_names(work)),
    ]


def _scored(which: str, batch: dict[str, Any], paired: str) -> str:
    shared = ", prefixes that rows share computed once" if "call_tokens" in batch else ""
    return (
        f"Quality: {which}, batches of at most {batch['max_items']} rows and "
        f"{batch['max_tokens']:,} padded tokens{shared}, the same for every format; 95 % intervals "
        f"(Wilson for 0/1 scores, else bootstrap), paired differences to the reference ({paired})."
    )


def _beside(background: str | None) -> list[str]:
    if background is None:
        return []
    return [
        f"Disturbed: in each round all formats were measured alone, then in the same order beside "
        f"{background}, in processes of their own that were pinned to no core: the same requests, "
        "where they come by their own clock at the same moments. All other figures are those alone."
    ]


_OF_SERVERS = (
    "Throughput: offline (all requests at hand), the best of the numbers of requests that were "
    "sent at once. Times are a client's, over HTTP; the server's memory is not seen."
)


def _asked(which: str, at_once: int, paired: str) -> str:
    return (
        f"Quality, by endpoints: {which}, each by itself, {at_once} under way together, greedy; "
        "95 % intervals (Wilson for 0/1 scores, else bootstrap), paired differences to the "
        f"reference ({paired})."
    )


def _order(rounds: int) -> list[str]:
    if rounds < 2:
        return []
    return [
        f"Order: the formats of a model were timed in turn, in {rounds} rounds over which these "
        "numbers and budgets are divided, by processes that stayed loaded; each format has the "
        "same mean place, the reference is first and last. Throughput is the rounds' median."
    ]


def _clusters(entries: list[Entry]) -> tuple[str, ...]:
    """Where examples come in groups, how many there are."""
    found = []
    for entry in entries:
        rows = getattr(entry.quality, "columns", None) or {}
        groups = {group for group in rows.get("group") or [] if group is not None}
        if groups:
            found.append(
                f"{entry.row['task']}: the examples come in {len(groups):,} groups, which "
                "intervals and tests take whole (docs/method.md)."
            )
    return _unique(found)


def _signatures(entries: list[Entry]) -> tuple[str, ...]:
    """How the libraries of metrics were asked, where a metric has several variants."""
    measured = [e.record.measurements.quality for e in entries]
    return _unique(
        f"Metric {name}: {signature}"
        for quality in measured
        if quality
        for name, signature in quality.signatures.items()
    )


def _prices(entries: list[Entry]) -> tuple[str, ...]:
    """All that money is computed from: prices with their inputs, and what results are worth."""
    each: dict[str, set[str]] = {}
    for entry in entries:
        each.setdefault(entry.row["device"], set()).add(entry.row["price_inputs"] or "")
    lines = []
    for entry in entries:
        price, whose = entry.price, entry.row["device"]
        if price is not None:
            # With a power of each row's own the formats' prices differ.
            whose = f"{whose}, {entry.row['format']}" if len(each[whose] - {""}) > 1 else whose
            lines.append(
                f"{whose}: ${significant(price.per_hour_usd, 4)} per hour "
                f"({price.basis}; {price.source}, {price.date})"
            )
        elif entry.reader.get("price") is not None and entry.record.status == "ok":
            lines.append(f"{whose}: no price ({unpriced(entry)})")
    return (*_unique(lines), *_worth(entries[0].reader))


def _worth(reader: dict[str, Any]) -> list[str]:
    worth, harm = reader.get("value_per_correct"), reader.get("cost_per_error")
    if worth is None and harm is None:
        return []
    return [
        f"A correct result is worth {exact_usd(worth or 0.0)} and a wrong one costs "
        f"{exact_usd(harm or 0.0)}, as given by the reader."
    ]


def _objective_words(objectives: dict[str, str]) -> tuple[str, ...]:
    if len(set(objectives.values())) == 1:
        return (next(iter(objectives.values())),)
    return tuple(f"{group}: {words}" for group, words in objectives.items())


def _cautions(entries: list[Entry]) -> dict[str, str]:
    """Each caution's sentence once; where rows differ in it, the formats are named."""
    found: dict[str, dict[str, list[str]]] = {}
    for entry in entries:
        for caution in [*entry.record.cautions, *entry.cautions]:
            formats = found.setdefault(caution.id, {}).setdefault(caution.message, [])
            formats.append(entry.row["format"])
    result = {}
    for name, messages in found.items():
        if len(messages) == 1:
            result[name] = next(iter(messages))
        else:
            result[name] = " | ".join(f"{', '.join(f)}: {m}" for m, f in messages.items())
    return result
