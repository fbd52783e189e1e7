"""From records to the tradeoff table: declared columns, statistics derived on reading."""

from precision_explorer.table.build import build
from precision_explorer.table.data import (
    COLUMNS,
    CONTRACT_COLUMNS,
    EXTRA_COLUMNS,
    ROW_KEY,
    Aggregate,
    Comparison,
    Context,
    Curve,
    CurvePoint,
    DisturbedTable,
    Figure,
    Kept,
    ModelContext,
    SoakTable,
    Table,
    TaskContext,
)

__all__ = [
    "COLUMNS",
    "CONTRACT_COLUMNS",
    "EXTRA_COLUMNS",
    "ROW_KEY",
    "Aggregate",
    "Comparison",
    "Context",
    "Curve",
    "CurvePoint",
    "DisturbedTable",
    "Figure",
    "Kept",
    "ModelContext",
    "SoakTable",
    "Table",
    "TaskContext",
    "build",
]
