"""Places of a Slurm cluster: one job each, submitted by submitit. No torch here, and submitit only
where `SlurmSource` is made.

A place is a job that holds a lane and measures one lot after the other, until no lot is left. What
is asked and answered goes through files in a folder that both sides see, of this user alone: a
login node may not be reachable from where jobs run, a port would need a key that would have to be
kept somewhere, and a scheduler's users have such a folder anyway. The cost is the delay of a shared
file system, some seconds per lot at most, and nothing of it comes while anything is timed.

Requests are pickles that the driver writes; answers are JSON and bytes (`runner.protocol`).
submitit's own results, which are pickles, are not read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from precision_explorer.errors import UsageError
from precision_explorer.paths import cache_dir
from precision_explorer.plan import SweepSpec
from precision_explorer.runner import places
from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.runner.places import (
    LAST,
    MAX_FRAME_BYTES,
    LaneProcess,
    Message,
    PlaceLost,
    Slot,
    close_all,
    frame,
    unframed,
)
from precision_explorer.store.atomic import write_bytes

ADVICE = "--executor slurm needs submitit; install it by: pip install 'precision-explorer[slurm]'"
JOBS = 16
"""Jobs at once, unless ``--slurm jobs=N`` says another number: what a queue takes of one user
without a special account. A declared choice."""
_MINUTES = 24 * 60
# Of sbatch (its manual page), by which a job may ask for GPUs.
_GPU_SETTINGS = {
    "gres", "gpus", "gpus_per_node", "gpus_per_task", "gpus_per_socket", "tres_per_task",
}  # fmt: skip
_LENGTH = struct.Struct("!Q")
_LOOK_S = 0.1
# How often Slurm is asked what became of a job, beside what it answers.
_STATE_S = 5.0
_BEAT_S = 5.0
# A driver that has said nothing for so long is gone: its jobs end. Longer than a shared file system
# hides a change.
_SILENT_S = 300.0


# -- in the job -----------------------------------------------------------------------------------


def serve(folder: str, module: str, silent_s: float = _SILENT_S) -> None:
    """What a job runs: hold a lane, and relay until it is asked to end or nobody is left to ask."""
    own, number = Path(folder), 0
    lane, beat, over = LaneProcess(module), _Beat(own.parent / "alive", silent_s), threading.Event()

    def is_wanted() -> bool:
        # The folder is removed with the sweep, also where a scheduler did not end the job.
        return beat.is_there() and own.is_dir() and not (own / "stop").exists()

    def watch() -> None:
        while not over.wait(min(_BEAT_S, silent_s)):
            if not is_wanted():
                over.set()
                lane.close()

    # In the middle of a lot too, which may take hours that nobody would read.
    threading.Thread(target=watch, name="slurm-watch", daemon=True).start()
    try:
        while not over.is_set() and is_wanted():
            try:
                request = (own / f"request-{number}").read_bytes()
            except FileNotFoundError:
                time.sleep(_LOOK_S)
                continue
            _relay(lane, request, own / f"answer-{number}")
            number += 1
    finally:
        over.set()
        lane.close()


def _relay(lane: LaneProcess, request: bytes, path: Path) -> None:
    with path.open("wb") as file:
        try:
            for header, content in lane.exchange(request):
                _put(file, frame(header, content))
        except PlaceLost as lost:
            _put(file, frame({"type": "lost", "why": str(lost)}, b""))


def _put(file: IO[bytes], message: bytes) -> None:
    file.write(_LENGTH.pack(len(message)) + message)
    file.flush()
    # A shared file system shows others what was written no later than this.
    os.fsync(file.fileno())


class _Beat:
    """Whether a file still changes; by this machine's clock, as two machines' may differ."""

    def __init__(self, path: Path, silent_s: float) -> None:
        self._path, self._silent_s = path, silent_s
        self._seen, self._since = b"", time.monotonic()

    def is_there(self) -> bool:
        found = b""
        with contextlib.suppress(OSError):
            found = self._path.read_bytes()
        if found and found != self._seen:
            # In this order: two threads look.
            self._since = time.monotonic()
            self._seen = found
        return time.monotonic() - self._since < self._silent_s


# -- beside the run's folder ----------------------------------------------------------------------


class SlurmLine:
    """A line to the lane of a job."""

    def __init__(self, job: Any, folder: Path) -> None:
        self._job, self._folder = job, folder
        self._number = 0
        self._closed = self._over = False
        self._asked = 0.0
        self._until: float | None = None

    def exchange(self, request: bytes) -> Iterator[Message]:
        """As `Line.exchange`."""
        number, self._number = self._number, self._number + 1
        try:
            write_bytes(self._folder / f"request-{number}", request)
        except OSError as error:
            raise PlaceLost(f"it could not be asked ({error.strerror})") from error
        for message in self._messages(self._folder / f"answer-{number}"):
            header, content = unframed(message)
            if header["type"] == "lost":
                raise PlaceLost(str(header.get("why")))
            yield header, content
            if header["type"] in LAST:
                return

    def _messages(self, path: Path) -> Iterator[bytes]:
        """What stands in a file that grows, message by message; PlaceLost once the job has ended
        without more."""
        place = 0
        while True:
            content = _read(path, place, _LENGTH.size)
            if len(content) == _LENGTH.size:
                (length,) = _LENGTH.unpack(content)
                if length > MAX_FRAME_BYTES:
                    raise PlaceLost("its answer could not be read: it is too long")
                message = _read(path, place + _LENGTH.size, length)
                if len(message) == length:
                    place += _LENGTH.size + length
                    yield message
                    continue
            self._wait()

    def _wait(self) -> None:
        """Wait a moment; PlaceLost where the job has ended, a while after that: its last words may
        be seen later."""
        if self._closed:
            raise PlaceLost("the sweep has ended")
        now = time.monotonic()
        if not self._over and now - self._asked > _STATE_S:
            self._asked, self._over = now, bool(self._job.done())
            self._until = now + _STATE_S if self._over else None
        if self._until is not None and now > self._until:
            raise PlaceLost(f"its job ended ({self._state()})")
        time.sleep(_LOOK_S)

    def _state(self) -> str:
        with contextlib.suppress(Exception):  # Whatever a scheduler's own programs raise.
            return str(self._job.state)
        return "unknown"

    def close(self) -> None:
        """As `Line.close`."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            (self._folder / "stop").touch()
        with contextlib.suppress(Exception):
            self._job.cancel()


