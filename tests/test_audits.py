"""Audits of a measurement: each check on an honest subject and on one that cheats, and what a sweep
and its reports make of them."""

from __future__ import annotations

import gc
import io
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from precision_explorer.decision import Question, decisions
from precision_explorer.formats import Support
from precision_explorer.measure import NullPhases
from precision_explorer.measure.paired import Quads, Repeating, in_quads, of_one_query
from precision_explorer.models.adapters import make_adapter
from precision_explorer.models.generation import Generation
from precision_explorer.models.item import Item
from precision_explorer.models.loading import load, prepare
from precision_explorer.models.seq2seq import Seq2Seq
from precision_explorer.plan.spec import make_spec
from precision_explorer.records import (
    Audit,
    AuditCheck,
    Bandwidth,
    Launch,
    MatmulRate,
    Roof,
    read_record,
)
from precision_explorer.report.audits import badge
from precision_explorer.report.csv_ import to_csv
from precision_explorer.report.html import to_html
from precision_explorer.report.markdown import to_markdown
from precision_explorer.report.terminal import print_table
from precision_explorer.runner import sweep
from precision_explorer.runner.audit_answers import Pair, Texts, is_same, judge_answers
from precision_explorer.runner.audit_model import experts_of, query_work, reread, scored_again
from precision_explorer.runner.audit_rules import (
    RequestWork,
    Timed,
    check,
    judge_roofline,
    judge_same,
    none_judged,
)
from precision_explorer.runner.auditing import Auditor, AuditSubject, audit
from precision_explorer.runner.audits import with_audit
from precision_explorer.runner.local import Executor
from precision_explorer.runner.manager import Event, WorkerGone
from precision_explorer.runner.offered import Load
from precision_explorer.runner.requests import task_request
from precision_explorer.runner.sweep import prepare_sweep, run_folder, run_sweep
from precision_explorer.table import COLUMNS, Table, build
from precision_explorer.table.limits import Limits
from tests.test_models_causal_lm import BOTH, CORPUS, llama, tokenizer
from tests.test_models_generation import answer, bart, card, examples, sequence_card
from tests.test_table import classified, make_run, ok, skipped

MS = 1e-3
RULES = {"min_seconds": 1.0, "warmup_seconds": 0.01, "warmup_requests": 1}
ROOF = Roof(
    threads=1,
    matmul=[MatmulRate(type="float32", kernel="torch", flops_per_s=1e12)],
    read=Bandwidth(bytes_per_s=1e10, working_set_bytes=1 << 27, how="sum"),
    cache=Bandwidth(bytes_per_s=1e11, working_set_bytes=1 << 20, how="sum"),
    copied=None,
    launch=Launch(operator_s=1e-6, matmul_s=1e-6),
    last_level_cache_bytes=1 << 20,
)


@pytest.fixture(scope="module", autouse=True)
def imports_set_aside():
    """As in a worker: else each collection of garbage walks what torch made on import."""
    gc.freeze()
    yield
    gc.unfreeze()


# -- subjects ------------------------------------------------------------------------------------


class Honest:
    """A classifier of 64 examples of one length whose requests take 10 ms of a clock of its own,
    every fifth some more."""

    generates = False

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0

    def clock(self) -> float:
        return self.now

    def items(self) -> list[Item]:
        return [Item(i, tuple(range(12))) for i in range(64)]

    def cost(self, index: int) -> float:
        return 10 * MS

    def label(self, index: int) -> str:
        return "yes" if index % 3 else "no"

    def request(self, index: int, phases: Any) -> dict[str, Any]:
        self.calls += 1
        self.now += self.cost(index) * (1.001 if self.calls % 5 == 0 else 1)
        return {"answer": self.label(index)}

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        self.now += sum(map(self.cost, indices))
        return {"answers": [self.label(i) for i in indices]}


class Caching(Honest):
    """Gives the last answer again where the same is asked."""

    last: int | None = None

    def cost(self, index: int) -> float:
        again, self.last = index == self.last, index
        return 1 * MS if again else 10 * MS


class Foreseeing(Honest):
    """Prepares the example that comes next in the declared order."""

    last = -1

    def cost(self, index: int) -> float:
        next_one, self.last = index == self.last + 1, index
        return 8 * MS if next_one else 10 * MS


class Other(Honest):
    """Answers timed requests otherwise than the quality pass."""

    def request(self, index: int, phases: Any) -> dict[str, Any]:
        super().request(index, phases)
        return {"answer": "yes"}


class OtherInBatches(Honest):
    """The same of batches alone."""

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        return {"answers": ["yes" for _ in indices]}


def quality_row(index: int) -> dict[str, Any]:
    """The quality pass's row: sure of its answer."""
    label = Honest().label(index)
    logprobs = [-0.1, -2.35] if label == "no" else [-2.35, -0.1]
    return {"id": index, "prediction": label, "logprobs": logprobs}


def work(call: Any) -> tuple[dict[str, int], int, int]:
    """1 ms of arithmetic at the roof, and 0.1 ms of weights."""
    call()
    return {"float32": 10**9}, 1 << 20, 1


def subject(adapter: Honest, rules: dict[str, Any] | None = None, **more: Any) -> AuditSubject:
    request = {
        "card": {"kind": "text-classification"},
        "examples": [{"id": k} for k in range(64)],
        "workload": RULES | (rules or {}),
        "batch_sizes": [1, 8],
        "quality": [quality_row(k) for k in range(32)],
        "recorded_s": {},
        "roof": ROOF.model_dump(),
        "device_kind": "cuda",
    }
    given: dict[str, Any] = {"again": quality_row, "work": work, "clock": adapter.clock}
    return AuditSubject(
        adapter,  # type: ignore[arg-type]
        request,
        0,
        lambda: None,
        lambda *_: None,
        labels=("no", "yes"),
        **(given | more),
    )


def outcomes(found: Audit) -> dict[str, str]:
    return {check.name: check.outcome for check in found.checks}


