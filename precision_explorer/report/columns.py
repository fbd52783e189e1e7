"""Which columns are shown, under which heading, and the text of each cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from precision_explorer.report.groups import Group, Row
from precision_explorer.report.ranking import is_busy
from precision_explorer.units import (
    MISSING,
    bytes_,
    count,
    joules,
    points,
    rate,
    seconds,
    share,
    signed,
    significant,
    usd,
    watts,
)


@dataclass(frozen=True)
class Cell:
    """`tone` is one of good, bad, unsure, strong, or empty: what an output may colour."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class View:
    """A table ready to print; the first column names the row."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: tuple[bool, ...]


@dataclass(frozen=True)
class _Column:
    heading: str
    show: Callable[[Group, Row], str | Cell]
    numeric: bool = True


_VERDICT_TONES = {"within": "good", "outside": "bad", "cannot-tell": "unsure"}


def is_estimated(row: Row) -> bool:
    """Whether the row's energy was not measured but estimated."""
    return str(row["power_source"] or "").startswith("estimated")


def quality_text(group: Group, value: float | None) -> str:
    """A value of the quality metric: percent for shares, else four digits in the metric's unit."""
    return share(value) if group.is_share else significant(value, 4)


def change(group: Group, row: Row, column: str = "quality_delta") -> float | None:
    """A difference to the reference in the unit of the quality budget: points of a share, else
    relative to the reference's value."""
    delta = row[column]
    if delta is None or group.is_share:
        return None if delta is None else float(delta)
    reference = group.reference_of(row)
    base = reference["quality"] if reference else None
    return delta / abs(base) if base else None


def change_text(group: Group, value: float | None, digits: int = 2) -> str:
    """What `change` returns, as text: percentage points or percent of the reference."""
    if group.is_share or value is None:
        return points(value, digits)
    return signed(value, share(value, digits))


def _quality(group: Group, row: Row) -> str:
    if row["quality"] is None:
        return MISSING
    ends = [quality_text(group, row[f"quality_ci_{end}"]) for end in ("low", "high")]
    text = f"{quality_text(group, row['quality'])} {_interval(ends)}"
    return f"{text}, {row['unparsed']:,} unparsed" if row["unparsed"] else text


def _delta(group: Group, row: Row) -> str:
    delta = row["quality_delta"]
    if delta is None:
        return MISSING
    low, high = (row[f"quality_delta_ci_{end}"] for end in ("low", "high"))
    if group.is_share:
        return f"{points(delta)} {_interval([points(low), points(high)])}"
    ends = [MISSING if v is None else signed(v, significant(v)) for v in (low, high)]
    relative = change(group, row)
    text = f"{signed(delta, significant(delta))} {_interval(ends)}"
    return text if relative is None else f"{text} = {change_text(group, relative)}"


def _interval(ends: list[str]) -> str:
    """``[a, b]``; the unit stands with the value before it."""
    if set(ends) == {MISSING}:
        return "[no interval]"
    bare = [end.removesuffix(" pp").removesuffix(" %") for end in ends]
    return f"[{bare[0]}, {bare[1]}]"


def verdict_cell(group: Group, row: Row) -> Cell:
    """The row's verdict with what belongs to it, or that it is the reference."""
    note = row["verdict_note"]
    if row["verdict"] is None:
        return Cell("reference" if group.is_reference(row) else note or MISSING)
    text = f"{row['verdict']}: {note}" if note else row["verdict"]
    return Cell(text, _VERDICT_TONES.get(row["verdict"], ""))


def _front(group: Group, row: Row) -> Cell:
    if row["pareto"] is None:
        return Cell(MISSING)
    known = row["pareto_probability"]
    text = row["pareto"] if known is None else f"{row['pareto']} {share(known, 0)}"
    if is_busy(row):
        text += " (timed beside other work)"
    return Cell(text, "strong" if row["pareto"] == "yes" else "")


def percentile_text(row: Row, name: str) -> str:
    """The percentile `name` (``p99``), or how many requests it takes."""
    needed = row[f"latency_{name}_needed_n"]
    value = row[f"latency_{name}_s"]
    if value is None and needed is not None:
        return f"needs n >= {needed:,}"
    return seconds(value)


def _percentile(name: str) -> Callable[[Group, Row], str]:
    return lambda group, row: percentile_text(row, name)


def _seconds_interval(name: str) -> Callable[[Group, Row], str]:
    def show(group: Group, row: Row) -> str:
        low, high = (row[f"latency_{name}_ci_{end}_s"] for end in ("low", "high"))
        return MISSING if low is None or high is None else f"{seconds(low)} to {seconds(high)}"

    return show


def _throughput(group: Group, row: Row) -> str:
    batch = "" if row["batch_size"] is None else f" ({row['batch_size']})"
    return rate(row["throughput_per_s"]) + batch


