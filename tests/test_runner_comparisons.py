"""Comparisons in a sweep: when they are taken, what is resumed, and what one that fails costs."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from precision_explorer.formats import Support
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.models.adapter import Item
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import sweep
from precision_explorer.runner.comparing import (
    HeardPasses,
    compare_distributions,
    keep_distributions,
    score_again,
)
from precision_explorer.runner.comparisons import Comparisons
from precision_explorer.runner.local import Executor
from precision_explorer.runner.manager import Event, WorkerError
from precision_explorer.runner.session import Session
from precision_explorer.runner.sweep import prepare_sweep, run_folder, run_sweep
from precision_explorer.table import build
from tests.test_models_causal_lm import BOTH, CORPUS, llama, tokenizer
from tests.test_models_distributions import documents

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@pytest.fixture(scope="module", autouse=True)
def probed():
    """The device's answer, without its dry runs."""

    def answer(facts: Any, formats: list[str], *rest: Any) -> dict[str, Support]:
        recipe = {"kernel": "torch", "library": "torch"}
        return {
            name: Support(name, "native", "a unit", recipe | {"compute_dtype": DTYPES[name]})
            for name in formats
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "probe", answer)
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory, quick_workload) -> dict[str, Any]:
    """A tiny language model on nine documents."""
    folder = tmp_path_factory.mktemp("comparisons")
    llama().save_pretrained(folder / "model")
    tokenizer(**BOTH).save_pretrained(folder / "model")
    texts = [text[k:] for text in CORPUS for k in (0, 5, 12)]
    (folder / "test.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    card = {
        "name": "lines", "version": 1, "kind": "language-modeling", "max_length": 32,
        "data": {"path": "test.jsonl"}, "columns": {"text": "text"},
        "metrics": ["token_perplexity"],
    }  # fmt: skip
    (folder / "task.yaml").write_text(yaml.safe_dump(card))
    return {
        "model": (str(folder / "model"),), "task": (str(folder),), "formats": ("fp32", "bf16"),
        "device": "cpu", "threads": 1, "batch_size": (1,), "workload": str(quick_workload),
        "out": str(folder / "run"),
    }  # fmt: skip


def prepared(given: dict[str, Any], **more: Any) -> Any:
    return prepare_sweep(make_spec(given | more), lambda event: None)


def phases(events: list[Event]) -> set[str]:
    return {e.data["phase"] for e in events if e.name == "progress"}


@pytest.fixture(scope="module")
def resumed(given) -> SimpleNamespace:
    """A sweep interrupted while the reference was scored a second time, and run again."""

    def interrupt(event: Event) -> None:
        if event.name == "progress" and event.data["phase"] == "noise":
            raise KeyboardInterrupt

    found = prepared(given)
    cells = {planned.cell.format: planned.cell_id for planned in found.plan.cells}
    with pytest.raises(KeyboardInterrupt):
        run_sweep(found, interrupt)
    before = run_folder(found).read_record(cells["fp32"])
    events: list[Event] = []
    folder, tally = run_sweep(prepared(given), events.append)
    return SimpleNamespace(
        folder=folder,
        cells=cells,
        before=before,
        tally=tally,
        events=events,
        records={name: folder.read_record(cell_id) for name, cell_id in cells.items()},
    )


def test_an_interrupt_in_the_second_pass_costs_nothing_that_was_measured(resumed):
    assert resumed.before.status == "ok"
    assert resumed.before.measurements.noise is None
    record = resumed.records["fp32"]
    assert record.measurements.latency == resumed.before.measurements.latency
    assert record.measurements.quality == resumed.before.measurements.quality
    assert "resumed" not in {caution.id for caution in record.cautions}
    # Both were measured, in turn, before the reference was scored again.
    assert (resumed.tally.ran, resumed.tally.reused, resumed.tally.failed) == (0, 2, 0)


def test_only_the_reference_is_scored_again_and_keeps_its_distributions(resumed):
    reference, other = (resumed.records[name].measurements for name in ("fp32", "bf16"))
    assert reference.noise.examples == 9
    assert reference.noise.batch_plan_hash != reference.quality.batch_plan_hash
    assert reference.kept.method == "states"
    assert reference.kept.head["key"] == "lm_head.weight"
    assert other.noise is other.kept is None
    assert reference.positions.reference == other.positions.reference == resumed.cells["fp32"]
    assert reference.positions.positions == other.positions.positions == reference.kept.positions
    assert not reference.not_compared
    assert not other.not_compared


