"""From a name to files on disk: what pins a model, and what is refused in one line."""

import json
import shutil
import struct
import subprocess
import sys
from time import time_ns

import pytest

from precision_explorer.errors import ModelError, UsageError
from precision_explorer.models import (
    FETCHABLE,
    check_head,
    check_inputs,
    has_head,
    reference,
    resolve,
)
from precision_explorer.models.reference import DEMO, NOTES_FILE

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 7}
TENSORS = {"a.weight": ("F32", [3, 5]), "a.bias": ("F32", [3]), "scale": ("F32", [])}


def safetensors(tensors=TENSORS, fill=0):
    """A safetensors file's bytes: the length of the header, the header, the data."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * end


def folder(path, config=CONFIG, **files):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(safetensors())
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def refused(name, *arguments, **options):
    with pytest.raises(ModelError) as caught:
        resolve(str(name), *arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- what is a model ---------------------------------------------------------------------------


def test_the_demo_is_a_classifier_with_its_labels():
    found = resolve("demo")
    assert found.path == DEMO
    assert found.id2label == {0: "negative", 1: "positive"}
    assert found.identity.name == "demo"
    assert found.identity.revision.startswith("files:")
    assert found.cautions == ()
    # The file holds a header and four bytes for each value.
    size = (DEMO / "model.safetensors").stat().st_size
    assert 4 * found.elements < size < 4 * found.elements + 20_000


def test_a_folder_is_a_model(tmp_path):
    found = resolve(str(folder(tmp_path / "m")))
    assert found.config == CONFIG
    assert found.path == tmp_path / "m"
    assert found.elements == 3 * 5 + 3 + 1


def test_elements_of_all_shards_are_counted(tmp_path):
    path = folder(tmp_path / "m")
    (path / "model-2.safetensors").write_bytes(safetensors({"b": ("F32", [2, 2, 2])}))
    assert resolve(str(path)).elements == 19 + 8


def test_labels_that_a_config_does_not_name_are_transformers_own(tmp_path):
    path = folder(tmp_path / "m", {"architectures": [], "num_labels": 3})
    assert resolve(str(path)).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    two = folder(tmp_path / "n", {"architectures": []})
    assert resolve(str(two)).id2label == {0: "LABEL_0", 1: "LABEL_1"}


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./no-such", "/no/such/folder", "~/no-such", "a/b/c", "no such"])
def test_a_missing_path_is_no_hub_id(name, no_hub):
    assert "does not exist" in refused(name)


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors())
    assert "is a file; give the model's folder" in refused(path)


def test_a_folder_without_safetensors_is_refused(tmp_path):
    path = folder(tmp_path / "m")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert "no *.safetensors" in refused(path)
    assert "no *.safetensors" in refused(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path):
    path = folder(tmp_path / "m")
    (path / "config.json").unlink()
    assert "no readable config.json" in refused(path)


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", "7"])
def test_a_config_that_is_no_object_is_refused(tmp_path, text):
    path = folder(tmp_path / "m")
    (path / "config.json").write_text(text)
    assert "config.json" in refused(path)


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path):
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(ModelError, match="no safetensors file"):
        resolve(str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 50) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 11) + b'{"a": true}',
        struct.pack("<Q", 9) + b'{"a": {}}',
    ],
)
def test_a_damaged_weight_file_is_refused_in_one_line(tmp_path, content):
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors") as caught:
        resolve(str(path))
    assert "\n" not in str(caught.value)


def test_a_fetchable_model_that_is_not_here_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PRECISION_EXPLORER_DATA", str(tmp_path))
    for name in FETCHABLE:
        assert f"precision-explorer fetch {name}" in refused(name)


# -- the hub -----------------------------------------------------------------------------------


class LocalEntryNotFoundError(Exception):
    """As the hub's library raises without network: several lines."""


class RepositoryNotFoundError(Exception):
    """As the hub's library raises for an unknown or closed model."""


def hub(monkeypatch, function):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", function)


@pytest.fixture
def no_hub(monkeypatch):
    def unreachable(*arguments, **options):
        raise LocalEntryNotFoundError("no network\nand no cache\n")

    hub(monkeypatch, unreachable)


