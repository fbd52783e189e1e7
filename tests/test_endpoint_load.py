"""Requests sent to a server as planned: moments, lateness, what is given up, what fails."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from precision_explorer.errors import EndpointError
from precision_explorer.measure.open_loop import send_window
from precision_explorer.measure.sent import SentSeries
from precision_explorer.runner.served_cautions import served_cautions
from precision_explorer.table.serving import load_columns


def window(times, send, duration=None, drain=5.0, settle=0.0):
    """A window on the real clock; requests of milliseconds."""
    loop = asyncio.new_event_loop()
    try:
        return send_window(
            loop.run_until_complete,
            np.array(times),
            send,
            duration_s=duration or times[-1] + 0.01,
            drain_s=drain,
            settle_s=settle,
        )
    finally:
        loop.close()


def series(scheduled, sent, ended, **more):
    """One as it would have been seen, with the area that belongs to it."""
    due, out, done = (np.array(v, dtype=float) for v in (scheduled, sent, ended))
    cut = more.pop("cut_s", float(np.nanmax(done)))
    area = float(np.where(np.isnan(done), cut - due, done - due).sum())
    made = {
        "settle_s": 0.0, "duration_s": float(due[-1]) + 0.1, "cut_s": cut, "area": area,
        "extras": [{} if d == d else None for d in done],
    }  # fmt: skip
    return SentSeries(scheduled_s=due, sent_s=out, ended_s=done, **(made | more))


def test_requests_are_under_way_together_and_each_at_its_time():
    running, most = 0, 0

    async def send(place):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.3)
        running -= 1
        return {"place": place}

    times = [0.0, 0.05, 0.1, 0.15]
    found = window(times, send)
    # One after the other they would take 1.2 s, and the last would have waited for 0.75 s.
    assert most == 4
    assert found.unfinished == 0
    assert (found.latency_s() >= 0.3).all()
    assert (found.lateness_s() >= 0).all()
    assert [row["place"] for row in found.rows()] == [0, 1, 2, 3]


def test_a_stall_of_the_server_counts_from_the_planned_arrival():
    release = asyncio.Event()

    async def send(place):
        if place == 0:
            await asyncio.sleep(0.4)
            release.set()
        await release.wait()
        return {}

    found = window([0.0, 0.1, 0.2], send)
    waited = found.latency_s()
    assert waited[0] >= 0.39
    # All wait for the first, each from its own planned moment on.
    assert waited[0] - waited[1] == pytest.approx(0.1, abs=0.05)
    assert waited[0] - waited[2] == pytest.approx(0.2, abs=0.05)
    assert found.little().holds


def test_a_client_that_is_late_is_told_and_the_window_refused():
    async def send(place):
        time.sleep(0.25)  # Nothing else can be sent meanwhile.
        return {}

    found = window([0.0, 0.01, 0.02, 0.03], send)
    late = found.lateness_s()
    assert late[1] >= 0.2
    # From the planned moment, not from when it was sent.
    assert found.latency_s()[3] >= 0.9
    assert found.refused() is not None
    assert "\n" not in found.refused()
    serving = found.record("server").model_dump()
    assert next(c.id for c in served_cautions([serving], False)) == "serving-refused"


def test_what_is_not_answered_is_given_up_and_kept():
    async def send(place):
        await asyncio.sleep(0.0 if place == 0 else 60.0)
        return {"first_token_s": 0.0}

    begun = time.monotonic()
    found = window([0.0, 0.01], send, duration=0.05, drain=0.2)
    assert time.monotonic() - begun < 30
    assert found.unfinished == 1
    assert found.saturated()
    first, last = found.rows()
    assert first["latency_s"] is not None
    assert last["latency_s"] is last["finished_s"] is None
    assert "ttft_s" not in last
    assert found.little().holds
    assert found.record("server").unfinished == 1


def test_a_failure_that_is_not_of_load_ends_the_window():
    sent = []

    async def send(place):
        sent.append(place)
        if place == 1:
            raise EndpointError("the endpoint answered HTTP 400", status=400)
        await asyncio.sleep(30)
        return {}

    begun = time.monotonic()
    with pytest.raises(EndpointError, match="HTTP 400"):
        window([0.0, 0.01, 0.5, 20.0], send)
    assert time.monotonic() - begun < 15
    assert 3 not in sent


DROPS = [
    EndpointError("the endpoint answered HTTP 429", passing=True, status=429),
    EndpointError("the endpoint answered HTTP 500", status=500),
    EndpointError("the connection to the endpoint broke off", True),
    EndpointError("the endpoint was silent for 2 s", silent=True),
]


def test_requests_that_an_overloaded_server_drops_are_unanswered():
    async def send(place):
        if place < len(DROPS):
            raise DROPS[place]
        return {}

    found = window([0.0, 0.01, 0.02, 0.03, 0.04, 0.05], send)
    assert found.unfinished == 4
    assert found.saturated()
    assert [row["dropped"] for row in found.rows()] == [True] * 4 + [False] * 2
    assert [row["latency_s"] is None for row in found.rows()] == [True] * 4 + [False] * 2
    record = found.record("server")
    assert record.dropped == 4
    assert record.little.holds
    told = {
        c.id: c.message for c in served_cautions([record.model_dump() | {"refused": None}], False)
    }
    assert "refused or dropped 4 of the requests:" in told["serving-saturated"]


def test_a_server_that_answers_hardly_any_has_failed():
    async def send(place):
        raise DROPS[0]

    with pytest.raises(EndpointError, match="HTTP 429"):
        window([0.0, 0.01], send)


def test_the_first_token_counts_from_the_planned_arrival():
    told = [{"first_token_s": 0.1}, {"first_token_s": 0.1, "latency_s": 0.0}]
    found = series([0.0, 1.0], [0.0, 1.2], [0.5, 2.0], extras=told)
    first, second = found.rows()
    assert first["ttft_s"] == pytest.approx(0.1)
    assert second["ttft_s"] == pytest.approx(0.3)
    # Nothing that a server says passes for the client's own numbers.
    assert second["latency_s"] == pytest.approx(1.0)
    assert second["sent_s"] == pytest.approx(1.2)


def test_the_limit_of_lateness_is_the_serving_loop_s():
    due = np.arange(100) / 10
    fine = series(due, due + 0.0009, due + 0.02)
    assert fine.refused() is None
    assert fine.lateness_limit_s() == 1e-3
    assert series(due, due + 0.002, due + 0.02).refused() is not None
    # 2 % of the median latency where that is more.
    slow = series(due, due + 0.002, due + 0.5)
    assert slow.lateness_limit_s() == pytest.approx(0.01)
    assert slow.refused() is None


def test_what_settled_first_does_not_count():
    due = np.arange(20) / 10
    found = series(due, due, due + 0.05, settle_s=1.0)
    assert found.counted.sum() == 10
    assert [r["window"] for r in found.rows()] == ["settle"] * 10 + ["measure"] * 10
    record = found.record("server")
    assert record.requests == 10
    assert record.offered_rate_per_s == pytest.approx(10 / (found.duration_s - 1.0))


def queue(rate, servers, seed, n=300):
    """Arrivals and ends of `servers` in parallel, of 1 s on average, first come first served."""
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / rate, n))
    free = np.zeros(servers)
    ends = np.empty(n)
    for k, (moment, takes) in enumerate(zip(due, rng.exponential(1.0, n), strict=True)):
        place = int(free.argmin())
        free[place] = ends[k] = max(moment, free[place]) + takes
    return due, ends


def test_a_server_that_falls_behind_is_told_from_one_that_keeps_up():
    steady = [series(d, d, e).saturated() for d, e in (queue(2.8, 4, s) for s in range(40))]
    behind = [series(d, d, e).saturated() for d, e in (queue(5.6, 4, s) for s in range(40))]
    assert sum(steady) <= 2
    assert sum(behind) >= 36


def test_what_only_the_server_knows_is_none():
    due = np.arange(30) / 10
    record = series(due, due, due + 0.05).record("server", note="by its own rules")
    assert record.batching == "server"
    for name in ("max_batch", "max_wait_s", "batches", "utilisation", "full_share"):
        assert getattr(record, name) is None
    columns = load_columns([record])
    assert columns["utilisation"] is None
    assert columns["achieved_rate_per_s"] > 0
    assert columns["lateness_p99_s"] == 0