def test_the_samples_hold_a_row_per_example_repeat_and_position(resumed):
    read = resumed.folder.read_samples
    first, again = (read(resumed.cells["fp32"], kind) for kind in ("example", "repeat"))
    assert again["id"] == first["id"]
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert read(resumed.cells["bf16"], "repeat")["id"] == []
    positions = read(resumed.cells["bf16"], "position")
    assert len(positions["kl"]) == sum(first["tokens"])
    assert list(dict.fromkeys(positions["id"])) == first["id"]
    assert len(read(resumed.cells["bf16"], "request")["id"]) >= 5


def test_the_table_shows_divergence_and_its_floor(resumed, given):
    table = build([Path(given["out"])])
    reference, other = table.rows
    assert other["kl_mean"] > 1e-7
    rows = resumed.folder.read_samples(resumed.cells["bf16"], "position")
    assert other["kl_mean"] == pytest.approx(np.mean(rows["kl"]))
    assert other["kl_p99"] == pytest.approx(np.quantile(rows["kl"], 0.99))
    assert other["same_top"] == pytest.approx(np.mean(rows["same_top"]))
    assert other["kl_note"] is None
    assert 0 <= reference["noise_floor_kl"] == other["noise_floor_kl"] < 1e-9
    assert reference["kl_mean"] is None
    assert other["noise_floor_flips"] is None
    assert reference["noise_floor_delta"] == other["noise_floor_delta"]
    assert other["perplexity_ratio"] == pytest.approx(other["quality"] / reference["quality"])


def test_a_format_that_is_added_uses_what_the_reference_kept(resumed, given):
    events: list[Event] = []
    more = prepared(given, formats=("fp32", "bf16", "fp16"))
    folder, tally = run_sweep(more, events.append)
    assert [e.data["format"] for e in events if e.name == "start"] == ["fp16"]
    assert (tally.ran, tally.reused) == (1, 2)
    assert not phases(events) & {"noise", "keep"}
    row = build([folder.path]).rows[-1]
    assert row["format"] == "fp16"
    assert 0 < row["kl_mean"] < 1e-2


class Failing:
    """A worker that runs out of memory."""

    process = SimpleNamespace(is_alive=lambda: True)
    killed = False

    def ask(self, request: dict[str, Any], deadline: float) -> Any:
        raise WorkerError({"message": "out of memory", "kind": "X"})

    def kill(self) -> None:
        self.killed = True


def without(folder: Any, cell_id: str, name: str) -> None:
    """As before the comparison: what a record holds is not asked for again."""
    record = folder.read_record(cell_id)
    measured = record.measurements.model_copy(update={name: None})
    folder.write_record(record.model_copy(update={"measurements": measured}))


def test_a_comparison_that_fails_costs_itself_alone_and_is_not_tried_again(
    tmp_path, given, resumed
):
    found = prepared(given)
    planned = next(c for c in found.plan.cells if c.cell.format == "fp32")
    folder, cell_id = resumed.folder, planned.cell_id
    part = folder.part_path(cell_id, "noise").with_suffix(".json")
    stored = part.read_bytes()
    part.unlink()
    assert Comparisons(found.spec, found.plan, folder).lacking(planned) == []
    without(folder, cell_id, "noise")
    notes: list[Event] = []
    executor = Executor(
        found.spec, found.plan, found.facts, found.environment, folder, notes.append
    )
    assert [ask.part for ask in executor.comparisons.lacking(planned)] == ["noise"]

    worker: Any = Failing()
    executor._compare(worker, planned, compiled=True)
    assert worker.killed
    record = folder.read_record(cell_id)
    assert record.status == "ok"
    assert record.measurements.noise is None
    assert record.measurements.not_compared == {"noise": "out of memory"}
    assert record.measurements.kept is not None
    assert [e.name for e in notes] == ["compare", "note"]
    assert "out of memory" in notes[1].data["text"]
    assert executor.comparisons.lacking(planned) == []
    (row, other) = build([folder.path]).rows[:2]
    assert row["noise_floor_delta"] is other["noise_floor_delta"] is None
    part.write_bytes(stored)
    executor.comparisons.join(planned)
    assert folder.read_record(cell_id).measurements.noise is not None


