"""Options to a spec, and a spec to cells."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from precision_explorer.cli import plan as plan_command
from precision_explorer.cli import sweep as sweep_command
from precision_explorer.errors import ModelError, TaskError, UsageError
from precision_explorer.formats import CATALOG, DEFAULT_FORMATS, Support
from precision_explorer.hardware import DeviceFacts
from precision_explorer.models import ModelRef
from precision_explorer.plan import Plan, SweepSpec, expand, load_spec
from precision_explorer.plan.batches import batch_plan
from precision_explorer.plan.expand import measuring_rules, relevant_libraries
from precision_explorer.plan.protocol import NO_ENERGY, protocol_of
from precision_explorer.plan.spec import READER_FIELDS, make_spec
from precision_explorer.records import Caution, ModelIdentity, TaskIdentity
from precision_explorer.tasks import Calibration, PreparedTask, TaskCard, load_card, prepare
from precision_explorer.workload import Workload

NINE = (
    "fp32", "tf32", "bf16", "fp16", "fp8-dynamic", "fp8-weight-only", "int8-llm",
    "int8-weight-only", "int8-dynamic",
)  # fmt: skip


def refusal(**options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        make_spec(options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- options ----------------------------------------------------------------------------------


def test_no_options_are_the_demo_in_nine_formats():
    spec = make_spec({})
    assert spec.model == ("demo",)
    assert spec.formats == NINE
    assert (spec.reference, spec.device, spec.runtime) == ("fp32", "auto", ("eager",))
    assert (spec.batch_size, spec.limit, spec.seed) == ((1, 8), None, 0)
    assert (spec.quality_budget, spec.price_per_hour, spec.slo) == (0.01, None, None)
    assert spec.trust_remote_code is False


@pytest.mark.parametrize(
    ("given", "formats"),
    [
        ("fp32,int8-dynamic", ("fp32", "int8-dynamic")),
        (" fp32 , bf16 ,", ("fp32", "bf16")),
        (["fp32", "bf16"], ("fp32", "bf16")),
        (("bf16", "fp32", "bf16"), ("bf16", "fp32")),
        ("fp32", ("fp32",)),
        ("all", tuple(CATALOG)),
        (["all"], tuple(CATALOG)),
        ("bf16,all", tuple(CATALOG)),
        # The reference is what the others are compared to: it is always there.
        ("bf16,int8-dynamic", ("fp32", "bf16", "int8-dynamic")),
    ],
)
def test_formats_as_text_and_as_list(given, formats):
    assert make_spec({"formats": given}).formats == formats


def test_another_reference_is_added_in_front():
    spec = make_spec({"formats": "int8-dynamic,fp16", "reference": "bf16"})
    assert spec.formats == ("bf16", "int8-dynamic", "fp16")
    assert make_spec({"reference": "bf16"}).formats == NINE


def test_lists_as_text():
    spec = make_spec({"model": "demo, other", "task": "a,b", "batch_size": "8,1,8"})
    assert spec.model == ("demo", "other")
    assert spec.task == ("a", "b")
    assert spec.batch_size == (1, 8)
    assert make_spec({"batch_size": 4}).batch_size == (4,)
    assert make_spec({"batch_size": [16, 2]}).batch_size == (2, 16)


def test_a_path_with_a_comma_is_one_model_on_the_command_line():
    assert make_spec({"model": ("a,b", "demo")}).model == ("a,b", "demo")


def test_what_is_named_twice_is_taken_once():
    spec = make_spec({"model": ("demo", "demo"), "task": "a,a", "runtime": "eager,eager"})
    assert (spec.model, spec.task, spec.runtime) == (("demo",), ("a",), ("eager",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"formats": "fp32,int8-dynamc"}, ["unknown format 'int8-dynamc'", "int8-dynamic"]),
        ({"formats": "all,fp33"}, ["unknown format 'fp33'", "fp32"]),
        ({"formats": ""}, ["no format"]),
        ({"formats": []}, ["no format"]),
        ({"formats": {"fp32": 1}}, ["formats", "commas"]),
        ({"reference": "fp23"}, ["unknown format 'fp23'", "fp32"]),
        ({"runtime": "compiled"}, ["unknown runtime 'compiled'", "did you mean compile"]),
        ({"runtime": "egaer"}, ["unknown runtime 'egaer'", "did you mean eager"]),
        ({"runtime": []}, ["no runtime"]),
        ({"executor": "rya"}, ["unknown executor 'rya'", "ray"]),
        ({"ray_address": "host:1"}, ["--ray-address", "--executor ray"]),
        ({"on": "h100"}, ["--on", "ray or slurm"]),
        ({"executor": "ray", "slurm": "time=1"}, ["--slurm", "--executor slurm"]),
        ({"executor": "ray", "on": "../h100"}, ["no type of a device", "h100,l4"]),
        ({"executor": "slurm", "slurm": "gpu"}, ["slurm 'gpu'", "partition=gpu"]),
        ({"device": "cuda:1", "cores": 2}, ["cores", "--device all"]),
        ({"cores": 0}, ["cores"]),
        ({"one_at_a_time": True}, ["one-at-a-time", "leave it out"]),
        ({"executor": "ray", "runtime": "endpoint:http://localhost:1/v1"}, ["endpoints", "ray"]),
        ({"executor": "locla"}, ["did you mean local"]),
        ({"model": []}, ["no model"]),
        ({"model": None}, ["model", "list"]),
        ({"limit": 0}, ["limit 0", "1 or more"]),
        ({"limit": -3}, ["limit -3"]),
        ({"limit": "many"}, ["limit", "whole number"]),
        ({"limit": 2.5}, ["limit", "whole number"]),
        ({"limit": True}, ["limit", "true"]),
        ({"batch_size": 0}, ["batch-size", "1,8"]),
        ({"batch_size": "1,-8"}, ["batch-size", "1,8"]),
        ({"batch_size": ""}, ["batch-size", "1,8"]),
        ({"batch_size": "1,x"}, ["batch-size", "whole numbers"]),
        ({"batch_size": 1.5}, ["batch-size"]),
        ({"price_per_hour": 0}, ["price-per-hour", "above 0"]),
        ({"price_per_hour": -1}, ["price-per-hour", "above 0"]),
        ({"price_per_hour": float("inf")}, ["price-per-hour", "finite"]),
        ({"price_per_hour": float("nan")}, ["price-per-hour", "finite"]),
        ({"slo": "200ms"}, ["'200ms'", "p99=200ms"]),
        ({"slo": "p98=200ms"}, ["'p98'", "p99"]),
        ({"slo": "p99=0ms"}, ["above 0"]),
        ({"slo": "p99=200"}, ["unit of time"]),
        ({"quality_budget": "0%"}, ["quality-budget", "greater than 0"]),
        ({"quality_budget": "100%"}, ["quality-budget", "less than 1"]),
        ({"quality_budget": 1}, ["quality-budget", "less than 1"]),
        ({"quality_budget": "-1%"}, ["quality-budget", "1% or 0.01"]),
        ({"quality_budget": "small"}, ["quality-budget", "'small'", "1% or 0.01"]),
        ({"cell_timeout": 0}, ["cell-timeout"]),
        ({"cell_timeout": float("inf")}, ["cell-timeout"]),
        ({"cell_timeout": 1e12}, ["cell-timeout", "1000000"]),
        ({"memory_limit": "8XB"}, ["memory-limit", "8GB"]),
        ({"memory_limit": "1e999"}, ["memory-limit", "8GB"]),
        ({"memory_limit": 0}, ["memory-limit"]),
        ({"threads": 0}, ["threads"]),
        ({"tails": "p98"}, ["unknown tails 'p98'", "p99"]),
        ({"duration": "30"}, ["duration", "unit of time"]),
        ({"duration": "long"}, ["duration", "'long'"]),
        ({"duration": 0}, ["duration", "greater than 0"]),
        ({"duration": "1h"}, ["duration 3600 s", "cell-timeout of 3600 s", "--cell-timeout"]),
        ({"seed": -1}, ["seed"]),
        ({"seed": 2**63}, ["seed"]),
        ({"limits": 3}, ["unknown option 'limits'", "limit"]),
        ({"qality_budget": 3}, ["unknown option 'qality-budget'", "quality-budget?"]),
        ({"zzzzz": 3}, ["unknown option 'zzzzz'", "known: model"]),
    ],
)
def test_what_can_not_be_run_is_refused_in_one_line(options, words):
    message = refusal(**options)
    for word in words:
        assert word in message


def test_quantities_are_read():
    spec = make_spec({"quality_budget": "2%", "memory_limit": "8GB", "slo": "p99=200ms"})
    assert (spec.quality_budget, spec.memory_limit) == (0.02, 8_000_000_000)
    assert spec.slo == "p99=200ms"
    durations = [make_spec({"duration": text}).duration for text in ("30s", "5m", "0.5h", 20)]
    assert durations == [30, 300, 1800, 20]


# -- the command line's options and the fields -------------------------------------------------


@pytest.mark.parametrize("command", [sweep_command.command, plan_command.command])
def test_every_option_is_a_field_and_every_field_an_option(command):
    names = {param.name for param in command.params if isinstance(param, click.Option)}
    own = {"estimate", "error_of", "target", "target_memory"} if command.name == "plan" else set()
    assert names - own - {"spec"} == set(SweepSpec.model_fields)
    assert own <= names


def test_the_help_tells_the_true_defaults():
    helps = {param.name: param.help for param in sweep_command.command.params}
    shown = {
        "reference": "fp32",
        "device": "auto",
        "batch_size": "1,8",
        "workload": "single-stream",
        "cell_timeout": "3600",
        "quality_budget": "1%",
        "seed": "0",
        "executor": "local",
        "runtime": "eager",
    }
    spec = make_spec({})
    for name, text in shown.items():
        assert f"({text})" in helps[name]
        assert getattr(make_spec({name: text}), name) == getattr(spec, name)


# -- the spec file ----------------------------------------------------------------------------


def written(folder: Path, content: Any) -> Path:
    path = folder / "sweep.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_a_spec_file_holds_the_options_with_either_kind_of_line(tmp_path):
    path = written(
        tmp_path,
        """
