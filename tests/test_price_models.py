"""Price files: what an hour costs by each kind of model, and what is refused in one line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_explorer.decision import Question, decisions
from precision_explorer.economics import load_prices, ownership_per_hour, parse_prices, price_by
from precision_explorer.economics.price_model import KINDS
from precision_explorer.errors import UsageError
from precision_explorer.plan.spec import load_spec, make_spec
from precision_explorer.report import to_markdown
from precision_explorer.table import build
from precision_explorer.table.limits import limits_of
from tests.command import run
from tests.test_table import NVML, READER, REF_WRONG, classified, make_run, ok, rows_of

OWNED = """
currency: USD
kind: ownership
purchase_usd: 17520
life_years: 2
utilisation: 0.5
power_w: 500
pue: 1.2
usd_per_kwh: 0.10
source: our invoice
date: 2026-10-01
"""
ROOT = Path(__file__).parent.parent
HOURLY = """
currency: USD
kind: hourly
usd_per_hour: 1.25
term: spot
source: our bill
date: 2026
"""


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf8")
        return str(path)

    return write


def price_of(path, device="NVIDIA H200", power_w=None):
    return price_by(load_prices(path), "cuda", device, 1, power_w)


def test_ownership_by_hand_with_every_input_beside_it(file):
    """17,520 dollars over 2 years at half use is 2 dollars an hour; 500 W x 1.2 x 0.10 is 0.06."""
    price = price_of(file(OWNED))
    assert price.per_hour_usd == pytest.approx(2.06)
    assert (price.kind, price.term, price.date) == ("ownership", "owned", "2026-10-01")
    assert price.inputs == {
        "purchase_usd": 17520, "life_years": 2, "utilisation": 0.5, "power_w": 500, "pue": 1.2,
        "usd_per_kwh": 0.1,
    }  # fmt: skip
    for word in ("17,520", "2 years", "0.5 of them", "500.0 W", "PUE 1.2", "$0.100000", "$0.06"):
        assert word in price.basis


positive = st.floats(0.01, 1e6)


@given(positive, st.floats(0.1, 30), st.floats(0.01, 1), positive, st.floats(1, 3), positive)
def test_an_hour_of_use_is_the_life_s_bill_over_its_hours_of_use(buy, years, used, watts, pue, kwh):
    """Brute force: everything that the device costs in its life, over the hours in which it
    serves."""
    hours = years * 365 * 24 * used
    bill = buy + hours * (watts / 1000) * pue * kwh
    assert ownership_per_hour(buy, years, used, watts, pue, kwh) == pytest.approx(bill / hours)


def test_measured_power_is_the_row_s_own_and_missing_without_a_meter(file):
    path = file(OWNED.replace("500", "measured"))
    assert price_of(path, power_w=1000.0).per_hour_usd == pytest.approx(2.12)
    assert price_of(path) is None


def test_an_hourly_price_and_the_terms_of_a_sheet(file):
    price = price_of(file(HOURLY))
    assert (price.per_hour_usd, price.term, price.kind) == (1.25, "spot", "hourly")
    # The bundled sheet.
    assert price_of(file("currency: USD\nkind: list\n")).per_hour_usd == pytest.approx(7.912)
    spot = price_of(file("currency: USD\nkind: list\nterm: spot\n"))
    assert (spot.per_hour_usd, spot.term) == (pytest.approx(17.50195 / 8), "spot")
    assert price_of(file("currency: USD\nkind: list\nterm: reserved\n")) is None
    h100 = price_of(file("currency: USD\nkind: list\nterm: reserved\n"), "NVIDIA H100 80GB HBM3")
    assert h100.per_hour_usd == pytest.approx(43.344 / 8)
    assert (h100.date, h100.term) == ("2025-11-30", "reserved")
    assert "gpu_instances_raw.json" in h100.source
    own = """
currency: USD
kind: list
term: reserved
devices:
  - {device: H, names: ["NVIDIA H200"], provider: P, instance_type: I, region: R,
     instance_usd_per_hour: 80, devices_per_instance: 8, source: list, date: "2026-11",
     terms: {reserved: {instance_usd_per_hour: 40, source: contract, date: "2026-10"}}}
