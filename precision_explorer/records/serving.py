"""What a window of requests that came by their own clock was like."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from precision_explorer.records.rounds import LatencyRound


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore")


class LittlesLaw(_Data):
    """Little 1961, on one window: the mean number of requests in the system, counted by the loop as
    it ran, against arrival rate times mean latency, from the rows. The window begins and ends
    empty, or counts what was left at its end on both sides, so the two are equal whatever the
    arrivals (Stidham 1974) unless a request is lost, counted twice or out of order."""

    in_system: float
    rate_times_latency: float
    relative_gap: float
    holds: bool


class Growth(_Data):
    """Seconds of latency per second of arrivals, and the p value of no trend."""

    slope: float
    p_value: float


class Serving(_Data):
    """An open-loop window: requests come by a plan, whatever the server does. Raw values stand in
    the samples; latency counts from the scheduled arrival."""

    scenario: str
    batching: str
    """How requests were put together: ``dynamic`` (what waits when the model is free), ``static``
    (the same of generated answers, which are decoded in step), ``continuous`` (they join and leave
    at any step of the model), or ``server``: as a server that was asked over HTTP likes, of which
    the fields that are None then say nothing."""
    note: str | None = None
    """Why they were not put together otherwise."""
    batching_fallback: bool = False
    """Whether the workload named no batching and the model can't be served continuously."""
    max_batch: int | None = None
    max_wait_s: float | None = None
    requests: int
    unfinished: int
    """Those that had no turn before the window's end; they are in the samples, without an end."""
    dropped: int = 0
    """How many of these a server that was asked over HTTP refused or broke off."""
    batches: int | None = None
    """Of continuous batching the steps of the model."""
    duration_s: float
    """How long requests came."""
    settle_s: float = 0.0
    """The first part of it, in which the queue filled: its requests don't count."""
    ended_s: float
    """The last request's end, or when the window was cut, since its start."""
    offered_rate_per_s: float
    achieved_rate_per_s: float
    utilisation: float | None = None
    """Share of the time from `settle_s` on in which the server was at work. With batches it says
    little of what more it could take: it may always be at work, with small ones."""
    lateness_p99_s: float
    """How late the loop saw a request that it could have seen: its own error."""
    overhead_p99_s: float | None = None
    """From when a batch could have begun by the rules to when it did, lateness included."""
    lateness_limit_s: float
    refused: str | None = None
    """Why nothing may be read from the window; None where its loop kept time."""
    windows: int = 1
    """How many were served: a refused one is repeated once, and with `tails` a longer one follows
    while the last was too short and budget is left. The last that kept time is this one."""
    little: LittlesLaw
    growth: Growth | None = None
    """None for fewer requests than tell."""
    full_share: float | None = None
    """Share of the second half of `duration_s` in which the server worked on full batches, or had
    `max_batch` requests in progress."""
    saturated: bool
    """Whether latency grew while the server had no room, or requests were left: there is no steady
    state."""
    cold_first_s: float | None = None
    warmup_requests: int = 0
    load: float | None = None
    """Offered rate over `capacity_per_s`, where it was asked for as a share."""
    load_of: str | None = None
    """Whose capacity: ``own`` or the ``reference``'s."""
    capacity_per_s: float | None = None
    generates: bool = False
    round: LatencyRound | None = None
    """When the window was, among those of other formats."""
    cut_requests: int = 0
    """How many had fewer tokens than the workload drew, as the model has too few positions."""


class TriedRate(_Data):
    """A rate that a search tried, with its windows in their order. Their requests stand in the
    samples, under its place in the list (`point`) and theirs (`attempt`)."""

    rung: int
    """Its place on the ladder of rates, whose neighbours differ by the search's resolution."""
    rate_per_s: float
    windows: list[Serving]
