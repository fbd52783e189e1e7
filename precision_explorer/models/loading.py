"""Loading a model and its tokenizer in a dtype, from local files only."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import ModelError
from precision_explorer.models.dispatch import no_hooks_of_its_own
from precision_explorer.models.heads import HEADS
from precision_explorer.models.tensors import how_to_load
from precision_explorer.tasks import KINDS

# What safetensors calls the types that models are loaded in.
_STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
# Whose tokenizers take words one by one only so (transformers' run_ner.py).
_SPACED = ("bloom", "deberta", "gpt2", "roberta")


def auto_class(kind: str) -> Any:
    """transformers' class that loads a model with the head of a task kind."""
    import transformers

    return getattr(transformers, HEADS[KINDS[kind].head].auto)


def prepare(path: Path, kind: str, trust_remote_code: bool, tokenizer: Path | None = None) -> Any:
    """The tokenizer (of models that see, the image processor), and the imports of the model's own
    code, so that these are not counted as memory of the weights: a model without weights is built
    for that. `tokenizer`: of a model with random weights, the folder of its tokenizer."""
    import transformers

    common = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    config = transformers.AutoConfig.from_pretrained(path, **common)
    with torch.device("meta"):
        auto_class(kind).from_config(config, trust_remote_code=trust_remote_code)
    if tokenizer is not None:
        from precision_explorer.models.synthetic import tokenizer_for

        return tokenizer_for(tokenizer, path, config, trust_remote_code)
    head = HEADS[KINDS[kind].head]
    if head.sees:
        # Pillow's, which is the same on every machine, whether torchvision is there or not.
        return transformers.AutoImageProcessor.from_pretrained(path, backend="pil", **common)
    if head is HEADS["token-classification"] and config.model_type in _SPACED:
        common["add_prefix_space"] = True
    return transformers.AutoTokenizer.from_pretrained(path, **common)


def load(
    path: Path,
    kind: str,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool,
    *,
    shipped: bool = False,
    pickled: bool = False,
    device_map: Mapping[str, str] | None = None,
    processes: int = 1,
) -> nn.Module:
    """The model in `dtype` and eval mode on `device`, from `path` alone: nothing is fetched.

    Weights are streamed: beside the model itself the host holds no more than the largest file of
    the checkpoint. On a device other than the processor each tensor goes there at once. `shipped`:
    the checkpoint comes quantized. Its library then places the weights itself, as some can't be
    moved once they are packed. `pickled`: the weights are read from a pickle, by torch's reader of
    tensors alone; else from safetensors alone. `device_map`: {module: device} of a model that is
    spread over several, `device` being the first. `processes`: how many that have joined
    (`tensors.join`) split its tensors; each reads its share alone. Raises ModelError when weights
    are missing (transformers would fill them at random), and for a pickle that holds anything else.
    """
    placed = {"device_map": {"": device}} if shipped or device != "cpu" else {}
    if device_map is not None:
        placed = {"device_map": dict(device_map)}
    if processes > 1:
        placed = how_to_load(processes)
    stays = device == "cpu" and processes == 1 and not _converts(path, dtype)
    mapped = shipped or pickled or stays
    try:
        with ExitStack() as stack:
            maps = [] if mapped else stack.enter_context(_read_not_mapped())
            stack.enter_context(no_hooks_of_its_own() if device_map else nullcontext())
            model, info = auto_class(kind).from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=not pickled,
                weights_only=True,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                **placed,
            )
    except pickle.UnpicklingError as error:
        raise ModelError(
            "the model's pickled weights hold more than tensors, and were not read; save it with "
            "model.save_pretrained(folder) where it was made"
        ) from error
    missing = sorted(info["missing_keys"])
    if HEADS[KINDS[kind].head].embeds and all(name.startswith("pooler.") for name in missing):
        # Trained for a head of BERT that embeddings of tokens don't use, and often not saved.
        if missing:
            model.pooler = None
        missing = []
    if missing:
        names = ", ".join(missing[:3])
        raise ModelError(f"the model's files lack {names}; they would be random: get it complete")
    if device == "cpu" and (mapped or maps):
        _leave_the_file(model)
    if device_map is not None:
        from precision_explorer.models.aligned import attach

        attach(model, device_map, device)
        return model.eval()
    return model.eval() if shipped or processes > 1 else model.to(device).eval()


def _converts(path: Path, dtype: torch.dtype) -> bool:
    """Whether the safetensors in `path` hold numbers of another type than `dtype`, by the headers
    alone."""
    from safetensors import safe_open

    found = set()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            found |= {opened.get_slice(name).get_dtype() for name in names}
    return bool(found - {_STORED.get(dtype)})


@contextmanager
def _read_not_mapped() -> Iterator[list[str]]:
    """While it lasts transformers reads tensors out of safetensors files into memory of their own.
    It would map all files of a checkpoint at once; where each tensor is copied from there, into
    another type or onto another device, every page that was read stays in memory until the last
    tensor is loaded. Tensors that stay views of the mapping leave it one by one instead
    (`_leave_the_file`), for which there is then no second copy either. Gives a list, which names
    the files that were mapped all the same."""
    from transformers import modeling_utils

    opened = modeling_utils.safe_open
    maps: list[str] = []

    def read(*given: Any, **named: Any) -> Any:
        try:
            return opened(*given, **named | {"backend": "pread"})
        except TypeError:  # A safetensors that only maps.
            maps.append(str(given[0]) if given else "")
            return opened(*given, **named)

    modeling_utils.safe_open = read  # type: ignore[assignment]
    try:
        yield maps
    finally:
        modeling_utils.safe_open = opened


def _leave_the_file(model: nn.Module) -> None:
    """Copy each weight out of the mapped file. As long as one tensor is a view of it the whole
    mapping stays, and weights that a format has replaced would go on counting as memory in use."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
