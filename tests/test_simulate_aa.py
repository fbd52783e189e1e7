"""The A/A script: models that are alike are rarely called different, others are."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "simulate_aa.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("simulate_aa", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("share", "n"), [(0.004, 2063), (0.03, 1285), (0.2, 500)])
def test_pairs_that_are_alike_are_different_in_at_most_71_of_1000(script, share, n):
    found = script.simulate(share, n, 1000, 0)
    assert found <= 71
    assert found > 0  # A rule that never calls any different would be no test.


def test_the_pairs_flip_on_the_share_that_is_said(script, monkeypatch):
    seen = []
    monkeypatch.setattr(script, "is_different", lambda a, b: seen.append(script.flips(a, b)))
    for seed in range(20):
        script.simulated_pair(0.1, 2000, np.random.default_rng(seed))
    worse, better = np.array(seen).mean(0) / 2000
    assert (worse, better) == (pytest.approx(0.05, abs=0.005), pytest.approx(0.05, abs=0.005))


def test_a_model_that_loses_is_called_different(script):
    reference = [1.0] * 100
    assert script.is_different(reference, [0.0] * 8 + [1.0] * 92)
    assert not script.is_different(reference, [0.0] * 5 + [1.0] * 95)


def test_every_row_is_in_one_batch_that_keeps_its_bounds(script):
    lengths = [1 + 7 * k % 50 for k in range(120)]
    batches = script.neighbours(lengths, 3, 16, 200)
    assert sorted(i for batch in batches for i in batch) == list(range(120))
    for batch in batches:
        assert len(batch) <= 16
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 200
    assert batches != script.neighbours(lengths, 4, 16, 200)
