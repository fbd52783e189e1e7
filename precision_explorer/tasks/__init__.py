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
from precision_explorer.tasks.generation import Extraction, GenerationRules, cut_at_stop, extract
from precision_explorer.tasks.kinds import KINDS, Kind
from precision_explorer.tasks.metrics import (
    example_bytes,
    example_words,
    scores,
    sufficient,
    unparsed,
    zero_one_column,
)
from precision_explorer.tasks.text_metrics import answer_columns, metric_libraries, signatures

__all__ = [
    "KINDS",
    "Calibration",
    "DataSource",
    "Extraction",
    "GenerationRules",
    "Kind",
    "LoadedCard",
    "NoCalibration",
    "PreparedTask",
    "TaskCard",
    "answer_columns",
    "bundled_cards",
    "card_hash",
    "check_labels",
    "cut_at_stop",
    "example_bytes",
    "example_words",
    "extract",
    "load_calibration",
    "load_card",
    "metric_libraries",
    "prepare",
    "scores",
    "signatures",
    "sufficient",
    "unparsed",
    "without_calibration",
    "zero_one_column",
]
