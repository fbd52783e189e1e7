"""The tradeoff table: every column of the contract against values worked out by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from precision_explorer.errors import StoreError, UsageError
from precision_explorer.records import Cell, sealed, unsealed
from precision_explorer.records.record import NO_BUDGET, BatchRate
from precision_explorer.report.groups import groups
from precision_explorer.stats import interval, mcnemar_exact, needed_n, tango, wilson
from precision_explorer.store import RunFolder
from precision_explorer.table import COLUMNS, CONTRACT_COLUMNS, ROW_KEY, Table, build
from precision_explorer.tasks import sufficient
from tests.test_records import CELL, make_cell, make_record
from tests.test_store import arrow

# The contract's list, as it stands in the design.
CONTRACT = """
    model,task,format,runtime,device,batch_size,status,execution,converted_share,
    quality_metric,quality,quality_ci_low,quality_ci_high,quality_n,
    quality_delta,quality_delta_ci_low,quality_delta_ci_high,flips,p_value,verdict,
    latency_p50_s,latency_p90_s,latency_p99_s,latency_p999_s,latency_n,steady,throughput_per_s,
    ttft_s,tpot_s,output_tokens_per_s,
    weight_bytes,peak_memory_bytes,
    power_w,energy_per_request_j,power_source,
    cost_per_1k_requests_usd,requests_per_joule,value_per_usd,
    pareto,pareto_probability,method_id,cautions
"""
N = 40
MS = 1e-3


def classified(wrong: set[int], n: int = N, group: int | None = None) -> list[dict[str, Any]]:
    """Example rows of a classifier that is wrong on these examples."""
    rows = []
    for i in range(n):
        target = "positive" if i % 2 else "negative"
        other = "negative" if i % 2 else "positive"
        rows.append(
            {
                "id": f"e{i}",
                "group": None if group is None else f"g{i // group}",
                "target": target,
                "prediction": other if i in wrong else target,
                "score": float(i not in wrong),
                "loss": 0.25,
            }
        )
    return rows


def modelled(factor: float = 1.0, n: int = N) -> list[dict[str, Any]]:
    """Example rows of a language model whose losses are `factor` times some fixed ones."""
    return [
        {
            "id": f"e{i}",
            "group": None,
            "score": None,
            "loss": factor * (500 + 70 * (i % 5)),
            "tokens": 20,
            "words": 15,
            "bytes": 80 + i,
        }
        for i in range(n)
    ]


def served(latencies: Any, **extras: Any) -> list[dict[str, Any]]:
    """Request rows: a cold one and a warm-up, both very slow, and then these."""
    rows = [{"id": "e0", "index": 0, "window": "cold", "latency_s": 9.0} | extras]
    rows.append({"id": "e1", "index": 1, "window": "warmup", "latency_s": 8.0} | extras)
    for i, latency in enumerate(latencies):
        row = {"id": f"e{i % N}", "index": i % N, "window": "measure", "latency_s": float(latency)}
        rows.append(row | extras)
    return rows


def shuffled(values: Any) -> np.ndarray:
    """In an order without a trend."""
    return np.random.default_rng(3).permutation(np.asarray(values, dtype=float))


LATENCIES = shuffled(np.arange(1, N + 1)) * MS


def measured(
    *,
    metric: str = "accuracy",
    quality: float = 0.8,
    rate: float = 100.0,
    peak: int = 1000,
    energy: dict[str, Any] | None = None,
    stopped_by: str = "rules",
    generates: bool = False,
) -> dict[str, Any]:
    """Measurements of a cell: load 1.75 s, batch sizes 1 and 8, of which 8 is the faster."""
    tokens = rate * 16 if generates else None
    return {
        "load": {"import_s": 0.5, "load_s": 1.0, "apply_s": 0.25},
        "quality": {
            "metric": metric,
            "scores": {metric: quality},
            "seconds": 1.0,
            "examples": N,
            "tokens": 1000,
            "batches": 3,
            "batch_plan_hash": "f" * 16,
        },
        "latency": {
            "cold_first_s": 9.0,
            "warmup_requests": 1,
            "requests": N,
            "window_s": 3.0,
            "stopped_by": stopped_by,
            "phases": {},
            "generates": generates,
        },
        "throughput": {
            "by_batch_size": {
                "1": {"requests_per_s": rate / 2, "batches": 2, "batch_s": [0.5, 0.5]},
                "8": {
                    "requests_per_s": rate,
                    "output_tokens_per_s": tokens,
                    "batches": 2,
                    "batch_s": [0.08, 0.08],
                },
            },
            "best_batch_size": 8,
        },
        "memory": {"method": "uss", "baseline_bytes": 7, "serving_peak_bytes": peak},
        "energy": energy or {"source": "unavailable"},
    }


def applied(fmt: str, **changes: Any) -> dict[str, Any]:
    return {
        "format": fmt,
        "execution": "native",
        "reason": "a unit",
        "library": "torch",
        "kernel": "torch",
        "compute_dtype": "float32",
        "linear_elements": 100,
        "converted_elements": 100,
        "converted_share": 1.0,
        "weight_bytes": 400,
    } | changes


ENVIRONMENT = {
    "python": "3.11", "platform": "Linux", "device_name": "Some CPU", "device": {"kind": "cpu"},
    "cpu_model": "Some CPU", "cores": 2, "memory_bytes": 8_000_000_000, "threads": 2,
    "libraries": {"torch": "2.13.0"},
}  # fmt: skip


def ok(
    fmt: str,
    examples: list[dict[str, Any]],
    requests: list[dict[str, Any]] | None = None,
    cell: dict[str, Any] | None = None,
    applied_changes: dict[str, Any] | None = None,
    cautions: list[dict[str, str]] | None = None,
    **measurements: Any,
) -> tuple[Any, dict[str, bytes]]:
    """A finished cell with its rows."""
    record = make_record(
        cell=make_cell(format=fmt, **(cell or {})),
        applied=applied(fmt, **(applied_changes or {})),
        measurements=measured(**measurements),
        environment=ENVIRONMENT,
        cautions=cautions or [],
    )
    rows = {"example": arrow(examples)}
    rows["request"] = arrow(requests if requests is not None else served(LATENCIES))
    return record, rows


def skipped(fmt: str) -> tuple[Any, None]:
    return make_record("skipped", make_cell(format=fmt), skip_reason="no such unit"), None


def failed(fmt: str) -> tuple[Any, None]:
    measurements = {name: measured()[name] for name in ("load", "memory", "quality")}
    record = make_record(
        "failed",
        make_cell(format=fmt),
        applied=applied(fmt),
        measurements=measurements,
        error={"kind": "WorkerCrashed", "message": "the worker was ended by SIGSEGV"},
        cautions=[{"id": "one", "message": "One."}],
    )
    return record, None


READER = {"price_per_hour": 0.36, "slo": None, "quality_budget": 0.01, "reference": "fp32"}


def make_run(
    path: Path,
    cells: list[tuple[Any, Any]],
    reader: dict[str, Any] | None = None,
    missing: tuple[Cell, ...] = (),
    metric: str = "accuracy",
    environment: dict[str, Any] | None = None,
) -> Path:
    """A run's folder with these cells, as a sweep leaves it; `missing` were planned, not run."""
    folder = RunFolder(path)
    folder.open()
    planned = [record.cell for record, _ in cells] + list(missing)
    folder.write_sweep(
        {
            "schema_version": 1,
            "run": path.name,
            "spec": {},
            "reader": READER | (reader or {}),
            "plan": {
                "cells": [
                    {"cell_id": c.cell_id, "format": c.format, "task": c.task.name} for c in planned
                ]
            },
            "models": [{"name": "demo", "revision": "r", "cautions": []}],
            "tasks": [
                {
                    "name": "sentiment",
                    "version": 1,
                    "kind": "text-classification",
                    "metric": metric,
                    "n": N,
                    "licence": "MIT",
                    "source": "made up",
                }
            ],
            "environment": ENVIRONMENT | (environment or {}),
            "methods": {cell.method_id: cell.method() for cell in planned},
        }
    )
    # Each folder is a measurement of its own, however alike the figures.
    moment = f"2026-01-02T03:04:05.{crc32(str(path).encode()) % 10**6:06}Z"
    for record, rows in cells:
        folder.write_record(record.model_copy(update={"started_at": moment}))
        if rows is not None:
            folder.write_samples(record.cell_id, rows)
    folder.write_manifest()
    folder.close()
    return path


