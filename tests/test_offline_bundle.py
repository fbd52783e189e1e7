"""What a machine without a network is given: slim wheels, pieces, and their sums."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load():
    spec = importlib.util.spec_from_file_location("bundle", ROOT / "scripts" / "offline_bundle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bundle = load()


def wheel(path: Path, *libraries: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in libraries:
            archive.writestr(f"bitsandbytes/libbitsandbytes_{name}.so", name * 100)
        archive.writestr("bitsandbytes/__init__.py", "")
        archive.writestr("bitsandbytes-1.dist-info/RECORD", "stale,,\n")
    return path


def test_of_a_library_s_builds_that_of_the_cuda_release_is_left(tmp_path):
    path = wheel(tmp_path / "b.whl", "cpu", "cuda118", "cuda130")
    bundle.slim(path, "130")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        listed = [row[0] for row in csv.reader(archive.read(names[-1]).decode().splitlines())]
    assert [n for n in names if n.endswith(".so")] == [
        "bitsandbytes/libbitsandbytes_cpu.so",
        "bitsandbytes/libbitsandbytes_cuda130.so",
    ]
    assert sorted(listed) == sorted(names)


def test_a_cuda_release_without_a_build_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="CUDA 131"):
        bundle.slim(wheel(tmp_path / "b.whl", "cpu", "cuda130"), "131")


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """A folder of three pieces and their sums; what `_fetch` is given is kept."""
    monkeypatch.setattr(bundle, "PIECE_BYTES", 10)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "model-1.whl").write_bytes(bytes(range(25)))
    bundle.cut(folder / "model-1.whl")
    sums = "".join(f"{bundle._sum(p)}  {p.name}\n" for p in sorted(folder.iterdir()))
    (folder / bundle.SUMS).write_text(sums)
    made = []
    monkeypatch.setattr(bundle, "_fetch", lambda site, whole: made.append(whole.read_bytes()))
    return folder, made


def test_pieces_that_come_one_after_the_other_are_joined_once_all_are_there(
    pieces, tmp_path, capsys
):
    folder, made = pieces
    parts = sorted(folder.glob("*.part*"))
    assert [len(p.read_bytes()) for p in parts] == [10, 10, 5]
    kept = {p.name: p.read_bytes() for p in parts}
    for part in parts[1:]:
        part.unlink()
    bundle.install(folder, tmp_path / "site")
    assert "yet to come: model-1.whl.part001, model-1.whl.part002" in capsys.readouterr().out
    parts[0].unlink()
    for part in parts[1:]:
        part.write_bytes(kept[part.name])
    bundle.install(folder, tmp_path / "site")
    assert made == [bytes(range(25))]


def test_a_piece_that_changed_on_the_way_is_refused(pieces, tmp_path):
    folder, made = pieces
    next(folder.glob("*.part001")).write_bytes(b"other")
    with pytest.raises(SystemExit, match="part001"):
        bundle.install(folder, tmp_path / "site")
    assert not made


def test_every_package_is_pinned():
    assert all("==" in bundle.pinned(name) for name in bundle.PACKAGES)


def test_the_programme_names_its_parts_and_refuses_others(tmp_path):
    script = ROOT / "scripts" / "reference_sweep.sh"
    known = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert known.returncode == 1
    assert "decoder-compiled" in known.stdout
    wrong = subprocess.run(
        ["bash", script, "nothing"], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere", "RUNS": str(tmp_path)},
    )  # fmt: skip
    assert wrong.returncode == 1
    assert "unknown part nothing" in wrong.stderr


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(SystemExit, match="holds other files"):
        bundle.prepare(tmp_path, "3.12", "130")
    assert (tmp_path / "mine").read_text() == "x"


def test_many_pieces_are_joined_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "PIECE_BYTES", 1)
    (tmp_path / "m.whl").write_bytes(bytes(range(12)))
    bundle.cut(tmp_path / "m.whl")
    parts = sorted(tmp_path.glob("*.part*"))
    assert b"".join(p.read_bytes() for p in parts) == bytes(range(12))
