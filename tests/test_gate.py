"""A run held to a baseline: worse only where that is shown, and the workflow of the docs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from precision_explorer.comparison import Budgets, Change, compare, gate
from precision_explorer.comparison.gate import _check
from precision_explorer.errors import UsageError
from precision_explorer.report.gate import answer, to_markdown
from tests.command import run
from tests.test_comparison import REF_WRONG, a_run, fewer_draws, timed  # noqa: F401
from tests.test_table import failed, make_run

ROOT = Path(__file__).parents[1]


def gated(base, new, **budgets):
    (compared,) = compare([base, new])
    return gate(compared, Budgets(**budgets))


def outcomes(found, figure):
    return {c.row.format: c.outcome for c in found.checks if c.change.figure == figure}


# -- outcomes -----------------------------------------------------------------------------------


def test_the_same_build_holds(tmp_path):
    found = gated(a_run(tmp_path / "one"), a_run(tmp_path / "two", seed=1))
    assert found.holds()
    assert found.having("regressed") == ()
    # No example flipped: within, though 40 examples alone leave room for more than a point.
    assert set(outcomes(found, "quality").values()) == {"passed"}
    assert to_markdown(found).count("within: no example flipped") == 2
    assert {c.change.figure for c in found.checks} == {
        "quality", "memory", "weights", "latency_to_reference", "throughput_to_reference",
    }  # fmt: skip


def test_a_slower_format_is_worse_beyond_its_budget_only(tmp_path):
    runs = a_run(tmp_path / "one"), a_run(tmp_path / "two", slower=1.5, seed=1)
    found = gated(*runs)
    assert not found.holds()
    assert outcomes(found, "latency_to_reference") == {"int8-dynamic": "regressed"}
    (worst,) = [c for c in found.having("regressed") if "latency" in c.change.figure]
    assert worst.loss == pytest.approx(0.5, abs=0.1)
    assert worst.low > 0.10
    lost = [c for c in found.having("regressed") if "throughput" in c.change.figure]
    assert [c.loss for c in lost] == [pytest.approx(1 / 3, abs=0.05)]
    assert gated(*runs, slowdown=0.9).holds()
    between = outcomes(gated(*runs, slowdown=0.5), "latency_to_reference")
    assert between == {"int8-dynamic": "cannot-tell"}
    assert not gated(*runs, slowdown=0.5).holds(strict=True)
    # The other way round it is faster, which no budget minds.
    assert gated(*runs[::-1]).holds()


def test_a_slower_machine_is_seen_by_times_and_not_by_ratios(tmp_path):
    cells = [[timed(f, (by, 1.02 * by, 0.99 * by)) for f in ("fp32", "bf16")] for by in (1, 2)]
    runs = [make_run(tmp_path / str(k), row) for k, row in enumerate(cells)]
    assert gated(*runs).holds()
    assert outcomes(gated(*runs, speed="time"), "latency") == dict.fromkeys(
        ("fp32", "bf16"), "regressed"
    )
    both = {c.change.figure for c in gated(*runs, speed="both").checks}
    assert {"latency", "latency_to_reference"} <= both


def test_lost_quality_is_worse_and_few_flips_are_not_told(tmp_path):
    base = make_run(tmp_path / "one", [timed("fp32"), timed("bf16")])
    few = [timed("fp32"), timed("bf16", wrong={*REF_WRONG, 30})]
    many = [timed("fp32"), timed("bf16", wrong={*REF_WRONG, *range(20, 36)})]
    found = gated(base, make_run(tmp_path / "few", few))
    assert outcomes(found, "quality") == {"fp32": "passed", "bf16": "cannot-tell"}
    found = gated(base, make_run(tmp_path / "many", many))
    assert outcomes(found, "quality") == {"fp32": "passed", "bf16": "regressed"}
    assert gated(base, make_run(tmp_path / "again", many), quality=0.7).holds()


def test_weights_are_counted_and_memory_told_beyond_what_it_repeats_within(tmp_path):
    base = make_run(tmp_path / "one", [timed("fp32", peak=10**9)])
    more = make_run(tmp_path / "two", [timed("fp32", peak=13 * 10**8, weights=600)])
    found = gated(base, more)
    assert outcomes(found, "memory") == outcomes(found, "weights") == {"fp32": "regressed"}
    near = make_run(tmp_path / "near", [timed("fp32", peak=12 * 10**8)])
    assert outcomes(gated(base, near), "memory") == {"fp32": "passed"}
    assert outcomes(gated(base, near, memory=0.1), "memory") == {"fp32": "cannot-tell"}


def score(path, metric, values, wrong=()):
    """fp32 and bf16, of which the second has `values` in `metric`; both have the same flips."""
    cells = []
    for fmt, own in (("fp32", [0.8] * 40), ("bf16", values)):
        record, rows = timed(fmt, wrong=set(wrong))
        table = pa.ipc.open_stream(rows["example"]).read_all()
        table = table.append_column(metric, pa.array(own, pa.float64()))
        made = record.measurements.quality.model_copy(
            update={"metric": metric, "scores": {metric: sum(own) / len(own)}}
        )
        measured = record.measurements.model_copy(update={"quality": made})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        stream = sink.getvalue().to_pybytes()
        record = record.model_copy(update={"measurements": measured})
        cells.append((record, rows | {"example": stream}))
    return make_run(path, cells, metric=metric)


def test_no_flip_is_no_pass_where_the_metric_lost(tmp_path):
    base = score(tmp_path / "one", "token_f1", [0.8] * 40)
    found = gated(base, score(tmp_path / "two", "token_f1", [0.8] * 20 + [0.1] * 20))
    assert outcomes(found, "quality") == {"fp32": "passed", "bf16": "regressed"}
    (lost,) = found.having("regressed")
    assert lost.note == "no example flipped"
    assert lost.loss == pytest.approx(0.35)


def change(note, low, high, figure="quality"):
    return Change(
        figure, 0.8, 0.7, change=-0.1, low=low, high=high, note=note, is_points=True,
        higher_is_better=True, p_value=0.001,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("note", "low", "high", "outcome"),
    [
        ("12 flipped", -0.2, -0.03, "regressed"),
        ("not beyond the noise floor", -0.2, -0.03, "cannot-tell"),
        ("not beyond the noise floor", -0.009, 0.001, "passed"),
        ("no example flipped", -0.2, -0.03, "regressed"),
        ("12 flipped", -0.2, 0.01, "cannot-tell"),
        ("12 flipped", -0.009, 0.01, "passed"),
    ],
)
def test_a_loss_is_judged_by_its_interval(note, low, high, outcome):
    assert _check(None, change(note, low, high), 0.01).outcome == outcome


def test_speed_that_can_t_be_told_any_more_is_listed(tmp_path):
    base = a_run(tmp_path / "one")
    record, rows = timed("int8-dynamic")
    gone = record.measurements.model_copy(update={"latency": None, "throughput": None})
    silent = record.model_copy(update={"measurements": gone}), {"example": rows["example"]}
    found = gated(base, make_run(tmp_path / "two", [timed("fp32", seed=1), silent]))
    for figure in ("latency_to_reference", "throughput_to_reference"):
        assert outcomes(found, figure) == {"int8-dynamic": "cannot-tell"}
    assert found.holds()
    assert not found.holds(strict=True)


def test_a_load_that_the_baseline_bore_and_the_run_does_not_is_worse(tmp_path):
    (compared,) = compare([a_run(tmp_path / "one"), a_run(tmp_path / "two", seed=1)])
    fp32, int8 = compared.rows
    assert (fp32.is_reference, int8.is_reference) == (True, False)
    note = "more was asked than the format can serve in B"
    late = tuple(
        replace(c, other=None, change=None, low=None, high=None, p_value=None, note=note)
        for c in int8.changes
        if c.figure == "latency"
    )
    full = replace(int8, changes=late, cautions=((), ("serving-saturated",)))
    found = gate(replace(compared, rows=(fp32, full)), Budgets())
    assert outcomes(found, "latency_to_reference") == {"int8-dynamic": "regressed"}
    assert note in to_markdown(found)
    # Where the reference can't serve it either, it may be the machine.
    both = replace(fp32, cautions=((), ("serving-saturated",)))
    found = gate(replace(compared, rows=(both, full)), Budgets())
    assert outcomes(found, "latency_to_reference") == {"int8-dynamic": "cannot-tell"}


def test_disturbed_times_are_not_judged(tmp_path):
    base = a_run(tmp_path / "one")
    late = [timed("fp32"), timed("int8-dynamic", (2, 2.02, 1.99), cautions=("machine-busy",))]
    found = gated(base, make_run(tmp_path / "two", late))
    assert outcomes(found, "latency_to_reference") == {"int8-dynamic": "cannot-tell"}


def test_a_row_that_failed_or_is_gone_is_lost(tmp_path):
    base = a_run(tmp_path / "one")
    found = gated(base, make_run(tmp_path / "two", [timed("fp32"), failed("int8-dynamic")]))
    assert not found.holds()
    assert found.compared.lost[0].startswith("int8-dynamic on sentiment: failed in two (")
    found = gated(base, make_run(tmp_path / "three", [timed("fp32")]))
    assert found.compared.lost == ("int8-dynamic on sentiment is in one only",)
    assert answer(found).startswith("three lacks rows of one: int8-dynamic on sentiment is in one")
    # What the run has more than the baseline is no loss.
    assert gated(tmp_path / "three", base).holds()


def test_budgets_that_can_t_be_are_refused():
    for wrong in (
        {"quality": -0.1},
        {"quality": 1.0},
        {"slowdown": -1.0},
        {"memory": float("nan")},
    ):
        with pytest.raises(UsageError, match="budget is at least 0"):
            Budgets(**wrong)
    assert Budgets(slowdown=1.5, memory=3.0).slowdown == 1.5


# -- the command --------------------------------------------------------------------------------


def test_exit_codes_and_files(tmp_path):
    base, slow = a_run(tmp_path / "one"), a_run(tmp_path / "two", slower=1.5, seed=1)
    same = a_run(tmp_path / "same", seed=1)
    junit, summary = tmp_path / "gate.xml", tmp_path / "summary.md"
    summary.write_text("# Before\n")
    done = run("gate", slow, "--against", base, "--junit", junit, "--summary", summary)
    assert done.returncode == 4
    assert done.stdout.startswith("two is worse than one beyond the budget in int8-dynamic: ")
    suite = ElementTree.parse(junit).getroot()[0]
    failures = [case for case in suite if case.find("failure") is not None]
    assert int(suite.get("failures")) == len(failures) == 2
    assert int(suite.get("tests")) == len(suite)
    assert {case.get("name").split(" ")[0] for case in failures} == {"int8-dynamic"}
    text = summary.read_text()
    assert text.startswith("# Before\n")
    assert "❌ **two is worse than one" in text
    assert text.index("WORSE") < text.index("| within")
    assert run("gate", same, "--against", base).returncode == 0
    found = json.loads(run("gate", slow, "--against", base, "--json").stdout)
    assert not found["holds"]
    assert {c["outcome"] for c in found["checks"]} >= {"regressed", "passed"}
    assert found["comparison"]["lost"] == []


def test_rows_that_are_refused_beside_others_that_hold_are_said_first(tmp_path):
    base = make_run(tmp_path / "one", [timed("fp32"), timed("bf16")])
    other = make_run(tmp_path / "two", [timed("fp32"), timed("bf16", cell={"seed": 1})])
    summary = tmp_path / "summary.md"
    done = run("gate", other, "--against", base, "--summary", summary)
    assert done.returncode == 5
    first = done.stdout.splitlines()[0]
    assert first.startswith("What could be compared of two is not shown to be worse than one: ")
    assert "1 row is refused" in " ".join(done.stdout.split())
    assert "❌" in summary.read_text()


def test_where_nothing_can_be_checked_no_output_says_that_it_holds(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        record, rows = timed("fp32")
        nothing = record.measurements.model_copy(
            update={"latency": None, "throughput": None, "quality": None, "memory": None}
        )
        applied = record.applied.model_copy(update={"weight_bytes": None})
        bare = record.model_copy(update={"measurements": nothing, "applied": applied})
        make_run(path, [(bare, {"example": rows["example"]})])
    junit, summary = tmp_path / "gate.xml", tmp_path / "summary.md"
    done = run("gate", two, "--against", one, "--junit", junit, "--summary", summary)
    assert done.returncode == 5
    assert "❌ **Not judged" in summary.read_text()
    assert ElementTree.parse(junit).getroot()[0].get("failures") == "1"


def test_strict_fails_what_can_t_be_told(tmp_path):
    base, slow = a_run(tmp_path / "one"), a_run(tmp_path / "two", slower=1.5, seed=1)
    junit = tmp_path / "gate.xml"
    lax = ("gate", slow, "--against", base, "--max-slowdown", "50%", "--junit", junit)
    assert run(*lax).returncode == 0
    assert ElementTree.parse(junit).getroot()[0].get("failures") == "0"
    assert int(ElementTree.parse(junit).getroot()[0].get("skipped")) > 0
    done = run(*lax, "--strict")
    assert done.returncode == 4
    assert "which --strict does not accept" in done.stdout
    assert int(ElementTree.parse(junit).getroot()[0].get("failures")) > 0


def test_other_methods_are_refused(tmp_path):
    base = make_run(tmp_path / "one", [timed("fp32")])
    other = make_run(tmp_path / "two", [timed("fp32", cell={"seed": 1})])
    junit = tmp_path / "gate.xml"
    done = run("gate", other, "--against", base, "--junit", junit)
    assert done.returncode == 5
    assert done.stdout.startswith("Not judged: the methods of two and one differ")
    assert "other methods (seed)" in junit.read_text()
    assert not json.loads(run("gate", other, "--against", base, "--json").stdout)["holds"]
    assert run("gate", other, "--against", base, "--allow", "seed").returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-slowdown", "fast"], "max-slowdown: 'fast'"),
        (["--max-quality-loss", "200%"], "a budget is at least 0"),
        (["--junit", "/no/such/gate.xml"], "choose another --junit"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, options, said):
    base, same = a_run(tmp_path / "one"), a_run(tmp_path / "two", seed=1)
    done = run("gate", same, "--against", base, *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


# -- the workflow of the docs, in a repository ----------------------------------------------------

BREAK = """
# Every sentence comes out negative in int8-dynamic, as after a bad release of a library.
import importlib.abc, importlib.machinery, sys

