"""What the reports say and how: small tables made by hand, no run."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from precision_explorer.report import to_csv, to_html, to_markdown, write_all
from precision_explorer.report.groups import groups
from precision_explorer.report.placing import Box, covered, place
from precision_explorer.report.terminal import print_table
from precision_explorer.table import COLUMNS, Context, ModelContext, Table, TaskContext

OBJECTIVES = "quality, median latency, peak memory"


def row(format_: str, **values: Any) -> dict[str, Any]:
    """A row with everything measured; `values` replace what a test is about."""
    full = {
        "model": "tiny",
        "task": "sentiment",
        "format": format_,
        "runtime": "eager",
        "device": "Test CPU",
        "batch_size": 8,
        "status": "ok",
        "execution": "native",
        "converted_share": 1.0,
        "quality_metric": "accuracy",
        "quality": 0.9,
        "quality_ci_low": 0.88,
        "quality_ci_high": 0.92,
        "quality_n": 500,
        "latency_p50_s": 0.010,
        "latency_p90_s": 0.012,
        "latency_p99_s": 0.020,
        "latency_n": 300,
        "steady": "steady",
        "throughput_per_s": 100.0,
        "weight_bytes": 4_000_000,
        "peak_memory_bytes": 9_000_000,
        "power_w": 10.0,
        "energy_per_request_j": 0.1,
        "power_source": "measured:rapl",
        "cost_per_1k_requests_usd": 0.002,
        "requests_per_joule": 10.0,
        "value_per_usd": 450_000.0,
        "pareto": "yes",
        "pareto_probability": 1.0,
        "method_id": "m1",
        "cautions": "",
        "model_revision": "r1",
        "task_version": 1,
        "quality_budget": 0.01,
        "manifest_root": "root1",
    }
    return dict.fromkeys(COLUMNS) | full | values


def compared(format_: str, verdict: str = "within", **values: Any) -> dict[str, Any]:
    """A row with its difference to the reference."""
    paired = {
        "quality_delta": -0.002,
        "quality_delta_ci_low": -0.006,
        "quality_delta_ci_high": 0.002,
        "flips": 3,
        "p_value": 0.25,
        "verdict": verdict,
    }
    return row(format_, **(paired | values))


def without(format_: str, status: str, reason: str) -> dict[str, Any]:
    """A skipped or failed row."""
    kept = ("model", "task", "format", "runtime", "device", "method_id", "model_revision")
    full = row(format_)
    named = {name: full[name] for name in (*kept, "task_version", "manifest_root")}
    return dict.fromkeys(COLUMNS) | named | {"status": status, "reason": reason, "cautions": ""}


def table(*rows: dict[str, Any], **context: Any) -> Table:
    """A table of `rows` (by default a reference and a faster format) in a plain context."""
    task = TaskContext(
        "sentiment", 1, "text-classification", "accuracy", "share", True, 500, "MIT", "by hand"
    )
    plain: dict[str, Any] = {
        "run": "run1",
        "models": (ModelContext("tiny", "r1"),),
        "tasks": (task,),
        "devices": ("Test CPU, 2 cores",),
        "stack": {"torch": "2.99"},
        "method_ids": ("m1",),
        "method": ("Latency: one request after the other.",),
        "prices": ("Test CPU: $0.72 per hour (list price, 2026-01-01)",),
        "reference": "fp32",
        "quality_budget": 0.01,
        "slo": None,
        "caveats": ("The machine was otherwise idle.",),
        "objectives": (OBJECTIVES,),
        "manifest_root": "root1",
    }
    fast = compared("int8-dynamic", latency_p50_s=0.004, peak_memory_bytes=6_000_000)
    return Table(list(rows) or [row("fp32"), fast], Context(**(plain | context)))


def perplexity_rows(**values: Any) -> list[dict[str, Any]]:
    """Rows of a language-modeling task: lower is better, the budget is relative."""
    common = {
        "task": "articles",
        "quality_metric": "bits_per_byte",
        "ttft_s": 0.05,
        "tpot_s": 0.02,
        "output_tokens_per_s": 41.0,
        "flips": None,
    }
    base = {"quality": 0.8, "quality_ci_low": 0.78, "quality_ci_high": 0.82}
    worse = {
        "quality": 0.82,
        "quality_delta": 0.02,
        "quality_delta_ci_low": 0.016,
        "quality_delta_ci_high": 0.024,
        "value_per_usd": None,
    }
    return [
        row("fp32", **(common | base)),
        compared("int8-llm", "outside", **(common | worse)),
        compared("bf16", **(common | base | {"quality_delta": 0.0, "value_per_usd": 9e5})),
    ]


ARTICLES = TaskContext(
    "articles", 1, "language-modeling", "bits_per_byte", "bits", False, 40, "CC0", "by hand"
)


def terminal(shown: Table, width: int = 160) -> str:
    """What the terminal shows, escapes of colour left out."""
    out = io.StringIO()
    print_table(shown, Console(file=out, width=width, force_terminal=True, color_system=None))
    return out.getvalue()


def one_line(text: str) -> str:
    """`text` without its line breaks, so that a folded sentence can be found."""
    return " ".join(text.split())


class _Page(HTMLParser):
    """Tags with attributes, and the text, of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_text(shown: Table) -> str:
    """What a reader sees of the HTML page."""
    return " ".join(_Page(to_html(shown)).words)


