"""From what the user typed to files on disk, pinned by a hub commit or by the files' hashes.

No torch here: the parent resolves models, and fetches what must be fetched, before any worker
starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precision_explorer.bounded import json_document, json_file
from precision_explorer.errors import ModelError, unknown_name
from precision_explorer.formats.footprint import LayerSizes
from precision_explorer.models.heads import HEADS, Head
from precision_explorer.models.shapes import (
    CAUTION,
    KINDS_TIMED,
    PICKLES,
    Synthetic,
    check_vocabulary,
    is_synthetic,
    shape_folder,
)
from precision_explorer.models.shipped import Scheme, scheme_of
from precision_explorer.paths import cache_dir, data_dir, expand_user
from precision_explorer.records import SYNTHETIC, Caution, ModelIdentity, canonical_hash
from precision_explorer.tasks.kinds import KINDS

DEMO = Path(__file__).parent / "demo"
DEMO_DIGITS = Path(__file__).parent / "demo-digits"
BUNDLED = {"demo": DEMO, "demo-digits": DEMO_DIGITS}
FETCHABLE = ("smollm2-135m", "minilm-l6-v2")
# What a model folder says of itself beyond the libraries' own files.
NOTES_FILE = "precision-explorer.json"
# The format's own limit (safetensors, "Format").
_MAX_HEADER = 100_000_000
# Any of them lets transformers find the tokenizer.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json",
    "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_PROCESSOR_FILE = "preprocessor_config.json"
# In a folder of its own, and beside the weights what decides an embedding.
POOLING_FILE = "1_Pooling/config.json"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
# What transformers reads where there is no safetensors file, and what else is a pickle by its name.
_PICKLED = "pytorch_model.bin"
_PICKLED_INDEX = "pytorch_model.bin.index.json"
_HUB_PICKLED = ["pytorch_model*.bin", _PICKLED_INDEX]
_ADAPTER = "adapter_config.json"
_SAFE_INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = Caution(
    id="pickled-weights",
    message="the weights were read from a pickle, by torch's reader of tensors alone "
    "(weights_only); whoever made the file is trusted more than for safetensors",
)


@dataclass(frozen=True)
class ModelRef:
    """A model on disk. `config` is its config.json; `cautions` travel into each of its rows."""

    name: str
    path: Path
    identity: ModelIdentity
    config: dict[str, Any]
    cautions: tuple[Caution, ...]
    elements: int
    """Number of values in the safetensors files, from their headers alone."""
    packed_bytes: int = 0
    """Bytes of those that are in no 16- or 32-bit float type: what a quantized checkpoint packs."""
    packed_elements: int = 0
    scheme: Scheme | None = None
    """How the checkpoint comes quantized; None for one that does not."""
    synthetic: Synthetic | None = None
    """What its weights are made with, where it is a shape alone. `elements` is then 0 until a
    worker has counted them."""
    pickled: bool = False
    """Whether the weights are a pickle, which was allowed. `elements` as of a shape."""
    sizes: LayerSizes | None = None
    """Of its layers, where a worker was asked for them."""

    def load_bytes(self, compute_bytes: int, widened: bool) -> int:
        """Memory that loading takes, with `compute_bytes` for each value that is not packed.
        `widened`: packed ones end in that type too, however many a byte held."""
        packed = self.packed_bytes
        if widened and self.scheme is not None:
            packed = packed * 8 // (self.scheme.weight_bits or 8) * compute_bytes
        elif self.scheme is None:
            packed = self.packed_elements * compute_bytes
        return (self.elements - self.packed_elements) * compute_bytes + packed

    @property
    def id2label(self) -> dict[int, str]:
        """Label ids to names; transformers' defaults where the config names none.

        Raises ModelError where the config's labels are no mapping of whole numbers.
        """
        named = self.config.get("id2label")
        try:
            if named:
                return {int(k): str(v) for k, v in named.items()}
            return {i: f"LABEL_{i}" for i in range(int(self.config.get("num_labels", 2)))}
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the labels in {self.name}'s config.json are no mapping of ids to names; "
                'write id2label as {"0": "negative", ...}'
            ) from error


_WIDE = ("F64", "F32", "F16", "BF16")


def _elements(path: Path) -> tuple[int, int, int]:
    """(all values, packed values, bytes of the packed ones) of a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _MAX_HEADER:
            raise ModelError(
                f"{path.name} is no safetensors file (its header would be {size} bytes)"
            )
        header = file.read(size)
    try:
        if len(header) < size:
            raise ValueError("the header is cut")
        named = json_document(header, strict=False).items()
        tensors = [v for name, v in named if name != "__metadata__"]
        packed = [v for v in tensors if v["dtype"] not in _WIDE]
        numbers = [n for v in tensors for n in (*v["shape"], *v["data_offsets"])]
        if any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("a size is no whole number")
        return (
            sum(math.prod(v["shape"]) for v in tensors),
            sum(math.prod(v["shape"]) for v in packed),
            sum(v["data_offsets"][1] - v["data_offsets"][0] for v in packed),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path.name} is no whole safetensors file; get it again") from error


