"""Workloads by name: declared figures, each with its reason.

`chat`: a Poisson stream of conversations at 70 % of capacity, 5 minutes. Lengths are lognormal by
median and 99th percentile of the conversation service in the Azure LLM inference trace of 2023
(19,366 requests: 1,020 and 4,142 tokens in, 129 and 601 out; the medians stand in Patel et al.
2024, Splitwise). The trace's output is rather bimodal, with a mean of 211 where this has 161.

`rag`: prompts made long by retrieved passages, with short answers. 44 consecutive requests of the
RAGPulse trace (Wang et al. 2025) that carry passages have a median of 3,250 tokens in, standard
deviation of the logarithm 0.11, and 160 out, 0.60.

`classification-api`: many callers who don't know of each other (Poisson), at half the capacity, as
services are run that promise a latency; batches of what waits, with 5 ms of patience; p99.

`batch-scoring`: a data set overnight: offline, longer windows than a sweep's own.

`server` is MLPerf's: Poisson, at 70 % of capacity, with batching. `poisson` and `bursty` are short,
a request at a time, and differ in nothing but the burstiness: 0.25, so that gaps vary twice as much
as Poisson's. Public traces of language models are burstier than Poisson; how much differs."""

from __future__ import annotations

from precision_explorer.workload.arrivals import GammaArrivals, PoissonArrivals
from precision_explorer.workload.lengths import Lengths, LognormalLengths
from precision_explorer.workload.workload import Workload

_CHAT = Lengths(
    input=LognormalLengths(median=1020, p99=4142, max=8192),
    output=LognormalLengths(median=129, p99=601, max=1024),
)
_RAG = Lengths(
    input=LognormalLengths(median=3250, sigma=0.11, max=8192),
    output=LognormalLengths(median=160, sigma=0.60, max=1024),
)

PRESETS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(),
        Workload(name="multi-stream", scenario="multi-stream"),
        Workload(name="offline", scenario="offline"),
        Workload(
            name="server",
            scenario="server",
            arrivals=PoissonArrivals(load=0.7),
            duration_seconds=60,
            budget_seconds=120,
        ),
        Workload(
            name="poisson",
            scenario="server",
            arrivals=PoissonArrivals(load=0.7),
            duration_seconds=20,
            max_batch=1,
        ),
        Workload(
            name="bursty",
            scenario="server",
            arrivals=GammaArrivals(load=0.7, burstiness=0.25),
            duration_seconds=20,
            max_batch=1,
        ),
        Workload(
            name="chat",
            scenario="server",
            arrivals=PoissonArrivals(load=0.7),
            lengths=_CHAT,
            duration_seconds=300,
            budget_seconds=600,
        ),
        Workload(
            name="rag",
            scenario="server",
            arrivals=PoissonArrivals(load=0.7),
            lengths=_RAG,
            duration_seconds=300,
            budget_seconds=600,
        ),
        Workload(
            name="classification-api",
            scenario="server",
            arrivals=PoissonArrivals(load=0.5),
            duration_seconds=60,
            max_wait_s=0.005,
            tails="p99",
            budget_seconds=180,
        ),
        Workload(
            name="batch-scoring",
            scenario="offline",
            offline_seconds=10,
            offline_min_batches=5,
            offline_budget_seconds=120,
        ),
    )
}
