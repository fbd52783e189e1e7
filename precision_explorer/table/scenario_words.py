"""How the latency of a workload came about, in one sentence."""

from __future__ import annotations

from typing import Any

from precision_explorer.units import rate, seconds, share

_SUPPORTED = "A percentile stands only where the sample supports it."
_ARRIVALS = {
    "constant": "at equal distances",
    "poisson": "as a Poisson process",
    "gamma": "with gamma gaps",
    "on-off": "in bursts",
    "daily": "by a day's curve",
    "trace": "as a trace recorded them",
}


def latency_words(work: dict[str, Any], put_together: str = "") -> str:
    """Of a workload's rules as a cell holds them. `put_together`: ``endpoint`` where a server that
    is asked does it as it likes, ``any`` where answers are batched continuously if they can be."""
    scenario = work.get("scenario", "single-stream")
    if scenario == "offline":
        return "Latency: none, as all requests are at hand (offline)."
    if scenario == "server":
        return _server_words(work, put_together)
    how = "single-stream (the next request when the last is done)"
    if scenario == "multi-stream":
        how = f"multi-stream (queries of {work['streams']}, the next when the last is done)"
    return (
        f"Latency: {how}, text to answer; the first call is kept apart, then warm-up, then at "
        f"least {work['min_requests']} requests and {seconds(work['min_seconds'])}, or until the "
        f"budget of {seconds(work['budget_seconds'])} ends. {_SUPPORTED}"
    )


def _server_words(work: dict[str, Any], put_together: str) -> str:
    arrivals = work["arrivals"]
    kind = _ARRIVALS.get(arrivals["kind"], arrivals["kind"])
    if arrivals["kind"] == "gamma":
        kind += f" of burstiness {arrivals['burstiness']:g}"
    rounds = work.get("rounds", 1)
    window_s = work["duration_seconds"] / rounds
    each = f" in each of {rounds} rounds" if rounds > 1 else ""
    tails = work.get("tails")
    longer = f", or longer until {tails} can be shown" if tails else ""
    settles = seconds(work["warmup_seconds"])
    lasts = f"requests come for {seconds(window_s)}{each}{longer}, of which the first {settles}"
    if arrivals.get("search"):
        lasts = (
            f"windows of at least {seconds(window_s)} at each rate, longer where it can't be told, "
            f"{seconds(work['budget_seconds'])} in all, of each of which the first tenth and at "
            f"least {settles}"
        )
    waits = f", waiting {seconds(work['max_wait_s'])} at most for more" * bool(work["max_wait_s"])
    return (
        f"Latency: server (requests come by their own clock, {kind}, {_speed(work)}), from the "
        f"scheduled arrival to the answer; {_batches(work, put_together)}{waits}; {lasts} don't "
        f"count. {_SUPPORTED}"
    )


def _batches(work: dict[str, Any], put_together: str) -> str:
    if put_together == "endpoint":
        return "queued and batched as the server likes"
    return f"one queue, first come first served, {_joined(work, put_together)}"


def _joined(work: dict[str, Any], put_together: str) -> str:
    most = work["max_batch"]
    if put_together == "any":
        return (
            f"at most {most} in progress, joining at any step where the model can be served so, "
            "else static batches of as many"
        )
    if work.get("batching") == "continuous":
        return f"at most {most} in progress, joining at any step"
    return f"{'static ' * (work.get('batching') == 'static')}batches of at most {most}"


def _speed(work: dict[str, Any]) -> str:
    arrivals = work["arrivals"]
    if arrivals.get("search"):
        goal = arrivals["search"]
        return (
            f"at rates {share(goal['resolution'])} apart, searched for the largest that holds "
            f"{goal['percentile']} within {seconds(goal['limit_s'])}"
        )
    if arrivals.get("rate_per_s") is not None:
        return f"at {rate(arrivals['rate_per_s'])}"
    if arrivals.get("load") is not None:
        whose = {"own": "each format's own", "reference": "the reference's"}[work["load_of"]]
        return f"at {share(arrivals['load'], 0)} of {whose} batched capacity"
    return f"{arrivals['scale']:g} times as fast"
