"""The Python interface: the same numbers as the command line's, light to import, one line for what
can't be, and a sweep from programs that guard nothing."""

from __future__ import annotations

import asyncio
import csv
import html.parser
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import precision_explorer as pe
from precision_explorer.api.options import ReaderOptions, SweepOptions
from precision_explorer.api.reader import table_reader
from precision_explorer.cli.limits import reader_options
from precision_explorer.endpoint.client import Client
from precision_explorer.plan import SweepSpec
from precision_explorer.runner import manager
from tests.command import run as command
from tests.test_table import ENVIRONMENT, classified, make_run, ok, served, small_run  # noqa: F401

ROOT = Path(__file__).parents[1]
STORED = ROOT / "results" / "demo-sentiment-cpu"


@pytest.fixture(scope="module")
def stored():
    return pe.open_run(STORED)


def test_every_public_name_is_there_and_another_is_an_attribute_error():
    for name in pe.__all__:
        assert getattr(pe, name) is not None
        assert name in dir(pe)
    with pytest.raises(AttributeError, match="no_such_name"):
        pe.no_such_name  # noqa: B018


def test_the_import_loads_nothing_and_reading_a_run_no_torch():
    code = (
        "import sys\nimport precision_explorer as pe\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        f"assert pe.open_run({str(STORED)!r}).table is not None\n"
        "print(*sorted(before)); print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = (set(line.split()) for line in done.stdout.splitlines())
    assert not before & {"torch", "pandas", "numpy", "pydantic", "click", "rich", "yaml"}
    assert "pandas" in after
    assert not after & {"torch", "transformers", "datasets", "click"}


def test_the_keywords_are_the_spec_s_and_the_reader_s_options():
    assert set(SweepOptions.__annotations__) == {*SweepSpec.model_fields, "spec"}
    options = reader_options(lambda: None).__click_params__
    assert set(ReaderOptions.__annotations__) == {option.name for option in options}


# -- what a run tells -------------------------------------------------------------------------


def test_the_table_is_the_stored_one(stored):
    with (STORED / "tradeoffs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(stored.table.columns) == list(rows[0])
    assert list(stored.table["format"]) == [row["format"] for row in rows]
    assert stored.table["latency_p50_s"].iloc[0] == pytest.approx(float(rows[0]["latency_p50_s"]))


def test_the_front_has_the_columns_of_its_objectives(stored):
    front = stored.pareto()
    assert front.attrs["objectives"] == ["quality", "latency", "memory", "cost"]
    on = stored.table[stored.table["pareto"] == "yes"]
    assert list(front["format"]) == list(on["format"])
    for column in ("quality", "latency_p50_s", "peak_memory_bytes", "cost_per_1k_requests_usd"):
        assert list(front[column]) == list(on[column])
    assert "energy_per_request_j" not in front
    by_memory = stored.pareto("memory")
    assert list(by_memory["format"]) == ["fp16"]
    assert list(stored.pareto(["memory", "latency"]).attrs["objectives"]) == ["memory", "latency"]


def test_records_and_samples_are_those_of_the_cell(small_run):  # noqa: F811
    run = pe.Run(small_run)
    assert [record.status for record in run.records] == ["ok", "skipped", "failed", "ok"]
    assert [record.cell.format for record in run.failed] == ["bf16"]
    rows = run.samples("int8-dynamic")
    assert (len(rows), rows["score"].mean()) == (40, 0.775)
    assert "latency_s" not in rows
    same = run.samples(run.records[3], "request")
    assert list(run.samples(run.records[3].cell_id, "request")["latency_s"]) == list(
        same["latency_s"]
    )
    assert "score" not in same


def test_of_several_runs_a_format_is_no_cell(small_run, tmp_path):  # noqa: F811
    other = make_run(
        tmp_path / "other",
        [ok("fp32", classified(set()), served([0.001] * 40), cell={"device_name": "Other"})],
        environment={"device_name": "Other"},
    )
    both = pe.open_run(small_run, other)
    assert set(both.table["device"]) == {"Some CPU", "Other"} - {"Some CPU"} | set(
        pe.open_run(small_run).table["device"]
    )
    with pytest.raises(pe.UsageError, match=r"fp32 stands for several cells; give the id of one: "):
        both.samples("fp32")
    assert len(both.samples(both.records[-1])) == 40


def test_decide_answers_as_the_command_line(stored):
    limits = {"max_quality_loss": "1%", "slo": "p90=50ms"}
    found = stored.decide("latency", **limits)
    asked = ["--max-quality-loss", "1%", "--slo", "p90=50ms", "--objective", "latency"]
    document = json.loads(command("decide", STORED, *asked, "--json").stdout)
    assert found.chosen == document["decisions"][0]["chosen"]["name"] == "int8-dynamic"
    assert document["decisions"][0]["answer"][:40] in " ".join(str(found).split())
    assert found._repr_html_().startswith("<pre")
    # A share may be a number, and what the run was opened with stays.
    again = stored.read(max_quality_loss=0.01, slo="p90=50ms").decide("latency")
    assert [one.limits for one in again] == [one.limits for one in found]


def test_no_choice_is_none(stored):
    assert stored.decide(max_memory=1).chosen is None


def test_compare_answers_as_the_command_line():
    one, other = (ROOT / "results" / f"smollm2-poisson-cpu-{number}" for number in (1, 2))
    found = pe.open_run(one).compare(pe.open_run(other))
    assert found.is_answered
    printed = command("compare", one, other).stdout
    assert found[0].one in printed
    assert [row.changes for row in found[0].rows]
    assert pe.open_run(one).compare(other)._repr_markdown_().startswith("# Comparison of runs")
    assert " ".join(str(found).split())[:100] == " ".join(printed.split())[:100]


def test_reports_go_where_the_command_line_s_go(small_run, tmp_path):  # noqa: F811
    own = pe.open_run(small_run)
    assert own.report() == small_run / "report.html"
    dearer = own.read(price_per_hour=7.2)
    with pytest.raises(pe.UsageError, match="give a folder for it"):
        dearer.report()
    with pytest.raises(pe.UsageError, match="give another --out"):
        dearer.report(small_run)
    page = dearer.report(tmp_path / "mine")
    assert command("report", small_run, "--price-per-hour", 7.2, "--out", "again").returncode == 0
    assert page.read_bytes() == Path("again/report.html").read_bytes()
    assert "$7.2" in page.read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(pe.UsageError, match="can't write"):
        dearer.report(tmp_path / "file")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# -- notebooks --------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The tags, texts and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_notebook_shows_the_table_alone_and_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    made = make_run(
        tmp_path / "run",
        [
            ok("fp32", classified({1, 2}), cautions=[{"id": "evil", "message": f"{evil}|*x*"}]),
            ok("int8-dynamic", classified({1, 3}), served([0.001] * 40), rate=200.0),
        ],
    )
    run = pe.open_run(made)
    page = Page(run._repr_html_())
    assert page.open == []
    assert set(page.tags) <= {
        "div", "p", "strong", "ul", "li", "table", "caption", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert {name for name, _ in page.attributes} == {"style", "scope"}
    assert not any("url" in (value or "") for _, value in page.attributes)
    assert evil in page.text
    assert "int8-dynamic" in page.text
    shown = run._repr_markdown_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "| int8-dynamic |" in shown
    assert repr(run) == f"Run({str(made)!r}): 2 cells"


def test_the_stored_run_s_excerpt_has_the_rows_of_its_report(stored):
    lines = (STORED / "tradeoffs.md").read_text().splitlines()
    shown = [line for line in stored._repr_markdown_().splitlines() if line.startswith("|")]
    assert len(shown) > 25
    assert [line for line in shown if line not in lines] == []


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "line"),
    [
        (lambda: pe.sweep(formatz="fp32"), "UsageError", "unknown option 'formatz'; did you mean"),
        (lambda: pe.sweep(formats="fp99"), "UsageError", "unknown format 'fp99'; did you mean"),
        (lambda: pe.sweep(limit="many"), "UsageError", "limit: give whole numbers"),
        (lambda: pe.sweep(find_rate=True), "UsageError", "--find-rate needs the objective"),
        (lambda: pe.sweep(spec="none.yaml"), "UsageError", "none.yaml"),
        (lambda: pe.sweep(model=Path("no-such-folder")), "ModelError", "no-such-folder"),
        (lambda: pe.sweep(task="no-such-task"), "TaskError", "no-such-task"),
        (lambda: pe.open_run("nowhere"), "StoreError", "nowhere is no results folder"),
        (lambda: pe.open_run(STORED, sloo="p99=1s"), "UsageError", "did you mean slo?"),
        (lambda: pe.open_run(STORED, slo=0.2), "UsageError", "slo: 0.2 is no text"),
        (lambda: pe.open_run(STORED, price_per_hour="1"), "UsageError", "'1' is no number"),
        (lambda: pe.open_run(STORED, max_cost=True), "UsageError", "True is no number"),
        (lambda: pe.open_run(STORED, quality_budget=[1]), "UsageError", "neither a number nor"),
        (lambda: pe.open_run(STORED).pareto("speed"), "UsageError", "unknown objective 'speed'"),
        (lambda: pe.open_run(STORED).decide("speed"), "UsageError", "unknown objective 'speed'"),
        (lambda: pe.open_run(STORED).decide(task="x"), "UsageError", "unknown task 'x'"),
        (lambda: pe.open_run(STORED).compare(), "UsageError", "one run is nothing to compare"),
        (lambda: pe.open_run(STORED).samples("fp3"), "UsageError", "did you mean fp32"),
        (lambda: pe.open_run(STORED).samples("tf32"), "StoreError", "tf32 has no samples, as it"),
    ],
)
def test_what_can_t_be_is_one_line_of_the_error_tree(call, kind, line):
    with pytest.raises(pe.PrecisionExplorerError) as caught:
        call()
    assert type(caught.value).__name__ == kind
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_s_and_python_s_reader_are_one():
    given = table_reader(quality_budget="2%", objectives=["quality", "cost"], max_memory=8_000_000)
    same = table_reader(quality_budget=0.02, objectives="quality,cost", max_memory="8MB")
    assert given == same


