"""Net dollars, dollars per token and at the offered load: against brute force, by hand, and in the
worked example of the docs."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_explorer.economics import cost_per_1k, cost_per_1m_tokens, net_per_1k
from precision_explorer.report import to_csv, to_markdown
from precision_explorer.table import build
from tests.command import run
from tests.test_table import (
    MS,
    NVML,
    REF_WRONG,
    SERVER,
    N,
    by_their_clock,
    classified,
    make_run,
    modelled,
    ok,
    served,
    window,
)

ROOT = Path(__file__).parents[1]
dollars = st.floats(0, 100)


@given(
    st.lists(st.booleans(), min_size=1, max_size=50),
    st.floats(0.1, 1e4),
    st.floats(0.01, 100),
    dollars,
    dollars,
)
def test_net_is_what_each_request_brings_less_what_its_time_costs(right, rate, price, worth, harm):
    """Brute force: request by request, each taking 1 / rate seconds of a device that costs
    price / 3600 dollars a second."""
    total = 0.0
    for is_right in right:
        total += worth if is_right else -harm
        total -= price / 3600 / rate
    share = sum(right) / len(right)
    found = net_per_1k(share, rate, price, worth, harm)
    assert found == pytest.approx(1000 * total / len(right), rel=1e-9, abs=1e-6)
    assert net_per_1k(share, rate, price, None, None) is None
    assert net_per_1k(share, rate, price, worth, None) == net_per_1k(share, rate, price, worth, 0)


@given(st.floats(0.01, 100), st.floats(0.1, 1e4), st.floats(1, 4096))
def test_a_token_costs_a_request_over_its_tokens(price, rate, tokens):
    per_request = cost_per_1k(price, rate) / 1000
    assert cost_per_1m_tokens(price, rate * tokens) == pytest.approx(1e6 * per_request / tokens)


def test_missing_stays_missing():
    assert cost_per_1m_tokens(None, 1.0) is cost_per_1m_tokens(1.0, None) is None
    assert cost_per_1m_tokens(1.0, 0.0) is None
    assert net_per_1k(None, 1.0, 1.0, 1.0, 1.0) is net_per_1k(0.5, 0.0, 1.0, 1.0, 1.0) is None


def test_dollars_per_million_output_tokens(tmp_path):
    requests = served([0.1] * N, ttft_s=0.25, tpot_s=0.05)
    cell = ok("fp32", classified(REF_WRONG), requests, generates=True)
    (row,) = build([make_run(tmp_path / "r", [cell])]).rows
    # 0.36 dollars an hour, 1,600 tokens a second.
    assert row["cost_per_1m_output_tokens_usd"] == pytest.approx(1e6 * 0.36 / 3600 / 1600)
    assert row["cost_per_1k_requests_offered_usd"] is None
    assert "Cost per 1M output tokens" in to_markdown(build([tmp_path / "r"]))


def served_row(folder, **changes):
    tokens = {"ttft_s": 0.5, "tpot_s": 0.01, "output_tokens": 4}
    rows = by_their_clock([k * MS for k in range(1, N + 1)], **tokens)
    record, samples = ok("fp32", classified(REF_WRONG), rows, {"workload": SERVER})
    document = record.model_dump()
    windows = [window(generates=True, batching="continuous", **changes)]
    document["measurements"] |= {"latency": None, "serving": windows}
    return build([make_run(folder, [(type(record).model_validate(document), samples)])]).rows[0]


def test_at_the_offered_load_the_idle_device_is_paid_for(tmp_path):
    """40 requests came in 10 s, of 4 tokens each; all at hand it serves 100 a second."""
    row = served_row(tmp_path / "r")
    assert row["cost_per_1k_requests_offered_usd"] == pytest.approx(1000 * 0.36 / (3600 * 4))
    assert row["cost_per_1m_output_tokens_offered_usd"] == pytest.approx(1e6 * 0.36 / (3600 * 16))
    assert row["cost_per_1k_requests_usd"] == pytest.approx(1000 * 0.36 / (3600 * 100))
    # What came was not all served.
    assert served_row(tmp_path / "s", saturated=True)["cost_per_1k_requests_offered_usd"] is None


def test_net_dollars_with_their_interval(tmp_path):
    """32 of 40 right at 100 requests a second and 0.36 dollars an hour."""
    path = make_run(tmp_path / "r", [ok("fp32", classified(REF_WRONG))])
    table = build([path], {"value_per_correct": 0.01, "cost_per_error": 0.02})
    (row,) = table.rows
    assert row["net_usd_per_1k_requests"] == pytest.approx(1000 * (0.008 - 0.004) - 0.001)
    assert (row["usd_per_correct"], row["usd_per_error"]) == (0.01, 0.02)
    # Each right answer more or less moves it by 30 dollars over 40.
    low, high = row["net_usd_per_1k_requests_ci_low"], row["net_usd_per_1k_requests_ci_high"]
    spread = 1000 * 0.03 * np.sqrt(0.8 * 0.2 / N)
    assert low == pytest.approx(row["net_usd_per_1k_requests"] - 1.96 * spread, abs=0.6 * spread)
    assert high == pytest.approx(row["net_usd_per_1k_requests"] + 1.96 * spread, abs=0.6 * spread)
    assert any("is worth $0.0100000" in line for line in table.context.prices)
    assert "Most net dollars" in to_markdown(table)
    assert build([path]).rows[0]["net_usd_per_1k_requests"] is None
    assert "Most net dollars" not in to_markdown(build([path]))


def test_requests_beyond_the_objective_are_paid_for_and_bring_nothing(tmp_path):
    """Of batches of one, which take 0.5 s, none is within 100 ms; of those of 8 all are. Within
    10 ms none is at all."""
    path = make_run(tmp_path / "r", [ok("fp32", classified(REF_WRONG))])
    given = {"value_per_correct": 0.01}
    (row,) = build([path], given | {"slo": "p50=100ms"}).rows
    assert row["net_usd_per_1k_requests"] == pytest.approx(8 - 0.001)
    (row,) = build([path], given | {"slo": "p50=10ms"}).rows
    assert row["net_usd_per_1k_requests"] is None
    assert row["value_per_usd"] == 0


def test_worth_of_what_is_neither_right_nor_wrong_is_one_line(tmp_path):
    cells = [ok("fp32", modelled(), metric="token_perplexity", quality=9.0)]
    path = make_run(tmp_path / "lm", cells, metric="token_perplexity")
    for option in ("--value-per-correct", "--cost-per-error"):
        done = run("report", path, option, "0.1")
        assert done.returncode == 1
        assert f"{option} needs a share of right results, and token_perplexity" in done.stderr
        assert done.stderr.count("\n") == 1


def test_efficiency_of_runs_without_energy_is_one_line(tmp_path):
    path = make_run(tmp_path / "r", [ok("fp32", classified(REF_WRONG))])
    done = run("decide", path, "--objective", "efficiency")
    assert done.returncode == 1
    assert done.stderr.startswith("error: energy was not measured, so it can be no objective")
    assert done.stderr.count("\n") == 1


def test_tokens_per_joule_with_and_without_the_idle_device(tmp_path):
    """60 J in 3 s, of which the idle device draws 5 W: 160 tokens for 60 J, or for 45 J."""
    requests = served([0.1] * N, ttft_s=0.25, tpot_s=0.05, output_tokens=4)
    energy = NVML | {"idle_power_w": 5.0}
    cell = ok("fp32", classified(REF_WRONG), requests, generates=True, energy=energy)
    (row,) = build([make_run(tmp_path / "r", [cell])]).rows
    assert row["output_tokens_per_joule"] == pytest.approx(160 / 60)
    assert row["output_tokens_per_joule_above_idle"] == pytest.approx(160 / 45)
    assert row["requests_per_joule_above_idle"] == pytest.approx(N / 45)


def test_a_loss_is_called_one(tmp_path):
    path = make_run(tmp_path / "r", [ok("fp32", classified(REF_WRONG))])
    shown = run("decide", path, "--objective", "net", "--cost-per-error", "0.01")
    text = " ".join(shown.stdout.split())
    assert "even fp32 loses money" in text
    assert "-$2.00" in text
    asked = run("decide", path, "--objective", "net")
    assert "--value-per-correct" in " ".join(asked.stdout.split())


# -- the worked example of docs/economics.md -----------------------------------------------------


PAGE = (ROOT / "docs" / "economics.md").read_text(encoding="utf8")


def block(title: str) -> str:
    """The first indented block below a heading."""
    part = PAGE.split(f"\n{title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("    ")]
    return "\n".join(line[4:] for line in lines)


def evaluated(line: str) -> tuple[float, float]:
    """(what the left side comes to, what stands on the right) of ``a / b x c = d``."""
    left, right = line.split("=")[-2:]
    left = left.split(":")[-1]
    expression = left.replace(",", "").replace(" x ", " * ")
    assert re.fullmatch(r"[\d.eE+\-*/() ]+", expression), expression
    value = eval(expression, {"__builtins__": {}})  # Digits and operators alone.
    shown = re.search(r"-?[\d.,]+", right)
    assert shown is not None
    return value, float(shown.group().replace(",", ""))


def stored() -> dict[str, str]:
    path = ROOT / "results" / "smollm2-choice-cpu" / "tradeoffs.csv"
    with path.open(newline="") as file:
        return next(row for row in csv.DictReader(file) if row["format"] == "fp32")


def test_the_worked_example_adds_up_and_is_that_of_the_stored_row():
    lines = [line for line in block("## One row by hand").splitlines() if "=" in line]
    found = {line.split(":")[0].strip(): evaluated(line) for line in lines}
    for name, (value, shown) in found.items():
        assert shown == pytest.approx(value, rel=5e-6), name
    row = stored()
    for name in (
        "price_per_hour_usd", "cost_per_1k_requests_usd", "requests_per_joule",
        "energy_per_request_j", "value_per_usd",
    ):  # fmt: skip
        assert found[name][1] == pytest.approx(float(row[name]), rel=5e-6), name
    given = {"value_per_correct": 0.0001, "cost_per_error": 0.0002}
    again = build([ROOT / "results" / "smollm2-choice-cpu"], given)
    fp32 = next(r for r in again.rows if r["format"] == "fp32")
    for name in ("price_per_hour_usd", "cost_per_1k_requests_usd", "requests_per_joule",
                 "energy_per_request_j", "value_per_usd", "net_usd_per_1k_requests"):  # fmt: skip
        assert found[name][1] == pytest.approx(fp32[name], rel=5e-6), name


def test_the_derivation_of_ownership_adds_up(tmp_path):
    lines = [line for line in block("## Ownership").splitlines() if "=" in line]
    found = {line.split(":")[0].strip(): evaluated(line) for line in lines}
    for name, (value, shown) in found.items():
        assert shown == pytest.approx(value, rel=5e-5), name
    from precision_explorer.economics import load_prices, price_by

    text = "\n".join(line for line in block("## Ownership").splitlines() if ": " in line and
                     "=" not in line)  # fmt: skip
    path = tmp_path / "owned.yaml"
    path.write_text(text)
    price = price_by(load_prices(path), "cuda", "NVIDIA H200", 1, None)
    assert price.per_hour_usd == pytest.approx(found["per hour of use"][1], rel=5e-5)


def test_the_table_of_the_docs_is_that_of_the_stored_run():
    part = PAGE.split("## What would change the choice", 1)[1]
    shown = [line for line in part.splitlines() if line.startswith("|")]
    given = {"slo": "p50=50ms", "value_per_correct": 0.00001}
    made = to_markdown(build([ROOT / "results" / "demo-sentiment-cpu"], given)).splitlines()
    assert len(shown) == 6
    for line in shown:
        assert line in made, line


def test_the_other_price_files_of_the_docs_are_some(tmp_path):
    from precision_explorer.economics import load_prices

    parts = PAGE.split("## Price files", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"(?:^    .*\n)+", parts, flags=re.M)
    files = [b for b in blocks if "currency:" in b]
    assert len(files) >= 2
    for text in files:
        path = tmp_path / "p.yaml"
        path.write_text("\n".join(line[4:] for line in text.splitlines()))
        assert load_prices(path).prices


def test_the_csv_has_the_columns_of_money_in_their_order(tmp_path):
    path = make_run(tmp_path / "r", [ok("fp32", classified(REF_WRONG))])
    header = to_csv(build([path])).splitlines()[0].split(",")
    start = header.index("price_kind")
    assert header[start : start + 11] == [
        "price_kind", "price_term", "price_inputs", "cost_per_1m_output_tokens_usd",
        "cost_per_1k_requests_offered_usd", "cost_per_1m_output_tokens_offered_usd",
        "usd_per_correct", "usd_per_error", "net_usd_per_1k_requests",
        "net_usd_per_1k_requests_ci_low", "net_usd_per_1k_requests_ci_high",
    ]  # fmt: skip
