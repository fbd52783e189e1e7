"""The columns that need the reference: differences, verdicts, the noise floor, ratios, KL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from precision_explorer.endpoint import ENDPOINT
from precision_explorer.records import Caution, Cell
from precision_explorer.stats import Divergence, NoiseFloor, divergence, holm, is_different
from precision_explorer.table.computed import Computed, computed_floor, paired_computed
from precision_explorer.table.data import ROW_KEY, Comparison
from precision_explorer.table.quality import (
    Margin,
    Quality,
    above_noise,
    common,
    flips_and_ratios,
    noise_floor,
    paired_columns,
)
from precision_explorer.table.sequential import is_sequential, sequential_columns
from precision_explorer.table.unparsed import unparsed_caution
from precision_explorer.tasks import KINDS
from precision_explorer.units import significant

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry


def against_reference(group: list[Entry], lent: Sequence[Entry] = ()) -> None:
    """Fill the paired columns of `group`, whose rows may be compared and are all ok. `lent`:
    references of a server's rows, where none of the group is one (`lent_references`)."""
    references = [e for e in group if is_reference(e) and e.quality]
    # Most of those that are lent are asked for by nobody, and each is a file to read.
    repeats: dict[int, Quality | None] = {}
    for entry in group:
        base = reference_of(entry, references) or _lent(entry, lent)
        if base is None or entry.quality is None:
            continue
        if id(base) not in repeats:
            repeats[id(base)] = _scored_again(base)
        noise = _noise_floor(entry, base, repeats[id(base)])
        if noise is not None:
            entry.row.update(noise_floor_flips=noise.flips, noise_floor_delta=noise.delta)
        entry.row["reference_device"] = base.row["device"]
        if not is_reference(entry):
            _paired(entry, base, noise)
            _same_device(entry, base)
    _next_tokens(group)


def _paired(entry: Entry, base: Entry, noise: NoiseFloor | None) -> None:
    first, second = base.quality, entry.quality
    budget, seed = entry.reader["quality_budget"], entry.record.cell.seed
    if isinstance(first, Quality) and isinstance(second, Quality):
        if is_sequential(entry.record.cell):
            _sequential(entry, base, noise)
            return
        _enter(entry, paired_columns(first, second, budget, seed, noise))
        if entry.row["quality_delta"] is not None:
            _same_plan(entry, base)
            _beside(entry, first, second)
            if entry.row["verdict"] is not None:
                entry.margin = Margin(first, second, seed)
    elif isinstance(first, Computed) and isinstance(second, Computed):
        _computed(entry, base, first, second)


def _computed(entry: Entry, base: Entry, first: Computed, second: Computed) -> None:
    """The same by stored scores. They are those of all examples that a row was asked, so that one
    that was scored until its verdict was clear can't be compared by them."""
    if is_in_looks(entry):
        measured = entry.record.measurements.quality
        wanted = measured.metric if measured else "another metric"
        entry.row["verdict_note"] = f"scored until the verdict in {wanted} was clear"
        return
    floor = None
    if base.record.measurements.noise is not None:
        again = base.folder.read_samples(base.record.cell_id, "repeat", base.record.known_samples)
        floor = computed_floor(first, again)
        entry.floor_unknown = floor is None
    if floor is not None:
        for one in (entry, base):
            one.row.update(noise_floor_flips=floor.flips, noise_floor_delta=floor.delta)
    _enter(entry, paired_computed(first, second, entry.reader["quality_budget"], floor))
    if entry.row["quality_delta"] is None:
        return
    if entry.floor_unknown and entry.row["verdict"] == "outside":
        entry.row.update(verdict="cannot-tell", verdict_note="no noise floor in this metric")
    _same_plan(entry, base)
    _beside(entry, first.rows, second.rows)


def is_in_looks(entry: Entry) -> bool:
    """Whether the entry's stored score is that of examples chosen by another metric's verdict."""
    computed = isinstance(entry.quality, Computed)
    return computed and is_sequential(entry.record.cell) and not is_reference(entry)


def _enter(entry: Entry, found: dict[str, Any]) -> None:
    """`found` into the row, with what is to be said of its verdict."""
    needed, within_noise = found.pop("needed_n", None), found.pop("within_noise", False)
    entry.row.update(found)
    if within_noise:
        entry.row["verdict_note"] = "not beyond the noise floor"
    elif found.get("verdict") == "cannot-tell" and needed:
        entry.row["verdict_note"] = f"needs n of about {needed:,}"