def rows_of(table: Table) -> dict[str, dict[str, Any]]:
    return {row["format"]: row for row in table.rows}


REF_WRONG = set(range(8))
"""fp32 is right on 32 of 40: 0.8."""
INT8_WRONG = set(range(1, 8)) | {20, 30}
"""int8 on 31 of 40: right on example 0, wrong on 20 and 30: 0.775, three flips."""
NVML = {"source": "measured:nvml", "energy_j": 60.0, "window_s": 3.0, "requests": N}


@pytest.fixture
def small_run(tmp_path):
    """A reference, an int8 that loses a little and is faster, a skip and a failure."""
    return make_run(
        tmp_path / "small",
        [
            ok(
                "fp32",
                classified(REF_WRONG),
                applied_changes={"weight_bytes": 4000},
                energy=NVML,
                cautions=[
                    {"id": "b-second", "message": "B."},
                    {"id": "a-first", "message": "A."},
                    {"id": "b-second", "message": "B."},
                ],
            ),
            skipped("tf32"),
            failed("bf16"),
            ok(
                "int8-dynamic",
                classified(INT8_WRONG),
                served(LATENCIES / 2),
                applied_changes={"converted_share": 0.98, "kernel": "fbgemm-per-token"},
                quality=0.775,
                rate=200.0,
                peak=400,
                energy=NVML | {"energy_j": 30.0},
            ),
        ],
    )


@pytest.fixture
def rows(small_run):
    return rows_of(build([small_run]))


def test_the_columns_are_the_contract_s_in_its_order_and_more_only_at_the_end(small_run):
    names = tuple(name.strip() for name in CONTRACT.replace("\n", "").split(","))
    assert names == CONTRACT_COLUMNS
    assert COLUMNS[: len(names)] == names
    assert len(set(COLUMNS)) == len(COLUMNS)
    table = build([small_run])
    assert table.columns == COLUMNS
    for row in table.rows:
        assert tuple(row) == COLUMNS
    frame = table.to_frame()
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 4


def test_one_row_per_cell_in_the_plan_s_order(small_run):
    table = build([small_run])
    assert [row["format"] for row in table.rows] == ["fp32", "tf32", "bf16", "int8-dynamic"]
    assert [row["status"] for row in table.rows] == ["ok", "skipped", "failed", "ok"]


def test_who_what_and_where(rows):
    for name, row in rows.items():
        assert (row["model"], row["task"], row["format"]) == ("demo", "sentiment", name)
        assert (row["runtime"], row["device"]) == ("eager", "Some CPU")
        assert row["method_id"] == make_cell().method_id
        assert row["model_revision"] == CELL["model"]["revision"]
        assert row["task_version"] == 1
        assert row["stack"] == "torch=2.13.0 transformers=5.24.0"
        assert row["quality_budget"] == 0.01


def test_what_became_of_the_model(rows):
    assert rows["fp32"]["execution"] == "native"
    assert (rows["fp32"]["converted_share"], rows["fp32"]["weight_bytes"]) == (1.0, 4000)
    int8 = rows["int8-dynamic"]
    assert (int8["converted_share"], int8["weight_bytes"]) == (0.98, 400)
    assert int8["kernel"] == "fbgemm-per-token"
    assert int8["compute_dtype"] == "float32"


def test_quality_with_wilson_s_interval(rows):
    row = rows["fp32"]
    assert row["quality_metric"] == "accuracy"
    assert (row["quality"], row["quality_n"]) == (0.8, 40)
    assert (row["quality_ci_low"], row["quality_ci_high"]) == wilson(32, 40)
    # Worked out from Wilson's formula with z = 1.959964.
    assert row["quality_ci_low"] == pytest.approx(0.652427, abs=1e-6)
    assert row["quality_ci_high"] == pytest.approx(0.895001, abs=1e-6)


def test_the_difference_to_the_reference(rows):
    row = rows["int8-dynamic"]
    assert row["quality_delta"] == pytest.approx(-1 / 40)
    assert (row["quality_delta_ci_low"], row["quality_delta_ci_high"]) == tango(2, 1, 40)
    assert row["flips"] == 3
    assert row["p_value"] == mcnemar_exact(2, 1) == 1.0
    assert row["verdict"] == "cannot-tell"
    assert row["verdict_note"].startswith("needs n of about ")
    assert row["quality_budget_unit"] == "points"


def test_the_reference_has_no_difference_to_itself(rows):
    row = rows["fp32"]
    for name in ("quality_delta", "quality_delta_ci_low", "quality_delta_ci_high", "flips",
                 "p_value", "verdict", "verdict_note"):  # fmt: skip
        assert row[name] is None


def test_percentiles_stand_only_where_the_sample_supports_them(rows):
    row = rows["fp32"]
    assert row["latency_n"] == 40
    assert row["latency_p50_s"] == pytest.approx(20.5 * MS)
    assert row["latency_p90_s"] == pytest.approx(36 * MS)
    assert row["latency_p99_s"] is None
    assert row["latency_p999_s"] is None
    assert row["cold_first_s"] == 9.0
    assert row["load_s"] == 1.75
    assert rows["int8-dynamic"]["latency_p50_s"] == pytest.approx(10.25 * MS)


@pytest.mark.parametrize(
    ("n", "shown"), [(28, 1), (29, 2), (298, 2), (299, 3), (2994, 3), (2995, 4)]
)
def test_each_percentile_comes_with_its_sample_size(tmp_path, n, shown):
    latencies = shuffled(np.arange(1, n + 1)) * MS
    run = make_run(tmp_path / "r", [ok("fp32", classified(REF_WRONG), served(latencies))])
    (row,) = build([run]).rows
    names = ["latency_p50_s", "latency_p90_s", "latency_p99_s", "latency_p999_s"]
    assert [row[name] is not None for name in names] == [True] * shown + [False] * (4 - shown)
    if shown == 4:
        assert row["latency_p999_s"] == pytest.approx(math.ceil(0.999 * n) * MS)
    assert needed_n(0.99) == 299


