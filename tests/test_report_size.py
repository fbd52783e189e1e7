"""How large the page of many cells is, and what it leaves to the other files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from precision_explorer.report import to_html, to_markdown
from precision_explorer.report.html import MANY
from precision_explorer.table import Table
from tests.test_report import compared, row, table

FORMATS = ("fp32", "tf32", "bf16", "fp16", "fp8-dynamic", "int8-dynamic", "int8-weight-only", "nf4")
LEFT_OUT = "As there are many cells, this page leaves out details"


def many(count: int) -> Table:
    """`count` cells: 8 formats of each model and task."""
    rows, tasks = [], {}
    for place in range(count):
        group, fmt = divmod(place, len(FORMATS))
        model, task = f"model-{group // 8}", f"task-{group % 8}"
        made = (compared if fmt else row)(
            FORMATS[fmt],
            model=model,
            task=task,
            latency_p50_s=0.01 + 0.003 * fmt,
            cautions="energy-estimated;machine-busy",
            method_id=f"{group:012x}",
            kernel="fbgemm-per-token",
        )
        rows.append(made)
        tasks[task] = None
    plain = table(*rows)
    (one,) = plain.context.tasks
    context = replace(plain.context, tasks=tuple(replace(one, name=name) for name in tasks))
    return Table(rows, context)


@pytest.mark.parametrize(("count", "most"), [(100, 500_000), (1000, 2_000_000)])
def test_a_page_of_many_cells_stays_small(count, most):
    shown = many(count)
    page = to_html(shown)
    assert len(page.encode()) <= most
    assert page.count('<th scope="row">int8-dynamic</th>') >= count // 8


def test_details_stand_in_markdown_where_the_page_leaves_them_out():
    few, lots = many(MANY), many(MANY + 1)
    assert LEFT_OUT not in to_html(few)
    assert "fbgemm-per-token" in to_html(few)
    page = to_html(lots)
    assert LEFT_OUT in page
    assert "fbgemm-per-token" not in page
    assert "On the front" in page
    assert LEFT_OUT not in to_markdown(lots)
    assert to_markdown(lots).count("fbgemm-per-token") == MANY + 1
