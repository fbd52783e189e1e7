"""The rooms: who may import whom, who may import torch, and what a command loads."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import precision_explorer

PACKAGE = Path(precision_explorer.__file__).parent
NAME = "precision_explorer"

RANKS = {
    "errors": 0, "units": 0, "bounded": 0, "scrub": 0,
    "records": 1, "stats": 1,
    "pareto": 2, "hardware": 2, "tasks": 2, "workload": 2, "store": 2,
    "search": 2, "endpoint": 2,
    "economics": 3, "formats": 3, "diagnose": 3,
    "models": 4, "measure": 4, "plan": 4, "table": 4,
    "runner": 5, "decision": 5, "comparison": 5,
    "report": 6,
    "export": 7, "audit": 7,
    "api": 8,
    "cli": 9,
    # The version and the program's own folders, which are no rooms: anyone may ask for them.
    NAME: 0, "paths": 1, "option_files": 1,
    # The names for other programs, which are imported when they are used, and the entry point of
    # ``python -m``.
    "__init__": 10, "__main__": 10,
}  # fmt: skip

# Imports of a room of the same rank, and why each is no knot.
DEPARTURES = {
    # A plan holds model references, and checks heads and labels before anything runs. The part of
    # `models` that it uses, `reference`, has no torch and knows no plan.
    ("plan", "models"),
    # Adapters mark the phases of a request with the meters' own clock. Meters know no model.
    ("models", "measure"),
}

HEAVY = {"torch", "transformers", "torchao", "bitsandbytes", "accelerate"}
# The measuring wing: these import torch as soon as they are imported.
MEASURING = {
    "models.adapter", "models.adapters", "models.causal_lm", "models.loading", "models.replay",
    "models.class_rows", "models.extractive_qa", "models.image_classifier",
    "models.sentence_encoder", "models.text_classifier", "models.token_classifier",
    "formats.partly", "runner.sensitivity",
    "models.distributions", "models.harness", "models.harness_lm", "runner.comparing",
    "measure.roof", "measure.timeline", "models.passes", "models.work", "runner.profiling",
    "formats.autocast", "formats.four_bit", "formats.microscaling", "formats.reference",
    "formats.apply", "formats.certificate", "formats.compiling", "formats.dryrun", "formats.held",
    "formats.kernels", "formats.products", "formats.ranges", "formats.static", "formats.verify",
    "formats.watch",
    "models.causal_forward", "models.scoring", "models.states", "models.synthetic",
    "models.compiled", "runner.compiling", "runner.non_finite",
    "formats.fp8", "models.generation", "models.greedy", "models.seq2seq",
    "models.continuous", "models.dispatch", "models.aligned", "models.tensors",
    "runner.followers",
    "runner.batch_job", "runner.neighbour", "runner.numerics_job", "runner.preload",
    "runner.session", "runner.audit_model",
}  # fmt: skip
# These may import it inside functions, which are called in a worker or in a process of their own.
INSIDE_FUNCTIONS = {"models.asked", "models.convert_gguf", "measure.memory", "runner.worker"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
READING = sorted(name for name in MODULES if name not in MEASURING and name != "__main__")


MODULE_NAME = re.compile(rf"{NAME}(\.\w+)+")


def only_for_types(node: ast.AST) -> bool:
    """Whether `node` is an ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes that are run, and whether each stands in a function."""
    for child in ast.iter_child_nodes(node):
        if only_for_types(child):
            continue
        within = inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield child, within
        yield from walk(child, within)


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, in a function) of every import, also of modules named in a text."""
    found = []
    for node, inside in walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == NAME:
                found += [(f"{NAME}.{alias.name}", inside) for alias in node.names]
            else:
                found.append((str(node.module), inside))
        elif isinstance(node, ast.Constant) and MODULE_NAME.fullmatch(str(node.value)):
            # For importlib, and for the fork server's preload.
            found.append((node.value, inside))
    return found


def room_of(module: str) -> str:
    first = module.split(".")[0]
    return first if first in RANKS else NAME