# -- sweeps -----------------------------------------------------------------------------------

# What a program does that knows nothing of processes; `batch_tokens` leaves a probe out.
PROGRAM = """
import os, sys
import precision_explorer as pe
print("once")
before, events = dict(os.environ), []
run = pe.sweep(
    model="demo", formats=["fp32"], limit=5, workload={workload!r}, batch_tokens=512,
    out={out!r}, on_event=events.append,
)
assert dict(os.environ) == before
assert list(run.table["status"]) == ["ok"], run.failed
assert len(run.samples("fp32")) == 5
assert {{"worker", "start", "cell"}} <= {{event.name for event in events}}
assert "torch" not in sys.modules
print(repr(run))
"""


def program(arguments, stdin, folder):
    done = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize("way", ["script without a guard", "stdin"])
def test_a_sweep_from_any_program_works_and_prints_nothing(way, quick_workload, tmp_path):
    text = PROGRAM.format(workload=str(quick_workload), out="mine")
    (tmp_path / "program.py").write_text(text)
    arguments, stdin = {
        "script without a guard": (["program.py"], ""),
        "stdin": (["-"], text),
    }[way]
    done = program(arguments, stdin, tmp_path)
    assert done.stdout.splitlines() == ["once", "Run('mine'): 1 cell"]
    assert done.stderr == ""
    assert (tmp_path / "mine" / "report.html").is_file()


