"""Windows and meters. They measure callables and know no model; torch is imported only inside
functions that ask a CUDA device."""

from precision_explorer.measure.energy import (
    EnergyWindow,
    IdleBaseline,
    IdlePower,
    idle_reading,
    measure,
)
from precision_explorer.measure.latency import LatencySeries, single_stream
from precision_explorer.measure.memory import CudaPeakMemory, PeakMemory
from precision_explorer.measure.others import OtherWork, count_as_own
from precision_explorer.measure.phases import NullPhases, Phases
from precision_explorer.measure.quiet import set_aside_imports
from precision_explorer.measure.soak import SoakMonitor
from precision_explorer.measure.throughput import offline

__all__ = [
    "CudaPeakMemory",
    "EnergyWindow",
    "IdleBaseline",
    "IdlePower",
    "LatencySeries",
    "NullPhases",
    "OtherWork",
    "PeakMemory",
    "Phases",
    "SoakMonitor",
    "count_as_own",
    "idle_reading",
    "measure",
    "offline",
    "set_aside_imports",
    "single_stream",
]