def test_a_hub_that_is_not_reached_is_one_line_that_says_what_to_do(no_hub):
    message = refused("some-org/some-model")
    assert "can't reach the hub for some-org/some-model" in message
    assert "local folder or --model demo" in message


def test_a_bare_name_is_compared_with_the_bundled_ones(no_hub):
    assert "did you mean smollm2-135m?" in refused("smollm2")


def test_an_unknown_hub_id_is_told_from_a_missing_network(monkeypatch):
    def unknown(*arguments, **options):
        raise RepositoryNotFoundError("404\nClient Error")

    hub(monkeypatch, unknown)
    assert "check id and access" in refused("some-org/some-model")


def test_a_hub_model_is_pinned_by_its_commit(monkeypatch, tmp_path):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(folder(tmp_path / "snapshots" / "abc123"))

    hub(monkeypatch, download)
    found = resolve("some-org/some-model", "main")
    assert found.identity.revision == "abc123"
    assert found.path == tmp_path / "snapshots" / "abc123"
    resolve("some-org/some-model", trust_remote_code=True)
    (name, revision, plain), (_, none, trusting) = asked
    assert (name, revision, none) == ("some-org/some-model", "main", None)
    # Pickled weights are never fetched, code only where it is trusted.
    assert not any("bin" in pattern or "py" in pattern for pattern in plain)
    assert "*.py" in trusting


def test_local_models_need_no_hub_library():
    code = (
        "import sys\n"
        "from precision_explorer.models import resolve\n"
        "resolve('demo')\n"
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- what pins a folder ------------------------------------------------------------------------


def revision(path, **options):
    return resolve(str(path), **options).identity.revision


def test_a_copy_is_the_same_model(tmp_path):
    one = folder(tmp_path / "one", **{"tokenizer.json": "{}"})
    two = shutil.copytree(one, tmp_path / "elsewhere" / "two")
    assert revision(one) == revision(two) == revision(one)


def test_a_byte_of_the_weights_makes_another_model(tmp_path):
    path = folder(tmp_path / "m")
    before = revision(path)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(bytes(content))
    assert revision(path) != before


def large(path, fill=0):
    content = safetensors({"a": ("F32", [300_000])}, fill)
    (path / "model.safetensors").write_bytes(content)


def test_a_large_file_that_changes_at_once_is_read_again(tmp_path):
    path = folder(tmp_path / "m")
    found = []
    for fill in (0, 1, 2, 0):
        large(path, fill)
        found.append(revision(path))
    assert len(set(found)) == 3
    assert found[0] == found[3]


def test_a_large_file_that_has_settled_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path / "cache"))
    path = folder(tmp_path / "m")
    large(path)
    before = revision(path)
    remembered = tmp_path / "cache" / "file-hashes.json"
    assert not remembered.exists()
    monkeypatch.setattr(reference.time, "time_ns", lambda: time_ns() + 10**10)
    assert revision(path) == before
    known = json.loads(remembered.read_text())
    assert len(known) == 1
    remembered.write_text(json.dumps(dict.fromkeys(known, "0" * 64)))
    assert revision(path) != before
    large(path, 1)
    assert revision(path) not in (before, None)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "chat_template.jinja"])
def test_the_tokenizer_belongs_to_the_model(tmp_path, name):
    path = folder(tmp_path / "m")
    before = revision(path)
    (path / name).write_text("{}")
    assert revision(path) != before


def test_a_readme_is_not_the_model_and_code_is_only_when_trusted(tmp_path):
    path = folder(tmp_path / "m")
    before, trusted = revision(path), revision(path, trust_remote_code=True)
    (path / "README.md").write_text("words")
    assert revision(path) == before
    (path / "modeling_x.py").write_text("x = 1")
    assert revision(path) == before
    assert revision(path, trust_remote_code=True) != trusted


def test_a_cache_that_is_damaged_or_read_only_changes_nothing(tmp_path, monkeypatch):
    path = folder(tmp_path / "m")
    large(path)
    before = revision(path)
    monkeypatch.setattr(reference.time, "time_ns", lambda: time_ns() + 10**10)
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file-hashes.json").write_text("[1")
    assert revision(path) == before
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path / "file"))
    assert revision(path) == before