def resolve(
    name: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    allow_pickle: bool = False,
) -> ModelRef:
    """The model called `name`: a bundled one, a fetched model, a folder, or a hub id; of
    ``synthetic:`` and a shape one with random weights by `seed`.

    Raises ModelError in one line when there is no such model, when it holds no safetensors (nor,
    where `allow_pickle`, the pickled weights that transformers reads), or when the hub can't be
    reached.
    """
    if is_synthetic(name):
        if revision is not None:
            raise ModelError(f"--revision is for hub models, and {name} has none; leave it out")
        return _synthetic(name, seed, trust_remote_code)
    folder = _local_folder(name)
    if folder is not None:
        if revision is not None:
            raise ModelError(f"--revision is for hub models, and {name} is local; leave it out")
        # Records are passed on, so of a path only its last name is kept; the hashes pin the model.
        known = name in BUNDLED or name in FETCHABLE
        shown = name if known else folder.resolve().name
        return _local(shown, folder, trust_remote_code, allow_pickle)
    path = expand_user(name)
    if path.is_file():
        raise ModelError(f"{name} is a file; give the model's folder (config.json, *.safetensors)")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not _HUB_ID.match(name):
        raise ModelError(f"model folder {name} does not exist; check the path")
    return _from_hub(name, revision, trust_remote_code, allow_pickle)


def _synthetic(name: str, seed: int, trust_remote_code: bool) -> ModelRef:
    """A shape to be filled with random weights; its folder's own weights are not looked at."""
    shown, path = shape_folder(name)
    config = _read_config(shown, path)
    if scheme_of(shown, config) is not None:
        raise ModelError(
            f"{shown} has a quantization_config, and random weights are made unquantized; take it "
            "out of the config.json"
        )
    own = any((path / file).is_file() for file in _TOKENIZER_FILES)
    if not own:
        check_vocabulary(shown, config)
    made = Synthetic(seed, path if own else DEMO)
    files, known = [f for f in _TOKENIZER_FILES if (made.tokenizer / f).is_file()], _known_hashes()
    code = sorted(f.name for f in path.glob("*.py")) if trust_remote_code else []
    pinned = {
        "config": config,
        "seed": seed,
        "tokenizer": {f: _file_hash(made.tokenizer / f, known) for f in files},
        "code": {f: _file_hash(path / f, known) for f in code},
    }
    revision = f"{SYNTHETIC}{canonical_hash(pinned)}"
    identity = ModelIdentity(name=shown, revision=revision, cautions=(CAUTION.id,))
    return ModelRef(shown, path, identity, config, (CAUTION,), 0, synthetic=made)


def _local_folder(name: str) -> Path | None:
    """The folder that `name` stands for; None if it is none (it may be a hub id)."""
    if name in BUNDLED:
        return BUNDLED[name]
    if name in FETCHABLE:
        folder = data_dir() / "models" / name
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name} is not here yet; get it by: precision-explorer fetch {name}")
        return folder
    path = expand_user(name)
    return path if path.is_dir() else None


def shown_name(name: str) -> str:
    """What records call the model `name`, of which nothing need be here: of a path its last name
    alone, as records are passed on."""
    if name in BUNDLED or name in FETCHABLE:
        return name
    path = expand_user(name)
    if path.is_dir():
        return path.resolve().name
    return name.rstrip("/").split("/")[-1] if name.startswith((".", "/", "~")) else name


def tokenizer_folder(name: str) -> Path | None:
    """The folder of the tokenizer of the model `name`, where it is here; nothing is fetched."""
    try:
        folder = _local_folder(name)
    except ModelError:
        return None
    here = folder is not None and any((folder / file).is_file() for file in _TOKENIZER_FILES)
    return folder if here else None


def _local(name: str, path: Path, trust_remote_code: bool, allow_pickle: bool) -> ModelRef:
    _refuse_adapter(name, path)
    pickled = is_pickled(name, path, allow_pickle)
    config = _config(name, path)
    cautions = _cautions(path / NOTES_FILE)
    revision = "files:" + _files_hash(path, trust_remote_code, pickled)
    return _reference(name, path, revision, config, cautions, pickled)


