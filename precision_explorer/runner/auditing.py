"""The audits of a cell's measurement, made in its worker after all that is measured. No torch: what
only a model that is loaded here can tell comes with the `AuditSubject`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from precision_explorer.hardware.caches import last_level_cache_count
from precision_explorer.measure import NullPhases, OtherWork
from precision_explorer.measure.paired import (
    Quads,
    Repeating,
    Serve,
    in_quads,
    of_one_query,
    of_one_size,
)
from precision_explorer.records import CHECKS, Audit, AuditCheck, Roof
from precision_explorer.runner.audit_answers import (
    LOOKED_AT,
    Pair,
    Reread,
    Texts,
    judge_answers,
    judge_tokens,
)
from precision_explorer.runner.audit_rules import (
    RequestWork,
    Timed,
    judge_repeated,
    judge_roofline,
    judge_same,
    judge_seed,
    not_judged,
)
from precision_explorer.runner.closed_loop import one_query, one_request
from precision_explorer.runner.continuous import answered_together, choose_batching
from precision_explorer.runner.offered import told_of
from precision_explorer.tasks.harness import KIND as HARNESS
from precision_explorer.workload import TraceArrivals, Workload, plan_schedule

if TYPE_CHECKING:
    from precision_explorer.models.adapter import Adapter

Json = dict[str, Any]
Batch = Callable[[list[int]], list[Json] | None]
Side = tuple[Serve, Callable[[int], float]]
"""Serves a query by its number, and tells its tokens."""
# Shares of the workload's own rules: 1.5 s of its 3 s for a check, all of it for another seed,
# whose examples differ, and a quarter of its 60 s where requests are so slow that these are not
# enough.
_BUDGET = 0.5
_OF_SEED = 1.0
_MOST = 0.25
# Queries that are repeated: as many as the fewest quads have blocks for.
_FEW = 6
# Requests that are drawn for a seed.
_DRAWN = 512
# Larger batches of the loop are the same code on more rows.
_LARGEST_BATCH = 16
_LEAST_ANSWERS = 4
_TIMED = 5


@dataclass(frozen=True)
class AuditSubject:
    """What is audited: a task's `adapter` and the manager's `request`, with ``quality`` (rows of
    the quality pass), ``recorded_s`` (seconds of each example's requests in the timed rounds) and
    ``roof``. What a server can't be asked is None:

    `again(i)`: the row of example i, scored by itself by the quality pass's code; `reread(i,
    answer)`: a request's tokens against passes without a cache; `work(call)`: what a call holds,
    (operations by number type, bytes of weights, passes); `others`: watches other processes.
    """

    adapter: Adapter
    request: Json
    seed: int
    sync: Callable[[], None]
    progress: Callable[[str, int, int], None]
    again: Callable[[int], Json] | None = None
    reread: Callable[[int, str], Reread] | None = None
    work: Callable[[Callable[[], Any]], tuple[dict[str, int], int, int]] | None = None
    others: Callable[[], OtherWork] | None = None
    clock: Callable[[], float] = time.perf_counter
    labels: Sequence[str] = ()
    texts: Texts | None = None
    experts: str | None = None
    """What says that the model is a mixture of experts, of which a pass reads only some."""
    no_work: str = "of a server's device and model nothing is known"
    """Why there is no `work`, where there is none."""


def audit(subject: AuditSubject) -> Audit:
    """All checks in their order. One that raises is not judged, with the error as its reason: what
    was measured is not lost for it."""
    began = time.monotonic()
    auditor = Auditor(subject)
    made = (auditor.answers, auditor.repeated, auditor.other_seed, auditor.roofline, auditor.same)
    checks = []
    for done, (name, make) in enumerate(zip(CHECKS, made, strict=True)):
        subject.progress("audit", done, len(CHECKS))
        try:
            checks.append(make())
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            checks.append(not_judged(name, f"{type(error).__name__}: {first[:160]}"))
    subject.progress("audit", len(CHECKS), len(CHECKS))
    return Audit(checks=checks, seconds=time.monotonic() - began)


class Auditor:
    """The checks of one subject."""

    def __init__(self, subject: AuditSubject) -> None:
        self.subject, self.adapter = subject, subject.adapter
        self.request, self.examples = subject.request, subject.request["examples"]
        self.rules = Workload.model_validate(self.request["workload"])
        self._served_one = one_request(self.adapter)
        self._is_warm = False
        self._lengths: dict[int, int] = {}

    # -- the timed path ----------------------------------------------------------------------

    @property
    def budget_s(self) -> float:
        """Seconds of one check."""
        return _BUDGET * self.rules.min_seconds

    @property
    def most_s(self) -> float:
        """The most that a check may take where requests are slow."""
        return _MOST * self.rules.budget_seconds

    @property
    def _fitting(self) -> list[int]:
        """Batch sizes of offline throughput that were measured, the fastest first; those asked for
        where nothing says which were."""
        rates = self.request.get("rates") or {}
        return sorted(rates, key=rates.__getitem__, reverse=True) or self.request["batch_sizes"]

    @property
    def size(self) -> int:
        """Samples of one timed query; offline the batch of the best throughput."""
        if self.rules.scenario == "multi-stream":
            return self.rules.streams
        return self._fitting[0] if self.rules.scenario == "offline" else 1

    def serve(self, indices: list[int], **lengths: list[int]) -> Json:
        """One query as the timed part serves it; of requests that come by their own clock one by
        itself, as the first in an empty queue is, with the `lengths` that were drawn."""
        if self.rules.scenario == "multi-stream":
            return one_query(self.adapter, indices)
        if self.rules.scenario == "offline":
            return self.adapter.offline(indices)
        own = getattr(self.adapter, "serve_batch", None)
        is_here = not hasattr(self.adapter, "send")
        if self.rules.scenario == "server" and is_here:
            if own is None:
                return self.adapter.offline(indices)
            return own(indices, **lengths)[0]
        return self._served_one(indices[0])

    def _over(self, order: Sequence[int]) -> Serve:
        """Queries that run through `order` and begin again."""
        size, count = self.size, len(order)
        return lambda k: self.serve([int(order[(k * size + j) % count]) for j in range(size)])

    def _warm_up(self) -> None:
        """By the workload's rules, once: a cell that is audited later has a new process."""
        if self._is_warm:
            return
        serve, clock = self._over(range(len(self.examples))), self.subject.clock
        began, done = clock(), 0
        while done < self.rules.warmup_requests or clock() - began < self.rules.warmup_seconds:
            if clock() - began >= self.most_s:
                break
            serve(done)
            done += 1
        self._is_warm = True

    def _timed(self, first: Serve, second: Serve, share: float = _BUDGET) -> Timed:
        self._warm_up()
        watch = self.subject.others() if self.subject.others is not None else None
        if watch is not None:
            watch.begin()
        quads = in_quads(
            first,
            second,
            budget_s=share * self.rules.min_seconds,
            most_s=self.most_s,
            clock=self.subject.clock,
            sync=self.subject.sync,
        )
        return Timed(quads, self.most_s, None if watch is None else watch.end())

    # -- answers -----------------------------------------------------------------------------

    def answers(self) -> AuditCheck:
        """Answers of timed requests, alone and in the loop's batches, against the quality pass."""
        kind = self.request["card"]["kind"]
        if kind == "language-modeling":
            return self._tokens()
        rows = {row["id"]: row for row in self.request["quality"]}
        known = [(i, rows.get(e["id"])) for i, e in enumerate(self.examples)][:LOOKED_AT]
        scored = [(i, row) for i, row in known if row is not None and _has_answer(kind, row)]
        if not scored:
            return not_judged("answers", "no example was scored, so nothing is to be compared")
        pairs, began = [], time.perf_counter()
        for index, row in scored:
            pairs += self._pairs([(index, row)], [self.adapter.request(index, NullPhases())])
            if len(pairs) >= _LEAST_ANSWERS and time.perf_counter() - began > self.budget_s + 1:
                break
        is_whole = True
        for size, serve in self._batched():
            taken = scored[:size]
            made = serve([index for index, _ in taken])
            pairs += self._pairs(taken, made or [{}] * len(taken))
            is_whole = is_whole and (made is not None or not self.adapter.generates)
        if kind == HARNESS and any(str(p.row["prediction"]) != str(p.served) for p in pairs):
            reason = "the rows hold what the task's filter made of an answer, not its text"
            return not_judged("answers", reason)
        subject = self.subject
        found = judge_answers(kind, pairs, subject.again, subject.labels, subject.texts)
        return found if is_whole else _in_part(found)

    def _pairs(self, scored: Sequence[tuple[int, Json]], made: Sequence[Json]) -> list[Pair]:
        """Those of examples whose requests gave an answer."""
        return [
            Pair(index, row, one["answer"], self._has_ended(one))
            for (index, row), one in zip(scored, made, strict=True)
            if one.get("answer") is not None
        ]

    def _has_ended(self, made: Json) -> bool:
        """Whether a generated answer has fewer tokens than were asked for."""
        count, asked = made.get("output_tokens"), getattr(self.adapter, "output_tokens", None)
        if count is None or asked is None:
            return False
        # A server's window may leave no room for as many.
        window = getattr(self.adapter, "window", None)
        return bool(count < (asked if window is None else min(asked, window - 1)))

    def _batched(self) -> list[tuple[int, Batch]]:
        """(samples, what serves them and tells their answers) of each way in which the cell's
        batches are served; that tells None where answers are not kept."""
        adapter, rules = self.adapter, self.rules
        own = getattr(adapter, "serve_batch", None)
        size = rules.streams if rules.scenario == "multi-stream" else rules.max_batch
        is_batched = rules.scenario in ("multi-stream", "server") and size > 1
        sizes = sorted(size for size in self._fitting if size > 1)
        if is_batched and own is None:
            sizes = sizes or [size]  # The same code as offline.
        ways: list[tuple[int, Batch]] = []
        if sizes:
            most = max((n for n in sizes if n <= _LARGEST_BATCH), default=sizes[0])
            ways.append((most, lambda indices: self._told(adapter.offline(indices))))
        if own is None or not is_batched:
            return ways
        size = min(size, _LARGEST_BATCH)
        queues = rules.scenario == "server" and not hasattr(adapter, "send")
        if queues and choose_batching(adapter, rules).is_continuous:
            return [*ways, (size, self._continuously)]
        return [*ways, (size, lambda indices: self._told({}, own(indices)))]

    def _told(self, made: Json, *_: Any) -> list[Json] | None:
        """The answers of the batch that was served just now, which gave `made`."""
        if made.get("answers") is not None:
            # Retrieval gives lists of documents.
            texts = [" ".join(a) if isinstance(a, list) else a for a in made["answers"]]
            return [{"answer": text} for text in texts]
        own = getattr(self.adapter, "batch_answers", None)
        return None if own is None else own()

    def _continuously(self, indices: list[int]) -> list[Json]:
        tokens, decode = answered_together(self.adapter, indices), self.adapter.tokenizer.decode  # type: ignore[attr-defined]
        return [{"answer": decode(made), "tokens": made} for made in tokens]

    def _tokens(self) -> AuditCheck:
        reread = self.subject.reread
        if reread is None:
            reason = "the quality pass scores documents, which no timed request does"
            return not_judged("answers", reason)
        found: list[Reread] = []
        began = time.perf_counter()
        for index in range(min(len(self.examples), LOOKED_AT)):
            answer = self.adapter.request(index, NullPhases())["answer"]
            found.append(reread(index, answer))
            if time.perf_counter() - began > self.budget_s + 1 and len(found) >= _LEAST_ANSWERS:
                break
        is_whole = True
        for size, serve in self._batched():
            indices = list(range(min(size, len(self.examples))))
            rows = serve(indices)
            is_whole = is_whole and rows is not None
            for index, row in zip(indices[:_LEAST_ANSWERS], rows or (), strict=False):
                self.adapter.served_tokens = row["tokens"]  # type: ignore[attr-defined]
                found.append(reread(index, row["answer"]))
        return judge_tokens(found) if is_whole else _in_part(judge_tokens(found))

    # -- timed -------------------------------------------------------------------------------

    def repeated(self) -> AuditCheck:
        """A few queries, each over and over, against the same ones in turn: both sides hold the
        same work, whatever it is that a query's work rests on."""
        queries = self._few()
        count = len(queries)
        if count < 2:
            return not_judged("repeated-sample", "there is one example, and none to tell it from")
        again = Repeating(lambda k: self.serve(queries[k]), count)
        timed = self._timed(lambda k: self.serve(queries[k % count]), again)
        if isinstance(timed.quads, Quads):
            made = [sum(map(len, side)) for side in (timed.quads.first, timed.quads.second)]
            names = [k % count for k in range(made[0])], [again.which[k] for k in range(made[1])]
            timed = replace(timed, quads=of_one_query(timed.quads, *names), raw=timed.quads)
        check = judge_repeated(timed)
        return check.model_copy(update={"figures": check.figures | {"samples": count * self.size}})

    def _few(self) -> list[list[int]]:
        """The examples of at most `_FEW` queries, which have none in common, from all over the
        task. One with fewer to choose from than it is large has some of them twice."""
        size, count = self.size, len(self.examples)
        queries = min(max(count // size, 2), _FEW, count)
        cuts = [k * count // queries for k in range(queries + 1)]
        pools = [range(start, end) for start, end in pairwise(cuts)]
        return [[pool[j % len(pool)] for j in range(size)] for pool in pools]

    def other_seed(self) -> AuditCheck:
        """The declared order, or what was drawn, against those of another seed. Its requests have
        other lengths, which count for nothing: the seconds are made those of one length."""
        count, seed = len(self.examples), self.subject.seed
        if self.rules.scenario == "server" and not hasattr(self.adapter, "send"):
            sides = [self._drawn(seed), self._drawn(seed + 1)]
        else:
            other = np.random.default_rng(seed + 1).permutation(count).tolist()
            sides = [self._ordered(range(count)), self._ordered(other)]
        timed = self._timed(sides[0][0], sides[1][0], _OF_SEED)
        if not isinstance(timed.quads, Quads):
            return judge_seed(timed)
        sizes = [[of(k) for k in range(timed.quads.queries // 2)] for _, of in sides]
        if min(map(min, sizes)) <= 0:
            return judge_seed(timed)
        even = of_one_size(timed.quads, *sizes)
        return judge_seed(replace(timed, quads=even, raw=timed.quads))

    def _ordered(self, order: Sequence[int]) -> Side:
        size, count = self.size, len(order)

        def tokens(number: int) -> float:
            return sum(self._length(int(order[(number * size + j) % count])) for j in range(size))

        return self._over(order), tokens

    def _drawn(self, seed: int) -> Side:
        """Requests as `seed` draws them for a window (examples and lengths), one after another:
        what the queue makes of their times is no part of it."""
        arrivals = self.rules.arrivals
        rules = self.rules.model_copy(update={"arrivals": None})
        told = [*self.examples, *self.request.get("mixed", ())]
        groups, owners = told_of(told)
        plan = plan_schedule(rules, len(told), seed, n=_DRAWN, groups=groups, owners=owners)
        given = (plan.input_tokens, plan.output_tokens)
        count = plan.n
        if isinstance(arrivals, TraceArrivals) and arrivals.use_lengths:
            # The same for every seed.
            given = arrivals.lengths(count) or (None, None)
            count = min([count, *(len(values) for values in given if values is not None)])
        names = ("input_tokens", "output_tokens")
        drawn = zip(names, given, strict=True)
        lengths = {name: values for name, values in drawn if values is not None}

        def serve(number: int) -> Json:
            place = number % count
            asked = {name: [int(values[place])] for name, values in lengths.items()}
            return self.serve([int(plan.items[place])], **asked)

        def tokens(number: int) -> float:
            place = number % count
            own = 0 if "input_tokens" in lengths else self._length(int(plan.items[place]))
            return float(own + sum(int(values[place]) for values in lengths.values()))

        return serve, tokens

    def _length(self, index: int) -> int:
        """Tokens of an example's request; 0 where nothing tells."""
        if index not in self._lengths:
            self._lengths |= dict(lengths_of(self.adapter, [index]))
        return self._lengths.get(index, 0)

    def same(self) -> AuditCheck:
        """The same requests on both sides."""
        order = range(len(self.examples))
        return judge_same(self._timed(self._over(order), self._over(order)))

    # -- roofline ----------------------------------------------------------------------------

    def roofline(self) -> AuditCheck:
        """Work of one timed query over its own time, against the device's limits."""
        subject = self.subject
        if subject.work is None:
            return not_judged("roofline", subject.no_work)
        if subject.experts is not None:
            reason = (
                f"the model has experts ({subject.experts}), of which a pass reads some only; how "
                "many bytes that are is not counted"
            )
            return not_judged("roofline", reason)
        if self.request["roof"] is None:
            return not_judged("roofline", "the device's limits were not measured")
        roof = Roof.model_validate(self.request["roof"])
        query = self._over(range(len(self.examples)))
        self._warm_up()
        flops, weight_bytes, passes = subject.work(lambda: query(0))
        took = [self._seconds(query)]
        recorded = self.request["recorded_s"].get(0) if self.size == 1 else None
        took += [median(recorded)] if recorded else []
        on_cpu = self.request["device_kind"] == "cpu"
        work = RequestWork(flops, weight_bytes, passes, took)
        return judge_roofline(work, roof, last_level_cache_count() if on_cpu else 1)

    def _seconds(self, query: Serve) -> float:
        """Median seconds of the first query, made a few times within the check's budget."""
        clock, sync, taken = self.subject.clock, self.subject.sync, list[float]()
        while not taken or (len(taken) < _TIMED and sum(taken) < self.budget_s):
            start = clock()
            query(0)
            sync()
            taken.append(clock() - start)
        return median(taken)


def _in_part(found: AuditCheck) -> AuditCheck:
    """`found` of requests by themselves alone: what failed has failed, and nothing has passed."""
    if found.outcome != "passed":
        return found
    return not_judged("answers", "batched answers are not looked at", found.figures)


def _has_answer(kind: str, row: Json) -> bool:
    """Whether the quality pass gave an answer (none where the output was not finite)."""
    return row.get("prediction") is not None or row.get("output") is not None


def lengths_of(adapter: Any, indices: Sequence[int]) -> dict[int, int]:
    """{index: tokens of the example's request}, of those asked for at least; characters of prompts
    that go as text; nothing where the adapter does not tell."""
    prompts = getattr(adapter, "prompts", None)
    if prompts is not None:
        return {index: len(prompts[index]) for index in indices}
    own = getattr(adapter, "prompt_ids", None)
    if own is not None:
        return {index: len(own(index)) for index in indices}
    made = getattr(adapter, "items", None)
    found: Counter[int] = Counter()
    for item in made() if made is not None else ():
        found[item.example] += len(item.ids)
    return dict(found)
