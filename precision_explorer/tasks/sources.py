"""Where examples come from: local files and hub data sets, read through the `datasets` library.

The library is imported only when the cache of extracted columns has no answer.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precision_explorer.errors import TaskError
from precision_explorer.paths import cache_dir
from precision_explorer.records import canonical_hash
from precision_explorer.tasks import cache
from precision_explorer.tasks.cards import DataSource, LoadedCard
from precision_explorer.tasks.nested import taken_columns

# Suffix to the library's reader and its options. With `keep_default_na` a text such as "NA"
# would be read as missing (pandas' list of such words).
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".parquet": ("parquet", {}),
}
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class RawData:
    """`rows`: the used columns of every example, in the data's order. `name` is for messages;
    `folder` is where a local file lies."""

    name: str
    rows: list[cache.Row]
    data_hash: str
    folder: Path | None = None


def read_source(
    loaded: LoadedCard, source: DataSource | None = None, columns: list[str] | None = None
) -> RawData:
    """All rows of `source` (None: of the card's data) with `columns` (None: those that the card
    uses), from the cache or from where it lies; TaskError if it can't be read.

    A column that is a path with dots leads into structs where no column has that very name.
    """
    columns = columns or loaded.card.used_columns()
    source = source or loaded.card.data
    path = loaded.path_of(source)
    if path is not None:
        return _read_file(path, columns, source.key)
    return _read_hub(source, columns)


def _read_file(path: Path, columns: list[str], key_in_card: str) -> RawData:
    if path.suffix.lower() not in _READERS:
        raise TaskError(f"can't read {path}; give the data as {', '.join(_READERS)}")
    digest = _file_digest(path, key_in_card)
    key = cache.cache_key("file", path.suffix.lower(), digest, columns)
    rows = cache.read_rows(key, columns)
    if rows is None:
        reader, options = _READERS[path.suffix.lower()]
        if reader == "csv":
            # Types guessed from the values would turn the ids 007 and 7 into one.
            options = {**options, "converters": dict.fromkeys(columns, str)}
        with tempfile.TemporaryDirectory(prefix="precision-explorer-") as scratch:
            rows = _extract(
                str(path), columns, key, reader,
                # The library takes the name for a pattern.
                data_files=glob.escape(str(path)), split="train", cache_dir=scratch, **options,
            )  # fmt: skip
    return RawData(str(path), rows, digest[:16], path.parent)


def _file_digest(path: Path, key_in_card: str) -> str:
    digest, size = hashlib.sha256(), 0
    try:
        if path.exists() and not path.is_file():
            # A card may come from a stranger: a device or a pipe would never end.
            raise TaskError(f"{path} is no file; give the data as {', '.join(_READERS)}")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except FileNotFoundError as error:
        raise TaskError(
            f"no data at {path}; correct {key_in_card}.path (relative to the card)"
        ) from error
    except OSError as error:
        raise TaskError(f"can't read {path} ({error.strerror}); check the file") from error
    except ValueError as error:
        shown = str(path).replace("\0", "?")
        raise TaskError(f"{shown} is no path that can be used ({error}); correct it") from error
    if size == 0:
        raise TaskError(f"{path} is empty; put at least one example in it")
    return digest.hexdigest()


def _read_hub(source: DataSource, columns: list[str]) -> RawData:
    name, split = str(source.hub), source.split or source.default_split
    commit = _resolve_commit(name, source.revision)
    key = cache.cache_key("hub", name, source.config, commit, split, columns)
    rows = cache.read_rows(key, columns)
    if rows is None:
        if Path(name).exists():
            # The library would take a folder of that name in place of the hub's data set.
            raise TaskError(f"a file named {name} lies here; run elsewhere, or use data.path")
        if commit == source.revision:
            _check_reach(name, commit)
        with _hub_cache() as folder:
            rows = _extract(
                name, columns, key, name, name=source.config, revision=commit, split=split,
                cache_dir=folder,
            )  # fmt: skip
    return RawData(name, rows, canonical_hash([name, source.config, commit, split]))


def _resolve_commit(name: str, revision: str | None) -> str:
    """The commit that `revision` (a branch, a tag, or None) stands for, asked of the hub.

    Offline it is the commit that the hub last answered, if that is known.
    """
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    key = cache.cache_key("commit", name, revision)
    try:
        commit = _ask_hub(name, revision)
    # Whatever the HTTP library in use raises: it has changed between releases.
    except Exception as error:
        known = cache.read_note(key)
        if known is None or not _unreachable(error):
            raise _reading_error(name, error) from error
        return known
    cache.write_note(key, commit)
    return commit


def _check_reach(name: str, commit: str) -> None:
    """TaskError at once where the library would try six times, for 23 s, to reach the hub."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        _ask_hub(name, commit)
    except OfflineModeIsEnabled:
        # Then the library does not try either, and may hold the data set in its own cache.
        return
    except Exception as error:
        raise _reading_error(name, error) from error


