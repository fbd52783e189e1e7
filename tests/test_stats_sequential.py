"""Verdicts while examples come in: hold them against what they promise, by hand and by chance."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from precision_explorer.stats import sequential
from precision_explorer.stats.paired import Verdict

SCRIPT = Path(__file__).parents[1] / "scripts" / "simulate_until_decided.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("simulate_until_decided", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Where its dataclasses look.
    spec.loader.exec_module(module)
    return module


def unasked(confidence):
    raise AssertionError("the fixed-n test is only for all planned examples")


def test_looks_begin_at_32_grow_by_an_eighth_and_end_at_the_plan():
    assert sequential.looks(20) == [20]
    assert sequential.looks(32) == [32]
    assert sequential.looks(100) == [32, 64, 96, 100]
    found = sequential.looks(2063)
    assert found[-1] == 2063
    assert all(n % 32 == 0 for n in found[:-1])
    steps = np.diff(found[:-1])
    assert (steps <= np.maximum(32, np.array(found[:-2]) / 8)).all()
    assert sequential.looks(5000)[: len(found) - 1] == found[:-1]
    with pytest.raises(ValueError, match="at least 1"):
        sequential.looks(0)


def test_the_betting_wealth_is_that_of_gamblers_who_bet_a_constant_share():
    values = np.array([0.01, -0.99, 0.01, 1.01])
    bets, shares = sequential._BETS, sequential._SHARES
    assert math.isclose(shares.sum(), 1)
    wealth = sum(
        s * np.prod([1 + b * v / 0.99 for v in values]) for b, s in zip(bets, shares, strict=True)
    )
    found = sequential.log_wealth_betting(values, 0.99)
    assert math.isclose(found[-1], math.log(wealth))
    with pytest.raises(ValueError, match="below the bound"):
        sequential.log_wealth_betting(values, 0.5)


def test_the_betting_wealth_is_not_expected_to_grow_on_the_margin():
    """Exactly: over all 27 outcomes of three examples, weighted by their chances."""
    chances = {-1.0: 0.03, 0.0: 0.95, 1.0: 0.02}
    expected = [0.0, 0.0]
    for first, p in chances.items():
        for second, q in chances.items():
            for third, r in chances.items():
                drawn = np.array([first, second, third])
                for side, wealth in enumerate(sequential.wealth_of_shares(drawn, -0.01)):
                    expected[side] += p * q * r * math.exp(wealth[-1])
    assert expected == pytest.approx([1.0, 1.0])


def test_the_asymptotic_wealth_is_the_half_normal_mixture_of_drifts():
    """Against the integral that it stands for, by the trapezoid rule."""
    values = np.random.default_rng(3).normal(0.3, 1.0, 80)
    scaled = values.sum() / values.std()
    level = -2 * math.log(sequential.ALPHA_LOOKS)
    r = math.sqrt((level + math.log(level + 1)) / 100)
    drifts = np.linspace(0, 12 * r, 200_001)
    density = 2 / (r * math.sqrt(2 * math.pi)) * np.exp(-(drifts**2) / (2 * r * r))
    grown = density * np.exp(drifts * scaled - drifts**2 * 80 / 2)
    integral = float(((grown[1:] + grown[:-1]) / 2 * np.diff(drifts)).sum())
    found = sequential.log_wealth_asymptotic(values)[-1]
    assert math.isclose(found, math.log(integral), rel_tol=1e-6)


def test_values_without_spread_decide_nothing():
    assert (sequential.log_wealth_asymptotic(np.full(50, 0.7)) == 0).all()
    assert (sequential.log_wealth_asymptotic(np.zeros(50)) == 0).all()


def test_values_that_never_differ_are_taken_as_shares_that_never_flip():
    within, outside = sequential.wealth_of_values(np.full(480, 0.3), 0.01)
    assert within.tolist() == sequential.wealth_of_shares(np.zeros(480), -0.01)[0].tolist()
    assert (outside == 0).all()
    for against in (np.full(480, -0.3), np.zeros(480)):
        assert max(w.max() for w in sequential.wealth_of_values(against, 0.01)) == 0


def test_few_differing_examples_tell_no_more_than_shares_that_differ_by_as_much():
    differences = np.zeros(400)
    differences[100] = 1
    values, bar = differences + 0.01, -math.log(0.03)
    assert sequential.wealth_of_values(values, 0.01)[0].max() > bar
    few = sequential.wealth_of_few(values, 0.01, 1.0)
    assert np.allclose(few, sequential.wealth_of_shares(differences, -0.01)[0])
    assert few.max() < bar
    assert sequential.wealth_of_few(values, 0.01, 3.0)[-1] < few[-1]


def at_looks(differences, made, planned, at_the_end):
    index = np.array(made) - 1
    within, outside = (w[index] for w in sequential.wealth_of_shares(differences, -0.01))
    return sequential.decide(made, within, outside, planned, at_the_end)


def test_the_first_look_that_is_sure_decides_and_the_rest_is_not_read():
    differences = np.zeros(2063)
    differences[1000:] = -1.0
    looks = sequential.looks(2063)
    found = at_looks(differences, looks, 2063, unasked)
    assert (found.verdict, found.n) == ("within", 480)
    assert looks[found.look - 1] == 480
    found = at_looks(differences, looks[:10], 2063, unasked)
    assert (found.verdict, found.n, found.look) == ("cannot-tell", 320, 10)


def test_all_planned_examples_ask_the_fixed_test_at_what_error_is_left():
    asked = []

    def fixed(confidence):
        asked.append(confidence)
        return Verdict("cannot-tell", 900)

    found = at_looks(np.zeros(100), sequential.looks(100), 100, fixed)
    assert asked == [0.98]
    assert (found.verdict, found.n, found.look, found.needed_n) == ("cannot-tell", 100, 4, 900)
    assert math.isclose(sequential.ALPHA_LOOKS + sequential.ALPHA_END, 0.05)


def test_the_interval_holds_what_neither_side_rules_out():
    differences = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 600, p=[0.06, 0.93, 0.01])
    low, high = sequential.interval_of_shares(differences)
    assert low < differences.mean() < high
    for edge, side in ((low, 0), (high, 1)):
        wealth = sequential.wealth_of_shares(differences, edge)[side][-1]
        assert math.isclose(wealth, math.log(40), abs_tol=1e-3)
    low, high = sequential.interval_of_shares(np.zeros(480))
    assert low == -high
    assert 0.008 < high < 0.02


def test_the_p_value_is_the_inverse_of_the_largest_wealth_of_both_sides():
    above, below = np.log([1.0, 9.0, 2.0]), np.log([1.0, 1.0, 1.0])
    assert math.isclose(sequential.p_value_of(above, below), 1 / 5)
    assert sequential.p_value_of(-np.ones(3), -np.ones(3)) == 1.0


def test_the_asymptotic_interval_is_wider_than_a_fixed_one_and_follows_its_formula():
    values = np.random.default_rng(0).normal(2.0, 1.0, 200)
    low, high = sequential.interval_of_values(values)
    assert math.isclose((low + high) / 2, values.mean())
    assert (high - low) / 2 > 1.96 * values.std() / math.sqrt(200)
    level = -2 * math.log(0.03)
    r2 = (level + math.log(level + 1)) / 100
    half = math.sqrt(2 * (200 * r2 + 1) / (200**2 * r2) * math.log(math.sqrt(200 * r2 + 1) / 0.05))
    assert math.isclose(high - low, 2 * values.std() * half)


@pytest.mark.parametrize("name", ["on the margin, 2 % flip", "losses on the margin"])
def test_wrong_verdicts_are_rare(script, name):
    scenario = next(s for s in script.SCENARIOS if s.name == name)
    # 5 % of 200, and two standard errors of it.
    assert script.simulate(scenario, 200, 1).wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)


def test_wrong_verdicts_of_a_metric_that_is_no_sum_are_rare(script):
    scenario = next(s for s in script.SCENARIOS if s.name == "macro F1 on the margin, 300 examples")
    assert math.isclose(script._macro_f1(0) - script._macro_f1(script._moved(0.01)), 0.01)
    assert script.simulate(scenario, 60, 1).wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 60)
    clear = next(s for s in script.SCENARIOS if s.name == "macro F1 loses 10 points")
    found = script.simulate(clear, 20, 1)
    assert (found.wrong, found.decided) == (0, 1)
    assert clear.n / found.examples >= 3


def test_fixed_n_tests_at_every_look_would_not_be(script):
    scenario = next(s for s in script.SCENARIOS if s.name == "on the margin, 2 % flip")
    assert script.simulate(scenario, 200, 1, scenario.naive).wrong > 0.15


@pytest.mark.parametrize("name", ["loses 5 points, 7 % flip", "no flip", "losses 2 % higher"])
def test_clear_differences_take_a_third_of_the_examples(script, name):
    scenario = next(s for s in script.SCENARIOS if s.name == name)
    found = script.simulate(scenario, 40, 1)
    assert found.wrong == 0
    assert found.decided == 1
    assert scenario.n / found.examples >= 3
