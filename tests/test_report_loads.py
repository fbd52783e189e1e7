"""How the load moves latency: several workloads side by side."""

from __future__ import annotations

from typing import Any

import pytest

from precision_explorer.report import to_html, to_markdown
from precision_explorer.report.content import make_content
from precision_explorer.table import Table
from precision_explorer.units import MISSING
from tests.test_report import page_text, row, table, terminal

_METHODS = {"single-stream": "m1", "poisson": "m2", "bursty": "m3"}


def loaded(name: str, workload: str, p50: float, **over: Any) -> dict[str, Any]:
    """A row of format `name` whose median is known to 2 %."""
    given = {
        "workload": workload,
        "method_id": _METHODS[workload],
        "latency_p50_s": p50,
        "latency_p50_ci_low_s": p50 * 0.98,
        "latency_p50_ci_high_s": p50 * 1.02,
        "latency_p50_round_spread": 0.03,
        "latency_p99_s": 3 * p50,
        "latency_p99_needed_n": None,
        "cautions": "",
    }
    return row(name, **given | over)


def shown(*rows: dict[str, Any]) -> Table:
    return table(*rows)


def only(rows: Table) -> Any:
    (section,) = make_content(rows).loads
    return section


TURNED = (
    loaded("fp32", "single-stream", 0.010),
    loaded("bf16", "single-stream", 0.008),
    loaded("fp32", "poisson", 0.020),
    loaded("bf16", "poisson", 0.0204),
    loaded("fp32", "bursty", 0.030),
    loaded("bf16", "bursty", 0.060, latency_p99_s=None, latency_p99_needed_n=700),
)


def test_one_workload_has_no_such_table():
    assert make_content(table()).loads == []
    for text in (terminal(table()), to_markdown(table()), to_html(table())):
        assert "how the load moves" not in text


def test_medians_and_tails_stand_side_by_side_as_multiples_of_the_first():
    view = only(shown(*TURNED)).view
    assert view.headings == (
        "Format",
        "single-stream: p50",
        "p99",
        "poisson: p50",
        "p99",
        "bursty: p50",
        "p99",
    )
    cells = {r[0].text: [c.text for c in r[1:]] for r in view.rows}
    assert cells["fp32"][:3] == ["10.0 ms", "30.0 ms", "20.0 ms (2.0 x)"]
    assert cells["bf16"][4:] == ["60.0 ms (7.5 x)", "needs n >= 700"]


def test_only_medians_apart_beyond_their_intervals_and_rounds_are_ordered():
    lines = only(shown(*TURNED)).lines
    assert lines == (
        "By median latency under single-stream: bf16, then fp32.",
        "By median latency under poisson: fp32 or bf16.",
        "By median latency under bursty: fp32, then bf16.",
        "The order changes with the load: bf16 is faster than fp32 under single-stream and slower "
        "under bursty.",
    )
    apart_in_rounds = [
        r | ({"latency_p50_round_spread": 1.5} if r["workload"] == "bursty" else {}) for r in TURNED
    ]
    assert only(shown(*apart_in_rounds)).lines[-1].startswith("No two formats are seen to change")


def test_saturated_and_disturbed_rows_are_not_ranked():
    rows = [*TURNED]
    rows[4] = rows[4] | {"latency_p50_s": None, "cautions": "serving-saturated"}
    section = only(shown(*rows))
    assert "Under bursty there is no order of formats. Not ranked: fp32." in section.lines
    assert {r[0].text: r[5].text for r in section.view.rows}["fp32"] == "saturated"
    rows[0] = rows[0] | {"cautions": "machine-busy"}
    assert only(shown(*rows)).lines[0].endswith("Not ranked: fp32.")


@pytest.mark.parametrize("why", [{"search_slo": "p99=0.2s"}, {"cautions": "serving-own-load"}])
def test_rows_at_rates_of_their_own_are_not_ranked(why):
    rows = [*TURNED]
    rows[5] = rows[5] | why
    section = only(shown(*rows))
    assert "Under bursty there is no order of formats. Not ranked: bf16." in section.lines
    assert not any("changes with the load" in line for line in section.lines)
    cells = {r[0].text: [c.text for c in r[1:]] for r in section.view.rows}
    assert cells["bf16"][4:] == ["own rate", MISSING]
    assert cells["fp32"][4] == "30.0 ms (3.0 x)"
    # Nor is any a multiple of theirs.
    rows[5], rows[1] = TURNED[5], rows[1] | why
    cells = {r[0].text: [c.text for c in r[1:]] for r in only(shown(*rows)).view.rows}
    assert cells["bf16"][0] == "own rate"
    assert cells["bf16"][4] == "60.0 ms"


def test_runs_under_one_workload_say_how_far_they_lie_apart():
    again = [r | {"manifest_root": "beef0123"} for r in TURNED[:2]]
    again[0] = again[0] | {
        "latency_p50_s": 0.0101,
        "latency_p50_ci_low_s": 0.0099,
        "latency_p50_ci_high_s": 0.0103,
    }
    section = only(shown(*TURNED, *again))
    assert section.lines[-1] == (
        "2 runs under single-stream, their medians apart: bf16 0.0 % and fp32 1.0 %."
    )
    assert [r[0].text for r in section.view.rows] == ["fp32", "bf16"]
    assert "single-stream, run beef01: p50" in section.view.headings


def test_all_outputs_hold_it():
    for text in (terminal(shown(*TURNED)), to_markdown(shown(*TURNED)), page_text(shown(*TURNED))):
        assert "how the load moves latency" in text
        assert "The order changes with the load" in " ".join(text.split())
