"""Requests that were sent to a server as planned: their moments, and what is read from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from precision_explorer.errors import EndpointError
from precision_explorer.measure.served import LATENESS_S, LATENESS_SHARE, LITTLE_GAP
from precision_explorer.records.serving import Growth, LittlesLaw, Serving
from precision_explorer.stats import queueing
from precision_explorer.units import seconds

Json = dict[str, Any]

BEHIND = 0.95
"""Share of the second half's arrivals that were answered in it, below which a queue whose latency
grew is one of a server that can't keep up. In 200 simulated windows each (M/M/4) of 300 requests
0.5 % at 0.7 of capacity came out so, and 94 % at 1.3; of 100 requests 4.5 % and 80 %."""
FEWEST_ANSWERED = 0.01
"""Share of a window's requests below which a server that drops them is not overloaded but out of
order: of fewer answers than one in a hundred not even a 99th percentile could be told."""
_TINY = float(np.finfo(float).tiny)


@dataclass
class Window:
    """Moments since the window's start, as they come; `area`: request-seconds in the system.
    `dropped`: of requests that the server refused or broke off, by their places."""

    due: list[float]
    sent: list[float | None] = field(init=False)
    ended: list[float | None] = field(init=False)
    extras: list[Json | None] = field(init=False)
    dropped: dict[int, EndpointError] = field(default_factory=dict)
    area: float = 0.0
    _inside: int = 0
    last_s: float = 0.0

    def __post_init__(self) -> None:
        n = len(self.due)
        self.sent, self.ended, self.extras = [None] * n, [None] * n, [None] * n

    def enter(self, place: int, now: float) -> None:
        """A request is sent; it was in the system since it was due."""
        self.pass_to(now)
        self.sent[place] = now
        self.area += now - self.due[place]
        self._inside += 1

    def leave(self, place: int, now: float, extras: Json) -> None:
        """A request is answered."""
        self.pass_to(now)
        self.ended[place], self.extras[place] = now, extras
        self._inside -= 1

    def drop(self, place: int, error: EndpointError) -> None:
        """A request will have no answer, but for this error; until the cut it waits for one."""
        self.dropped[place] = error

    def check_answered(self) -> None:
        """Raise the first of the errors where the server answered hardly anything."""
        answered = sum(ended is not None for ended in self.ended)
        if self.dropped and answered < FEWEST_ANSWERED * len(self.due):
            raise next(iter(self.dropped.values()))

    def pass_to(self, now: float) -> None:
        """Count the requests inside up to `now`."""
        self.area += self._inside * (now - self.last_s)
        self.last_s = now


@dataclass(frozen=True)
class SentSeries:
    """n requests in the order of arrival; seconds since the window's start. `ended_s` (n,): NaN
    where there was no answer before the cut. `extras`: None there. `dropped`: places of those that
    the server refused or broke off."""

    scheduled_s: np.ndarray
    sent_s: np.ndarray
    ended_s: np.ndarray
    extras: list[Json | None]
    settle_s: float
    duration_s: float
    cut_s: float
    area: float
    dropped: tuple[int, ...] = ()

    @staticmethod
    def of(window: Window, settle_s: float, duration_s: float) -> SentSeries:
        """The series of a window that was sent."""
        sent, ended = (
            np.array([np.nan if v is None else v for v in values], dtype=np.float64)
            for values in (window.sent, window.ended)
        )
        return SentSeries(
            np.array(window.due), sent, ended, window.extras, settle_s, duration_s,
            window.last_s, window.area, tuple(sorted(window.dropped)),
        )  # fmt: skip

    @property
    def done(self) -> np.ndarray:
        """(n,) whether each was answered."""
        return ~np.isnan(self.ended_s)

    @property
    def counted(self) -> np.ndarray:
        """(n,) whether each came after the window had settled."""
        return self.scheduled_s >= self.settle_s

    @property
    def unfinished(self) -> int:
        """How many were not answered before the cut."""
        return int((~self.done).sum())

    def latency_s(self) -> np.ndarray:
        """(n,) from the scheduled arrival to the end of the answer; NaN without one."""
        return self.ended_s - self.scheduled_s

    def waited_s(self) -> np.ndarray:
        """(n,) the same, and without an answer what was waited until the cut."""
        return np.where(self.done, self.latency_s(), self.cut_s - self.scheduled_s)

    def counted_latency_s(self) -> np.ndarray:
        """Latencies of those that count and were answered."""
        return self.latency_s()[self.counted & self.done]

    def lateness_s(self) -> np.ndarray:
        """(n,) from the scheduled arrival to the moment at which the client sent it."""
        return np.where(np.isnan(self.sent_s), self.cut_s, self.sent_s) - self.scheduled_s

    def lateness_limit_s(self) -> float:
        """The p99 of lateness above which the window is refused, as in `measure.served`."""
        return max(LATENESS_S, LATENESS_SHARE * float(np.median(self.waited_s()[self.counted])))

    def refused(self) -> str | None:
        """Why nothing may be read from the window; None where the client kept time."""
        late, limit = _p99(self.lateness_s()), self.lateness_limit_s()
        if late <= limit:
            return None
        return (
            f"the client sent 1 % of the requests {seconds(late)} late or more, above its limit of "
            f"{seconds(limit)}: its processor had too much to do"
        )

    def little(self) -> LittlesLaw:
        """Little's law over the window."""
        over = max(self.cut_s, self.duration_s)
        counted, derived = self.area / over, float(self.waited_s().sum()) / over
        gap = abs(counted - derived) / max(derived, _TINY)
        return LittlesLaw(
            in_system=counted, rate_times_latency=derived, relative_gap=gap, holds=gap <= LITTLE_GAP
        )

    def growth(self) -> queueing.Growth | None:
        """How the latency of those that count grew; None for fewer than tell."""
        kept = self.counted & self.done
        return queueing.latency_growth(self.scheduled_s[kept], self.latency_s()[kept])

    def kept_up_share(self) -> float:
        """Answers in the second half of the arrivals' time over the arrivals in it."""
        half, end = self.duration_s / 2, self.duration_s
        came = int(((self.scheduled_s >= half) & (self.scheduled_s <= end)).sum())
        answered = int(((self.ended_s >= half) & (self.ended_s <= end)).sum())
        return answered / max(came, 1)

    def saturated(self) -> bool:
        """Whether requests were left at the end, or latency grew while answers fell behind."""
        growth = self.growth()
        grew = growth is not None and growth.grows
        return self.unfinished > 0 or (grew and self.kept_up_share() < BEHIND)

    def rows(self) -> list[Json]:
        """One per request: `position`, `window` (``settle``, ``measure``), scheduled_s, sent_s,
        finished_s, latency_s (None without an answer), `dropped`, `ttft_s` from the scheduled
        arrival, and other extras."""
        found = []
        for k, (due, sent, ended) in enumerate(
            zip(self.scheduled_s.tolist(), self.sent_s.tolist(), self.ended_s.tolist(), strict=True)
        ):
            done = ended == ended
            extras = dict(self.extras[k] or {})
            first = extras.pop("first_token_s", None)
            if first is not None:
                extras["ttft_s"] = sent - due + first
            own = {
                "position": k, "window": "measure" if due >= self.settle_s else "settle",
                "scheduled_s": due, "sent_s": sent if sent == sent else None,
                "finished_s": ended if done else None, "latency_s": ended - due if done else None,
                "dropped": k in self.dropped,
            }  # fmt: skip
            # The client's own numbers come last, so that none of the server's can pass for them.
            found.append(extras | own)
        return found

    def record(self, scenario: str, **more: Any) -> Serving:
        """The summary that is stored beside the raw rows; `more`: what the caller knows. What only
        the server could tell (its batches, how busy it was) is None."""
        growth, until = self.growth(), max(self.cut_s, self.duration_s)
        requests = int(self.counted.sum())
        asked_s = max(self.duration_s - self.settle_s, _TINY)
        taken_s = max(until - self.settle_s, _TINY)
        return Serving(
            scenario=scenario,
            batching="server",
            requests=requests,
            unfinished=self.unfinished,
            dropped=len(self.dropped),
            duration_s=self.duration_s,
            settle_s=self.settle_s,
            ended_s=self.cut_s,
            offered_rate_per_s=requests / asked_s,
            achieved_rate_per_s=int((self.counted & self.done).sum()) / taken_s,
            lateness_p99_s=_p99(self.lateness_s()),
            lateness_limit_s=self.lateness_limit_s(),
            refused=self.refused(),
            little=self.little(),
            growth=Growth(slope=growth.slope, p_value=growth.p_value) if growth else None,
            saturated=self.saturated(),
            **more,
        )


def _p99(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.99, method="inverted_cdf"))
