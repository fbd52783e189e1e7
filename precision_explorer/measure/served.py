"""What a serving window gave: raw moments of each request, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from precision_explorer.measure.serving import ServingRules, WarmUp
from precision_explorer.records.serving import Growth, LittlesLaw, Serving
from precision_explorer.stats import queueing
from precision_explorer.units import seconds

if TYPE_CHECKING:
    from precision_explorer.measure.serving import _Loop

LATENESS_S = 1e-3
LATENESS_SHARE = 0.02
"""The loop's own lateness may be the larger of 1 ms, which a server's clients would not notice, and
2 % of the median latency: less than the 5 % by which two runs of one program may differ (MLPerf
Inference, TEST05)."""
FULL = 0.98
"""`ServingSeries.full_share` from which the server had no room. With it, Poisson arrivals at 0.7 of
capacity and exponential services count as saturated in at most 2 % of windows of 50 requests and in
none of 200; at 1.3 of capacity 66 % and 96 % of them do (simulated, 300 windows each)."""
LITTLE_GAP = 0.01
"""Relative difference from which the two sides of Little's law disagree: below it is rounding."""
_TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class ServingSeries:
    """n requests in the order of arrival, m of them served in b batches, which hold neighbours.
    Seconds since the window's start.

    `scheduled_s`, `noticed_s` (n,): when each came, and when the loop first saw it. `started_s`,
    `finished_s`, `sizes` (b,): of the batches. `extras` (m,): what the service said of each.
    `ended_s`: the last look: the end of the last batch, or the cut. `area`: request-seconds in the
    system, as the loop counted them.
    """

    scheduled_s: np.ndarray
    noticed_s: np.ndarray
    started_s: np.ndarray
    finished_s: np.ndarray
    sizes: np.ndarray
    extras: list[dict[str, Any]]
    warm: list[WarmUp]
    rules: ServingRules
    duration_s: float
    ended_s: float
    area: float

    @staticmethod
    def of(
        times: list[float], duration_s: float, rules: ServingRules, warm: list[WarmUp], loop: _Loop
    ) -> ServingSeries:
        """The series of a window that `loop` has served."""
        noticed, started, finished = (
            np.array(moments, dtype=np.float64) - loop.origin
            for moments in (loop.noticed, loop.started, loop.finished)
        )
        return ServingSeries(
            np.array(times), noticed, started, finished, np.array(loop.sizes, dtype=np.int64),
            loop.extras, warm, rules, duration_s, loop.ended - loop.origin, loop.area,
        )  # fmt: skip

    # -- per request ---------------------------------------------------------------------------

    @property
    def served(self) -> int:
        """How many requests had their turn: the first ones of the schedule."""
        return len(self.extras)

    @property
    def unfinished(self) -> int:
        """How many had none before the window's end."""
        return len(self.scheduled_s) - self.served

    @property
    def counted(self) -> np.ndarray:
        """(n,) whether each came after the window had settled."""
        return self.scheduled_s >= self.rules.settle_s

    def begins_s(self) -> np.ndarray:
        """(m,) when each request's batch was begun."""
        return np.repeat(self.started_s, self.sizes)

    def ends_s(self) -> np.ndarray:
        """(m,) when each request was finished."""
        return np.repeat(self.finished_s, self.sizes)

    def batches_of(self) -> np.ndarray:
        """(m,) each request's batch."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def latency_s(self) -> np.ndarray:
        """(m,) from the scheduled arrival to the end."""
        return self.ends_s() - self.scheduled_s[: self.served]

    def queue_s(self) -> np.ndarray:
        """(m,) from the scheduled arrival to the start of the request's batch."""
        return self.begins_s() - self.scheduled_s[: self.served]

    def service_s(self) -> np.ndarray:
        """(m,) from the start of the request's batch to its end: what a closed loop, which sends a
        request when the server is free, would call its latency."""
        return self.ends_s() - self.begins_s()

    def waited_s(self) -> np.ndarray:
        """(n,) latency, and of unfinished requests what they had waited at the window's end, which
        their latency is above."""
        left = self.ended_s - self.scheduled_s[self.served :]
        return np.concatenate([self.latency_s(), left])

    def lateness_s(self) -> np.ndarray:
        """(n,) from when the loop could have seen a request to when it did: since its arrival, or
        since the end of the batch that was being served then."""
        ends = np.concatenate([[-np.inf], self.finished_s])
        free = ends[np.searchsorted(self.finished_s, self.noticed_s, side="right")]
        return self.noticed_s - np.maximum(self.scheduled_s, free)

    def overhead_s(self) -> np.ndarray:
        """(b,) from when each batch could have begun by the rules to when it did."""
        first = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(int)
        place = first + self.rules.max_batch - 1
        times: np.ndarray = np.append(self.scheduled_s, np.inf)
        full = times[np.minimum(place, len(self.scheduled_s))]
        waited = self.scheduled_s[first] + self.rules.max_wait_s
        free = np.concatenate([[-np.inf], self.finished_s[:-1]])
        return self.started_s - np.maximum(free, np.minimum(full, waited))

    def percentile(self, q: float) -> float | None:
        """Nearest-rank quantile `q`, from 0 to 1, of the latencies of all that count; None where it
        falls on a request that was not finished, as those may have taken any time."""
        ordered = np.sort(self.latency_s()[self.counted[: self.served]])
        rank = max(int(np.ceil(q * self.counted.sum())), 1)
        return float(ordered[rank - 1]) if rank <= len(ordered) else None

    def rows(self) -> list[dict[str, Any]]:
        """One per request, warm-up first, in the form of `LatencySeries.rows`: `position` in the
        schedule, `window` (``cold``, ``warmup``, ``settle``, ``measure``), latency_s (None where
        unfinished), scheduled_s, noticed_s, started_s, finished_s, queue_s, service_s, batch,
        batch_size, `ttft_s` from the scheduled arrival where the service told of a first token, and
        its other extras."""
        found: list[dict[str, Any]] = [
            {
                "position": warm.position, "window": "warmup" if k else "cold",
                "latency_s": warm.seconds, "batch_size": warm.size,
            }
            for k, warm in enumerate(self.warm)
        ]  # fmt: skip
        batches = self.batches_of()
        columns = {
            "scheduled_s": self.scheduled_s, "noticed_s": self.noticed_s,
            "started_s": self.begins_s(), "finished_s": self.ends_s(),
            "latency_s": self.latency_s(), "queue_s": self.queue_s(),
            "service_s": self.service_s(), "batch": batches, "batch_size": self.sizes[batches],
        }  # fmt: skip
        lists = {name: values.tolist() for name, values in columns.items()}
        windows = np.where(self.counted, "measure", "settle").tolist()
        for k in range(len(self.scheduled_s)):
            own = {name: v[k] if k < len(v) else None for name, v in lists.items()}
            extras = dict(self.extras[k]) if k < self.served else {}
            first = extras.pop("first_token_s", None)
            if first is not None:
                extras["ttft_s"] = own["queue_s"] + first
            # The loop's own numbers come last, so that none of the service's can pass for them.
            found.append({**extras, "position": k, "window": windows[k], **own})
        return found

    # -- of the window -------------------------------------------------------------------------

    def lateness_limit_s(self) -> float:
        """The p99 of lateness above which the window is refused."""
        return max(LATENESS_S, LATENESS_SHARE * float(np.median(self.waited_s()[self.counted])))

    def refused(self) -> str | None:
        """Why nothing may be read from the window; None where its loop kept time."""
        late, limit = _p99(self.lateness_s()), self.lateness_limit_s()
        if late <= limit:
            return None
        return (
            f"the loop saw 1 % of the requests {seconds(late)} late or more, above its limit of "
            f"{seconds(limit)}: something else used the processor"
        )

    def little(self) -> LittlesLaw:
        """Little's law over the window."""
        over = max(self.ended_s, _TINY)
        counted, derived = self.area / over, float(self.waited_s().sum()) / over
        gap = abs(counted - derived) / max(derived, _TINY)
        return LittlesLaw(
            in_system=counted, rate_times_latency=derived, relative_gap=gap, holds=gap <= LITTLE_GAP
        )

    def full_share(self) -> float:
        """Share of the second half of the arrivals' time in which the server was at work with
        batches of the largest size: with any room left, a queue does not grow for long."""
        half = self.duration_s / 2
        full = self.sizes == self.rules.max_batch
        start = np.clip(self.started_s[full], half, self.duration_s)
        end = np.clip(self.finished_s[full], half, self.duration_s)
        return float((end - start).sum()) / max(half, _TINY)

    def growth(self) -> queueing.Growth | None:
        """How the latency of those that count grew; None for fewer than tell."""
        counted = self.counted[: self.served]
        return queueing.latency_growth(
            self.scheduled_s[: self.served][counted], self.counted_latency_s()
        )

    def counted_latency_s(self) -> np.ndarray:
        """Latencies of those that count and had their turn."""
        return self.latency_s()[self.counted[: self.served]]

    def saturated(self) -> bool:
        """Whether requests were left at the end, or the queue grew while the server had no room."""
        growth = self.growth()
        grew = growth is not None and growth.grows
        return self.unfinished > 0 or (grew and self.full_share() >= FULL)

    def record(self, scenario: str, **more: Any) -> Serving:
        """The summary of what counts, which is stored beside the raw rows; `more`: what the caller
        knows. Rates and utilisation are over the time from `settle_s` on."""
        counted = self.counted[: self.served]
        growth = self.growth()
        begin, until = self.rules.settle_s, max(self.ended_s, self.duration_s)
        busy = np.maximum(self.finished_s, begin) - np.maximum(self.started_s, begin)
        over = max(until - begin, _TINY)
        requests = int(self.counted.sum())
        return Serving(
            scenario=scenario,
            max_batch=self.rules.max_batch,
            max_wait_s=self.rules.max_wait_s,
            requests=requests,
            unfinished=self.unfinished,
            batches=len(self.sizes),
            duration_s=self.duration_s,
            settle_s=begin,
            ended_s=self.ended_s,
            offered_rate_per_s=requests / max(self.duration_s - begin, _TINY),
            achieved_rate_per_s=int(counted.sum()) / over,
            utilisation=min(float(busy.sum()) / over, 1.0),
            lateness_p99_s=_p99(self.lateness_s()),
            overhead_p99_s=_p99(self.overhead_s()) if len(self.sizes) else None,
            lateness_limit_s=self.lateness_limit_s(),
            refused=self.refused(),
            little=self.little(),
            growth=Growth(slope=growth.slope, p_value=growth.p_value) if growth else None,
            full_share=self.full_share(),
            saturated=self.saturated(),
            cold_first_s=self.warm[0].seconds if self.warm else None,
            warmup_requests=sum(w.size for w in self.warm[1:]),
            **more,
        )


def _p99(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.99, method="inverted_cdf"))