def _estimate(text: str, row: Row) -> str:
    return f"{text} est." if is_estimated(row) and text != MISSING else text


def _plain(column: str, show: Callable[..., str]) -> Callable[[Group, Row], str]:
    return lambda group, row: show(row[column])


def _signed_share(value: float | None) -> str:
    return MISSING if value is None else signed(value, share(value))


def _word(value: object) -> str:
    return MISSING if value is None or value == "" else str(value)


def _whole(value: float | None) -> str:
    return MISSING if value is None else f"{round(value):,}"


def _quality_columns(group: Group) -> list[_Column]:
    return [
        _Column("Execution", _plain("execution", _word), numeric=False),
        _Column(f"{group.metric} ({group.direction}) [95% CI]", _quality),
        _Column(f"Change against {group.reference} [95% CI]", _delta),
        _Column("Verdict", verdict_cell, numeric=False),
        _Column("On the front", _front),
    ]


def series_word(row: Row) -> str:
    """Whether the latencies are a steady state's, or what else they are."""
    ids = (row["cautions"] or "").split(";")
    if "serving-refused" in ids:
        return "refused"
    if "serving-saturated" in ids:
        return "saturated"
    return "disturbed" if is_busy(row) else _word(row["steady"])


def _load_columns(group: Group) -> list[_Column]:
    """Of requests that came by their own clock; none where all came in turn."""
    if not _has(group, "offered_rate_per_s"):
        return []
    generates = any(row["batching"] not in (None, "dynamic") for row in group.ok)
    batching = _Column("Batching", _plain("batching", _word), numeric=False)
    return [
        *([batching] if generates else []),
        _Column("Lateness p99", _plain("lateness_p99_s", seconds)),
    ]


def _queue_columns(group: Group) -> list[_Column]:
    return [
        _Column("Offered", _plain("offered_rate_per_s", rate)),
        _Column("Achieved", _plain("achieved_rate_per_s", rate)),
        _Column("Busy", _plain("utilisation", lambda v: share(v, 0))),
        _Column("Queue p50", _plain("queue_p50_s", seconds)),
        _Column("Service p50", _plain("service_p50_s", seconds)),
    ]


def _speed_columns(group: Group) -> list[_Column]:
    tokens = [
        _Column("First token", _plain("ttft_s", seconds)),
        _Column("Per token", _plain("tpot_s", seconds)),
        _Column("Output tokens", _plain("output_tokens_per_s", rate)),
    ]
    return [
        _Column("Latency p50", _plain("latency_p50_s", seconds)),
        _Column("p99", _percentile("p99")),
        _Column("Series", lambda g, r: series_word(r), False),
        *(tokens if group.generates else []),
        _Column("Throughput (batch)", _throughput),
        _Column("Weights", _plain("weight_bytes", bytes_)),
        _Column("Peak memory", _plain("peak_memory_bytes", bytes_)),
    ]


def _economy_columns(group: Group) -> list[_Column]:
    results = "Useful results per $" if group.is_share else "Requests per $ within budget"
    carbon = [
        _Column(
            "Carbon per 1k requests",
            _plain("carbon_g_per_1k_requests", lambda v: f"{significant(v)} g"),
        )
    ]
    return [
        _Column("Energy per request", lambda g, r: _estimate(joules(r["energy_per_request_j"]), r)),
        _Column(
            "Requests per joule", lambda g, r: _estimate(significant(r["requests_per_joule"]), r)
        ),
        _Column("Cost per 1k requests", _plain("cost_per_1k_requests_usd", usd)),
        *_if_any(
            group,
            ("Cost at the offered load", "cost_per_1k_requests_offered_usd"),
            ("Cost per 1M output tokens", "cost_per_1m_output_tokens_usd"),
            ("Tokens at the offered load", "cost_per_1m_output_tokens_offered_usd"),
        ),
        _Column(results, _plain("value_per_usd", count)),
        *([_Column("Net per 1k requests [95% CI]", _net)] if _has(group, _NET) else []),
        *(carbon if any(r["carbon_g_per_1k_requests"] is not None for r in group.ok) else []),
    ]


_NET = "net_usd_per_1k_requests"


def _has(group: Group, column: str) -> bool:
    return any(row[column] is not None for row in group.ok)


def _if_any(group: Group, *named: tuple[str, str]) -> list[_Column]:
    """Columns of dollars that some row has."""
    return [_Column(heading, _plain(name, usd)) for heading, name in named if _has(group, name)]


def _net(group: Group, row: Row) -> str:
    if row[_NET] is None:
        return MISSING
    low, high = (row[f"{_NET}_ci_{end}"] for end in ("low", "high"))
    ends = "no interval" if low is None else f"{usd(low)}, {usd(high)}"
    return f"{usd(row[_NET])} [{ends}]"


