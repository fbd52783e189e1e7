"""What goes where and what is tried again, by itself and driven by a simulated cluster."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("simpy")
SCRIPT = Path(__file__).parents[1] / "scripts" / "simulate_cluster.py"
sys.path.insert(0, str(SCRIPT.parent))  # As it is for a script.

from cluster_placement import Lot, Placement  # noqa: E402


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("simulate_cluster", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate_cluster"] = module
    spec.loader.exec_module(module)
    return module


def lots(**seconds: float) -> list[Lot]:
    return [Lot(name, {f"{name}1": s / 2, f"{name}2": s / 2}) for name, s in seconds.items()]


def test_the_longest_lot_goes_first_and_equal_ones_in_their_order():
    placement = Placement(lots(a=2, b=9, c=2, d=5))
    assert [placement.take(f"n{i}").name for i in range(4)] == ["b", "d", "a", "c"]
    assert placement.take("n4") is None
    with pytest.raises(ValueError, match="n0 has lot b already"):
        placement.take("n0")


def test_a_lost_node_s_unfinished_cells_go_elsewhere_and_finished_ones_do_not():
    placement = Placement(lots(a=4, b=2))
    assert placement.take("n0").cells == ("a1", "a2")
    assert placement.record("a1", "ok")
    assert placement.lost("n0") == []
    # What is left of it is as long as the other, and came later.
    assert placement.take("n1").name == "b"
    assert placement.take("n2").cells == ("a2",)
    assert placement.lost("never-seen") == []


def test_a_cell_that_loses_node_after_node_is_given_up():
    placement = Placement(lots(a=4))
    for node in ("n0", "n1"):
        placement.take(node)
        assert placement.lost(node) == []
    # Crashes are counted apart.
    assert placement.again("a1", "crash")
    placement.take("n2")
    assert placement.lost("n2") == ["a1", "a2"]
    assert placement.is_done


def test_a_crash_is_tried_once_more_and_memory_or_time_never():
    placement = Placement(lots(a=4))
    placement.take("n0")
    assert placement.again("a1", "crash")
    assert not placement.again("a1", "crash")
    assert not placement.again("a2", "out_of_memory")
    assert not placement.again("a2", "timeout")


def test_a_cell_has_one_record_and_a_lot_ends_with_all_of_them():
    placement = Placement(lots(a=4))
    placement.take("n0")
    assert placement.record("a1", "ok")
    assert not placement.record("a1", "failed")
    assert (placement.records["a1"], placement.refused) == ("ok", 1)
    with pytest.raises(ValueError, match="without a record of a2"):
        placement.ended("n0")


@pytest.fixture(scope="module")
def small(script):
    """200 cells on 20 nodes that fail every two hours, so that several do."""
    rules = {"cells": 200, "nodes": 20, "node_mtbf_s": 7200.0, "crash": 0.05, "seed": 1}
    return script.simulate(script.Assumptions(**rules))


def test_every_cell_of_a_failing_cluster_has_exactly_one_record(small):
    assert small.faults() == []
    assert sum(small.statuses.values()) == 200
    assert small.failures_at_work > 0
    assert small.lost_s > 0
    assert small.statuses["out_of_memory"] > 0
    assert max(small.tries) > 1
    assert small.end_s >= small.work_s / 20 * 0.9


def test_the_same_seed_is_the_same_sweep_and_the_report_says_what_was_assumed(script, small):
    again = script.simulate(small.assumptions)
    assert (again.end_s, again.lost_s, again.tries) == (small.end_s, small.lost_s, small.tries)
    text = script.report(small)
    assert "200 cells in lots of 8 on 20 nodes, seed 1" in text
    assert "cells without a record: 0; done twice: 0" in text


def test_nodes_that_never_fail_lose_nothing_and_end_near_the_ideal(script):
    calm = {"node_mtbf_s": 1e12, "crash": 0, "oom": 0, "decide_s": 0, "hand_over_s": 0}
    out = script.simulate(script.Assumptions(cells=200, nodes=5, known=0, **calm))
    assert out.faults() == []
    assert (out.failures, out.lost_s, out.crashed_s, out.asking_s) == (0, 0, 0, 0)
    assert out.useful_s == pytest.approx(out.work_s)
    assert out.ideal_s <= out.end_s * (1 + 1e-9)
    assert out.end_s <= 4 / 3 * out.ideal_s * (1 + 1e-9)


def test_the_script_ends_with_0_where_its_invariants_hold(script, capsys):
    assert script.main(["--cells", "40", "--nodes", "4", "--node-mtbf", "1h"]) == 0
    assert "done twice: 0" in capsys.readouterr().out