OUTPUTS = {"terminal": terminal, "markdown": to_markdown, "html": page_text}


@pytest.fixture(params=list(OUTPUTS))
def output(request: pytest.FixtureRequest) -> Any:
    """Each of the outputs for people, as a function that gives the text in one line."""
    return lambda shown: one_line(OUTPUTS[request.param](shown))


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


# Files


def test_all_three_files_are_written_and_nothing_else(tmp_path: Path) -> None:
    paths = write_all(table(), tmp_path)
    assert [p.name for p in paths] == ["tradeoffs.csv", "tradeoffs.md", "report.html"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_same_table_gives_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    rows = [*table().rows, *perplexity_rows(), without("tf32", "skipped", "no tensor cores")]
    for folder in (first, second):
        write_all(table(*rows), folder)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


# CSV


def test_csv_header_is_the_columns() -> None:
    text = to_csv(table())
    assert text.split("\n")[0] == ",".join(COLUMNS)
    assert "\r" not in text
    assert len(read_csv(text)) == 2


def test_csv_numbers_come_back_exactly() -> None:
    value = 0.1 + 0.2
    found = read_csv(to_csv(table(row("fp32", latency_p50_s=value, quality_delta=-1e-17))))[0]
    assert float(found["latency_p50_s"]) == value
    assert found["quality_delta"] == "-1e-17"
    assert found["weight_bytes"] == "4000000"


def test_csv_leaves_missing_empty() -> None:
    found = read_csv(to_csv(table(row("fp32", latency_p99_s=None, power_w=None))))[0]
    assert found["latency_p99_s"] == ""
    assert found["power_w"] == ""


@pytest.mark.parametrize(
    "name",
    ['=HYPERLINK("x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\u00a0=1"],
)
def test_csv_text_is_no_formula(name: str) -> None:
    found = read_csv(to_csv(table(row("fp32", model=name))))[0]
    assert found["model"] == f"'{name}"


def test_csv_plain_text_is_left_alone() -> None:
    found = read_csv(to_csv(table(row("fp32", model="a=b, c-d"))))[0]
    assert found["model"] == "a=b, c-d"


# Text from the data


HOSTILE = '=HYPERLINK("x") <script>alert(1)</script> [red]x[/red] \x1b[31m a|b `c` \u202e\nnext'


def hostile() -> Table:
    rows = [
        row("fp32", model=HOSTILE, cautions="odd"),
        compared("bf16", model=HOSTILE),
        without("tf32", "failed", HOSTILE) | {"model": HOSTILE},
    ]
    return table(
        *rows,
        run=HOSTILE,
        models=(ModelContext(HOSTILE, "r1", (HOSTILE,)),),
        caveats=(HOSTILE,),
        cautions={"odd": HOSTILE},
        prices=(HOSTILE,),
        stack={"torch": HOSTILE},
        objectives=(HOSTILE,),
    )


def test_no_output_lets_control_characters_through() -> None:
    for make in (terminal, to_markdown, to_html, to_csv):
        text = make(hostile())
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_terminal_reads_no_markup() -> None:
    text = terminal(hostile())
    assert "[red]x[/red] [31m a|b" in one_line(text)
    cell = without("tf32", "failed", "[red]in a cell[/red]")
    assert "[red]in a cell[/red]" in terminal(table(row("fp32"), cell))


def test_html_escapes_the_data() -> None:
    page = _Page(to_html(hostile()))
    assert "script" not in {tag for tag, _ in page.tags}
    assert any("<script>alert(1)</script>" in words for words in page.words)


def test_markdown_escapes_the_data() -> None:
    text = to_markdown(hostile())
    assert "<script" not in text
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; [red]x[/red] [31m a\|b \`c\`" in text
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            assert len(cells) in (3, 5, 6, 7, 21)


def test_markdown_begins_no_block_or_link_from_the_data() -> None:
    text = to_markdown(table(caveats=("# big", "1. one", "[a](b)", "_x_", "-5 is a number")))
    assert "- \\# big\n- 1\\. one\n- [a\\](b)\n- \\_x\\_\n- -5 is a number\n" in text


# What every reader must be told


def test_missing_is_a_dash_never_zero(output: Any) -> None:
    shown = table(row("fp32"), compared("bf16", latency_p99_s=None))
    whole = table(row("fp32"), compared("bf16"))
    assert output(shown).count("—") == output(whole).count("—") + 1
    assert not re.search(r"(?<![\d.])0 (ns|ms|s)\b", output(shown))


def test_skipped_and_failed_rows_stand_with_their_reasons(output: Any) -> None:
    text = output(
        table(
            row("fp32"),
            without("tf32", "skipped", "needs tensor cores"),
            without("fp16", "out_of_memory", "did not fit in 1 GB"),
        )
    )
    for words in ("tf32", "needs tensor cores", "out of memory", "did not fit in 1 GB"):
        assert words in text
    assert "tf32 skipped; fp16 failed." in text


def test_table_without_any_result(output: Any) -> None:
    text = output(table(without("fp32", "failed", "it broke")))
    assert "No format has a result" in text
    assert "it broke" in text


def test_cautions_stand_with_their_sentences(output: Any) -> None:
    text = output(table(row("fp32", cautions="hot"), cautions={"hot": "The chip was throttled."}))
    assert "hot" in text
    assert "The chip was throttled." in text


def test_estimated_energy_is_marked_and_never_wins(output: Any) -> None:
    rows = [
        row("fp32", power_source="estimated:cpu-time"),
        compared("bf16", power_source="estimated:cpu-time", requests_per_joule=99.0),
    ]
    text = output(table(*rows))
    assert "100 mJ est." in text
    assert "99.0 est." in text
    assert "est.: an estimate, not a measurement" in text
    assert "Not ranked: energy is an estimate" in text
    assert "highest number of requests per joule" not in text


def test_estimated_energy_is_marked_in_csv() -> None:
    found = read_csv(to_csv(table(row("fp32", power_source="estimated:cpu-time"))))[0]
    assert found["power_source"] == "estimated:cpu-time"


def test_estimated_energy_has_no_bar_and_no_tag() -> None:
    def panel(source: str) -> str:
        fast = compared("bf16", power_source=source, requests_per_joule=99.0)
        text = to_html(table(row("fp32", power_source=source), fast))
        return text.split("Efficiency: How much")[1].split("</section>")[0]

    assert 'class="bar"' in panel("measured:rapl")
    assert 'class="best"' in panel("measured:rapl")
    assert 'class="bar"' not in panel("estimated:cpu-time")
    assert 'class="best"' not in panel("estimated:cpu-time")


def test_energy_of_several_sources_is_not_ranked(output: Any) -> None:
    fast = compared("bf16", power_source="measured:nvml", requests_per_joule=99.0)
    assert "Can't tell: energy comes from different sources" in output(table(row("fp32"), fast))


def test_measured_energy_names_its_winner(output: Any) -> None:
    text = output(table(row("fp32"), compared("bf16", requests_per_joule=99.0)))
    assert "bf16 has the highest number of requests per joule: 99.0, against 10.0 for fp32" in text


def test_emulated_formats_are_named_so(output: Any) -> None:
    text = output(table(row("fp32"), compared("fp16", execution="emulated", latency_p50_s=0.001)))
    assert "fp16 (emulated) has the lowest median latency" in text
    assert "fp16 is emulated" in text


# Findings


def test_latency_is_compared_with_the_reference(output: Any) -> None:
    text = output(table())
    assert (
        "int8-dynamic has the lowest median latency: 4.00 ms, against 10.0 ms for fp32 "
        "(2.50 times as fast)."
    ) in text
    assert "had not settled" not in text


def test_latency_that_drifts_is_called_rough(output: Any) -> None:
    text = output(table(row("fp32", steady="drifting"), compared("bf16", latency_p50_s=0.002)))
    assert "Latency had not settled for fp32 (drifting)" in text


def test_who_could_not_serve_the_load_is_named(output: Any) -> None:
    text = output(
        table(row("fp32"), compared("bf16", cautions="serving-saturated;machine-busy"),
              compared("fp16", cautions="serving-refused"))
    )  # fmt: skip
    assert "More was asked than bf16 can serve (saturated)" in text
    assert "The serving loop was late for fp16" in text
    assert "More was asked" not in output(table())


def test_formats_are_named_by_how_near_their_next_tokens_are(output: Any) -> None:
    text = output(
        table(row("fp32"), compared("bf16", kl_mean=0.02, same_top=0.91),
              compared("fp16", kl_mean=0.001, same_top=0.97), compared("nf4"))
    )  # fmt: skip
    assert "is the same): fp16 (0.0010, 97 %) and bf16 (0.020, 91 %). Not compared: nf4." in text
    assert "Nearest to" not in output(table())


def test_least_memory_is_named(output: Any) -> None:
    text = output(table())
    assert (
        "int8-dynamic has the lowest peak memory: 6.00 MB, against 9.00 MB for fp32 (33.3 % less)"
    ) in text


def test_reference_may_win(output: Any) -> None:
    text = output(table(row("fp32"), compared("bf16", latency_p50_s=0.02)))
    assert "The reference, fp32, has the lowest median latency: 10.0 ms." in text


@pytest.mark.parametrize("close", [0.010, 0.010_000_1])
def test_equal_values_have_no_winner(output: Any, close: float) -> None:
    text = output(table(row("fp32"), compared("bf16", latency_p50_s=close)))
    assert "No single winner: fp32 and bf16 share the lowest median latency, 10.0 ms." in text
    assert "has the lowest median latency" not in text


def test_missing_value_means_no_winner(output: Any) -> None:
    text = output(table(row("fp32"), compared("bf16", cost_per_1k_requests_usd=None)))
    assert "No lowest cost per 1,000 requests of all formats is named: bf16 lacks a value." in text


def test_one_row_is_no_contest(output: Any) -> None:
    assert "nothing to compare it with" in output(table(row("fp32")))


def test_front_names_its_members_and_the_reference(output: Any) -> None:
    text = output(table(row("fp32"), compared("bf16", pareto="no", pareto_probability=0.0)))
    assert f"On the front, by {OBJECTIVES}: fp32." in text
    assert "fp32, the reference, is on the front." in text
    assert "as another format is as good in each of these and better in one: bf16." in text
    assert "Not certain" not in text


def test_reference_off_the_front_is_said(output: Any) -> None:
    text = output(table(row("fp32", pareto="no", pareto_probability=0.0), compared("bf16")))
    assert "fp32, the reference, is not on the front." in text


@pytest.mark.parametrize("probability", [0.1, 0.55, 0.9])
def test_uncertain_members_are_called_so(output: Any, probability: float) -> None:
    text = output(table(row("fp32"), compared("bf16", pareto_probability=probability)))
    assert re.search(r"Not certain, [^:]*: bf16 \(\d+ %\)", text)


def test_table_without_a_front_claims_none(output: Any) -> None:
    rows = [row("fp32", pareto=None), compared("bf16", pareto=None)]
    text = output(table(*(r | {"pareto_probability": None} for r in rows), objectives=()))
    assert "no objective was measured for every format" in text
    assert "is on the front" not in text


def test_verdicts_are_told_apart(output: Any) -> None:
    note = "about 900 examples would tell within the quality budget"
    text = output(
        table(
            row("fp32"),
            compared("bf16"),
            compared("fp16", "outside"),
            compared("int8-llm", "cannot-tell", verdict_note=note),
        )
    )
    assert "within the budget of 1.00 pp of accuracy?" in text
    assert f"Within: bf16. Outside: fp16. Can't tell from 500 examples: int8-llm ({note})" in text


def test_reference_without_result_gives_no_verdict(output: Any) -> None:
    text = output(table(without("fp32", "failed", "it broke"), row("bf16")))
    assert "No verdict: the reference, fp32, has no result" in text


def test_cheap_but_wrong_is_said(output: Any) -> None:
    cheap = compared("bf16", "outside", cost_per_1k_requests_usd=0.001)
    text = output(table(row("fp32"), cheap))
    assert (
        "bf16 has the lowest cost per 1,000 requests: $0.00100, against $0.00200 for fp32" in text
    )
    assert "But its quality loss is outside the budget." in text


def test_cost_value_and_energy_not_measured(output: Any) -> None:
    nothing = dict.fromkeys(
        ("cost_per_1k_requests_usd", "value_per_usd", "requests_per_joule", "energy_per_request_j")
    )
    gone = {"power_source": "unavailable"} | nothing
    text = output(table(row("fp32", **gone), compared("bf16", **gone), prices=()))
    assert "Not measured: cost needs a price" in text
    assert "Not measured: value needs a price" in text
    assert "Not measured: no power sensor" in text


# Language modeling and several groups


def test_language_modeling_is_lower_better_and_relative(output: Any) -> None:
    text = output(table(*perplexity_rows(), tasks=(ARTICLES,)))
    assert "bits_per_byte (lower" in text
    assert "+0.0200 [+0.0160, +0.0240] = +2.50 %" in text
    assert "1.0 % of fp32's bits_per_byte? Within: bf16. Outside: int8-llm." in text
    for words in ("First", "50.0 ms", "20.0 ms", "41.0 /s"):
        assert words in text


def test_value_counts_only_rows_within_the_budget(output: Any) -> None:
    text = output(table(*perplexity_rows(), tasks=(ARTICLES,)))
    assert "bf16 has the highest number of requests per dollar: 900,000" in text
    assert "Not counted, as their loss is not known to be within the budget: int8-llm." in text


def test_classification_shows_no_token_columns(output: Any) -> None:
    assert "First token" not in output(table())


def test_every_group_is_told_apart(output: Any) -> None:
    sentiment = table()
    both = table(
        *sentiment.rows,
        *perplexity_rows(),
        tasks=(*sentiment.context.tasks, ARTICLES),
        objectives=(
            f"tiny, sentiment, m1: {OBJECTIVES}",
            "tiny, articles, m1: quality",
        ),
    )
    text = output(both)
    assert "tiny on sentiment" in text
    assert "tiny on articles" in text
    assert f"On the front, by {OBJECTIVES}: fp32 and int8-dynamic." in text
    assert "On the front, by quality: fp32, int8-llm and bf16." in text


def test_devices_of_one_method_stand_together_each_with_its_own_reference(output: Any) -> None:
    here, there = table().rows, [r | {"device": "Other CPU"} for r in table().rows]
    there[1]["latency_p50_s"] = 0.001
    there[0]["latency_p50_s"] = 0.005
    text = output(table(*here, *there))
    assert "tiny on sentiment" in text
    assert "int8-dynamic on Other has the lowest median latency: 1.00 ms" in text
    assert "1.00 ms, against 5.00 ms for fp32 on Other (5.00 times as fast)" in text


def test_devices_of_other_methods_are_not_compared_with_each_other(output: Any) -> None:
    here = table().rows
    there = [r | {"device": "Other CPU", "method_id": "m2"} for r in table().rows]
    there[1]["latency_p50_s"] = 0.001
    text = output(table(*here, *there))
    assert "tiny on sentiment, device Test CPU, method id m1" in text
    assert "4.00 ms, against 10.0 ms for fp32 (2.50 times" in text
    assert "1.00 ms, against 10.0 ms for fp32 (10.0 times" in text


def test_runtimes_have_their_own_reference(output: Any) -> None:
    compiled = {"runtime": "compile"}
    text = output(
        table(
            *table().rows,
            row("fp32", latency_p50_s=0.006, **compiled),
            compared("int8-dynamic", latency_p50_s=0.003, **compiled),
        )
    )
    assert "int8-dynamic (compile) has the lowest median latency: 3.00 ms, against 6.00 ms" in text


# Terminal


def test_terminal_folds_no_cell_at_120_columns() -> None:
    lines = terminal(table(*perplexity_rows(), tasks=(ARTICLES,)), 120).splitlines()
    assert max(map(len, lines)) <= 120
    assert any(line.startswith("int8-llm") and "= +2.50 %" in line for line in lines)


def test_terminal_joins_tables_where_there_is_room() -> None:
    assert terminal(table(), 240).count("Format ") == 1
    assert terminal(table(), 100).count("Format ") == 3


# Markdown


def test_markdown_puts_context_and_caveats_above_the_numbers() -> None:
    text = to_markdown(table(row("fp32"), without("tf32", "skipped", "no cores"), slo="p99=1s"))
    first_table = text.index("\n| ")
    for words in (
        "tiny, revision r1",
        "sentiment v1, text-classification, n = 500, accuracy",
        "by hand",
        "MIT",
        "Test CPU, 2 cores",
        "torch 2.99",
        "Latency: one request after the other.",
        "m1",
        "$0.72 per hour (list price, 2026-01-01)",
        "**Reference:** fp32",
        "1.0 % (points",
        "p99=1s",
        "The machine was otherwise idle.",
        "root1",
    ):
        assert text.index(words) < first_table
    assert text.index("### Findings") < first_table
    assert text.rindex("no cores") > first_table


def test_markdown_context_says_which_way_is_better() -> None:
    text = to_markdown(table(*perplexity_rows(), tasks=(ARTICLES,)))
    assert "n = 40, bits_per_byte (bits, lower is better)" in text


# HTML


def test_html_runs_and_loads_nothing() -> None:
    link = "https://example.org/x"
    page = _Page(to_html(table(prices=(link,), caveats=(f'<img src="{link}">',))))
    assert page.tags[0][0] == "html"
    policies = [a["content"] for _, a in page.tags if "content-security-policy" in str(a).lower()]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "a", "base", "form"}
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href", "srcset", "onload", "onclick"} & set(attributes)
    style = to_html(table()).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert any(link in words for words in page.words)


def test_html_is_accessible() -> None:
    page = _Page(to_html(table(row("fp32"), compared("bf16"), without("tf32", "skipped", "no"))))
    assert page.tags[0] == ("html", {"lang": "en"})
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    charts = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    ids = {a["id"] for tag, a in page.tags if tag in ("title", "desc") and "id" in a}
    assert len(charts) == 1
    assert set(str(charts[0]["aria-labelledby"]).split()) == ids


def points(text: str) -> list[str]:
    """The marks of the chart, in order."""
    return re.findall(r"<g>\s*<title>([^<]*)</title>\s*<(path|circle)", text)


def test_chart_tells_the_front_by_shape() -> None:
    text = to_html(table(row("fp32"), compared("bf16", pareto="no", latency_p50_s=0.02)))
    marks = points(text)
    assert [shape for _, shape in marks] == ["path", "circle"]
    assert "fp32; median latency 10.0 ms; accuracy 90.0 %" in marks[0][0]
    assert "change -0.20 pp; not on the front" in marks[1][0]


def test_chart_leaves_out_and_names_what_it_can_not_draw() -> None:
    text = to_html(
        table(row("fp32"), compared("bf16"), compared("fp16", latency_p50_s=None, pareto="no"))
    )
    assert len(points(text)) == 2
    assert "Not drawn, as a value is missing: fp16." in text


def test_chart_of_a_huge_loss_keeps_the_others_apart() -> None:
    huge = {"quality_delta": 40.0, "quality_delta_ci_low": 39.0, "quality_delta_ci_high": 41.0}
    rows = perplexity_rows()
    rows.append(rows[1] | huge | {"format": "fp16", "quality": 40.8, "latency_p50_s": 0.03})
    text = to_html(table(*rows, tasks=(ARTICLES,)))
    assert "fp16 +5000.00 %" in text
    assert "it lies beyond the scale" in text


def test_chart_survives_values_that_are_not_finite() -> None:
    endless = {"quality": float("inf"), "quality_delta": float("inf")}
    shown = table(*perplexity_rows(), tasks=(ARTICLES,))
    shown.rows.append(shown.rows[1] | endless | {"format": "fp16"})
    assert "Not drawn, as a value is missing: fp16." in to_html(shown)


def test_labels_of_a_crowded_chart_do_not_overlap() -> None:
    spots = [(200.0 + 3 * i, 200.0) for i in range(9)]
    label = "int8-weight-only"
    places = place(spots, [label] * 9, Box(0, 0, 700, 400))
    boxes = [covered(p, label) for p in places]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_reproduction_quotes_the_name_of_the_run() -> None:
    assert "precision-explorer report &#39;a; rm b&#39;" in to_html(table(run="a; rm b"))


def test_model_cautions_are_caveats(output: Any) -> None:
    models = (ModelContext("tiny", "r1", ("Revision not pinned.",)),)
    assert "tiny: Revision not pinned." in output(table(models=models))


def test_reading_wing_needs_no_torch() -> None:
    code = (
        "import sys, precision_explorer.report, precision_explorer.report.terminal\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_winner_in_speed_or_money_is_named_where_other_work_disturbed_the_timing(output):
    busy = compared("bf16", "within", latency_p50_s=0.001, cautions="machine-busy")
    text = output(table(row("fp32"), busy))
    said = "No lowest median latency of all formats is named, as other work disturbed the timing of"
    assert f"{said} bf16." in text
    both = output(table(row("fp32", cautions="machine-busy"), busy))
    assert "other work disturbed the timing of every format." in both
    assert "No lowest cost per 1,000 requests of all formats is named" in text
    assert "has the lowest median latency" not in text
    assert "disturbed" in text


def test_a_place_on_the_front_says_where_it_was_timed_beside_other_work(output):
    on = {"pareto": "yes", "pareto_probability": 1.0}
    said = "Timed beside other work, so that their places"
    text = output(table(row("fp32", **on), compared("bf16", **on, cautions="machine-busy")))
    assert "yes 100 % (timed beside other work)" in text
    assert f"{said} are only as good as these times, whatever the share of resamples: bf16." in text
    assert said not in output(table(row("fp32", **on), compared("bf16", **on)))


def test_the_title_names_the_load() -> None:
    came = table(row("fp32", workload="poisson"), compared("bf16", workload="poisson"))
    assert to_markdown(came).startswith(
        "# Precision tradeoffs: tiny on sentiment, workload poisson"
    )
    assert to_markdown(table()).startswith("# Precision tradeoffs: tiny on sentiment\n")


def test_the_load_stands_beside_the_latencies(output):
    came = {"workload": "poisson", "scenario": "server", "offered_rate_per_s": 12.0,
            "achieved_rate_per_s": 11.5, "queue_p50_s": 0.003}  # fmt: skip
    lacks = {"latency_p99_s": None, "latency_p99_needed_n": 13_800}
    text = output(table(row("fp32", **came), compared("bf16", **came, **lacks)))
    assert "workload poisson" in text
    assert "Load and queue" in text
    for told in ("12.0 /s", "11.5 /s", "3.00 ms"):
        assert told in text
    # 13,800 requests at 11.5 per second.
    assert "p99 of every row here would take about --duration 20m (bf16 most)" in text
    plain = output(table(row("fp32"), compared("bf16", **lacks)))
    assert "Load and queue" not in plain
    # One after the other, 10 ms each.
    assert "--duration 3m (bf16 most)" in plain


def test_groups_of_other_workloads_are_told_apart_by_name() -> None:
    rows = [
        row("fp32", method_id="a" * 12, workload="single-stream"),
        row("fp32", method_id="b" * 12, workload="poisson"),
    ]
    titles = [group.title for group in groups(table(*rows))]
    assert [title.partition(", method id")[0] for title in titles] == [
        "tiny on sentiment, workload single-stream",
        "tiny on sentiment, workload poisson",
    ]
    shown = table(row("fp32", workload="poisson", scenario="server"))
    assert "workload poisson (server)" in to_markdown(shown)
    alone = [group.title for group in groups(shown)]
    assert alone == ["tiny on sentiment"]
