"""`reproduce`: a stored plan run again. No worker starts: what runs answer is made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from precision_explorer.errors import StoreError, UsageError
from precision_explorer.formats.catalog import CATALOG
from precision_explorer.records import SweepDocument
from precision_explorer.runner import reproduce as reproduce_module
from precision_explorer.runner import sweep
from precision_explorer.runner.local import Tally
from precision_explorer.runner.reproduce import _agree, stored_spec
from precision_explorer.store import RunFolder
from tests.command import run as call
from tests.test_cli import card, finish, machine  # noqa: F401  (of every test)
from tests.test_schemas import lost, problems
from tests.test_store import arrow
from tests.test_table import LATENCIES, classified, served

RESULTS = Path(__file__).parents[1] / "results"
SMALL = ["sweep", "--limit", "4", "--formats", "fp32,tf32,bf16", "--device", "cpu"]


@pytest.fixture
def swept(monkeypatch):
    """Sweeps that end at once; `swept(...)` says what the next ones find: which formats end well,
    which examples are wrong, how many times as long requests take."""
    told = {"ok": {"fp32", "bf16"}, "wrong": {1, 2}, "slower": 1.0}

    def run(prepared, on_event, **more):
        folder = finish(prepared, told["ok"], {"fp32", "bf16"} - told["ok"])
        for record in map(folder.read_record, [c.cell_id for c in prepared.plan.to_run]):
            if record.status == "ok":
                rows = {
                    "example": arrow(classified(told["wrong"])),
                    "request": arrow(served([told["slower"] * s for s in LATENCIES])),
                }
                folder.write_samples(record.cell_id, rows)
        folder.write_manifest()
        failed = len({"fp32", "bf16"} - told["ok"])
        return folder, Tally(ran=len(told["ok"]), failed=failed, skipped=1)

    monkeypatch.setattr(sweep, "run_sweep", run)
    return told.update


@pytest.fixture
def stored(swept):
    """A stored run in the working directory."""
    assert call(*SMALL, "--out", "run").returncode == 0
    return Path("run")


def rows_of(done) -> dict[str, str]:
    """{format: its line}."""
    lines = [line for line in done.stdout.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    return {row[1]: " | ".join(row[2:]) for row in cells}


# -- what comes out -----------------------------------------------------------------------------


def test_a_run_that_comes_out_the_same(stored):
    before = {p: p.read_bytes() for p in stored.rglob("*") if p.is_file()}
    done = call("reproduce", stored, "--out", "again")
    assert done.returncode == 0, done
    found = rows_of(done)
    assert set(found) == {"fp32", "bf16", "tf32"}
    assert "all" in found["fp32"]
    assert "the same" in found["fp32"]
    assert "1.000 x" in found["fp32"]
    assert "skipped" in found["tf32"]
    assert "3 of 3 cells ended and answered as before" in done.stderr
    assert "run again" in done.stderr
    assert {p: p.read_bytes() for p in stored.rglob("*") if p.is_file()} == before
    assert call("verify", "again").returncode == 0
    again, first = (json.loads(Path(n, "sweep.json").read_text()) for n in ("again", "run"))
    assert again["methods"] == first["methods"]
    assert [c["cell_id"] for c in again["plan"]["cells"]] == [
        c["cell_id"] for c in first["plan"]["cells"]
    ]


def test_other_answers_are_counted_and_slower_requests_are_a_ratio(stored, swept):
    swept(wrong={1, 2, 3}, slower=2.0)
    done = call("reproduce", stored)
    assert done.returncode == 5
    assert Path("results/run-again/tradeoffs.csv").exists()
    for name in ("fp32", "bf16"):
        line = rows_of(done)[name]
        assert "1 of " in line
        assert "differ" in line
        assert "2.000 x" in line
    assert "1 of 3 cells ended" in done.stderr


def test_slower_requests_alone_are_no_other_answer(stored, swept):
    swept(slower=3.0)
    assert call("reproduce", stored).returncode == 0


def test_a_cell_that_fails_now_is_told(stored, swept):
    swept(ok={"fp32"})
    done = call("reproduce", stored)
    assert done.returncode == 3
    assert "ok then, failed now" in rows_of(done)["bf16"]


def test_only_some_formats_may_be_run_again(stored):
    done = call("reproduce", stored, "--formats", "bf16")
    assert done.returncode == 0
    assert set(rows_of(done)) == {"fp32", "bf16"}
    assert "2 of 2 cells" in done.stderr


# -- what is told, and what is refused ----------------------------------------------------------


def changed(run: Path, change) -> None:
    path = run / "sweep.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_other_libraries_devices_and_rules_are_told(stored):
    def older(document):
        document["environment"]["libraries"] |= {"torch": "1.0", "gone": "2"}
        document["environment"]["device_name"] = "Another CPU"
        (old,) = document["methods"].values()
        old["rules"]["memory"] = "otherwise"
        document["methods"] = {"0" * 12: old}

    changed(stored, older)
    done = call("reproduce", stored)
    assert done.returncode == 0
    assert "torch 1.0 then, " in done.stderr
    assert "gone 2 then, none here" in done.stderr
    assert "device: Another CPU, " in done.stderr
    assert "Methods 000000000000 and " in done.stderr
    assert "measuring rules" in done.stderr


def refused(run: Path, *arguments: object) -> str:
    """The one line of a refusal, with which nothing is run or written."""
    done = call("reproduce", run, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert not Path("results").exists()
    return line


def test_another_model_is_refused(stored):
    def other(document):
        document["models"][0]["revision"] = "files:0123"

    changed(stored, other)
    line = refused(stored)
    assert "the model demo is at files:" in line
    assert "the run's at files:0123" in line


def test_other_data_are_refused(swept):
    path = card(examples=[{"text": f"a good film {n}", "label": "positive"} for n in range(6)])
    assert call(*SMALL, "--task", path, "--out", "mine").returncode == 0
    assert "mine" in refused(Path("mine"))  # The card's place is not kept.
    assert call("reproduce", "mine", "--task", path, "--out", "same").returncode == 0
    with (Path(path).parent / "test.jsonl").open("a") as file:
        file.write(json.dumps({"text": "bad", "label": "negative"}) + "\n")
    assert "the data of the task mine is" in refused(Path("mine"), "--task", path)


def test_another_workload_is_refused(swept):
    for name, count in (("w", 5), ("other", 6)):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"min_requests": count}))
    assert call(*SMALL, "--workload", "w.yaml", "--out", "mine").returncode == 0
    assert call("reproduce", "mine", "--workload", "w.yaml", "--out", "same").returncode == 0
    line = refused(Path("mine"), "--workload", "other.yaml")
    assert "the method here is another" in line
    assert "min requests 5 against 6" in line


def test_what_a_run_s_folder_says_trusts_no_code(stored):
    def trusting(document):
        document["spec"]["trust_remote_code"] = True
        document["spec"]["allow_metric"] = ["evil/metric"]

    changed(stored, trusting)
    assert "give --trust-remote-code" in refused(stored)
    spec = stored_spec(stored, {"trust_remote_code": True})
    assert spec.trust_remote_code
    assert spec.allow_metric == ()


def test_a_run_of_a_cluster_is_made_again_on_this_machine(stored):
    def change(document: dict) -> None:
        places = {"executor": "ray", "on": ["h100"], "cores": 4, "slurm": ["time=5"]}
        document["spec"] |= places | {"threads": None}
        document["environment"]["threads"] = 4

    changed(stored, change)
    spec = stored_spec(stored, {})
    assert (spec.executor, spec.on, spec.cores, spec.slurm) == ("local", (), None, ())
    assert spec.threads == 4


def test_what_a_run_does_not_keep_is_asked_for():
    with pytest.raises(UsageError, match="whose recipe no run keeps"):
        stored_spec(RESULTS / "h200-decoder", {})
    found = stored_spec(RESULTS / "h200-decoder", {"formats": "fp16"})
    assert found.formats == ("bf16", "fp16")
    assert found.batch_tokens == 2048


def test_servers_and_calibration_texts_are_not_kept(stored):
    def calibrated(document):
        document["spec"]["calibration"] = "mine.jsonl"

    changed(stored, calibrated)
    assert "give it by --calibration" in refused(stored)

    def served_by(document):
        document["spec"]["runtime"] = ["endpoint"]

    changed(stored, served_by)
    assert "whose addresses no run keeps" in refused(stored)


def test_a_spec_that_this_release_can_not_run_is_one_line(stored):
    def newer(document):
        document["spec"]["hyperdrive"] = 3

    changed(stored, newer)
    assert "hyperdrive" in refused(stored)


def test_what_was_measured_before_is_no_new_measurement(stored, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(stored, copy)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    done = call("reproduce", stored, "--out", copy)
    assert (done.returncode, "measure nothing anew" in done.stderr) == (1, True)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, (2, 0)),
        ({"a": 1, "b": 2}, {"a": 1}, (2, 1)),
        ({"a": 1}, {"c": 1}, (2, 2)),
        ({"a": 0.125}, {"a": 0.1250001}, (1, 1)),
        (None, {"a": 1}, (None, None)),
        (None, None, (0, 0)),
    ],
)
def test_an_example_that_only_one_run_answered_is_answered_otherwise(old, new, found):
    assert reproduce_module._differing(old, new) == found


def test_the_run_itself_is_no_place_for_the_new_one(stored):
    assert "is the run itself" in refused(stored, "--out", "run/../run")
    shutil.rmtree(stored / "cells")
    with pytest.raises(StoreError):
        stored_spec(stored / "cells", {})


@pytest.mark.parametrize(
    "run", sorted(p.parent.name for p in RESULTS.glob("*/sweep.json")),
)  # fmt: skip
def test_specs_of_stored_runs_are_ones(run):
    """So far as a run keeps what it was given."""
    path = RESULTS / run
    document = json.loads((path / "sweep.json").read_text())["spec"]
    kept = [name for name in document["formats"] if name in CATALOG]
    spec = stored_spec(path, {"formats": ",".join(kept)})
    assert spec.formats == tuple(kept)
    assert spec.model == tuple(document["model"])
    assert (spec.limit, spec.seed, spec.out) == (document["limit"], document["seed"], None)


def test_a_hub_s_model_is_asked_for_at_its_commit(stored):
    def of_hub(document):
        document["models"] = [{"name": "a/b", "revision": "c0ffee", "cautions": []}]
        document["spec"]["model"] = ["a/b"]

    changed(stored, of_hub)
    assert stored_spec(stored, {}).revision == "c0ffee"
    assert stored_spec(stored, {"model": ("elsewhere",)}).revision is None


def test_what_a_sweep_writes_is_what_its_schema_names(stored):
    """All of it, so that a key that is added is described too."""
    document = json.loads((stored / "sweep.json").read_text())
    assert problems("sweep", document) == []
    read = SweepDocument.model_validate(document).model_dump(mode="json")
    assert lost(document, read) == []


def test_methods_agree_in_what_both_releases_knew():
    assert _agree({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2, "new": 3}, "d": 4})
    assert not _agree({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    assert not _agree(1, 2)


def test_a_run_without_samples_for_a_cell_holds_nothing_against_it(stored):
    RunFolder(stored).write_manifest()
    for path in (stored / "samples").iterdir():
        path.unlink()
    done = call("reproduce", stored)
    assert done.returncode == 1
    assert "missing" in done.stderr
