"""A lot: the cells of one model, which are measured on one place. What a place sends of it, and how
that comes into the run's folder. No torch here.

A place measures a lot as the local executor does, into a folder of its own, and sends each answer,
record and file the moment it is written there. Whoever drives the sweep writes them into the run's
folder, in the same order and by the same functions, so that the folder is at any moment what it
would be if the cells were measured beside it. Between them goes what goes between the manager and a
worker (`runner.protocol`): pickles to the place, nothing but JSON and bytes back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precision_explorer.plan import Plan, PlannedCell
from precision_explorer.records import CellRecord
from precision_explorer.runner.disturbed import lacks_disturbed
from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.runner.sessions import groups
from precision_explorer.store import RunFolder
from precision_explorer.store.atomic import write_bytes

Json = dict[str, Any]
Send = Callable[[Json, bytes], None]
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}")


@dataclass(eq=False)
class Lot:
    """Cells of one model, in the plan's order. `number` counts the plan's lots; `losses`: places
    that were lost one after the other while they measured it."""

    number: int
    cells: tuple[PlannedCell, ...]
    losses: int = 0

    @property
    def model(self) -> str:
        """The model's name."""
        return self.cells[0].ref.name


def lots(plan: Plan) -> list[Lot]:
    """The plan's cells that run, by model: their rounds are interleaved, and they are compared with
    one reference, so that all of them belong on one machine."""
    found: list[Lot] = []
    for group in groups(plan.to_run):
        own = {planned.cell_id for session in group for planned in session}
        cells = tuple(planned for planned in plan.to_run if planned.cell_id in own)
        found.append(Lot(len(found), cells))
    return found


# -- on the place ---------------------------------------------------------------------------------


class SentFolder(RunFolder):
    """A lot's folder on its place, of which all is sent on that is written to it."""

    def __init__(self, path: Path, send: Send) -> None:
        super().__init__(path)
        self._send, self._logged = send, dict[str, int]()

    def seed(self, files: dict[str, bytes]) -> None:
        """Write what the run's folder holds of the lot, which is not sent back."""
        for name, content in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def write_part(self, cell_id: str, name: str, answer: Json, arrow: bytes) -> None:
        """As a run's folder does, and send it."""
        super().write_part(cell_id, name, answer, arrow)
        self._tell({"type": "part", "cell_id": cell_id, "name": name, "answer": answer}, arrow)

    def write_record(self, record: CellRecord) -> None:
        """As a run's folder does, and send it."""
        super().write_record(record)
        self._tell({"type": "record", "record": record.model_dump(mode="json")})

    def write_samples(self, cell_id: str, parts: dict[str, bytes]) -> None:
        """As a run's folder does, and send the file, whose hash the record holds."""
        super().write_samples(cell_id, parts)
        self._tell({"type": "samples", "cell_id": cell_id}, self.samples_path(cell_id).read_bytes())

    def set_aside_parts(self, cell_id: str) -> None:
        """As a run's folder does, and have that one do so."""
        super().set_aside_parts(cell_id)
        self._tell({"type": "aside", "cell_id": cell_id})

    def send_logs(self) -> None:
        """Send what was added to the logs."""
        for path in sorted((self.path / "logs").glob("*.log")):
            sent = self._logged.get(path.stem, 0)
            with path.open("rb") as file:
                file.seek(sent)
                content = file.read()
            if content:
                self._logged[path.stem] = sent + len(content)
                self._send({"type": "log", "cell_id": path.stem}, content)

    def _tell(self, header: Json, content: bytes = b"") -> None:
        # The log first: it leads to the answer.
        self.send_logs()
        self._send(header, content)


# -- beside the run's folder ----------------------------------------------------------------------


def files_of(folder: RunFolder, lot: Lot) -> dict[str, bytes]:
    """{path in the folder: content} of what is there of a lot: parts, records and samples, but not
    the answers of tries that failed."""
    paths: list[Path] = []
    for planned in lot.cells:
        parts = folder.path / "parts" / planned.cell_id
        paths += [p for p in parts.glob("*") if p.suffix in (".json", ".arrow")]
        paths += [folder.record_path(planned.cell_id), folder.samples_path(planned.cell_id)]
    found = {}
    for path in filter(Path.is_file, paths):
        found[path.relative_to(folder.path).as_posix()] = path.read_bytes()
    return found


def start_anew(folder: RunFolder, lot: Lot) -> None:
    """Before a lot goes to a place that has none of it in its memory: what was answered of a cell
    that is not finished is set aside, as what is still asked of it would be another machine's. A
    finished record without its disturbed part stays until the cell is measured whole again."""
    for planned in lot.cells:
        record = folder.read_record(planned.cell_id)
        done = record is not None and record.status == "ok"
        if (not done or lacks_disturbed(planned, record)) and folder.has_parts(planned.cell_id):
            folder.set_aside_parts(planned.cell_id)


class Replay:
    """What places send, done to the run's folder. ValueError, KeyError or TypeError for what no lot
    may send: of cells that are not its own, under names that lead elsewhere, or rubbish."""

    def __init__(self, folder: RunFolder, on_event: OnEvent) -> None:
        self._folder, self._on_event = folder, on_event

    def message(self, lot: Lot, header: Json, content: bytes, place: str) -> None:
        """One message of `place`, which measures `lot`."""
        kind = header["type"]
        if kind == "event":
            self._on_event(Event(header["name"], header["data"] | {"place": place}))
        elif kind == "log" and header["cell_id"] == "background":
            self._log("background", content)
        elif kind == "record":
            record = CellRecord.model_validate(header["record"])
            self._folder.write_record(self._own(lot, record.cell_id, record))
        else:
            self._file(kind, self._own(lot, header["cell_id"], header["cell_id"]), header, content)

    def _file(self, kind: str, cell_id: str, header: Json, content: bytes) -> None:
        folder = self._folder
        if kind == "part" and _PART.fullmatch(header["name"]):
            folder.write_part(cell_id, header["name"], header["answer"], content)
        elif kind == "samples":
            write_bytes(folder.samples_path(cell_id), content)
        elif kind == "aside":
            folder.set_aside_parts(cell_id)
        elif kind == "log":
            self._log(cell_id, content)
        else:
            raise ValueError(f"it sent {str(kind)[:40]!r}, which is nothing of a lot")

    def _log(self, name: str, content: bytes) -> None:
        with self._folder.log_path(name).open("ab") as file:
            file.write(content)

    @staticmethod
    def _own(lot: Lot, cell_id: Any, value: Any) -> Any:
        if any(cell_id == c.cell_id for c in lot.cells):
            return value
        raise ValueError(f"it sent a cell {str(cell_id)[:40]!r} that is not of its lot")


def task_cells(lot: Lot, chosen: Sequence[PlannedCell]) -> Lot:
    """The same lot of some of its cells."""
    own = {planned.cell_id for planned in chosen}
    return Lot(lot.number, tuple(c for c in lot.cells if c.cell_id in own), lot.losses)