"""
    price = price_of(file(own))
    assert (price.per_hour_usd, price.term, price.date) == (5.0, "reserved", "2026-10")
    assert price.source == "contract"
    assert "reserved list price $40.0000" in price.basis


def test_each_device_has_its_own_entry(file):
    path = file(
        "currency: USD\nprices:\n"
        "  - {device: '*H100*', kind: hourly, usd_per_hour: 2, source: a, date: 2026-10}\n"
        "  - {device: '*H200', kind: hourly, usd_per_hour: 3, source: a, date: 2026-10}\n"
    )
    assert price_of(path).per_hour_usd == 3
    assert price_of(path, "NVIDIA H100 80GB HBM3").per_hour_usd == 2
    assert price_of(path, "NVIDIA L4") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OWNED.replace("USD", "EUR", 1), "currency 'EUR' is not known"),
        (OWNED.replace("currency: USD", ""), "names no currency"),
        (OWNED.replace("17520", "-1"), "purchase price must be 0 dollars or more"),
        (OWNED.replace("0.10", "-0.1"), "price per kWh must be 0 dollars or more"),
        (OWNED.replace("0.5", "1.5"), "utilisation must be above 0"),
        (OWNED.replace("1.2", "0.9"), "PUE must be 1 or more"),
        (OWNED.replace("0.5", "yes"), "utilisation: Input should be a valid number"),
        (OWNED.replace("500", "lots"), "power_w: Input should be"),
        (OWNED.replace("17520", ".inf"), "purchase_usd: Input should be a finite number"),
        (OWNED.replace("source: our invoice", ""), "source: Field required"),
        (OWNED.replace("17520", "0").replace("500", "0"), "comes to 0 dollars"),
        (OWNED + "watts: 3\n", "unknown key 'watts'"),
        (OWNED.replace("ownership", "owner"), "unknown kind 'owner'; did you mean ownership"),
        (OWNED.replace("kind: ownership", ""), "no kind"),
        (HOURLY.replace("1.25", "-1.25"), "usd_per_hour: Input should be greater than 0"),
        (HOURLY.replace("spot", "weekly"), "term: Input should be 'on-demand'"),
        ("currency: USD\nprices: []\n", "at least 1 item"),
        (HOURLY + "prices: []\n", "beside prices"),
        ("[", "is no YAML"),
        ("- 1", "is no YAML mapping"),
        ("!!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_a_bad_price_file_is_one_line_that_names_it(file, text, words):
    with pytest.raises(UsageError) as caught:
        load_prices(file(text))
    assert "mine.yaml" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# -- through the commands ------------------------------------------------------------------------


@pytest.fixture
def metered(tmp_path):
    """60 J in 3 s for fp32, half of it for bf16: 20 W and 10 W, at 100 and 200 requests a
    second."""
    cells = [
        ok("fp32", classified(REF_WRONG), energy=NVML),
        ok("bf16", classified(REF_WRONG), rate=200.0, energy=NVML | {"energy_j": 30.0}),
    ]
    return make_run(tmp_path / "metered", cells)


def test_every_input_stands_beside_the_result(metered, file):
    table = build([metered], {"price": load_prices(file(OWNED)).model_dump(mode="json")})
    row = table.rows[0]
    assert row["cost_per_1k_requests_usd"] == pytest.approx(1000 * 2.06 / (3600 * 100))
    assert row["price_inputs"] == (
        "purchase_usd=17520.0;life_years=2.0;utilisation=0.5;power_w=500.0;pue=1.2;usd_per_kwh=0.1"
    )
    assert row["price_source"] == "our invoice (2026-10-01)"
    (line,) = table.context.prices
    assert "PUE 1.2" in line
    shown = run("report", metered, "--price", file(OWNED), "--out", metered / "out")
    assert shown.returncode == 0
    for name in ("tradeoffs.md", "report.html"):
        assert "PUE 1.2" in (metered / "out" / name).read_text()
    assert "pue=1.2" in (metered / "out" / "tradeoffs.csv").read_text()


def test_measured_power_makes_each_format_s_price_its_own(metered, file):
    path = file(OWNED.replace("500", "measured"))
    table = build([metered], {"price": load_prices(path).model_dump(mode="json")})
    prices = {name: row["price_per_hour_usd"] for name, row in rows_of(table).items()}
    assert prices["fp32"] == pytest.approx(2 + 0.020 * 1.2 * 0.1)
    assert prices["bf16"] == pytest.approx(2 + 0.010 * 1.2 * 0.1)
    device = table.rows[0]["device"]
    assert [line.split(": ")[0] for line in table.context.prices] == [
        f"{device}, fp32",
        f"{device}, bf16",
    ]


def test_a_price_that_no_row_can_have_is_one_line(tmp_path, file):
    unmetered = make_run(tmp_path / "u", [ok("fp32", classified(REF_WRONG))])
    for text, words in (
        (OWNED.replace("500", "measured"), "was not read of fp32 on"),
        ("currency: USD\nkind: list\nterm: spot\n", "no spot list price of"),
        (HOURLY + "device: NVIDIA*\n", "has no price for"),
    ):
        for command in ("report", "decide"):
            done = run(command, unmetered, "--price", file(text))
            assert done.returncode == 1
            assert words in done.stderr
            assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["report", "decide"])
def test_what_contradicts_or_can_not_be_is_one_line(metered, file, command):
    path = file(OWNED)
    for arguments, words in (
        (("--price", path, "--price-per-hour", "2"), "are two prices"),
        (("--price", metered / "none.yaml"), "can't read the price file"),
        (("--value-per-correct", "-1"), "value-per-correct -1.0 can't be"),
        (("--cost-per-error", "nan"), "cost-per-error nan can't be"),
    ):
        done = run(command, metered, *arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_the_reader_s_price_goes_before_the_sweep_s(tmp_path, file):
    prices = load_prices(file(HOURLY)).model_dump(mode="json")
    cells = [ok("fp32", classified(REF_WRONG))]
    owned = make_run(tmp_path / "r", cells, {"price": prices, "price_per_hour": None})
    assert build([owned]).rows[0]["price_per_hour_usd"] == 1.25
    assert build([owned], {"price_per_hour": 9.0}).rows[0]["price_per_hour_usd"] == 9.0
    given = make_run(tmp_path / "g", cells)
    assert build([given]).rows[0]["price_per_hour_usd"] == READER["price_per_hour"]
    assert build([given], {"price": prices}).rows[0]["price_per_hour_usd"] == 1.25


def test_a_sweep_whose_file_has_no_price_for_the_device_has_its_table(tmp_path, file):
    """What was measured is shown; why there is no cost stands where the price would."""
    prices = load_prices(file(HOURLY + "device: NVIDIA*\n")).model_dump(mode="json")
    cells = [ok("fp32", classified(REF_WRONG))]
    path = make_run(tmp_path / "r", cells, {"price": prices, "price_per_hour": None})
    table = build([path])
    assert table.rows[0]["cost_per_1k_requests_usd"] is None
    assert table.rows[0]["latency_p50_s"] is not None
    (line,) = table.context.prices
    assert "no price (price file mine.yaml has no price for" in line


def test_a_sweep_keeps_the_models_not_the_path(file, tmp_path):
    path = file(OWNED)
    kept = make_spec({"price": path}).price
    assert kept == load_prices(path).model_dump(mode="json")
    assert parse_prices(kept).prices[0].kind == "ownership"
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"price: {path}\n")
    assert load_spec(spec, {}).price == kept
    with pytest.raises(UsageError, match="two prices"):
        make_spec({"price": path, "price_per_hour": 1.0})
    with pytest.raises(UsageError, match="currency 'EUR'"):
        make_spec({"price": file(OWNED.replace("USD", "EUR", 1))})


def test_capacity_takes_a_price_file(file):
    found = run("capacity", "results/demo-sentiment-cpu", "--rate", "50/s", "--slo", "p50=1s",
                "--price", file(HOURLY))  # fmt: skip
    assert found.returncode == 0
    assert "$1.250 per machine and hour (our bill (2026); from usd_per_hour 1.25)" in " ".join(
        found.stdout.split()
    )


def test_the_kinds_are_those_of_the_docs_and_no_price_is_infinite(file):
    assert set(KINDS) == {"hourly", "ownership", "list"}
    assert math.isfinite(price_of(file(OWNED)).per_hour_usd)


def test_formats_without_a_price_are_not_counted_as_beaten(file):
    """Of three formats of the stored run the latency window was too short for the meter."""
    run_of_gpu = ROOT / "results" / "h200-decoder"
    for power, compared in (("measured", 5), ("500", 8)):
        prices = load_prices(file(OWNED.replace("500", power))).model_dump(mode="json")
        table = build([run_of_gpu], {"price": prices})
        text = to_markdown(table)
        assert f"(the best of {compared} in 100 % of the resamples)" in text
        in_caveats = any("watts of the latency window" in line for line in table.context.caveats)
        assert in_caveats == (power == "measured")
        (found,) = decisions(table, Question("cost", limits_of(table.context)))
        missing = [line for line in found.uncovered if line.startswith("Not compared")]
        names = "fp8-dynamic, fp8-weight-only, int8-llm."
        assert [line.endswith(names) for line in missing] == [True] * (power == "measured")


def test_an_hour_of_measured_power_that_costs_nothing_is_refused(file):
    free = OWNED.replace("17520", "0").replace("500", "measured")
    assert load_prices(file(free)).prices
    with pytest.raises(UsageError, match="0 dollars"):
        load_prices(file(free.replace("0.10", "0")))


@pytest.mark.parametrize("slo", [None, "p50=50ms"])
def test_what_cost_and_value_assume_of_served_requests_hangs_on_a_limit(slo):
    served = ROOT / "results" / "demo-poisson-cpu"
    caveats = build([served], {"slo": slo} if slo else {}).context.caveats
    assert any("at the rate that came" in line for line in caveats) == (slo is not None)
    assert any("Cost and value assume" in line for line in caveats) == (slo is None)
