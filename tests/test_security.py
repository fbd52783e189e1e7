"""What is not trusted gets nothing: floors of versions, pickles, workers' environments, the wire,
names that lead elsewhere (docs/threat-model.md)."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import precision_explorer
from precision_explorer import scrub
from precision_explorer.errors import ModelError, StoreError, TaskError, UsageError
from precision_explorer.hardware import FLOORS, check_floors, libraries
from precision_explorer.hardware.libraries import VARIABLES
from precision_explorer.hardware.nvml import gpu_present
from precision_explorer.models import resolve
from precision_explorer.models.loading import load
from precision_explorer.models.reference import DEMO
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import guard, manager, mix, protocol, scoring, sweep
from precision_explorer.runner.mix import MixOptions, find_recipe
from precision_explorer.runner.reproduce import stored_spec
from precision_explorer.runner.sweep import prepare_sweep, run_sweep, safe_name
from precision_explorer.store import RunFolder
from precision_explorer.store.folder import read_run
from precision_explorer.table import build
from precision_explorer.tasks import ExternalMetric, load_card
from tests.test_store import SWEEP

ROOT = Path(__file__).parents[1]
PACKAGE = Path(precision_explorer.__file__).parent
KIND = "text-classification"


def nothing(event: Any) -> None:
    pass


# -- versions -----------------------------------------------------------------------------------


def test_the_floors_are_those_that_the_package_asks_for():
    asked = (ROOT / "pyproject.toml").read_text()
    for name, (least, _) in FLOORS.items():
        assert f'"{name}>={least}"' in asked
        assert f"{name} >= {least}" in (ROOT / "docs" / "threat-model.md").read_text()


@pytest.mark.parametrize(
    ("name", "version", "fine"),
    [
        ("torch", "2.9.1+cpu", False),
        ("torch", "2.10.0", True),
        ("torch", "2.10.0a0+git1234", True),
        ("torch", "3.0", True),
        ("torch", "unknown", False),
        ("transformers", "5.2.9", False),
        ("transformers", "4.57.1", False),
        ("transformers", "5.3.0.dev0", True),
        ("datasets", "3.6.0", False),
        ("datasets", "4.0.0", True),
    ],
)
def test_a_library_below_its_floor_is_refused_with_the_line_that_mends_it(
    monkeypatch, name, version, fine
):
    monkeypatch.setattr(libraries, "library_versions", lambda names: {name: version})
    if fine:
        check_floors()
        return
    for start in (check_floors, lambda: manager.prepare_environment(1)):
        with pytest.raises(UsageError) as caught:
            start()
        assert f"pip install '{name}>={FLOORS[name][0]}'" in str(caught.value)
        assert "\n" not in str(caught.value)
    # Before anything is resolved or fetched: there is no such model.
    with pytest.raises(UsageError, match="security floor"):
        prepare_sweep(make_spec({"model": "no/such-model"}), nothing)
    options = MixOptions(
        "no/such-model", "no-task.yaml", ("fp32", "nf4"), ("bytes", "50%"), "x.yaml"
    )
    monkeypatch.setattr(mix, "load_card", None)
    with pytest.raises(UsageError, match="security floor"):
        find_recipe(options, nothing)


# -- pickles ------------------------------------------------------------------------------------


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.fixture
def pickled(tmp_path) -> Path:
    """The demo model with its weights in a pickle."""
    folder = tmp_path / "pickled"
    shutil.copytree(DEMO, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_are_refused_in_one_line_that_says_what_to_do(pickled):
    with pytest.raises(ModelError) as caught:
        resolve(str(pickled))
    text = str(caught.value)
    assert "pytorch_model.bin" in text
    assert "save_pretrained" in text
    assert "--allow-pickle" in text
    assert "\n" not in text


def test_allowed_pickled_weights_are_those_of_the_model_and_the_rows_say_so(pickled):
    ref = resolve(str(pickled), allow_pickle=True)
    assert ref.pickled
    assert [caution.id for caution in ref.cautions] == ["pickled-weights"]
    assert ref.identity.cautions == ("pickled-weights",)
    read = load(pickled, KIND, torch.float32, "cpu", False, pickled=True).state_dict()
    usual = load(DEMO, KIND, torch.float32, "cpu", False).state_dict()
    assert read.keys() == usual.keys()
    assert all(torch.equal(read[name], usual[name]) for name in usual)
    # The file is part of what pins the model.
    with (pickled / "pytorch_model.bin").open("ab") as file:
        file.write(b"\0")
    assert resolve(str(pickled), allow_pickle=True).identity != ref.identity


def test_safetensors_go_before_a_pickle_also_where_that_is_allowed(pickled):
    shutil.copy(DEMO / "model.safetensors", pickled)
    for allowed in (False, True):
        ref = resolve(str(pickled), allow_pickle=allowed)
        assert not ref.pickled
        assert ref.cautions == resolve("demo").cautions


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "weights.pth", "model.pkl"])
def test_other_pickles_are_not_read_at_all(pickled, name):
    (pickled / "pytorch_model.bin").rename(pickled / name)
    for allowed in (False, True):
        with pytest.raises(ModelError, match=re.escape(name)) as caught:
            resolve(str(pickled), allow_pickle=allowed)
        assert ("--allow-pickle" in str(caught.value)) != allowed


def test_code_in_an_allowed_pickle_is_not_run(pickled, tmp_path):
    marker = tmp_path / "ran"
    torch.save({"w": Evil(marker)}, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="more than tensors"):
        load(pickled, KIND, torch.float32, "cpu", False, pickled=True)
    assert not marker.exists()


@pytest.mark.parametrize("target", ["pytorch_model.bin", "../x.safetensors", "/x.safetensors", 3])
def test_an_index_of_safetensors_leads_to_nothing_else(pickled, target):
    """transformers reads each part by its own suffix."""
    shutil.copy(DEMO / "model.safetensors", pickled / "part.safetensors")
    index = pickled / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "part.safetensors", "v": target}}))
    with pytest.raises(ModelError, match="index"):
        resolve(str(pickled))
    index.write_text(json.dumps({"weight_map": {"w": "part.safetensors"}}))
    assert not resolve(str(pickled)).pickled


def test_a_config_leads_to_no_pickle(pickled):
    shutil.copy(DEMO / "model.safetensors", pickled)
    config = json.loads((pickled / "config.json").read_text())
    for named in ("adapter_model.bin", "../model.safetensors", "x.safetensors.index.json"):
        document = config | {"transformers_weights": named}
        (pickled / "config.json").write_text(json.dumps(document))
        with pytest.raises(ModelError, match="names weights"):
            resolve(str(pickled))


def test_a_sweep_reads_a_pickle_only_where_it_is_allowed(pickled, tmp_path, quick_workload):
    given = {
        "model": str(pickled), "task": "sentiment", "formats": "fp32", "device": "cpu",
        "limit": 4, "workload": str(quick_workload), "out": str(tmp_path / "run"),
        "batch_size": 1, "threads": 1,
    }  # fmt: skip
    with pytest.raises(ModelError, match="--allow-pickle"):
        prepare_sweep(make_spec(given), nothing)
    prepared = prepare_sweep(make_spec(given | {"allow_pickle": True}), nothing)
    # Counted without reading the weights.
    assert prepared.refs[0].elements == resolve("demo").elements
    folder, tally = run_sweep(prepared, nothing)
    assert (tally.ran, tally.failed) == (1, 0)
    table = build([folder.path])
    assert "pickled-weights" in table.rows[0]["cautions"]
    assert "pickle" in table.context.cautions["pickled-weights"]
    # To run what somebody sent again, it must be allowed again.
    with pytest.raises(UsageError, match="--allow-pickle"):
        stored_spec(folder.path, {})
    assert stored_spec(folder.path, {"allow_pickle": True}).allow_pickle


def test_sweeps_without_pickles_keep_their_name():
    plain = make_spec({})
    assert plain.measuring_hash() == make_spec({"allow_pickle": False}).measuring_hash()
    assert plain.measuring_hash() != make_spec({"allow_pickle": True}).measuring_hash()
    with pytest.raises(UsageError):
        make_spec({"allow_pickle": "sometimes"})


# -- the wire -----------------------------------------------------------------------------------


def test_a_pickle_from_a_worker_is_refused_and_not_opened(tmp_path):
    ours, theirs = multiprocessing.Pipe()
    theirs.send(Evil(tmp_path / "ran"))
    with pytest.raises(ValueError, match="no JSON"):
        protocol.receive(ours)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [-1, 2**60, True, "3", 1.0, None])
def test_rows_of_an_impossible_size_are_refused(size):
    ours, theirs = multiprocessing.Pipe()
    theirs.send_bytes(json.dumps({"arrow_bytes": size}).encode())
    theirs.send_bytes(b"rows")
    with pytest.raises(ValueError, match="impossible size"):
        protocol.receive(ours)


def test_more_than_was_announced_is_not_read(monkeypatch):
    for sent, error in ((b"row", ValueError), (b"rows and more", OSError)):
        ours, theirs = multiprocessing.Pipe()
        theirs.send_bytes(b'{"arrow_bytes": 4}')
        theirs.send_bytes(sent)
        with pytest.raises(error):
            protocol.receive(ours)
    monkeypatch.setattr(protocol, "MAX_JSON_BYTES", 10)
    ours, theirs = multiprocessing.Pipe()
    theirs.send_bytes(b'{"a": "far too long"}')
    with pytest.raises(OSError):
        protocol.receive(ours)


UNPICKLING = ("pickle.loads", "pickle.load", "pickle.Unpickler")


def test_only_workers_and_lanes_unpickle_and_only_what_the_sweep_sent():
    """By the source: who calls `Connection.recv`, and who imports what opens pickles."""
    receivers, picklers, unpicklers = set(), set(), set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.Attribute) and node.attr == "recv":
                receivers.add(path.name)
            if isinstance(node, ast.Attribute) and ast.unparse(node) in UNPICKLING:
                unpicklers.add(path.name)
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if {name.partition(".")[0] for name in names} & {"pickle", "dill", "joblib", "shelve"}:
                picklers.add(path.name)
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"), path
    # A follower of a worker hears that worker alone, which answers nobody but the manager.
    assert receivers == {"worker.py", "followers.py"}
    # The first for the name of the error that torch raises; a lane, like a worker, takes what the
    # sweep sends it, which `places` pickles.
    assert picklers == {"loading.py", "lane.py", "places.py"}
    assert unpicklers == {"lane.py"}


@pytest.mark.parametrize("weights", ["adapter_model.bin", "adapter_model.safetensors"])
def test_an_adapter_is_refused_beside_a_model_and_in_its_place(tmp_path, monkeypatch, weights):
    """transformers would add it, from a pickle too, wherever `peft` is installed."""
    beside, alone = tmp_path / "beside", tmp_path / "alone"
    shutil.copytree(DEMO, beside)
    alone.mkdir()
    for folder in (beside, alone):
        (folder / "adapter_config.json").write_text("{}")
        (folder / weights).write_bytes(b"")
    hub = SimpleNamespace(snapshot_download=lambda *given, **more: str(beside))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for name in (str(beside), str(alone), "acme/adapted"):
        with pytest.raises(ModelError) as caught:
            resolve(name, allow_pickle=True)
        text = str(caught.value)
        assert "adapter_config.json" in text
        assert "PeftModel.merge_and_unload" in text
        assert "\n" not in text


# -- workers' environments ----------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "s3cret", "HUGGING_FACE_HUB_TOKEN": "s3cret", "OPENAI_API_KEY": "s3cret",
    "AWS_ACCESS_KEY_ID": "s3cret", "AWS_PROFILE": "s3cret", "GITHUB_TOKEN": "s3cret",
    "MY_DB_PASSWORD": "s3cret", "PGPASSFILE": "/s3cret", "CLIENT_SECRET_2": "s3cret",
    "SSH_AUTH_SOCK": "/s3cret", "DATABASE_URL": "s3cret", "KUBECONFIG": "/s3cret",
    "https_proxy": "http://user:s3cret@proxy:3128", "PIP_INDEX_URL": "https://a:s3cret@x/simple",
    "HF_MIRROR": "https://s3cret@hub/", "GIT_ASKPASS": "/s3cret", "SSH_ASKPASS": "/s3cret",
    "VSCODE_GIT_IPC_HANDLE": "/s3cret", "DOCKER_CONFIG": "/s3cret",
    "BLOBS": "https://x/y?sv=1&sig=s3cret", "GIT_CONFIG_VALUE_0": "Authorization: Basic s3cret",
    "NPM": "npm_s3cretAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "INNOCENT": "hf_s3cretAAAAAAAAAAAAAAAAAAAA", "SIGNED": "-----BEGIN PRIVATE KEY-----\ns3cret",
}  # fmt: skip
KEPT = {
    "http_proxy": "http://proxy:3128", "NO_PROXY": "localhost", "ATEN_CPU_CAPABILITY": "avx2",
    "KMP_BLOCKTIME": "1", "MALLOC_ARENA_MAX": "2", "NCCL_DEBUG": "INFO", "LANG": "C.UTF-8",
    "HF_ENDPOINT": "https://hub.example/models?kind=all", "MAIL": "/var/mail/me@example",
    "MY_PATH": "/opt/sk-learn-environment-of-mine/bin:/usr/bin",
}  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, Any]:
    """What real workers tell of a user with many secrets, a cache of the hub, and `kernels`."""
    folder = tmp_path_factory.mktemp("home")
    commit = "0" * 40
    repo = folder / "hub" / "models--acme--tiny"
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (folder / "token").write_text("hf_of_a_file")
    site = folder / "site"
    (site / "kernels").mkdir(parents=True)
    (site / "kernels" / "__init__.py").write_text("raise SystemExit('kernels was imported')")
    (site / "kernels-0.18.2.dist-info").mkdir()
    (site / "kernels-0.18.2.dist-info" / "METADATA").write_text("Name: kernels\nVersion: 0.18.2\n")
    own = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]),
        "HF_HOME": str(folder),
        "HF_HUB_OFFLINE": "0",
        "USE_HUB_KERNELS": "YES",
    }
    left = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", "from tests.worker_tells import main; main()"],
        capture_output=True, text=True, check=False, env=left | SECRETS | KEPT | own,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"home": str(folder)}


@pytest.mark.parametrize("how", ["forked", "spawned"])
def test_a_worker_has_no_secrets_and_all_else(told, how):
    found = told[how]
    assert not set(SECRETS) & set(found["variables"])
    # Nor does the process hold what it was started with, where any program of the user can look.
    assert "s3cret" not in found["process"]
    assert {name: found["variables"][name] for name in KEPT} == KEPT
    assert found["variables"]["HF_HOME"] == told["home"]


def test_the_parent_keeps_what_it_fetches_with(told):
    assert {name: told["parent"][name] for name in SECRETS} == SECRETS


def test_the_fork_server_imported_the_hub_s_library_when_it_was_already_offline(told):
    found = told["forked"]
    assert found["preloaded"]
    assert found["variables"]["HF_HUB_OFFLINE"] == "1"
    assert told["spawned"]["variables"]["HF_HUB_OFFLINE"] == "1"
    assert found["hub"]["offline"] is True
    assert found["hub"]["not_cached"] in ("LocalEntryNotFoundError", "OfflineModeIsEnabled")


def test_the_fork_server_made_the_table_that_every_load_looks_into(told):
    assert told["forked"]["conversions"] is not gpu_present()
    assert told["spawned"]["conversions"] is False


def test_the_user_s_cache_of_the_hub_is_read_offline(told):
    assert told["forked"]["hub"]["cached"].startswith(told["home"])
    assert told["forked"]["hub"]["implicit_token"] is False


def test_kernels_of_the_hub_are_off_though_the_package_is_there(told):
    hub = told["forked"]["hub"]
    assert told["forked"]["variables"]["USE_HUB_KERNELS"] == "NO"
    assert (hub["kernels"], hub["kernels_enabled"], hub["kernels_importable"]) == (
        False, False, False,
    )  # fmt: skip


def test_a_worker_takes_care_itself_too(monkeypatch):
    """Whatever started the server that it was forked from."""
    monkeypatch.setattr(os, "environ", dict(SECRETS | KEPT))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    guard.keep_out_secrets_and_kernels()
    assert {k: v for k, v in os.environ.items() if k != "USE_HUB_KERNELS"} == KEPT
    assert sys.modules["kernels"] is None
    sys.modules.pop("kernels")
    os.environ["USE_HUB_KERNELS"] = "YES"
    guard.keep_out_secrets_and_kernels()
    assert "kernels" not in sys.modules


def test_hub_kernels_are_on_only_where_code_is_trusted_and_never_by_a_server_that_has_them(
    monkeypatch,
):
    for name in dict(os.environ):
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.setattr(manager, "_kernels_on", [False])
    monkeypatch.setattr(manager, "_server_kernels", [])
    monkeypatch.setattr(manager, "_fork_broke_cuda", [])
    find = manager.importlib.util.find_spec
    monkeypatch.setattr(
        manager.importlib.util, "find_spec", lambda n: object() if n == "kernels" else find(n)
    )
    manager.prepare_environment(1, True)
    assert manager._kernels_on == [True]
    manager.prepare_environment(1)  # A job of that sweep.
    assert manager._kernels_on == [True]
    manager._server_kernels.append(True)
    manager.prepare_environment(1, False)
    assert manager._kernels_on == [False]
    assert manager.start_context().get_start_method() == "spawn"


def test_what_changes_results_is_not_taken_for_a_secret():
    for pattern in VARIABLES:
        name = pattern.replace("*", "NUM_THREADS")
        assert not scrub.is_secret(name, "1"), name
    for name in (*manager.OF_WORKERS, *manager.OFFLINE, guard.HUB_KERNELS, "PATH", "HOME", "PWD",
                 "TOKENIZERS_PARALLELISM", "LD_LIBRARY_PATH", "HF_HUB_CACHE", "XDG_CACHE_HOME",
                 "PRECISION_EXPLORER_CACHE", "CUDA_HOME", "PYTHONPATH"):  # fmt: skip
        assert not scrub.is_secret(name, "/some/path"), name


def test_who_fetches_keeps_its_tokens_and_nothing_else():
    kept = scrub.scrubbed(SECRETS | KEPT, keep=scrub.FETCHING)
    own = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "https_proxy"}
    assert set(kept) == own | set(KEPT)


EVALUATE = """
import json, os, pathlib
__version__ = "0"
def load(name, **given):
    pathlib.Path(__file__).with_name("told.json").write_text(json.dumps(dict(os.environ)))
    raise RuntimeError("nothing here")
