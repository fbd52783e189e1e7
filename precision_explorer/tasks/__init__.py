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
    hub_cards,
    load_card,
)
from precision_explorer.tasks.data import PreparedTask, check_labels, prepare
from precision_explorer.tasks.entities import entity_counts
from precision_explorer.tasks.kinds import KINDS, Kind
from precision_explorer.tasks.labels import label_ids
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
    "Kind",
    "LoadedCard",
    "NoCalibration",
    "PreparedTask",
    "TaskCard",
    "bundled_cards",
    "card_hash",
    "check_labels",
    "entity_counts",
    "example_bytes",
    "example_words",
    "hub_cards",
    "label_ids",
    "load_calibration",
    "load_card",
    "prepare",
    "scores",
    "sufficient",
    "without_calibration",
    "zero_one_column",
]
