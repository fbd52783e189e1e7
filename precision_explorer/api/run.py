"""`Run`: a stored run, or several read together, as frames, answers and pages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precision_explorer.api.answers import Comparisons, Decisions, compare, decide
from precision_explorer.api.options import ReaderOptions, given_reader
from precision_explorer.api.pages import report_folder, write_report
from precision_explorer.api.reader import table_reader
from precision_explorer.errors import StoreError, UsageError, unknown_name
from precision_explorer.records import CellRecord
from precision_explorer.report.excerpt import excerpt_html, excerpt_markdown
from precision_explorer.store import RunFolder, read_run
from precision_explorer.table import Table, build
from precision_explorer.table.figures import FIGURES

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Unpack

_ROW_COLUMNS = ("model", "task", "format", "runtime", "device", "execution", "verdict")
_FRONT_COLUMNS = ("pareto_probability", "pareto_ties", "pareto_note")


def open_run(
    path: str | os.PathLike[str],
    *more: str | os.PathLike[str],
    **reader: Unpack[ReaderOptions],
) -> Run:
    """The run in the folder `path`, with those at `more` read as one table; see `Run`."""
    return Run(path, *more, **reader)


class Run:
    """A stored run. Reads records and samples only: no model is run, and torch is not imported.

    `path`: its folder; with `more` several runs (machines, models) stand in one table. `reader`:
    prices, latency objective, limits and objectives of one's own (`ReaderOptions`) in place of
    those that the sweep was given. StoreError where a folder is no run, UsageError for an option
    that is unknown or can't be. What is read is kept: open the run again to see what changed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *more: str | os.PathLike[str],
        **reader: Unpack[ReaderOptions],
    ) -> None:
        named = [Path(os.fspath(one)).expanduser() for one in (path, *more)]
        self.paths: tuple[Path, ...] = tuple({one.resolve(): one for one in named}.values())
        self._options: dict[str, Any] = given_reader(reader)
        self._reader = table_reader(**self._options)
        self._folders = [read_run(one) for one in self.paths]

    @property
    def path(self) -> Path:
        """The folder of the run; of several, the first."""
        return self.paths[0]

    def read(self, **reader: Unpack[ReaderOptions]) -> Run:
        """The same run as one with these options too sees it, those given before kept."""
        return Run(*self.paths, **(self._options | given_reader(reader)))

    # -- what was measured ---------------------------------------------------------------------

    @cached_property
    def _made(self) -> Table:
        return build(list(self.paths), self._reader)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The tradeoff table, a row per cell with the columns of ``tradeoffs.csv``
        (docs/table.md); SI units, missing where not measured."""
        return self._made.to_frame()

    @cached_property
    def _cells(self) -> list[tuple[CellRecord, RunFolder]]:
        found = []
        for folder, sweep in self._folders:
            cells = (folder.read_record(cell["cell_id"]) for cell in sweep["plan"]["cells"])
            found += [(record, folder) for record in cells if record is not None]
        return found

    @property
    def records(self) -> list[CellRecord]:
        """The record of each cell that has one, in the plan's order: applied format, measurements,
        cautions, environment, errors."""
        return [record for record, _ in self._cells]

    @property
    def failed(self) -> list[CellRecord]:
        """The records of cells that were tried and have no result; `error` says why."""
        return [record for record in self.records if record.status not in ("ok", "skipped")]

    def samples(self, cell: str | CellRecord, kind: str = "example") -> pd.DataFrame:
        """The raw samples of one cell: a row per example (id, target, prediction, score, ...), or
        of another `kind` (docs/results-folder.md): ``request`` (latency in seconds, ...),
        ``repeat``, ``position``. `cell`: a record, a cell id, or a format that the run has once.
        UsageError where that is no cell of the run, or several."""
        import pandas as pd

        record, folder = self._find(cell)
        rows = folder.read_samples(record.cell_id, kind, record.known_samples)
        frame = pd.DataFrame(rows).drop(columns="row", errors="ignore")
        # The kinds share a file: of a row's columns those of other kinds are empty.
        return frame.dropna(axis="columns", how="all")

    def _find(self, cell: str | CellRecord) -> tuple[CellRecord, RunFolder]:
        name = cell.cell_id if isinstance(cell, CellRecord) else cell
        found = [(r, f) for r, f in self._cells if name in (r.cell_id, r.cell.format)]
        if not found:
            formats = dict.fromkeys(record.cell.format for record in self.records)
            raise UsageError(unknown_name("cell", name, formats))
        if len(found) > 1:
            ids = ", ".join(f"{r.cell_id} ({r.cell.task.name})" for r, _ in found)
            raise UsageError(f"{name} stands for several cells; give the id of one: {ids}")
        record, folder = found[0]
        if record.status != "ok":
            raise StoreError(f"{name} has no samples, as it is {record.status}; see its record")
        return record, folder

    # -- answers -------------------------------------------------------------------------------

    def pareto(self, objectives: str | Sequence[str] | None = None) -> pd.DataFrame:
        """The rows on the Pareto front, with the columns of its objectives: those given, else those
        of the table. ``attrs["objectives"]`` names them. Empty where no front could be taken."""
        if objectives is not None:
            return self.read(objectives=objectives).pareto()
        names = list(dict.fromkeys(n for of in self._made.objectives.values() for n in of))
        columns = dict.fromkeys([*_ROW_COLUMNS, *(FIGURES[n].column for n in names)])
        table = self.table
        front = table.loc[table["pareto"] == "yes", [*columns, *_FRONT_COLUMNS]]
        front = front.reset_index(drop=True)
        front.attrs["objectives"] = names
        return front

    def decide(
        self, objective: str = "cost", *, task: str | None = None, **limits: Unpack[ReaderOptions]
    ) -> Decisions:
        """Which format is the best in `objective` of those known to hold the limits, per model and
        task; as ``precision-explorer decide``. `limits` come to those that the run was opened
        with. UsageError for an objective or a task that is not there."""
        table = self.read(**limits)._made if given_reader(limits) else self._made
        return decide(table, objective, task)

    def compare(
        self,
        *others: Run | str | os.PathLike[str],
        allow: Sequence[str] = (),
        unfinished: bool = False,
    ) -> Comparisons:
        """What changed from this run to each of `others`, where they declare the same method; as
        ``precision-explorer compare``. `allow`: fields of the method that may differ; `unfinished`:
        compare the rows that have a result. UsageError for runs that can't be compared."""
        paths = [*self.paths]
        for other in others:
            paths += other.paths if isinstance(other, Run) else [Path(os.fspath(other))]
        return compare(paths, tuple(allow), unfinished)

    def report(self, out: str | os.PathLike[str] | None = None) -> Path:
        """Write ``tradeoffs.csv``, ``tradeoffs.md`` and ``report.html``; the path of the last. Into
        the run's own folder, whose tables always show what its sweep was given; a table of several
        runs, or with options of one's own, goes to the folder `out`. UsageError where `out` is
        missing, is a run's own folder, or can't be written."""
        place = None if out is None else Path(os.fspath(out)).expanduser()
        target = report_folder(self.paths, self._reader, place)
        if target is None:
            raise UsageError("this is not the run's own table; give a folder for it, as out='mine'")
        write_report(self._made, target)
        return target / "report.html"

    # -- notebooks -----------------------------------------------------------------------------

    def __repr__(self) -> str:
        cells = len(self.records)
        paths = ", ".join(repr(str(path)) for path in self.paths)
        return f"Run({paths}): {cells} cell{'' if cells == 1 else 's'}"

    def _repr_html_(self) -> str:
        return excerpt_html(self._made)

    def _repr_markdown_(self) -> str:
        return excerpt_markdown(self._made)
