"""`RunFolder`: all files of a run and their hashes (docs/results-folder.md)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from precision_explorer.bounded import (
    MAX_JSON_BYTES,
    BadDocument,
    NoPlainFile,
    json_file,
    read_bounded,
)
from precision_explorer.errors import StoreError, UsageError
from precision_explorer.records import (
    AddedScores,
    CellRecord,
    Estimate,
    NewerSchema,
    Roof,
    read_record,
    read_scores,
    sealed,
    unsealed,
)
from precision_explorer.records.seal import is_sealed
from precision_explorer.store.atomic import write_bytes, write_json
from precision_explorer.store.columns import check_columns, needed_columns
from precision_explorer.store.lock import Held, check_plain, is_locked, remove_temporary, take_lock
from precision_explorer.store.manifest import (
    DAMAGED,
    EVIDENCE_FILES,
    MANIFEST,
    TABLES,
    Tables,
    evidence_hashes,
    file_hash,
    log_hashes,
    made_manifest,
    read_manifest,
)
from precision_explorer.store.shape import fault_of

_FOLDERS = ("parts", "cells", "samples", "logs")
OWN_FOLDERS = (*_FOLDERS, "scores")
SWEEP_SCHEMA = 1
_ABSENT = (FileNotFoundError, NotADirectoryError)
"""Any other error of the system says nothing of a file, which may be sound: taken for an absent or
a damaged one it would be measured and written over."""
MAX_ROWS_BYTES = 8_000_000_000
"""Of a part's rows: the most that a worker may send (`runner.protocol`)."""
MAX_SAMPLES_BYTES = 1_000_000_000
"""Of a cell's samples, compressed: an hour's soak has some 5 MB."""
MAX_VALUES = 500_000_000
"""Rows times columns of a cell's samples, some 4 GB of numbers: a file of kilobytes can stand for
billions of equal rows."""
# In a part's JSON file: of the rows beside it.
_ROWS = "rows_sha256"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")


def _plain(cell_id: Any) -> str:
    """`cell_id` as a piece of a file's name; StoreError for what would lead elsewhere: a plan that
    is read may come from a stranger."""
    if not isinstance(cell_id, str) or not _PLAIN.fullmatch(cell_id):
        raise StoreError(f"{str(cell_id)[:40]!r} is no id of a cell; sweep.json is damaged")
    return cell_id


