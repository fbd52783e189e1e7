"""How requests come and when measuring stops."""

from precision_explorer.workload.workload import PRESETS, SCENARIOS, Workload, load_workload

__all__ = ["PRESETS", "SCENARIOS", "Workload", "load_workload"]
