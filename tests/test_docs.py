"""Every command, option, format, column, status and caution stands in the docs, and nothing that
the docs name as one is gone."""

import csv
import json
import re
import subprocess
from pathlib import Path
from statistics import median

import pytest
import yaml

from precision_explorer.cli import COMMANDS, group
from precision_explorer.formats.catalog import CATALOG
from precision_explorer.formats.kernels import CPU_KERNELS, CUDA_KERNELS
from precision_explorer.formats.number_types import NUMBER_TYPES
from precision_explorer.formats.recipe import Recipe, read_recipe
from precision_explorer.formats.static import CPU_STATIC_KERNELS, CUDA_STATIC_KERNELS
from precision_explorer.plan.spec import load_spec
from precision_explorer.records import METRICS, STATUSES
from precision_explorer.records.record import read_record
from precision_explorer.report.markdown import to_markdown
from precision_explorer.report.numerics_files import NUMERICS_COLUMNS
from precision_explorer.stats import SQNR_STATES
from precision_explorer.table import COLUMNS, SPREAD_COLUMN, build
from precision_explorer.tasks import (
    KINDS,
    Extraction,
    GenerationRules,
    bundled_cards,
    load_card,
)
from precision_explorer.workload import (
    ARRIVALS,
    BACKGROUNDS,
    LENGTHS,
    PRESETS,
    SCENARIOS,
    MixPart,
    PoissonArrivals,
    Workload,
    load_workload,
)
from precision_explorer.workload.trace import COLUMNS as TRACE_COLUMNS

ROOT = Path(__file__).parents[1]
DOCS = {path.name: path.read_text(encoding="utf8") for path in (ROOT / "docs").glob("*.md")}
README = (ROOT / "README.md").read_text(encoding="utf8")


