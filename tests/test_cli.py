"""The command line: wrong use, exit codes, and what each command prints and writes. No worker
starts: what the device answers is made up."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from precision_explorer.api.progress import progress
from precision_explorer.cli import COMMANDS, main
from precision_explorer.formats import CATALOG, Support
from precision_explorer.models.reference import DEMO
from precision_explorer.runner import sweep
from precision_explorer.runner.join import skipped_record
from precision_explorer.runner.local import Tally
from precision_explorer.runner.manager import Event
from precision_explorer.store import RunFolder
from precision_explorer.tasks import load_card
from tests.test_records import make_record
from tests.test_store import arrow
from tests.test_table import LATENCIES, applied, classified, make_run, measured, ok, served

UNSUPPORTED = ("tf32", "fp8-dynamic")


def answer(facts, formats, versions, threads, on_event):
    """What the probe would find on a device that runs all but `UNSUPPORTED`."""
    recipe = {"kernel": "torch", "library": "torch", "compute_dtype": "float32"}
    return {
        name: Support(name, "unsupported", f"no unit for {name}")
        if name in UNSUPPORTED
        else Support(name, "native", f"a unit for {name}", recipe)
        for name in formats
    }


def no_worker(*arguments):
    raise AssertionError("a worker was started")


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """An empty working directory on a machine without a GPU, whose device was asked already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "probe", answer)
    monkeypatch.setattr(sweep, "prepare_environment", lambda *asked: None)
    monkeypatch.setattr("precision_explorer.runner.local.WorkerHandle", no_worker)
    monkeypatch.setattr("precision_explorer.runner.probe.WorkerHandle", no_worker)
    monkeypatch.setattr("precision_explorer.hardware.profile.load_nvml", lambda: None)


@pytest.fixture(autouse=True)
def printed(monkeypatch):
    """In place of the report: one file that holds the rows, and one line on stdout."""

    def write_all(table, folder):
        (folder / "tradeoffs.csv").write_text(json.dumps(table.rows))

    def print_table(table, console):
        console.print(f"table of {len(table.rows)} rows at {table.rows[0]['price_per_hour_usd']}")

    report, terminal = ModuleType("report"), ModuleType("terminal")
    report.write_all = write_all
    terminal.print_table = print_table
    monkeypatch.setitem(sys.modules, "precision_explorer.report", report)
    monkeypatch.setitem(sys.modules, "precision_explorer.report.terminal", terminal)


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# -- wrong use --------------------------------------------------------------------------------

CARD: dict[str, Any] = {
    "name": "mine",
    "version": 1,
    "kind": "text-classification",
    "data": {"path": "test.jsonl"},
    "columns": {"text": "text", "label": "label"},
    "metrics": ["accuracy"],
}
EXAMPLES = [{"text": "a good film", "label": "positive"}, {"text": "bad", "label": "negative"}]


def card(changes: dict[str, Any] | None = None, examples: Any = EXAMPLES) -> str:
    """The path of a card with its data, in the working directory."""
    folder = Path("card")
    folder.mkdir()
    (folder / "task.yaml").write_text(yaml.safe_dump(CARD | (changes or {})))
    lines = "".join(json.dumps(example) + "\n" for example in examples)
    (folder / "test.jsonl").write_text(lines)
    return "card/task.yaml"