@pytest.mark.parametrize(
    ("latencies", "stopped_by", "label"),
    [
        (LATENCIES / 1000 + 0.02, "rules", "steady"),
        (LATENCIES / 1000 + 0.02, "budget", "budget-exhausted"),
        (np.linspace(0.01, 0.05, 60), "rules", "drifting"),
        (shuffled([0.01] * 30 + [0.02] * 30), "rules", "bimodal"),
        ([0.01] * 19, "rules", None),
    ],
)
def test_the_row_says_whether_the_latency_was_steady(tmp_path, latencies, stopped_by, label):
    cell = ok("fp32", classified(REF_WRONG), served(latencies), stopped_by=stopped_by)
    (row,) = build([make_run(tmp_path / "r", [cell])]).rows
    assert row["steady"] == label


@pytest.mark.parametrize("note", [NO_BUDGET, "out of memory", None])
def test_larger_batches_for_which_there_was_no_time_are_a_caution(tmp_path, note):
    record, samples = ok("bf16", classified(set()))
    document = record.model_dump(mode="json")
    sizes = document["measurements"]["throughput"]["by_batch_size"]
    sizes["64"] = {"requests_per_s": None, "batches": 0, "batch_s": [], "note": note}
    cells = [ok("fp32", classified(set())), (type(record).model_validate(document), samples)]
    row = build([make_run(tmp_path / "run", cells)]).rows[1]
    assert ("batches-left-out" in (row["cautions"] or "").split(";")) == (note == NO_BUDGET)


def test_throughput_is_of_the_best_batch_size(rows):
    assert (rows["fp32"]["batch_size"], rows["fp32"]["throughput_per_s"]) == (8, 100.0)
    assert rows["fp32"]["output_tokens_per_s"] is None
    assert rows["fp32"]["peak_memory_bytes"] == 1000


def test_energy_of_the_latency_window(rows):
    row = rows["fp32"]
    assert row["power_source"] == "measured:nvml"
    assert row["power_w"] == pytest.approx(20.0)
    assert row["energy_per_request_j"] == pytest.approx(1.5)
    assert row["requests_per_joule"] == pytest.approx(40 / 60)


def test_cost_and_value_at_the_price(rows):
    row = rows["fp32"]
    # 0.36 $/h is 0.0001 $/s; at 100 requests/s 1,000 requests take 10 s.
    assert row["price_per_hour_usd"] == 0.36
    assert row["cost_per_1k_requests_usd"] == pytest.approx(0.001)
    # One dollar buys 10,000 s, a million requests, of which 80 % are right.
    assert row["value_per_usd"] == pytest.approx(800_000)
    assert rows["int8-dynamic"]["cost_per_1k_requests_usd"] == pytest.approx(0.0005)
    assert rows["int8-dynamic"]["value_per_usd"] == pytest.approx(1_550_000)


def test_what_did_not_run_has_a_reason_and_no_numbers(rows):
    assert rows["tf32"]["reason"] == "no such unit"
    assert rows["tf32"]["execution"] == "unsupported"
    assert rows["bf16"]["reason"] == "the worker was ended by SIGSEGV"
    assert rows["bf16"]["cautions"] == "one"
    empty = set(CONTRACT_COLUMNS) - {
        "model", "task", "format", "runtime", "device", "status", "execution", "method_id",
        "cautions",
    }  # fmt: skip
    assert {name for name in empty if rows["tf32"][name] is not None} == set()
    known = {"converted_share", "weight_bytes"}
    assert {name for name in empty if rows["bf16"][name] is not None} == known


def test_what_was_not_measured_is_empty(tmp_path):
    record, samples = ok("fp32", classified(REF_WRONG))
    for name in ("quality", "latency", "throughput", "memory", "energy", "load"):
        setattr(record.measurements, name, None)
    (row,) = build([make_run(tmp_path / "r", [(record, samples)])]).rows
    numbers = set(CONTRACT_COLUMNS[CONTRACT_COLUMNS.index("quality_metric") :]) - {
        "weight_bytes", "method_id", "cautions",
    }  # fmt: skip
    assert {name for name in numbers if row[name] is not None} == set()


def test_cautions_are_short_ids_once_each_and_their_sentences_are_in_the_context(small_run):
    table = build([small_run])
    assert rows_of(table)["fp32"]["cautions"] == "b-second;a-first"
    assert rows_of(table)["int8-dynamic"]["cautions"] == ""
    assert table.context.cautions == {"b-second": "B.", "a-first": "A.", "one": "One."}


def test_the_root_of_the_manifest_stands_in_every_row(small_run):
    table = build([small_run])
    root = json.loads((small_run / "manifest.json").read_text())["root"]
    assert {row["manifest_root"] for row in table.rows} == {root}
    assert table.context.manifest_root == root


# -- verdicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "budget", "verdict"),
    [
        (INT8_WRONG, 0.2, "within"),
        (set(range(30)), 0.01, "outside"),
        (INT8_WRONG, 0.01, "cannot-tell"),
        # Nothing flipped, but 40 examples can't show a loss below 1 %.
        (REF_WRONG, 0.01, "cannot-tell"),
    ],
)
def test_verdicts(tmp_path, wrong, budget, verdict):
    cells = [ok("fp32", classified(REF_WRONG)), ok("bf16", classified(wrong))]
    run = make_run(tmp_path / "r", cells, {"quality_budget": budget})
    row = rows_of(build([run]))["bf16"]
    assert row["verdict"] == verdict
    assert row["quality_budget"] == budget
    assert (row["verdict_note"] is None) == (verdict != "cannot-tell")


def test_no_flips_is_not_certainty(tmp_path):
    cells = [ok("fp32", classified(REF_WRONG)), ok("bf16", classified(REF_WRONG))]
    row = rows_of(build([make_run(tmp_path / "r", cells)]))["bf16"]
    assert (row["quality_delta"], row["flips"], row["p_value"]) == (0.0, 0, 1.0)
    # Tango's interval with no flips: +- z^2 / (n + z^2).
    z2 = 1.959964**2
    assert row["quality_delta_ci_high"] == pytest.approx(z2 / (N + z2), abs=1e-6)
    assert row["quality_delta_ci_low"] == -row["quality_delta_ci_high"]


def test_examples_that_are_not_the_same_are_not_compared(tmp_path):
    cells = [ok("fp32", classified(REF_WRONG)), ok("bf16", classified(REF_WRONG, n=30))]
    table = build([make_run(tmp_path / "r", cells)])
    row = rows_of(table)["bf16"]
    assert row["quality_n"] == 30
    assert row["quality_delta"] is row["verdict"] is row["flips"] is None
    assert any("no differences" in line and "fp32" in line for line in table.context.caveats)


