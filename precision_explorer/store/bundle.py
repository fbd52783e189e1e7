"""A run as one file that can be passed on: a ZIP archive (APPNOTE 6.3) whose bytes follow from its
content alone."""

from __future__ import annotations

import errno
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from precision_explorer.errors import StoreError
from precision_explorer.store.manifest import MANIFEST, TABLES, Manifest

README = "README.txt"
MAX_BYTES = 4_000_000_000
"""Most that a bundle may take unpacked, unless its reader allows more."""
_MAX_FILES = 200_000
# The earliest time that ZIP can hold; a file's own would make the same run another bundle.
_NO_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = (stat.S_IFREG | 0o644) << 16
_UNIX = 3
_BLOCK = 1 << 20
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+ ")
_TEXT = """\
A run of precision-explorer: what was measured, and the tables made of it.

Run:   {run}
Root:  {root}

The folder {run} holds it. Begin with {run}/report.html: method and its id, days, limits, prices
and what the numbers do not say stand above them; {run}/tradeoffs.csv has them in its last columns.

Whether all of it still is as it was measured can be checked without a model:

    precision-explorer verify FILE.zip --root {root}

The root must have come to you by another way than this file: whoever could change the file could
change the root above. Nothing is compressed, so that the same run gives the same bytes everywhere.
"""


def bundle_files(manifest: Manifest) -> list[str]:
    """What a bundle holds of a run's folder: evidence, manifest and tables, by sorted names; no
    logs, on which no figure rests and which name paths."""
    return sorted([*manifest.files, MANIFEST, *TABLES])


def write_archive(
    out: IO[bytes], run: str, manifest: Manifest, contents: Iterable[tuple[str, Path]]
) -> None:
    """The bundle of a run named `run` to `out`; `contents`: the names of `bundle_files`, in their
    order, and where each lies."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        text = _TEXT.format(run=run, root=manifest.full_root)
        archive.writestr(_entry(README), text.encode())
        for name, path in contents:
            entry = _entry(f"{run}/{name}")
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(entry, "w") as target:
                while block := source.read(_BLOCK):
                    target.write(block)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _NO_TIME)
    entry.create_system = _UNIX
    entry.external_attr = _MODE
    return entry


def safe_run_name(name: str) -> str:
    """A run's name as the name of a folder in an archive."""
    kept = "".join(c if c in _SAFE else "-" for c in name).strip(". ")
    return kept or "run"


def unpack(path: Path, target: Path, max_bytes: int = MAX_BYTES) -> str:
    """Unpack the bundle at `path` below `target`; the run's name, which is that of its folder.

    StoreError for a file that is no bundle: one that can't be read, that holds more than
    `max_bytes`, names outside of one folder, links, names twice, or anything compressed, so that
    what is unpacked is never larger than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            run = _checked(entries, path, max_bytes)
            for entry in entries:
                if entry.filename != README:
                    _extract(archive, entry, target / entry.filename)
            return run
    except StoreError:
        raise
    # Whatever a damaged archive makes zipfile raise: it is given anything.
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, NotImplementedError,
            zipfile.LargeZipFile) as error:  # fmt: skip
        # EINVAL: an archive that sends its reader to before its beginning.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        why = str(error) or type(error).__name__
        raise StoreError(f"{path} is a damaged bundle ({why}); get it again") from error


def _checked(entries: list[zipfile.ZipInfo], path: Path, max_bytes: int) -> str:
    """The run's name, which all entries but the README begin with; StoreError for others."""
    names = [entry.filename for entry in entries]
    if README not in names or not any(name.endswith(f"/{MANIFEST}") for name in names):
        raise StoreError(f"{path} is no bundle of a run; make one by export RUN --to FILE.zip")
    size = sum(entry.file_size for entry in entries)
    if size > max_bytes or len(entries) > _MAX_FILES:
        raise StoreError(
            f"{path} holds {size:,} bytes in {len(entries):,} files, more than {max_bytes:,} bytes "
            f"or {_MAX_FILES:,} files; raise --max-size if you trust it"
        )
    if size > path.stat().st_size:
        raise StoreError(f"{path} claims more bytes than it has; get it again")
    if len(set(names)) != len(names):
        raise StoreError(f"{path} holds a name twice; it is no bundle of this program's")
    run = next(name for name in names if name != README).partition("/")[0]
    for entry in entries:
        if entry.filename != README:
            _check_entry(entry, run, path)
    return run


def _check_entry(entry: zipfile.ZipInfo, run: str, path: Path) -> None:
    # zipfile cuts a name at a zero byte: `orig_filename` has it whole.
    name, parts = entry.orig_filename, entry.orig_filename.split("/")
    if parts[0] != run or len(parts) < 2 or safe_run_name(run) != run:
        raise StoreError(f"{path} holds {name!r} outside of its run; don't unpack it")
    if any(part in ("", ".", "..") or not set(part) <= _SAFE for part in parts):
        raise StoreError(f"{path} holds the unsafe name {name!r}; don't unpack it")
    mode = stat.S_IFMT(entry.external_attr >> 16)
    if mode not in (0, stat.S_IFREG):
        raise StoreError(f"{path} holds {name!r}, which is no plain file; don't unpack it")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise StoreError(
            f"{path} is compressed, which no bundle is; unpack it where that is safe, and verify "
            "the folder"
        )
    if entry.flag_bits & 1:
        raise StoreError(f"{path} is encrypted, which no bundle is; get it again")


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, place.open("xb") as target:
        while block := source.read(_BLOCK):
            target.write(block)
