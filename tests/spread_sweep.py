"""A sweep of 24 cells on places: planned once, with stand-ins for workers, and what the local
executor makes of their answers, which any other must make too."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from precision_explorer.formats import Support
from precision_explorer.models.reference import DEMO
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import batch_budget, local, sweep
from precision_explorer.runner.sweep import prepare_sweep, run_sweep
from precision_explorer.store import RunFolder
from tests.replayed import script
from tests.replaying_lane import VARIABLE
from tests.test_rounds import DTYPES, Fake

RULES = {
    "min_requests": 4, "min_seconds": 0, "warmup_requests": 1, "warmup_seconds": 0,
    "budget_seconds": 20, "offline_seconds": 0, "offline_min_batches": 2, "rounds": 2,
}  # fmt: skip
MODELS, FORMATS = 12, ("fp32", "bf16")
CELLS = MODELS * len(FORMATS)


def models(folder: Path) -> list[str]:
    """Folders of the demo model, each of another identity."""
    found = []
    for number in range(MODELS):
        path = folder / f"model-{number:02}"
        shutil.copytree(DEMO, path)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"test_number": number}))
        found.append(str(path))
    return found


def stand_ins(formats: tuple[str, ...]) -> dict[tuple[str, str], tuple[dict[str, Any], bytes]]:
    """What workers answer, by format and what they are asked."""
    found: dict[tuple[str, str], tuple[dict[str, Any], bytes]] = {}
    for name in formats:
        worker = Fake(None, None)
        worker.format = name
        for op in ("quality", "certificate", "noise", "park"):
            found[name, f"{op}-"] = worker.ask({"op": op}, 0.0)
        found[name, "load-"] = worker.ask({"op": "load", "format": name}, 0.0)
        worker.kill()
        for number in range(RULES["rounds"]):
            asked = {"op": "block", "round": number, "first": number == 0}
            found[name, f"block-{number}"] = worker.ask(asked, 0.0)
        found[name, "profile-"] = ({"why": "a stand-in has none"}, b"")
    return found


def probe(facts: Any, formats: list[str], *rest: Any) -> dict[str, Support]:
    """In place of the device's own answer."""
    recipe = {"kernel": "torch", "library": "torch"}
    return {
        name: Support(name, "native", "a unit", recipe | {"compute_dtype": DTYPES[name]})
        for name in formats
    }


def stand_in(patch: pytest.MonkeyPatch, answers: Any, log: Path) -> None:
    """Have the local executor's workers replay `answers`, and no other executor be asked."""
    kill_parents = script()
    patch.setattr(sweep, "probe", probe)
    patch.setattr(sweep, "open_pool", lambda spec, on_event: None)
    patch.setattr(batch_budget, "_probe", lambda *given: None)
    patch.setattr(local, "WorkerHandle", kill_parents.Replaying)
    patch.setattr(local, "start_context", lambda **given: None)
    kill_parents.Replaying.log = log
    kill_parents.Keeping.kept = answers


def planned(work: Path) -> Any:
    """The sweep of 24 cells, what its workers answer, and the folder that the local executor makes
    of that."""
    work.mkdir(exist_ok=True)
    kill_parents = script()
    Fake.asked, Fake.blocks, Fake.loaded, Fake.most = [], [], [], 0
    rules = work / "quick.yaml"
    rules.write_text(yaml.safe_dump(RULES))
    options = {
        "model": tuple(models(work)), "formats": FORMATS, "device": "cpu", "limit": 6,
        "workload": str(rules), "threads": 1, "batch_size": (1,), "task": ("sentiment",),
        "out": str(work / "local"),
    }  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        answers = stand_ins(FORMATS)
        stand_in(patch, answers, work / "log")
        prepared = prepare_sweep(make_spec(options), kill_parents.quiet)
        folder, tally = run_sweep(prepared, kill_parents.quiet)
    assert tally.ran == CELLS
    return SimpleNamespace(prepared=prepared, answers=answers, folder=folder)


def local_s(kept: Any, out: Path) -> float:
    """Seconds of the sweep by the local executor."""
    kill_parents = script()
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, kept.answers, out.with_suffix(".log"))
        begun = time.monotonic()
        _, tally = run_sweep(kill_parents.into(kept.prepared, out), kill_parents.quiet)
        ended = time.monotonic()
    assert tally.ran == CELLS
    return ended - begun


def comparable(folder: RunFolder, cell_id: str) -> dict[str, Any]:
    """A record without when it was made and on which of the places."""
    record = json.loads(folder.record_path(cell_id).read_text())
    record.pop("sha256", None)
    for name in ("started_at", "finished_at", "seal"):
        record.pop(name, None)
    for found in record["measurements"]["latency"]["rounds"]:
        found["started_s"] = None
    record["environment"].pop("placement")
    return record


def differing(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Where two documents differ, and how."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() | other.keys():
            yield from differing(one.get(name), other.get(name), f"{path}.{name}")
    elif one != other:
        yield f"{path}: {one!r} against {other!r}"[:500]


def _not_in_turn(record: dict[str, Any]) -> dict[str, Any]:
    """Without what tells beside which cells it was timed."""
    for found in record["measurements"]["latency"]["rounds"]:
        for name in ("place", "cells", "interleaved"):
            found[name] = None
    record["cautions"] = [c for c in record["cautions"] if c["id"] != "rounds-not-interleaved"]
    return record


def same(kept: Any, folder: RunFolder, in_turn: bool = True) -> None:
    """Every cell has exactly one record, and that is the local executor's; not `in_turn`: but for
    the turn in which it was timed, where its lot was gone on with."""
    ids = [c.cell_id for c in kept.prepared.plan.cells]
    assert len(ids) == CELLS
    assert sorted(p.stem for p in (folder.path / "cells").iterdir()) == sorted(ids)
    for cell_id in ids:
        pair = comparable(folder, cell_id), comparable(kept.folder, cell_id)
        found = list(differing(*(pair if in_turn else map(_not_in_turn, pair))))
        assert found == [], found
        assert folder.samples_hash(cell_id) == kept.folder.samples_hash(cell_id) != ""


def lanes() -> list[psutil.Process]:
    """The lanes that are there and replay what this test has told them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if any("tests.replaying_lane" in part for part in process.info["cmdline"] or []):
                told = process.environ().get(VARIABLE)
                found += [process] if told == os.environ[VARIABLE] else []
    return found


def gone(limit_s: float = 10.0) -> bool:
    """Whether all lanes end by themselves."""
    deadline = time.monotonic() + limit_s
    while lanes() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not lanes()
