"""Multi-stream latency: queries of several samples, the next when the last is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from precision_explorer.measure.latency import LatencySeries, single_stream
from precision_explorer.workload import Workload


def multi_stream(
    batch: Callable[[list[int]], dict[str, Any]],
    count: int,
    streams: int,
    rules: Workload,
    **how: Any,
) -> LatencySeries:
    """MLPerf Inference's scenario (Reddi et al. 2020): each request is a query of `streams` samples
    served as one batch, and its latency that of all of them.

    `batch` serves the examples of these indices at once and returns extras for the query's row.
    Queries run through 0 .. `count` - 1 and begin again, also within a query. `how`: as of
    `single_stream`, by whose rules the series is measured. Each row's `index` is its first sample,
    `samples` how many there were. Seconds; ValueError without examples or samples.
    """
    if count < 1 or streams < 1:
        raise ValueError("multi-stream needs an example, and a sample in each query")
    # After that many queries the first begins with example 0 again.
    queries = count // math.gcd(count, streams)

    def query(number: int) -> dict[str, Any]:
        first = number * streams
        return batch([(first + k) % count for k in range(streams)])

    series = single_stream(query, queries, rules, **how)
    for row in series.rows:
        row |= {"index": row["index"] * streams % count, "samples": streams}
    return series