def test_a_reference_without_a_result_is_said(tmp_path, small_run):
    cells = [failed("fp32"), ok("bf16", classified(REF_WRONG))]
    table = build([make_run(tmp_path / "r", cells)])
    assert rows_of(table)["bf16"]["verdict"] is None
    assert any("reference fp32 has no result" in line for line in table.context.caveats)
    assert not any("has no result on" in line for line in build([small_run]).context.caveats)


def test_another_reference_is_another_difference(small_run):
    rows = rows_of(build([small_run], {"reference": "int8-dynamic"}))
    assert rows["fp32"]["quality_delta"] == pytest.approx(1 / 40)
    assert rows["int8-dynamic"]["quality_delta"] is None


def test_few_clusters_count_for_as_many_examples_as_there_are_clusters(tmp_path):
    """8 wrong in 2 of 10 groups of 4: no more is known than of 10 examples, 2 of them wrong."""
    reference, other = classified(REF_WRONG, group=4), classified(INT8_WRONG, group=4)
    cells = [ok("fp32", reference), ok("bf16", other, quality=0.775)]
    rows = rows_of(build([make_run(tmp_path / "r", cells)]))
    found = rows["fp32"]["quality_ci_low"], rows["fp32"]["quality_ci_high"]
    assert found == pytest.approx(wilson(8, 10))
    assert rows["bf16"]["quality_delta"] == pytest.approx(-1 / 40)
    assert rows["bf16"]["flips"] == 3
    assert (rows["bf16"]["flips_to_wrong"], rows["bf16"]["flips_to_right"]) == (2, 1)
    ends = rows["bf16"]["quality_delta_ci_low"], rows["bf16"]["quality_delta_ci_high"]
    assert ends == pytest.approx(tango(2 / 4, 1 / 4, 10))
    # Two clusters are worse and one is better.
    assert rows["bf16"]["p_value"] == mcnemar_exact(2, 1)


def test_no_flips_in_clusters_is_less_certain_than_among_as_many_examples(tmp_path):
    cells = [ok(name, classified(REF_WRONG, group=4)) for name in ("fp32", "bf16")]
    row = rows_of(build([make_run(tmp_path / "r", cells, {"quality_budget": 0.05})]))["bf16"]
    z2 = 1.959964**2
    # Tango's interval without a flip, of the 10 clusters: the bootstrap would say [0, 0].
    assert row["quality_delta_ci_high"] == pytest.approx(z2 / (10 + z2), abs=1e-6)
    assert (row["quality_delta"], row["p_value"], row["verdict"]) == (0.0, 1.0, "cannot-tell")
    # z^2 (1 - budget) / budget = 51.4 clusters, of 4 examples.
    assert row["verdict_note"] == "needs n of about 208"


def test_many_clusters_are_resampled_whole(tmp_path):
    wrong = {i for i in range(N) if i % 4 < 2}  # 10 of 20 clusters.
    reference, other = classified(set(), group=2), classified(wrong, group=2)
    cells = [ok("fp32", other), ok("bf16", reference)]
    rows = rows_of(build([make_run(tmp_path / "r", cells)]))
    columns = {name: [row[name] for row in other] for name in other[0]}
    statistics, finish = sufficient("accuracy", columns)
    low, high = interval(statistics, finish, seed=0, groups=columns["group"])
    assert (rows["fp32"]["quality_ci_low"], rows["fp32"]["quality_ci_high"]) == (low, high)
    assert high - low > np.subtract(*wilson(20, 40)[::-1])
    assert rows["bf16"]["quality_delta_ci_low"] > 0


def test_macro_f1_is_compared_by_the_bootstrap_and_its_flips_counted(tmp_path):
    cells = [
        ok("fp32", classified(REF_WRONG), metric="macro_f1", quality=0.8),
        ok("bf16", classified({0}), metric="macro_f1", quality=0.975),
    ]
    row = rows_of(build([make_run(tmp_path / "r", cells)]))["bf16"]
    # 4 of 20 wrong in each class, both ways: each F1 is 0.8; then 1 wrong: 38/39 and 40/41.
    assert row["quality_delta"] == pytest.approx((38 / 39 + 40 / 41) / 2 - 0.8)
    assert row["quality_delta_ci_low"] < row["quality_delta"] < row["quality_delta_ci_high"]
    assert row["flips"] == 7
    assert row["verdict"] == "within"
    assert row["quality_budget_unit"] == "points"


# -- language models --------------------------------------------------------------------------


def bits(factor: float = 1.0) -> float:
    rows = modelled(factor)
    return sum(r["loss"] for r in rows) / sum(r["bytes"] for r in rows) / math.log(2)


def language_cell(fmt: str, factor: float = 1.0, **changes: Any) -> tuple[Any, Any]:
    requests = served(LATENCIES, ttft_s=0.25, tpot_s=0.05)
    given = {"metric": "bits_per_byte", "quality": bits(factor), "generates": True} | changes
    return ok(fmt, modelled(factor), requests, **given)


@pytest.fixture
def language_rows(tmp_path):
    cells = [
        language_cell("fp32"),
        language_cell("bf16", 1.002, rate=200.0),
        language_cell("int8-dynamic", 1.05),
        language_cell("fp16", 0.9),
    ]
    return rows_of(build([make_run(tmp_path / "lm", cells, metric="bits_per_byte")]))


def test_lower_is_better_and_the_budget_is_relative(language_rows):
    reference, bf16 = language_rows["fp32"], language_rows["bf16"]
    assert reference["quality"] == pytest.approx(bits())
    # Every loss is 1.002 times as large, so is every resample's metric: more than 0.01 bits, but
    # less than 1 % of them.
    assert bf16["quality_delta"] == pytest.approx(0.002 * bits())
    assert bf16["quality_delta_ci_low"] == pytest.approx(0.002 * reference["quality_ci_low"])
    assert bf16["quality_delta_ci_high"] == pytest.approx(0.002 * reference["quality_ci_high"])
    assert bf16["p_value"] == pytest.approx(2 / 1001)
    assert bf16["verdict"] == "within"
    assert bf16["quality_budget_unit"] == "relative"
    assert bf16["flips"] is None
    assert language_rows["int8-dynamic"]["verdict"] == "outside"
    assert language_rows["fp16"]["verdict"] == "within"
    assert language_rows["fp16"]["quality_delta"] < 0


def test_value_of_no_share_is_requests_per_dollar_where_the_loss_is_within(language_rows):
    assert language_rows["bf16"]["value_per_usd"] == pytest.approx(2_000_000)
    assert language_rows["int8-dynamic"]["value_per_usd"] is None
    # The reference loses nothing against itself.
    assert language_rows["fp32"]["value_per_usd"] == pytest.approx(1_000_000)


def test_lower_is_better_on_the_front(language_rows):
    # All else is equal, so only the best quality and the cheapest are left.
    assert {name: row["pareto"] for name, row in language_rows.items()} == {
        "fp32": "no", "bf16": "yes", "int8-dynamic": "no", "fp16": "yes",
    }  # fmt: skip


