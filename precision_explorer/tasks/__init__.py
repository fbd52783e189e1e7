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
from precision_explorer.tasks.external import (
    ExternalMetric,
    check_allowed,
    external_label,
    external_metric,
    is_external,
)
from precision_explorer.tasks.generation import Extraction, GenerationRules, cut_at_stop, extract
from precision_explorer.tasks.harness import HarnessCard, is_harness, prepare_harness
from precision_explorer.tasks.harness_metrics import has_terms, is_harness_metric
from precision_explorer.tasks.kinds import KINDS, Kind
from precision_explorer.tasks.labels import label_ids
from precision_explorer.tasks.metrics import (
    example_bytes,
    example_words,
    scores,
    sufficient,
    sufficient_of_two,
    unparsed,
    zero_one_column,
)
from precision_explorer.tasks.text_metrics import answer_columns, metric_libraries, signatures

__all__ = [
    "KINDS",
    "Calibration",
    "DataSource",
    "ExternalMetric",
    "Extraction",
    "GenerationRules",
    "HarnessCard",
    "Kind",
    "LoadedCard",
    "NoCalibration",
    "PreparedTask",
    "TaskCard",
    "answer_columns",
    "bundled_cards",
    "card_hash",
    "check_allowed",
    "check_labels",
    "cut_at_stop",
    "entity_counts",
    "example_bytes",
    "example_words",
    "external_label",
    "external_metric",
    "extract",
    "has_terms",
    "hub_cards",
    "is_external",
    "is_harness",
    "is_harness_metric",
    "label_ids",
    "load_calibration",
    "load_card",
    "metric_libraries",
    "prepare",
    "prepare_harness",
    "scores",
    "signatures",
    "sufficient",
    "sufficient_of_two",
    "unparsed",
    "without_calibration",
    "zero_one_column",
]
