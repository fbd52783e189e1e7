"""What is stored: identities, measurements and their metric registry. Pure data, no torch.

Missing is ``None``, never 0 or NaN; units stand in the field names (SI).
"""

from precision_explorer.records.cell import (
    NOT_SCORED,
    SYNTHETIC,
    Cell,
    ModelIdentity,
    TaskIdentity,
    canonical_hash,
)
from precision_explorer.records.metrics import METRICS, MetricInfo, metric_info
from precision_explorer.records.profile import PhaseProfile, Profile, Spent, Timing, Work
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
from precision_explorer.records.roof import Bandwidth, Launch, MatmulRate, Roof
from precision_explorer.records.scores import AddedScore, AddedScores, read_scores
from precision_explorer.records.soak import Soak, SoakWindow, windows_owed, with_repeats
from precision_explorer.records.upgrade import NewerSchema

__all__ = [
    "METRICS",
    "NOT_SCORED",
    "SCHEMA_VERSION",
    "STATUSES",
    "SYNTHETIC",
    "AddedScore",
    "AddedScores",
    "AppliedFormat",
    "Attempt",
    "Bandwidth",
    "Caution",
    "Cell",
    "CellRecord",
    "Certificate",
    "Environment",
    "ErrorInfo",
    "Executed",
    "Launch",
    "LeftBehind",
    "MatmulRate",
    "Measurements",
    "MetricInfo",
    "ModelIdentity",
    "NewerSchema",
    "OffLabel",
    "PhaseProfile",
    "Profile",
    "Roof",
    "Soak",
    "SoakWindow",
    "Spent",
    "TaskIdentity",
    "Timing",
    "Work",
    "canonical_hash",
    "metric_info",
    "read_record",
    "read_scores",
    "windows_owed",
    "with_repeats",
]