def test_a_format_whose_divergence_fails_keeps_its_row(given, resumed):
    found = prepared(given)
    planned = next(c for c in found.plan.cells if c.cell.format == "bf16")
    folder, name = resumed.folder, f"positions-{resumed.cells['fp32']}"
    stored = folder.read_part(planned.cell_id, name)
    folder.part_path(planned.cell_id, name).with_suffix(".json").unlink()
    without(folder, planned.cell_id, "positions")
    worker: Any = Failing()
    executor = Executor(
        found.spec, found.plan, found.facts, found.environment, folder, lambda event: None
    )
    executor._compare(worker, planned, compiled=True)
    row = next(r for r in build([folder.path]).rows if r["format"] == "bf16")
    assert (row["kl_mean"], row["kl_note"]) == (None, "out of memory")
    assert row["quality_delta"] == pytest.approx(
        row["quality"] - build([folder.path]).rows[0]["quality"]
    )
    assert row["verdict"] is not None
    folder.write_part(planned.cell_id, name, *stored)
    executor.comparisons.join(planned)
    assert build([folder.path]).rows[1]["kl_mean"] > 0


def test_what_was_held_against_another_reference_is_taken_again(given, resumed):
    found = prepared(given, reference="bf16")
    comparisons = Comparisons(found.spec, found.plan, resumed.folder)
    cells = {c.cell.format: c for c in found.plan.cells}
    # Until bf16 has kept its distributions, fp32 can't be held against them.
    assert [a.part for a in comparisons.lacking(cells["bf16"])] == ["noise", "kept"]
    assert comparisons.lacking(cells["fp32"]) == []
    rows = build([resumed.folder.path], {"reference": "bf16"}).rows
    assert rows[0]["kl_mean"] is None
    assert rows[0]["kl_note"] == "held against another reference"


def test_tasks_that_share_a_model_are_all_measured_before_any_is_compared(tmp_path, given):
    """So that no cell's memory is measured in what the comparison of another left behind."""
    card = yaml.safe_load((Path(given["task"][0]) / "task.yaml").read_text())
    card |= {"name": "other", "data": {"path": str(Path(given["task"][0]) / "test.jsonl")}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(card))
    events: list[Event] = []
    both = prepared(
        given, task=(*given["task"], str(tmp_path)), formats=("fp32",), out=str(tmp_path / "run")
    )
    folder, tally = run_sweep(both, events.append)
    names = [e.name for e in events if e.name in ("start", "cell", "compare")]
    assert names == ["start", "cell", "start", "cell", "compare", "compare"]
    assert (tally.ran, tally.reused) == (2, 0)
    for planned in both.plan.cells:
        assert folder.read_record(planned.cell_id).measurements.positions is not None


def test_a_task_without_next_token_distributions_keeps_none_and_says_so():
    generating = SimpleNamespace(items=lambda: [Item(0, (1, 2)), Item(1, (3,))])
    session: Any = SimpleNamespace(
        _adapter=lambda request: generating, compiled=None, adapter=None, request={}
    )
    answer, rows = keep_distributions(session, {})
    assert answer == {"why": "the task scores no next-token distributions"}
    assert rows == b""


class Whole:
    """A session as far as comparisons need it, with a count of the model's forward passes."""

    def __init__(self, folder: Path) -> None:
        self.model = llama()
        self.model.save_pretrained(folder)
        self.passes: list[int] = []
        self.model.register_forward_pre_hook(lambda module, given: self.passes.append(1))
        self.heard, self.compiled, self.adapter, self.device = HeardPasses(), None, None, "cpu"
        self.followers = None
        self.request = {"path": str(folder), "seed": 0}
        self.memory = SimpleNamespace(begin=lambda: None, end=lambda: 1, extras=dict)
        self.runtime = RUNTIMES["eager"]
        self.progress = lambda phase, done, total: None

    def _adapter(self, request: dict[str, Any]) -> Any:
        return documents(self.model)

    def __getattr__(self, name: str) -> Any:
        return getattr(Session, name).__get__(self)