def test_times_of_tokens(language_rows):
    row = language_rows["fp32"]
    assert (row["ttft_s"], row["tpot_s"]) == (0.25, 0.05)
    assert row["output_tokens_per_s"] == 1600.0


def test_one_output_token_has_no_time_between_tokens(tmp_path):
    requests = served(LATENCIES, ttft_s=0.25, tpot_s=None)
    cell = ok("fp32", classified(REF_WRONG), requests, generates=True)
    (row,) = build([make_run(tmp_path / "r", [cell])]).rows
    assert (row["ttft_s"], row["tpot_s"]) == (0.25, None)


# -- the front --------------------------------------------------------------------------------


def test_the_front_of_the_example(small_run):
    table = build([small_run])
    rows = rows_of(table)
    # int8 is better in all but quality, fp32 in quality.
    assert rows["fp32"]["pareto"] == rows["int8-dynamic"]["pareto"] == "yes"
    assert rows["tf32"]["pareto"] is rows["bf16"]["pareto"] is None
    assert rows["tf32"]["pareto_probability"] is rows["bf16"]["pareto_probability"] is None
    # int8 is never beaten, as its memory is the least. fp32 is on the front where a resample of the
    # examples has it ahead: twice drawn 20 or 30 against once drawn 0.
    assert rows["int8-dynamic"]["pareto_probability"] == 1.0
    assert 0.5 < rows["fp32"]["pareto_probability"] < 0.95
    (words,) = table.context.objectives
    assert words == (
        "quality, median latency, peak memory, cost per 1,000 requests, energy per request"
    )


def test_a_row_that_is_beaten_in_all_is_not_on_the_front(tmp_path):
    cells = [
        ok("fp32", classified(REF_WRONG)),
        ok("bf16", classified(REF_WRONG), served(LATENCIES * 50), rate=10.0, peak=2000),
    ]
    rows = rows_of(build([make_run(tmp_path / "r", cells)]))
    assert (rows["fp32"]["pareto"], rows["fp32"]["pareto_probability"]) == ("yes", 1.0)
    assert (rows["bf16"]["pareto"], rows["bf16"]["pareto_probability"]) == ("no", 0.0)


def test_too_few_requests_say_nothing_of_how_sure_the_front_is(tmp_path):
    """One value drawn again and again never varies, and would pass for certain."""
    for count, told in ((1, False), (5, False), (6, True)):
        cells = [
            ok("fp32", classified(REF_WRONG)),
            ok("bf16", classified({*range(9)}), served(LATENCIES[:count])),
        ]
        rows = rows_of(build([make_run(tmp_path / str(count), cells)]))
        assert all((r["pareto_probability"] is not None) == told for r in rows.values())
        assert {r["pareto"] for r in rows.values()} <= {"yes", "no"}


def test_the_probability_resamples_whole_passages(tmp_path):
    """fp32 and bf16 differ in one passage of ten: a resample leaves it out with 0.9^10 = 0.349, and
    then the two are equal in quality. Drawn one by one, one of its four examples would nearly
    always be seen. In all else bf16 is better."""
    cells = [
        ok("fp32", classified(set(), group=4), peak=2000),
        ok("bf16", classified(set(range(4)), group=4), served(LATENCIES / 50), quality=0.9),
    ]
    table = build([make_run(tmp_path / "r", cells)])
    rows = rows_of(table)
    assert rows["fp32"]["pareto_probability"] == pytest.approx(1 - 0.9**10, abs=0.08)
    assert any("come in 10 groups" in line for line in table.context.method)


def test_the_probability_draws_the_rounds_of_the_energy(tmp_path):
    """bf16 is worse in all but energy, and there better in two of three rounds: in 7 of 27 draws of
    three, those with the third twice or more, it is worse."""
    each = [{"round": k, "energy_j": j, "requests": 10} for k, j in enumerate((10.0, 10.0, 70.0))]
    energy = NVML | {"energy_j": 90.0, "requests": 30, "rounds": each}
    flat = NVML | {"energy_j": 95.0, "requests": 30}
    cells = [
        ok("fp32", classified(REF_WRONG), energy=flat),
        ok("bf16", classified(REF_WRONG), served(LATENCIES * 50), rate=9, peak=2000, energy=energy),
    ]
    for cell, _ in cells:
        assert cell.measurements.energy.energy_j < 96
    row = rows_of(build([make_run(tmp_path / "r", cells)]))["bf16"]
    assert row["pareto"] == "yes"
    assert row["pareto_probability"] == pytest.approx(1 - 7 / 27, abs=0.08)


ESTIMATED = NVML | {"source": "estimated:cpu-time"}
RAPL = NVML | {"source": "measured:rapl"}


@pytest.mark.parametrize(
    ("first", "second", "counts"),
    [
        (NVML, NVML, True),
        (RAPL, RAPL, True),
        (ESTIMATED, ESTIMATED, False),
        (NVML, ESTIMATED, False),
        (NVML, RAPL, False),
        (NVML, {"source": "unavailable"}, False),
        (NVML, NVML | {"energy_j": None}, False),
    ],
)
def test_energy_ranks_only_where_the_same_meter_measured_all(tmp_path, first, second, counts):
    """bf16 is worse in all but energy, of which it takes a tenth."""
    energy = second | ({"energy_j": 6.0} if second.get("energy_j") else {})
    cells = [
        ok("fp32", classified(REF_WRONG), energy=first),
        ok("bf16", classified(REF_WRONG), served(LATENCIES * 2), rate=9, peak=2000, energy=energy),
    ]
    table = build([make_run(tmp_path / "r", cells)])
    assert (rows_of(table)["bf16"]["pareto"] == "yes") == counts
    assert ("energy per request" in table.context.objectives[0]) == counts


def test_an_estimate_is_said_to_be_one(tmp_path):
    table = build([make_run(tmp_path / "r", [ok("fp32", classified(REF_WRONG), energy=ESTIMATED)])])
    assert table.rows[0]["power_source"] == "estimated:cpu-time"
    assert table.rows[0]["energy_per_request_j"] == pytest.approx(1.5)
    assert any("estimate" in line for line in table.context.caveats)


# -- what the reader decides ------------------------------------------------------------------


def test_the_reader_s_price_goes_before_the_sweep_s(small_run):
    row = rows_of(build([small_run], {"price_per_hour": 0.72}))["fp32"]
    assert row["cost_per_1k_requests_usd"] == pytest.approx(0.002)
    assert row["value_per_usd"] == pytest.approx(400_000)
    assert "--price-per-hour" in row["price_source"]


def test_without_a_price_the_sheet_s_is_taken_for_the_threads_used(tmp_path):
    cells = [
        ok("fp32", classified(REF_WRONG)),
        ok("bf16", classified(REF_WRONG), cell={"threads": 1}),
    ]
    run = make_run(tmp_path / "r", cells, {"price_per_hour": None})
    rows = rows_of(build([run]))
    price = rows["fp32"]["price_per_hour_usd"]
    assert price == pytest.approx(2 * rows["bf16"]["price_per_hour_usd"])
    assert rows["fp32"]["cost_per_1k_requests_usd"] == pytest.approx(price / 360)