# -- notes -------------------------------------------------------------------------------------


def test_a_folders_notes_travel_as_cautions(tmp_path):
    note = {"id": "reference-was-4bit", "message": "rounded once"}
    path = folder(tmp_path / "m", **{NOTES_FILE: json.dumps({"cautions": [note]})})
    found = resolve(str(path))
    assert [c.model_dump() for c in found.cautions] == [note]
    assert found.identity.cautions == ("reference-was-4bit",)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cautions": 1}', '{"cautions": [{"id": 1}]}'])
def test_notes_that_can_t_be_read_are_refused_rather_than_dropped(tmp_path, text):
    path = folder(tmp_path / "m", **{NOTES_FILE: text})
    assert NOTES_FILE in refused(path)


@pytest.mark.smollm2
def test_the_fetched_model_says_that_it_was_4_bit(smollm2):
    found = resolve("smollm2-135m")
    assert found.path == smollm2
    assert [c.id for c in found.cautions] == ["reference-was-4bit"]
    assert found.identity.cautions == ("reference-was-4bit",)
    assert (smollm2 / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert "4 bits" in (smollm2 / "README.md").read_text()
    # SmolLM2-135M has 134,515,008 weights, the tied head stored once.
    assert found.elements == 134_515_008
    assert has_head(found, "multiple-choice")


# -- heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "kind", "fits"),
    [
        ("BertForSequenceClassification", "text-classification", True),
        ("LlamaForSequenceClassification", "text-classification", True),
        ("LlamaForCausalLM", "text-classification", False),
        ("BertModel", "text-classification", False),
        ("LlamaForCausalLM", "multiple-choice", True),
        ("GPT2LMHeadModel", "multiple-choice", True),
        ("GPT2LMHeadModel", "language-modeling", True),
        ("BertForSequenceClassification", "multiple-choice", False),
        ("BertForSequenceClassification", "language-modeling", False),
    ],
)
def test_a_task_needs_its_head(tmp_path, architecture, kind, fits):
    found = resolve(str(folder(tmp_path / "m", {"architectures": [architecture]})))
    assert has_head(found, kind) is fits
    if fits:
        check_head(found, kind)
        return
    with pytest.raises(ModelError, match=f"no head for {kind}") as caught:
        check_head(found, kind)
    assert architecture in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": []}])
def test_a_model_that_names_no_architecture_has_no_head(tmp_path, config):
    found = resolve(str(folder(tmp_path / "m", config)))
    with pytest.raises(ModelError, match="none named"):
        check_head(found, "text-classification")


def test_a_local_model_is_called_by_its_folder_s_name_however_it_was_typed(tmp_path, monkeypatch):
    folder = tmp_path / "my-model"
    shutil.copytree(DEMO, folder)
    monkeypatch.chdir(tmp_path)
    found = [resolve(name) for name in ("my-model", "./my-model", str(folder), "my-model/")]
    assert {ref.name for ref in found} == {"my-model"}
    assert len({ref.identity for ref in found}) == 1


def test_a_model_that_comes_quantized_has_its_scheme(tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    assert resolve(str(folder)).scheme.method == "fp8"
    assert resolve("demo").scheme is None
    config["quantization_config"] = {"quant_method": "telepathy"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="'telepathy', which transformers does not read"):
        resolve(str(folder))


def test_a_revision_of_a_local_model_is_refused():
    with pytest.raises(ModelError, match="--revision is for hub models"):
        resolve("demo", revision="main")


def test_labels_that_are_no_mapping_are_refused(tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = ["negative", "positive"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no mapping of ids to names"):
        _ = resolve(str(folder)).id2label


@pytest.mark.parametrize("name", ["~nosuchuser/x", "a\0b"], ids=["no user", "null byte"])
def test_a_path_that_can_not_be_one_is_one_line(name):
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(DEMO, folder)
    check_inputs(resolve(str(folder)))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="m holds no tokenizer"):
        check_inputs(resolve(str(folder)))
