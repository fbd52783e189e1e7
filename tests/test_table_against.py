"""Columns against the reference: noise floor, batch plans, Holm over tasks, KL and its notes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from precision_explorer.records import AddedScore
from precision_explorer.report import to_html
from precision_explorer.report.content import make_content
from precision_explorer.report.markdown import to_markdown
from precision_explorer.report.terminal import print_table
from precision_explorer.runner.scoring import add_scores
from precision_explorer.stats import divergence, error_ratio
from precision_explorer.store import RunFolder, read_run
from precision_explorer.table import build
from tests.test_records import CELL
from tests.test_store import arrow
from tests.test_table import REF_WRONG, classified, make_run, modelled, ok, rows_of

NOISE = {"seconds": 1.0, "examples": 40, "batches": 5, "batch_plan_hash": "e" * 16}
KEPT = {
    "method": "states", "positions": 80, "items": 40, "items_hash": "0" * 16, "bytes": 640,
    "error": 1e-6, "seconds": 1.0,
}  # fmt: skip
LANGUAGE = CELL["task"] | {"kind": "language-modeling"}


def with_more(cell: tuple[Any, dict[str, bytes]], rows: dict[str, Any], **more: Any) -> Any:
    """A finished cell with further measurements, and rows of further kinds."""
    record, arrows = cell
    document = record.model_dump()
    document["measurements"] |= more
    return type(record).model_validate(document), arrows | {k: arrow(v) for k, v in rows.items()}


def scored_again(cell: Any, examples: list[dict[str, Any]]) -> Any:
    return with_more(cell, {"repeat": examples}, noise=NOISE)


# The noise floor


def test_the_noise_floor_stands_in_the_reference_s_row_and_in_those_compared_with_it(tmp_path):
    reference = scored_again(ok("fp32", classified(REF_WRONG)), classified({*range(1, 8), 9, 10}))
    cells = [reference, ok("bf16", classified({1, 2}))]
    rows = rows_of(build([make_run(tmp_path / "r", cells)]))
    for row in rows.values():
        # Example 0 is right now, 9 and 10 wrong.
        assert row["noise_floor_flips"] == 3
        assert row["noise_floor_delta"] == pytest.approx(-1 / 40)
    assert [row["format"] for row in build([tmp_path / "r"]).rows] == ["fp32", "bf16"]


def test_records_without_a_noise_floor_are_read_as_before(tmp_path):
    cells = [ok("fp32", classified(REF_WRONG)), ok("bf16", classified({*range(30)}))]
    row = rows_of(build([make_run(tmp_path / "r", cells)]))["bf16"]
    assert row["noise_floor_flips"] is row["noise_floor_delta"] is None
    assert (row["verdict"], row["different"]) == ("outside", "yes")


@pytest.mark.parametrize(
    ("again", "verdict", "different"),
    [
        # One flip of the reference itself, against the format's 16, all to wrong.
        (set(range(8)) | {30}, "outside", "yes"),
        # As large a change: the loss can't be told from it.
        (set(range(24)), "cannot-tell", "no"),
        # A small change, but by 8 flips to right and 9 to wrong.
        (set(range(20, 29)), "cannot-tell", "no"),
    ],
)
def test_outside_and_different_only_beyond_the_noise_floor(tmp_path, again, verdict, different):
    reference = scored_again(ok("fp32", classified(REF_WRONG)), classified(again))
    run = make_run(tmp_path / "r", [reference, ok("bf16", classified(set(range(24))))])
    row = rows_of(build([run]))["bf16"]
    assert (row["flips"], row["quality_delta"]) == (16, pytest.approx(-0.4))
    assert row["p_value"] < 0.001
    assert (row["verdict"], row["different"]) == (verdict, different)
    if verdict != "outside":
        assert row["verdict_note"] == "not beyond the noise floor"
        assert "cannot-tell: not beyond the noise floor" in to_markdown(build([run]))


def test_within_stays_within_whatever_the_noise_floor(tmp_path):
    reference = scored_again(ok("fp32", classified(REF_WRONG)), classified(set(range(20))))
    cells = [reference, ok("bf16", classified(REF_WRONG))]
    run = make_run(tmp_path / "r", cells, {"quality_budget": 0.2})
    assert rows_of(build([run]))["bf16"]["verdict"] == "within"


def test_of_perplexity_the_noise_floor_is_a_change_alone(tmp_path):
    task: dict[str, Any] = {"metric": "token_perplexity", "cell": {"task": LANGUAGE}}
    small = [r | {"loss": r["loss"] / 100} for r in modelled()]
    reference = scored_again(
        ok("fp32", small, quality=2.0, **task), [r | {"loss": r["loss"] * 1.1} for r in small]
    )
    worse = ok("bf16", [r | {"loss": r["loss"] * 1.05} for r in small], **task)
    row = rows_of(build([make_run(tmp_path / "r", [reference, worse])]))["bf16"]
    assert row["noise_floor_flips"] is None
    assert row["noise_floor_delta"] > row["quality_delta"] > 0
    assert (row["verdict"], row["different"]) == ("cannot-tell", "no")
    assert row["perplexity_ratio"] == pytest.approx(
        (row["quality_delta"] + 2.71828 ** (sum(r["loss"] for r in small) / 800))
        / 2.71828 ** (sum(r["loss"] for r in small) / 800),
        rel=1e-4,
    )


# Flips, errors, Holm


def test_flips_each_way_and_the_ratio_of_errors(tmp_path):
    wrong = set(range(3, 8)) | set(range(20, 36))
    cells = [ok("fp32", classified(REF_WRONG)), ok("bf16", classified(wrong))]
    table = build([make_run(tmp_path / "r", cells)])
    row = rows_of(table)["bf16"]
    assert (row["flips"], row["flips_to_wrong"], row["flips_to_right"]) == (19, 16, 3)
    assert row["error_ratio"] == pytest.approx(21 / 8)
    scores = [[float(i not in w) for i in range(40)] for w in (REF_WRONG, wrong)]
    (found,) = table.comparisons
    assert found.errors == error_ratio(*scores)
    (section,) = make_content(table).sections
    assert section.differences.headings[1:4] == (
        "Right only in fp32", "Right only in it", "Errors / fp32's [95% CI]",
    )  # fmt: skip
    assert [c.text for c in section.differences.rows[1][1:3]] == ["16", "3"]
    assert section.differences.rows[1][3].text.startswith("2.62 [1.3")


def test_p_values_are_adjusted_over_the_tasks_of_a_run(tmp_path):
    names = ("one", "two", "three")
    wrong = {"one": range(16), "two": range(15), "three": range(10)}
    cells = []
    for name in names:
        task = {"task": CELL["task"] | {"name": name, "card_hash": name}}
        cells.append(ok("fp32", classified(REF_WRONG), cell=task))
        cells.append(ok("bf16", classified(set(wrong[name])), cell=task))
    rows = build([make_run(tmp_path / "r", cells)]).rows
    found = {row["task"]: row for row in rows if row["format"] == "bf16"}
    raw = [found[name]["p_value"] for name in names]
    # 8, 7 and 2 flips, all one way: 2 / 2^k.
    assert raw == pytest.approx([2 / 2**8, 2 / 2**7, 2 / 2**2])
    adjusted = [found[name]["p_value_holm"] for name in names]
    assert adjusted == pytest.approx([3 * raw[0], 2 * raw[1], raw[2]])
    assert [found[name]["different"] for name in names] == ["yes", "yes", "no"]
    assert all(row["p_value_holm"] is None for row in rows if row["format"] == "fp32")


def test_another_model_or_run_is_another_family(tmp_path):
    cells = [ok("fp32", classified(REF_WRONG)), ok("bf16", classified(set(range(14))))]
    runs = [make_run(tmp_path / name, cells) for name in ("a", "b")]
    rows = [r for r in build(runs).rows if r["format"] == "bf16"]
    assert [r["p_value_holm"] for r in rows] == [r["p_value"] for r in rows] == [2 / 2**6] * 2


# One batch plan


def test_scores_of_other_batches_than_the_reference_s_have_no_verdict(tmp_path):
    record, rows = ok("bf16", classified({*range(30)}))
    document = record.model_dump()
    document["measurements"]["quality"]["batch_plan_hash"] = "a" * 16
    other = type(record).model_validate(document), rows
    table = build([make_run(tmp_path / "r", [ok("fp32", classified(REF_WRONG)), other])])
    row = rows_of(table)["bf16"]
    assert row["verdict"] is None
    assert row["different"] is row["p_value_holm"] is None
    assert row["verdict_note"] == "scored in other batches than the reference"
    assert row["cautions"] == "other-batch-plan"
    assert "no verdict" in table.context.cautions["other-batch-plan"]
    assert rows_of(table)["fp32"]["cautions"] == ""
    assert "No verdict, as scored in other batches than fp32: bf16." in to_markdown(table)


# KL


def positions(kl: float, differ: int = 0) -> list[dict[str, Any]]:
    """Two positions of each of 40 examples; the first `differ` have another top token."""
    return [
        {"id": f"e{i // 2}", "kl": kl * (1 + i % 3), "same_top": i >= differ} for i in range(80)
    ]


def language_cells(
    floor: float | None = 1e-9, method: str = "states", **other: Any
) -> list[tuple[Any, Any]]:
    task: dict[str, Any] = {"metric": "token_perplexity", "cell": {"task": LANGUAGE}}
    reference = ok("fp32", modelled(), **task)
    taken = {"reference": reference[0].cell_id, "positions": 80, "seconds": 1.0} | other
    if floor is not None:
        kept = KEPT | {"method": method, "why": None if method == "states" else "it is capped"}
        reference = with_more(reference, {"position": positions(floor)}, kept=kept, positions=taken)
    compared = with_more(
        ok("bf16", modelled(1.01), **task), {"position": positions(1e-3, 8)}, positions=taken
    )
    return [reference, compared]


def build_rows(path: Path, cells: list[tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    return rows_of(build([make_run(path, cells, metric="token_perplexity")]))


def test_kl_of_the_stored_positions(tmp_path):
    table = build([make_run(tmp_path / "r", language_cells(), metric="token_perplexity")])
    row = rows_of(table)["bf16"]
    stored = positions(1e-3, 8)
    found = divergence(
        [p["kl"] for p in stored], [p["same_top"] for p in stored], [p["id"] for p in stored]
    )
    assert row["kl_mean"] == pytest.approx(1e-3 * (27 * 1 + 27 * 2 + 26 * 3) / 80)
    assert row["kl_p99"] == pytest.approx(3e-3)
    assert row["same_top"] == 0.9
    assert row["kl_note"] is None
    assert rows_of(table)["fp32"]["noise_floor_kl"] == row["noise_floor_kl"]
    comparison = next(c for c in table.comparisons if c.row[-2] == "bf16")
    assert (comparison.divergence.mean, comparison.divergence.p50) == (found.mean, found.p50)
    assert comparison.divergence.examples == 40
    text = to_markdown(table)
    assert "KL mean [95% CI]" in text
    assert "90.0 % [" in text or "90.00 % [" in text
    assert "80 (40)" in text


def test_examples_of_one_group_are_one_cluster_of_positions(tmp_path):
    cells = language_cells()
    record, rows = cells[1]
    grouped = [r | {"group": f"g{i // 20}"} for i, r in enumerate(modelled(1.01))]
    cells[1] = record, rows | {"example": arrow(grouped)}
    record, rows = cells[0]
    grouped = [r | {"group": f"g{i // 20}"} for i, r in enumerate(modelled())]
    cells[0] = record, rows | {"example": arrow(grouped)}
    table = build([make_run(tmp_path / "r", cells, metric="token_perplexity")])
    assert {c.divergence.examples for c in table.comparisons} == {2}


def test_positions_of_examples_that_were_not_asked_count_by_themselves(tmp_path):
    """A format that was scored until its verdict was clear is held against the reference on the
    kept positions all the same."""
    cells = language_cells()
    record, rows = cells[1]
    cells[1] = record, rows | {"example": arrow(modelled(1.01)[:30])}
    row = build_rows(tmp_path / "r", cells)["bf16"]
    assert row["kl_mean"] == pytest.approx(1e-3 * (27 * 1 + 27 * 2 + 26 * 3) / 80)


def test_a_kl_of_the_order_of_the_reference_s_own_is_said_to_be_too_small(tmp_path):
    row = build_rows(tmp_path / "r", language_cells(floor=4e-4))["bf16"]
    assert row["kl_note"].startswith("too small to rank")
    assert build_rows(tmp_path / "s", language_cells(floor=3e-4))["bf16"]["kl_note"] is None


def test_rounded_log_probabilities_are_said(tmp_path):
    row = build_rows(tmp_path / "r", language_cells(method="log-probabilities"))["bf16"]
    assert "positions, rounded to 16 bits, as it is capped" in row["kl_note"]
    assert row["kl_mean"] is not None


def test_without_the_reference_s_distributions_kl_is_empty_with_a_reason(tmp_path):
    cells = language_cells(floor=None)
    cells[1] = ok("bf16", modelled(1.01), metric="token_perplexity", cell={"task": LANGUAGE})
    row = build_rows(tmp_path / "r", cells)["bf16"]
    assert row["kl_mean"] is row["same_top"] is None
    assert row["kl_note"] == "the reference kept no next-token distributions"


def test_a_format_that_was_not_held_against_the_reference_s_distributions_has_a_row(tmp_path):
    """The reference's samples then have columns that the format's have not."""
    cells = language_cells()
    other = ok("bf16", modelled(1.01), metric="token_perplexity", cell={"task": LANGUAGE})
    cells[1] = with_more(other, {}, not_compared={"positions": "out of memory"})
    row = build_rows(tmp_path / "r", cells)["bf16"]
    assert row["quality_delta"] > 0
    assert row["verdict"] == "outside"
    assert (row["kl_mean"], row["kl_note"]) == (None, "out of memory")


def test_kl_to_another_reference_is_not_shown(tmp_path):
    row = build_rows(tmp_path / "r", language_cells(reference="another"))["bf16"]
    assert row["kl_mean"] is None
    assert row["kl_note"] == "held against another reference"


def test_classifiers_have_no_kl_and_no_note_on_it(tmp_path):
    cells = [ok("fp32", classified(REF_WRONG)), ok("bf16", classified(REF_WRONG))]
    row = rows_of(build([make_run(tmp_path / "r", cells)]))["bf16"]
    assert row["kl_mean"] is row["kl_note"] is None


def test_a_verdict_that_can_t_be_told_says_what_n_would_tell_wherever_it_stands(tmp_path):
    cells = [ok("fp32", classified(REF_WRONG)), ok("bf16", classified({*range(1, 8), 20, 30}))]
    table = build([make_run(tmp_path / "r", cells)])
    note = rows_of(table)["bf16"]["verdict_note"]
    assert note.startswith("needs n of about ")
    out = io.StringIO()
    print_table(table, Console(file=out, width=200))
    for text in (to_markdown(table), to_html(table), out.getvalue()):
        assert f"cannot-tell: {note}" in " ".join(text.split())


# Stored scores


DRAWS = {"fp32": [0.8, 0.81] * 50, "bf16": [0.4, 0.41] * 50}


def scored(run: Path, again: float | None = None, **draws: list[float]) -> Path:
    """`run` with scores of a metric that has no terms: 0.8 for fp32, 0.4 for bf16 unless given."""
    folder, sweep = read_run(run)
    for cell in sweep["plan"]["cells"]:
        record = folder.read_record(cell["cell_id"])
        assert record is not None
        values = (DRAWS | draws)[record.cell.format]
        score = AddedScore(
            value=values[0], by="x", draws=values, draws_of=1000, higher_is_better=True,
            again=again if record.cell.format == "fp32" else None,
        )  # fmt: skip
        add_scores(folder, record.cell_id, {"evaluate:x": score})
    return run


def by_score(run: Path, **reader: Any) -> dict[str, dict[str, Any]]:
    return rows_of(build([run], {"metric": "evaluate:x"} | reader))


@pytest.mark.parametrize(
    ("again", "verdict", "different", "note"),
    [
        (0.79, "outside", "yes", None),
        (0.3, "cannot-tell", "no", "not beyond the noise floor"),
        # Scored again, but nobody computed the metric of that.
        (None, "cannot-tell", None, "no noise floor in this metric"),
    ],
)
def test_a_stored_score_too_is_outside_only_beyond_the_noise_floor(
    tmp_path, again, verdict, different, note
):
    reference = scored_again(ok("fp32", classified(REF_WRONG)), classified(set(range(1, 8))))
    cells = [reference, ok("bf16", classified({*range(3, 24)}))]
    rows = by_score(scored(make_run(tmp_path / "r", cells), again))
    row = rows["bf16"]
    assert row["quality_delta"] == pytest.approx(-0.4)
    assert (row["verdict"], row["different"], row["verdict_note"]) == (verdict, different, note)
    assert (row["flips"], row["flips_to_wrong"], row["flips_to_right"]) == (19, 16, 3)
    assert row["error_ratio"] == pytest.approx(21 / 8)
    expected = None if again is None else pytest.approx(again - 0.8)
    for one in rows.values():
        assert one["noise_floor_delta"] == expected
        assert one["noise_floor_flips"] == (None if again is None else 1)


def test_few_other_answers_show_no_spread_in_a_stored_score_either(tmp_path):
    """Draws that hardly move are no proof where 1 of 40 answers changed: Tango can't tell then."""
    same = {"fp32": [0.8, 0.81] * 50, "bf16": [0.8, 0.8101] * 50}
    for changed, verdict in ((1, "cannot-tell"), (12, "within")):
        cells = [ok("fp32", classified(set())), ok("bf16", classified({*range(changed)}))]
        rows = by_score(scored(make_run(tmp_path / str(changed), cells), **same))
        assert rows["bf16"]["verdict"] == verdict