def test_requests_within_the_slo_count(small_run):
    """Batches of 8 take 80 ms and those of 1 half a second: the rate of 8 counts from 80 ms on, the
    half as high one of 1 never before it."""
    for slo, factor in (("p99=1s", 1.0), ("p99=80ms", 1.0), ("p99=79ms", 0.0)):
        rows = rows_of(build([small_run], {"slo": slo}))
        assert rows["fp32"]["value_per_usd"] == pytest.approx(800_000 * factor)
        # The cost is of all requests.
        assert rows["fp32"]["cost_per_1k_requests_usd"] == pytest.approx(0.001)


def test_the_best_batch_size_within_the_slo_counts_and_its_percentile(tmp_path):
    record, rows = ok("fp32", classified(REF_WRONG), quality=1.0)
    sizes = record.measurements.throughput.by_batch_size
    sizes["1"].batch_s = [0.010, 0.010, 0.010, 0.030]
    sizes["8"].batch_s = [0.080] * 4
    run = make_run(tmp_path / "r", [(record, rows)])

    def value(slo: str) -> float:
        return rows_of(build([run], {"slo": slo}))["fp32"]["value_per_usd"]

    assert value("p99=80ms") == pytest.approx(1_000_000)
    assert value("p99=40ms") == pytest.approx(500_000)  # Batches of 1, all of them.
    assert value("p50=20ms") == pytest.approx(375_000)  # Three of four of them.
    assert value("p90=20ms") == 0


def test_each_run_is_compared_with_its_own_reference(tmp_path):
    """Two runs of one method on one device: neither reference is judged by the other."""
    first = make_run(
        tmp_path / "a",
        [ok("fp32", classified(REF_WRONG)), ok("bf16", classified(REF_WRONG))],
    )
    libraries = {"libraries": {"torch": "2.14.0"}}
    second = make_run(
        tmp_path / "b",
        [
            ok("fp32", classified({0, 1, 2, 3, 4}), cell=libraries),
            ok("bf16", classified({0, 1, 2, 3, 4}), cell=libraries),
        ],
    )
    rows = build([first, second]).rows
    assert [row["verdict"] is None for row in rows] == [True, False, True, False]
    assert [row["quality_delta"] for row in rows] == [None, 0.0, None, 0.0]


def test_efficiency_is_given_gross_and_above_idle_with_its_boundary(tmp_path):
    energy = NVML | {"idle_power_w": 2.0, "boundary": "GPU: the whole board"}
    run = make_run(tmp_path / "r", [ok("fp32", classified(REF_WRONG), energy=energy)])
    (row,) = build([run]).rows
    gross = energy["energy_j"]
    above = gross - 2.0 * energy["window_s"]
    assert row["requests_per_joule"] == pytest.approx(energy["requests"] / gross)
    assert row["requests_per_joule_above_idle"] == pytest.approx(energy["requests"] / above)
    assert row["energy_boundary"] == energy["boundary"]
    assert row["output_tokens_per_joule"] is None


def test_net_energy_and_the_check_have_columns(tmp_path):
    """60 J over 3 s, of which the idle device takes 2 W; the power adds up to 63 J."""
    energy = NVML | {"idle_power_w": 2.0, "integrated_j": 63.0}
    changes = ({}, {"check_note": "a hole"}, {"integrated_j": None}, {"idle_power_w": 30.0})
    cells = [
        ok(name, classified(REF_WRONG), energy=energy | change)
        for name, change in zip(("fp32", "bf16", "fp16", "tf32"), changes, strict=True)
    ]
    rows = build([make_run(tmp_path / "r", cells)]).rows
    assert rows[0]["energy_net_per_request_j"] == pytest.approx((60 - 6) / N)
    assert rows[0]["energy_net_per_request_j"] == pytest.approx(
        1 / rows[0]["requests_per_joule_above_idle"]
    )
    assert rows[0]["energy_check"] == pytest.approx(0.05)
    assert rows[1]["energy_check"] is rows[2]["energy_check"] is None
    # Idle it would have drawn 90 J: there is no net.
    assert rows[3]["energy_net_per_request_j"] is rows[3]["requests_per_joule_above_idle"] is None
    assert rows[3]["energy_check"] is not None


def test_carbon_is_measured_energy_times_the_grid_s_factor(tmp_path):
    """60 J over N requests, at 360 g per kWh: 0.1 g per kJ."""
    cells = [
        ok("fp32", classified(REF_WRONG), energy=NVML),
        ok("bf16", classified(REF_WRONG), energy=NVML | {"source": "estimated:cpu-time"}),
        ok("fp16", classified(REF_WRONG)),
    ]
    run = make_run(tmp_path / "r", cells)
    table = build([run], {"grid_g_per_kwh": 360.0})
    assert table.rows[0]["carbon_g_per_1k_requests"] == pytest.approx(60 / N * 0.1)
    assert table.rows[0]["grid_g_per_kwh"] == 360.0
    for row in table.rows[1:]:
        assert row["carbon_g_per_1k_requests"] is row["grid_g_per_kwh"] is None
    assert any("360 g of CO2" in line for line in table.context.caveats)
    assert build([run], {"grid_g_per_kwh": 0.0}).rows[0]["carbon_g_per_1k_requests"] == 0
    bare = build([run])
    assert bare.rows[0]["carbon_g_per_1k_requests"] is None
    assert not any("CO2" in line for line in bare.context.caveats)
    other = make_run(tmp_path / "other", cells[:1], {"grid_g_per_kwh": 36.0})
    assert [r["grid_g_per_kwh"] for r in build([run, other]).rows] == [None, None, None, 36.0]


def test_the_batch_sizes_of_a_row_are_beside_it(tmp_path):
    whole = ok("fp32", classified(REF_WRONG))
    record = whole[0]
    sizes = record.measurements.throughput.by_batch_size
    sizes["8"].energy_j, sizes["8"].window_s, sizes["8"].requests = 32.0, 0.16, 16
    sizes["1"].energy_note = "too short"
    sizes["64"] = BatchRate(requests_per_s=None, batches=0, batch_s=[], note="out of memory")
    table = build([make_run(tmp_path / "r", [whole, failed("bf16")])])
    (offline,) = table.offline
    assert offline.row == tuple(table.rows[0][name] for name in ROW_KEY)
    assert [(s.size, s.requests_per_s, s.energy_per_request_j) for s in offline.sizes] == [
        (1, 50.0, None), (8, 100.0, 2.0),
    ]  # fmt: skip
    assert offline.sizes[0].energy_note == "too short"


def test_the_reader_s_budget_makes_the_verdict(small_run):
    table = build([small_run], {"quality_budget": 0.2})
    assert rows_of(table)["int8-dynamic"]["verdict"] == "within"
    assert table.context.quality_budget == 0.2
    assert any("20.0 %" in line for line in table.context.caveats)