def _sequential(entry: Entry, base: Entry, noise: NoiseFloor | None) -> None:
    """The same of a row that was scored until its verdict was clear, on the examples it was asked.
    Each look's examples have batches of their own, the same for every format."""
    assert isinstance(entry.quality, Quality)
    assert isinstance(base.quality, Quality)
    budget, cell = entry.reader["quality_budget"], entry.record.cell
    both = common(base.quality, entry.quality)
    if both is None:
        return
    found = sequential_columns(base.quality, entry.quality, budget, cell.task.n, cell.seed)
    if above_noise(found, noise):
        found |= {"verdict": "cannot-tell", "verdict_note": "not beyond the noise floor"}
    entry.row.update(found)
    entry.base = base
    _same_plan(entry, base)
    _beside(entry, *both)


def _beside(entry: Entry, reference: Quality, own: Quality) -> None:
    """What else is told of the same examples: flips each way, ratios, outputs without an answer."""
    differing = unparsed_caution(reference, own, entry.reader["reference"])
    if differing is not None:
        entry.cautions.append(differing)
    more = flips_and_ratios(reference, own)
    entry.row.update(
        flips_to_wrong=more["to_wrong"],
        flips_to_right=more["to_right"],
        error_ratio=more["errors"].value if more["errors"] else None,
        perplexity_ratio=more["perplexity"].value if more["perplexity"] else None,
    )
    entry.errors, entry.perplexity = more["errors"], more["perplexity"]


def _same_plan(entry: Entry, base: Entry) -> None:
    """No verdict on scores from other batches than the reference's: shapes move scores."""
    if _same_batches(entry, base):
        return
    text = (
        "scored in other batches than the reference, and scores move with the shape of a batch: "
        "no verdict; run the sweep again with another --out"
    )
    entry.cautions.append(Caution(id="other-batch-plan", message=text))
    entry.row.update(verdict=None, verdict_note="scored in other batches than the reference")


def _same_device(entry: Entry, base: Entry) -> None:
    """Where the row's device has no reference of its own, the change holds the devices' too."""
    own, other = entry.row["device"], base.row["device"]
    if own == other or entry.record.cell.runtime == ENDPOINT:
        return
    text = (
        f"held against {base.row['format']} on {other}, as {own} has no result of it: the change "
        "is that of the format and of the device together"
    )
    entry.cautions.append(Caution(id="reference-of-another-device", message=text))


def _same_batches(entry: Entry, base: Entry) -> bool:
    """Of scores in looks, whether the looks that both had were of the same batches; taken for
    granted in records that don't say."""
    own, reference = entry.record.measurements.quality, base.record.measurements.quality
    if own is None or reference is None or entry.record.cell.runtime == ENDPOINT:
        return True  # How a server puts requests together is part of what is compared.
    if is_sequential(entry.record.cell):
        looks = zip(own.look_batch_plans or (), reference.look_batch_plans or (), strict=False)
        return all(one == other for one, other in looks)
    return own.batch_plan_hash == reference.batch_plan_hash


def is_reference(entry: Entry) -> bool:
    """Whether others are compared with the entry."""
    return bool(entry.record.cell.format == entry.reader["reference"])


def reference_of(entry: Entry, references: list[Entry]) -> Entry | None:
    """The reference of the entry's runtime: of its own run, else of another that asked the same
    examples, on the entry's device where there is one."""
    cell = entry.record.cell
    fit = [r for r in references if r.record.cell.runtime == cell.runtime]
    own = [r for r in fit if r.folder is entry.folder]
    same = [r for r in fit if r.record.cell.task.item_ids_hash == cell.task.item_ids_hash]
    same.sort(key=lambda r: r.record.cell.device_name != cell.device_name)
    return next(iter([*own, *same]), None)


def _lent(entry: Entry, lent: Sequence[Entry]) -> Entry | None:
    """The model that was run here on the same examples: of a server's row, whose device and times
    are others, its answers are compared all the same."""
    cell = entry.record.cell
    if cell.runtime != ENDPOINT:
        return None
    return next((r for r in lent if _asked_alike(r.record.cell, cell)), None)


def _asked_alike(one: Cell, other: Cell) -> bool:
    return one.model.name == other.model.name and one.task == other.task


def lent_references(entries: Sequence[Entry]) -> list[Entry]:
    """References whose answers those of servers can be held against: of the eager runtime first."""
    found = [e for e in entries if is_reference(e) and e.record.cell.runtime != ENDPOINT]
    found = [e for e in found if e.record.status == "ok" and e.quality is not None]
    return sorted(found, key=lambda e: e.record.cell.runtime != "eager")


def _scored_again(reference: Entry) -> Quality | None:
    """The reference's second pass; None where it was scored once only."""
    if reference.record.measurements.noise is None or not isinstance(reference.quality, Quality):
        return None
    rows = reference.folder.read_samples(
        reference.record.cell_id, "repeat", reference.record.known_samples
    )
    return Quality.of(reference.quality.metric, rows, reference.quality.higher_is_better)