def room_imports() -> set[tuple[str, str, str]]:
    """(module, its room, a room that it imports)."""
    found = set()
    for module, path in MODULES.items():
        own = room_of(module)
        for name, _ in imports(path):
            if name.split(".")[0] == NAME:
                other = room_of(name.removeprefix(f"{NAME}."))
                if other != own:
                    found.add((module, own, other))
    return found


def test_every_module_is_in_a_room():
    assert {name.split(".")[0] for name in MODULES} == set(RANKS) - {NAME}


def test_a_room_imports_only_rooms_of_a_lower_rank():
    wrong = [
        f"{module} imports {other}"
        for module, own, other in sorted(room_imports())
        if RANKS[other] >= RANKS[own] and (own, other) not in DEPARTURES
    ]
    assert not wrong


def test_no_departure_is_allowed_that_is_not_there():
    assert {(own, other) for _, own, other in room_imports()} >= DEPARTURES


def test_the_walk_sees_what_it_must(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "from precision_explorer import paths\n"
        "if TYPE_CHECKING:\n    import precision_explorer.cli\n"
        "def f():\n    import torch.nn\n    import_module('precision_explorer.pareto')\n"
        "class C:\n    from precision_explorer.table import build\n"
    )
    assert set(imports(path)) == {
        ("typing", False),
        (f"{NAME}.paths", False),
        ("torch.nn", True),
        (f"{NAME}.pareto", True),
        (f"{NAME}.table", False),
    }


def test_only_the_measuring_wing_imports_torch():
    at_once, inside = set(), set()
    for module, path in MODULES.items():
        for name, within in imports(path):
            if name.split(".")[0] in HEAVY:
                (inside if within else at_once).add(module)
    # The preload imports by names in a list.
    assert at_once == MEASURING - {"runner.preload"}
    assert inside <= MEASURING | INSIDE_FUNCTIONS


def run_fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )


def test_the_reading_wing_loads_no_torch_and_no_data_library():
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    names = [f"{NAME}.{module}".removesuffix(".__init__") for module in READING]
    for wanted in ("records", "stats", "store", "table", "economics", "pareto", "report", "plan",
                   "export", "cli.export", "audit", "cli.verify",
                   "decision", "comparison", "hardware", "tasks", "workload", "runner.sweep",
                   "runner.manager", "runner.local", "cli.sweep", "cli.report",
                   "models.reference"):  # fmt: skip
        assert f"{NAME}.{wanted}" in names
    loaded = set(run_fresh(code, *names).stdout.split())
    assert "numpy" in loaded
    assert not loaded & (HEAVY | {"pandas", "sklearn", "datasets", "evaluate", "huggingface_hub"})


HELP = """
import contextlib, io, json, sys
from precision_explorer.cli import COMMANDS, main
result = {}
for arguments in [[], ["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    loaded = sorted({name.split(".")[0] for name in sys.modules})
    result[" ".join(arguments)] = (code, out.getvalue(), loaded)
print(json.dumps(result))
"""
SLOW = HEAVY | {"pydantic", "numpy", "scipy", "pandas", "sklearn", "datasets", "pyarrow", "yaml",
                "rich", "jinja2", "huggingface_hub"}  # fmt: skip


@pytest.fixture(scope="module")
def helps():
    return json.loads(run_fresh(HELP).stdout)


def test_help_loads_nothing_slow(helps):
    """Which is how it answers in 0.3 s, whatever the machine's load."""
    for arguments, (code, text, loaded) in helps.items():
        assert code == 0, arguments
        assert "Usage: precision-explorer" in text
        assert not set(loaded) & SLOW, arguments


def test_help_names_every_command_and_its_exit_codes(helps):
    from precision_explorer.cli import COMMANDS

    top = helps["--help"][1]
    assert helps[""][1] == helps["-h"][1] == top
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", top, re.MULTILINE)
    assert "130 interrupted" in " ".join(top.split())


def test_help_of_a_sweep_names_every_option_of_the_contract(helps):
    for command in ("sweep", "plan"):
        for option in ("model", "task", "formats", "reference", "device", "runtime", "batch-size",
                       "limit", "workload", "spec", "out", "cell-timeout", "price-per-hour", "slo",
                       "quality-budget", "seed", "executor"):  # fmt: skip
            assert f"--{option} " in helps[f"{command} --help"][1]
