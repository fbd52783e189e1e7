"""What is stored: identities, measurements and their metric registry. Pure data, no torch.

Missing is ``None``, never 0 or NaN; units stand in the field names (SI).
"""

from precision_explorer.records.audit import CHECKS, Audit, AuditCheck
from precision_explorer.records.cell import (
    NOT_SCORED,
    SYNTHETIC,
    Cell,
    ModelIdentity,
    TaskIdentity,
    canonical_hash,
)
from precision_explorer.records.estimate import Estimate
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
    DeviceSettings,
    Environment,
    ErrorInfo,
    Executed,
    LeftBehind,
    Measurements,
    OffLabel,
    Placement,
    read_record,
)
from precision_explorer.records.roof import Bandwidth, Launch, MatmulRate, Roof
from precision_explorer.records.scores import AddedScore, AddedScores, read_scores
from precision_explorer.records.seal import sealed, unsealed
from precision_explorer.records.soak import Soak, SoakWindow, windows_owed, with_repeats
from precision_explorer.records.sweep import SweepDocument
from precision_explorer.records.upgrade import NewerSchema

__all__ = [
    "CHECKS",
    "METRICS",
    "NOT_SCORED",
    "SCHEMA_VERSION",
    "STATUSES",
    "SYNTHETIC",
    "AddedScore",
    "AddedScores",
    "AppliedFormat",
    "Attempt",
    "Audit",
    "AuditCheck",
    "Bandwidth",
    "Caution",
    "Cell",
    "CellRecord",
    "Certificate",
    "DeviceSettings",
    "Environment",
    "ErrorInfo",
    "Estimate",
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
    "Placement",
    "Profile",
    "Roof",
    "Soak",
    "SoakWindow",
    "Spent",
    "SweepDocument",
    "TaskIdentity",
    "Timing",
    "Work",
    "canonical_hash",
    "metric_info",
    "read_record",
    "read_scores",
    "sealed",
    "unsealed",
    "windows_owed",
    "with_repeats",
]
