from __future__ import annotations

import math

import pytest

from precision_explorer.economics import (
    Price,
    cost_per_1k,
    load_sheet,
    ownership_per_hour,
    parse_slo,
    price_for,
    rate_within_slo,
    requests_per_joule,
    requests_per_usd,
    value_per_usd,
)
from precision_explorer.errors import UsageError


def test_formulas_by_hand():
    # 3.60 dollars an hour is 0.001 a second; 10 requests a second cost 0.0001 each.
    assert cost_per_1k(3.6, 10.0) == pytest.approx(0.1)
    assert requests_per_joule(500, 250.0) == pytest.approx(2.0)
    half = parse_slo("p50=200ms")
    assert rate_within_slo(10.0, [0.1, 0.2, 0.2001, 0.5], half) == pytest.approx(5.0)
    assert rate_within_slo(10.0, [0.1, 0.3, 0.2001, 0.5], half) == 0.0
    assert rate_within_slo(10.0, [0.1, 0.2, 0.2001, 0.5], parse_slo("p90=200ms")) == 0.0
    assert rate_within_slo(10.0, [0.1, 9.0], None) == 10.0
    # 0.9 x 10 useful results a second for 0.001 dollars a second.
    assert value_per_usd(0.9, 10.0, 3.6) == pytest.approx(9000.0)
    assert requests_per_usd("within", 10.0, 3.6) == pytest.approx(10_000.0)


@pytest.mark.parametrize("verdict", ["outside", "cannot-tell", None])
def test_no_value_outside_the_budget(verdict):
    assert requests_per_usd(verdict, 10.0, 3.6) is None


def test_value_is_quality_per_cost():
    price, rate, quality = 2.5, 37.0, 0.82
    assert value_per_usd(quality, rate, price) == pytest.approx(
        1000 * quality / cost_per_1k(price, rate)
    )


def test_missing_stays_missing():
    assert cost_per_1k(None, 1.0) is None
    assert cost_per_1k(1.0, None) is None
    assert requests_per_joule(None, 1.0) is None
    assert requests_per_joule(5, None) is None
    assert rate_within_slo(None, [0.1], parse_slo("p50=200ms")) is None
    assert rate_within_slo(1.0, None, parse_slo("p50=200ms")) is None
    assert rate_within_slo(1.0, [], parse_slo("p50=200ms")) is None
    assert value_per_usd(None, 1.0, 1.0) is None
    assert value_per_usd(0.5, None, 1.0) is None
    assert value_per_usd(0.5, 1.0, None) is None
    assert ownership_per_hour(1.0, 1.0, 1.0, None, 1.0, 1.0) is None


def test_no_quotient_by_zero():
    assert cost_per_1k(1.0, 0.0) is None
    assert requests_per_joule(5, 0.0) is None


def test_ownership_by_hand():
    # 17,520 dollars over 2 years at half use is 2 dollars an hour; 500 W x 1.2 x 0.10 is 0.06.
    assert ownership_per_hour(17_520, 2, 0.5, 500, 1.2, 0.10) == pytest.approx(2.06)


@pytest.mark.parametrize(
    ("name", "value"), [("utilisation", 0.0), ("utilisation", 1.5), ("pue", 0.9), ("life", 0.0)]
)
def test_ownership_refuses_what_can_not_be(name, value):
    given = {"purchase": 1e4, "life": 3.0, "utilisation": 0.5, "power": 300, "pue": 1.2, "kwh": 0.1}
    with pytest.raises(UsageError, match="correct the ownership figures"):
        ownership_per_hour(*(given | {name: value}).values())


@pytest.mark.parametrize(
    ("name", "per_hour"),
    [
        ("Tesla T4", 0.526),
        ("NVIDIA A10G", 1.006),
        ("NVIDIA L4", 0.8048),
        ("NVIDIA L40S", 1.861),
        ("NVIDIA A100-SXM4-40GB", 21.957642 / 8),
        ("A100-SXM4-80GB", 27.44705 / 8),
        ("NVIDIA A100-SXM4-80GB", 27.44705 / 8),
        ("NVIDIA A100 80GB PCIe", 3.673),
        ("NVIDIA H100 80GB HBM3", 6.88),
        ("NVIDIA H100 NVL", 6.98),
        ("NVIDIA H200", 7.912),
        ("nvidia b200", 113.9328 / 8),
    ],
)
def test_bundled_prices_by_device_name(name, per_hour):
    price = price_for("cuda", name, 1, None, load_sheet())
    assert price is not None
    assert price.per_hour_usd == pytest.approx(per_hour)
    assert price.source.startswith("https://")


