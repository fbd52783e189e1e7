"""The report's table over batch sizes: tables made by hand, no run."""

from dataclasses import replace

import pytest

from precision_explorer.report import to_html, to_markdown
from precision_explorer.report.groups import groups
from precision_explorer.report.offline import offline_view
from precision_explorer.table import ROW_KEY, OfflineSize, OfflineTable
from tests.test_report import compared, row, table


def of(one, *sizes, batches=5):
    """(size, rate, tokens per second, joules), of `batches` batches each."""
    made = tuple(
        OfflineSize(n, r, t, j, None if j else "too short", batches) for n, r, t, j in sizes
    )
    return OfflineTable(tuple(one[name] for name in ROW_KEY), made)


def crossing():
    """FP8 takes 30 % more energy at batch 8 and 11 % less at 128."""
    reference, fp8, none = row("bf16"), compared("fp8-dynamic"), compared("int8-dynamic")
    shown = table(reference, fp8, none, reference="bf16")
    return replace(
        shown,
        offline=(
            of(reference, (8, 100.0, 1600.0, 2.0), (128, 800.0, 12_800.0, 1.0)),
            of(
                fp8,
                (8, 110.0, 1760.0, 2.6), (128, 1200.0, 19_200.0, 0.89), (256, 1300.0, None, 0.8),
            ),
        ),
    )  # fmt: skip


def lines(shown):
    (group,) = groups(shown)
    view = offline_view(group, shown)
    return view and [dict(zip(view.headings, (c.text for c in r), strict=True)) for r in view.rows]


def test_a_crossover_is_seen():
    found = lines(crossing())
    assert [(line["Format"], line["Batch size"]) for line in found] == [
        ("bf16", "8"), ("bf16", "128"),
        ("fp8-dynamic", "8"), ("fp8-dynamic", "128"), ("fp8-dynamic", "256"),
    ]  # fmt: skip
    assert [line["Energy / bf16's"] for line in found] == ["—", "—", "1.30", "0.890", "—"]
    assert [line["Rate / bf16's"] for line in found] == ["—", "—", "1.10", "1.50", "—"]
    assert found[2]["Energy per request"] == "2.60 J"
    assert {line["Batches timed"] for line in found} == {"5"}
    assert found[4]["Output tokens"] == "—"


def test_a_single_batch_gives_no_ratio():
    sizes = [(8, 100.0, None, None), (128, 800.0, None, None)]
    rows = row("bf16"), compared("fp8-dynamic")
    for batches, expected in ((1, None), (2, "1.00")):
        offline = tuple(of(one, *sizes, batches=batches) for one in rows)
        found = lines(replace(table(*rows, reference="bf16"), offline=offline))
        assert found[2].get("Rate / bf16's") == expected


def test_without_joules_the_rates_stand_alone_and_the_note_says_what_to_do():
    shown = crossing()
    bare = [of(row("bf16"), (1, 10.0, None, None), (8, 100.0, None, None))]
    shown = replace(shown, offline=tuple(bare))
    (first, second) = lines(shown)
    assert set(first) == {"Format", "Batch size", "Batches timed", "Requests"}
    assert second["Requests"] == "100 /s"
    assert "raise offline_seconds" in to_markdown(shown)
    assert "Energy is the meter's" not in to_markdown(shown)
    assert "Energy is the meter's" in to_markdown(crossing())


def test_one_size_of_each_row_that_no_meter_read_says_what_the_main_table_says():
    shown = replace(crossing(), offline=(of(row("bf16"), (8, 100.0, None, None)),))
    assert lines(shown) is None
    assert lines(replace(crossing(), offline=())) is None
    assert "Offline over batch sizes" not in to_markdown(shown)


@pytest.mark.parametrize("output", [to_markdown, to_html])
def test_carbon_net_energy_and_the_check_are_shown_where_they_are_known(output):
    told = {
        "carbon_g_per_1k_requests": 0.25,
        "energy_net_per_request_j": 0.07,
        "energy_check": -0.08,
    }
    text = output(table(row("fp32", **told)))
    for words in ("Carbon per 1k requests", "0.250 g", "Energy above idle", "70.0 mJ", "-8.0 %"):
        assert words in text
    for words in ("Carbon per 1k requests", "Energy above idle", "Power against counter"):
        assert words not in output(table(row("fp32")))


@pytest.mark.parametrize("output", [to_markdown, to_html])
def test_both_reports_show_it(output):
    text = output(crossing())
    assert "Offline over batch sizes" in text
    assert "19,200 /s" in text
    assert "raise offline_seconds" not in text