def test_a_stored_score_from_other_batches_has_no_verdict(tmp_path):
    record, rows = ok("bf16", classified({*range(30)}))
    document = record.model_dump()
    document["measurements"]["quality"]["batch_plan_hash"] = "a" * 16
    other = type(record).model_validate(document), rows
    run = scored(make_run(tmp_path / "r", [ok("fp32", classified(REF_WRONG)), other]))
    row = by_score(run)["bf16"]
    assert (row["verdict"], row["different"]) == (None, None)
    assert row["cautions"] == "other-batch-plan"


def test_stored_scores_in_two_clusters_are_not_safe_for_40_examples(tmp_path):
    same = DRAWS["fp32"]
    for group, verdict in ((20, "cannot-tell"), (None, "within")):
        cells = [ok(f, classified(REF_WRONG, group=group)) for f in ("fp32", "bf16")]
        run = scored(make_run(tmp_path / str(group), cells), bf16=same)
        assert by_score(run, quality_budget=0.1)["bf16"]["verdict"] == verdict


def test_a_row_that_stopped_by_its_verdict_is_not_compared_by_stored_scores(tmp_path):
    rules = {"rules": CELL["rules"] | {"until_decided": "x"}}
    cells = [
        ok("fp32", classified(REF_WRONG), cell=rules),
        ok("bf16", classified(set())[:20], cell=rules),
    ]
    run = scored(make_run(tmp_path / "r", cells))
    table = build([run], {"metric": "evaluate:x"})
    row = rows_of(table)["bf16"]
    assert row["quality_delta"] is row["verdict"] is None
    assert row["verdict_note"] == "scored until the verdict in accuracy was clear"
    assert "median latency" in table.context.objectives[0]
    assert "quality" not in table.context.objectives[0]
    assert not any("no result on the same examples" in line for line in table.context.caveats)


def test_kl_needs_no_score_of_the_quality(tmp_path):
    cells = language_cells()
    run = make_run(tmp_path / "r", cells, metric="token_perplexity")
    score = AddedScore(value=0.5, by="x")
    add_scores(RunFolder(run), cells[0][0].cell_id, {"evaluate:x": score})
    rows = by_score(run)
    assert rows["bf16"]["quality"] is None
    plain = rows_of(build([run]))
    for name in ("kl_mean", "kl_p99", "same_top", "noise_floor_kl"):
        assert rows["bf16"][name] == plain["bf16"][name] is not None


def test_without_a_score_a_missing_kl_has_its_reason_all_the_same(tmp_path):
    cells = language_cells(floor=None)
    cells[1] = ok("bf16", modelled(1.01), metric="token_perplexity", cell={"task": LANGUAGE})
    run = make_run(tmp_path / "r", cells, metric="token_perplexity")
    score = AddedScore(value=0.5, by="x")
    add_scores(RunFolder(run), cells[0][0].cell_id, {"evaluate:x": score})
    note = by_score(run)["bf16"]["kl_note"]
    assert note == "the reference kept no next-token distributions"