class RunFolder:
    """A run's folder, opened for writing by one sweep at a time. `on_damaged` is told the path, in
    the folder, of a file that was set aside, since it is not as it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_damaged: Callable[[str], None] = _nobody
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """The folder's own name, which is the run's."""
        return self.path.resolve().name

    # -- opening -----------------------------------------------------------------------------

    def open(self) -> None:
        """Make the folder and take its lock; UsageError when it can't be written, StoreError when
        another sweep holds it, or where a link in it leads elsewhere. The lock ends with the
        process, however that ends. What a process that was killed has left half written is
        removed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(self.path)
            check_plain(self.path, OWN_FOLDERS)
            for folder in _FOLDERS:
                (self.path / folder).mkdir(exist_ok=True)
        except Held as held:
            raise StoreError(
                f"{self.path} is in use by another sweep ({held}); wait for it or use another --out"
            ) from held
        except OSError as error:
            self.close()
            reason = error.strerror or type(error).__name__
            raise UsageError(
                f"can't write the output folder {self.path} ({reason}); choose another by --out"
            ) from error
        except StoreError:
            self.close()
            raise
        remove_temporary(self.path, OWN_FOLDERS, (*TABLES, *EVIDENCE_FILES, MANIFEST))

    @property
    def is_open(self) -> bool:
        """Whether a sweep, here or in another process, has the folder open now."""
        return is_locked(self.path)

    def close(self) -> None:
        """Release the lock; the folder then names no machine any more."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                lock.truncate(0)
            with contextlib.suppress(OSError):
                lock.close()

    # -- paths -------------------------------------------------------------------------------

    def record_path(self, cell_id: str) -> Path:
        """Where a cell's record stands."""
        return self.path / "cells" / f"{_plain(cell_id)}.json"

    def samples_path(self, cell_id: str) -> Path:
        """Where a cell's per-example and per-request rows stand."""
        return self.path / "samples" / f"{_plain(cell_id)}.parquet"

    def scores_path(self, cell_id: str) -> Path:
        """Where scores stand that were computed afterwards, from a cell's samples."""
        return self.path / "scores" / f"{_plain(cell_id)}.json"

    def log_path(self, cell_id: str) -> Path:
        """Where a cell's worker writes its output."""
        return self.path / "logs" / f"{_plain(cell_id)}.log"

    # -- parts -------------------------------------------------------------------------------

    def write_part(self, cell_id: str, name: str, answer: dict[str, Any], arrow: bytes) -> None:
        """Store a worker's answer the moment it is there; the rows first, since the JSON file is
        what says that the part is whole. It holds the SHA-256 of both."""
        folder = self.path / "parts" / _plain(cell_id)
        folder.mkdir(parents=True, exist_ok=True)
        if arrow:
            write_bytes(folder / f"{name}.arrow", arrow)
        else:
            # Those of an earlier try are not this answer's.
            (folder / f"{name}.arrow").unlink(missing_ok=True)
        rows = {_ROWS: hashlib.sha256(arrow).hexdigest()} if arrow else {}
        write_bytes(folder / f"{name}.json", sealed(answer | rows))

    def read_part(self, cell_id: str, name: str) -> tuple[dict[str, Any], bytes] | None:
        """A stored answer and its rows; None where there is none that is whole. A sweep, which has
        the folder open, sets a damaged one aside, so that it is asked for again."""
        answer = self._read_answer(cell_id, name)
        arrow = self.part_path(cell_id, name)
        if answer is None:
            return None
        known, digest = _ROWS in answer, answer.pop(_ROWS, None)
        if known and digest is None:
            return answer, b""
        try:
            rows = read_bounded(arrow, MAX_ROWS_BYTES)
        except _ABSENT:
            rows = b""
        except BadDocument:
            self._set_aside(self._answer_path(cell_id, name), arrow)
            return None
        if known and hashlib.sha256(rows).hexdigest() != digest:
            self._set_aside(self._answer_path(cell_id, name), arrow)
            return None
        return answer, rows

    def read_answer(self, cell_id: str, name: str) -> dict[str, Any] | None:
        """A stored answer without its rows, or None where there is none that is whole."""
        answer = self._read_answer(cell_id, name)
        if answer is not None:
            answer.pop(_ROWS, None)
        return answer

    def _read_answer(self, cell_id: str, name: str) -> dict[str, Any] | None:
        """With the hash of its rows, None where it has none; parts from before there were seals
        have no such key."""
        path = self._answer_path(cell_id, name)
        try:
            content = read_bounded(path, MAX_JSON_BYTES)
            return ({_ROWS: None} if is_sealed(content) else {}) | unsealed(content)
        except _ABSENT:
            return None
        # RecursionError: absurd nesting.
        except (ValueError, RecursionError):
            self._set_aside(path, self.part_path(cell_id, name))
            return None

    def _answer_path(self, cell_id: str, name: str) -> Path:
        return self.path / "parts" / _plain(cell_id) / f"{name}.json"

    def _set_aside(self, *paths: Path) -> None:
        """Keep damaged files, under names that nothing reads; a reader changes nothing."""
        if self._lock is None:
            return
        for path in paths:
            if path.exists():
                path.replace(self._free_name(path))
        self.on_damaged(paths[0].relative_to(self.path).as_posix())

    @staticmethod
    def _free_name(path: Path) -> Path:
        """Beside `path`, for what was damaged of it."""
        name, number = f"{path.name}{DAMAGED}", 1
        while path.with_name(name).exists():
            number += 1
            name = f"{path.name}{DAMAGED}-{number}"
        return path.with_name(name)

    def part_path(self, cell_id: str, name: str) -> Path:
        """Where the rows of a part stand, if it has any."""
        return self.path / "parts" / _plain(cell_id) / f"{name}.arrow"

    def has_part(self, cell_id: str, name: str) -> bool:
        """Whether a part is there and its answer whole."""
        return self._read_answer(cell_id, name) is not None

    def has_parts(self, cell_id: str) -> bool:
        """Whether anything was measured of a cell and not set aside: any part but its load."""
        found = (self.path / "parts" / _plain(cell_id)).glob("*.json")
        return any(path.stem != "load" for path in found)

    def set_aside_parts(self, cell_id: str) -> None:
        """Keep the answers of a try that failed under ``attempt-N``: nothing measured is lost, and
        the next try measures the whole cell in one process."""
        folder = self.path / "parts" / _plain(cell_id)
        # The JSON files first: without them what is left is no part.
        files = sorted(
            (f for f in folder.glob("*") if f.is_file()), key=lambda f: f.suffix != ".json"
        )
        if files:
            target = folder / f"attempt-{len(list(folder.glob('attempt-*'))) + 1}"
            target.mkdir()
            for file in files:
                file.replace(target / file.name)

    # -- records and samples -----------------------------------------------------------------

    def write_record(self, record: CellRecord) -> None:
        """Store a record atomically."""
        write_bytes(self.record_path(record.cell_id), sealed(record.model_dump(mode="json")))

    def read_record(self, cell_id: str) -> CellRecord | None:
        """The stored record; None where there is none that is whole. A sweep, which has the
        folder open, sets a damaged one aside, so that the cell is run again; a reader changes
        nothing. NewerSchema for a newer release's record, which is whole and must not be lost;
        OSError where it can't be read now."""
        path = self.record_path(cell_id)
        try:
            return read_record(path)
        except _ABSENT:
            return None
        except NewerSchema:
            raise
        except StoreError:
            self._set_aside(path)
            return None

    def restore_samples(self, cell_id: str, parts: dict[str, bytes]) -> None:
        """Write a cell's samples again (see `write_samples`) where they are not that already; what
        is there is kept under a name that nothing reads. At any moment there are samples."""
        path, content = self.samples_path(cell_id), _parquet(parts)
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            found = None
        if found == content:
            return
        if found is not None:
            write_bytes(self._free_name(path), found)
        write_bytes(path, content)
        self.on_damaged(path.relative_to(self.path).as_posix())

    def set_aside_record(self, cell_id: str) -> None:
        """Keep a record, then its samples, which can't be made again, under names that nothing
        reads, so that the cell is measured again."""
        self._set_aside(self.record_path(cell_id), self.samples_path(cell_id))

    def check_parts(self, cell_id: str) -> None:
        """Set aside every part of a cell that is not as it was written."""
        for path in sorted((self.path / "parts" / _plain(cell_id)).glob("*.json")):
            answer, arrow = self._read_answer(cell_id, path.stem), path.with_suffix(".arrow")
            digest = None if answer is None else answer.get(_ROWS)
            # By blocks: rows may be gigabytes.
            if digest is not None and _hash_or_none(arrow) != digest:
                self._set_aside(path, arrow)

    def write_samples(self, cell_id: str, parts: dict[str, bytes]) -> None:
        """Join Arrow streams (``example``, ``request``, ``repeat``, ``position``) into the cell's
        parquet, one row each. A record that is there says first what is to come, and goes on to fit
        what stands beside it; its next writing is the caller's."""
        content = _parquet(parts)
        record, digest = self.read_record(cell_id), hashlib.sha256(content).hexdigest()
        known = None if record is None else record.known_samples
        if record is not None and known is not None and digest not in known:
            here = self.samples_hash(cell_id)  # Of which a kill may have left the next ones.
            now = here if here in known else record.samples_sha256
            hashes = {"samples_sha256": now, "samples_next_sha256": digest}
            self.write_record(record.model_copy(update=hashes))
        write_bytes(self.samples_path(cell_id), content)

    def read_samples(
        self, cell_id: str, kind: str, known: tuple[str, ...] | None = None
    ) -> dict[str, list[Any]]:
        """Columns of the rows of one kind (see `write_samples`); StoreError where the file is
        missing or damaged. `known`: the record's `known_samples`, since most changed bytes show by
        the hash alone."""
        import pyarrow as pa
        import pyarrow.compute as pc

        path = self.samples_path(cell_id)
        try:
            table = _table_of(read_bounded(path, MAX_SAMPLES_BYTES), known)
            return needed_columns(kind, table.filter(pc.equal(table["row"], kind)))
        except _ABSENT as error:
            raise _bad_samples(path, "missing", cell_id) from error
        # KeyError: no column of that name, or two.
        except (ValueError, KeyError, pa.ArrowException) as error:
            raise _bad_samples(path, "damaged", cell_id) from error

    def samples_hash(self, cell_id: str) -> str:
        """SHA-256 of a cell's samples; empty where there are none."""
        return _hash_or_none(self.samples_path(cell_id)) or ""

    def write_scores(self, cell_id: str, scores: AddedScores) -> None:
        """Store scores that were computed from a cell's samples."""
        self.scores_path(cell_id).parent.mkdir(exist_ok=True)
        write_json(self.scores_path(cell_id), scores.model_dump(mode="json"))

    def read_scores(self, cell_id: str) -> AddedScores | None:
        """The scores computed from the samples that the cell has now; None where there are none.
        StoreError where the file is damaged."""
        path = self.scores_path(cell_id)
        try:
            content = read_bounded(path, MAX_JSON_BYTES)
        except _ABSENT:
            return None
        except ValueError as error:
            raise StoreError(f"scores/{path.name} {error}; remove it and rescore") from error
        stored = read_scores(content, f"scores/{path.name}")
        return stored if stored.samples == self.samples_hash(cell_id) else None

    # -- the run -----------------------------------------------------------------------------

    def write_sweep(self, document: dict[str, Any]) -> None:
        """Store spec, plan, environment and context; unchanged content is not written again."""
        if self.read_sweep_or_none() != json.loads(json.dumps(document)):
            write_json(self.path / "sweep.json", document)

    def read_sweep_or_none(self) -> dict[str, Any] | None:
        """The stored sweep.json, or None where there is none that is a JSON object. What is in it
        `read_run` looks at."""
        try:
            found = json_file(self.path / "sweep.json")
        except (*_ABSENT, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_roof(self, roof: Roof) -> None:
        """Store the device's roofs that the run's profiles are held against."""
        write_json(self.path / "roof.json", roof.model_dump(mode="json"))

    def read_roof(self) -> Roof | None:
        """The stored roofs, or None where there are none that are whole."""
        try:
            return Roof.model_validate(json_file(self.path / "roof.json"))
        except (*_ABSENT, ValueError):
            return None

    def write_estimate(self, estimate: Estimate) -> None:
        """Store what the sweep was expected to take, and what it took."""
        write_json(self.path / "estimate.json", estimate.model_dump(mode="json"))

    def read_estimate(self) -> Estimate | None:
        """The stored estimate, or None where there is none that is whole."""
        try:
            return Estimate.model_validate(json_file(self.path / "estimate.json"))
        except (*_ABSENT, ValueError):
            return None

    def write_manifest(self) -> str:
        """Hash plan, roofs, parts, records, samples, added scores and, apart from these, logs;
        returns the root hash (16 hex digits)."""
        before = read_manifest(self.path)
        made = made_manifest(evidence_hashes(self.path), log_hashes(self.path))
        if before is not None and before.root == made.root:
            # The tables made of them are still theirs.
            made = made_manifest(made.files, made.logs, before.tables)
        write_bytes(self.path / MANIFEST, made.content())
        return made.root

    def note_tables(self, tool: str, libraries: dict[str, str]) -> None:
        """Note in the manifest which release wrote the tables that stand beside it, with which
        `libraries`, and their hashes; nothing where there is no manifest. OSError where a table is
        missing."""
        before = read_manifest(self.path)
        if before is None:
            return
        files = {name: file_hash(self.path / name) for name in TABLES}
        tables = Tables(tool=tool, libraries=libraries, files=files)
        if tables != before.tables:
            # What was measured stays as it was noted, so that no later change of it is hidden.
            logs = before.logs if before.version > 1 else log_hashes(self.path)
            made = made_manifest(before.files, logs, tables)
            write_bytes(self.path / MANIFEST, made.content())

    def manifest_root(self) -> str:
        """The stored root hash; empty where there is no manifest."""
        try:
            return str(json_file(self.path / MANIFEST)["root"])
        except (*_ABSENT, ValueError, KeyError, TypeError):
            return ""


def _parquet(parts: dict[str, bytes]) -> bytes:
    """The file of a cell's samples."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for kind, arrow in parts.items():
        table = pa.ipc.open_stream(arrow).read_all()
        tables.append(table.add_column(0, "row", pa.array([kind] * len(table), pa.string())))
    joined = pa.concat_tables(tables, promote_options="permissive")
    buffer = io.BytesIO()
    pq.write_table(joined, buffer, compression="zstd")
    return buffer.getvalue()


def unrecorded(path: Path) -> str | None:
    """One line on a stored run's cells of which answers are kept but no record can be read, so that
    no table shows them; None where there are none. StoreError where `path` is no run."""
    folder, sweep = read_run(path)
    cells = [
        f"{cell['format']} ({cell['task']})"
        for cell in sweep["plan"]["cells"]
        if folder.has_parts(cell["cell_id"]) and folder.read_record(cell["cell_id"]) is None
    ]
    if not cells:
        return None
    return (
        f"{path} holds answers without a record of {', '.join(cells)}, as their sweep ended before "
        f"or the record is damaged: no table shows them; run the sweep again with --out {path}, "
        "which takes them over"
    )


def _nobody(path: str) -> None:
    """Nobody is told."""


def _hash_or_none(path: Path) -> str | None:
    """A file's SHA-256; None where there is none."""
    try:
        return file_hash(path)
    except (*_ABSENT, NoPlainFile):
        return None


def _bad_samples(path: Path, why: str, cell_id: str) -> StoreError:
    return StoreError(
        f"the samples {path} are {why}; remove cells/{cell_id}.json and run the sweep again"
    )


@lru_cache(maxsize=4)
def _table_of(content: bytes, known: tuple[str, ...] | None) -> Any:
    """The rows of a file of samples; ValueError where its hash is none of `known`, or it stands for
    more than `MAX_VALUES`. The kinds of rows of a cell are asked for one after the other, and
    taking the file apart takes longer than reading it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if known is not None and hashlib.sha256(content).hexdigest() not in known:
        raise ValueError("not the samples that the record was written with")
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            found = file.metadata
            if found.num_rows * max(found.num_columns, 1) > MAX_VALUES:
                raise ValueError(f"more than {MAX_VALUES:,} values")
            check_columns(file.schema_arrow)
            return file.read(use_threads=False)
    # Of pyarrow, for some damaged files: nothing is read from the system any more.
    except OSError as error:
        raise ValueError(str(error)) from error


def read_run(path: Path) -> tuple[RunFolder, dict[str, Any]]:
    """A stored run and its sweep.json, for reading; StoreError where `path` is none."""
    folder = RunFolder(path)
    sweep = folder.read_sweep_or_none()
    if sweep is None and not (path / "sweep.json").exists():
        raise StoreError(f"{path} is no results folder (no sweep.json); give a run's folder")
    version = None if sweep is None else sweep.get("schema_version")
    if type(version) is int and version > SWEEP_SCHEMA:
        raise NewerSchema(f"{path} was written by a newer release; upgrade precision-explorer")
    fault = "schema_version" if type(version) is not int else fault_of(sweep)
    if sweep is None or fault is not None:
        what = "no JSON object" if sweep is None else fault
        raise StoreError(
            f"{path}/sweep.json is damaged ({what}); run the sweep again with --out {path}"
        )
    return folder, sweep
