"""The timed part of a cell whose requests wait for one another: single-stream, multi-stream. Runs
in a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from precision_explorer.measure import LatencySeries, Phases, single_stream
from precision_explorer.measure.multi_stream import multi_stream
from precision_explorer.workload import Workload

if TYPE_CHECKING:
    from precision_explorer.models.adapter import Adapter


def closed_loop(adapter: Adapter, count: int, rules: Workload, **how: Any) -> LatencySeries | None:
    """The latencies of the workload's scenario over `count` examples; None for ``offline``, which
    has none. `how`: as of `measure.single_stream`."""
    if rules.scenario == "offline":
        return None
    if rules.scenario == "multi-stream":
        return multi_stream(lambda i: one_query(adapter, i), count, rules.streams, rules, **how)
    return single_stream(one_request(adapter), count, rules, **how)


def one_request(adapter: Adapter) -> Callable[[int], dict[str, Any]]:
    """Serves example `index` as the timed part does; its row's extras."""
    phases = Phases()

    def serve(index: int) -> dict[str, Any]:
        answer = adapter.request(index, phases)
        return answer | {"phases": phases.take()}

    return serve


def one_query(adapter: Adapter, indices: list[int]) -> dict[str, Any]:
    """Serve one query; of generated answers the first token, the time between, and all tokens."""
    own = getattr(adapter, "serve_batch", None)
    if own is None:
        adapter.offline(indices)
        return {}
    served = own(indices)
    return {
        "ttft_s": served[0]["first_token_s"],
        "tpot_s": served[0]["tpot_s"],
        "output_tokens": sum(one["output_tokens"] for one in served),
    }
