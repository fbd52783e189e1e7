"""Whether two rows declare the same method, and in what their systems differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from precision_explorer.errors import UsageError, unknown_name
from precision_explorer.plan.expand import NVML_CHECK, SET_BY_LIBRARIES
from precision_explorer.records import CellRecord, canonical_hash
from precision_explorer.table.methods import Field, differing, flat

ENERGY_BOUNDARY, BATCH_SIZES = "energy_boundary", "batch_sizes"
"""Not in the document: which meter there is hangs on the device, and each row shows the best of the
batch sizes tried. Where one differs, only the figures that rest on it are not compared."""
# Whether they are set hangs on what the parent imported, and they change no result.
_NO_MATTER = (*SET_BY_LIBRARIES, NVML_CHECK)
_OF_THE_MAKING = ("execution", "kernel", "compute_dtype")


def declared(record: CellRecord) -> dict[str, Any]:
    """The method that a row declares, with what is declared for its format alone: the calibration
    set, and which layer of a mixed recipe is held in what."""
    recipe = record.cell.recipe
    document = record.cell.method()
    if "calibration" in recipe:
        document["calibration"] = recipe["calibration"]
    if "layers" in recipe:
        document["layers"] = canonical_hash([recipe.get("base"), recipe["layers"]])
    return document


def method_fields(one: CellRecord, other: CellRecord) -> tuple[Field, ...]:
    """In what the methods of two rows differ."""
    return differing(declared(one), declared(other))


_NEW_IN_VERSION_2 = ("prompt", "decoding", "quality_metric", "energy", "task.order_hash")


def barred_fields(
    one: CellRecord, other: CellRecord, allowed: Sequence[str]
) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """(those that keep two rows from being compared, those that differ with the reader's leave).

    Leave for another ``version`` of the document is leave for what the older one does not hold.
    """
    fields = method_fields(one, other)
    between = "version" in allowed and any(field.name == "version" for field in fields)
    told = [f for f in fields if not (between and is_allowed(f, _NEW_IN_VERSION_2))]
    barred = tuple(field for field in told if not is_allowed(field, allowed))
    return barred, tuple(field for field in told if field not in barred)


def figure_fields(one: CellRecord, other: CellRecord) -> tuple[Field, ...]:
    """What else two rows may differ in that keeps single figures from being compared."""
    return differing(_of_figures(one), _of_figures(other))


def _of_figures(record: CellRecord) -> dict[str, Any]:
    energy = record.measurements.energy
    read = energy is not None and energy.energy_j is not None
    return {
        BATCH_SIZES: list(record.cell.batch_sizes),
        ENERGY_BOUNDARY: f"{energy.source}: {energy.boundary}" if energy and read else None,
    }


def is_allowed(field: Field, allowed: Iterable[str]) -> bool:
    """Whether a field, or a part of the document that it stands in, was allowed to differ."""
    return any(field.name == name or field.name.startswith(f"{name}.") for name in allowed)


def known_fields(records: Iterable[CellRecord]) -> list[str]:
    """All fields of the rows' methods and the parts that they stand in."""
    names: dict[str, None] = {}
    for record in records:
        for path in flat(declared(record)):
            parts = path.split(".")
            names |= dict.fromkeys(".".join(parts[: k + 1]) for k in range(len(parts)))
    return [*names, BATCH_SIZES, ENERGY_BOUNDARY]


def check_allowed(asked: Sequence[str], records: Iterable[CellRecord]) -> tuple[str, ...]:
    """The names as the documents have them; UsageError for one that no row's method holds."""
    known = known_fields(records)
    found = []
    for name in asked:
        plain = name.strip().replace("-", "_")
        if plain not in known:
            raise UsageError(unknown_name("method field", name, known))
        found.append(plain)
    return tuple(dict.fromkeys(found))


def system_fields(one: CellRecord, other: CellRecord) -> tuple[Field, ...]:
    """In what the systems of two rows differ: device, driver, processor, memory, threads, kernel,
    libraries, variables."""
    return differing(_system(one), _system(other))


def _system(record: CellRecord) -> dict[str, Any]:
    if record.environment is None:
        return {}
    document = record.environment.model_dump(mode="json")
    return document | {
        "variables": {k: v for k, v in document["variables"].items() if k not in _NO_MATTER}
    }


def making_fields(one: CellRecord, other: CellRecord) -> tuple[Field, ...]:
    """In what the two rows' formats were made or computed otherwise."""
    first, second = (
        {n: getattr(r.applied, n) for n in _OF_THE_MAKING} if r.applied else {}
        for r in (one, other)
    )
    return differing(first, second)
