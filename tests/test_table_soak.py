"""Dependence and time in the table: effective n, what a percentile takes, windows, and how the
reports show them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from precision_explorer.records import Soak, SoakWindow
from precision_explorer.report import to_csv, to_html, to_markdown
from precision_explorer.report.terminal import print_table
from precision_explorer.stats import order_interval
from precision_explorer.table import build
from tests.series import queue
from tests.test_table import MS, REF_WRONG, classified, make_run, ok, served, shuffled


def run_of(tmp_path, requests, soak=None):
    """A run of one row; `soak` goes into its record."""
    cell, rows = ok("fp32", classified(REF_WRONG), requests)
    if soak is not None:
        measured = cell.measurements.model_copy(update={"soak": soak})
        cell = cell.model_copy(update={"measurements": measured})
    return make_run(tmp_path / "r", [(cell, rows)])


def timed(latencies, begin=0.0):
    """Request rows, one after the other."""
    rows = served(latencies)
    starts = begin + np.r_[0.0, np.cumsum(latencies)[:-1]]
    for row, start in zip(rows[2:], starts, strict=True):
        row["start_s"] = float(start)
    for row in rows[:2]:
        row["start_s"] = 0.0
    return rows


def terminal(table):
    out = Console(file=io.StringIO(), width=200)
    print_table(table, out)
    return out.file.getvalue()


def test_independent_requests_count_for_themselves(tmp_path):
    values = shuffled(np.arange(1, 401)) * MS
    (row,) = build([run_of(tmp_path, served(values))]).rows
    assert row["latency_n_eff"] == row["latency_n"] == 400
    for name, q in (("p50", 0.5), ("p99", 0.99)):
        ends = row[f"latency_{name}_ci_low_s"], row[f"latency_{name}_ci_high_s"]
        assert ends == order_interval(values, q)
    needed = [row[f"latency_{name}_needed_n"] for name in ("p90", "p99", "p999")]
    assert needed == [None, None, 2995]


def test_requests_in_a_queue_count_for_fewer(tmp_path):
    values = queue(np.random.default_rng(0), 1000, 0.7) * MS
    (row,) = build([run_of(tmp_path, served(values))]).rows
    assert row["latency_n"] == 1000
    assert row["latency_n_eff"] < 250
    assert row["latency_p99_s"] is None
    assert row["latency_p99_ci_low_s"] is None
    assert row["latency_p99_needed_n"] > 1000
    low, high = order_interval(values, 0.5)
    assert row["latency_p50_ci_low_s"] < low < high < row["latency_p50_ci_high_s"]


def test_the_reports_say_what_a_percentile_takes(tmp_path):
    table = build([run_of(tmp_path, served(shuffled(np.arange(1, 101)) * MS))])
    for text in (to_markdown(table), to_html(table), terminal(table)):
        plain = text.replace("&gt;", ">")
        assert "needs n >= 299" in plain
        assert ("needs n >= 2,995" in plain) == (text != terminal(table))  # It has no details.
    row = table.rows[0]
    assert row["latency_p99_needed_n"] == 299
    assert f",{row['latency_p99_needed_n']}," in to_csv(table)


def test_a_short_run_has_no_sustained_rate(tmp_path):
    table = build([run_of(tmp_path, timed(np.full(100, 0.03)))])
    assert table.rows[0]["peak_rate_per_s"] is None
    assert table.soaks == ()
    assert "over time" not in to_markdown(table)


def test_a_long_run_s_first_minute_stands_beside_the_rest(tmp_path):
    generator = np.random.default_rng(0)
    slow = np.r_[np.full(1200, 0.05), np.full(3000, 0.0625)] * generator.lognormal(0, 0.02, 4200)
    table = build([run_of(tmp_path, timed(slow, begin=7.0))])
    row = table.rows[0]
    assert row["peak_rate_per_s"] == pytest.approx(20, rel=0.01)
    assert row["sustained_rate_per_s"] == pytest.approx(16, rel=0.01)
    (soak,) = table.soaks
    assert len(soak.windows) == 4
    assert soak.rates.kept.low < 0.8 < soak.rates.kept.high
    for text in (to_markdown(table), to_html(table)):
        assert "fp32 over time" in text
        assert "First minute 20.0 /s, after it 16.0 /s: 80." in text
        assert "Temperature" not in text  # Nothing told it.
    assert "Of the rate of the first minute was kept after it: fp32 80." in terminal(table)


def soak_of(*windows):
    return Soak(window_seconds=10.0, windows=list(windows))


def window(number, **values):
    return SoakWindow(start_s=10.0 * number, seconds=10.0, **values)


def test_the_windows_of_a_soak_show_what_was_read(tmp_path):
    soak = soak_of(
        window(0, memory_bytes=500_000_000, temperature_c=61.0, clock_hz=1.98e9, power_w=400.0),
        window(
            1, memory_bytes=520_000_000, temperature_c=88.0, clock_hz=1.4e9, power_w=350.0,
            throttle_reasons=["hw-thermal-slowdown\x1b[31m"], throttled=True,
        ),
    )  # fmt: skip
    table = build([run_of(tmp_path, timed(np.full(200, 0.1)), soak)])
    for text in (to_markdown(table), to_html(table)):
        for word in ("88 °C", "1.98 GHz", "350 W", "520 MB", "+20.0 MB", "hw-thermal-slowdown"):
            assert word in text
        assert "\x1b" not in text
        assert "Other work" not in text
    assert table.rows[0]["cautions"] == "windows-throttled"
    assert "1 of the 2 windows that count" in table.context.cautions["windows-throttled"]


def test_a_window_that_was_measured_again_does_not_count(tmp_path):
    latencies = np.r_[np.full(100, 0.1), np.full(40, 0.25), np.full(200, 0.1)]
    windows = [window(k) for k in range(4)]
    windows[1] = window(1, disturbed=True, other_work_share=0.4)
    plain = run_of(tmp_path / "a", timed(latencies), soak_of(*windows))
    assert build([plain]).rows[0]["cautions"] == "windows-disturbed"
    assert build([plain]).rows[0]["latency_n"] == 340

    windows[3] = window(3, repeats=1)
    table = build([run_of(tmp_path / "b", timed(latencies), soak_of(*windows))])
    row = table.rows[0]
    assert row["cautions"] == ""
    assert row["latency_n"] == pytest.approx(300, abs=2)
    assert row["latency_p90_s"] == pytest.approx(0.1)
    assert row["sustained_rate_per_s"] == pytest.approx(10, rel=0.02)
    for text in (to_markdown(table), to_html(table)):
        assert "disturbed, measured again, not counted" in text
        assert "again for 0:10" in text
        assert "40.0 %" in text


def test_served_requests_are_counted_by_their_own_end(tmp_path):
    rows = timed(np.full(260, 1.0))
    for row in rows:
        row["finished_s"] = row["start_s"] + 5.0
    (soak,) = build([run_of(tmp_path, rows)]).soaks
    assert soak.windows[0].start_s == pytest.approx(4.0)


def test_the_same_records_give_the_same_bytes(tmp_path):
    run = run_of(tmp_path, timed(np.full(2600, 0.1)), soak_of(*(window(k) for k in range(5))))
    first, second = build([run]), build([run])
    for make in (to_csv, to_markdown, to_html):
        assert make(first) == make(second)
