"""Which input, moved alone by how much, changes the choice: against figures worked out by hand, and
against deciding again with the input moved."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from precision_explorer.decision import Question, decisions
from precision_explorer.economics import Slo
from precision_explorer.report import to_html, to_markdown
from precision_explorer.table import build
from precision_explorer.table.limits import Limits, limits_of
from tests.command import run
from tests.test_decision import MANY, cell
from tests.test_machines import CPU, GPU, machine
from tests.test_records import CELL
from tests.test_table import NVML, make_run, served


def decide(path, objective, slo=None, **reader: Any):
    limits = reader.pop("limits", {})
    if slo is not None:
        reader["slo"] = f"p90={slo}s"
        limits = limits | {"slo": Slo(0.9, slo)}
    if limits:
        reader["limits"] = Limits(**limits)
    table = build([path], reader)
    return decisions(table, Question(objective, limits_of(table.context)))[0]


def moves(decision) -> dict[str, Any]:
    return {one.input: one for one in decision.sensitivity}


def owned(**changes: Any) -> dict[str, Any]:
    model = {
        "kind": "ownership", "purchase_usd": 8760.0, "life_years": 1.0, "utilisation": 0.5,
        "power_w": 500.0, "pue": 1.0, "usd_per_kwh": 0.1, "source": "s", "date": "2026",
    }  # fmt: skip
    return {"file": "mine.yaml", "prices": [model | changes]}


@pytest.fixture
def small(tmp_path):
    """bf16 is the cheapest known to lose nothing; fp16 is cheaper and loses 0.7 points, int8 10."""
    cells = [
        cell("fp32"),
        cell("bf16", rate=200.0, peak=2000),
        cell("int8-dynamic", 200, rate=400.0, peak=500, requests=served(MANY * 2)),
        cell("fp16", 107, rate=300.0, peak=700),
    ]
    return make_run(tmp_path / "small", cells)


def test_one_price_for_all_can_not_change_the_cheapest(small):
    found = decide(small, "cost")
    price = moves(found)["price_per_hour_usd"]
    assert (price.value, price.lower, price.higher) == (0.36, None, None)
    assert price.note == "one price for all formats moves them alike"
    for factor in (0.1, 0.5, 2.0, 10.0):
        again = decide(small, "cost", price_per_hour=0.36 * factor)
        assert again.chosen.name == found.chosen.name == "bf16"
    assert {one.input for one in found.sensitivity} == {"price_per_hour_usd", "quality_budget"}


@pytest.mark.parametrize("objective", ["cost", "value", "memory"])
def test_a_wider_budget_is_the_one_at_which_deciding_again_differs(small, objective):
    change = moves(decide(small, objective))["quality_budget"].higher
    chosen = decide(small, objective).chosen.name
    assert change.value > 0.01
    wider = decide(small, objective, quality_budget=change.value * (1 + 1e-5))
    narrower = decide(small, objective, quality_budget=change.value * (1 - 1e-5))
    assert wider.chosen.name == change.choice == "fp16"
    assert narrower.chosen.name == chosen
    assert change.factor == pytest.approx(change.value / 0.01)


def test_a_tighter_objective_is_the_one_at_which_deciding_again_differs(small):
    wide = {"quality_budget": 0.3}
    found = decide(small, "cost", slo=0.2, **wide)
    assert found.chosen.name == "int8-dynamic"
    change = moves(found)["slo"].lower
    assert decide(small, "cost", slo=change.value * (1 - 1e-6), **wide).chosen.name == change.choice
    assert decide(small, "cost", slo=change.value * (1 + 1e-6), **wide).chosen.name == (
        "int8-dynamic"
    )
    assert change.choice == "fp16"
    assert moves(found)["slo"].higher is None


def test_where_nothing_is_left_no_format_is_named(small):
    found = decide(small, "cost", limits={"max_memory_bytes": 2500})
    assert found.chosen.name == "bf16"
    memory = moves(found)["max_memory_bytes"]
    # bf16 takes 2,000 bytes and fp32 1,000.
    assert (memory.lower.value, memory.lower.choice) == (pytest.approx(2000), "fp32")
    capped = decide(small, "cost", limits={"max_cost_per_1k_usd": 0.0007})
    cap = moves(capped)["max_cost_per_1k_usd"]
    # 1000 x 0.36 / (3600 x 200) dollars, and as many batches of one duration in every draw.
    assert (cap.lower.value, cap.lower.choice) == (pytest.approx(0.0005), None)
    price = moves(capped)["price_per_hour_usd"]
    assert price.note is None
    assert (price.higher.factor, price.higher.choice) == (pytest.approx(1.4), None)


def test_worth_and_harm_by_hand(tmp_path):
    """q = 0.9 at 0.002 dollars per 1,000 requests, against 0.89 at 0.001: the net is the same
    where 1000 x 0.01 x (worth + harm) = 0.001."""
    cells = [cell("fp32", 100, rate=50.0), cell("bf16", 110, rate=100.0)]
    path = make_run(tmp_path / "n", cells)
    given = {"quality_budget": 0.2, "value_per_correct": 2e-5, "cost_per_error": 3e-5}
    assert decide(path, "cost", **given).chosen.name == "bf16"
    found = decide(path, "net", **given)
    assert found.chosen.name == "bf16"
    assert found.chosen.value == pytest.approx(1000 * (0.89 * 2e-5 - 0.11 * 3e-5) - 0.001)
    worth, harm = moves(found)["usd_per_correct"], moves(found)["usd_per_error"]
    assert (worth.higher.value, worth.higher.choice) == (pytest.approx(7e-5), "fp32")
    assert (harm.higher.value, harm.higher.choice) == (pytest.approx(8e-5), "fp32")
    assert worth.lower is harm.lower is None
    price = moves(found)["price_per_hour_usd"]
    # At half the price half of 0.001 is saved.
    assert (price.lower.factor, price.lower.choice) == (pytest.approx(0.5), "fp32")
    assert moves(decide(path, "cost", **given))["usd_per_correct"].note == (
        "not in cost per 1,000 requests"
    )


def test_measured_power_lets_the_kwh_price_decide_by_hand(tmp_path):
    """Capital is 2 dollars an hour; fp32 at 100/s draws 20 W, bf16 at 101/s 2,000 W. Per request
    they cost the same where (2 + 0.02 p) / 100 = (2 + 2 p) / 101."""
    cells = [
        cell("fp32", energy=NVML),
        cell("bf16", rate=101.0, energy=NVML | {"energy_j": 6000.0}),
    ]
    path = make_run(tmp_path / "p", cells)
    price = owned(power_w="measured", usd_per_kwh=0.005)
    found = decide(path, "cost", price=price, price_per_hour=None)
    assert found.chosen.name == "bf16"
    kwh = moves(found)["usd_per_kwh"]
    assert kwh.higher.value == pytest.approx(2 / (200 - 2.02))
    assert kwh.higher.choice == "fp32"
    assert "power_w" not in moves(found)
    # As much energy per dollar of capital: PUE by the same factor, capital and life against it.
    factor = kwh.higher.factor
    assert moves(found)["pue"].higher.factor == pytest.approx(factor)
    assert moves(found)["pue"].lower is None
    assert moves(found)["purchase_usd"].lower.factor == pytest.approx(1 / factor)
    assert moves(found)["life_years"].higher.factor == pytest.approx(factor)
    # The device can't be in use for more than all of its life.
    assert moves(found)["utilisation"].most == 1.0
    assert moves(found)["utilisation"].higher is None
    again = decide(path, "cost", price=owned(power_w="measured", usd_per_kwh=0.0102))
    assert again.chosen.name == "fp32"


@pytest.mark.parametrize("objective", ["cost", "value", "net"])
@pytest.mark.parametrize(
    "name", ["price_per_hour_usd", "usd_per_correct", "usd_per_error", "slo", "quality_budget"]
)
def test_deciding_again_anywhere_in_the_range_agrees(small, objective, name):
    """Brute force: up to the nearest change on either side the choice is what it was, and just
    beyond it what the table says."""
    base = {
        "price_per_hour": 0.36, "value_per_correct": 2e-6, "cost_per_error": 1e-6, "slo": 0.09,
        "quality_budget": 0.02,
    }  # fmt: skip
    option = {
        "price_per_hour_usd": "price_per_hour", "usd_per_correct": "value_per_correct",
        "usd_per_error": "cost_per_error",
    }.get(name, name)  # fmt: skip
    found = decide(small, objective, **base)
    one = moves(found)[name]
    low = one.lower.factor if one.lower else 0.0
    high = one.higher.factor if one.higher else np.inf
    for factor in (0.11, 0.3, 0.7, 1.4, 3.0, 9.0):
        if low < factor < high:
            again = decide(small, objective, **base | {option: base[option] * factor})
            assert again.chosen is not None
            assert again.chosen.name == found.chosen.name, factor
    for change, beyond in ((one.lower, 1 - 1e-5), (one.higher, 1 + 1e-5)):
        if change is not None:
            again = decide(small, objective, **base | {option: change.value * beyond})
            assert (again.chosen.name if again.chosen else None) == change.choice


def test_an_input_of_0_is_shown_and_not_moved(small):
    found = decide(small, "net", price_per_hour=0.36, value_per_correct=2e-6, cost_per_error=0)
    one = moves(found)["usd_per_error"]
    assert one.value == 0
    assert one.lower is one.higher is None
    assert one.note.startswith("not moved: no factor changes a 0")
    text = run("decide", small, "--objective", "net", "--value-per-correct", "2e-6",
               "--cost-per-error", "0").stdout  # fmt: skip
    assert "Cost of an error" in text


def test_efficiency_knows_no_price(tmp_path):
    cells = [
        cell("fp32", energy=NVML),
        cell("bf16", 115, energy=NVML | {"energy_j": 30.0}),
    ]
    found = decide(make_run(tmp_path / "e", cells), "energy")
    assert found.chosen.name == "fp32"
    assert moves(found)["price_per_hour_usd"].note == "not in energy per request"
    assert moves(found)["quality_budget"].higher.choice == "bf16"


def test_over_all_tasks(tmp_path):
    other = {"task": CELL["task"] | {"name": "other"}}
    cells = [
        cell("fp32"), cell("bf16", 110, rate=200.0),
        cell("fp32", cell=other), cell("bf16", cell=other, rate=300.0),
    ]  # fmt: skip
    table = build([make_run(tmp_path / "two", cells)])
    found = decisions(table, Question("cost", limits_of(table.context)))
    assert [d.chosen.name for d in found] == ["fp32", "bf16", "fp32"]
    assert moves(found[2])["quality_budget"].higher.value == pytest.approx(
        moves(found[0])["quality_budget"].higher.value, rel=1e-5
    )


def test_without_a_choice_there_is_nothing_to_change(tmp_path):
    busy = [{"id": "machine-busy", "message": "Busy."}]
    path = make_run(tmp_path / "b", [cell("fp32"), cell("bf16", rate=200.0, cautions=busy)])
    found = decide(path, "cost")
    assert (found.chosen, found.sensitivity) == (None, ())


def test_a_disturbed_format_that_enters_names_none(tmp_path):
    """As `decide` has it: of several, one of which was disturbed, no cheapest is named."""
    busy = [{"id": "machine-busy", "message": "Busy."}]
    path = make_run(tmp_path / "b", [cell("fp32"), cell("bf16", 115, rate=200.0, cautions=busy)])
    change = moves(decide(path, "cost"))["quality_budget"].higher
    assert change.choice is None
    assert change.why == "other work disturbed the timing of bf16"
    assert decide(path, "cost", quality_budget=change.value * 1.001).chosen is None
    assert "no format is named: other work disturbed the timing of bf16" in to_markdown(
        build([path], {})
    )


def test_the_table_stands_in_decide_its_document_and_the_reports(small):
    done = run("decide", small)
    text = " ".join(done.stdout.split())
    assert "What would change the choice, each input moved alone (bf16 now)" in text
    assert "no change: one price for all formats moves them alike" in text
    # The limit as it reads lets the other format in.
    shown = re.search(r"from (\S+%) \(x", text)
    assert "fp16, lowest cost" in run("decide", small, "--max-quality-loss", shown[1]).stdout
    (found,) = json.loads(run("decide", small, "--json").stdout)["decisions"]
    budget = next(s for s in found["sensitivity"] if s["input"] == "quality_budget")
    assert budget["higher"]["choice"] == "fp16"
    assert (budget["value"], budget["least"]) == (0.01, 0.001)
    # Without a flip among 1,000 Tango's bound is z^2 / (n + z^2), and only the reference is below.
    assert budget["lower"]["value"] == pytest.approx(1.6449**2 / (1000 + 1.6449**2), rel=1e-4)
    assert budget["lower"]["choice"] == "fp32"
    table = build([small], {"value_per_correct": 1e-6})
    for page in (to_markdown(table), to_html(table)):
        assert "What would change the choice, each input moved alone" in page
        for heading in ("Cost: bf16", "Value: bf16", "Net: bf16"):
            assert heading in page
        assert "Efficiency: bf16" not in page
        assert "): fp16" in page
    assert "Input " in run("report", small).stdout


def test_rows_scored_until_decided_are_not_moved(tmp_path):
    """Their verdict is known at the budget that they were stopped by."""
    path = make_run(tmp_path / "r", [cell("fp32"), cell("bf16", rate=200.0)])
    table = build([path])
    for samples in table.samples.values():
        if samples.row["format"] == "bf16":
            samples.margin = None
    found = decisions(table, Question("cost", limits_of(table.context)))[0]
    assert found.chosen.name == "bf16"
    budget = moves(found)["quality_budget"]
    assert budget.note.startswith("not moved: verdicts here are known at this budget only")
    assert budget.lower is budget.higher is None


def test_of_several_devices_each_price_is_moved_alone(tmp_path):
    """The GPU is 10 times as fast at 20 times the price: its requests cost twice as much, until it
    is half as dear or the CPU twice."""
    paths = [machine(tmp_path / "cpu", CPU), machine(tmp_path / "gpu", GPU)]
    hour = {"kind": "hourly", "source": "s", "date": "2026"}
    prices = [
        hour | {"device": CPU, "usd_per_hour": 0.36},
        hour | {"device": GPU, "usd_per_hour": 7.2},
    ]
    table = build(paths, {"price": {"file": "f", "prices": prices}})
    (found,) = decisions(table, Question("cost", Limits()))
    assert found.chosen.name == "bf16 on Some"
    cpu, gpu = found.sensitivity
    assert (cpu.device, cpu.value, cpu.note, cpu.lower) == (CPU, 0.36, None, None)
    assert (cpu.higher.value, cpu.higher.choice) == (pytest.approx(0.72), "bf16 on Fast GPU")
    assert (gpu.device, gpu.value, gpu.higher) == (GPU, 7.2, None)
    assert (gpu.lower.value, gpu.lower.choice) == (pytest.approx(3.6), "bf16 on Fast GPU")
    assert "Price per hour, Fast GPU" in to_markdown(build(paths, {"quality_budget": 0.5}))