class Break(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "precision_explorer.formats.apply":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            whole = module._HANDLERS["int8-dynamic"]
            def broken(model, *rest):
                found = whole(model, *rest)
                model.classifier.bias.data[0] += 100
                return found
            module._HANDLERS["int8-dynamic"] = broken
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Break())
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory, quick_workload) -> Path:
    """A scratch repository with a spec and a measured baseline."""
    folder = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", folder], check=True)
    spec = {
        "formats": "fp32,int8-dynamic",
        "limit": 100,
        "batch-size": [8],
        "threads": 1,
        "batch-tokens": 2048,  # Not probed.
        "device": "cpu",
        "workload": str(quick_workload),
    }
    (folder / "precision.yaml").write_text(yaml.safe_dump(spec))
    ran = run("sweep", "--spec", folder / "precision.yaml", "--out", folder / "baseline")
    assert ran.returncode == 0, ran.stderr
    return folder


def shell(folder: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A step of a workflow, as GitHub's runners run it: bash -e."""
    command = f"{shlex.quote(sys.executable)} -m precision_explorer"
    return subprocess.run(
        ["bash", "-e", "-c", script.replace("precision-explorer ", f"{command} ")],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )


def steps() -> dict[str, str]:
    """{name: script} of the workflow in the docs."""
    text = (ROOT / "docs" / "gate.md").read_text(encoding="utf8")
    (workflow,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    jobs = yaml.safe_load(workflow)["jobs"]
    return {s["name"]: s["run"] for s in jobs["gate"]["steps"] if "name" in s}


def gate_step(repository: Path, tmp_path: Path, **variables: str):
    """Both steps in a copy of the repository; the last one's end and the summary."""
    folder = tmp_path / "checkout"
    subprocess.run(["cp", "-r", repository, folder], check=True)
    summary = tmp_path / "summary.md"
    measured = shell(folder, steps()["Measure"], **variables)
    assert measured.returncode == 0, measured.stderr
    # What five requests took beside other tests is not what this is about.
    script = steps()["Gate"] + " --max-slowdown 99%"
    ended = shell(folder, script, GITHUB_STEP_SUMMARY=str(summary), **variables)
    return ended, summary.read_text(), folder


def test_the_workflow_passes_on_the_same_build(repository, tmp_path):
    ended, summary, folder = gate_step(repository, tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "✅ **run is not shown to be worse than baseline" in summary
    assert (folder / "gate.xml").is_file()


def test_the_workflow_fails_on_a_broken_format_and_says_which_and_by_how_much(repository, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(BREAK))
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    ended, summary, _ = gate_step(repository, tmp_path, PYTHONPATH=path)
    assert ended.returncode == 4, ended.stdout + ended.stderr
    assert "❌ **run is worse than baseline beyond the budget in int8-dynamic: accuracy" in summary
    found = re.search(r"int8-dynamic: accuracy worse by \+(\d+\.\d+)", ended.stdout)
    assert found
    assert float(found[1]) > 20
    assert "fp32: " not in ended.stdout.splitlines()[0]
