"""What the numbers of a table do not say, one sentence each."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from precision_explorer.table.against import is_in_looks
from precision_explorer.table.audit import FAILED
from precision_explorer.table.methods import apart
from precision_explorer.units import share

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry
    from precision_explorer.table.context import Run

_IN_TURN = (
    "Requests came one at a time or all at once: no arrivals by their own clock, no queue, {}, "
    "minutes rather than hours."
)
_BY_THEIR_CLOCK = (
    "Requests came by a plan of their own and waited in one queue for one server: {}, minutes "
    "rather than hours; another pattern of arrivals has other tails."
)
_NO_WORK = "no background work of the test's own"
_DISTURBED = (
    "Disturbed figures are those beside this background on this machine; other neighbours take "
    "other parts of it."
)
_BUSY = "Cost and value assume that the device is busy all the time at the offline rate."
_BUSY_WITHIN = (
    "Cost assumes that the device is busy all the time at the offline rate; value, of rows that "
    "were served requests, counts those within the limit at the rate that came."
)
_NO_METHOD = "Formats, devices and versions of libraries are no part of the method."
_OF_VERDICTS = (
    "A verdict holds for this task and these examples; another task may lose more or less."
)


def caveats(runs: list[Run], entries: list[Entry]) -> tuple[str, ...]:
    """Those that hold for every table, then those of its runs, its rows and its methods. Nothing of
    verdicts where no model is one that is scored."""
    scored = any(not e.record.cell.model.is_synthetic for e in entries)
    served = [e.record.measurements.serving is not None for e in entries]
    lines = [_unfinished(sweep, missing) for _, sweep, _, missing in runs if missing]
    beside = any(e.row["background"] for e in entries)
    work = f"{_NO_WORK} but in the disturbed figures" if beside else _NO_WORK
    lines += [_BY_THEIR_CLOCK.format(work)] if any(served) else []
    lines += [] if all(served) else [_IN_TURN.format(work)]
    by_rate = any(s and e.slo is not None for s, e in zip(served, entries, strict=True))
    lines += [*([_DISTURBED] if beside else []), _BUSY_WITHIN if by_rate else _BUSY]
    lines += _tokens_of_a_request(entries)
    lines += _single_stream_watts(entries)
    lines += [_OF_VERDICTS] if scored else []
    for _, sweep, options, _ in runs:
        lines += _of_run(sweep, options)
    lines += _one_price(runs)
    lines += _of_rows(entries)
    lines += [_budget(entries)] if scored else []
    return (*lines, *_of_methods(entries))


def _budget(entries: list[Entry]) -> str:
    budgets = {e.row["quality_budget"] for e in entries}
    return (
        f"Verdicts: the quality budget is {share(min(budgets))} (points for shares, relative to "
        "the reference otherwise), one-sided 95 %."
    )


def _unfinished(sweep: dict[str, Any], missing: list[str]) -> str:
    have = "have" if len(missing) > 1 else "has"
    return (
        f"UNFINISHED: {len(missing)} of {len(sweep['plan']['cells'])} cells {have} no readable "
        f"result in {sweep['run']} ({', '.join(missing)}); run the sweep again to resume."
    )


def _of_run(sweep: dict[str, Any], options: dict[str, Any]) -> list[str]:
    lines = []
    own = sweep["reader"]
    changed = [n for n in ("reference", "quality_budget", "slo") if own[n] != options[n]]
    if changed:
        names = ", ".join(name.replace("_", " ") for name in changed)
        lines.append(f"{sweep['run']}: {names} of this table, not those that it was swept with.")
    if options.get("metric"):
        lines.append(
            f"{sweep['run']}: quality in {options['metric']} for the tasks that have it, not in "
            "the metric that they were swept with."
        )
    return lines


def _tokens_of_a_request(entries: list[Entry]) -> list[str]:
    """How much is generated when requests are timed, which no task's answers decide."""
    counts = set()
    for entry in entries:
        workload, latency = entry.record.cell.workload, entry.record.measurements.latency
        if latency is not None and latency.generates and not workload.get("lengths"):
            counts.add(workload.get("output_tokens"))
    known = sorted(count for count in counts if isinstance(count, int))
    return [
        f"Every timed request generates {count:,} tokens, however long the task's answers are: "
        "latency, energy, cost and value are those of such requests."
        for count in known
    ]


def _single_stream_watts(entries: list[Entry]) -> list[str]:
    """That a price of measured power takes that of single requests for all loads."""
    if not any(
        e.price is not None and "power_w" in e.price.inputs and _measures(e) for e in entries
    ):
        return []
    return [
        "Prices of measured power hold the watts of the latency window: in full batches the device "
        "draws more, so there the energy's part of cost is too low."
    ]


