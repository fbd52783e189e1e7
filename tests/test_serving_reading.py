"""What a reader is told of requests that came by their own clock, in several rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from precision_explorer.stats.queueing import lindley
from precision_explorer.table import build
from tests.test_store import arrow
from tests.test_table import REF_WRONG, SERVER, classified, make_run, ok, window


def queue_rows(seed: int, number: int, slower: float = 1.0, n: int = 300) -> list[dict[str, Any]]:
    """Rows of an M/M/1 queue at utilisation 0.7 (0.1 s a service), its first 50 left out."""
    generator = np.random.default_rng([seed, number])
    services = slower * generator.exponential(0.1, n + 50)
    waits = lindley(np.cumsum(generator.exponential(0.1 / 0.7, n + 50)), services)
    return [
        {
            "id": "e0", "index": 0, "window": "measure", "latency_s": wait + service,
            "queue_s": wait, "service_s": service, "batch": k, "round": number,
        }
        for k, (wait, service) in enumerate(zip(waits[50:], services[50:], strict=True))
    ]  # fmt: skip


def in_windows(
    fmt: str, rounds: list[list[dict[str, Any]]], spoilt: dict[str, Any] | None = None, **more: Any
) -> tuple[Any, dict[str, bytes]]:
    """A served cell of these rounds' rows; the last window has the changes `spoilt`."""
    rows = [row for of_round in rounds for row in of_round]
    record, made = ok(fmt, classified(REF_WRONG), [], {"workload": SERVER}, **more)
    place = {"place": 0, "cells": 2, "interleaved": True, "started_s": 0.0, "window_s": 11.0}
    windows = [
        window(requests=len(of_round), round=place | {"round": k, "requests": len(of_round)})
        for k, of_round in enumerate(rounds)
    ]
    windows[-1] |= spoilt or {}
    document = record.model_dump()
    document["measurements"] |= {"latency": None, "serving": windows}
    return type(record).model_validate(document), made | {"request": arrow(rows)}


def test_queues_that_differ_by_their_arrivals_are_no_machine_that_changed(tmp_path):
    """Of 20 steady queues in three rounds none says that the machine changed, though medians of the
    latency lie far apart; a service that takes 30 % longer in the last round does."""
    apart = 0
    for seed in range(20):
        steady = in_windows("fp32", [queue_rows(seed, k) for k in range(3)])
        (row,) = build([make_run(tmp_path / f"s{seed}", [steady])]).rows
        assert "machine-drifted" not in row["cautions"]
        apart += row["latency_p50_round_spread"] > 0.1
    assert apart > 10
    rounds = [queue_rows(1, k, 1.3 if k == 2 else 1.0, n=1000) for k in range(3)]
    found = build([make_run(tmp_path / "slow", [in_windows("fp32", rounds)])])
    assert "machine-drifted" in found.rows[0]["cautions"]
    assert "served a request in" in found.context.cautions["machine-drifted"]


@pytest.mark.parametrize("spoilt", [{"saturated": True}, {"refused": "the loop was late"}])
def test_a_format_without_a_steady_latency_takes_it_from_no_other(tmp_path, spoilt):
    """It has no place on the front, as a failed one; the others are compared by latency still, and
    one round that was spoilt decides for its row."""
    rounds = [queue_rows(1, k) for k in range(2)]
    cells = [
        in_windows("fp32", rounds, peak=900),
        in_windows("bf16", [queue_rows(1, k, 0.5) for k in range(2)]),
        in_windows("int8", rounds, spoilt, peak=1),
    ]
    found = build([make_run(tmp_path / "run", cells)])
    rows = {row["format"]: row for row in found.rows}
    assert rows["int8"]["pareto"] is rows["int8"]["pareto_probability"] is None
    for name in ("latency_p50_s", "latency_p90_s", "latency_p99_s", "queue_p50_s"):
        assert rows["int8"][name] is None
    assert rows["bf16"]["pareto"] == rows["fp32"]["pareto"] == "yes"
    assert rows["bf16"]["pareto_probability"] > 0.9
    assert "median latency" in found.context.objectives[0]


def test_value_under_an_objective_is_that_of_the_load(tmp_path):
    """Batches of 80 ms are within 90 ms when all are at hand; what counts is the queue. In a minute
    all requests are done, at the rate that was achieved."""

    def value(name: str, slo: str, n: int = 300, **spoilt: Any) -> Any:
        cell = in_windows("fp32", [queue_rows(1, 0, n=n)], spoilt)
        reader = {"slo": slo, "price_per_hour": 3.6}
        (row,) = build([make_run(tmp_path / name, [cell], reader)]).rows
        return row["value_per_usd"], row["quality"]

    assert value("beyond", "p50=90ms") == (0.0, 0.8)
    within, quality = value("within", "p50=60s")
    assert within == pytest.approx(quality * 4.0 * 3600 / 3.6)
    assert value("saturated", "p50=60s", saturated=True)[0] is None
    assert value("few", "p99=60s", n=20)[0] is None
