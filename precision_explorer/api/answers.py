"""The answers of `Run`, as data that reads as the command line prints it."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from precision_explorer.comparison import Compared
from precision_explorer.comparison import compare as compared
from precision_explorer.decision import Decision, Question, decisions
from precision_explorer.report.comparison import print_comparisons
from precision_explorer.report.comparison import to_markdown as comparisons_markdown
from precision_explorer.report.decision import print_decisions
from precision_explorer.table import Table
from precision_explorer.table.figures import parse_objective
from precision_explorer.table.limits import limits_of

# As wide as a notebook's cell shows without a fold.
_WIDTH = 120


def _printed(write: Callable[[Console], None]) -> str:
    out = io.StringIO()
    write(Console(file=out, width=_WIDTH, color_system=None))
    return out.getvalue().rstrip()


def _preformatted(text: str) -> str:
    return f'<pre style="overflow-x: auto">{html.escape(text)}</pre>'


class Decisions(tuple[Decision, ...]):
    """One `Decision` per model and task, and one per model over all its tasks; as text it reads as
    ``precision-explorer decide`` prints it."""

    prices: tuple[str, ...] = ()

    @property
    def chosen(self) -> str | None:
        """The format that is recommended, where all name one and the same; else None."""
        names = {decision.chosen.name if decision.chosen else None for decision in self}
        return names.pop() if len(names) == 1 else None

    def __str__(self) -> str:
        return _printed(lambda console: print_decisions(list(self), console, self.prices))

    def _repr_html_(self) -> str:
        return _preformatted(str(self))


class Comparisons(tuple[Compared, ...]):
    """One `Compared` per further run; as text it reads as ``precision-explorer compare`` prints
    it."""

    @property
    def is_answered(self) -> bool:
        """Whether no row was refused for its method."""
        return all(one.is_answered for one in self)

    def __str__(self) -> str:
        return _printed(lambda console: print_comparisons(self, console))

    def _repr_markdown_(self) -> str:
        return comparisons_markdown(self)

    def _repr_html_(self) -> str:
        return _preformatted(str(self))


def decide(table: Table, objective: str, task: str | None = None) -> Decisions:
    """The answers for `table`, within the limits that its reader has given; UsageError for an
    objective or a task that is not there."""
    question = Question(parse_objective(objective), limits_of(table.context))
    found = Decisions(decisions(table, question, task))
    found.prices = table.context.prices
    return found


def compare(
    paths: Sequence[Path], allow: tuple[str, ...] = (), unfinished: bool = False
) -> Comparisons:
    """The run at the first of `paths` held against each of the others (`comparison.compare`)."""
    return Comparisons(compared(paths, allow, unfinished))
