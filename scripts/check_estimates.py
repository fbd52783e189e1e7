"""How far the speeds that `plan --estimate` takes from a config and the device's roofs are from
what stored runs measured.

    python scripts/check_estimates.py
    python scripts/check_estimates.py results/smollm2-news-cpu

Of every stored cell whose model and task are here: seconds of its quality pass, of a timed request,
of an offline batch and of its load, as the run's own roofs and the declared share of them say,
beside those in its record. No run tells of another here: it is the worst case, a device's first
sweep. Measured over expected is printed by what was measured, and how much lies within the declared
factor. Cells beside which other processes took more than 5 % of the processors are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from precision_explorer.errors import PrecisionExplorerError
from precision_explorer.formats import Support
from precision_explorer.formats.architectures import decoder_sizes
from precision_explorer.formats.recipe import is_mixed
from precision_explorer.models import ModelRef, resolve
from precision_explorer.plan import PlannedCell
from precision_explorer.plan.speeds import BUSY, REACHED_FACTOR, Speeds, by_record, by_roof
from precision_explorer.records import CellRecord, Roof
from precision_explorer.store import read_run
from precision_explorer.tasks import load_card, prepare
from precision_explorer.workload import Workload

RESULTS = Path(__file__).parents[1] / "results"


def model_of(record: CellRecord) -> ModelRef:
    """The model that a record is of, of a shape with its weights counted."""
    ref = resolve(record.cell.model.name)
    sizes = decoder_sizes(ref.config) if ref.synthetic is not None else None
    return ref if sizes is None else replace(ref, sizes=sizes, elements=sizes.elements)


def compared(folder: Path) -> Iterator[tuple[CellRecord, Speeds, Speeds]]:
    """(record, expected, measured) of the cells of a run that can be held against its roofs."""
    run, sweep = read_run(folder)
    roof: Roof | None = run.read_roof()
    for planned in sweep["plan"]["cells"] if roof is not None else ():
        record = run.read_record(planned["cell_id"])
        if record is None or record.status != "ok" or is_mixed(record.cell.format):
            continue
        if (record.measurements.other_work_share or 0.0) > BUSY or record.cell.runtime != "eager":
            continue
        cell = record.cell
        try:
            task = prepare(load_card(cell.task.name), cell.task.n, cell.seed)
            ref = model_of(record)
        except PrecisionExplorerError:
            continue  # A model that is not here.
        support = Support(cell.format, "native", "measured", cell.recipe)
        made = PlannedCell(cell, ref, task, support, None, None, ())
        measured = by_record(made, record, run.name)
        if measured is not None:
            yield (
                record,
                by_roof(made, ref, Workload.model_validate(cell.workload), roof, None),
                measured,
            )


def ratios(expected: Speeds, measured: Speeds) -> dict[str, float]:
    """Measured over expected, by what was measured."""
    largest = max(measured.batch_s)
    found = {
        "request": measured.request_s / expected.request_s,
        "batch": measured.batch_s[largest] / expected.batch_s[largest],
        "load": measured.load_s / expected.load_s,
    }
    if measured.quality_s and expected.quality_s:
        found["quality"] = measured.quality_s / expected.quality_s
    return found


def main(arguments: list[str]) -> int:
    """Print the ratios of all runs, or of those named."""
    folders = [Path(a) for a in arguments] or sorted(
        path.parent for path in RESULTS.glob("*/sweep.json")
    )
    by_kind: dict[tuple[str, str], list[float]] = {}
    cells = 0
    for folder in folders:
        for record, expected, measured in compared(folder):
            cells += 1
            kind = record.cell.device.split(":")[0]
            for name, ratio in ratios(expected, measured).items():
                by_kind.setdefault((kind, name), []).append(ratio)
    print(f"{cells} cells; measured over expected:")
    print("device  what     n    5 %   median   95 %   within the factor")
    for (kind, name), found in sorted(by_kind.items()):
        low, high = np.percentile(found, [5, 95])
        inside = sum(1 / REACHED_FACTOR <= r <= REACHED_FACTOR for r in found) / len(found)
        print(
            f"{kind:6}  {name:7} {len(found):3}  {low:5.2f}  {median(found):6.2f}  {high:6.2f}  "
            f"{100 * inside:5.0f} %"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
