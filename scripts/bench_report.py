"""Print how large the reports of many cells are, and how long making them takes.

By default 100 and 1,000 simulated cells in two runs (machines): copies of the stored results' cells
under names of other models, tasks and a second device, with other speeds. Aims: HTML of at most
500 kB for 100 cells and 2 MB for 1,000, in at most 2 s of CPU time each. Reading the records and
samples and the statistics on them is timed apart.

    .venv/bin/python scripts/bench_report.py [--cells 100,1000] [--keep DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

# Read when numpy is imported.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

from precision_explorer.records import CellRecord
from precision_explorer.report import to_csv, to_html, to_markdown
from precision_explorer.store import RunFolder, read_run
from precision_explorer.table import Table, build

AIM_S, AIM_BYTES = 2.0, {100: 500_000, 1000: 2_000_000}
RESULTS = Path(__file__).parent.parent / "results"
TEMPLATES = ("smollm2-choice-cpu", "smollm2-perplexity-cpu")
MODELS = ("smollm2-135m", "qwen2.5-0.5b", "llama-3.2-1b", "gemma-2-2b", "phi-3-mini", "mistral-7b")
TASKS = ("hellaswag", "arc-easy", "mmlu", "piqa", "boolq", "winogrande", "wikitext-2")
# Name, dollars per hour, and how many times as fast as the machine that was measured.
DEVICES = (("Intel(R) Xeon(R) Processor @ 2.90GHz", 0.4, 1.0), ("NVIDIA L4", 0.8, 9.0))

Json = dict[str, Any]


def cells(count: int) -> Iterator[tuple[str, int, str, int]]:
    """(model, device, task, format) of `count` cells, devices and formats by their place."""
    formats = len(read_run(RESULTS / TEMPLATES[0])[1]["plan"]["cells"])
    every = product(MODELS, TASKS, range(len(DEVICES)), range(formats))
    for (model, task, device, fmt), _ in zip(every, range(count), strict=False):
        yield model, device, task, fmt


def template_of(task: str) -> Path:
    """The run whose cells stand for those of `task`."""
    return RESULTS / TEMPLATES[task == "wikitext-2"]


def simulated(folder: RunFolder, source: RunFolder, record: CellRecord, changes: Json) -> Json:
    """`record` of `source` into `folder` under other names; its line of the plan."""
    document = json.loads(record.model_dump_json())
    speed = changes.pop("speed")
    for name, of_cell in changes.items():
        old = document["cell"][name]
        document["cell"][name] = old | of_cell if isinstance(old, dict) else of_cell
    made = CellRecord.model_validate(document)
    document.update(cell_id=made.cell.cell_id, method_id=made.cell.method_id)
    for rate in (
        (document["measurements"].get("throughput") or {}).get("by_batch_size", {}).values()
    ):
        rate["requests_per_s"] *= speed
    made = CellRecord.model_validate(document)
    folder.write_record(made)
    shutil.copy(source.samples_path(record.cell_id), folder.samples_path(made.cell_id))
    return {"cell_id": made.cell_id, "format": made.cell.format, "task": made.cell.task.name}


def run_of(path: Path, device: int, chosen: list[tuple[str, int, str, int]]) -> Path:
    """One machine's run with the cells `chosen` for it."""
    name, price, speed = DEVICES[device]
    folder, rng = RunFolder(path), np.random.default_rng(device)
    folder.open()
    plan, tasks, methods = [], {}, {}
    for model, _, task, fmt in chosen:
        source, sweep = read_run(template_of(task))
        record = source.read_record(sweep["plan"]["cells"][fmt]["cell_id"])
        assert record is not None
        revision = f"files:{MODELS.index(model):016x}"
        changes = {
            "model": {"name": model, "revision": revision},
            "task": {"name": task},
            "device_name": name,
            "speed": speed * float(np.exp(0.2 * rng.standard_normal())),
        }
        plan.append(simulated(folder, source, record, changes))
        tasks[task] = sweep["tasks"][0] | {"name": task}
        methods |= sweep["methods"]
    sweep = read_run(template_of(""))[1]
    folder.write_sweep(
        sweep
        | {
            "run": path.name,
            "reader": sweep["reader"] | {"price_per_hour": price},
            "plan": {"cells": plan, "method_ids": []},
            "models": [
                {"name": model, "revision": f"files:{MODELS.index(model):016x}", "cautions": []}
                for model in dict.fromkeys(cell[0] for cell in chosen)
            ],
            "tasks": list(tasks.values()),
            "environment": sweep["environment"] | {"device_name": name},
            "methods": methods,
        }
    )
    roof = source.read_roof()
    if roof is not None:
        folder.write_roof(roof)
    folder.write_manifest()
    folder.close()
    return path


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """(what `make` returns, seconds of CPU time)."""
    begun = time.process_time()
    return make(), time.process_time() - begun


def report(table: Table, count: int, keep: Path | None) -> None:
    """Print seconds and bytes of each output."""
    for suffix, make in (("html", to_html), ("md", to_markdown), ("csv", to_csv)):
        text, took = timed(lambda make=make: make(table))
        size = len(text.encode())
        aims = ""
        if suffix == "html":
            limit = AIM_BYTES.get(count)
            aims = f" (aims: {AIM_S:.0f} s" + (f", {limit:,} bytes)" if limit else ")")
        print(f"  {suffix:5} {took:6.2f} s of CPU time, {size:10,} bytes{aims}")
        if keep is not None:
            (keep / f"report-{count}.{suffix}").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", default="100,1000")
    parser.add_argument("--keep", type=Path, help="a folder for the reports")
    asked = parser.parse_args()
    for count in map(int, asked.cells.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            chosen = list(cells(count))
            runs = [
                run_of(Path(folder) / f"machine-{device}", device, own)
                for device in range(len(DEVICES))
                if (own := [cell for cell in chosen if cell[1] == device])
            ]
            table, took = timed(lambda runs=runs: build(runs))
        print(f"{count:,} cells: records and samples to a table in {took:.1f} s of CPU time")
        report(table, count, asked.keep)


if __name__ == "__main__":
    main()