@pytest.mark.parametrize(
    ("reader", "word"),
    [
        ({"price_per_hour": 0.0}, "price-per-hour"),
        ({"price_per_hour": -1.0}, "price-per-hour"),
        ({"price_per_hour": math.inf}, "price-per-hour"),
        ({"price_per_hour": math.nan}, "price-per-hour"),
        ({"grid_g_per_kwh": -1.0}, "grid-g-per-kwh"),
        ({"grid_g_per_kwh": math.nan}, "grid-g-per-kwh"),
        ({"quality_budget": 0.0}, "quality-budget"),
        ({"quality_budget": 1.5}, "quality-budget"),
        ({"slo": "fast"}, "p99=200ms"),
    ],
)
def test_a_reader_s_option_that_can_not_be_is_refused(small_run, reader, word):
    with pytest.raises(UsageError, match=word) as caught:
        build([small_run], reader)
    assert "\n" not in str(caught.value)


# -- several runs, and runs with faults -------------------------------------------------------


def test_the_same_records_give_the_same_table(small_run):
    first, second = build([small_run]), build([small_run])
    assert first == second
    assert json.dumps(first.rows) == json.dumps(second.rows)


def test_several_machines_come_into_one_table_each_with_its_own_reference(tmp_path, small_run):
    other = {"device_name": "Other CPU", "threads": 4}
    cells = [
        ok("fp32", classified(set()), cell=other, quality=1.0),
        ok("bf16", classified({0, 1}), cell=other, quality=0.95),
    ]
    second = make_run(tmp_path / "second", cells, {"price_per_hour": 0.72})
    table = build([small_run, second])
    assert len(table.rows) == 6
    # All but the front is what each machine's own table says.
    own = [*build([small_run]).rows, *build([second]).rows]
    names = [name for name in table.columns if not name.startswith("pareto")]
    assert [[r[n] for n in names] for r in table.rows] == [[r[n] for n in names] for r in own]
    bf16 = table.rows[5]
    assert (bf16["device"], bf16["quality_delta"]) == ("Other CPU", pytest.approx(-0.05))
    # Each machine keeps its own price.
    assert [row["price_per_hour_usd"] for row in table.rows if row["price_per_hour_usd"]] == [
        0.36, 0.36, 0.72, 0.72,
    ]  # fmt: skip
    assert table.context.run == "small, second"
    assert len(table.context.prices) == 2
    assert len(table.context.manifest_root.split(", ")) == 2


def test_a_run_given_twice_or_its_copy_is_refused(tmp_path, small_run):
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    RunFolder(copy).write_manifest()
    RunFolder(small_run).write_manifest()
    for paths in ([small_run, small_run], [small_run, copy]):
        with pytest.raises(UsageError, match="hold the same run; give each run once"):
            build(paths)
    # Something was added to the copy, and nothing was measured again.
    for path in (copy / "cells").glob("*.json"):
        document = unsealed(path.read_bytes())
        document["cautions"] = [{"id": "late", "message": "Late."}]
        path.write_bytes(sealed(document))
    RunFolder(copy).write_manifest()
    with pytest.raises(UsageError, match="hold one and the same measurement of fp32 on sentiment"):
        build([small_run, copy])


def test_two_runs_of_one_machine_are_compared_with_each_other(tmp_path):
    first = make_run(tmp_path / "a", [ok("fp32", classified(REF_WRONG))])
    second = make_run(tmp_path / "b", [ok("bf16", classified(INT8_WRONG), quality=0.775)])
    row = build([first, second]).rows[1]
    assert row["quality_delta"] == pytest.approx(-1 / 40)


def test_one_reader_s_rules_hold_for_all_runs_and_a_change_is_said(tmp_path, small_run):
    cells = [ok("fp32", classified(REF_WRONG)), ok("bf16", classified(INT8_WRONG))]
    second = make_run(tmp_path / "second", cells, {"quality_budget": 0.2})
    assert rows_of(build([second]))["bf16"]["verdict"] == "within"
    table = build([small_run, second])
    assert {row["quality_budget"] for row in table.rows} == {0.01}
    assert rows_of(table)["bf16"]["verdict"] == "cannot-tell"
    assert any(line.startswith("second: quality budget") for line in table.context.caveats)


def test_rows_of_different_methods_are_never_compared(tmp_path):
    cells = [
        ok("fp32", classified(REF_WRONG)),
        ok("bf16", classified(INT8_WRONG), cell={"seed": 1}),
    ]
    table = build([make_run(tmp_path / "r", cells)])
    assert rows_of(table)["bf16"]["quality_delta"] is None
    assert len(table.context.method_ids) == 2
    assert any("more than one method" in line for line in table.context.caveats)


def test_what_is_left_to_run_is_said(tmp_path):
    cells = [ok("fp32", classified(REF_WRONG))]
    run = make_run(tmp_path / "r", cells, missing=(make_cell(format="bf16"),))
    table = build([run])
    assert [row["format"] for row in table.rows] == ["fp32"]
    assert table.context.caveats[0] == (
        "UNFINISHED: 1 of 2 cells has no readable result in r (bf16 on sentiment); run the sweep "
        "again to resume."
    )


def test_a_run_with_nothing_finished_is_no_table(tmp_path):
    run = make_run(tmp_path / "r", [], missing=(make_cell(),))
    with pytest.raises(StoreError, match="no finished cell") as caught:
        build([run])
    assert str(run) in str(caught.value)


def test_reading_changes_nothing(tmp_path, small_run):
    record = small_run / "cells" / f"{make_cell(format='int8-dynamic').cell_id}.json"
    record.write_text("{")
    before = {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()}
    table = build([small_run])
    assert "int8-dynamic" not in rows_of(table)
    assert any("no readable result" in line for line in table.context.caveats)
    after = {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()}
    assert before == after


@pytest.mark.parametrize("content", [None, b"PAR1 not"])
def test_lost_samples_are_one_line(small_run, content):
    path = small_run / "samples" / f"{make_cell(format='fp32').cell_id}.parquet"
    path.unlink()
    if content:
        path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        build([small_run])
    assert "\n" not in str(caught.value)


# -- the words that travel with the numbers ---------------------------------------------------


def test_the_context_says_what_a_reader_must_know(small_run):
    context = build([small_run]).context
    assert (context.run, context.reference, context.slo) == ("small", "fp32", None)
    (model,) = context.models
    assert (model.name, model.revision) == ("demo", "r")
    (task,) = context.tasks
    assert (task.metric, task.unit, task.higher_is_better, task.n) == ("accuracy", "share", True, N)
    (device,) = context.devices
    assert device == "Some CPU, 2 cores, 8.00 GB memory, 2 threads"
    assert context.stack == {"torch": "2.13.0"}
    assert context.method_ids == (make_cell().method_id,)
    assert any("at most 16 rows and 1,024 padded tokens" in line for line in context.method)
    assert any("at least 30 requests and 3.00 s" in line for line in context.method)
    (price,) = context.prices
    assert price.startswith("Some CPU: $0.3600 per hour")
    assert any("1.0 %" in line and "one-sided 95 %" in line for line in context.caveats)