def first_column(text: str, heading: str) -> list[str]:
    """Names in backticks in the first column of the table below `heading`."""
    part = text.split(heading, 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("|")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_every_command_is_in_the_docs_and_the_readme():
    for name in COMMANDS:
        assert f"`{name}" in DOCS["commands.md"]
        assert name in README


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_in_the_docs(name):
    command = group.get_command(None, name)
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--"):
                assert f"{option}" in DOCS["commands.md"], option


def test_the_docs_name_no_option_that_is_not_there():
    known = {
        option
        for name in COMMANDS
        for parameter in group.get_command(None, name).params
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help", "--version"}
    for text in (*DOCS.values(), README):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        foreign = {"--no-deps", "--check", "--requests", "--repeats", "--backend-store-uri"}
        assert named - known - foreign == set()


def test_the_formats_are_documented_with_their_kernels():
    assert first_column(DOCS["formats.md"], "# Formats") == list(CATALOG)
    for kernel in (*CPU_KERNELS, *CUDA_KERNELS, *CPU_STATIC_KERNELS, *CUDA_STATIC_KERNELS):
        assert f"`{kernel}`" in DOCS["formats.md"]


def test_the_columns_are_documented_in_their_order():
    assert first_column(DOCS["table.md"], "## Columns") == [*COLUMNS, SPREAD_COLUMN]


def test_the_columns_of_numerics_are_documented_in_their_order():
    assert first_column(DOCS["numerics.md"], "## Columns") == list(NUMERICS_COLUMNS)


def test_number_types_and_states_are_documented():
    assert first_column(DOCS["numerics.md"], "## Number types") == [*NUMBER_TYPES]
    assert first_column(DOCS["numerics.md"], "state says why:") == [*SQNR_STATES]
    text = DOCS["numerics.md"].split("## Number types", 1)[1]
    for kind in NUMBER_TYPES.values():
        line = next(line for line in text.splitlines() if line.startswith(f"| `{kind.name}`"))
        shown = [float(cell.replace(",", "")) for cell in line.split("|")[2:5]]
        exact = (kind.largest, kind.smallest_normal, kind.smallest)
        assert shown == pytest.approx(exact, rel=5e-3), kind.name


def test_every_status_is_documented():
    for status in STATUSES:
        assert f"`{status}`" in DOCS["table.md"]


def test_every_caution_that_the_code_raises_is_documented():
    source = "\n".join(p.read_text() for p in (ROOT / "precision_explorer").rglob("*.py"))
    raised = set(re.findall(r'\bid="([a-z0-9-]+)"', source))
    raised |= set(re.findall(r'"id": "([a-z0-9-]+)"', source))
    assert raised == set(first_column(DOCS["table.md"], "## Cautions"))


def test_kinds_metrics_and_cards_are_documented():
    for name in (*KINDS, *METRICS):
        assert f"`{name}`" in DOCS["tasks.md"], name
    for name in bundled_cards():
        assert f"`{name}`" in (ROOT / "tasks" / "README.md").read_text()


def test_the_keys_of_generation_are_documented():
    keys = first_column(DOCS["tasks.md"], "## Generated answers")
    assert keys == [
        "generation",
        *GenerationRules.model_fields,
        "extract",
        *Extraction.model_fields,
    ]


def test_workload_fields_scenarios_and_presets_are_documented():
    page = DOCS["workloads.md"]
    assert sorted(first_column(page, "## Fields")) == sorted(Workload.model_fields)
    assert first_column(page, "## Scenarios") == list(SCENARIOS)
    assert first_column(page, "## Presets") == list(PRESETS)


@pytest.mark.parametrize(("heading", "kinds"), [("Arrivals", ARRIVALS), ("Lengths", LENGTHS)])
def test_kinds_of_arrivals_and_lengths_are_documented_with_their_keys(heading, kinds):
    part = DOCS["workloads.md"].split(f"## {heading}", 1)[1].split("\n##", 1)[0]
    assert first_column(part, "\n| kind") == list(kinds)
    shared = {*PoissonArrivals.model_fields} if kinds is ARRIVALS else {"kind"}
    for name, model in kinds.items():
        row = next(line for line in part.splitlines() if line.startswith(f"| `{name}`"))
        for key in set(model.model_fields) - shared:
            assert f"`{key}`" in row, (name, key)


def test_columns_of_traces_and_keys_of_mixes_are_documented():
    names = {name for known in TRACE_COLUMNS.values() for name in known}
    part = DOCS["workloads.md"].split("### Traces", 1)[1].split("\n## Lengths", 1)[0]
    table = [line for line in part.splitlines() if line.startswith("|")]
    assert set(re.findall(r"`([^`]+)`", "\n".join(table))) == names
    mixes = DOCS["workloads.md"].split("## Mixes", 1)[1]
    assert all(f"{key}:" in mixes for key in MixPart.model_fields)


def test_kinds_of_background_work_are_documented():
    kinds = first_column(DOCS["background.md"], "\n| kind")
    assert [kind.partition(":")[0] for kind in kinds if kind != "cpu"] == list(BACKGROUNDS)


def test_the_example_workload_is_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(example_of("workloads.md"))
    workload = load_workload(path)
    assert (workload.scenario, workload.tails, workload.max_batch) == ("server", "p99", 16)
    mix = DOCS["workloads.md"].split("## Mixes\n\n", 1)[1].split("\n\n")[0]
    server = "scenario: server\narrivals: {kind: poisson, load: 0.7}\n"
    path.write_text(server + "\n".join(line[4:] for line in mix.splitlines()))
    assert [part.name for part in load_workload(path).mix] == ["short", "long"]


def example_of(name: str) -> str:
    """The first indented block of a page."""
    lines = DOCS[name].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    "))
    block = []
    for line in lines[start:]:
        if line and not line.startswith("    "):
            break
        block.append(line[4:])
    return "\n".join(block)


def test_the_example_spec_is_one(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(example_of("spec.md"))
    spec = load_spec(path, {})
    assert spec.limit == 500
    assert spec.quality_budget == 0.02
    assert spec.memory_limit == 8_000_000_000


def test_the_example_card_is_one(tmp_path):
    (tmp_path / "task.yaml").write_text(example_of("tasks.md"))
    assert load_card(str(tmp_path)).card.metrics == ["accuracy", "macro_f1"]
    assert yaml.safe_load(example_of("tasks.md"))["name"] == "sentiment"


def test_the_example_recipe_is_one_and_its_keys_are_documented(tmp_path):
    part = DOCS["mixed-precision.md"].split("## The recipe file\n", 1)[1]
    lines = [line[4:] for line in part.split("\n| key")[0].splitlines()]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines))
    recipe = read_recipe(path)
    assert set(recipe.formats) == {"fp32", "int8-weight-only", "nf4"}
    keys = first_column(DOCS["mixed-precision.md"], "## The recipe file")
    assert set(keys) == set(Recipe.model_fields)


def test_every_dependency_is_explained():
    text = (ROOT / "pyproject.toml").read_text()
    core = text.split("dependencies = [", 1)[1].split("]", 1)[0]
    for name in re.findall(r'"([a-z0-9-]+)', core):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", DOCS["dependencies.md"]), name


def test_links_between_pages_lead_somewhere():
    pages = {ROOT / "docs" / name: text for name, text in DOCS.items()}
    pages |= {ROOT / "README.md": README, ROOT / "CONTRIBUTING.md": ""}
    for page, text in pages.items():
        for target in re.findall(r"\]\(([^)#]+)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_s_tables_are_those_of_the_stored_runs():
    on_cpu, on_gpu = README.split("NVIDIA H200", 1)
    for text, run in ((on_cpu, "demo-sentiment-cpu"), (on_gpu, "h200-decoder")):
        stored = (ROOT / "results" / run / "tradeoffs.md").read_text().splitlines()
        shown = [line for line in text.splitlines() if line.startswith("|")]
        assert len(shown) > 8
        for line in shown:
            assert line in stored, line


def test_results_that_pages_link_to_are_no_ignored_files():
    """An ignored folder would be there for who made it and for nobody else."""
    git = ["git", "-C", str(ROOT), "check-ignore"]
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    for run in sorted((ROOT / "results").iterdir()):
        linked = f"results/{run.name}" in README + "".join(DOCS.values())
        if run.is_dir() and linked:
            done = subprocess.run([*git, str(run / "tradeoffs.md")], check=False)
            assert done.returncode == 1, run.name


def test_the_stored_run_is_read_and_makes_its_table_again():
    """Figures alike up to rounding, since sums differ in their last digits between machines."""
    folder = ROOT / "results" / "demo-sentiment-cpu"
    with (folder / "tradeoffs.csv").open(newline="") as file:
        stored = list(csv.DictReader(file))
    rows = build([folder]).rows
    assert [row["format"] for row in rows] == [row["format"] for row in stored]
    for row, old in zip(rows, stored, strict=True):
        for name in ("quality", "quality_delta_ci_low", "latency_p99_s", "value_per_usd"):
            value = float(old[name]) if old[name] else None
            assert row[name] == (value if value is None else pytest.approx(value, rel=1e-6))


def test_every_fault_of_the_table_is_caused_by_a_test_that_exists():
    text = DOCS["faults.md"]
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(), name
    rows = [r for r in text.splitlines() if r.startswith("| ") and not r.startswith("| fault ")]
    assert len(rows) > 30
    for row in rows:
        assert "::" in row or "| the same" in row, row
        assert len(re.split(r"(?<!\\)\|", row)) == 7, row
    # Nothing that is there to cause a fault is left out.
    own = ("test_faults_parent.py", "test_faults_disk.py")
    kept = {name for file, name in named if file.endswith(own)}
    there = {
        name
        for file in own
        for name in re.findall(r"\ndef (test_\w+)\(", (ROOT / "tests" / file).read_text())
    }
    assert there - kept == {
        "test_a_counter_that_vanishes_leaves_the_other_readings",
        "test_a_profile_that_failed_is_not_tried_at_each_run",
        "test_report_says_which_answers_have_no_record",
    }


def offline_rates(document):
    """{batch size: (requests per second, joules per request)} of a record or a part."""
    return {
        int(size): (
            rate["requests_per_s"],
            rate["energy_j"] / rate["requests"] if rate.get("energy_j") else None,
        )
        for size, rate in document["throughput"]["by_batch_size"].items()
    }


def h200_rates(run):
    """{format: `offline_rates`} of a stored run, from its parts where it has some."""
    folder = ROOT / "results" / run
    found = {}
    for cell in json.loads((folder / "sweep.json").read_text())["plan"]["cells"]:
        part = folder / "parts" / cell["cell_id"] / "block-0.json"
        record = folder / "cells" / f"{cell['cell_id']}.json"
        if part.is_file():
            part = json.loads(part.read_text())
            found[cell["format"]] = offline_rates(part.get("answer", part))
        elif record.is_file():
            found[cell["format"]] = offline_rates(json.loads(record.read_text())["measurements"])
    return found


def test_the_three_questions_have_the_winners_that_the_docs_name():
    text = DOCS["economics.md"].split("## Three questions", 1)[1].split("\n## ", 1)[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "][1:]
    rows = {row["format"]: row for row in build([ROOT / "results" / "h200-smollm2"]).rows}
    fit = [f for f, row in rows.items() if row["verdict"] == "within" or f == "fp32"]
    names = ("cost_per_1k_requests_usd", "requests_per_joule", "value_per_usd")
    for (_, winner, figure, other), name, best in zip(lines, names, (min, max, max), strict=True):
        assert best(fit, key=lambda f: rows[f][name]) == winner
        second, said = other.split()
        for fmt, told in ((winner, figure), (second, said)):
            shown = float(told.strip("$").replace(",", ""))
            assert shown == pytest.approx(rows[fmt][name], rel=2e-3)
    tf32, bf16 = rows["tf32"], rows["bf16"]
    assert round(100 * (bf16["throughput_per_s"] / tf32["throughput_per_s"] - 1)) == 7
    assert round(100 * (bf16["energy_per_request_j"] / tf32["energy_per_request_j"] - 1)) == 53


def test_the_loads_of_smollm2_are_those_of_the_stored_runs():
    text = (ROOT / "results" / "README.md").read_text().split("## SmolLM2 under three loads", 1)[1]
    lines = [x.strip("| ").split(" | ") for x in text.splitlines() if x[:2] == "| "][1:4]
    full, alone, times = {}, {}, []
    for fmt, *cells in lines:
        told = iter(cells)
        for load in ("single-stream", "poisson", "bursty"):
            for number in (1, 2):
                folder = ROOT / "results" / f"smollm2-{load}-cpu-{number}"
                (row,) = [r for r in build([folder]).rows if r["format"] == fmt.strip("`")]
                shown = next(told)
                saturated = "serving-saturated" in (row["cautions"] or "")
                assert (shown == "saturated") == saturated, (fmt, load, number)
                full[fmt] = full.get(fmt, 0) + saturated
                if load == "single-stream":
                    alone[fmt, number] = row["latency_p50_s"]
                elif not saturated:
                    times.append(row["latency_p50_s"] / alone[fmt, number])
                if not saturated:
                    assert float(shown) == pytest.approx(1e3 * row["latency_p50_s"], abs=0.6)
    assert [round(f(times), 1) for f in (min, max)] == [1.1, 2.7]
    assert full == {"`fp32`": 2, "`int8-dynamic`": 0, "`int8-weight-only`": 2}


def test_the_audit_that_the_docs_show_is_that_of_the_stored_run():
    page = DOCS["audits.md"].split("## An audit as it came out", 1)[1]
    shown = [line for line in page.splitlines() if line.startswith("|")]
    folder = ROOT / "results" / "demo-audited-cpu"
    again = to_markdown(build([folder])).split("### Audits", 1)[1]
    assert shown == [line for line in again.splitlines() if line.startswith("|")][: len(shown)]
    records = [read_record(path) for path in (folder / "cells").glob("*.json")]
    words = [c.outcome for r in records for c in r.measurements.audit.checks]
    counts = re.search(r"Of (\d+) checks (\d+) were judged, and all of those passed", page)
    judged = [word for word in words if word != "not-judged"]
    assert (len(words), len(judged)) == (int(counts[1]), int(counts[2]))
    assert set(judged) == {"passed"}


def test_the_figures_of_the_h200_are_those_of_the_stored_runs():
    text = (ROOT / "results" / "README.md").read_text().split("## NVIDIA H200", 1)[1]
    first, own = h200_rates("h200-decoder"), h200_rates("h200-decoder-8bit")
    table = text.split("**Batch sizes**", 1)[1].split("**Own", 1)[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line[:2] == "| "]
    assert len(lines) == 9
    for name, *figures in lines[1:]:
        rates = first[name.split()[0]]
        told = [rates[size][which] for which in (0, 1) for size in (1, 16, 128)]
        assert [float(f) for f in figures] == pytest.approx(told, rel=0.005), name
    table = text.split("**Own 8-bit kernels**", 1)[1].split("At batch 1", 1)[0]
    marks = {
        "`fp8-dynamic`, scaled-mm": "fp8-dynamic",
        "`int8-dynamic`, int-mm": "int8-dynamic",
        "`nf4`": "nf4",
        "(`mixed`), scaled-mm": "mixed",
    }
    for mark, name in marks.items():
        (line,) = [x for x in table.splitlines() if mark in x]
        figures = [float(f) for f in line.strip("| ").split(" | ")[1:]]
        key = next(k for k in own if k.startswith(name))
        told = [own[key][size][0] / own["bf16"][size][0] for size in (16, 128)]
        assert figures == pytest.approx(told, abs=0.006), name


def test_the_h200_s_compiled_rows_are_those_of_the_stored_run():
    text = (ROOT / "results" / "README.md").read_text().split("**CUDA graphs**", 1)[1]
    rates = h200_rates("h200-decoder-compiled")
    for name in ("bf16", "fp8-dynamic"):
        line = next(x for x in text.splitlines() if x.startswith(f"| {name} |"))
        told = [float(f) for f in line.strip("| ").split(" | ")[-3:]]
        assert told == pytest.approx([rates[name][size][0] for size in (1, 8, 64)], rel=0.005)
    shares = [rates["fp8-dynamic"][size][0] / rates["bf16"][size][0] for size in (8, 64)]
    assert f"between batch 8 ({shares[0]:.2f}) and 64 ({shares[1]:.2f})" in text
    stored = json.loads((ROOT / "results/h200-checks/compiled-prefill.json").read_text())
    prefill_s = median(stored["prefill_seconds"]["64"])
    assert f"took bf16 {1e3 * prefill_s:.0f} ms" in text


def test_the_h200_s_smollm2_rows_are_those_of_the_stored_run():
    text = (ROOT / "results" / "README.md").read_text().split("**SmolLM2-135M** (", 1)[1]
    with (ROOT / "results/h200-smollm2/tradeoffs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["quality"]]
    assert len(rows) == 15
    for row in rows:
        line = next(x for x in text.splitlines() if x.startswith(f"| {row['format']} "))
        _, quality, _, verdict, flips, p50, rate, joules, _ = line.strip("| ").split(" | ")
        assert quality == f"{100 * float(row['quality']):.1f} %"
        assert verdict == (row["verdict"] or "reference")
        assert flips == (row["flips"] or "—")
        assert float(p50.split()[0]) == pytest.approx(1e3 * float(row["latency_p50_s"]), rel=0.005)
        assert float(rate.replace(",", "")) == pytest.approx(
            float(row["throughput_per_s"]), rel=1e-3
        )
        assert float(joules) == pytest.approx(float(row["energy_per_request_j"]), rel=0.005)
