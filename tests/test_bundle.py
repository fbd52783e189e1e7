"""A run as one file: made the same everywhere, verified as it is, refused where it is unsafe."""

from __future__ import annotations

import os
import random
import shutil
import stat
import struct
import warnings
import zipfile
from pathlib import Path

import pytest

from precision_explorer.audit import pack, verify, verify_bundle
from precision_explorer.errors import StoreError
from precision_explorer.store import TABLES, RunFolder
from precision_explorer.store import bundle as bundles
from precision_explorer.store.bundle import README, unpack
from tests.command import run as call
from tests.test_verify import files_of, finished, first_line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("bundle") / "my run")


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "run.zip"
    assert pack(run, path).holds
    return path


@pytest.fixture(autouse=True)
def unpacked_here(tmp_path, monkeypatch):
    """Where bundles are unpacked: nothing may be left there."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    yield
    assert list(place.iterdir()) == []


# -- there and back -----------------------------------------------------------------------------


def test_a_bundle_is_exported_and_verified_without_being_unpacked(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("export", run, "--to", "bundle")
    assert done.returncode == 0
    root = verify(run).root
    assert done.stdout == f"my run.zip: root {root}\n"
    done = call("verify", "my run.zip", "--root", root[:16])
    assert done.returncode == 0
    assert done.stdout.startswith("my run in my run.zip: holds; ")
    assert "1 of 1 logs are not here" in done.stdout
    assert "not the expected" in first_line(call("verify", "my run.zip", "--root", "0" * 16))


def test_a_bundle_holds_the_run_s_files_and_says_what_it_is(run, packed, tmp_path):
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        text = archive.read(README).decode()
        for name in files_of(run):
            if not name.startswith("logs/"):
                assert archive.read(f"my run/{name}") == (run / name).read_bytes()
    assert sorted(names[1:]) == names[1:]
    assert {n.partition("/")[2] for n in names[1:]} == {
        name for name in files_of(run) if not name.startswith("logs/")
    }
    assert verify(run).root in text
    assert "precision-explorer verify FILE.zip" in text
    assert "what the numbers do not say" in text
    assert unpack(packed, tmp_path / "here") == "my run"
    assert verify(tmp_path / "here" / "my run").holds


def test_the_same_run_gives_the_same_bytes(run, packed, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "my run", copy_function=shutil.copy))
    for number, name in enumerate(reversed(files_of(copy))):
        os.utime(copy / name, (number, number))
        (copy / name).chmod(0o600)
    shutil.rmtree(copy / "logs")
    call("export", copy, "--to", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def test_a_large_archive_s_order_and_metadata_hold_no_time_and_no_owner(packed):
    with zipfile.ZipFile(packed) as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert entry.create_system == 3
            assert entry.external_attr >> 16 == stat.S_IFREG | 0o644
            assert (entry.extra, entry.comment) == (b"", b"")
            assert entry.compress_type == zipfile.ZIP_STORED


# -- what is not written ------------------------------------------------------------------------


def test_a_run_that_does_not_hold_is_not_bundled(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "sweep.json").write_text("{}")
    done = call("export", copy, "--to", tmp_path / "x.zip")
    assert done.returncode == 5
    assert "no bundle was written, as copy does not hold: sweep.json: " in done.stdout
    assert not list(tmp_path.glob("x.zip*"))


def test_a_run_without_tables_is_not_bundled(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    shutil.rmtree(copy / "cells")
    for name in TABLES:
        (copy / name).unlink()
    RunFolder(copy).write_manifest()
    done = call("export", copy, "--to", tmp_path / "x.zip")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no tradeoffs.csv" in done.stderr


def test_wrong_use_is_one_line(run, tmp_path):
    for arguments, told in (
        ([run, run.parent, "--to", tmp_path / "x.zip"], "of one run"),
        ([run, "--to", tmp_path / "x.zip", "--price-per-hour", "1"], "own tables"),
        ([run, "--to", "bundle", "--out", "-"], "can't be printed"),
        ([run, "--to", run / "x.zip"], "inside the run"),
        ([run, "--to", tmp_path / "x.zip", "--source-url", "https://x"], "model-card"),
        ([run.parent, "--to", tmp_path / "x.zip"], "is no results folder"),
    ):
        done = call("export", *arguments)
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("x.zip*"))


# -- tampered bundles ---------------------------------------------------------------------------


def test_any_changed_byte_of_a_bundle_is_found(packed, tmp_path):
    content = packed.read_bytes()
    dice = random.Random(3)
    end = content.rfind(b"PK\x05\x06")
    (directory,) = struct.unpack("<L", content[end + 16 : end + 20])
    # Of the file's head, the texts, the list of files and its end, most of all where a reader does
    # not look by itself.
    places = [0, 4, 6, 10, 26, 40, *range(directory + 4, directory + 46, 3), end + 20]
    places += dice.sample(range(len(content)), 12)
    for at in places:
        path = tmp_path / "changed.zip"
        other = bytes([content[at] ^ (1 << dice.randrange(8))])
        path.write_bytes(content[:at] + other + content[at + 1 :])
        done = call("verify", path)
        assert done.returncode in (1, 5), at
        assert done.stderr.count("\n") == (done.returncode == 1)
    for other in (content + b"x", b"x" + content, content[:-1], content[: len(content) // 2], b""):
        path.write_bytes(other)
        assert call("verify", path).returncode in (1, 5)


def repacked(packed: Path, path: Path, change, time=(1980, 1, 1, 0, 0, 0)) -> Path:
    """The bundle with the entries that `change` makes of each (name, content)."""
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            for name, content in change(entry.filename, old.read(entry)):
                info = zipfile.ZipInfo(name, time)
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                new.writestr(info, content)
    return path


def test_a_changed_figure_in_a_bundle_is_named(packed, tmp_path):
    def change(name, content):
        faster = content.replace(b"1", b"2") if name.endswith(".csv") else content
        return [(name, faster)]

    line = first_line(call("verify", repacked(packed, tmp_path / "x.zip", change)))
    assert line.startswith("tradeoffs.csv: ")


def test_a_missing_and_a_further_file_in_a_bundle_are_named(packed, tmp_path):
    def without(name, content):
        return [] if name.endswith("roof.json") else [(name, content)]

    def more(name, content):
        return [(name, content), ("my run/virus.exe", b"")] if name == README else [(name, content)]

    line = first_line(call("verify", repacked(packed, tmp_path / "x.zip", without)))
    assert line.startswith("roof.json: is missing")
    line = first_line(call("verify", repacked(packed, tmp_path / "x.zip", more)))
    assert line.startswith("virus.exe: is no file")


def test_a_bundle_packed_by_another_program_is_told_from_a_changed_run(packed, tmp_path):
    path = repacked(packed, tmp_path / "x.zip", lambda n, c: [(n, c)], (2020, 1, 1, 0, 0, 0))
    line = first_line(call("verify", path))
    assert line.startswith("x.zip: holds the run unchanged")


# -- unsafe archives ----------------------------------------------------------------------------


def made(path: Path, *entries, method=zipfile.ZIP_STORED, mode=stat.S_IFREG | 0o644) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of names that stand twice.
        archive.writestr(README, "")
        archive.writestr("run/manifest.json", "{}")
        for name in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = mode << 16
            info.compress_type = method
            archive.writestr(info, b"0" * 4000)
    return path


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "run/../../x", "run/../x", "run\\..\\x", "run/./x", "run//x", "other/x", "x",
     "run/a:b", "run/", "C:/x", "run/\nx", "run/\u202ex", "run/cells/../../../x", "~/x"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    done = call("verify", made(tmp_path / "x.zip", name))
    assert (done.returncode, done.stdout) == (1, "")
    assert "don't unpack it" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["temporary", "x.zip"]


def test_a_name_that_ends_at_a_zero_byte_is_refused(tmp_path):
    path = made(tmp_path / "x.zip", "run/cellsQx")
    path.write_bytes(path.read_bytes().replace(b"run/cellsQx", b"run/cells\0x"))
    with pytest.raises(StoreError):
        verify_bundle(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO])
def test_what_is_no_plain_file_is_refused(tmp_path, kind):
    path = made(tmp_path / "x.zip", "run/x", mode=kind | 0o777)
    with pytest.raises(StoreError, match="no plain file"):
        verify_bundle(path)


def test_names_twice_are_refused(tmp_path):
    with pytest.raises(StoreError, match="twice"):
        verify_bundle(made(tmp_path / "x.zip", "run/x", "run/x"))


def test_what_is_compressed_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "_extract", pytest.fail)
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(README, "x")
        archive.writestr("run/manifest.json", b"0" * 10_000_000)
    with pytest.raises(StoreError, match="more bytes than it has"):
        verify_bundle(bomb)
    small = made(tmp_path / "small.zip", "run/x", method=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(small, "a") as archive:
        archive.comment = b" " * 10_000
    with pytest.raises(StoreError, match="compressed"):
        verify_bundle(small)


def test_what_is_too_large_is_refused_before_it_is_unpacked(packed, monkeypatch):
    monkeypatch.setattr(bundles, "_extract", pytest.fail)
    done = call("verify", packed, "--max-size", "10kB")
    assert (done.returncode, done.stdout) == (1, "")
    assert "raise --max-size" in done.stderr


def test_what_is_no_bundle_is_one_line(tmp_path):
    (tmp_path / "text.zip").write_text("hello")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    for name in ("text.zip", "other.zip"):
        done = call("verify", tmp_path / name)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