def _measures(entry: Entry) -> bool:
    return any(
        p.get("power_w") == "measured" for p in (entry.reader.get("price") or {}).get("prices", ())
    )


def _one_price(runs: list[Run]) -> list[str]:
    """That a reader's price is that of several devices, which have others."""
    devices = {sweep["environment"]["device_name"] for _, sweep, _, _ in runs}
    if len(devices) < 2:
        return []
    files = [options.get("price") or {} for _, _, options, _ in runs]
    for_any = all(
        len(file.get("prices", ())) == 1
        and file["prices"][0].get("device", "*") == "*"
        and file["prices"][0]["kind"] != "list"
        for file in files
    )
    given = {options["price_per_hour"] for _, _, options, _ in runs}
    own = any(s["reader"].get("price_per_hour") not in given for _, s, _, _ in runs)
    if not for_any and (None in given or len(given) > 1 or not own):
        return []
    return [
        f"All {len(devices)} devices count at the one price given; without it each run counts at "
        "its own, or at that of the price sheet for its device."
    ]


def _of_rows(entries: list[Entry]) -> list[str]:
    lines = []
    busy = [_label(e.row) for e in entries if "machine-busy" in e.row["cautions"].split(";")]
    if busy:
        lines.append(
            f"Other processes were at work while {', '.join(dict.fromkeys(busy))} were timed: "
            "don't rely on the speed and cost of these rows; measure again on an idle machine."
        )
    if any("machine-drifted" in e.row["cautions"].split(";") for e in entries):
        lines.append(
            "The machine itself got faster or slower while formats were timed, by its reference in "
            "the first and the last round (machine-drifted): don't rely on small differences in "
            "speed and cost."
        )
    lines += _failed_audits(entries)
    lines += [
        f"{group} has no result on the same examples, so its rows have no differences, no verdicts."
        for group in _without_difference(entries)
    ]
    fewer = [e.row["format"] for e in entries if e.row["looks"] is not None]
    if fewer:
        lines.append(
            f"{', '.join(dict.fromkeys(fewer))} were scored until their verdict was clear, on the "
            "first examples of the reference's order: compare their change against the reference, "
            "not their quality, which is that of these examples. Verdicts, intervals and p values "
            "of these rows hold at whatever example the scoring stopped."
        )
    grids = {g for e in entries if (g := e.row["grid_g_per_kwh"]) is not None}
    if grids:
        factors = ", ".join(f"{grid:g}" for grid in sorted(grids))
        lines.append(
            f"Carbon is measured energy times the grid's {factors} g of CO2 equivalent per kWh, as "
            "given by the reader: within the meter's boundary, without the rest of the machine, "
            "cooling, losses on the way, and the making of the device."
        )
    if any(e.row["power_source"] == "estimated:cpu-time" for e in entries):
        lines.append("Energy is an estimate from CPU time, not a measurement; it ranks nothing.")
    return lines


def _failed_audits(entries: list[Entry]) -> list[str]:
    failed = [e.row for e in entries if str(e.row["audit"] or "").startswith(FAILED)]
    if not failed:
        return []
    names = ", ".join(dict.fromkeys(_label(row) for row in failed))
    return [
        f"Audits of the measurement failed for {names}: their figures may not be what they seem "
        "(see Audits and the cautions); measure these rows again before relying on them."
    ]


def _label(row: dict[str, Any]) -> str:
    """The format, with its runtime where that is not the usual one."""
    eager = row["runtime"] in (None, "eager")
    return str(row["format"]) if eager else f"{row['format']} ({row['runtime']})"


def _without_difference(entries: list[Entry]) -> list[str]:
    """Where rows of quality have no reference to be compared with."""
    found = (
        f"{e.row['model']}, {e.row['task']} on {e.row['device']}: the reference "
        f"{e.reader['reference']}"
        for e in entries
        if e.quality is not None
        and e.row["quality_delta"] is None
        and e.row["format"] != e.reader["reference"]
        and not is_in_looks(e)
    )
    return list(dict.fromkeys(found))


def _of_methods(entries: list[Entry]) -> list[str]:
    methods: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for e in entries:
        methods[e.row["model"], e.row["task"]][e.record.method_id] = e.record.cell.method()
    return [
        f"{model} on {task} was measured by more than one method: compare only rows of the same "
        f"method_id, which stand in a section and have a front of their own. {apart(documents)} "
        f"{_NO_METHOD}"
        for (model, task), documents in methods.items()
        if len(documents) > 1
    ]
