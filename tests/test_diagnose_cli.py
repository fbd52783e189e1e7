"""`diagnose` on a sweep of the bundled model, on runs without roofs, and on those of older
releases."""

import json
import shutil
from pathlib import Path

import pytest

from precision_explorer.report.why import WITHOUT
from precision_explorer.store import read_run
from tests.command import run

FORMATS = ("fp32", "bf16", "int8-weight-only")
STORED = Path(__file__).parents[1] / "results" / "demo-sentiment-cpu"


@pytest.fixture(scope="module")
def swept(tmp_path_factory, quick_workload):
    folder = tmp_path_factory.mktemp("diagnose") / "run"
    done = run(
        "sweep", "--limit", 20, "--formats", ",".join(FORMATS), "--workload", quick_workload,
        "--device", "cpu", "--threads", 1, "--out", folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_cell_has_a_row_and_a_sentence(swept):
    done = run("diagnose", swept)
    assert done.returncode == 0, done.stderr
    assert "Why: prefill, batch 1" in done.stdout
    for name in FORMATS:
        assert done.stdout.count(name) >= 3, name
    text = " ".join(done.stdout.split())
    for name in FORMATS:
        assert f"{name} " in text.split("Why: prefill", 1)[1]
    assert "Ranking in prefill" in text


def test_the_same_as_json(swept):
    done = run("diagnose", swept, "--json")
    (diagnosis,) = json.loads(done.stdout)["diagnoses"]
    cells = {cell["format"]: cell for cell in diagnosis["cells"]}
    assert set(cells) == set(FORMATS)
    for cell in cells.values():
        assert cell["observed_s"] > 0
        assert cell["expected"]["bound"] in ("compute", "memory", "launch")
        shares = [cell[f"{name}_share"] for name in ("quantizing", "matmul", "outside")]
        assert all(0 <= share <= 1 for share in shares)
    assert cells["int8-weight-only"]["quantizing_share"] > cells["fp32"]["quantizing_share"]
    assert cells["int8-weight-only"]["arithmetic"] == "float32"
    assert diagnosis["without_profile"] == []


def test_the_profile_is_a_part_and_the_roof_is_in_the_manifest(swept):
    folder, sweep = read_run(swept)
    files = json.loads((swept / "manifest.json").read_text())["files"]
    assert "roof.json" in files
    assert folder.read_roof().threads == 1
    for cell in sweep["plan"]["cells"]:
        assert f"parts/{cell['cell_id']}/profile.json" in files
        assert folder.read_record(cell["cell_id"]).measurements.profile.note is None


def test_the_reports_say_why(swept):
    markdown, html = ((swept / n).read_text() for n in ("tradeoffs.md", "report.html"))
    assert "### Why" in markdown
    for text in (markdown, html):
        assert "Why: prefill, batch 1" in text
        assert "int8-weight-only" in text.split("Why: prefill", 1)[1]


def test_a_run_without_roofs_is_held_against_those_measured_now(swept, tmp_path):
    copy = shutil.copytree(swept, tmp_path / "copy")
    (copy / "roof.json").unlink()
    done = run("diagnose", copy)
    assert done.returncode == 0, done.stderr
    assert "Ranking in prefill" in " ".join(done.stdout.split())
    assert not (copy / "roof.json").exists()  # A reader changes nothing.


def test_a_run_without_roofs_of_another_device_says_where_to_go(swept, tmp_path):
    copy = shutil.copytree(swept, tmp_path / "copy")
    (copy / "roof.json").unlink()
    sweep = json.loads((copy / "sweep.json").read_text())
    sweep["device"]["name"] = "Another CPU"
    (copy / "sweep.json").write_text(json.dumps(sweep))
    done = run("diagnose", copy)
    assert done.returncode == 1
    assert "another device (Another CPU)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_of_an_older_release_says_what_to_do(tmp_path):
    """Such a run holds no profiles."""
    old = shutil.copytree(STORED, tmp_path / "old")
    for path in (old / "cells").glob("*.json"):
        record = json.loads(path.read_text())
        record["measurements"]["profile"] = None
        path.write_text(json.dumps(record))
    done = run("diagnose", old)
    assert done.returncode == 1
    assert "holds no profile" in done.stderr
    assert "sweep again" in done.stderr
    assert done.stderr.count("\n") == 1
    assert run("report", old, "--out", tmp_path).returncode == 0
    assert WITHOUT in (tmp_path / "tradeoffs.md").read_text()


def test_records_that_can_not_be_read_are_counted(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(STORED, folder)
    plan = json.loads((folder / "sweep.json").read_text())["plan"]["cells"]
    cell_id = next(c["cell_id"] for c in plan if c["format"] == "bf16")
    (folder / "cells" / f"{cell_id}.json").write_text("{")
    done = run("diagnose", folder)
    assert done.returncode == 0, done.stderr
    assert "1 cell has no readable record and is left out" in done.stderr
    assert "bf16" not in done.stdout
    assert "no readable record" not in run("diagnose", STORED).stderr