def _other_scores(group: Group, row: Row) -> str:
    """The scores of the row's other metrics."""
    pairs = [text.rpartition("=") for text in (row["scores"] or "").split(";") if text]
    shown = [f"{n} {significant(float(v), 4)}" for n, _, v in pairs if n != row["quality_metric"]]
    return ", ".join(shown) or MISSING


def _rounds(group: Group, row: Row) -> str:
    """How many, and how far their median latencies lie apart."""
    spread = row["latency_p50_round_spread"]
    return _word(row["rounds"]) + ("" if spread is None else f" ({share(spread)})")


def _detail_columns(group: Group) -> list[_Column]:
    scored = any(_other_scores(group, row) != MISSING for row in group.ok)
    others = [_Column("Other scores", _other_scores, numeric=False)]
    rounds = [_Column("Rounds (spread of p50)", _rounds)]
    over_time = [
        _Column("First minute", _plain("peak_rate_per_s", rate)),
        _Column("After it", _plain("sustained_rate_per_s", rate)),
    ]
    metered = [
        _Column("Energy above idle", _plain("energy_net_per_request_j", joules)),
        _Column("Power against counter", _plain("energy_check", _signed_share)),
    ]
    known = [c for c, n in zip(metered, ("energy_net_per_request_j", "energy_check"), strict=True)
             if any(row[n] is not None for row in group.ok)]  # fmt: skip
    return [
        *(others if scored else []),
        _Column("Converted", _plain("converted_share", lambda v: share(v, 2))),
        _Column("Executed", _plain("executed_share", lambda v: share(v, 2))),
        _Column("Computed in", _plain("compute_dtype", _word), numeric=False),
        _Column("Kernel", _plain("kernel", _word), numeric=False),
        _Column("Examples", _plain("quality_n", _word)),
        _Column("Flips", _plain("flips", _word)),
        _Column("p value", _plain("p_value", lambda v: significant(v, 2))),
        *_load_columns(group),
        _Column("Requests timed", _plain("latency_n", _word)),
        *(rounds if any(row["rounds"] for row in group.ok) else []),
        _Column("Worth, for p99", _plain("latency_n_eff", _whole)),
        _Column("p50, 95% CI", _seconds_interval("p50")),
        _Column("p90", _percentile("p90")),
        _Column("p99, 95% CI", _seconds_interval("p99")),
        _Column("p99.9", _percentile("p999")),
        *(over_time if any(r["peak_rate_per_s"] is not None for r in group.ok) else []),
        _Column("First call", _plain("cold_first_s", seconds)),
        _Column("Load", _plain("load_s", seconds)),
        _Column("Compile", _plain("compile_s", seconds)),
        _Column("Power", lambda g, r: _estimate(watts(r["power_w"]), r)),
        *known,
        _Column("Energy source", _plain("power_source", _word), numeric=False),
        _Column("Method", _plain("method_id", _word), numeric=False),
        _Column("Cautions", _plain("cautions", _cautions), numeric=False),
    ]


def _cautions(value: str | None) -> str:
    return ", ".join(value.split(";")) if value else MISSING


def _view(title: str, group: Group, columns: list[_Column], rows: list[Row]) -> View:
    def cells(row: Row) -> tuple[Cell, ...]:
        shown = [column.show(group, row) for column in columns]
        return (Cell(group.named(row)), *(c if isinstance(c, Cell) else Cell(c) for c in shown))

    return View(
        title,
        ("Format", *(c.heading for c in columns)),
        tuple(cells(row) for row in rows),
        (False, *(c.numeric for c in columns)),
    )


def main_views(group: Group) -> list[View]:
    """The tables everyone reads, of the rows with results; none without such rows. That of the load
    where requests came by their own clock."""
    if not group.ok:
        return []
    queued = _has(group, "offered_rate_per_s")
    load = [_view("Load and queue", group, _queue_columns(group), group.ok)] if queued else []
    return [
        _view("Quality and front", group, _quality_columns(group), group.ok),
        _view("Speed and memory", group, _speed_columns(group), group.ok),
        *load,
        _view("Energy, cost and value", group, _economy_columns(group), group.ok),
    ]


def detail_view(group: Group) -> View | None:
    """What an engineer asks next, of the rows with results."""
    return _view("Detail", group, _detail_columns(group), group.ok) if group.ok else None


def unmeasured_view(group: Group) -> View | None:
    """Skipped and failed rows with their reasons."""
    columns = [
        _Column("Status", _plain("status", lambda v: v.replace("_", " ")), numeric=False),
        _Column("Reason", _plain("reason", _word), numeric=False),
    ]
    rows = group.unmeasured
    return _view("Skipped and failed", group, columns, rows) if rows else None
