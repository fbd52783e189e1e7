"""Task cards, their data, and how answers are scored. No torch; data libraries only when needed."""

from precision_explorer.tasks.calibration import (
    Calibration,
    NoCalibration,
    load_calibration,
    without_calibration,
)
from precision_explorer.tasks.cards import (
    DataSource,
    LoadedCard,
    TaskCard,
    bundled_cards,
    card_hash,
    load_card,
)
from precision_explorer.tasks.data import PreparedTask, check_labels, prepare
from precision_explorer.tasks.harness import HarnessCard, is_harness, prepare_harness
from precision_explorer.tasks.harness_metrics import has_terms, is_harness_metric
from precision_explorer.tasks.kinds import KINDS, Kind
from precision_explorer.tasks.metrics import (
    example_bytes,
    example_words,
    scores,
    sufficient,
    zero_one_column,
)

__all__ = [
    "KINDS",
    "Calibration",
    "DataSource",
    "HarnessCard",
    "Kind",
    "LoadedCard",
    "NoCalibration",
    "PreparedTask",
    "TaskCard",
    "bundled_cards",
    "card_hash",
    "check_labels",
    "example_bytes",
    "example_words",
    "has_terms",
    "is_harness",
    "is_harness_metric",
    "load_calibration",
    "load_card",
    "prepare",
    "prepare_harness",
    "scores",
    "sufficient",
    "without_calibration",
    "zero_one_column",
]