def _cautions(notes: Path) -> tuple[Caution, ...]:
    if not notes.is_file():
        return ()
    try:
        found = json_file(notes)["cautions"]
        return tuple(Caution.model_validate(c) for c in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{notes} is no note on a model (an object with a list `cautions`); mend or remove it"
        ) from error


def _reference(
    name: str,
    path: Path,
    revision: str,
    config: dict[str, Any],
    cautions: tuple[Caution, ...],
    pickled: bool,
) -> ModelRef:
    scheme = scheme_of(name, config)
    if pickled:
        cautions = (*cautions, PICKLED_WEIGHTS)
        if scheme is not None:
            raise ModelError(
                f"{name} is quantized ({scheme.words}) and pickled, which is not read; save it as "
                "safetensors where it was made, or give the model it was made from"
            )
    identity = ModelIdentity(
        name=name, revision=revision, cautions=tuple(caution.id for caution in cautions)
    )
    if pickled:
        return ModelRef(name, path, identity, config, cautions, 0, pickled=True)
    counts = [_elements(file) for file in path.glob("*.safetensors")]
    elements, packed, packed_bytes = (sum(column) for column in zip(*counts, strict=True))
    return ModelRef(name, path, identity, config, cautions, elements, packed_bytes, packed, scheme)


def _refuse_adapter(name: str, path: Path) -> None:
    """ModelError where an adapter of PEFT lies beside a model, or in its place: transformers would
    add it where `peft` is installed alone, from a pickle too (`adapter_model.bin`), and it may name
    another base model (transformers 5, integrations/peft.py)."""
    if (path / _ADAPTER).exists():
        raise ModelError(
            f"{name} holds an adapter ({_ADAPTER}), which is not read; merge it first, e.g. by "
            "PeftModel.merge_and_unload, and save_pretrained into a folder of its own"
        )


def is_pickled(name: str, path: Path, allow_pickle: bool) -> bool:
    """Whether the weights in a model's folder are a pickle, which must be allowed: reading one can
    run code. False where there are safetensors, which then are what is read. ModelError for neither
    and for an index that leads to other files."""
    if any(path.glob("*.safetensors")):
        _check_index(name, path / _SAFE_INDEX, ".safetensors")
        return False
    there = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if not there:
        raise ModelError(
            f"{name} holds no *.safetensors; save the model with model.save_pretrained(folder), or "
            f"give synthetic:{name} as --model to plan, or time, its shape with random weights"
        )
    if not allow_pickle:
        raise ModelError(
            f"{name} holds no *.safetensors but {there[0]}, and reading a pickle can run code; "
            "save the model with model.save_pretrained(folder), or give --allow-pickle if you "
            "trust who made it"
        )
    if not any((path / file).is_file() for file in (_PICKLED, _PICKLED_INDEX)):
        raise ModelError(
            f"{name} holds neither *.safetensors nor {_PICKLED}, and transformers reads no "
            f"{there[0]}; save the model with model.save_pretrained(folder)"
        )
    _check_index(name, path / _PICKLED_INDEX, ".bin")
    return True