def _ask_hub(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(name, revision=revision, timeout=_HUB_TIMEOUT_S)
    return str(info.sha)


@contextlib.contextmanager
def _hub_cache() -> Iterator[str | None]:
    """The library's cache folder: the user's own choice (None), ours, or a passing one."""
    if os.environ.get("HF_DATASETS_CACHE"):
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            folder = cache_dir() / "datasets"
            folder.mkdir(parents=True, exist_ok=True)
            usable = os.access(folder, os.W_OK)
        except (OSError, RuntimeError):
            usable = False
        if not usable:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield str(folder)


def _extract(
    source: str, columns: list[str], key: str, reader: str, **options: Any
) -> list[cache.Row]:
    """Read `columns` by the library and keep them in the cache under `key`."""
    import datasets

    try:
        with _quiet():
            data = datasets.load_dataset(reader, **options)
            body = cache.pack(taken_columns(source, data, columns), columns)
    except TaskError:
        raise
    # The library raises its own errors, pyarrow's, pandas' and the HTTP library's.
    except Exception as error:
        if isinstance(error, ValueError) and "corresponds to no data" in str(error):
            raise TaskError(f"{source} holds no examples; put at least one in it") from error
        raise _reading_error(source, error) from error
    cache.write_rows(key, body)
    # As the next run will read them, so that both see the same values.
    return cache.unpack(body, columns)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, log lines or warnings of the data libraries, and no call home: for a local
    file `datasets` tells the hub which reader was used, and waits for the answer."""
    import datasets
    from huggingface_hub import utils as hub

    level = datasets.utils.logging.get_verbosity()
    bars, hub_bars = datasets.are_progress_bars_disabled(), hub.are_progress_bars_disabled()
    counts = getattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
            datasets.disable_progress_bars()
            hub.disable_progress_bars()
            datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
            yield
        finally:
            datasets.utils.logging.set_verbosity(level)
            datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
            if not bars:
                datasets.enable_progress_bars()
            if not hub_bars:
                hub.enable_progress_bars()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unreachable(error: BaseException) -> bool:
    for link in _chain(error):
        module = type(link).__module__.partition(".")[0]
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(link, (ConnectionError, TimeoutError)) or (status or 0) >= 500:
            return True
        if module in ("httpx", "httpx2", "httpcore", "requests", "urllib3") and status is None:
            return True
    return False


def _reading_error(source: str, error: Exception) -> TaskError:
    names = {type(link).__name__ for link in _chain(error)}
    if "no longer supported" in str(error):
        return TaskError(
            f"data set {source} is a script, which is not run; give its data as files or parquet"
        )
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError", "GatedRepoError"}:
        return TaskError(f"no data set {source} for you on the hub; check the id, or log in")
    if "RevisionNotFoundError" in names:
        return TaskError(f"data set {source} has no such revision; correct data.revision")
    if _unreachable(error):
        return TaskError(
            f"can't reach the hub for data set {source}; go online once, or use data.path"
        )
    reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    return TaskError(f"can't read {source} ({reason[:300]}); correct the data or the card")