PASSED = dict.fromkeys(("answers", "repeated-sample", "other-seed", "roofline", "a-a"), "passed")


def test_an_honest_measurement_passes_all_five():
    found = audit(subject(Honest()))
    assert outcomes(found) == PASSED
    checks = {check.name: check for check in found.checks}
    # 32 requests alone, and a batch of eight.
    assert checks["answers"].figures == {"answers": 40, "differing": 0}
    repeated = checks["repeated-sample"].figures
    assert repeated["ratio"] == pytest.approx(1, abs=1e-3)
    assert repeated["first_s"] == pytest.approx(10 * MS, rel=1e-3)
    assert (repeated["quads"], repeated["samples"]) == (8, 6)
    assert checks["roofline"].figures["compute_limit_s"] == pytest.approx(MS)
    assert all(check.threshold and check.source and not check.reason for check in found.checks)


@pytest.mark.parametrize(
    ("cheat", "failed", "says"),
    [
        (Caching, "repeated-sample", "10 % faster"),
        (Foreseeing, "other-seed", "more than 5 %"),
        (Other, "answers", "11 of 40 answers"),
        (OtherInBatches, "answers", "3 of 40 answers"),
    ],
)
def test_a_subject_that_cheats_fails_the_check_that_looks_for_it(cheat, failed, says):
    found = audit(subject(cheat()))
    assert outcomes(found) == PASSED | {failed: "failed"}
    assert says in next(check.reason for check in found.checks if check.outcome == "failed")


def test_a_clock_that_runs_slow_fails_the_roofline():
    adapter = Honest()
    found = audit(subject(adapter, clock=lambda: adapter.now / 100))
    assert outcomes(found)["roofline"] == "failed"


def test_latencies_of_the_timed_rounds_that_can_not_be_fail_the_roofline():
    made = subject(Honest())
    made.request["recorded_s"] = {0: [1e-4, 1e-4, 1e-4]}
    assert outcomes(audit(made)) == PASSED | {"roofline": "failed"}


def test_a_count_of_the_work_that_is_too_high_fails_the_roofline():
    too_many = {"float32": 10**11}
    found = audit(subject(Honest(), work=lambda call: (too_many, 1 << 20, 1)))
    assert outcomes(found) == PASSED | {"roofline": "failed"}
    reason = next(check.reason for check in found.checks if check.name == "roofline")
    assert "arithmetic alone take 100 ms" in reason


@pytest.mark.parametrize(
    ("weights", "caches", "passes", "limit_s"),
    [
        (1 << 20, 1, 1, (1 << 20) / 1e11),  # The cache holds them.
        (101 << 20, 1, 2, 2 * ((100 << 20) / 1e10 + (1 << 20) / 1e11)),
        (2 << 20, 2, 1, (2 << 20) / 2e11),  # Two caches do.
    ],
)
def test_weights_that_a_cache_holds_may_be_read_at_its_bandwidth(weights, caches, passes, limit_s):
    request = RequestWork({}, weights, passes, [limit_s * 0.96])
    found = judge_roofline(request, ROOF, caches)
    assert found.figures["memory_limit_s"] == pytest.approx(limit_s)
    assert found.outcome == "passed"  # Within the 5 % by which roofs differ from run to run.
    too_fast = RequestWork({}, weights, passes, [limit_s * 0.9])
    assert judge_roofline(too_fast, ROOF, caches).outcome == "failed"


def test_experts_that_a_pass_leaves_out_are_not_counted_as_read():
    sparse = {"num_hidden_layers": 2, "text_config": {"n_routed_experts": 8}}
    assert experts_of(sparse) == "text_config.n_routed_experts 8"
    assert experts_of({"moe_num_experts": 4}) == "moe_num_experts 4"
    assert experts_of({"num_local_experts": 64}) == "num_local_experts 64"
    for dense in (
        {"num_experts": 1},
        {"num_experts_per_tok": 2},
        {"num_experts": None},
        {"id2label": {0: "no"}},
    ):
        assert experts_of(dense) is None
    # By all the weights the query would be too fast.
    too_many = {"work": lambda call: ({"float32": 10}, 10**12, 1)}
    assert Auditor(subject(Honest(), **too_many)).roofline().outcome == "failed"
    found = Auditor(subject(Honest(), **too_many, experts="num_experts 8")).roofline()
    assert found.outcome == "not-judged"
    assert "num_experts 8" in found.reason


def test_a_roof_that_is_not_known_judges_nothing():
    request = RequestWork({"float8_e4m3fn": 10**12}, 1 << 20, 1, [1e-9])
    unknown = ROOF.model_copy(update={"last_level_cache_bytes": None})
    assert judge_roofline(request, unknown).outcome == "not-judged"
    assert judge_roofline(request, None).outcome == "not-judged"


# -- the timed pair ------------------------------------------------------------------------------


def pair(second_s: float, noise: float = 0.0, others: float | None = None) -> Timed:
    """10 ms against `second_s`, each with a spread from quad to quad."""
    moved = [1 + noise * math.sin(7 * k) for k in range(8)]
    first = [[10 * MS, 10 * MS] for _ in moved]
    return Timed(Quads(first, [[second_s * m] * 2 for m in moved]), 15.0, others)


def test_a_format_that_comes_out_as_two_fails_the_a_a_pair():
    assert judge_same(pair(10 * MS, 0.01)).outcome == "passed"
    assert judge_same(pair(11 * MS, 0.01)).outcome == "failed"
    # Sure, and too small to matter.
    assert judge_same(pair(10.1 * MS, 0.0001)).outcome == "passed"
    wide = judge_same(pair(10 * MS, 0.5))
    assert wide.outcome == "not-judged"
    assert "too wide" in wide.reason