def _read(path: Path, place: int, length: int) -> bytes:
    """So many bytes of a file from `place` on, fewer where it has no more. Opened anew each time:
    that is when a shared file system looks."""
    try:
        with path.open("rb") as file:
            there = os.fstat(file.fileno()).st_size - place
            file.seek(place)
            return file.read(max(min(length, there), 0))
    except FileNotFoundError:
        return b""
    except (OSError, MemoryError) as error:
        raise PlaceLost(f"its answer could not be read: {type(error).__name__}") from error


class SlurmSource:
    """The places that jobs make. `spec.slurm`: settings of the jobs by sbatch's names, and
    ``jobs``, how many there may be at once. `spec.cores` are the CPUs of each; it has one GPU where
    the sweep is of one, of the type `spec.on`. `cluster`: None for Slurm, ``local`` for submitit's
    own processes (in tests)."""

    executor = "slurm"
    shares_machine = False

    def __init__(self, spec: SweepSpec, on_event: OnEvent, cluster: str | None = None) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UsageError(ADVICE) from error
        if cluster is None and submitit.AutoExecutor.which() != "slurm":
            raise UsageError(
                "--executor slurm: no Slurm is here (srun is not found); run this where jobs are "
                "submitted, or leave --executor out"
            )
        self._spec, self._on_event = spec, on_event
        settings = dict(one.split("=", 1) for one in spec.slurm)
        self._jobs = _number("jobs", settings.pop("jobs", str(JOBS)))
        self.cores: int | None = spec.cores
        # A node's GPU that the job did not ask for may be another's.
        self._device = None if self._asks_for_gpu(settings) else "cpu"
        root = cache_dir() / "slurm"
        root.mkdir(parents=True, exist_ok=True)
        # Made for this user alone (0700).
        self._folder = Path(tempfile.mkdtemp(prefix="sweep-", dir=root))
        self._executor = submitit.AutoExecutor(self._folder / "jobs", cluster or "slurm")
        try:
            self._executor.update_parameters(**self._parameters(settings))
        except (NameError, TypeError, ValueError) as error:  # submitit's, of a name or a value.
            shutil.rmtree(self._folder, ignore_errors=True)
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UsageError(f"--slurm: {line}; give sbatch's own names") from error
        self._ended = threading.Event()
        self._lines: list[SlurmLine] = []
        threading.Thread(target=self._beat, name="slurm-beat", daemon=True).start()

    def _parameters(self, settings: dict[str, str]) -> dict[str, Any]:
        """submitit's names of what a job gets."""
        spec = self._spec
        found: dict[str, Any] = {"name": "precision-explorer", "timeout_min": _MINUTES}
        if "time" in settings:
            found["timeout_min"] = _number("time", settings.pop("time"))
        if spec.cores is not None:
            found["cpus_per_task"] = spec.cores
        wanted = spec.on[0] if spec.on else None
        if self._wants_gpu():
            own = {"slurm_gres": f"gpu:{wanted}:1"} if wanted else {"gpus_per_node": 1}
            found |= own
        elif wanted:
            found["slurm_constraint"] = wanted
        return found | {f"slurm_{name}": _value(value) for name, value in settings.items()}

    def _wants_gpu(self) -> bool:
        spec = self._spec
        return spec.device.startswith("cuda") or (spec.device == "auto" and bool(spec.on))

    def _asks_for_gpu(self, settings: dict[str, str]) -> bool:
        """Whether a job has a GPU, by this or by sbatch's own options for it."""
        return self._wants_gpu() or any(n in _GPU_SETTINGS for n in settings)

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(_BEAT_S if count else 0.0):
            count += 1
            with contextlib.suppress(OSError):
                write_bytes(self._folder / "alive", str(count).encode())

    def slots(self) -> list[Slot]:
        """As `Source.slots`: any job may come to any node."""
        wanted = self._spec.on[0] if self._spec.on else None
        names = [f"job-{number + 1}" for number in range(self._jobs)]
        return [Slot(name, name, name, wanted, self._device) for name in names]

    def open(self, slot: Slot) -> SlurmLine:
        """As `Source.open`: submit a job. It may wait in the queue."""
        folder = Path(tempfile.mkdtemp(prefix=f"{slot.name}-", dir=self._folder))
        try:
            job = self._executor.submit(serve, str(folder), places.LANE)
        except Exception as error:  # submitit's, or of sbatch's own process.
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise PlaceLost(f"sbatch took no job: {line}") from error
        text = f"{slot.name}: submitted to Slurm as {job.job_id}; it may wait in the queue"
        self._on_event(Event("note", {"text": text}))
        line_to = SlurmLine(job, folder)
        self._lines.append(line_to)
        if self._ended.is_set():  # Meanwhile.
            line_to.close()
        return line_to

    def close(self) -> None:
        """As `Source.close`: cancels also the jobs that still wait in the queue."""
        self._ended.set()
        close_all([line.close for line in self._lines])
        shutil.rmtree(self._folder, ignore_errors=True)


def _number(name: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--slurm {name}={text}: give a whole number of at least 1")
    return int(text)


def _value(text: str) -> str | int:
    return int(text) if text.isdigit() else text