def test_progress_and_an_interrupt(monkeypatch, capsys, small_run):  # noqa: F811
    """What is done is kept, and its tables are written, when Ctrl-C ends a sweep."""
    from precision_explorer.api import sweeps

    def interrupted(spec, on_event, opened):
        opened(small_run)
        on_event(pe.Event("note", {"text": "so far"}))
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pe.sweep(progress=True)
    assert capsys.readouterr().err.endswith("so far\n")
    assert (small_run / "tradeoffs.csv").is_file()


def test_variables_that_decide_results_are_not_those_of_an_earlier_sweep(monkeypatch):
    """The fork server keeps the environment that it was started with."""
    monkeypatch.setattr(manager, "_server_kernels", [manager._kernels_on[0]])
    monkeypatch.setattr(manager, "_server_variables", [manager._deciding_variables()])
    monkeypatch.setattr(manager, "_fork_broke_cuda", [])
    assert manager.start_context().get_start_method() == "forkserver"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert manager.start_context().get_start_method() == "spawn"


def test_a_fork_server_of_the_calling_program_is_left_to_it(monkeypatch):
    """It has neither the preload nor an environment without secrets."""
    monkeypatch.setattr(manager, "_server_kernels", [])
    monkeypatch.setattr(manager, "_server_variables", [])
    monkeypatch.setattr(manager, "_server_pid", lambda: 1)
    assert manager.start_context().get_start_method() == "spawn"


def test_a_server_is_asked_beside_a_notebook_s_loop():
    async def cell() -> int:
        async def work() -> int:
            return 42

        with Client("http://127.0.0.1:9/v1") as client:
            return client.run(work())

    assert asyncio.run(cell()) == 42
