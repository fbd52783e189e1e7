"""What an executor costs beside the local one, per cell: seconds of a sweep whose workers answer at
once, so that nothing but loading, asking, writing and sending is left.

    python scripts/bench_executors.py --executor ray

Prints, for the local executor and for one place of the other, the seconds of the same cells and
their difference per cell, against the aim of 0.2 s. One place, so that nothing runs beside it; the
start of the place is printed by itself, as a sweep pays it once and not per cell. `ray` starts a
cluster on this machine (extra `ray`); `slurm` uses submitit's own processes (extra `slurm`);
`lanes` is a lane of this machine. Run it on an otherwise idle machine. Exits with 1 above the aim.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from precision_explorer.runner import places
from precision_explorer.runner.device_lanes import DeviceLanes
from precision_explorer.runner.spread import Pool
from precision_explorer.runner.sweep import run_sweep
from tests import replaying_lane, spread_sweep
from tests.conftest import know_the_roofs

AIM_S = 0.2


def source(executor: str, spec: Any) -> Any:
    """Where places come from."""
    if executor == "ray":
        from precision_explorer.runner.ray_places import RaySource

        return RaySource(spec)
    if executor == "slurm":
        from precision_explorer.runner.slurm_places import SlurmSource

        return SlurmSource(spec, lambda event: None, cluster="local")
    return DeviceLanes(spec, [])


def spread_s(kept: Any, executor: str, out: Path) -> tuple[float, float]:
    """(seconds until a place was there, seconds of the sweep on it)."""
    name = "local" if executor == "lanes" else executor
    own = {"executor": name, "out": str(out), "one_at_a_time": True}
    spec = kept.prepared.spec.model_copy(update=own)
    begun = time.monotonic()
    pool = Pool(source(executor, spec), spec, lambda event: None)
    try:
        pool.first()
        there = time.monotonic()
        _, tally = run_sweep(replace(kept.prepared, spec=spec, pool=pool), lambda event: None)
        ended = time.monotonic()
    finally:
        pool.close()
    assert tally.ran == spread_sweep.CELLS, tally
    return there - begun, ended - there


def main() -> None:
    """Print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--executor", choices=("ray", "slurm", "lanes"), default="ray")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    places.LANE = "tests.replaying_lane"
    os.environ["PYTHONPATH"] = sys.path[0]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        os.environ["PRECISION_EXPLORER_CACHE"] = str(folder / "cache")
        know_the_roofs()
        os.environ[replaying_lane.VARIABLE] = str(folder / "answers")
        kept = spread_sweep.planned(folder / "kept")
        (folder / "log").touch()
        replaying_lane.told(folder / "answers", kept.answers, 0.0, folder / "log")
        all_local, all_there = [], []
        for number in range(options.rounds):
            local_s = spread_sweep.local_s(kept, folder / f"local-{number}")
            start_s, there_s = spread_s(kept, options.executor, folder / f"there-{number}")
            all_local.append(local_s)
            all_there.append(there_s)
            per_cell = (there_s - local_s) / spread_sweep.CELLS
            print(
                f"{spread_sweep.CELLS} cells: local {local_s:.2f} s, {options.executor} "
                f"{there_s:.2f} s and {start_s:.1f} s to start; {per_cell:+.3f} s per cell"
            )
    per_cell = (median(all_there) - median(all_local)) / spread_sweep.CELLS
    print(f"overhead per cell, by the medians: {per_cell:+.3f} s (aim: at most {AIM_S} s)")
    if per_cell > AIM_S:
        sys.exit(1)


if __name__ == "__main__":
    main()
