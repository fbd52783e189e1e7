"""Reading a trace of requests: when each came, and how long it and its answer were."""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from precision_explorer.errors import UsageError

# The project's own names, then those of the Azure LLM inference traces (2023, 2024) and of
# BurstGPT; upper and lower case are not told apart.
COLUMNS = {
    "time": ("time_s", "TIMESTAMP"),
    "input length": ("input_tokens", "ContextTokens", "Request tokens"),
    "output length": ("output_tokens", "GeneratedTokens", "Response tokens"),
}
_EXAMPLE = "time_s,input_tokens,output_tokens"
MAX_BYTES = 4_000_000_000
"""Of a file: the longest public trace, a week of Azure's (2024), has some 1 GB."""
_MOST_TOKENS = 10**9
MAX_ROWS = 100_000_000
"""A small parquet file can stand for any number; so many times take 800 MB."""
_TIMESTAMP = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?\s*(Z|[+-]\d.*)?")


@dataclass(frozen=True, eq=False)
class TraceData:
    """n requests: `times_s` (n,) float64 from the first one on, non-decreasing; the lengths (n,)
    int64 tokens, at least 1, or None where they were not asked for; `sha256` of the file, 64 hex
    digits."""

    times_s: np.ndarray
    input_tokens: np.ndarray | None
    output_tokens: np.ndarray | None
    sha256: str


def read_trace(path: Path, with_lengths: bool = True) -> TraceData:
    """The trace in the CSV or parquet file at `path`, with columns named as in `COLUMNS`.

    Times are seconds or timestamps, and become seconds after the first one. UsageError in one line,
    which names the row (the first below the header is row 1), for a file that can't be read,
    missing columns, fewer than two requests, times that go backwards and lengths below 1.
    """
    try:
        stat = path.stat()
        if stat.st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES / 1e9:g} GB; cut the trace")
        return _read(path, stat.st_mtime_ns, stat.st_size, with_lengths)
    except OSError as error:
        raise UsageError(f"can't read the trace {path}; check the path") from error


@lru_cache(maxsize=2)
def _read(path: Path, modified_ns: int, size: int, with_lengths: bool) -> TraceData:
    """`read_trace`; what names the file's state is there for the cache alone."""
    wanted = list(COLUMNS) if with_lengths else ["time"]
    columns = _columns(path, wanted)
    if len(columns["time"]) < 2:
        raise UsageError(f"{path} holds fewer than two requests; a trace needs more to have a rate")
    times = _times(path, columns["time"])
    lengths = [_lengths(path, columns[kind], kind) for kind in wanted[1:]]
    got_in, got_out = lengths or (None, None)
    return TraceData(times, got_in, got_out, _sha256(path))


def _columns(path: Path, wanted: list[str]) -> dict[str, Any]:
    """The wanted columns of the file as pyarrow arrays."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            whole = parquet.ParquetFile(path)
            if whole.metadata.num_rows > MAX_ROWS:
                raise UsageError(f"{path} holds more than {MAX_ROWS:,} requests; cut the trace")
            names = _found(path, whole.schema_arrow.names, wanted)
            table = parquet.read_table(path, columns=list(names.values()))
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                header = next(csv.reader(file), [])
            names = _found(path, header, wanted)
            options = arrow_csv.ConvertOptions(
                include_columns=list(names.values()), strings_can_be_null=True
            )
            table = arrow_csv.read_csv(path, convert_options=options)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        why = (str(error).splitlines() or ["bad content"])[0]
        text = f"{path} is no CSV or parquet file ({why}); give one with columns {_EXAMPLE}"
        raise UsageError(text) from error
    found = {kind: table.column(name).combine_chunks() for kind, name in names.items()}
    return {
        kind: pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        for kind, column in found.items()
    }


def _found(path: Path, header: list[str], wanted: list[str]) -> dict[str, str]:
    """The file's own name of each wanted column."""
    if not header:
        raise UsageError(f"{path} is empty; give a trace with columns {_EXAMPLE}")
    own = {name.strip().lower(): name for name in reversed(header)}
    names = {
        kind: next((own[a.lower()] for a in COLUMNS[kind] if a.lower() in own), None)
        for kind in wanted
    }
    missing = [kind for kind, name in names.items() if name is None]
    if missing:
        known = "; ".join(f"{kind}: {' or '.join(COLUMNS[kind])}" for kind in missing)
        alone = "" if "time" in missing else ", or set use_lengths: false to replay its times alone"
        raise UsageError(f"{path} has no column for the {missing[0]} ({known}); add it{alone}")
    return {kind: name for kind, name in names.items() if name is not None}