@pytest.mark.parametrize(
    "name",
    ["NVIDIA H200 NVL", "NVIDIA H200 MIG 1g.18gb", "NVIDIA GH200 480GB", "NVIDIA L40",
     "NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090", ""],
)  # fmt: skip
def test_another_device_has_no_price(name):
    assert price_for("cuda", name, 1, None, load_sheet()) is None


def test_other_kinds_have_no_price():
    assert price_for("mps", "Apple M3", 8, None, load_sheet()) is None


def test_cpu_is_charged_a_core_for_each_thread():
    one, four = (price_for("cpu", "any", k, None, load_sheet()) for k in (1, 4))
    assert one.per_hour_usd == pytest.approx(2 * 0.2016 / 4)
    assert four.per_hour_usd == pytest.approx(4 * one.per_hour_usd)
    for word in ("m7i.xlarge", "0.2016", "core-hour", "4 threads", "vCPU"):
        assert word in four.basis
    assert "\n" not in four.basis


def test_basis_shows_the_arithmetic():
    price = price_for("cuda", "NVIDIA H100 80GB HBM3", 1, None, load_sheet())
    for word in ("AWS", "p5.48xlarge", "us-east-1", "55.04", "/ 8", "6.88", price.date):
        assert word in price.basis


def test_every_offer_is_dated_and_sourced():
    sheet = load_sheet()
    for offer in [*sheet.devices, sheet.cpu]:
        assert offer.source.startswith("https://")
        assert offer.date >= "2025-11"
    # List prices rise from one generation to the next.
    order = ["Tesla T4", "NVIDIA L4", "NVIDIA L40S", "NVIDIA A100-SXM4-40GB",
             "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200",
             "NVIDIA B200"]  # fmt: skip
    prices = [price_for("cuda", name, 1, None, sheet).per_hour_usd for name in order]
    assert prices == sorted(prices)


def test_override_wins_over_the_sheet():
    price = price_for("cuda", "NVIDIA H200", 1, 2.5, load_sheet())
    assert isinstance(price, Price)
    assert price.per_hour_usd == 2.5
    assert "--price-per-hour" in price.source
    assert price_for("mps", "Apple M3", 8, 0.4, load_sheet()).per_hour_usd == 0.4


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_override_must_be_a_price(value):
    with pytest.raises(UsageError, match="above 0"):
        price_for("cuda", "NVIDIA H200", 1, value, load_sheet())


SHEET = """
schema_version: 1
currency: USD
devices:
  - device: toy
    names: ["Toy *"]
    provider: us
    instance_type: big
    region: here
    instance_usd_per_hour: {price}
    devices_per_instance: 4
    source: invoice
    date: "2026-01"
"""


def test_own_sheet(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(SHEET.format(price=10), encoding="utf8")
    sheet = load_sheet(path)
    assert price_for("cuda", "Toy 3000", 1, None, sheet).per_hour_usd == 2.5
    assert price_for("cpu", "x", 2, None, sheet) is None


@pytest.mark.parametrize(
    "text",
    [SHEET.format(price=-1), SHEET.format(price=".nan"), SHEET.format(price=1) + "typo: 1\n",
     SHEET.format(price=1).replace("USD", "EUR"), "[", "- 1", "",
     "!!python/object/apply:os.getcwd []"],
)  # fmt: skip
def test_a_bad_sheet_is_one_clear_line(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf8")
    with pytest.raises(UsageError, match=r"own\.yaml") as caught:
        load_sheet(path)
    assert "\n" not in str(caught.value)


def test_a_missing_sheet_is_wrong_use(tmp_path):
    with pytest.raises(UsageError, match=r"none\.yaml"):
        load_sheet(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "quantile", "limit"),
    [("p99=200ms", 0.99, 0.2), ("p50=1.5s", 0.5, 1.5), (" P999 = 2s ", 0.999, 2.0),
     ("p90=500us", 0.9, 5e-4), ("p95=1m", 0.95, 60.0)],
)  # fmt: skip
def test_slo(text, quantile, limit):
    slo = parse_slo(text)
    assert (slo.quantile, slo.limit_s) == (quantile, pytest.approx(limit))


@pytest.mark.parametrize(
    "text", ["p99", "p99=", "=200ms", "", "p98=1s", "p99=200", "p99=fast", "p99=0ms", "p99=-1s",
             "p99=1e999s"],
)  # fmt: skip
def test_a_bad_slo_is_one_clear_line(text):
    with pytest.raises(UsageError) as caught:
        parse_slo(text)
    assert "\n" not in str(caught.value)


def test_a_near_percentile_is_suggested():
    with pytest.raises(UsageError, match="did you mean p99"):
        parse_slo("p9.9=1s")
