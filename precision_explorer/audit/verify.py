"""`verify`: the files of a run against its manifest, and its tables against those that its records
give now. What this proves and what it can't is said in docs/verify.md."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from precision_explorer import __version__
from precision_explorer.audit.tables import is_rounding, same_figures, table_fault
from precision_explorer.bounded import MAX_JSON_BYTES, BadDocument, read_bounded
from precision_explorer.errors import PrecisionExplorerError, StoreError, UsageError
from precision_explorer.records import NewerSchema, read_record
from precision_explorer.report import made_tables
from precision_explorer.store import TABLES, Fault, Manifest, RunFolder, read_run
from precision_explorer.store.manifest import (
    MANIFEST,
    Tables,
    file_faults,
    hashes,
    manifest_fault,
    parse_manifest,
)
from precision_explorer.table import build

_AT_WORK = "a sweep is at work in this folder, and writes its manifest when it ends: verify it then"
MAX_TABLE_BYTES = 1_000_000_000
"""Of one of a run's tables: the report of thousands of cells has some 10 MB."""
_ROOT = re.compile(r"[0-9a-f]{16,64}")


@dataclass(frozen=True)
class Verified:
    """What was found of a run: `faults` in the order in which they were looked for, none where all
    holds. `root`: 64 hex digits, empty where the manifest can't be read; `files`: how many of the
    evidence were hashed; `notes`: what else a reader should know, a sentence each."""

    run: str
    root: str
    files: int
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether no fault was found."""
        return not self.faults


def check_root(root: str) -> str:
    """A root hash as a reader gives it: the 16 hex digits that the tables show, or more of the 64
    that `verify` prints. UsageError for what is none."""
    text = root.strip().lower()
    if not _ROOT.fullmatch(text):
        raise UsageError(
            f"--root {root} is no root hash; give the 16 hex digits that the tables show, or the "
            "64 that verify prints"
        )
    return text


def verify(path: Path, root: str | None = None, name: str | None = None) -> Verified:
    """Check the run at `path`: its manifest by itself and against `root` (as `check_root` gives
    it), every file against the manifest, records against their own identity, and the tables, byte
    for byte, against those made of the records here. `name`: what to call the run.

    Each step needs the one before, so that faults are those of the first step that finds any.
    StoreError where `path` is no run at all.
    """
    named = name or path.resolve().name
    if not (path / MANIFEST).is_file():
        if not (path / "sweep.json").is_file():
            raise StoreError(f"{path} is no results folder (no {MANIFEST}); give a run's folder")
        advice = "put it back, or run the sweep again, which makes it"
        return Verified(named, "", 0, (Fault(MANIFEST, "is missing", advice),))
    try:
        content = read_bounded(path / MANIFEST, MAX_JSON_BYTES)
    except BadDocument as error:
        return Verified(named, "", 0, (Fault(MANIFEST, str(error), "put it back as it was"),))
    fault = manifest_fault(content)
    if fault is not None:
        return Verified(named, "", 0, (fault,))
    manifest = parse_manifest(content)
    found = hashes(path)
    faults = _root_faults(manifest, root) or file_faults(manifest, found) or _identities(path)
    notes = [_AT_WORK] if RunFolder(path).is_open else []
    notes += _log_notes(manifest, set(found))
    if not faults:
        faults, more = _made_again(path, manifest)
        notes += more
    return Verified(named, manifest.full_root, len(manifest.files), tuple(faults), tuple(notes))


def _root_faults(manifest: Manifest, root: str | None) -> list[Fault]:
    if root is None or manifest.full_root.startswith(root):
        return []
    found = f"has the root {manifest.full_root[: len(root)]}, not the expected {root}"
    advice = "this is another run, or one that was made again or changed; get the original"
    return [Fault(MANIFEST, found, advice)]


def _identities(path: Path) -> list[Fault]:
    """Records whose name is not the hash of what they say that they are of."""
    faults = []
    for file in sorted((path / "cells").glob("*.json")):
        name = f"cells/{file.name}"
        try:
            record = read_record(file)
        except NewerSchema as error:
            faults.append(Fault(name, "is a newer release's", str(error).partition(": ")[2]))
            continue
        except StoreError:
            faults.append(Fault(name, "is no cell record", "run the sweep again without it"))
            continue
        cell = record.cell
        if {file.stem, record.cell_id} != {cell.cell_id} or record.method_id != cell.method_id:
            found = (
                f"says cell {record.cell_id} of method {record.method_id}, but what it describes "
                f"is cell {cell.cell_id} of method {cell.method_id}"
            )
            faults.append(Fault(name, found, "get the original record"))
    return faults


def _log_notes(manifest: Manifest, found: set[str]) -> list[str]:
    """What is not known of the logs, on which no figure rests."""
    if manifest.version == 1:
        logs = sum(name.startswith("logs/") for name in found)
        return [f"{logs} logs were not checked: a manifest of version 1 lists none"] if logs else []
    missing = [name for name in manifest.logs if name not in found]
    if not missing:
        return []
    return [f"{len(missing)} of {len(manifest.logs)} logs are not here; no figure rests on them"]


def _tables(path: Path) -> dict[str, bytes]:
    """The tables that stand in a run's folder; StoreError for one that no run has."""
    found = {}
    for name in TABLES:
        if (path / name).is_file():
            try:
                found[name] = read_bounded(path / name, MAX_TABLE_BYTES)
            except BadDocument as error:
                again = f"make it again by precision-explorer report {path.name}"
                raise StoreError(f"{name} {error}; {again}") from error
    return found