def _check_index(name: str, index: Path, suffix: str) -> None:
    """ModelError where the index of a model's parts names anything but files of `suffix` beside
    it: transformers reads each by its own suffix, so that one of safetensors may lead to a pickle.
    """
    if not index.is_file():
        return
    try:
        files = set(json_file(index, strict=False)["weight_map"].values())
        good = all(re.fullmatch(r"[^/\\\0]+", file) and file.endswith(suffix) for file in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{name}/{index.name} is no index of weights; get it again") from error
    if not good:
        raise ModelError(
            f"{name}/{index.name} names files that are no *{suffix} beside it; don't load the "
            "model, get it again"
        )


def _config(name: str, path: Path) -> dict[str, Any]:
    config = _read_config(name, path)
    # transformers reads what a config names in place of the usual file, be it a pickle.
    own = config.get("transformers_weights")
    if own is not None and not re.fullmatch(r"[^/\\\0]+\.safetensors", str(own)):
        raise ModelError(
            f"{name}/config.json names weights that are no *.safetensors beside it; don't load the "
            "model, get it again"
        )
    return config


def _read_config(name: str, path: Path) -> dict[str, Any]:
    try:
        config = json_file(path / "config.json", strict=False)
    except OSError as error:
        raise ModelError(f"{name} holds no readable config.json; it is no model folder") from error
    except ValueError as error:
        raise ModelError(f"{name}/config.json is no JSON; fetch the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{name}/config.json holds no object; fetch the model again")
    return config


def _from_hub(
    name: str, revision: str | None, trust_remote_code: bool, allow_pickle: bool
) -> ModelRef:
    """Fetch into the hub's own cache; the commit that was resolved pins it."""
    from huggingface_hub import snapshot_download

    patterns = [*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if allow_pickle and not any(folder.glob("*.safetensors")):
            # Of the commit that was resolved just now.
            snapshot_download(name, revision=folder.name, allow_patterns=_HUB_PICKLED)
    except Exception as error:
        kind = type(error).__name__
        if kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"):
            raise ModelError(
                f"the hub has no readable {name} ({kind}); check id and access"
            ) from error
        known = (*BUNDLED, *FETCHABLE)
        near = "" if "/" in name else f" ({unknown_name('bundled model', name, known)})"
        raise ModelError(
            f"can't reach the hub for {name} ({kind}); give a local folder or --model demo{near}"
        ) from error
    _refuse_adapter(name, folder)
    pickled = is_pickled(name, folder, allow_pickle)
    return _reference(name, folder, folder.name, _config(name, folder), (), pickled)


def _files_hash(path: Path, with_code: bool, pickled: bool) -> str:
    endings = {".safetensors", ".json", ".txt", ".model", ".jinja"} | (
        {".py"} if with_code else set()
    )
    endings |= {".bin"} if pickled else set()
    files = sorted(f for f in path.iterdir() if f.is_file() and f.suffix in endings)
    known = _known_hashes()
    hashes = {f.name: _file_hash(f, known) for f in files}
    if (path / POOLING_FILE).is_file():
        hashes[POOLING_FILE] = _file_hash(path / POOLING_FILE, known)
    return canonical_hash(hashes)


def _known_hashes() -> dict[str, str]:
    try:
        known = json.loads((cache_dir() / "file-hashes.json").read_text(encoding="utf8"))
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError, RuntimeError):
        return {}


def _file_hash(path: Path, known: dict[str, str]) -> str:
    """SHA-256 of a file. Large ones are remembered by inode, size and time of change (in
    nanoseconds), so that a re-run of a sweep does not read half a gigabyte again."""
    stat = path.stat()
    key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
    if key in known:
        return known[key]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        if digest is None:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    value = digest.hexdigest()
    # A file written just now may be written again within one tick of the file system's clock.
    settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > 2_000_000_000
    if stat.st_size > 1 << 20 and settled:
        known[key] = value
        _remember(known)
    return value


def _remember(known: dict[str, str]) -> None:
    # A cache that can't be written costs time, nothing else.
    with contextlib.suppress(OSError, RuntimeError):
        target = cache_dir() / "file-hashes.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(f".tmp{os.getpid()}")
        temporary.write_text(json.dumps(known), encoding="utf8")
        temporary.replace(target)


def _architectures(ref: ModelRef) -> list[str]:
    return [str(name) for name in ref.config.get("architectures") or []]


def _head(kind: str) -> Head:
    return HEADS[KINDS[kind].head]


def has_head(ref: ModelRef, kind: str) -> bool:
    """Whether the model was saved with a head that fits the task kind."""
    return any(_head(kind).fits(name) for name in _architectures(ref))


def check_head(ref: ModelRef, kind: str) -> None:
    """ModelError unless the model's saved head fits the task kind: transformers would otherwise
    make up a head of random weights with only a warning."""
    if not has_head(ref, kind):
        has = ", ".join(_architectures(ref)) or "none named"
        raise ModelError(
            f"model {ref.name} has no head for {kind} (its architecture: {has}; "
            f"wanted: *{' or *'.join(_head(kind).suffixes)}); choose another model or task"
        )
    if ref.synthetic is not None and kind not in KINDS_TIMED:
        raise ModelError(
            f"{ref.name} has random weights, with which {kind} is not measured; use a task of the "
            f"kind {', '.join(KINDS_TIMED[:-1])} or {KINDS_TIMED[-1]}"
        )


def sees(ref: ModelRef) -> bool:
    """Whether the model takes images."""
    heads = [head for head in HEADS.values() if head.sees]
    return any(head.fits(name) for head in heads for name in _architectures(ref))


def check_inputs(ref: ModelRef) -> None:
    """ModelError unless the model's folder holds what makes its inputs, a tokenizer or, for images,
    an image processor: transformers would otherwise make one up in silence, and every score would
    be wrong."""
    if ref.synthetic is not None:
        return
    if sees(ref):
        if not (ref.path / _PROCESSOR_FILE).is_file():
            raise ModelError(
                f"{ref.name} holds no image processor ({_PROCESSOR_FILE}); save it there with "
                "processor.save_pretrained(folder)"
            )
        return
    if not any((ref.path / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(
            f"{ref.name} holds no tokenizer; save it there with tokenizer.save_pretrained(folder)"
        )
