"""`RunFolder`: all files of a run and their hashes (docs/results-folder.md)."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

from precision_explorer.errors import StoreError, UsageError
from precision_explorer.records import (
    AddedScores,
    CellRecord,
    NewerSchema,
    Roof,
    canonical_hash,
    read_record,
    read_scores,
)
from precision_explorer.store.atomic import write_bytes, write_json

_FOLDERS = ("parts", "cells", "samples", "logs")
SWEEP_SCHEMA = 1
# What reading a run relies on.
_SWEEP_KEYS = ("run", "reader", "plan", "models", "tasks", "environment", "methods")


class RunFolder:
    """A run's folder, opened for writing by one sweep at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None

    @property
    def name(self) -> str:
        """The folder's own name, which is the run's."""
        return self.path.resolve().name

    # -- opening -----------------------------------------------------------------------------

    def open(self) -> None:
        """Make the folder and take its lock; UsageError when it can't be written, StoreError when
        another sweep holds it. The lock ends with the process, however that ends."""
        try:
            for folder in _FOLDERS:
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UsageError(
                f"can't write the output folder {self.path} ({reason}); choose another by --out"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self.close()
            raise StoreError(
                f"{self.path} is in use by another sweep (process {holder}); wait for it or use "
                "another --out"
            ) from error
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- paths -------------------------------------------------------------------------------

    def record_path(self, cell_id: str) -> Path:
        """Where a cell's record stands."""
        return self.path / "cells" / f"{cell_id}.json"

    def samples_path(self, cell_id: str) -> Path:
        """Where a cell's per-example and per-request rows stand."""
        return self.path / "samples" / f"{cell_id}.parquet"

    def scores_path(self, cell_id: str) -> Path:
        """Where scores stand that were computed afterwards, from a cell's samples."""
        return self.path / "scores" / f"{cell_id}.json"

    def log_path(self, cell_id: str) -> Path:
        """Where a cell's worker writes its output."""
        return self.path / "logs" / f"{cell_id}.log"

    # -- parts -------------------------------------------------------------------------------

    def write_part(self, cell_id: str, name: str, answer: dict[str, Any], arrow: bytes) -> None:
        """Store a worker's answer the moment it is there; the rows first, since the JSON file is
        what says that the part is whole."""
        folder = self.path / "parts" / cell_id
        folder.mkdir(parents=True, exist_ok=True)
        if arrow:
            write_bytes(folder / f"{name}.arrow", arrow)
        write_json(folder / f"{name}.json", answer)

    def read_part(self, cell_id: str, name: str) -> tuple[dict[str, Any], bytes] | None:
        """A stored answer, or None where there is none that can be read."""
        answer, arrow = self.read_answer(cell_id, name), self.part_path(cell_id, name)
        try:
            rows = arrow.read_bytes() if arrow.exists() else b""
        except OSError:
            return None
        return None if answer is None else (answer, rows)

    def read_answer(self, cell_id: str, name: str) -> dict[str, Any] | None:
        """A stored answer without its rows, or None where there is none that can be read."""
        path = self.path / "parts" / cell_id / f"{name}.json"
        try:
            return json.loads(path.read_text(encoding="utf8"))
        except (OSError, ValueError):
            return None

    def part_path(self, cell_id: str, name: str) -> Path:
        """Where the rows of a part stand, if it has any."""
        return self.path / "parts" / cell_id / f"{name}.arrow"

    def has_part(self, cell_id: str, name: str) -> bool:
        """Whether a part is there and whole."""
        return (self.path / "parts" / cell_id / f"{name}.json").is_file()

    def set_aside_parts(self, cell_id: str) -> None:
        """Keep the answers of a try that failed under ``attempt-N``: nothing measured is lost, and
        the next try measures the whole cell in one process."""
        folder = self.path / "parts" / cell_id
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
        document = record.model_dump(mode="json")
        write_json(self.record_path(record.cell_id), document)

    def read_record(self, cell_id: str) -> CellRecord | None:
        """The stored record; None where there is none that can be read. A sweep, which has the
        folder open, sets a damaged one aside, so that the cell is run again; a reader changes
        nothing. NewerSchema for a newer release's record, which is whole and must not be lost."""
        path = self.record_path(cell_id)
        if not path.exists():
            return None
        try:
            return read_record(path)
        except NewerSchema:
            raise
        except StoreError:
            if self._lock is not None:
                path.replace(path.with_name(f"{path.name}.damaged"))
            return None

    def write_samples(self, cell_id: str, parts: dict[str, bytes]) -> None:
        """Join Arrow streams (``example``, ``request``, ``repeat``, ``position``) into the cell's
        parquet, one row each."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for kind, arrow in parts.items():
            table = pa.ipc.open_stream(arrow).read_all()
            tables.append(table.add_column(0, "row", pa.array([kind] * len(table), pa.string())))
        joined = pa.concat_tables(tables, promote_options="permissive")
        buffer = io.BytesIO()
        pq.write_table(joined, buffer, compression="zstd")
        write_bytes(self.samples_path(cell_id), buffer.getvalue())

    def read_samples(self, cell_id: str, kind: str) -> dict[str, list[Any]]:
        """Columns of the rows of one kind (see `write_samples`); StoreError where the file is
        missing or damaged."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        path = self.samples_path(cell_id)
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            why = "damaged" if path.exists() else "missing"
            raise StoreError(
                f"the samples {path} are {why}; remove cells/{cell_id}.json and run the sweep again"
            ) from error
        return table.filter(pc.equal(table["row"], kind)).to_pydict()

    def samples_hash(self, cell_id: str) -> str:
        """SHA-256 of a cell's samples; empty where there are none."""
        try:
            return hashlib.sha256(self.samples_path(cell_id).read_bytes()).hexdigest()
        except OSError:
            return ""

    def write_scores(self, cell_id: str, scores: AddedScores) -> None:
        """Store scores that were computed from a cell's samples."""
        self.scores_path(cell_id).parent.mkdir(exist_ok=True)
        write_json(self.scores_path(cell_id), scores.model_dump(mode="json"))

    def read_scores(self, cell_id: str) -> AddedScores | None:
        """The scores computed from the samples that the cell has now; None where there are none.
        StoreError where the file is damaged."""
        path = self.scores_path(cell_id)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        stored = read_scores(content, f"scores/{path.name}")
        return stored if stored.samples == self.samples_hash(cell_id) else None

    # -- the run -----------------------------------------------------------------------------

    def write_sweep(self, document: dict[str, Any]) -> None:
        """Store spec, plan, environment and context; unchanged content is not written again."""
        if self.read_sweep_or_none() != json.loads(json.dumps(document)):
            write_json(self.path / "sweep.json", document)

    def read_sweep_or_none(self) -> dict[str, Any] | None:
        """The stored sweep.json, or None where there is none that can be read."""
        try:
            return json.loads((self.path / "sweep.json").read_text(encoding="utf8"))
        except (OSError, ValueError):
            return None

    def write_roof(self, roof: Roof) -> None:
        """Store the device's roofs that the run's profiles are held against."""
        write_json(self.path / "roof.json", roof.model_dump(mode="json"))

    def read_roof(self) -> Roof | None:
        """The stored roofs, or None where there are none that can be read."""
        try:
            return Roof.model_validate_json((self.path / "roof.json").read_bytes())
        except (OSError, ValueError):
            return None

    def write_manifest(self) -> str:
        """Hash plan, roofs, parts, records, samples and added scores; returns the root hash (16 hex
        digits)."""
        files = {}
        for folder in ("parts", "cells", "samples", "scores"):
            for path in sorted((self.path / folder).rglob("*")):
                if path.is_file() and path.suffix in (".json", ".arrow", ".parquet"):
                    name = path.relative_to(self.path).as_posix()
                    files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        for name in ("sweep.json", "roof.json"):
            if name == "sweep.json" or (self.path / name).is_file():
                files[name] = hashlib.sha256((self.path / name).read_bytes()).hexdigest()
        root = canonical_hash(files)
        write_json(self.path / "manifest.json", {"version": 1, "root": root, "files": files})
        return root

    def manifest_root(self) -> str:
        """The stored root hash; empty where there is no manifest."""
        try:
            return json.loads((self.path / "manifest.json").read_text(encoding="utf8"))["root"]
        except (OSError, ValueError, KeyError):
            return ""


def read_run(path: Path) -> tuple[RunFolder, dict[str, Any]]:
    """A stored run and its sweep.json, for reading; StoreError where `path` is none."""
    folder = RunFolder(path)
    sweep = folder.read_sweep_or_none()
    if sweep is None:
        raise StoreError(f"{path} is no results folder (no sweep.json); give a run's folder")
    version = sweep.get("schema_version") if isinstance(sweep, dict) else None
    if isinstance(version, int) and version > SWEEP_SCHEMA:
        raise NewerSchema(f"{path} was written by a newer release; upgrade precision-explorer")
    if not isinstance(version, int) or any(key not in sweep for key in _SWEEP_KEYS):
        raise StoreError(f"{path}/sweep.json is damaged; run the sweep again with --out {path}")
    return folder, sweep