def _times(path: Path, column: Any) -> np.ndarray:
    """(n,) float64 seconds after the first."""
    import pyarrow as pa

    _no_gaps(path, column, "time")
    if pa.types.is_timestamp(column.type):
        # Whole nanoseconds are subtracted before they become floats, which can't hold a date to 1
        # µs.
        try:
            ticks = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid as error:
            text = f"{path}: a time is before 1677 or after 2262; correct it"
            raise UsageError(text) from error
        times = (ticks - ticks[0]) / 1e9
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        seconds = column.to_numpy(zero_copy_only=False).astype(np.float64)
        _refuse(path, ~np.isfinite(seconds), seconds, "time {} is no number of seconds; correct it")
        times = seconds - seconds[0]
    else:
        texts = _shown(path, column, "time")
        row = _odd_time(texts)
        text = f"{path}, row {row + 1}: time '{texts[row]}' is neither seconds nor a timestamp"
        raise UsageError(f"{text} as in row 1; correct it" if row else f"{text}; correct it")
    back = np.flatnonzero(np.diff(times) < 0)
    if back.size:
        row = int(back[0]) + 1
        raise UsageError(
            f"{path}, row {row + 1}: its time is {times[row - 1] - times[row]:g} s before that of "
            "the row above; sort the file by time"
        )
    if times[-1] <= 0:
        raise UsageError(f"{path}: all its requests have one time; a trace needs several")
    return times


def _odd_time(texts: list[str]) -> int:
    """The first row that is neither number nor timestamp, or not what row 0 is."""
    kinds = [_kind(text) for text in texts]
    return next((i for i, kind in enumerate(kinds) if kind is None or kind != kinds[0]), 0)


def _kind(text: str) -> str | None:
    try:
        float(text)
    except ValueError:
        return "timestamp" if _TIMESTAMP.fullmatch(text.strip()) else None
    return "number"


def _lengths(path: Path, column: Any, kind: str) -> np.ndarray:
    """(n,) int64 tokens."""
    import pyarrow as pa

    _no_gaps(path, column, kind)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        values = _shown(path, column, kind)
        row = next((i for i, value in enumerate(values) if _kind(value) != "number"), 0)
        raise UsageError(
            f"{path}, row {row + 1}: {kind} '{values[row]}' is no number of tokens; correct it"
        )
    numbers = column.to_numpy(zero_copy_only=False)
    whole = np.isfinite(numbers) & (numbers == np.floor(numbers))
    _refuse(path, ~whole, numbers, kind + " {} is no whole number of tokens; correct it")
    _refuse(path, numbers > _MOST_TOKENS, numbers, kind + " {} is more than any model takes")
    _refuse(path, numbers < 1, numbers, kind + " {} is below 1 token; correct or remove the row")
    return numbers.astype(np.int64)


def _shown(path: Path, column: Any, kind: str) -> list[str]:
    """The values of a column that is neither numbers nor timestamps, as text for a message."""
    try:
        return [str(value) for value in column.to_pylist()]
    # Values that Python's own types can't hold.
    except (OverflowError, ValueError) as error:
        text = f"{path}: the {kind} is of the type {column.type}; give numbers"
        raise UsageError(text) from error


def _no_gaps(path: Path, column: Any, kind: str) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise UsageError(f"{path}, row {row + 1}: the {kind} is missing; fill it or remove the row")


def _refuse(path: Path, wrong: np.ndarray, values: np.ndarray, text: str) -> None:
    """UsageError that names the first row where `wrong` holds."""
    rows = np.flatnonzero(wrong)
    if rows.size:
        row = int(rows[0])
        raise UsageError(f"{path}, row {row + 1}: " + text.format(f"{values[row]:g}"))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