def _made_again(path: Path, manifest: Manifest) -> tuple[list[Fault], list[str]]:
    """(faults, notes) of the tables, held against those made of the records."""
    stored = _tables(path)
    try:
        made = made_tables(build([path]))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        # Hashed consistently, and yet nothing that a sweep writes.
        found = f"no table can be made of the run ({type(error).__name__}: {str(error)[:80]!r})"
        return [Fault("sweep.json", found, "get the original run")], []
    except PrecisionExplorerError as error:
        if not stored:
            return [], [f"there are no tables yet ({error})"]
        return [Fault("sweep.json", f"no table can be made ({error})", "run the sweep again")], []
    faults, notes = table_faults(manifest, stored, made, str(path))
    if faults and manifest.tables is None:
        notes += _measured_with(path)
    return faults, notes


def table_faults(
    manifest: Manifest, stored: dict[str, bytes], made: dict[str, bytes], run: str
) -> tuple[list[Fault], list[str]]:
    """(faults, notes) of the `stored` tables beside those `made` of the records, both by name.

    Bytes that are as `manifest` notes, but for the last digits of figures, hold with a note; bytes
    that are as another release noted them are told from changed ones, but don't hold.
    """
    again = f"make it again by precision-explorer report {run}"
    missing = [name for name in TABLES if name not in stored]
    if missing:
        return [Fault(name, "is missing", again) for name in missing], []
    other = [name for name in TABLES if stored[name] != made[name]]
    if not other:
        return [], []
    noted = manifest.tables
    changed = [n for n in TABLES if not noted or noted.files.get(n) != _hash(stored[n])]
    if noted and not changed:
        if all(is_rounding(stored[name], made[name]) for name in other):
            return [], [_rounding_note(noted, other)]
        if noted.tool != __version__:
            same = same_figures(stored[TABLES[0]], made[TABLES[0]])
            return [_other_version(name, noted.tool, same) for name in other], []
    faults = [table_fault(name, stored[name], made[name], manifest.root, again) for name in other]
    notes = [_why_tables_differ(noted, changed)]
    if same_figures(stored[TABLES[0]], made[TABLES[0]]):
        notes.append(_SAME_FIGURES)
    return faults, notes


_SAME_FIGURES = (
    "in every column that both have, the numbers of tradeoffs.csv are those that the records give; "
    "what differs there are words or columns"
)


def _measured_with(path: Path) -> list[str]:
    """Which release measured the run, which is likely the one that wrote its tables."""
    _, sweep = read_run(path)
    version = sweep["environment"]["libraries"].get("precision-explorer")
    return [f"the run was measured by precision-explorer {version}"] if version else []


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _rounding_note(noted: Tables, names: list[str]) -> str:
    with_ = ", ".join(f"{k} {v}" for k, v in noted.libraries.items())
    return (
        f"{', '.join(names)}: as they were written (with {with_}); made here, figures differ in "
        "their last digits (less than 1e-9 of the value), as another processor or another release "
        "of these libraries rounds them"
    )


def _other_version(name: str, tool: str, same: bool) -> Fault:
    """A table that is as its release wrote it, which this one would write otherwise."""
    figures = (
        "its figures are those of tradeoffs.csv here, as far as both have its columns"
        if same and name == TABLES[0]
        else "its figures are not held against the records"
        if same
        else "figures of tradeoffs.csv differ too"
    )
    return Fault(
        name,
        f"is as precision-explorer {tool} wrote it, if the manifest's note on tables was not "
        f"changed with it; this release ({__version__}) writes it otherwise, and {figures}",
        f"verify with precision-explorer {tool} to hold every byte against the records",
    )


def _why_tables_differ(noted: Tables | None, changed: list[str]) -> str:
    """What else is known of tables that are not those of the records."""
    if noted is None:
        return (
            "the manifest does not say which release wrote the tables; if that was another than "
            f"{__version__}, its words may differ where nothing was changed"
        )
    if changed:
        return f"not as precision-explorer {noted.tool} wrote them: {', '.join(changed)}"
    return (
        f"the tables are as precision-explorer {noted.tool} wrote them, by its number this "
        "release: a build of other words, or one who changed the manifest with them"
    )
