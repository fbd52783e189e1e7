"""`Workload`: how requests come and when measuring stops, declared and validated as a whole."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from precision_explorer.errors import unknown_name
from precision_explorer.units import seconds
from precision_explorer.workload.arrivals import Arrivals, DailyArrivals
from precision_explorer.workload.background import Neighbour, as_list, check_once
from precision_explorer.workload.declared import Declared
from precision_explorer.workload.lengths import DataLengths, Lengths
from precision_explorer.workload.mix import MixPart
from precision_explorer.workload.rate_search import RateSearch
from precision_explorer.workload.replay import TraceArrivals

SCENARIOS = ("single-stream", "multi-stream", "offline", "server")
TAILS = {"p99": 0.99, "p999": 0.999}
# Fields that mean something in these scenarios only; all others do in every one.
BELONGS: dict[str, tuple[str, ...]] = {
    "arrivals": ("server",),
    "batching": ("server",),
    "duration_seconds": ("server",),
    "lengths": ("server",),
    "load_of": ("server",),
    "max_batch": ("server",),
    "max_wait_s": ("server",),
    "mix": ("server",),
    "streams": ("multi-stream",),
    "tails": ("server",),
    "window_seconds": ("single-stream", "multi-stream", "server"),
}
WINDOW_S = 60.0
"""Length of the windows that a long measurement is cut into, where a workload names no other: a
declared choice, long enough for hundreds of short requests, short enough to show a clock that
sinks."""
LEAST_WINDOWS = 4
"""From how many windows on a measurement is long enough to be told window by window: with fewer
there is no middle between the first and the last. A declared choice."""


SEARCHING: dict[str, Any] = {"rounds": 1, "duration_seconds": 5.0, "budget_seconds": 180.0}
"""What a workload whose rate is searched has unless told otherwise."""


# Arrivals of which a part is another load.
_WHOLE = ("daily", "trace")


class Workload(Declared):
    """One scenario of MLPerf Inference's (Reddi et al. 2020) and the rules of its measurement.

    `single-stream`: the next request when the last is done. Measured until `min_requests` and
    `min_seconds` are both met, after warm-up by the same pair of rules; `budget_seconds` bounds the
    whole from the first, cold request. `energy_seconds` is the least window where a meter's counter
    is read over it. Offline: `offline_seconds` and `offline_min_batches` per batch size,
    `offline_budget_seconds` for all sizes of a cell. For language models a request is a document's
    first `prompt_tokens` tokens and `output_tokens` greedy ones.
    All of it is divided over `rounds` (`one_round`), between which other formats are measured.

    `multi-stream`: the next `streams` requests, as one batch, when the last ones are done (MLPerf's
    samples per query, 8 there too); rules as of single-stream. `offline`: all requests at hand, the
    offline part alone. `server`: requests come by the clock of `arrivals` for `duration_seconds`,
    of which the first `warmup_seconds` warm up; a batch takes what waits, at most `max_batch`, and
    waits at most `max_wait_s` for more. Generated answers are batched as `batching` says: decoded
    together from first to last token (`static`), or each joining at any step (`continuous`), which
    without it is taken where it can be. With `tails` a window is as long as that percentile would
    take of independent requests, and longer ones follow it while theirs take more and
    `budget_seconds` is left; the last counts. `lengths` and `mix` say what requests are like. All
    three are for `server` alone (docs/workloads.md). Where the arrivals `search` their rate,
    `duration_seconds` is the least window at each rate, and `budget_seconds` bounds all of a
    format's windows together. A measured time of `LEAST_WINDOWS`
    windows of `window_seconds` (`WINDOW_S`) in one round is watched window by window
    (`soak_windows`).

    With `background` each format is measured a second time in every round, beside that work.
    """

    name: str = Field(default="single-stream", min_length=1, max_length=64)
    scenario: str = "single-stream"
    min_requests: int = Field(default=30, ge=1)
    min_seconds: float = Field(default=3.0, ge=0)
    warmup_requests: int = Field(default=3, ge=0)
    warmup_seconds: float = Field(default=0.5, ge=0)
    budget_seconds: float = Field(default=60.0, gt=0)
    energy_seconds: float = Field(default=5.0, ge=0)
    offline_seconds: float = Field(default=2.0, ge=0)
    offline_min_batches: int = Field(default=2, ge=1)
    offline_budget_seconds: float = Field(default=20.0, gt=0)
    prompt_tokens: int = Field(default=128, ge=1)
    output_tokens: int = Field(default=16, ge=1)
    rounds: int = Field(default=3, ge=1, le=100)
    arrivals: Arrivals | None = None
    load_of: Literal["reference", "own"] = "reference"
    batching: Literal["continuous", "static"] | None = None
    duration_seconds: float = Field(default=30.0, gt=0)
    max_batch: int = Field(default=8, ge=1)
    max_wait_s: float = Field(default=0.0, ge=0)
    streams: int = Field(default=8, ge=1)
    lengths: Lengths | None = None
    mix: tuple[MixPart, ...] | None = Field(default=None, min_length=2)
    tails: Literal["p99", "p999"] | None = None
    window_seconds: float | None = Field(default=None, ge=1)
    background: tuple[Neighbour, ...] | None = None

    @field_validator("scenario")
    @classmethod
    def _known_scenario(cls, value: str) -> str:
        if value not in SCENARIOS:
            raise ValueError(unknown_name("scenario", value, SCENARIOS))
        return value

    @field_validator("background", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return value if value is None else as_list(value)

    @model_validator(mode="before")
    @classmethod
    def _one_window(cls, values: Any) -> Any:
        """A day or a trace is served in one window unless told otherwise, since a part of it is
        another load; a search has rules of its own."""
        arrivals = values.get("arrivals") if isinstance(values, dict) else None
        own = dict(arrivals) if isinstance(arrivals, (dict, Declared)) else {}
        if own.get("search") is not None:
            return SEARCHING | values
        return {"rounds": 1} | values if own.get("kind") in _WHOLE else values

    @model_validator(mode="after")
    def _fits(self) -> Workload:
        for name, scenarios in BELONGS.items():
            default = type(self).model_fields[name].default
            if self.scenario not in scenarios and getattr(self, name) != default:
                raise ValueError(
                    f"{name} is for the scenario {' or '.join(scenarios)}, and this is "
                    f"{self.scenario}; leave it out, or change the scenario"
                )
        if self.scenario == "server":
            self._fits_server()
        self._fits_lengths()
        check_once(self.background or ())
        return self

    def _fits_server(self) -> None:
        if self.arrivals is None:
            raise ValueError(
                "scenario server needs arrivals, such as arrivals: {kind: poisson, load: 0.7}"
            )
        if self.search is not None:
            self._fits_search(self.arrivals.kind)
        window_s = self.duration_seconds / self.rounds
        if window_s <= self.warmup_seconds:
            each = f" in each of {self.rounds} rounds" if self.rounds > 1 else ""
            raise ValueError(
                f"duration_seconds ({seconds(self.duration_seconds)}) is not longer than the "
                f"warm-up (warmup_seconds, {seconds(self.warmup_seconds)}{each}); raise it"
            )
        if self.rounds > 1 and self.arrivals.kind in _WHOLE:
            raise ValueError(
                f"{self.rounds} rounds would cut the {self.arrivals.kind} arrivals to pieces; "
                "leave rounds out"
            )
        if self.max_wait_s and self.batching == "continuous":
            raise ValueError(
                "max_wait_s waits for a larger batch, and in continuous batching a request joins "
                "at the next step; leave one of them out"
            )
        if self.max_wait_s and self.max_batch == 1:
            raise ValueError("max_wait_s waits for a larger batch, but max_batch is 1; raise it")
        day_s = self.arrivals.day_s if isinstance(self.arrivals, DailyArrivals) else None
        if day_s is not None and abs(self.duration_seconds / day_s % 1 - 0.5) < 0.5 - 1e-9:
            raise ValueError(
                f"duration_seconds ({seconds(self.duration_seconds)}) is no whole number of days "
                f"of {seconds(day_s)}, so its mean rate would be another; change one of them"
            )

    def _fits_search(self, kind: str) -> None:
        """Nothing is declared that a search decides by itself."""
        if kind in _WHOLE:
            raise ValueError(
                f"arrivals: a part of {kind} arrivals is another load, so no rate can be searched "
                "with them; give rate_per_s or load"
            )
        if self.rounds > 1:
            raise ValueError(f"a search takes one round, not {self.rounds}; leave rounds out")
        if self.tails is not None:
            raise ValueError(
                "a search serves windows as long as its own percentile takes; leave tails out"
            )
        if self.background:
            raise ValueError(
                "a search finds a rate for each format alone, so there is none to be disturbed at; "
                "leave background out, or give the rate"
            )
        if self.load_of != "reference":
            raise ValueError("a search asks each format at rates of its own; leave load_of out")

    def _fits_lengths(self) -> None:
        given = [part.lengths or self.lengths or Lengths() for part in self.mix or ()]
        names = [part.name for part in self.mix or ()]
        if len(set(names)) < len(names):
            raise ValueError("two parts of the mix have one name; give each its own")
        for side in ("input", "output"):
            own = [isinstance(getattr(lengths, side), DataLengths) for lengths in given]
            if any(own) and not all(own):
                raise ValueError(
                    f"mix: '{names[own.index(True)]}' takes the data's own {side} length and "
                    f"'{names[own.index(False)]}' does not; declare it for all parts or for none"
                )
        traced = isinstance(self.arrivals, TraceArrivals) and self.arrivals.use_lengths
        if traced and (self.lengths or any(part.lengths for part in self.mix or ())):
            raise ValueError(
                "the trace gives lengths too; leave these out, or set its use_lengths: false"
            )

    def rules(self) -> dict[str, Any]:
        """The fields of this scenario as JSON-able values: part of a cell's method, and enough to
        make the workload again (without the file of a trace, of which it holds the hash)."""
        document = self.model_dump(mode="json", exclude_none=True)
        return {
            name: value
            for name, value in document.items()
            if self.scenario in BELONGS.get(name, SCENARIOS)
        }

    def soak_windows(self, measured_s: float) -> int:
        """How many whole windows of `window_s` a measured time of `measured_s` seconds is watched
        in; 0 where that is fewer than `LEAST_WINDOWS`, or the time is divided over rounds."""
        if self.rounds > 1:
            return 0
        # A tenth that is no binary number must not cost a window.
        count = int(measured_s / self.window_s + 1e-9)
        return count if count >= LEAST_WINDOWS else 0

    @property
    def search(self) -> RateSearch | None:
        """The objective at which the arrivals' rate is searched; None where they declare one."""
        return self.arrivals.search if self.arrivals is not None else None

    @property
    def window_s(self) -> float:
        """Seconds of a window of a long measurement."""
        return WINDOW_S if self.window_seconds is None else self.window_seconds

    def one_round(self, first: bool) -> Workload:
        """The rules of one of `rounds`: least numbers (rounded up), seconds and budgets divided by
        them. The warm-up is whole in the `first` round of a process and divided in later ones, but
        for `server`, whose queue has to fill anew. `energy_seconds` holds in each, since a meter's
        counter needs its window."""
        n = self.rounds
        counts = ["min_requests", "offline_min_batches"]
        times = ["min_seconds", "budget_seconds", "offline_seconds", "offline_budget_seconds"]
        if self.scenario == "server":
            times.append("duration_seconds")
        elif not first:
            counts.append("warmup_requests")
            times.append("warmup_seconds")
        shares: dict[str, Any] = {name: -(-getattr(self, name) // n) for name in counts}
        return self.model_copy(update=shares | {name: getattr(self, name) / n for name in times})