def file(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def folder_without_weights() -> str:
    shutil.copytree(DEMO, "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return "model"


WRONG: dict[str, tuple[Any, list[str]]] = {
    "unknown format": (
        lambda: ["sweep", "--formats", "fp32,int8-dynamc"],
        ["'int8-dynamc'", "did you mean int8-dynamic"],
    ),
    "unknown task": (
        lambda: ["sweep", "--task", "sentimnet"],
        ["'sentimnet'", "did you mean sentiment"],
    ),
    "unknown option": (lambda: ["sweep", "--quality-budgt", "1%"], ["--quality-budget"]),
    "unknown command": (lambda: ["swep"], ["'swep'", "did you mean sweep?"]),
    "unknown command, none near": (lambda: ["zzz"], ["known: sweep"]),
    "no model folder": (lambda: ["sweep", "--model", "./none"], ["./none", "does not exist"]),
    "a model that is a file": (
        lambda: ["sweep", "--model", file("weights.bin", "")],
        ["is a file", "folder"],
    ),
    "a folder without safetensors": (
        lambda: ["sweep", "--model", folder_without_weights()],
        ["no *.safetensors", "save_pretrained"],
    ),
    "a card without a column": (
        lambda: ["sweep", "--task", card({"columns": {"text": "text"}})],
        ["columns.label"],
    ),
    "a card whose column the data lack": (
        lambda: ["sweep", "--task", card({"columns": {"text": "txt", "label": "label"}})],
        ["unknown column 'txt'", "text"],
    ),
    "a card with an unknown key": (
        lambda: ["sweep", "--task", card({"metrisc": ["accuracy"]})],
        ["unknown key 'metrisc'", "metrics"],
    ),
    "labels that the model lacks": (
        lambda: ["sweep", "--task", card(examples=[{"text": "so so", "label": "neutral"}])],
        ["'neutral'", "0: negative, 1: positive"],
    ),
    "an empty data file": (
        lambda: ["sweep", "--task", card(examples=[])],
        ["is empty", "at least one example"],
    ),
    "a task that does not fit the model": (
        lambda: ["sweep", "--task", "sentiment-choice"],
        ["no head for multiple-choice"],
    ),
    "no limit": (lambda: ["sweep", "--limit", "0"], ["limit 0", "1 or more"]),
    "a limit that is no number": (lambda: ["sweep", "--limit", "few"], ["--limit", "'few'"]),
    "no GPU": (lambda: ["sweep", "--device", "cuda"], ["no NVIDIA GPU", "use cpu"]),
    "unknown device": (lambda: ["sweep", "--device", "gpu0"], ["unknown device 'gpu0'"]),
    "an output folder that is a file": (
        lambda: ["sweep", "--limit", "4", "--out", file("taken", "")],
        ["can't write", "taken", "--out"],
    ),
    "an output folder below a file": (
        lambda: ["sweep", "--limit", "4", "--out", file("taken", "") + "/run"],
        ["can't write", "taken/run"],
    ),
    "a spec that is no YAML": (
        lambda: ["sweep", "--spec", file("s.yaml", "limit: [3\nmodel: }")],
        ["s.yaml", "no YAML"],
    ),
    "a spec with an unknown option": (
        lambda: ["sweep", "--spec", file("s.yaml", "limt: 3")],
        ["s.yaml", "'limt'", "limit"],
    ),
    "no spec": (lambda: ["sweep", "--spec", "none.yaml"], ["none.yaml"]),
    "a name with a line break": (
        lambda: ["sweep", "--formats", "fp32,in\nt8"],
        ["unknown format 'in t8'"],
    ),
    "unknown workload": (lambda: ["sweep", "--workload", "severe"], ["'severe'", "server"]),
    "tails that no worker waits for": (
        lambda: ["plan", "--tails", "p999"],
        ["--tails: single-stream has none", "--workload poisson"],
    ),
    "a duration within the warm-up": (
        lambda: ["sweep", "--duration", "200ms"],
        ["--duration 200 ms", "warm-up (500 ms)"],
    ),
    "an SLO that is none": (lambda: ["sweep", "--slo", "fast"], ["p99=200ms"]),
    "one argument too many": (lambda: ["sweep", "demo"], ["demo"]),
    "plan, wrong format": (lambda: ["plan", "--formats", "fp33"], ["'fp33'", "fp32"]),
    "formats, no GPU": (lambda: ["formats", "--device", "cuda:1"], ["no NVIDIA GPU"]),
    "report of no run": (lambda: ["report"], ["RUN"]),
    "report of what is no run": (lambda: ["report", "none"], ["none", "no results folder"]),
    "unknown model to fetch": (lambda: ["fetch", "smollm"], ["unknown", "smollm2-135m"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_line_and_exit_code_1(case, capsys, tmp_path):
    make, words = WRONG[case]
    arguments = make()
    before = sorted(tmp_path.rglob("*"))
    assert call(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert err.endswith("\n")
    for word in words:
        assert word in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hub_that_can_not_be_reached_is_one_line(monkeypatch, capsys, tmp_path):
    def refuse(*arguments, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert call("sweep", "--model", "some/model") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("error: can't reach the hub for some/model")
    assert "local folder" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["sweep", "--model", "some/model"], "hub"),
        (["sweep", "--formats", "fp33"], "fp33"),
        (["sweep", "--sed", "1"], "--seed"),
    ],
)
def test_wrong_use_in_a_process_of_its_own(arguments, word, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "precision_explorer", *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert word in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_reader_of_stdout_that_has_gone_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "precision_explorer", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == b""


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def fail(prepared, on_event, **given):
        raise OSError(errno.ENOSPC, "No space left on device", "results/x/cells/y.json")

    monkeypatch.setattr(sweep, "run_sweep", fail)
    assert call("sweep", "--limit", "4") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: No space left on device: results/x/cells/y.json; ")
    assert err.count("\n") == 1


# -- options to a spec ------------------------------------------------------------------------


@pytest.fixture
def spec_of(monkeypatch):
    """The spec that a command line comes to."""

    class Stop(Exception):
        pass

    found = []

    def keep(spec, on_event):
        found.append(spec)
        raise Stop

    monkeypatch.setattr(sweep, "prepare_sweep", keep)

    def run(*arguments):
        with pytest.raises(Stop):
            main(["sweep", *arguments])
        return found[-1]

    return run


def test_every_option_of_the_contract_arrives(spec_of):
    spec = spec_of(
        "--model", "demo", "--model", "./other", "--task", "a", "--task", "b/task.yaml",
        "--formats", "bf16,fp16", "--reference", "bf16", "--device", "cpu", "--runtime", "eager",
        "--batch-size", "1,4", "--limit", "30", "--workload", "w.yaml", "--out", "o",
        "--cell-timeout", "600", "--price-per-hour", "1.5", "--slo", "p99=200ms",
        "--quality-budget", "2%", "--seed", "7", "--executor", "local", "--revision", "main",
        "--trust-remote-code", "--allow-pickle", "--threads", "2", "--memory-limit", "8GB",
        "--calibration", "c.jsonl", "--until-decided", "--batch-tokens", "300", "--duration", "5m",
        "--tails", "p99", "--background", "cpu:1,copy", "--find-rate",
        "--audit", "--cores", "2", "--one-at-a-time", "--devices", "1", "--split", "layers",
        "--allow-metric", "f1", "--allow-metric", "user/bleu", "--grid-g-per-kwh", "300",
        "--value-per-correct", "0.002", "--cost-per-error", "0.01",
    )  # fmt: skip
    assert spec.model_dump() == {
        "model": ("demo", "./other"), "task": ("a", "b/task.yaml"), "formats": ("bf16", "fp16"),
        "reference": "bf16", "device": "cpu", "runtime": ("eager",), "batch_size": (1, 4),
        "batch_tokens": 300, "duration": 300.0, "tails": "p99",
        "background": ("cpu:1", "copy"), "find_rate": True,
        "audit": True, "limit": 30, "workload": "w.yaml", "out": "o", "cell_timeout": 600.0,
        "price_per_hour": 1.5, "price": None, "value_per_correct": 0.002, "cost_per_error": 0.01,
        "slo": "p99=200ms", "quality_budget": 0.02, "seed": 7,
        "executor": "local", "revision": "main", "trust_remote_code": True, "threads": 2,
        "allow_pickle": True, "memory_limit": 8_000_000_000, "calibration": "c.jsonl",
        "until_decided": True, "allow_metric": ("f1", "user/bleu"), "grid_g_per_kwh": 300.0,
        "on": (), "cores": 2, "ray_address": None, "slurm": (), "one_at_a_time": True,
            "devices": 1, "split": "layers",
    }  # fmt: skip


def test_what_the_command_line_does_not_say_the_file_does(spec_of):
    path = file("s.yaml", "limit: 30\nseed: 4\ntrust-remote-code: true\nmodel: [a, b]\n")
    spec = spec_of("--spec", path, "--limit", "5")
    assert (spec.limit, spec.seed, spec.trust_remote_code) == (5, 4, True)
    assert spec.model == ("a", "b")
    assert spec_of("--spec", path, "--model", "c").model == ("c",)


# -- sweep ------------------------------------------------------------------------------------


def finish(prepared: Any, ok_formats: set[str], failed_formats: set[str]) -> RunFolder:
    """Write what a sweep leaves when these formats are through."""
    folder = sweep.run_folder(prepared)
    folder.open()
    folder.write_sweep(sweep.sweep_document(prepared, folder.name))
    for planned in prepared.plan.cells:
        name, cell = planned.cell.format, planned.cell
        if planned.skip is not None:
            folder.write_record(skipped_record(planned, prepared.environment, "2026-01-01"))
        elif name in ok_formats:
            given = {"applied": applied(name), "measurements": measured()}
            record = make_record("ok", cell, environment=prepared.environment, **given)
            folder.write_record(record)
            rows = {"example": arrow(classified({1, 2})), "request": arrow(served(LATENCIES))}
            folder.write_samples(record.cell_id, rows)
        elif name in failed_formats:
            error = {"kind": "WorkerCrashed", "message": "the worker was ended by SIGSEGV"}
            folder.write_record(make_record("failed", cell, error=error))
    folder.write_manifest()
    folder.close()
    return folder


SMALL = ["sweep", "--limit", "4", "--formats", "fp32,tf32,bf16", "--device", "cpu"]


@pytest.mark.parametrize(
    ("ok_formats", "failed_formats", "code"),
    [({"fp32", "bf16"}, set(), 0), ({"fp32"}, {"bf16"}, 3), (set(), {"fp32", "bf16"}, 3)],
)
def test_exit_codes_of_a_sweep(monkeypatch, capsys, ok_formats, failed_formats, code):
    def run(prepared, on_event, **given):
        folder = finish(prepared, ok_formats, failed_formats)
        return folder, Tally(ran=len(ok_formats), failed=len(failed_formats), skipped=1)

    monkeypatch.setattr(sweep, "run_sweep", run)
    assert call(*SMALL, "--out", "run") == code
    out, err = capsys.readouterr()
    # The table comes on stdout, failures or not; everything else on stderr.
    assert out.startswith("table of 3 rows")
    assert out.count("\n") == 1
    assert "1 skipped" in err
    assert f"{len(failed_formats)} failed" in err
    assert "run/report.html" in err
    assert Path("run/tradeoffs.csv").exists()


def test_a_run_without_out_is_named_the_same_for_the_same_spec(monkeypatch):
    def run(prepared, on_event, **given):
        return finish(prepared, {"fp32", "bf16"}, set()), Tally()

    monkeypatch.setattr(sweep, "run_sweep", run)
    assert call(*SMALL) == 0
    assert call(*SMALL, "--price-per-hour", "2") == 0
    (folder,) = Path("results").iterdir()
    assert folder.name.startswith("demo-sentiment-cpu-")
    assert call(*SMALL, "--seed", "1") == 0
    assert len(list(Path("results").iterdir())) == 2


@pytest.mark.parametrize("ok_formats", [{"fp32"}, set()])
def test_ctrl_c_prints_the_table_of_what_is_finished(monkeypatch, capsys, ok_formats):
    def run(prepared, on_event, **given):
        finish(prepared, ok_formats, set())
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_sweep", run)
    assert call(*SMALL, "--out", "run") == 130
    out, err = capsys.readouterr()
    # The skip alone, which nobody waited for, is no table.
    assert out.startswith("table of 2 rows") if ok_formats else out == ""
    assert Path("run/tradeoffs.csv").exists() == bool(ok_formats)
    assert err.count("\n") == 1
    assert "kept in run" in err
    assert "run the same command again to resume" in err


def test_ctrl_c_after_a_failed_cell_shows_the_failure(monkeypatch, capsys):
    def run(prepared, on_event, **given):
        finish(prepared, set(), {"fp32"})
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_sweep", run)
    assert call(*SMALL, "--out", "run") == 130
    assert capsys.readouterr().out.startswith("table of 2 rows")


def test_ctrl_c_before_the_folder_is_there_writes_nothing(monkeypatch, capsys, tmp_path):
    def stop(prepared, on_event, **given):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_sweep", stop)
    assert call(*SMALL) == 130
    assert "again to resume" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Gone(io.StringIO):
    """A terminal that is no more."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        self.write("")


@pytest.mark.parametrize("where", ["prepare_sweep", "run_sweep"])
def test_a_terminal_that_refuses_writes_is_the_interrupt_that_it_came_with(monkeypatch, where):
    def lose(prepared, on_event, **given):
        if where == "run_sweep":
            finish(prepared, {"fp32"}, set())
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGHUP)
        sys.stderr.write("what it could not show replaces the interrupt")

    monkeypatch.setattr(sweep, where, lose)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Gone())
    assert call(*SMALL, "--out", "run") == 129
    assert Path("run/tradeoffs.csv").exists() == (where == "run_sweep")


def test_an_error_that_can_t_be_shown_keeps_its_code(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone())
    assert call("sweep", "--limit", "0") == 1


def test_ctrl_c_while_preparing_is_130_too(monkeypatch, capsys):
    def stop(spec, on_event):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "prepare_sweep", stop)
    assert call(*SMALL) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().startswith("interrupted")


@pytest.mark.parametrize(("told", "width"), [("", 160), ("100", 100), ("wide", 160), ("0", 160)])
def test_piped_output_is_as_wide_as_columns_says(monkeypatch, told, width):
    from precision_explorer.cli.show import console

    monkeypatch.setenv("COLUMNS", told)
    assert console().width == width


def test_the_layers_of_a_mixture_fit_a_narrow_terminal(monkeypatch, capsys, tmp_path):
    """Names whole, sizes and times left out; and how many layers are not shown."""
    from types import SimpleNamespace

    from precision_explorer.cli.mix import _layers
    from precision_explorer.cli.show import console
    from precision_explorer.runner.mix import Layer

    names = [f"model.layers.{k}.self_attn.o_proj" for k in range(12)]
    layers = [
        Layer(n, {"int8-weight-only": 1e-5, "nf4": 0.01}, {"fp32": 4000, "nf4": 500},
              {"fp32": 0.002, "nf4": 0.003}, "nf4") for n in names
    ]  # fmt: skip
    found = SimpleNamespace(
        layers=layers, recipe=SimpleNamespace(base="fp32"), path=Path("recipe.yaml")
    )
    for width, sizes in ((80, False), (160, True)):
        monkeypatch.setenv("COLUMNS", str(width))
        console().print(_layers(found, width))
        out = capsys.readouterr().out
        assert "(10 of 12; the rest in recipe.yaml)" in " ".join(out.split())
        assert all(name in out for name in names[:10])
        assert names[10] not in out
        assert ("4.00 kB" in out) == sizes


# -- plan, tasks, formats ---------------------------------------------------------------------


def test_plan_prints_cells_and_skips_and_writes_nothing(capsys, tmp_path):
    assert call("plan", "--limit", "4", "--formats", "bf16,tf32") == 0
    out, err = capsys.readouterr()
    assert (err, list(tmp_path.iterdir())) == ("", [])
    first, second, third, last = out.splitlines()
    # The reference comes without being named, and first.
    assert first.split()[:5] == ["run", "demo", "sentiment", "(n=4)", "fp32"]
    assert second.split()[4:6] == ["bf16", "native"]
    assert third.split()[0] == "skip"
    assert third.endswith("no unit for tf32")
    assert last.startswith("3 cells, 1 skipped; results would go to results/demo-sentiment-cpu-")


def test_a_model_with_another_s_content_is_said_to_be_measured_once(capsys, tmp_path):
    shutil.copytree(DEMO, tmp_path / "copy")
    given = ("--model", "demo", "--model", str(tmp_path / "copy"))
    assert call("plan", "--limit", "4", "--formats", "fp32", *given) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("1 cells, 0 skipped")
    assert "copy has the same content as another model of this sweep" in err


def test_plan_says_what_is_done_and_leaves_the_run_as_it_is(monkeypatch, capsys, tmp_path):
    def run(prepared, on_event, **given):
        return finish(prepared, {"fp32"}, {"bf16"}), Tally()

    monkeypatch.setattr(sweep, "run_sweep", run)
    call(*SMALL, "--out", "run")
    for path in Path("run/cells").glob("*.json"):
        if json.loads(path.read_text())["cell"]["format"] == "tf32":
            path.write_text("{")
    before = files(tmp_path)
    capsys.readouterr()
    assert call("plan", *SMALL[1:], "--out", "run") == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert states[:3] == ["done", "skip", "run"]
    assert files(tmp_path) == before


def test_tasks_lists_the_bundled_cards(capsys, tmp_path):
    assert call("tasks") == 0
    out, err = capsys.readouterr()
    assert (err, list(tmp_path.iterdir())) == ("", [])
    for name, kind, metric in (
        ("sentiment", "text-classification", "accuracy"),
        ("sentiment-choice", "multiple-choice", "accuracy"),
        ("news-perplexity", "language-modeling", "bits_per_byte"),
    ):
        (line,) = [row for row in out.splitlines() if f" {name} " in row.replace("│", " ")]
        assert kind in line
        assert metric in line
    assert "MIT" in out


def test_tasks_verbose_shows_all_of_each_card(capsys):
    assert call("tasks", "--verbose") == 0
    blocks = {}
    for line in capsys.readouterr().out.splitlines():
        if line and not line.startswith(" ") and " " not in line.strip():
            name = line.strip()
        blocks.setdefault(name, []).append(line.strip())
    choice = " ".join(blocks["sentiment-choice"])
    for said in ("multiple-choice", "1,285", "accuracy, accuracy_norm", "MIT", "Hutto"):
        assert said in choice
    prompt = load_card("sentiment-choice").card
    assert repr(prompt.prompt) in choice
    assert ", ".join(map(repr, prompt.choices)) in choice
    assert "prompt" not in " ".join(blocks["sentiment"]).split()
    assert any("rajpurkar/squad" in line for line in blocks["squad"])


def test_formats_lists_all_and_why(capsys, tmp_path):
    assert call("formats") == 0
    out = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    rows = [line.split("│") for line in out.splitlines() if "unit for" in line]
    assert [row[1].strip() for row in rows] == list(CATALOG)

    for row in rows:
        name = row[1].strip()
        assert row[3].strip() == ("unsupported" if name in UNSUPPORTED else "native")
        assert row[4].strip().endswith(f"unit for {name}")


def test_fetch_prints_where_the_model_is(monkeypatch, capsys):
    def fetch(name, say):
        say("getting it")
        return Path("/there") / name

    monkeypatch.setattr("precision_explorer.models.fetch.fetch", fetch)
    assert call("fetch", "smollm2-135m") == 0
    assert capsys.readouterr() == ("/there/smollm2-135m\n", "getting it\n")


def test_every_command_has_a_help_of_its_own():
    from precision_explorer.cli import group

    for name in COMMANDS:
        assert group.get_command(None, name).name == name
    assert group.get_command(None, "none") is None


# -- report -----------------------------------------------------------------------------------


@pytest.fixture
def run_path(tmp_path) -> Path:
    """A run with its own table."""
    path = make_run(tmp_path / "run", [ok("fp32", classified({1, 2}))])
    with pytest.raises(SystemExit):
        main(["report", str(path)])
    return path


def test_report_makes_a_run_s_own_files_again_byte_for_byte(run_path, capsys):
    before = files(run_path)
    (run_path / "tradeoffs.csv").unlink()
    assert call("report", str(run_path)) == 0
    assert capsys.readouterr().out.endswith("table of 1 rows at 0.36\n")
    assert files(run_path) == before


@pytest.mark.parametrize(
    "options",
    [["--price-per-hour", "0.72"], ["--slo", "p99=10ms"], ["--quality-budget", "5%"]],
)
def test_a_reader_s_own_table_is_only_printed_without_out(run_path, capsys, options):
    before = files(run_path.parent)
    capsys.readouterr()
    assert call("report", str(run_path), *options) == 0
    out, err = capsys.readouterr()
    assert out == f"table of 1 rows at {'0.72' if '0.72' in options else '0.36'}\n"
    assert "nothing was written" in err
    assert "--out DIR" in err
    assert files(run_path.parent) == before


def test_a_reader_s_own_table_goes_to_out(run_path, capsys):
    before = files(run_path)
    capsys.readouterr()
    assert call("report", str(run_path), "--price-per-hour", "0.72", "--out", "mine/deep") == 0
    assert capsys.readouterr().err == ""
    (row,) = json.loads(Path("mine/deep/tradeoffs.csv").read_text())
    assert row["price_per_hour_usd"] == 0.72
    assert files(run_path) == before


def test_several_runs_come_into_one_table(run_path, capsys):
    other = make_run(run_path.parent / "other", [ok("fp32", classified({1}))])
    before = files(run_path.parent)
    capsys.readouterr()
    assert call("report", str(run_path), str(other)) == 0
    out, err = capsys.readouterr()
    assert out.startswith("table of 2 rows")
    assert "--out DIR" in err
    assert files(run_path.parent) == before
    assert call("report", str(run_path), str(other), "--out", "both") == 0
    assert len(json.loads(Path("both/tradeoffs.csv").read_text())) == 2


def test_a_run_given_twice_is_one_run(run_path, capsys):
    capsys.readouterr()
    assert call("report", str(run_path), f"{run_path}/../run") == 0
    out, err = capsys.readouterr()
    assert out.startswith("table of 1 rows")
    assert err == ""


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--quality-budget", "much"], "1% or 0.01"),
        (["--quality-budget", ""], "1% or 0.01"),
        (["--quality-budget", "150%"], "below 100%"),
        (["--slo", "p98=1s"], "p99"),
        (["--price-per-hour", "0"], "above 0"),
        (["--price-per-hour", "free"], "'free'"),
        (["--out", "taken"], "can't write taken"),
        (["--slo", "p99=1s", "--out", "taken/below"], "can't write taken/below"),
    ],
)
def test_wrong_options_of_report_are_one_line(run_path, capsys, options, word):
    file("taken", "")
    before = files(run_path.parent)
    capsys.readouterr()
    assert call("report", str(run_path), *options) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err
    assert files(run_path.parent) == before


# -- progress ---------------------------------------------------------------------------------


def test_progress_in_a_pipe_is_a_line_for_what_happened(capsys):
    labels = {"model": "demo", "task": "sentiment", "format": "bf16"}
    with progress() as on_event:
        on_event(Event("note", {"text": "asking"}))
        on_event(Event("worker", {"pid": 1, "ready_s": 0.1}))
        on_event(Event("start", labels))
        on_event(Event("progress", {"phase": "quality", "done": 1, "total": 2}))
        on_event(Event("cell", labels | {"status": "ok", "reused": False}))
        on_event(Event("cell", labels | {"status": "ok", "reused": True}))
        on_event(Event("cell", labels | {"status": "failed", "reused": False, "message": "why"}))
        on_event(Event("skip", labels | {"reason": "no unit"}))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("] ")[1] for line in err.splitlines()] == [
        "asking",
        "demo sentiment bf16: start",
        "demo sentiment bf16: ok",
        "demo sentiment bf16: already there",
        "demo sentiment bf16: failed (why)",
        "demo sentiment bf16: skipped (no unit)",
    ]