"""


@pytest.mark.parametrize("fetched", [True, False])
def test_a_metric_that_is_fetched_has_the_proxies_and_no_token(tmp_path, monkeypatch, fetched):
    """In the real process, whose `evaluate` tells what it finds in the environment."""
    for name in dict(os.environ):
        monkeypatch.setenv(name, os.environ[name])
    proxies = dict.fromkeys(("HTTPS_PROXY", "http_proxy"), "http://me:s3cret@proxy:1")
    for name, value in (proxies | {"HF_TOKEN": "s3cret", "MY_URL": "http://s3cret@host"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(manager, "_asked_offline", [False])
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    monkeypatch.syspath_prepend(tmp_path)
    source = "acme/x" if fetched else str(tmp_path / "evaluate.py")
    metric = ExternalMetric("evaluate:x", source, local=not fetched)
    cell = scoring.CellToScore("a", KIND, 0, (metric,), None)
    folder = RunFolder(tmp_path / "run")
    folder.open()
    (line,), whole = scoring.score_cells(folder, [cell], nothing)
    folder.close()
    assert whole, line
    told = json.loads((tmp_path / "told.json").read_text())
    assert {n: v for n, v in told.items() if "s3cret" in v} == (proxies if fetched else {})
    assert told["HF_HUB_OFFLINE"] == ("0" if fetched else "1")


def test_the_environment_comes_back_whatever_happens(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    before = dict(os.environ)
    seen = {}

    def start() -> None:
        with scrub.environment({"HF_HUB_OFFLINE": "1", "NEW": "1"}):
            seen.update(os.environ)
            raise KeyError

    with pytest.raises(KeyError):
        start()
    assert "MY_TOKEN" not in seen
    assert (seen["HF_HUB_OFFLINE"], seen["NEW"]) == ("1", "1")
    assert dict(os.environ) == before


# -- names --------------------------------------------------------------------------------------

HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "..", ".", "", "a\0b", "con", ".hidden", "x" * 5000,
    "a/../../b",
    "..\\..\\x", "~root", "-rf", "lm-eval:../x", "\u202e", "C:\\x", "nul.json",
]  # fmt: skip
# What a file may be called, and what a folder or a card of this program is not.
ELSEWHERE = [name for name in HOSTILE if name not in ("con", "nul.json")]


@given(st.text() | st.sampled_from(HOSTILE))
def test_a_name_s_piece_of_a_path_is_no_path(name):
    assert re.fullmatch(r"[a-z0-9_][a-z0-9_-]{0,39}", safe_name(name))


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_models_and_tasks_never_leave_the_output_folder(name):
    refs: Any = [SimpleNamespace(name=name)] * 5
    tasks: Any = [SimpleNamespace(card=SimpleNamespace(name=name))] * 5
    facts: Any = SimpleNamespace(device="cpu")
    path = sweep._folder(make_spec({}), refs, tasks, facts).path
    assert path.parent == Path("results")
    assert len(path.name) < 200
    assert not path.name.startswith((".", "-"))


@pytest.mark.parametrize("cell_id", [*ELSEWHERE, None, 3])
def test_a_stranger_s_plan_leads_nowhere(tmp_path, cell_id):
    folder = RunFolder(tmp_path)
    for call in (
        folder.record_path, folder.samples_path, folder.scores_path, folder.log_path,
        folder.read_record,
    ):  # fmt: skip
        with pytest.raises(StoreError, match="no id of a cell") as caught:
            call(cell_id)
        assert "\n" not in str(caught.value)
    for call in (folder.has_part, folder.read_answer, folder.part_path):
        with pytest.raises(StoreError):
            call(cell_id, "load")
    with pytest.raises(StoreError):
        folder.write_part(cell_id, "load", {}, b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "plan", [[], {}, {"cells": {}}, {"cells": [3]}, {"cells": [{}]}, {"cells": [{"cell_id": 3}]}]
)
def test_a_plan_of_another_shape_is_a_damaged_one(tmp_path, plan):
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP | {"plan": plan}))
    with pytest.raises(StoreError, match="damaged"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_cards_have_plain_names(tmp_path, name):
    text = f"name: {json.dumps(name)}\nversion: 1\nkind: language-modeling\n"
    (tmp_path / "task.yaml").write_text(text + "data: {path: x.jsonl}\ncolumns: {text: text}\n")
    with pytest.raises(TaskError):
        load_card(str(tmp_path / "task.yaml"))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device without an end")
def test_data_without_an_end_is_no_file(tmp_path):
    from precision_explorer.tasks import prepare

    (tmp_path / "x.jsonl").symlink_to("/dev/zero")
    text = "name: a\nversion: 1\nkind: language-modeling\nmetrics: [bits_per_byte]\n"
    text += "max_length: 8\nlicence: x\nsource: x\n"
    for path in ("x.jsonl", "a\\0b.jsonl"):
        data = f'data: {{path: "{path}"}}\ncolumns: {{text: text}}\n'
        (tmp_path / "task.yaml").write_text(text + data)
        with pytest.raises(TaskError) as caught:
            prepare(load_card(str(tmp_path / "task.yaml")), None, 0)
        assert "no file" in str(caught.value) or "no path" in str(caught.value)