@pytest.mark.parametrize("part", [False, True])
def test_comparisons_use_what_the_scoring_passes_heard(tmp_path, part):
    session: Any = Whole(tmp_path)
    examples = [{"id": str(i)} for i in range(3)]
    plan = {"max_tokens": 64, "max_items": 4, "call_tokens": 16}
    card = {"kind": "language-modeling", "metrics": ["bits_per_byte"]}
    request = {"card": card, "examples": examples, "batch_plan": plan, "part": part}
    session.quality(request)
    if not part:
        score_again(session, request)
    session.passes.clear()
    kept, rows = keep_distributions(session, request)
    (tmp_path / "kept.arrow").write_bytes(rows)
    request |= {"reference": "r", "kept": kept["kept"], "kept_rows": str(tmp_path / "kept.arrow")}
    _, found = compare_distributions(session, request | {"is_reference": True})
    assert bool(session.passes) == part
    assert max(row["kl"] for row in found) < 1e-9
    session.passes.clear()
    _, again = compare_distributions(session, request | {"is_reference": True})
    assert session.passes  # Nothing is left of it.
    assert [r["kl"] for r in again] == pytest.approx([r["kl"] for r in found], abs=1e-9)


def test_under_fixed_shapes_only_batches_that_are_compiled_are_run(tmp_path):
    """So there is a divergence of each format, and no noise floor."""
    session: Any = Whole(tmp_path)
    plan = {"max_tokens": 64, "max_items": 4, "call_tokens": 16}
    request = {"examples": [{"id": str(i)} for i in range(3)], "batch_plan": plan}
    request |= {"reference": "r", "is_reference": False, "kept_rows": str(tmp_path / "kept.arrow")}
    found = {}
    for name in ("eager", "compile-fixed"):
        session.runtime, shapes = RUNTIMES[name], []

        def look(module, given, named, shapes=shapes):
            shapes.append(tuple(named["input_ids"].shape))

        handle = session.model.register_forward_pre_hook(look, with_kwargs=True)
        session.compiled = SimpleNamespace(eagerly=contextlib.nullcontext)
        items = documents(session.model).items()
        frozen = session._batches(request, items)
        compiled = {(len(b), max(len(items[k].ids) for k in b)) for b in frozen}
        kept, rows = keep_distributions(session, request)
        Path(request["kept_rows"]).write_bytes(rows)
        shapes.clear()
        _, found[name] = compare_distributions(session, request | kept)
        assert shapes
        if name == "compile-fixed":
            assert set(shapes) <= compiled
        handle.remove()
    assert found["compile-fixed"] == [
        row | {"kl": pytest.approx(row["kl"], abs=1e-9)} for row in found["eager"]
    ]


def test_whole_answers_are_not_compared_under_fixed_shapes():
    session: Any = SimpleNamespace(
        runtime=RUNTIMES["compile-fixed"], _adapter=lambda request: None, adapter=None
    )
    answer, rows = keep_distributions(session, {"outputs": {"e0": "yes"}})
    assert answer == {"why": "compile-fixed has no code for the shapes of whole answers"}
    assert rows == b""


def test_what_is_asked_under_fixed_shapes(given):
    found = prepared(given, formats=("fp32", "bf16"))
    reference, other = found.plan.cells
    asked = {}
    for runtime in ("compile", "compile-fixed"):
        cells = [replace(c, cell=c.cell.model_copy(update={"runtime": runtime}))
                 for c in (reference, other)]  # fmt: skip
        kept = SimpleNamespace(
            has_part=lambda cell_id, part: part == "quality",
            read_record=lambda cell_id: None,
            read_answer=lambda cell_id, part: {"kept": {}},
            part_path=lambda cell_id, part: Path("kept.arrow"),
        )
        comparisons = Comparisons(found.spec, replace(found.plan, cells=cells), kept)
        asked[runtime] = [[a.request["op"] for a in comparisons.lacking(c)] for c in cells]
    assert asked == {
        "compile": [["noise", "keep", "compare"], ["compare"]],
        "compile-fixed": [["keep"], ["compare"]],
    }
