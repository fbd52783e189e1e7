"""A model of which each of several processes holds a share of every tensor on a device of its own:
tensor parallelism as transformers has it (5.24, distributed/tensor_parallel.py). In workers."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import ModelError
from precision_explorer.formats.verify import Census, census, elements_here
from precision_explorer.models.dispatch import without_weights

Json = dict[str, Any]

# Longer than one process waits for another in a sound pass, or for its share to be loaded. A
# declared choice.
_WAIT = timedelta(minutes=10)
# A model of which each device holds more than this whole is not what its row says.
_MOST_WHOLE = 0.5


def list_tensors(request: Json, progress: Callable[[str, int, int], None]) -> tuple[Json, bytes]:
    """The job: what `TensorPlan` holds of the model in ``path`` with the head of ``kind``, and
    ``why`` its tensors can't be split, None where they can."""
    why = _not_installed(request["device"])
    if why is not None:
        return {"why": why}, b""
    model = without_weights(request)
    plan = dict(getattr(model, "_tp_plan", None) or {})
    split = whole = 0
    for name, parameter in model.named_parameters():
        if _is_split(name, plan):
            split += parameter.numel()
        else:
            whole += parameter.numel()
    named = f"{type(model).__name__} has"
    head = getattr(model, "get_output_embeddings", lambda: None)()
    gathers = all(plan.get(n) != "colwise" for n, m in model.named_modules() if m is head)
    if not split:
        why = f"{named} no plan in transformers for splitting its tensors"
    elif whole > _MOST_WHOLE * (split + whole):
        part = whole / (split + whole)
        why = f"{named} a plan in transformers that leaves {part:.0%} of its weights whole"
    elif not gathers:
        why = f"{named} a plan in transformers that leaves each device a share of the logits"
    return {"why": why, "heads": _heads(model.config), "split": split, "whole": whole}, b""


def _not_installed(device: str) -> str | None:
    """Why the libraries here split no tensors; None where they do."""
    if not torch.distributed.is_available():
        return "this torch was built without torch.distributed"
    if device != "cpu" and not torch.distributed.is_nccl_available():
        return "this torch was built without NCCL"
    try:
        from transformers.distributed import DistributedConfig

        known = {field.name for field in dataclasses.fields(DistributedConfig)}
    except (ImportError, TypeError):
        known = set()
    return None if "tp_size" in known else "this transformers splits no tensors; get 5.24 or newer"


def _is_split(name: str, plan: dict[str, str]) -> bool:
    """Whether `plan`, {module or parameter, ``*`` for numbers: style}, splits the parameter. A
    style for rows adds the bias after the sum, whole."""
    generic = re.sub(r"\.\d+(?=\.|$)", ".*", name)
    style = plan.get(generic) or plan.get(generic.rpartition(".")[0]) or ""
    if "rowwise" in style and "embedding" not in style and name.endswith(".bias"):
        return False
    return "colwise" in style or "rowwise" in style


def _heads(config: Any) -> int:
    """The greatest common divisor of the numbers of heads that `config` names; 1 where it names
    none."""
    text = config.get_text_config()
    named = [getattr(text, n, None) for n in ("num_attention_heads", "num_key_value_heads")]
    flat = [h for n in named for h in (n if isinstance(n, (list, tuple)) else [n])]
    return math.gcd(*(h for h in flat if isinstance(h, int))) or 1


# -- in the processes -----------------------------------------------------------------------------


def join(folder: Path, rank: int, count: int, device: str) -> None:
    """Make this process the one of number `rank` among `count` that split a model between them;
    `device` is its own. They find each other by a file in `folder`, and talk over this machine's
    own interface alone."""
    import torch.distributed as dist

    cuda = device != "cpu"
    if not cuda:
        # transformers puts a model where there is a GPU, whatever device was asked for.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    # What transformers takes the number of the process's own GPU from.
    os.environ["LOCAL_RANK"] = str(torch.device(device).index or 0) if cuda else str(rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.FileStore(str(folder / "store"), count),
        rank=rank,
        world_size=count,
        timeout=_WAIT,
        device_id=torch.device(device) if cuda else None,
    )


def how_to_load(count: int) -> Json:
    """What `from_pretrained` is given so that each of `count` processes reads its share alone."""
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=count)}


def is_split(model: nn.Module) -> bool:
    """Whether the model's tensors are split over several processes."""
    return (getattr(model, "_tp_size", None) or 1) > 1


def elements_in(model: nn.Module, layers: Iterable[str]) -> dict[str, int]:
    """{layer: elements of its weight that are here} of `layers`, named as in a `Layout`."""
    held = dict(model.named_parameters(remove_duplicate=False))
    return {name: elements_here(held.get(f"{name}.weight", held.get(name))) for name in layers}


def shares(model: nn.Module) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """({split parameter: (its elements here, in all)}, {whole parameter: its elements}), shared
    ones once. Read from the tensors: nothing is taken from the plan."""
    split, whole = {}, {}
    for name, parameter in model.named_parameters():
        here = elements_here(parameter)
        if here < parameter.numel():
            split[name] = here, parameter.numel()
        else:
            whole[name] = parameter.numel()
    return split, whole


def answer_of(model: nn.Module) -> Json:
    """What a process tells of the share that it has loaded."""
    found = census(model)
    split, whole = shares(model)
    return {"census": dataclasses.asdict(found), "split": split, "whole": whole}


def check_shares(answers: Sequence[Json]) -> None:
    """That the processes' shares (`answer_of`) make up each split tensor, that all hold the same
    ones whole, and that these are few. Raises ModelError: the row would say what is not so."""
    first = answers[0]
    for name, (_, total) in first["split"].items():
        held = sum(answer["split"].get(name, (0, 0))[0] for answer in answers)
        if held != total:
            raise ModelError(
                f"the devices hold {held:,} of the {total:,} elements of {name} between them; use "
                "--split layers, and report this with the version of transformers"
            )
    whole = sum(first["whole"].values())
    total = whole + sum(elements for _, elements in first["split"].values())
    if whole > _MOST_WHOLE * total or any(a["whole"] != first["whole"] for a in answers):
        raise ModelError(
            f"each device holds {whole:,} of the model's {total:,} elements whole, so that its "
            "tensors are not split; use --split layers"
        )


def summed(answers: Sequence[Json]) -> Json:
    """The bytes and elements of `AppliedFormat` over all processes, what each holds whole counted
    for each."""
    total = Census()
    for found in (answer["census"] for answer in answers):
        for dtype, elements in found["elements_by_dtype"].items():
            total.add(dtype, elements, found["bytes_by_dtype"][dtype])
    return {
        "weight_bytes": total.weight_bytes,
        "elements_by_dtype": total.elements_by_dtype,
        "bytes_by_dtype": total.bytes_by_dtype,
    }


def parts_of_all(answers: Sequence[Json], devices: Sequence[str]) -> list[Json]:
    """[{device, modules, weight_bytes}], as of a model that is spread by layers."""
    return [
        {
            "device": device,
            "modules": f"{sum(here for here, _ in answer['split'].values()):,} elements of "
            f"{len(answer['split'])} split tensors, {sum(answer['whole'].values()):,} of "
            f"{len(answer['whole'])} whole ones",
            "weight_bytes": answer["census"]["weight_bytes"],
        }
        for device, answer in zip(devices, answers, strict=True)
    ]
