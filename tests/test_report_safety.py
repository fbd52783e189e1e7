"""Which format is safe for which task: the verdicts of several tasks side by side."""

from __future__ import annotations

import re
from typing import Any

import pytest

from precision_explorer.report import to_html, to_markdown
from precision_explorer.report.content import make_content
from precision_explorer.report.groups import groups
from precision_explorer.report.safety import KEY, STEPS, loss_in_budgets, safeties
from precision_explorer.table import Table
from tests.test_report import (
    ARTICLES,
    compared,
    one_line,
    page_text,
    perplexity_rows,
    row,
    table,
    terminal,
)


def two_tasks(**context: Any) -> Table:
    """sentiment in points, articles relative to the reference's bits per byte of 0.8."""
    plain = table()
    rows = [
        row("fp32"),
        compared("bf16"),
        compared("int8-llm", "cannot-tell", quality_delta=-0.008),
        compared("nf4", "outside", quality_delta=-0.05),
        *perplexity_rows(),
    ]
    return table(*rows, tasks=(*plain.context.tasks, ARTICLES), **context)


def only(shown: Table) -> Any:
    (safety,) = make_content(shown).safety
    return safety


def test_one_task_has_no_such_table():
    assert make_content(table()).safety == []
    for text in (terminal(table()), to_markdown(table()), to_html(table())):
        assert "safe for" not in text
        assert 'class="heat"' not in text


def test_of_an_interrupted_run_with_the_reference_alone_nothing_is_said():
    rows = [row("fp32"), next(r for r in perplexity_rows() if r["format"] == "fp32")]
    plain = table()
    safety = only(table(*rows, tasks=(*plain.context.tasks, ARTICLES)))
    assert safety.lines == ("Only the reference has results, so nothing is known of any format.",)


def test_each_format_is_told_what_it_is_safe_for():
    safety = only(two_tasks())
    words = {cells[0].text: cells[-1].text for cells in safety.view.rows}
    assert words == {
        "fp32": "reference",
        "bf16": "safe for all",
        "int8-llm": "not for: articles; can't tell for: sentiment",
        "nf4": "not for: sentiment; not known for: articles",
    }
    assert safety.lines == (
        "Within the quality budget on all 2 tasks: bf16.",
        "int8-llm: not for: articles; can't tell for: sentiment.",
        "nf4: not for: sentiment; not known for: articles.",
    )
    assert safety.view.headings == ("Format", "sentiment", "articles", "Safe?")
    by_format = {cells[0].text: [c.text for c in cells[1:3]] for cells in safety.view.rows}
    # Points of a share; relative to the reference for what is none.
    assert by_format["nf4"] == ["outside, -5.00 pp", "no result"]
    assert by_format["int8-llm"] == ["? cannot-tell, -0.80 pp", "outside, +2.50 %"]


def test_no_format_is_called_safe_where_none_is():
    rows = [r for r in two_tasks().rows if r["format"] != "bf16"]
    plain = two_tasks()
    assert only(Table(rows, plain.context)).lines[0] == (
        "No format is known to be within the quality budget on all 2 tasks."
    )


def test_a_task_that_failed_in_every_format_is_not_left_out():
    plain = two_tasks()
    broken = [r | {"task": "third", "status": "failed"} for r in (row("fp32"), compared("bf16"))]
    safety = only(Table([*plain.rows, *broken], plain.context))
    assert safety.tasks == ("sentiment", "articles", "third")
    assert safety.lines[:2] == (
        "No format is known to be within the quality budget on all 3 tasks.",
        "bf16: not known for: third.",
    )
    assert {cells[3].text for cells in safety.view.rows} == {"no result"}
    # By another method the task has a result, so that nothing is missing.
    again = [r | {"task": "articles", "method_id": "m2"} for r in broken]
    assert only(Table([*plain.rows, *again], plain.context)).tasks == ("sentiment", "articles")
    one = [r for r in plain.rows if r["task"] == "sentiment"]
    assert only(Table([*one, *broken], plain.context)).tasks == ("sentiment", "third")
    assert make_content(Table(broken, plain.context)).safety == []