def test_a_caution_whose_sentence_differs_by_format_names_the_formats(tmp_path):
    def cell(fmt: str, message: str) -> tuple[Any, Any]:
        return ok(fmt, classified(REF_WRONG), cautions=[{"id": "few", "message": message}])

    run = make_run(tmp_path / "r", [cell("fp32", "A."), cell("bf16", "B."), cell("fp16", "B.")])
    assert build([run]).context.cautions == {"few": "fp32: A. | bf16, fp16: B."}


def test_rows_timed_on_a_busy_machine_are_named_above_the_numbers(tmp_path):
    caution = [{"id": "machine-busy", "message": "Busy."}]
    cells = [ok("fp32", classified(REF_WRONG)), ok("bf16", classified(REF_WRONG), cautions=caution)]
    lines = build([make_run(tmp_path / "r", cells)]).context.caveats
    (busy,) = [line for line in lines if "at work" in line]
    assert "while bf16 were timed" in busy
    compiled = ok("bf16", classified(REF_WRONG), cell={"runtime": "compile"}, cautions=caution)
    lines = build([make_run(tmp_path / "c", [cells[0], compiled])]).context.caveats
    assert any("while bf16 (compile) were timed" in line for line in lines)
    quiet = build([make_run(tmp_path / "q", cells[:1])]).context.caveats
    assert not any("at work" in line for line in quiet)


def test_two_tasks_are_no_two_methods_of_one_thing(tmp_path):
    """Unlike tasks have unlike methods, which nobody would compare: that is no caveat."""
    other = make_cell().task.model_dump() | {"name": "other"}
    cells = [
        ok("fp32", classified(REF_WRONG)),
        ok("fp32", classified(REF_WRONG), cell={"task": other}),
    ]
    table = build([make_run(tmp_path / "r", cells)])
    assert len(table.context.method_ids) == 2
    assert not any("more than one method" in line for line in table.context.caveats)


def test_each_group_keeps_its_own_objectives_on_the_way_to_the_report(tmp_path):
    other = {"task": make_cell().task.model_dump() | {"name": "other"}}
    cells = [
        ok("fp32", classified(REF_WRONG), energy=NVML),
        ok("fp32", classified(REF_WRONG), cell=other, energy=ESTIMATED),
    ]
    first, second = groups(build([make_run(tmp_path / "r", cells)]))
    assert "energy per request" in first.objectives
    assert second.objectives
    assert "energy per request" not in second.objectives


# -- requests that come by their own clock --------------------------------------------------------


def by_their_clock(latencies: Any, **extras: Any) -> list[dict[str, Any]]:
    """Request rows of a window: a cold one, one while the queue filled, then these, of which half
    is waiting."""
    rows = [{"id": "e0", "window": "cold", "latency_s": 9.0, "batch_size": 1}]
    places = [("settle", 8.0)] + [("measure", float(latency)) for latency in latencies]
    for k, (window, latency) in enumerate(places):
        row = {"id": f"e{k % N}", "window": window, "latency_s": latency, "batch": k}
        rows.append(row | {"queue_s": latency / 2, "service_s": latency / 2} | extras)
    return rows


SERVER = {"name": "server", "scenario": "server", "arrivals": {"kind": "poisson", "load": 0.7},
          "load_of": "reference", "max_batch": 8, "max_wait_s": 0.0, "duration_seconds": 11.0,
          "warmup_seconds": 1.0}  # fmt: skip


def window(**changes: Any) -> dict[str, Any]:
    return {
        "scenario": "server", "batching": "dynamic", "max_batch": 8, "max_wait_s": 0.0,
        "requests": N, "unfinished": 0, "batches": 30, "duration_s": 11.0, "settle_s": 1.0,
        "ended_s": 11.0, "offered_rate_per_s": 4.0, "achieved_rate_per_s": 4.0, "utilisation": 0.5,
        "lateness_p99_s": 1e-4, "lateness_limit_s": 1e-3, "full_share": 0.1, "saturated": False,
        "cold_first_s": 9.0,
        "little": {
            "in_system": 1.0, "rate_times_latency": 1.0, "relative_gap": 0.0, "holds": True,
        },
    } | changes  # fmt: skip


def served_row(folder: Path, windows: list[dict[str, Any]], **extras: Any) -> dict[str, Any]:
    record, rows = ok(
        "fp32", classified(REF_WRONG), by_their_clock(LATENCIES, **extras), {"workload": SERVER}
    )
    document = record.model_dump()
    document["measurements"] |= {"latency": None, "serving": windows}
    table = build([make_run(folder, [(type(record).model_validate(document), rows)])])
    assert "planned arrival" in table.context.method[0] or any(
        "scheduled arrival" in line for line in table.context.method
    )
    assert any("one queue" in line for line in table.context.caveats)
    return table.rows[0]


def test_a_served_row_counts_what_came_after_the_queue_had_filled(tmp_path):
    row = served_row(tmp_path / "r", [window(), window(ended_s=21.0, achieved_rate_per_s=2.0)])
    assert row["scenario"] == "server"
    assert row["latency_p50_s"] == pytest.approx(20.5 * MS)
    assert row["latency_p90_s"] == pytest.approx(36 * MS)
    assert row["latency_p99_s"] is None
    assert row["latency_p99_needed_n"] >= 299
    assert row["queue_p50_s"] == pytest.approx(20.5 * MS / 2)
    assert row["service_p50_s"] == pytest.approx(20.5 * MS / 2)
    assert row["cold_first_s"] == 9.0
    assert row["offered_rate_per_s"] == pytest.approx(2 * N / 20)
    assert row["achieved_rate_per_s"] == pytest.approx((4 * 10 + 2 * 20) / 30)
    assert row["utilisation"] == pytest.approx(0.5)
    assert row["lateness_p99_s"] == 1e-4
    assert row["batching"] == "dynamic"


def test_first_tokens_of_served_requests_count_from_their_arrival(tmp_path):
    tokens = {"ttft_s": 0.5, "tpot_s": 0.01, "output_tokens": 4}
    windows = [window(generates=True, batching="continuous")]
    row = served_row(tmp_path / "r", windows, **tokens)
    assert (row["ttft_s"], row["tpot_s"]) == (0.5, 0.01)
    assert row["batching"] == "continuous"


@pytest.mark.parametrize("changes", [{"saturated": True}, {"refused": "the loop was late"}])
def test_no_percentile_of_a_window_that_is_saturated_or_refused(tmp_path, changes):
    row = served_row(tmp_path / "r", [window(), window(**changes)])
    for name in ("latency_p50_s", "latency_p90_s", "queue_p50_s", "service_p50_s"):
        assert row[name] is None
    assert row["steady"] == ("drifting" if "saturated" in changes else None)
    assert row["offered_rate_per_s"] > 0
    assert row["lateness_p99_s"] == 1e-4


def test_rows_of_other_scenarios_have_no_rates(small_run):
    for row in build([small_run]).rows:
        assert row["offered_rate_per_s"] is None
        assert row["queue_p50_s"] is None
