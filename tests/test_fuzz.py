"""The fuzzers of scripts/fuzz.py, for moments; and that they would find something."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from precision_explorer.errors import UsageError

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = load()
TARGETS = fuzz.make_targets()
WANTED = {"specs", "cards", "records", "CSV traces", "parquet traces", "workloads"}


def test_the_readers_of_specs_cards_records_and_traces_are_among_them():
    assert set(TARGETS) >= WANTED


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_the_tool_s_own_errors_comes_out(name):
    found = fuzz.run_target(TARGETS[name], seed=1, inputs=100)
    assert found.inputs >= 100
    assert {key: text for key, (_, text) in found.faults.items()} == {}
    # Neither is all of it nonsense that the first check refuses, nor is all of it sound.
    assert found.refused > 0
    assert found.accepted > 0


def test_what_a_reader_comes_to_grief_with_is_found_and_kept(tmp_path):
    def read(folder, content):
        if b"cut" not in content:
            raise KeyError("cut")
        raise UsageError("")

    texts = fuzz.texts([{"name": "cut", "x": 1}], fuzz._as_yaml)
    found = fuzz.run_target(fuzz.Target(texts, read), seed=0, inputs=200)
    assert {key.split(" ")[0] for key in found.faults} == {"KeyError", "UsageError"}
    fuzz.save("a reader", found, tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"a-reader-{n}.{kind}" for n in (0, 1) for kind in ("input", "txt")]
    assert "KeyError" in (tmp_path / "a-reader-0.txt").read_text()


def test_a_reader_that_is_slow_is_found(monkeypatch):
    monkeypatch.setattr(fuzz, "SLOWEST_S", 0.0)
    texts = fuzz.texts([{"a": 1}], fuzz._as_json)
    found = fuzz.run_target(fuzz.Target(texts, lambda *_: None), seed=0, inputs=5)
    assert list(found.faults) == ["more than 0 s"]


def test_atheris_feeds_the_same_readers():
    pytest.importorskip("atheris", reason="needs the extra fuzz")
    found = fuzz.with_atheris("scores", seed=0, seconds=1)
    assert found.inputs > 100
    assert found.accepted > 0
    assert found.faults == {}


def test_inputs_follow_from_the_seed():
    seen: list[list[bytes]] = [[], [], []]
    for kept, seed in zip(seen, (0, 0, 1), strict=True):
        target = fuzz.Target(
            TARGETS["cards"].inputs, lambda _, content, kept=kept: kept.append(content)
        )
        fuzz.run_target(target, seed=seed, inputs=20)
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
