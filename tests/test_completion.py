"""Completion by shells: click's protocol in a process of its own, and a real bash with the real
script. The names offered are those that are known."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from precision_explorer.cli import COMMANDS, completing
from precision_explorer.formats.catalog import CATALOG
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.models.fetch import FETCHABLE
from precision_explorer.models.reference import BUNDLED
from precision_explorer.table.figures import FIGURES
from precision_explorer.tasks import bundled_cards
from precision_explorer.workload import PRESETS
from tests.command import run

ROOT = Path(__file__).parents[1]
# What no press of the tab key may wait for.
SLOW = {"torch", "numpy", "pydantic", "yaml", "rich", "pandas"}


def answered(line: str, folder: Path) -> list[str]:
    """The values that a bash would be offered at the end of `line`, asked in `folder`."""
    words = line.split(" ")
    code = (
        "import sys\n"
        "from precision_explorer.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)\n"
    )
    variables = {
        "_PRECISION_EXPLORER_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not {name.split(".")[0] for name in done.stderr.split()} & SLOW, done.stderr[-500:]
    return done.stdout.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with two runs and something else."""
    made = tmp_path_factory.mktemp("work")
    for name in ("results/first", "second", "results/none"):
        (made / name).mkdir(parents=True)
    for name in ("results/first", "second"):
        (made / name / "sweep.json").write_text("{}")
    return made


def test_the_names_are_those_that_are_known():
    assert (*CATALOG, "all") == completing.FORMATS
    assert tuple(RUNTIMES) == completing.RUNTIMES
    assert tuple(PRESETS) == completing.WORKLOADS
    assert tuple(FIGURES) == completing.OBJECTIVES
    assert set(completing.MODELS) == {*BUNDLED, *FETCHABLE}
    assert completing.tasks() == list(bundled_cards())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("precision-explorer com", ["plain,compare", "plain,completion"]),
        ("precision-explorer nonsense --he", ["plain,--help"]),
        ("precision-explorer sweep --quality-b", ["plain,--quality-budget"]),
        ("precision-explorer sweep --formats int8-w", ["plain,int8-weight-only"]),
        ("precision-explorer sweep --formats fp32,int8-l", ["plain,fp32,int8-llm"]),
        ("precision-explorer sweep --formats fp32,fp3", []),
        ("precision-explorer plan --runtime compile-", ["plain,compile-fixed"]),
        ("precision-explorer sweep --workload poi", ["plain,poisson"]),
        ("precision-explorer sweep --workload ./mine", ["file,./mine"]),
        ("precision-explorer sweep --task sentiment-c", ["plain,sentiment-choice"]),
        ("precision-explorer decide results/first --objective thr", ["plain,throughput"]),
        ("precision-explorer report ", ["plain,second", "plain,results/first"]),
        ("precision-explorer report results/", ["plain,results/first"]),
        ("precision-explorer gate second --against res", ["plain,results/first"]),
        ("precision-explorer report nowhere/", ["dir,nowhere/"]),
    ],
)
def test_what_is_offered(line, expected, folder):
    assert answered(line, folder) == expected


def test_every_command_that_reads_runs_offers_them():
    from precision_explorer.cli import group

    for name in COMMANDS:
        for parameter in group.get_command(None, name).params:
            if parameter.name in ("run", "runs", "against"):
                assert parameter._custom_shell_complete is completing.runs, name


@pytest.mark.parametrize(
    ("shell", "mark"),
    [("bash", "complete -o nosort -F"), ("zsh", "#compdef"), ("fish", "complete --no-files")],
)
def test_the_script_of_each_shell(shell, mark):
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert mark in done.stdout
    assert "_PRECISION_EXPLORER_COMPLETE" in done.stdout


def test_another_shell_is_one_line():
    done = run("completion", "zhs")
    assert done.returncode == 1
    assert done.stderr == "error: unknown shell 'zhs'; did you mean zsh?\n"


def test_a_real_bash_completes(folder, tmp_path):
    """As the tab key does: bash's own function, called with the words of the line."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    program = tmp_path / "precision-explorer"
    program.write_text(
        f"#!{sys.executable}\nfrom precision_explorer.cli import main\nmain()\n", encoding="utf8"
    )
    program.chmod(0o755)
    script = """
        eval "$(precision-explorer completion bash)"
        function=$(complete -p precision-explorer | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        press() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            "$function" precision-explorer "${COMP_WORDS[COMP_CWORD]}"
            echo "${COMPREPLY[*]}"
        }
        press precision-explorer sweep --formats fp32,int8-w
        press precision-explorer report res
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "--norc", "-c", script],
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "fp32,int8-weight-only",
        "results/first",
    ], done.stderr
