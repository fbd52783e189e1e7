"""Scores over groups of tasks: the interval of a weighted sum, and what the reports show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from precision_explorer.report import to_html, to_markdown
from precision_explorer.stats import combined, tango
from precision_explorer.table import Aggregate
from tests.test_report import one_line, page_text, table, terminal

MADE = Aggregate(
    model="tiny", model_revision="r", device="Test CPU", group="lm-eval:mmlu",
    metric="lm-eval:acc", format="bf16", runtime="eager", value=0.25, delta=-0.0125, low=-0.03,
    high=0.005, tasks=57, examples=14042, by_size=True, is_reference=False,
)  # fmt: skip


def test_a_weighted_sum_s_interval_is_that_of_its_parts():
    alone = combined([-0.02], [(-0.05, 0.0)], [10])
    assert alone == pytest.approx((-0.02, -0.05, 0.0))
    delta, low, high = combined([0.0, 0.1], [(-0.03, 0.04), (0.06, 0.12)], [30, 10])
    assert delta == pytest.approx(0.025)
    assert low == pytest.approx(0.025 - np.hypot(0.75 * 0.03, 0.25 * 0.04))
    assert high == pytest.approx(0.025 + np.hypot(0.75 * 0.04, 0.25 * 0.02))
    with pytest.raises(ValueError, match="weighs"):
        combined([], [], [])


def test_it_covers_the_true_difference_about_as_often_as_it_says():
    """Two tasks of unlike size, in which few examples flip."""
    draw = np.random.default_rng(0)
    sizes, to_wrong, to_right = (60, 200), (0.05, 0.02), (0.02, 0.02)
    truth = sum(n * (c - b) for n, b, c in zip(sizes, to_wrong, to_right, strict=True)) / 260
    held = 0
    for _ in range(400):
        deltas, ends = [], []
        for n, b, c in zip(sizes, to_wrong, to_right, strict=True):
            wrong, right, _ = draw.multinomial(n, [b, c, 1 - b - c])
            deltas.append((right - wrong) / n)
            ends.append(tango(wrong, right, n))
        _, low, high = combined(deltas, ends, sizes)
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.99


@pytest.mark.parametrize("make", [terminal, to_markdown, page_text])
def test_every_output_shows_a_group_s_score(make):
    base = replace(MADE, format="fp32", value=0.2625, delta=None, low=None, high=None,
                   is_reference=True)  # fmt: skip
    loose = replace(MADE, metric="lm-eval:own", value=3.5, delta=0.5, low=None, high=None)
    shown = replace(table(), aggregates=(base, MADE, replace(loose, by_size=False)))
    text = one_line(make(shown)).replace("\\", "")
    assert "tiny: groups of tasks" in text
    assert "-1.25 pp [-3.00, +0.50]" in text
    assert "57 tasks, 14,042 examples, weighted by size" in text
    assert "each task alike" in text
    assert "+0.500" in text
    assert "26.2 %" in text
    for plain in (to_html(table()), to_markdown(table())):
        assert "groups of tasks" not in plain


def test_models_on_several_devices_are_apart():
    other = replace(MADE, device="Other CPU")
    text = to_markdown(replace(table(), aggregates=(MADE, other)))
    assert "## tiny on Test CPU: groups of tasks" in text
    assert "## tiny on Other CPU: groups of tasks" in text