model: [demo, other]
formats: fp32, int8-dynamic
batch-size: 1,4
quality_budget: 2%
price-per-hour: 1.5
cell_timeout: 60
limit: 30
memory-limit: 4GB
trust_remote_code: true
""",
    )
    spec = load_spec(path, {})
    assert spec == make_spec(
        {
            "model": ("demo", "other"),
            "formats": ("fp32", "int8-dynamic"),
            "batch_size": (1, 4),
            "quality_budget": 0.02,
            "price_per_hour": 1.5,
            "cell_timeout": 60.0,
            "limit": 30,
            "memory_limit": 4_000_000_000,
            "trust_remote_code": True,
        }
    )


def test_the_command_line_goes_before_the_file(tmp_path):
    path = written(tmp_path, {"limit": 30, "seed": 4, "formats": ["fp32", "bf16"]})
    spec = load_spec(path, {"limit": 5, "formats": "fp32,fp16"})
    assert (spec.limit, spec.seed, spec.formats) == (5, 4, ("fp32", "fp16"))


def test_an_empty_spec_file_is_the_default_sweep(tmp_path):
    assert load_spec(written(tmp_path, "# nothing yet\n"), {}) == make_spec({})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"limt": 3}, ["unknown option 'limt'", "limit"]),
        ({"batch-sizes": 3}, ["unknown option 'batch-sizes'", "batch-size"]),
        ({"formats": "fp31"}, ["unknown format 'fp31'"]),
        ({"slo": "fast"}, ["p99=200ms"]),
        ({"limit": 0}, ["limit 0"]),
        ("limit: yes", ["limit", "true"]),
        ("seed: on", ["seed", "true"]),
        ("- limit\n- 3\n", ["no YAML mapping", "limit: 300"]),
        ("just words", ["no YAML mapping"]),
        ("limit: [3", ["no YAML", "limit: 300"]),
        ("a: 2001-99-99", ["no YAML"]),
        ("[" * 10_000, ["no YAML"]),
        ("!!python/object/apply:os.system [ls]", ["no YAML"]),
        (b"\xff\xfe\x00", ["no YAML"]),
        ("# " + "x" * 1_000_001, ["larger than 1 MB"]),
    ],
)
def test_a_bad_spec_file_is_refused_in_one_line_that_names_it(tmp_path, content, words):
    path = written(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        load_spec(path, {})
    message = str(caught.value)
    assert "\n" not in message
    assert message.count(str(path)) == 1
    for word in words:
        assert word in message


def test_a_spec_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="can't read the spec file"):
            load_spec(path, {})


# -- the name of a run ------------------------------------------------------------------------


def test_the_same_measurements_have_the_same_hash():
    plain = make_spec({}).measuring_hash()
    assert plain == "5a8816"  # The name of a run from before, say, `tails` was an option.
    assert make_spec({"formats": ",".join(DEFAULT_FORMATS), "seed": 0}).measuring_hash() == plain


READ_LATER = {
    "price_per_hour": 2.0, "slo": "p99=1s", "quality_budget": 0.05, "reference": "bf16",
    "grid_g_per_kwh": 300.0, "value_per_correct": 0.002, "cost_per_error": 0.01,
    "price": {"prices": [{"kind": "list", "term": "spot"}]},
    "out": "somewhere", "cell_timeout": 5.0, "allow_metric": "f1", "audit": True,
}  # fmt: skip
MEASURED = {
    "batch_tokens": 300,
    "model": "other", "task": "sentiment", "formats": "fp32", "device": "cpu", "batch_size": "1",
    "limit": 10, "workload": "other.yaml", "seed": 1, "revision": "v2", "trust_remote_code": True,
    "threads": 1, "memory_limit": "1GB", "calibration": "texts.jsonl", "runtime": "compile",
    "until_decided": True, "tails": "p99", "duration": 60.0, "background": ["copy"],
    "allow_pickle": True, "devices": 2, "split": "tensors",
}  # fmt: skip
# Fields that say where cells run, and those that need another beside them.
FIXED = {"executor", "find_rate", "ray_address", "slurm", "one_at_a_time", "on", "cores"}


def test_several_types_of_devices_are_as_many_sweeps():
    spec = make_spec({"executor": "ray", "on": "h100,l4", "out": "o"})
    assert [(s.on, s.out) for s in spec.by_type()] == [(("h100",), "o/h100"), (("l4",), "o/l4")]
    unnamed = spec.model_copy(update={"out": None}).by_type()
    assert [s.out for s in unnamed] == [None, None]
    assert len({s.measuring_hash() for s in unnamed}) == 2
    assert make_spec({}).by_type() == [make_spec({})]


def test_where_cells_run_is_no_part_of_what_is_measured_but_the_type_of_device_is():
    plain = make_spec({}).measuring_hash()
    ray = {"executor": "ray"}
    assert make_spec(ray | {"ray_address": "h:1"}).measuring_hash() == plain
    assert make_spec({"executor": "slurm", "slurm": "time=5"}).measuring_hash() == plain
    assert make_spec(ray | {"on": "h100"}).measuring_hash() != plain
    cores = make_spec({"cores": 2})
    assert cores.measuring_hash() != plain
    alone = make_spec({"cores": 2, "one_at_a_time": True})
    assert alone.measuring_hash() == cores.measuring_hash()


def test_every_field_is_either_measured_or_read_later():
    assert set(READ_LATER) | set(MEASURED) | FIXED == set(SweepSpec.model_fields)
    assert set(READ_LATER) == READER_FIELDS | {"out", "cell_timeout", "allow_metric", "audit"}


def test_a_search_s_objective_is_measured():
    searched, other = (
        make_spec({"find_rate": True, "slo": slo, "workload": "poisson"})
        for slo in ("p99=1s", "p99=2s")
    )
    assert len({s.measuring_hash() for s in (searched, other, make_spec({}))}) == 3


@pytest.mark.parametrize("field", sorted(READ_LATER))
def test_what_is_decided_later_does_not_change_the_name(field):
    spec = make_spec({field: READ_LATER[field]})
    assert getattr(spec, field) != getattr(make_spec({}), field)
    assert spec.measuring_hash() == make_spec({}).measuring_hash()


@pytest.mark.parametrize("field", sorted(MEASURED))
def test_what_is_measured_changes_the_name(field):
    spec = make_spec({field: MEASURED[field]})
    assert spec.measuring_hash() != make_spec({}).measuring_hash()


def test_the_budget_changes_the_name_where_it_says_when_the_scoring_stops():
    specs = [make_spec({"until_decided": True, "quality_budget": b}) for b in (0.01, 0.02)]
    assert specs[0].measuring_hash() != specs[1].measuring_hash()


# -- expansion --------------------------------------------------------------------------------

FACTS = DeviceFacts(
    kind="cpu", device="cpu", name="Some CPU", cpu_model="Some CPU", cpu_flags=("avx2",), cores=2,
    memory_bytes=8_000_000_000,
)  # fmt: skip
VERSIONS = {
    "torch": "2.13.0", "transformers": "5.24.0", "tokenizers": "0.23.3", "torchao": "0.18.0",
    "bitsandbytes": "0.50.2", "datasets": "5.2.0",
}  # fmt: skip


def reference(name: str = "demo", head: str = "BertForSequenceClassification") -> ModelRef:
    config = {"architectures": [head], "id2label": {"0": "negative", "1": "positive"}}
    cautions = (Caution(id="was-4bit", message="Its weights were rounded to 4 bits."),)
    return ModelRef(
        name, Path("/none"), ModelIdentity(name=name, revision=f"r-{name}"), config, cautions, 1
    )


def task(name: str = "sentiment", labels: tuple[str, ...] = ("positive", "negative")) -> Any:
    card = TaskCard.model_validate(
        {
            "name": name,
            "version": 1,
            "kind": "text-classification",
            "data": {"path": "test.jsonl"},
            "columns": {"text": "text", "label": "label"},
            "metrics": ["accuracy"],
        }
    )
    identity = TaskIdentity(
        name=name, version=1, kind=card.kind, card_hash="c", data_hash="d", item_ids_hash="i", n=2
    )
    examples = [{"id": str(i), "text": "a", "label": label} for i, label in enumerate(labels)]
    return PreparedTask(card, identity, examples)


def supports(unsupported: tuple[str, ...] = ("tf32",)) -> dict[str, Support]:
    recipe = {"kernel": "torch", "library": "torch", "compute_dtype": "float32"}
    return {
        name: Support(name, "unsupported", f"no unit for {name}")
        if name in unsupported
        else Support(name, "native", "a unit", recipe)
        for name in CATALOG
    }


def planned(
    options: dict[str, Any] | None = None,
    refs: list[ModelRef] | None = None,
    tasks: list[Any] | None = None,
    **changes: Any,
) -> Plan:
    given = {
        "spec": make_spec({"formats": "fp32,tf32,int8-dynamic"} | (options or {})),
        "refs": refs or [reference()],
        "tasks": tasks or [task()],
        "workload": Workload(),
        "facts": FACTS,
        "supports": supports(),
        "versions": VERSIONS,
        "threads": 2,
    }
    return expand(**(given | changes))


def has_compiler(monkeypatch: Any, tools: Any = None, missing: str | None = None) -> None:
    """The plan finds these compilers, or the reason why there is none."""
    module = importlib.import_module("precision_explorer.plan.expand")
    monkeypatch.setattr(module, "compiler", lambda kind, versions: (tools or {}, missing))


def test_the_compiler_s_version_is_part_of_a_compiled_cell_and_of_no_eager_one(monkeypatch):
    def cells(version: str) -> Any:
        has_compiler(monkeypatch, {"g++": version})
        return [c.cell for c in planned({"formats": "fp32", "runtime": "eager,compile"}).cells]

    (eager, old), (same, new) = cells("12.2.0"), cells("14.1.0")
    assert eager == same
    assert "g++" not in eager.libraries
    assert (old.libraries["g++"], new.libraries["g++"]) == ("12.2.0", "14.1.0")
    assert old.cell_id != new.cell_id
    assert old.method_id == new.method_id == eager.method_id


def test_without_a_compiler_only_compiled_cells_are_skipped_and_say_what_to_install(monkeypatch):
    has_compiler(monkeypatch, missing="no g++; install one")
    plan = planned({"formats": "fp32,tf32", "runtime": "eager,compile,compile-fixed"})
    skips = {(c.cell.runtime, c.cell.format): c.skip for c in plan.cells}
    assert skips == {
        ("eager", "fp32"): None,
        ("eager", "tf32"): "no unit for tf32",
        ("compile", "fp32"): "no g++; install one",
        ("compile", "tf32"): "no unit for tf32",
        ("compile-fixed", "fp32"): "no g++; install one",
        ("compile-fixed", "tf32"): "no unit for tf32",
    }


def test_the_kernel_of_a_format_may_be_another_under_another_runtime(monkeypatch):
    has_compiler(monkeypatch)
    recipe = {"kernel": "torchao", "library": "torchao", "compute_dtype": "float32"}
    compiled = {"compile": {"int8-dynamic": Support("int8-dynamic", "native", "faster", recipe)}}
    options = {"formats": "fp32,int8-dynamic", "runtime": "eager,compile,compile-fixed"}
    plan = planned(options, compiled=compiled)
    kernels = {(c.cell.runtime, c.cell.format): c.cell.recipe["kernel"] for c in plan.cells}
    assert kernels == {
        ("eager", "fp32"): "torch",
        ("eager", "int8-dynamic"): "torch",
        ("compile", "fp32"): "torch",
        ("compile", "int8-dynamic"): "torchao",
        ("compile-fixed", "fp32"): "torch",
        ("compile-fixed", "int8-dynamic"): "torch",
    }
    chosen = next(c for c in plan.cells if c.cell.recipe["kernel"] == "torchao")
    assert chosen.cell.libraries.get("torchao") == VERSIONS.get("torchao")
    assert chosen.support.reason == "faster"


def test_models_tasks_runtimes_and_formats_multiply_with_the_reference_first(monkeypatch):
    has_compiler(monkeypatch)
    options = {"formats": "int8-dynamic,fp32", "runtime": "eager,compile"}
    plan = planned(options, [reference("a"), reference("b")], [task("s"), task("t")])
    combinations = [
        (c.ref.name, c.task.card.name, c.cell.runtime, c.cell.format) for c in plan.cells
    ]
    assert combinations == [
        (model, name, runtime, fmt)
        for model in ("a", "b")
        for name in ("s", "t")
        for runtime in ("eager", "compile")
        for fmt in ("fp32", "int8-dynamic")
    ]
    assert len({c.cell_id for c in plan.cells}) == 16


def test_batch_sizes_are_no_axis():
    plan = planned({"batch_size": "1,2,4", "formats": "fp32"})
    (cell,) = plan.cells
    assert cell.cell.batch_sizes == (1, 2, 4)


def test_what_the_device_can_not_run_is_skipped_with_the_reason():
    plan = planned()
    by_format = {c.cell.format: c for c in plan.cells}
    assert by_format["tf32"].skip == "no unit for tf32"
    assert by_format["fp32"].skip is None
    assert [c.cell.format for c in plan.to_run] == ["fp32", "int8-dynamic"]
    document = json.loads(json.dumps(plan.document()))
    assert [c["skip"] for c in document["cells"]] == [None, "no unit for tf32", None]
    assert [c["cell_id"] for c in document["cells"]] == [c.cell_id for c in plan.cells]
    assert document["method_ids"] == [plan.cells[0].cell.method_id]


def test_a_cell_holds_what_its_result_depends_on():
    (cell, *_) = (c.cell for c in planned({"seed": 3, "trust_remote_code": True}).cells)
    assert cell.model.name == "demo"
    assert cell.task == task().identity
    assert (cell.device, cell.device_name, cell.device_flags) == ("cpu", "Some CPU", ("avx2",))
    assert (cell.threads, cell.seed, cell.trust_remote_code) == (2, 3, True)
    assert cell.workload == Workload().rules()
    assert cell.batch_plan == batch_plan("cpu")
    assert cell.recipe["compute_dtype"] == "float32"
    assert cell.libraries == {"torch": "2.13.0", "transformers": "5.24.0", "tokenizers": "0.23.3"}


def test_one_method_serves_all_formats():
    assert len({c.cell.method_id for c in planned().cells}) == 1


@pytest.mark.parametrize(
    ("options", "changes", "same"),
    [
        ({"limit": 1}, {}, True),
        ({"price_per_hour": 3, "slo": "p99=1s", "quality_budget": "5%"}, {}, True),
        ({"batch_size": "4"}, {}, True),
        ({}, {"versions": VERSIONS | {"torch": "2.14.0"}}, True),
        ({}, {"threads": 1}, True),
        ({"seed": 1}, {}, False),
        ({}, {"workload": Workload(min_requests=31)}, False),
        ({}, {"tasks": [task("other")]}, False),
        ({}, {"refs": [reference("other")]}, False),
    ],
)
def test_what_makes_another_method(options, changes, same):
    before, after = planned().cells[0].cell, planned(options, **changes).cells[0].cell
    assert (before.method_id == after.method_id) == same


def test_what_a_reader_decides_makes_no_other_cell():
    options = {"price_per_hour": 3, "slo": "p99=1s", "quality_budget": "5%", "out": "x"}
    assert [c.cell_id for c in planned(options).cells] == [c.cell_id for c in planned().cells]


def test_a_variable_that_changes_numbers_makes_another_cell_and_what_the_tool_sets_does_not(
    monkeypatch,
):
    for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = planned().cells[0].cell_id
    for name in (
        "OMP_NUM_THREADS", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK",
        "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR",
    ):  # fmt: skip
        monkeypatch.setenv(name, "1")
        assert planned().cells[0].cell_id == before
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert planned().cells[0].cell_id != before


def test_the_tool_s_own_version_makes_another_cell():
    ours = {"precision-explorer": "0.1.0"}
    first = planned(versions=VERSIONS | ours).cells[0].cell_id
    assert first != planned(versions=VERSIONS | {"precision-explorer": "0.2.0"}).cells[0].cell_id


def test_a_task_named_twice_gives_its_cells_once():
    assert len(planned(tasks=[task(), task()]).cells) == 3


def test_only_the_libraries_that_a_format_uses_count():
    def names(format_id: str, library: str) -> set[str]:
        return set(relevant_libraries(format_id, {"library": library}, VERSIONS))

    core = {"torch", "transformers", "tokenizers"}
    assert names("fp32", "torch") == core
    assert names("int8-dynamic", "torchao") == core | {"torchao"}
    assert names("int8-llm", "bitsandbytes") == core | {"bitsandbytes"}
    # Without a recipe (a skipped cell) the catalogue says which.
    assert set(relevant_libraries("int8-llm", {}, VERSIONS)) == core | {"bitsandbytes"}
    assert relevant_libraries("fp32", {}, {"torch": "1"}) == {"torch": "1"}


def calibrated_task(name: str = "sentiment", digest: str = "0123456789abcdef") -> PreparedTask:
    examples = [{"id": "c", "text": "b", "label": "positive"}]
    return replace(task(name), calibration=Calibration(examples, ["b"], digest))


def test_a_calibrated_cell_holds_its_calibration_and_no_other_does():
    options = {"formats": "fp32,int8-dynamic,int8-static"}
    plain = planned(options)
    first = planned(options, tasks=[calibrated_task()])
    other = planned(options, tasks=[calibrated_task(digest="f" * 16)])
    for cells in zip(plain.cells, first.cells, other.cells, strict=True):
        calibrates = cells[0].cell.format == "int8-static"
        assert len({c.cell_id for c in cells}) == (3 if calibrates else 1)
        # One method: all of them compare.
        assert len({c.cell.method_id for c in cells}) == 1
    found = first.cells[-1]
    assert found.cell.recipe["calibration"] == "0123456789abcdef"
    assert found.cell.recipe["calibration_n"] == 1
    text = "calibrated on 1 texts (0123456789abcdef), none of them in the test data"
    assert found.support.reason == f"a unit; {text}"
    assert found.skip is None


def test_a_task_without_calibration_skips_the_calibrated_format_alone():
    plan = planned({"formats": "fp32,int8-static"})
    reference_cell, skipped = plan.cells
    assert reference_cell.skip is None
    assert skipped.skip.startswith("task sentiment has no calibration set; add to its card")
    # Where the device can't run it, that is the reason.
    none = planned({"formats": "fp32,int8-static"}, supports=supports(("int8-static",)))
    assert none.cells[1].skip == "no unit for int8-static"


def test_the_batch_plan_is_fixed_by_the_kind_of_device():
    assert batch_plan("cpu") != batch_plan("cuda")
    assert set(batch_plan("cpu")) == {"rule", "max_tokens", "max_items", "call_tokens"}


def test_a_budget_that_is_declared_or_probed_is_part_of_a_cell():
    usual = planned().cells[0]
    declared = planned({"batch_tokens": 300}).cells[0]
    assert declared.cell.batch_plan["max_tokens"] == 300
    assert len({usual.cell_id, declared.cell_id}) == 2
    assert refusal(batch_tokens=0).startswith("batch-tokens 0")
    # A run that declares none keeps the name that it had before one could.
    assert make_spec({}).measuring_hash() == make_spec({"batch_tokens": None}).measuring_hash()
    assert make_spec({}).measuring_hash() != make_spec({"batch_tokens": 300}).measuring_hash()


def test_labels_are_mapped_and_cautions_of_the_model_go_along():
    (cell, *_) = planned().cells
    assert cell.label_ids == {"positive": 1, "negative": 0}
    assert [c.id for c in cell.cautions] == ["was-4bit"]


def test_a_model_without_the_head_is_refused_before_anything_runs():
    with pytest.raises(ModelError, match="no head for text-classification"):
        planned(refs=[reference(head="LlamaForCausalLM")])


def test_labels_that_the_model_lacks_are_refused_before_anything_runs():
    with pytest.raises(TaskError, match="neutral"):
        planned(tasks=[task(labels=("positive", "neutral"))])


def test_answers_that_may_be_batched_continuously_are_another_method():
    one = {"scenario": "server", "arrivals": {"kind": "poisson", "rate_per_s": 1}}
    spec = make_spec({})
    for more, kind, known in (
        ({}, "generation", True),
        ({}, "text-classification", False),
        ({"max_batch": 1}, "generation", False),
        ({"max_wait_s": 0.1}, "generation", False),
        ({"batching": "static"}, "generation", False),
    ):
        rules = measuring_rules(spec, Workload.model_validate(one | more), kind)
        assert ("batching" in rules) is known
    assert "batching" not in measuring_rules(spec, Workload(), "generation")


# -- what the method declares in words ------------------------------------------------------------


def test_the_protocol_holds_what_the_card_declares():
    card = prepare(load_card("capitals"), 2, 0)
    found = protocol_of(card)
    assert set(found) == {"prompt", "decoding", "quality_metric", "energy"}
    assert found["quality_metric"] == card.card.metrics[0]
    assert found["prompt"]["template"] == card.card.prompt
    assert found["prompt"]["chat"] is card.card.rules.chat
    assert found["decoding"]["by"] == "greedy"
    assert found["decoding"]["max_new_tokens"] == card.card.rules.max_new_tokens
    assert protocol_of(card, NO_ENERGY)["energy"] == NO_ENERGY
    # Kinds that show no prompt and decode nothing declare none.
    plain = protocol_of(prepare(load_card("sentiment"), 2, 0))
    assert "decoding" not in plain
    assert "template" not in plain["prompt"]


def test_a_long_prompt_is_kept_by_its_hash():
    task_ = prepare(load_card("capitals"), 2, 0)
    prompts = ["x" * 400 + f" {k} {{text}}" for k in range(2)]
    found = [
        protocol_of(replace(task_, card=task_.card.model_copy(update={"prompt": prompt})))
        for prompt in prompts
    ]
    texts = [one["prompt"]["template"] for one in found]
    assert all(text.startswith("sha256:") and len(text) < 60 for text in texts)
    assert texts[0] != texts[1]


def test_every_planned_cell_declares_version_2_of_the_method():
    for planned_cell in planned().cells:
        cell = planned_cell.cell
        assert cell.method()["version"] == 2
        assert cell.method() | cell.protocol == cell.method()


def test_the_order_of_examples_is_that_of_all_whatever_the_limit():
    hashes = [
        prepare(load_card("sentiment"), limit, seed).identity.order_hash
        for limit, seed in ((2, 0), (5, 0), (None, 0), (2, 1))
    ]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]