def test_an_honest_pair_fails_once_in_a_thousand_and_not_in_twenty():
    """Noise of 4 % from quad to quad, whose median ratio is often more than 2 % off."""
    rng, counts = random.Random(3), Counter[str]()
    for _ in range(2000):
        sides = [[[10 * MS * math.exp(rng.gauss(0, 0.04))] for _ in range(8)] for _ in range(2)]
        counts[judge_same(Timed(Quads(*sides), 15.0)).outcome] += 1
    assert counts["failed"] <= 8
    assert counts["not-judged"] > 40
    assert counts["passed"] > 1000


def test_figures_that_are_no_numbers_are_left_out():
    found = check("a-a", "passed", {"ratio": math.nan, "ratio_high": math.inf, "first_s": 1.0})
    assert found.figures == {"first_s": 1.0}


@pytest.mark.parametrize("size", [1, 5])
def test_what_is_timed_of_a_repeated_query_follows_its_like(size):
    now, served, timed = 0.0, [], {}

    def one(query: int) -> None:
        nonlocal now
        served.append(query)
        now += MS

    again = Repeating(one, 6)

    def told(number: int) -> None:
        before = len(again.which)
        again(number)
        if len(again.which) > before:
            timed[number] = served[-2:]

    in_quads(one, told, budget_s=(4 * size + 3) * 8.5 * MS, most_s=15.0, clock=lambda: now)
    assert set(again.which) == set(range(2 * size * 8))
    # All but the one that warms up.
    assert all(pair == [again.which[k]] * 2 for k, pair in timed.items() if k)
    assert {again.which[k] for k in range(2 * size * 4)} == set(range(6))


def test_seconds_are_made_those_of_one_query():
    first = [[5 * MS, 20 * MS], [5 * MS, 20 * MS]]
    second = [[20 * MS, 20 * MS], [5 * MS, 5 * MS]]
    found = of_one_query(Quads(first, second), [0, 1, 0, 1], [1, 1, 0, 0])
    assert found.ratio.value == pytest.approx(1)
    even = [s for quad in (*found.first, *found.second) for s in quad]
    assert even == pytest.approx([10 * MS] * 8)
    slower = Quads(first, [[2 * s for s in quad] for quad in second])
    assert of_one_query(slower, [0, 1, 0, 1], [1, 1, 0, 0]).ratio.value == pytest.approx(2)


def test_other_work_on_the_machine_leaves_a_pair_unjudged():
    found = judge_same(pair(11 * MS, 0.01, others=0.2))
    assert found.outcome == "not-judged"
    assert "20 % of the cores' time" in found.reason


class Unlike(Honest):
    """Requests whose work their lengths don't tell: a quarter is quick."""

    def cost(self, index: int) -> float:
        return (5 if index % 64 < 16 else 20) * MS


class UnlikeCaching(Caching):
    """The same, which gives the last answer again in a tenth of the time."""

    def cost(self, index: int) -> float:
        return super().cost(index) * (1 if index < 16 else 4)


def test_work_that_lengths_do_not_tell_passes_and_a_cache_of_it_fails():
    rules = {"min_seconds": 3.0}
    honest, cheat = (audit(subject(made(), rules)).checks[1] for made in (Unlike, UnlikeCaching))
    assert (honest.name, honest.outcome) == ("repeated-sample", "passed"), honest
    assert honest.figures["ratio"] == pytest.approx(1, abs=0.01)
    assert cheat.outcome == "failed"
    assert cheat.figures["ratio"] == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("size", [4, 48])
def test_batches_that_are_repeated_have_no_sample_in_common(size):
    class CachingBatches(Honest):
        """Keeps the answers of the last batch."""

        last: frozenset[int] = frozenset()

        def offline(self, indices: Sequence[int]) -> dict[str, Any]:
            found = super().offline([i for i in indices if i not in self.last])
            self.now += MS
            self.last = frozenset(indices)
            return found

    rules = {"scenario": "multi-stream", "streams": size, "min_seconds": 10.0}
    honest, cheat = (Auditor(subject(m(), rules)).repeated() for m in (Honest, CachingBatches))
    assert (honest.outcome, cheat.outcome) == ("passed", "failed"), cheat


def test_a_single_example_has_no_other_to_be_told_from():
    made = subject(Honest())
    made.request["examples"] = [{"id": 0}]
    assert Auditor(made).repeated().outcome == "not-judged"


