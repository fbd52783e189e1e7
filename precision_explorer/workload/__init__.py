"""How requests come, how long they are, and when measuring stops."""

from precision_explorer.workload.arrivals import (
    ARRIVALS,
    Arrivals,
    ConstantArrivals,
    DailyArrivals,
    GammaArrivals,
    OnOffArrivals,
    PoissonArrivals,
)
from precision_explorer.workload.background import BACKGROUNDS, Neighbour, names_of
from precision_explorer.workload.lengths import (
    LENGTHS,
    DataLengths,
    FixedLengths,
    HistogramLengths,
    Length,
    Lengths,
    LognormalLengths,
)
from precision_explorer.workload.load import changed, load_workload, repeats_s
from precision_explorer.workload.mix import MixPart
from precision_explorer.workload.presets import PRESETS
from precision_explorer.workload.process import MOST_REQUESTS, ArrivalProcess
from precision_explorer.workload.rate_search import PERCENTILES, RateSearch
from precision_explorer.workload.replay import TraceArrivals
from precision_explorer.workload.schedule import Schedule, plan_schedule
from precision_explorer.workload.trace import TraceData, read_trace
from precision_explorer.workload.workload import (
    LEAST_WINDOWS,
    SCENARIOS,
    TAILS,
    WINDOW_S,
    Workload,
)

__all__ = [
    "ARRIVALS",
    "BACKGROUNDS",
    "LEAST_WINDOWS",
    "LENGTHS",
    "MOST_REQUESTS",
    "PERCENTILES",
    "PRESETS",
    "SCENARIOS",
    "TAILS",
    "WINDOW_S",
    "ArrivalProcess",
    "Arrivals",
    "ConstantArrivals",
    "DailyArrivals",
    "DataLengths",
    "FixedLengths",
    "GammaArrivals",
    "HistogramLengths",
    "Length",
    "Lengths",
    "LognormalLengths",
    "MixPart",
    "Neighbour",
    "OnOffArrivals",
    "PoissonArrivals",
    "RateSearch",
    "Schedule",
    "TraceArrivals",
    "TraceData",
    "Workload",
    "changed",
    "load_workload",
    "names_of",
    "plan_schedule",
    "read_trace",
    "repeats_s",
]
