"""What is stored: identities, measurements and their metric registry. Pure data, no torch.

Missing is ``None``, never 0 or NaN; units stand in the field names (SI).
"""

from precision_explorer.records.cell import Cell, ModelIdentity, TaskIdentity, canonical_hash
from precision_explorer.records.metrics import METRICS, MetricInfo, metric_info
from precision_explorer.records.record import (
    SCHEMA_VERSION,
    STATUSES,
    AppliedFormat,
    Attempt,
    Caution,
    CellRecord,
    Certificate,
    Environment,
    ErrorInfo,
    Executed,
    LeftBehind,
    Measurements,
    OffLabel,
    read_record,
)
from precision_explorer.records.upgrade import NewerSchema

__all__ = [
    "METRICS",
    "SCHEMA_VERSION",
    "STATUSES",
    "AppliedFormat",
    "Attempt",
    "Caution",
    "Cell",
    "CellRecord",
    "Certificate",
    "Environment",
    "ErrorInfo",
    "Executed",
    "LeftBehind",
    "Measurements",
    "MetricInfo",
    "ModelIdentity",
    "NewerSchema",
    "OffLabel",
    "TaskIdentity",
    "canonical_hash",
    "metric_info",
    "read_record",
]