class Lengths(Honest):
    """Requests that take a millisecond per token and one more, the shortest first."""

    def items(self) -> list[Item]:
        return [Item(i, tuple(range(10 + i // 2))) for i in range(64)]

    def cost(self, index: int) -> float:
        return (11 + index // 2) * MS


def test_lengths_that_another_seed_draws_count_for_nothing():
    found = audit(subject(Lengths())).checks[2]
    assert (found.name, found.outcome) == ("other-seed", "passed")
    assert found.figures["unadjusted_ratio"] > 1.2
    assert found.figures["ratio"] == pytest.approx(1, abs=0.02)


def test_other_processes_are_watched_while_pairs_are_timed():
    watch = SimpleNamespace(begin=lambda: None, end=lambda: 0.3)
    found = outcomes(audit(subject(Honest(), others=lambda: watch)))
    assert found == PASSED | dict.fromkeys(("repeated-sample", "other-seed", "a-a"), "not-judged")


def test_a_threshold_within_the_interval_is_not_judged():
    class Unsteady(Caching):
        """A cache that gains about as much as is allowed, now more and now less."""

        def cost(self, index: int) -> float:
            again, self.last = index == self.last, index
            return (9.1 + 3 * math.sin(self.calls)) * MS if again else 10 * MS

    found = audit(subject(Unsteady())).checks[1]
    assert (found.name, found.outcome) == ("repeated-sample", "not-judged")
    assert "raise min_seconds" in found.reason


def test_blocks_are_served_in_turn_and_a_drift_cancels():
    now, served = 0.0, []

    def serve(side: str) -> Any:
        def one(number: int) -> None:
            nonlocal now
            served.append((side, number))
            now += 10 * MS * (1 + len(served) / 1000)

        return one

    found = in_quads(serve("a"), serve("b"), budget_s=0.1, most_s=15.0, clock=lambda: now)
    # After a change of sides the first is not timed.
    assert "".join(side for side, _ in served[3:17]) == "aabbbaabbaaabb"
    assert [n for side, n in served[3:17] if side == "b"] == [-1, 0, 1, 1, 2, 2, 3]
    assert found.ratio.value == pytest.approx(1, abs=1e-5)
    assert found.queries == 32


def test_requests_too_slow_for_the_budget_are_not_judged():
    found = outcomes(audit(subject(Honest(), {"budget_seconds": 0.5})))
    assert found == PASSED | dict.fromkeys(("repeated-sample", "other-seed", "a-a"), "not-judged")


def test_requests_that_get_slow_do_not_outlast_the_budget():
    now = 0.0

    def serve(number: int) -> None:
        nonlocal now
        now += 0.01 if now < 0.025 else 1.0

    found = in_quads(serve, serve, budget_s=0.5, most_s=5.0, clock=lambda: now)
    assert found == pytest.approx(1.0)
    assert now < 10


class Recorded(Honest):
    """Notes the sizes of its batches, once the answers were compared."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.sizes = 0, Counter[int]()

    def request(self, index: int, phases: Any) -> dict[str, Any]:
        self.alone += 1
        return super().request(index, phases)

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        self.sizes[len(indices)] += 1
        return super().offline(indices)


ARRIVE = {"scenario": "server", "arrivals": {"kind": "poisson", "rate_per_s": 1.0}}


@pytest.mark.parametrize(
    ("rules", "size"),
    [({"scenario": "multi-stream", "streams": 6}, 6), ({"scenario": "offline"}, 4)],
)
def test_queries_of_other_scenarios_are_audited_as_they_are_timed(rules, size):
    adapter = Recorded()
    made = subject(adapter, rules)
    # Sixteen did not fit, and eight were slower.
    made.request.update(batch_sizes=[1, 4, 8, 16], rates={1: 90.0, 4: 110.0, 8: 100.0})
    assert outcomes(audit(made)) == PASSED
    assert adapter.alone == 32  # Those whose answers are compared.
    assert set(adapter.sizes) == {size, 8}
    assert adapter.sizes[8] == 1
    assert adapter.sizes[size] > 60


def test_requests_that_come_by_their_own_clock_are_audited_one_by_one():
    adapter = Recorded()
    assert outcomes(audit(subject(adapter, ARRIVE))) == PASSED
    assert adapter.alone == 32
    assert set(adapter.sizes) == {1, 8}
    assert adapter.sizes[1] > 100


MIX = {"mix": [{"name": "own", "weight": 1}, {"name": "other", "task": "t", "weight": 1}]}
GROUPS = {"mix": [{"name": n, "group": n, "weight": w} for n, w in (("a", 1), ("b", 3))]}


def test_another_seed_of_a_mix_draws_of_its_tasks_and_groups():
    class Served(Honest):
        """Notes what is asked for one by one."""

        def __init__(self) -> None:
            super().__init__()
            self.seen = Counter[int]()

        def items(self) -> list[Item]:
            return [Item(i, tuple(range(12))) for i in range(80)]

        def offline(self, indices: Sequence[int]) -> dict[str, Any]:
            self.seen.update(indices if len(indices) == 1 else ())
            return super().offline(indices)

    adapter = Served()
    made = subject(adapter, ARRIVE | MIX)
    made.request["mixed"] = [{"id": f"t:{k}", "mixed_task": "t"} for k in range(16)]
    found = Auditor(made).other_seed()
    assert found.outcome == "passed", found
    others = sum(count for index, count in adapter.seen.items() if index >= 64)
    assert 0.3 < others / adapter.seen.total() < 0.7

    adapter = Served()
    made = subject(adapter, ARRIVE | GROUPS)
    made.request["examples"] = [{"id": k, "group": "a" if k < 32 else "b"} for k in range(64)]
    assert Auditor(made).other_seed().outcome == "passed"
    first = sum(count for index, count in adapter.seen.items() if index < 32)
    assert 0.1 < first / adapter.seen.total() < 0.4


def test_a_trace_keeps_its_lengths_under_another_seed(tmp_path):
    path = tmp_path / "trace.csv"
    rows = [f"{k / 10},{10 + k % 3},{4 + k % 2}" for k in range(90)]
    path.write_text("time_s,input_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    adapter = Generating()
    arrivals = {"arrivals": {"kind": "trace", "path": str(path), "rate_per_s": 1.0}}
    Auditor(subject(adapter, ARRIVE | arrivals | {"duration_seconds": 60})).other_seed()
    asked = {(one["input_tokens"][0], one["output_tokens"][0]) for one in adapter.asked if one}
    assert asked == {(10 + k % 3, 4 + k % 2) for k in range(6)}


# -- generated answers ---------------------------------------------------------------------------


class Generating(Honest):
    """Gives texts, of batches only where it is asked for them afterwards."""

    generates = True
    output_tokens = 3

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, list[int]]] = []

    def text(self, index: int) -> str:
        return f"it is {index}"

    def request(self, index: int, phases: Any) -> dict[str, Any]:
        return super().request(index, phases) | {"answer": self.text(index), "output_tokens": 3}

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        super().offline(indices)
        self.made = [{"answer": self.text(i)} for i in indices]
        return {}

    def serve_batch(self, indices: Sequence[int], **lengths: list[int]) -> list[dict[str, Any]]:
        self.asked.append(lengths)
        self.offline(indices)
        row = {"first_token_s": 1.0, "tpot_s": 1.0, "output_tokens": 3}
        return [row for _ in indices]

    def batch_answers(self) -> list[dict[str, Any]]:
        return self.made


class OtherInOffline(Generating):
    """Gives batches of the offline loop other texts."""

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        super().offline(indices)
        self.made = [{"answer": "it may be"} for i in indices]
        return {}


class OtherServed(Generating):
    """Gives batches that are served at once other texts."""

    def serve_batch(self, indices: Sequence[int], **lengths: list[int]) -> list[dict[str, Any]]:
        found = super().serve_batch(indices, **lengths)
        self.made = [{"answer": "it may be"} for i in indices]
        return found


class Silent(Generating):
    """Ends each answer at once."""

    def request(self, index: int, phases: Any) -> dict[str, Any]:
        return super().request(index, phases) | {"answer": "", "output_tokens": 0}


class Forgetful(Generating):
    """Keeps no answers of batches."""

    batch_answers = None  # type: ignore[assignment]


STREAMS = {"scenario": "multi-stream", "streams": 4}
STATIC = ARRIVE | {"batching": "static", "max_batch": 4}


def generated(adapter: Generating, rules: dict[str, Any] | None = None) -> AuditCheck:
    made = subject(adapter, rules)
    rows = [{"id": k, "prediction": "", "output": f"it is {k}"} for k in range(32)]
    made.request.update(card={"kind": "generation"}, quality=rows)
    return Auditor(replace(made, again=rows.__getitem__)).answers()


@pytest.mark.parametrize(
    ("make", "rules", "outcome", "count"),
    [
        (Generating, None, "passed", 40),
        (Generating, STREAMS, "passed", 44),
        (Generating, STATIC, "passed", 44),
        (OtherInOffline, None, "failed", 40),
        (OtherServed, STREAMS, "failed", 44),
        (OtherServed, STATIC, "failed", 44),
        (Silent, None, "failed", 40),
        (Forgetful, None, "not-judged", 32),
        (Forgetful, STATIC, "not-judged", 32),
    ],
)
def test_generated_answers_of_batches_are_looked_at_as_the_scenario_serves_them(
    make, rules, outcome, count
):
    found = generated(make(), rules)
    assert (found.outcome, found.figures["answers"]) == (outcome, count), found
    if make is Forgetful:
        assert found.reason == "batched answers are not looked at"


def test_batches_without_code_of_their_own_are_compared_as_offline_ones():
    class Plain(OtherInOffline):
        serve_batch = None  # type: ignore[assignment]

    made = subject(Plain(), STREAMS)
    rows = [{"id": k, "prediction": "", "output": f"it is {k}"} for k in range(32)]
    made.request.update(card={"kind": "generation"}, quality=rows, batch_sizes=[1])
    found = Auditor(replace(made, again=rows.__getitem__)).answers()
    assert (found.outcome, found.figures["answers"]) == ("failed", 36)


def test_lengths_that_were_drawn_are_asked_for():
    adapter = Generating()
    lengths = {"output": {"kind": "fixed", "tokens": 7}}
    audit(subject(adapter, STATIC | {"lengths": lengths}))
    asked = [one for one in adapter.asked if "output_tokens" in one]
    assert len(asked) > 50
    assert all(one == {"output_tokens": [7]} for one in asked)


@pytest.mark.parametrize("rules", [None, STREAMS, STATIC, ARRIVE | {"max_batch": 4}])
def test_answers_of_a_real_model_s_batches_are_those_of_its_requests(rules):
    """Padded, as a static batch, and in continuous batches."""
    adapter = Generation(llama(), tokenizer(**BOTH), "cpu", examples(), card(), 4)
    with torch.inference_mode():
        _, _, rows = answer(adapter)
        adapter.clock = time.perf_counter
        # However slow the machine is.
        made = subject(adapter, {"min_seconds": 600.0} | (rules or {}))
        made.request.update(
            card={"kind": "generation"}, quality=rows, examples=examples(), batch_sizes=[1, 4]
        )
        found = Auditor(made).answers()
    assert found.outcome == "passed", found
    count = len(examples())
    assert found.figures["answers"] == count + (4 if rules is None else 8)


def test_of_a_server_nothing_is_said_that_needs_its_model():
    class Served(Other):
        def send(self) -> None:
            """Only servers have it."""

    found = audit(subject(Served(), again=None, work=None))
    assert outcomes(found) == PASSED | dict.fromkeys(("answers", "roofline"), "not-judged")


def test_a_check_that_raises_takes_nothing_from_the_others():
    def raising(call: Any) -> Any:
        raise RuntimeError("no hooks here")

    found = audit(subject(Honest(), work=raising))
    assert outcomes(found) == PASSED | {"roofline": "not-judged"}
    assert found.checks[3].reason == "RuntimeError: no hooks here"


# -- answers within the noise --------------------------------------------------------------------


def row(logprobs: list[float]) -> dict[str, Any]:
    best = max(range(2), key=logprobs.__getitem__)
    return {"id": "x", "prediction": "ny"[best], "logprobs": logprobs}


@pytest.mark.parametrize(
    ("quality", "alone", "outcome"),
    [
        ([-0.700, -0.686], [-0.692, -0.694], "passed"),  # Alone the pass itself turns round.
        ([-0.700, -0.686], [-0.692, -0.691], "passed"),  # A tie, within what scores move by.
        ([-0.700, -0.686], [-0.701, -0.685], "failed"),  # They move by less.
        ([-2.0, -0.145], [-0.9, -0.52], "failed"),  # Scores that move by anything excuse nothing.
    ],
)
def test_a_difference_is_excused_by_the_format_s_own_noise_alone(quality, alone, outcome):
    pairs = [Pair(0, row(quality), "n")]
    found = judge_answers("text-classification", pairs, lambda _: row(alone), ("n", "y"))
    assert found.outcome == outcome
    assert found.figures["differing"] == 1


def test_answers_of_every_kind_are_compared_as_requests_give_them():
    texts = Texts(ends=["</s>"], special=["<pad>"], stop=["\n\n"])
    for kind, made, served in (
        ("multiple-choice", {"prediction": 1}, "1"),
        ("token-classification", {"prediction": ["O", "B-PER"]}, "O B-PER"),
        ("similarity", {"prediction": 0.12345678}, "0.123457"),
        ("generation", {"output": "forty two\n\n"}, "forty two</s> and more"),
        ("generation", {"output": "a long answer"}, "a long"),
        ("summarization", {"output": "short"}, "<pad>short and forced on"),
    ):
        assert is_same(kind, made, served, texts), kind
    for kind, made, served in (
        ("multiple-choice", {"prediction": 1}, "0"),
        ("token-classification", {"prediction": ["O", "B-PER"]}, "O O"),
        ("similarity", {"prediction": 0.1234}, "0.123457"),
        ("generation", {"output": "a long answer"}, "a short"),
    ):
        assert not is_same(kind, made, served, texts), kind


@pytest.mark.parametrize(
    ("output", "served", "ended", "same"),
    [
        ("a long answer", "", False, None),
        ("", "a long answer", False, None),
        ("a long answer", "", True, False),  # The request came to an end of its own, with nothing.
        ("a long answer", "</s>", False, False),
        ("a long answer", "a long</s>", False, False),
        ("a long answer", "a long\n\nand more", False, False),
        ("a long answer", "a long", True, False),
        ("a long answer", "a long answer</s>", False, True),
        ("", "</s>", False, True),
        ("a long", "a long answer", True, True),  # More tokens were asked for.
    ],
)
def test_an_answer_that_ended_by_itself_must_be_the_whole_one(output, served, ended, same):
    texts = Texts(ends=["</s>"], stop=["\n\n"])
    row = {"id": "x", "prediction": output, "output": output}
    assert is_same("generation", row, served, texts, ended) is same
    pairs = [Pair(0, row, served, ended)]
    found = judge_answers("generation", pairs, lambda _: row, texts=texts)
    assert found.outcome == {None: "not-judged", False: "failed", True: "passed"}[same]


class Task(SimpleNamespace):
    """What stands for a session: a model, and adapters of a request on it."""

    compiled = None

    def _adapter(self, request: dict[str, Any]) -> Any:
        return make_adapter(self.model, self.tokenizer, "cpu", request)


@pytest.fixture(scope="module")
def language() -> tuple[Task, dict[str, Any]]:
    """A tiny language model with three documents to go on from."""
    request = {
        "card": {"kind": "language-modeling", "max_length": 32, "metrics": ["token_perplexity"]},
        "examples": [{"id": k, "text": text} for k, text in enumerate(CORPUS)],
        "workload": {"prompt_tokens": 12, "output_tokens": 6},
    }
    load = {"format": "fp32", "recipe": {"compute_dtype": "float32"}, "device": "cpu"}
    return Task(model=llama(), tokenizer=tokenizer(**BOTH), request=load), request


def test_tokens_through_the_cache_are_those_of_passes_without_it(language):
    task, request = language
    adapter = task._adapter(request)
    with torch.inference_mode():
        answer = adapter.request(0, NullPhases())["answer"]
        honest = reread(task, adapter, 0, answer)
        other = reread(task, adapter, 0, "something else")
        tokens = adapter.served_tokens
        adapter.served_tokens = [*tokens[:2], (tokens[2] + 1) % 40, *tokens[3:]]
        wrong = reread(task, adapter, 0, adapter.tokenizer.decode(adapter.served_tokens))
    assert honest.is_near
    assert 0 <= honest.noise_nats < 1e-3
    assert not other.is_near
    assert wrong.whole
    assert not wrong.is_near


@pytest.mark.parametrize("rules", [STREAMS | {"streams": 3}, STATIC, ARRIVE | {"max_batch": 4}])
def test_tokens_of_batches_are_reread_too(language, rules, monkeypatch):
    task, request = language
    adapter = task._adapter(request)
    adapter.clock = time.perf_counter
    given = {"reread": lambda index, text: reread(task, adapter, index, text)}
    # However slow the machine is.
    made = subject(adapter, {"min_seconds": 600.0} | rules, **given)
    made.request.update(request, batch_sizes=[1, 2], workload=made.request["workload"])
    with torch.inference_mode():
        found = Auditor(made).answers()
        assert (found.outcome, found.figures["answers"]) == ("passed", 3 + 2 + 3), found
        told = Auditor._told

        def wrong(self: Auditor, *given: Any) -> Any:
            rows = told(self, *given)
            tokens = [[(t + 1) % 40 for t in row["tokens"]] for row in rows]
            return [{"answer": adapter.tokenizer.decode(t), "tokens": t} for t in tokens]

        monkeypatch.setattr(Auditor, "_told", wrong)
        assert Auditor(made).answers().outcome == "failed"


def test_an_encoder_decoder_s_batches_tell_what_its_requests_do():
    adapter = Seq2Seq(bart(), tokenizer(**BOTH), "cpu", examples(), sequence_card(), 4)
    with torch.inference_mode():
        alone = [adapter.request(k, NullPhases())["answer"] for k in range(3)]
        for serve in (adapter.offline, adapter.serve_batch):
            adapter.batch_tokens = ()
            serve([0, 1, 2])
            assert [row["answer"] for row in adapter.batch_answers()] == alone


def test_what_a_filter_made_of_an_answer_is_no_answer():
    made = subject(Generating())
    rows = [{"id": k, "prediction": f"it is {k}"} for k in range(32)]
    made.request.update(card={"kind": "lm-eval"}, quality=rows)
    assert Auditor(made).answers().outcome == "passed"
    made.request["quality"] = [{"id": k, "prediction": str(k)} for k in range(32)]
    found = Auditor(made).answers()
    assert found.outcome == "not-judged"
    assert "filter" in found.reason


def test_the_work_of_a_request_is_counted_from_what_its_layers_are_given(language):
    task, request = language
    adapter = task._adapter(request)
    with torch.inference_mode():
        call = lambda: adapter.request(0, NullPhases())  # noqa: E731
        flops, weight_bytes, passes = query_work(task, adapter, request, call, True)
        assert query_work(task, adapter, request, call, False)[2] == 1
    assert passes == 6  # The prompt, and each token but the last.
    rows = len(adapter.prompt_ids(0)) + 5
    linear = [m for m in task.model.modules() if isinstance(m, torch.nn.Linear)]
    inner = sum(m.weight.numel() for m in linear if m is not task.model.lm_head)
    head = task.model.lm_head.weight.numel()
    # Of the prompt only the last token's logits are made.
    assert flops == {"float32": 2 * (rows * inner + 6 * head)}
    stored = sum(p.numel() * 4 for p in task.model.parameters())
    assert 0 < weight_bytes <= stored


# -- a sweep -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(tmp_path_factory, quick_workload) -> SimpleNamespace:
    """The demo model in two formats: interrupted when the second is to be audited, then run
    again."""

    def answer(facts: Any, formats: list[str], *rest: Any) -> dict[str, Support]:
        dtypes = {"fp32": "float32", "bf16": "bfloat16"}
        recipe = {"kernel": "torch", "library": "torch"}
        return {
            name: Support(name, "native", "a unit", recipe | {"compute_dtype": dtypes[name]})
            for name in formats
        }

    given = {
        "formats": ("fp32", "bf16"), "device": "cpu", "threads": 1, "limit": 24,
        "workload": str(quick_workload), "out": str(tmp_path_factory.mktemp("audits") / "run"),
        "audit": True,
    }  # fmt: skip

    def interrupt(event: Event) -> None:
        if event.name == "audit" and event.data["format"] == "bf16":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "probe", answer)
        plain = prepare_sweep(make_spec(given | {"audit": False}), lambda event: None)
        found = prepare_sweep(make_spec(given), lambda event: None)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(found, interrupt)
        cells = {planned.cell.format: planned.cell_id for planned in found.plan.cells}
        before = {name: run_folder(found).read_record(cell) for name, cell in cells.items()}
        events: list[Event] = []
        folder, tally = run_sweep(prepare_sweep(make_spec(given), events.append), events.append)
    return SimpleNamespace(
        folder=folder,
        cells=cells,
        before=before,
        plain=plain,
        prepared=found,
        tally=tally,
        events=events,
        records={name: folder.read_record(cell) for name, cell in cells.items()},
    )


def test_audits_are_no_part_of_what_a_cell_is(audited):
    def ids(prepared: Any) -> list[tuple[str, str]]:
        return [(c.cell_id, c.cell.method_id) for c in prepared.plan.cells]

    assert ids(audited.plain) == ids(audited.prepared)
    assert "audit" not in sweep.sweep_document(audited.plain, "run")["spec"]


def test_an_interrupted_sweep_goes_on_with_the_audits_that_are_missing(audited):
    before, after = audited.before, audited.records
    assert before["fp32"].measurements.audit is not None
    assert before["bf16"].status == "ok"
    assert before["bf16"].measurements.audit is None
    # What was measured stays, and only the missing audit was made.
    told = [e.data["format"] for e in audited.events if e.name == "audit"]
    assert told == ["bf16"]
    assert not [e for e in audited.events if e.name == "round"]
    assert (audited.tally.ran, audited.tally.reused, audited.tally.failed) == (0, 2, 0)
    assert after["fp32"].measurements.audit == before["fp32"].measurements.audit
    for name, record in after.items():
        assert record.measurements.latency == before[name].measurements.latency
        assert record.measurements.quality == before[name].measurements.quality


def test_the_demo_model_s_checks_rest_on_figures_of_its_own(audited):
    for record in audited.records.values():
        found = record.measurements.audit
        checks = {check.name: check for check in found.checks}
        assert checks["answers"].outcome == "passed", checks["answers"]
        assert checks["answers"].figures["answers"] >= 12
        # The roof of tests is one that nothing reaches.
        assert checks["roofline"].outcome == "passed", checks["roofline"]
        assert checks["roofline"].figures["flops"] > 1e5
        assert checks["roofline"].figures["query_s"] > 0
        for name in ("other-seed", "a-a"):
            assert checks[name].figures["queries"] >= 16
            assert checks[name].figures["first_s"] > 0
        assert found.seconds > 0
    stored = read_record(audited.folder.record_path(audited.cells["bf16"]))
    assert stored.measurements.audit == audited.records["bf16"].measurements.audit


def test_a_sweep_without_audits_keeps_those_that_are_there(audited):
    run_sweep(audited.plain, lambda event: None)
    kept = {name: audited.folder.read_record(cell) for name, cell in audited.cells.items()}
    assert kept == audited.records


def test_the_worker_is_told_of_the_sizes_that_fitted_and_of_the_load(audited):
    folder, planned = audited.folder, audited.prepared.plan.cells[0]
    found = audited.prepared
    load = Load("trace.csv", [{"id": "t:0", "mixed_task": "t"}])
    executor = Executor(
        found.spec, found.plan, found.facts, found.environment, folder, lambda event: None,
        load=load,
    )  # fmt: skip
    record = folder.read_record(planned.cell_id)
    throughput = record.measurements.throughput
    asked = executor.audits.request(planned)
    rates = {int(n): rate.requests_per_s for n, rate in throughput.by_batch_size.items()}
    assert asked["rates"] == rates
    assert asked["mixed"] == load.mixed
    full = next(iter(throughput.by_batch_size))
    throughput.by_batch_size[full].requests_per_s = None
    try:
        folder.write_record(record)
        assert int(full) not in executor.audits.request(planned)["rates"]
    finally:
        folder.write_record(audited.records[planned.cell.format])


def test_the_row_of_the_sweep_has_its_audit(audited):
    table = build([audited.folder.path])
    assert all(r["audit"] for r in table.rows)
    assert badge(table).text.startswith("Audited: ")
    assert len(table.audits) == 2


def test_an_audit_that_fails_costs_itself_alone_and_is_not_tried_for_ever(audited):
    folder, cell_id = audited.folder, audited.cells["bf16"]
    planned = next(c for c in audited.prepared.plan.cells if c.cell_id == cell_id)
    notes: list[Event] = []
    found = audited.prepared
    executor = Executor(
        found.spec, found.plan, found.facts, found.environment, folder, notes.append
    )
    audits = executor.audits
    assert not audits.lacks(planned)
    folder.part_path(cell_id, "audit").with_suffix(".json").unlink()
    assert audits.lacks(planned)

    def lost(*_: Any) -> None:
        raise WorkerGone("failed", "WorkerCrashed", "the worker ended")

    broken = SimpleNamespace(is_loaded=False, worker=None, compiled=set())
    replace(audits, load=lost).make(broken, planned)
    record = folder.read_record(cell_id)
    assert record.status == "ok"
    assert set(outcomes(record.measurements.audit).values()) == {"not-judged"}
    assert any("no audit: the worker ended" in e.data.get("text", "") for e in notes)
    # Memory may be short once: two later runs try again, this one does not.
    assert not audits.lacks(planned)
    for _ in range(2):
        later = replace(audits, load=lost, tried=set())
        assert later.lacks(planned)
        later.make(broken, planned)
        assert not later.lacks(planned)
    assert not replace(audits, tried=set()).lacks(planned)


def test_an_example_is_scored_again_as_the_quality_pass_scored_it(audited):
    planned = audited.prepared.plan.cells[0]
    kind = planned.task.card.kind
    task = Task(
        model=load(planned.ref.path, kind, torch.float32, "cpu", False),
        tokenizer=prepare(planned.ref.path, kind, False),
    )
    with torch.inference_mode():
        again = scored_again(task, task_request(planned, ""), 5)
    rows = audited.folder.read_samples(audited.cells["fp32"], "example")
    assert again["id"] == rows["id"][5]
    assert again["logprobs"] == pytest.approx(rows["logprobs"][5], abs=1e-4)


# -- reports -------------------------------------------------------------------------------------


def checked(**changed: str) -> Audit:
    """An audit whose checks passed but for those `changed` (``_`` for ``-``)."""
    found = none_judged("told so")
    for one in found.checks:
        one.outcome = changed.get(one.name.replace("-", "_"), "passed")  # type: ignore[assignment]
        one.figures = {"ratio": 1.01, "ratio_low": 0.99, "ratio_high": 1.03}
    return found


def table_of(path: Path, **audits: Audit | None) -> Table:
    cells = []
    for name, found in audits.items():
        record, rows = ok(name, classified(set()))
        cells.append((record if found is None else with_audit(record, found), rows))
    return build([make_run(path, [*cells, skipped("tf32")])])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Table:
    """One row that passed, one that failed, one judged in part, one never audited."""
    return table_of(
        tmp_path_factory.mktemp("tables") / "run",
        fp32=checked(),
        bf16=checked(answers="failed", a_a="failed"),
        fp16=checked(roofline="not-judged", a_a="not-judged"),
        nf4=None,
    )


def terminal(table: Table) -> str:
    out = io.StringIO()
    print_table(table, Console(file=out, width=240, color_system=None))
    return " ".join(out.getvalue().split())


def test_the_last_column_says_what_the_audits_came_to(mixed):
    assert COLUMNS[-1] == "audit"
    found = {r["format"]: r["audit"] for r in mixed.rows}
    assert found == {
        "fp32": "passed 5/5",
        "bf16": "failed: answers, a-a",
        "fp16": "3 of 5 judged",
        "nf4": None,
        "tf32": None,
    }
    lines = to_csv(mixed).splitlines()
    assert lines[0].endswith(",audit")
    assert lines[1].endswith(",passed 5/5")


def test_each_failed_audit_is_a_caution_with_advice(mixed):
    found = {r["format"]: set((r["cautions"] or "").split(";")) for r in mixed.rows}
    assert {"audit-answers", "audit-a-a"} <= found["bf16"]
    assert not {c for c in found["fp32"] | found["fp16"] if c.startswith("audit")}
    assert "measure again" in mixed.context.cautions["audit-answers"]
    assert any("Audits of the measurement failed for bf16" in c for c in mixed.context.caveats)


def test_all_reports_show_the_audits_and_the_badge(mixed):
    text = "Audited: 1 of 4 rows passed, 1 failed (bf16), 1 judged in part, 1 not audited"
    assert badge(mixed).text == text
    assert badge(mixed).tone == "bad"
    page = to_html(mixed)
    for shown in (page, to_markdown(mixed), terminal(mixed)):
        assert text in shown
        assert "passed: 1.01 [0.990, 1.03]" in shown
        assert "not judged: told so" in shown
        assert "mlcommons/inference" in shown
    # Above all that was found.
    assert page.index(text) < page.index("what was found")


def test_a_run_without_audits_keeps_its_pages_but_for_the_badge(tmp_path):
    table = table_of(tmp_path / "run", fp32=None, bf16=None)
    assert badge(table).text == "Not audited: run the same sweep again with --audit"
    assert "Not audited: run the same sweep again with --audit" in to_html(table)
    for shown in (to_markdown(table), terminal(table)):
        assert "udit" not in shown.replace("run the same sweep again with --audit", "")


def test_an_audit_without_checks_has_passed_nothing(tmp_path):
    table = table_of(tmp_path / "run", fp32=Audit(checks=[]))
    assert table.rows[0]["audit"] == "0 of 0 judged"
    assert badge(table).tone != "good"


def test_all_rows_that_passed_make_a_good_badge(tmp_path):
    table = table_of(tmp_path / "run", fp32=checked(), bf16=checked())
    assert (badge(table).text, badge(table).tone) == ("Audited: 2 of 2 rows passed", "good")


def test_a_decision_names_rows_with_a_failed_audit_and_lets_them_compete(mixed):
    (found,) = decisions(mixed, Question("latency", Limits()))
    assert "bf16" in {option.format for option in found.options if option.state == "yes"}
    assert any("bf16 (failed: answers, a-a)" in line for line in found.uncovered)