def _noise_floor(entry: Entry, base: Entry, again: Quality | None) -> NoiseFloor | None:
    """On the examples that the entry was asked: floors of more of them are larger."""
    if again is None or not isinstance(base.quality, Quality) or entry.quality is None:
        return None
    return noise_floor(base.quality.first(len(entry.quality)), again)


# -- next-token distributions -----------------------------------------------------------------


def _next_tokens(group: list[Entry]) -> None:
    """KL columns of language models, whether or not there is a score of their quality."""
    references = [e for e in group if is_reference(e)]
    for entry in group:
        base = reference_of(entry, references)
        cell = entry.record.cell
        # A server tells of no distributions.
        told = cell.runtime != ENDPOINT and KINDS[cell.task.kind].head == "causal-lm"
        if base is not None and told:
            _divergence(entry, base)


def _divergence(entry: Entry, base: Entry) -> None:
    """KL columns of a language model's row, or the reason why they are empty. Of the reference's
    own row it is the floor, which all others are shown beside theirs."""
    kept = base.record.measurements.kept
    floor = base.floor
    if floor is None:
        floor = base.floor = _positions(base, base)
    entry.row["noise_floor_kl"] = floor.mean if floor else None
    if is_reference(entry):
        entry.divergence = floor
        return
    found = _positions(entry, base)
    if found is None:
        entry.row["kl_note"] = _why_none(entry, base)
        return
    entry.divergence = found
    entry.row.update(kl_mean=found.mean, kl_p99=found.p99, same_top=found.same_top)
    notes = []
    if floor is not None and found.too_small(floor.mean):
        notes.append(
            "too small to rank: the reference in other batches differs from itself by "
            f"{significant(floor.mean, 2)}"
        )
    if kept is not None and kept.method != "states":
        notes.append(
            f"from log-probabilities of {kept.positions:,} positions, rounded to 16 bits, as "
            f"{kept.why}"
        )
    entry.row["kl_note"] = "; ".join(notes) or None


def _why_none(entry: Entry, base: Entry) -> str:
    own, reference = entry.record.measurements, base.record.measurements
    if own.positions is not None:
        return "held against another reference"
    if reference.kept is None:
        why = (reference.not_compared or {}).get("kept")
        return f"the reference kept no next-token distributions{f': {why}' if why else ''}"
    return (own.not_compared or {}).get("positions", "not compared; run the sweep again")


def _positions(entry: Entry, base: Entry) -> Divergence | None:
    """The summary of the entry's positions where they were held against `base`."""
    taken = entry.record.measurements.positions
    if taken is None or taken.reference != base.record.cell_id:
        return None
    rows = entry.folder.read_samples(entry.record.cell_id, "position", entry.record.known_samples)
    if not rows["id"]:
        return None
    quality = entry.quality
    columns = (
        quality.columns
        if quality is not None
        else entry.folder.read_samples(entry.record.cell_id, "example", entry.record.known_samples)
    )
    groups = columns.get("group") or [None] * len(columns["id"])
    # An example without a group is one by itself.
    named = {
        name: ("group", str(group)) if group is not None else ("id", name)
        for name, group in zip(columns["id"], groups, strict=True)
    }
    # Positions may reach beyond the examples of a row that was scored until its verdict was clear.
    clusters = [named.get(name, ("id", name)) for name in rows["id"]]
    return divergence(rows["kl"], rows["same_top"], clusters, entry.record.cell.seed)


# -- over the tasks of a run ------------------------------------------------------------------


def over_tasks(entries: list[Entry]) -> None:
    """`p_value_holm`, Holm's adjustment over the tasks that a format of one model answered in one
    run, and `different`: beyond chance by it, and beyond the noise floor."""
    families: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        cell = entry.record.cell
        # Of scores from other batches than the reference's nothing is claimed.
        if entry.row["p_value"] is not None and entry.row["verdict"] is not None:
            key = (id(entry.folder), cell.model.revision, cell.format, cell.runtime, cell.device)
            families[key].append(entry)
    for family in families.values():
        adjusted = holm([e.row["p_value"] for e in family])
        for entry, p_value in zip(family, adjusted, strict=True):
            row = entry.row
            delta = row["noise_floor_delta"]
            noise = None if delta is None else NoiseFloor(row["noise_floor_flips"], delta)
            different = is_different(p_value, row["flips"], row["quality_delta"], noise)
            row.update(p_value_holm=p_value, different="yes" if different else "no")


def comparisons(entries: list[Entry]) -> tuple[Comparison, ...]:
    """What the rows can't hold of it: intervals and percentiles."""
    return tuple(
        Comparison(tuple(e.row[name] for name in ROW_KEY), e.errors, e.perplexity, e.divergence)
        for e in entries
        if e.errors or e.perplexity or e.divergence
    )
