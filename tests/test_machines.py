"""Several machines in one table: joined where they measured alike, else apart with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from precision_explorer.decision import Question, decisions
from precision_explorer.report import to_csv, to_html, to_markdown
from precision_explorer.report.chart import make_chart
from precision_explorer.report.content import make_content
from precision_explorer.table import Table, build
from precision_explorer.table.groups import by_devices, device_labels, groups
from precision_explorer.table.limits import Limits
from precision_explorer.table.methods import apart
from tests.test_records import CELL, make_cell
from tests.test_table import LATENCIES, NVML, REF_WRONG, classified, make_run, ok, served

CPU, GPU = "Some CPU", "Fast GPU"
SPEED = {CPU: 1.0, GPU: 10.0}
PRICES = {CPU: 0.36, GPU: 36.0}
"""Dollars per hour: a request costs 10 times as much on the GPU, which is 10 times as fast."""
FORMATS: dict[str, set[int]] = {"fp32": REF_WRONG, "bf16": REF_WRONG}


def machine(
    path: Path,
    device: str,
    formats: dict[str, set[int]] | None = None,
    cell: dict[str, Any] | None = None,
    energy: dict[str, Any] | None = None,
) -> Path:
    """A run on `device` of formats that are wrong on these examples, each twice as fast as the one
    before it and in half the memory."""
    libraries = {"libraries": {"torch": f"2.13.0+{device[:4].lower()}"}}
    cells = []
    for place, (fmt, wrong) in enumerate((FORMATS if formats is None else formats).items()):
        speed = SPEED[device] * 2**place
        cells.append(
            ok(
                fmt,
                classified(wrong),
                served(LATENCIES / speed),
                {"device_name": device, **libraries, **(cell or {})},
                quality=1 - len(wrong) / 40,
                rate=100 * speed,
                peak=round(1000 / 2**place),
                energy=energy,
            )
        )
    return make_run(
        path,
        cells,
        {"price_per_hour": PRICES[device]},
        environment={"device_name": device, "cpu_model": device, **libraries},
    )


@pytest.fixture
def two(tmp_path):
    return [machine(tmp_path / "cpu", CPU), machine(tmp_path / "gpu", GPU)]


def of(table: Table, device: str, fmt: str) -> dict[str, Any]:
    return next(r for r in table.rows if (r["device"], r["format"]) == (device, fmt))


def test_machines_that_measured_alike_share_a_section_and_a_front(two):
    table = build(two)
    (group,) = groups(table)
    assert group.devices == (CPU, GPU)
    labels = [group.label(row) for row in group.rows]
    assert labels == ["fp32 on Some", "bf16 on Some", "fp32 on Fast GPU", "bf16 on Fast GPU"]
    # Cheaper on one, faster on the other: of each the second format is the best.
    assert [row["pareto"] for row in table.rows] == ["no", "yes", "no", "yes"]
    assert {row["pareto_devices"] for row in table.rows} == {"Some CPU;Fast GPU"}
    assert "cost per 1,000 requests" in group.objectives


def test_a_machine_that_another_beats_in_everything_is_off_the_front(two, tmp_path):
    alone = build(two[1:])
    assert of(alone, GPU, "bf16")["pareto"] == "yes"
    table = build(two, {"price_per_hour": 0.36})
    # At one price the faster machine is the cheaper one too; what is as small in memory stays off.
    assert [row["pareto"] for row in table.rows] == ["no", "no", "no", "yes"]
    assert any("at the one price given" in line for line in table.context.caveats)
    assert not any("at the one price given" in line for line in build(two).context.caveats)
    hourly = {"kind": "hourly", "usd_per_hour": 1.5, "source": "mine", "date": "2026"}
    for device, said in (("*", True), ("Some*", False)):
        prices = [hourly | {"device": device}]
        prices += [] if said else [hourly | {"device": "Fast*"}]
        files = build(two, {"price": {"prices": prices, "file": "p.yaml"}}).context.caveats
        assert any("at the one price given" in line for line in files) == said


def test_each_row_counts_at_the_price_of_its_device(two):
    table = build(two)
    cost = {device: of(table, device, "fp32")["cost_per_1k_requests_usd"] for device in (CPU, GPU)}
    assert cost[CPU] == pytest.approx(1000 * 0.36 / (3600 * 100))
    assert cost[GPU] == pytest.approx(10 * cost[CPU])
    assert len(table.context.prices) == 2


def test_verdicts_are_against_the_reference_of_the_same_device(tmp_path):
    """fp32 on the GPU is wrong on other examples: beside that of the CPU bf16 would have flips."""
    other = {20, 21, 22}
    runs = [
        machine(tmp_path / "cpu", CPU),
        machine(tmp_path / "gpu", GPU, {"fp32": other, "bf16": other}),
    ]
    table = build(runs)
    assert [row["quality_delta"] for row in table.rows] == [None, 0.0, None, 0.0]
    assert [row["flips"] for row in table.rows] == [None, 0, None, 0]
    assert [row["reference_device"] for row in table.rows] == [CPU, CPU, GPU, GPU]
    assert not any("another-device" in (row["cautions"] or "") for row in table.rows)
    samples = list(table.samples.values())
    assert [s.reference.row["device"] for s in samples] == [CPU, CPU, GPU, GPU]
    (section,) = make_content(table).sections
    (devices,) = [f.text for f in section.findings if f.topic == "Devices"]
    assert "Some ($0.360 per hour) and Fast GPU ($36.0 per hour)" in devices


def test_a_device_without_a_reference_is_held_against_another_s_and_says_so(tmp_path):
    runs = [
        machine(tmp_path / "cpu", CPU),
        machine(tmp_path / "gpu", GPU, {"bf16": {*REF_WRONG, 20}}),
    ]
    table = build(runs)
    row = of(table, GPU, "bf16")
    assert row["quality_delta"] == pytest.approx(-1 / 40)
    assert row["reference_device"] == CPU
    assert "reference-of-another-device" in row["cautions"]
    assert "Fast GPU has no result of it" in table.context.cautions["reference-of-another-device"]
    (section,) = make_content(table).sections
    (devices,) = [f.text for f in section.findings if f.topic == "Devices"]
    assert "held against fp32 on Some" in devices


def test_energy_of_two_meters_is_no_objective(tmp_path):
    gpu = NVML | {"boundary": "GPU: the whole board"}
    for other, joined in (
        (gpu, True),
        (gpu | {"source": "measured:rapl"}, False),
        (gpu | {"boundary": "GPU: the chip"}, False),
    ):
        name = f"{other['source'][9:]}-{other['boundary'][-5:]}"
        runs = [
            machine(tmp_path / f"cpu-{name}", CPU, energy=other),
            machine(tmp_path / f"gpu-{name}", GPU, energy=gpu),
        ]
        (group,) = groups(build(runs))
        assert ("energy" in group.objectives) is joined
        table = build(runs, {"objectives": ("quality", "energy")})
        # Asked for energy, each meter's rows have a front of their own.
        fronts = [CPU, CPU, GPU, GPU] if not joined else [f"{CPU};{GPU}"] * 4
        assert [row["pareto_devices"] for row in table.rows] == fronts
        chosen = decisions(table, Question("energy", Limits()))
        assert len(chosen) == (1 if joined else 2)
        assert all(decision.chosen for decision in chosen)


def test_sentences_name_devices_once(two):
    (group,) = groups(build(two))
    fp32, bf16, gpu_fp32, gpu_bf16 = group.rows
    assert group.listing([fp32, bf16, gpu_fp32, gpu_bf16]) == "fp32 and bf16 on Some and Fast GPU"
    assert group.listing([bf16, gpu_fp32]) == "bf16 on Some; fp32 on Fast GPU"
    alone = group.per_device[0]
    assert alone.listing(alone.rows) == "fp32 and bf16"
    assert alone.listing(alone.rows, note=lambda r: r["status"]) == "fp32 (ok) and bf16 (ok)"


def test_decide_chooses_device_and_format(two):
    table = build(two)
    (cheap,) = decisions(table, Question("cost", Limits()))
    assert (cheap.chosen.device, cheap.chosen.format) == (CPU, "bf16")
    assert cheap.device == "Some CPU, Fast GPU"
    (fast,) = decisions(table, Question("latency", Limits()))
    assert (fast.chosen.device, fast.chosen.format) == (GPU, "bf16")
    assert fast.chosen.name == "bf16 on Fast GPU"
    most = Limits(max_cost_per_1k_usd=0.002)
    (within,) = decisions(table, Question("latency", most))
    assert (within.chosen.device, within.chosen.format) == (CPU, "bf16")


@pytest.mark.parametrize("show", [to_csv, to_markdown, to_html])
def test_every_output_names_the_devices(two, show):
    text = show(build(two))
    assert GPU in text
    assert "Some" in text
    if show is not to_csv:
        assert "bf16 on Fast GPU" in text
        assert "were measured by one method, so their rows share one front" in text
        assert "torch 2.13.0+some and 2.13.0+fast" in text


def test_the_chart_tells_devices_by_shape(two):
    (group,) = groups(build(two))
    chart = make_chart(group)
    assert [name for name, _ in chart.devices] == ["Some", "Fast GPU"]
    outlines = [outline for _, outline in chart.devices]
    assert [point.mark for point in chart.points] == [outlines[k] for k in (0, 0, 1, 1)]
    assert [point.label.rstrip("?") for point in chart.points] == ["fp32", "bf16"] * 2
    page = to_html(build(two))
    assert page.count(outlines[1]) == 3
    assert make_chart(groups(build(two[:1]))[0]).devices == ()


def test_other_methods_stay_apart_and_the_fields_are_named(tmp_path):
    poisson = CELL["workload"] | {"name": "poisson", "min_requests": 60}
    plan = {**CELL["batch_plan"], "max_tokens": 2048}
    runs = [
        machine(tmp_path / "cpu", CPU),
        machine(tmp_path / "gpu", GPU, cell={"workload": poisson, "batch_plan": plan}),
    ]
    table = build(runs)
    found = groups(table)
    assert [group.devices for group in found] == [(CPU,), (GPU,)]
    assert [row["pareto"] for row in table.rows] == ["no", "yes", "no", "yes"]
    assert {row["pareto_devices"] for row in table.rows} == {CPU, GPU}
    assert "device Fast GPU" in found[1].title
    (line,) = [line for line in table.context.caveats if "more than one method" in line]
    assert "workload (name single-stream against poisson, min requests 30 against 60)" in line
    assert "batch plan (max tokens 1,024 against 2,048)" in line
    assert "versions of libraries are no part of the method" in line
    assert "seed" not in line


def test_all_parts_of_a_method_are_named():
    one = make_cell().method()
    task = CELL["task"] | {"version": 2}
    changed = {
        "model revision": make_cell(model=CELL["model"] | {"revision": "files:9"}),
        "task (version 1 against 2)": make_cell(task=task),
        "seed (0 against 3)": make_cell(seed=3),
        "measuring rules (latency": make_cell(rules={"version": 1, "latency": "other" * 40}),
    }
    for words, cell in changed.items():
        text = apart({"a": one, "b": cell.method()})
        assert text.startswith(f"Methods a and b differ in {words}")
        assert ";" not in text


def test_tasks_join_over_devices_that_share_one(tmp_path):
    """Each task has a front of both machines, and so has the model over both tasks."""
    second = CELL["task"] | {"name": "topic", "card_hash": "1" * 16}
    runs = [
        machine(tmp_path / f"{device}-{task['name']}", device, cell={"task": task})
        for device in (CPU, GPU)
        for task in (CELL["task"], second)
    ]
    table = build(runs)
    assert len(groups(table)) == 2
    assert [row["pareto_all_tasks"] for row in table.rows] == ["no", "yes"] * 4
    every = decisions(table, Question("cost", Limits()))
    assert [d.tasks for d in every] == [("sentiment",), ("topic",), ("sentiment", "topic")]
    assert (every[2].chosen.device, every[2].chosen.format) == (CPU, "bf16")


def test_what_shares_a_device_is_put_together():
    class Item:
        def __init__(self, *devices: str) -> None:
            self.devices = devices

    a, b, ab, c = Item("a"), Item("b"), Item("a", "b"), Item("c")
    assert by_devices([a, b, c]) == [[a], [b], [c]]
    assert by_devices([a, b, c, ab]) == [[c], [a, b, ab]]


def test_short_names_of_devices_stay_apart():
    xeon = "Intel(R) Xeon(R) Processor @ 2.90GHz"
    assert device_labels([xeon, "NVIDIA H200"]) == {
        xeon: "Intel Xeon",
        "NVIDIA H200": "NVIDIA H200",
    }
    slower = xeon.replace("2.90", "2.10")
    assert device_labels([xeon, slower]) == {xeon: xeon, slower: slower}