@pytest.mark.parametrize("make", [terminal, to_markdown, page_text])
def test_a_loss_that_is_not_sure_is_marked_in_every_output(make):
    text = one_line(make(two_tasks()))
    assert "? cannot-tell" in text
    assert "? outside" not in text
    assert "? within" not in text


def test_a_loss_that_is_not_sure_is_hatched_on_the_page():
    page = to_html(two_tasks())
    assert '<td class="none unsure"' in page
    rule = re.search(r"\.heat td\.unsure, .*?\}", page)
    assert rule is not None
    assert "repeating-linear-gradient" in rule.group()


@pytest.mark.parametrize("make", [terminal, to_markdown, page_text])
def test_every_output_says_it_in_words(make):
    text = one_line(make(two_tasks()))
    assert "tiny: which format is safe for which task" in text
    assert "Within the quality budget on all 2 tasks: bf16." in text
    assert "outside, -5.00 pp" in text


def test_colours_are_the_loss_in_budgets_worst_first():
    """-5 points are five budgets of one point; +2.5 % bits per byte are 2.5 of 1 %."""
    safety = only(two_tasks())
    css = {r.name: [cell.css for cell in r.cells] for r in safety.rows}
    assert css == {
        "fp32": ["none", "none"],
        "bf16": ["c4", "c5"],
        "int8-llm": ["none unsure", "c1"],
        "nf4": ["c0", "none"],
    }
    assert [name for name, _ in KEY] == [
        *(f"c{k}" for k in range(len(STEPS) + 1)),
        "none",
        "unsure",
    ]


def test_a_gain_is_a_negative_loss_whichever_end_is_better():
    better = [compared("a", quality_delta=0.02), compared("b", quality_delta=-0.02)]
    (group,) = groups(table(row("fp32"), *better))
    assert [loss_in_budgets(group, r) for r in better] == pytest.approx([-2.0, 2.0])
    base, worse, _ = perplexity_rows()
    (group,) = groups(table(base, worse, tasks=(ARTICLES,)))
    assert loss_in_budgets(group, worse) == pytest.approx(2.5)


def test_the_heat_map_reads_without_colour_script_or_pointer():
    page = to_html(two_tasks())
    heat = re.search(r'<table class="heat">.*?</table>', page, re.DOTALL)
    assert heat is not None
    assert '<th scope="col" class="num">articles</th>' in heat.group()
    assert '<th scope="row">nf4</th>' in heat.group()
    title = "nf4 on sentiment: outside, -5.00 pp; a loss of 5.0 of the budget of 1.0 %; p 0.25"
    assert f'<td class="c0" title="{title}">outside, -5.00 pp</td>' in heat.group()
    assert "<script" not in page
    for name, words in KEY:
        assert f'<span class="swatch {name}"></span> {words}' in page


def test_holm_s_correction_is_named_where_the_table_has_it():
    plain = two_tasks()
    rows = [r | {"p_value_holm": 0.5} if r["format"] == "nf4" else r for r in plain.rows]
    assert "p 0.25; p 0.50 after Holm" in to_html(Table(rows, plain.context))
    assert "Holm" not in to_html(plain)


def test_models_and_devices_are_apart():
    plain = two_tasks()
    other = [r | {"device": "Other CPU"} for r in plain.rows]
    found = safeties(groups(Table([*plain.rows, *other], plain.context)))
    assert [safety.title for safety in found] == [
        "tiny on Test CPU: which format is safe for which task",
        "tiny on Other CPU: which format is safe for which task",
    ]
    alone = [r | {"device": "Other CPU"} for r in plain.rows if r["task"] == "articles"]
    (safety,) = safeties(groups(Table([*plain.rows, *alone], plain.context)))
    assert safety.title.startswith("tiny: ")


def test_a_task_by_two_methods_stands_twice():
    plain = two_tasks()
    other = [r | {"method_id": "m2"} for r in plain.rows if r["task"] == "sentiment"]
    safety = only(Table([*plain.rows, *other], plain.context))
    assert safety.tasks == ("sentiment (m1)", "articles", "sentiment (m2)")
