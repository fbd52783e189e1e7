"""What the model really holds: a census of storage by reading the tensors, not the labels."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from precision_explorer.formats.catalog import AS_SHIPPED
from precision_explorer.records import LeftBehind

# What a weight is held in where a checkpoint's library has widened it.
_WIDE = ("float32", "bfloat16", "float16")


def _name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return {"qint8": "int8", "quint8": "uint8"}.get(name, name)


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The ordinary tensors inside `tensor`: a wrapper subclass (torchao's; of a tensor that several
    processes split, DTensor, the share that is here) is opened, recursively."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or type(tensor) in (torch.Tensor, nn.Parameter):
        yield tensor
        return
    inner = (getattr(tensor, name) for name in flatten()[0])
    for found in inner:
        if isinstance(found, torch.Tensor):  # A DTensor names its mesh too.
            yield from plain_tensors(found)


def elements_here(tensor: torch.Tensor) -> int:
    """Elements that this process holds of `tensor`: a share of one that several split (DTensor)."""
    local = getattr(tensor, "to_local", None)
    return (tensor if local is None else local()).numel()


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by name, GPT-2's `Conv1D` (a transposed linear layer) included."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }


def _width(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a module that multiplies by a packed weight: kernels of GPTQ and the
    like are no `nn.Linear`, but name their sizes as it does."""
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return sizes if all(isinstance(size, int) for size in sizes) else None  # type: ignore[return-value]


def _named(name: str, pattern: str) -> bool:
    """Whether a config's `pattern` means the module: its name, a module around it or the end of its
    name, or (compressed-tensors) a regular expression after ``re:``."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return f".{pattern}." in f".{name}."


def shipped_layout(model: nn.Module, ignored: Collection[str], bits: int | None) -> Layout:
    """The linear layers of a model that was loaded quantized, by their logical sizes, whatever
    their storage packs. `ignored` are the modules that its config names as left alone; `bits` those
    of a weight, by which stacks of experts, whose modules name no sizes, are counted."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    tied = getattr(embeddings, "weight", None)
    layers = linear_layers(model)
    layers |= {name: m for name, m in model.named_modules() if _width(m) and _own_tensors(m)}
    heads = _heads(model, layers)
    kept, elements = {}, {}
    for name, module in layers.items():
        weight = module._parameters.get("weight")
        if weight is not None and weight is tied:
            continue
        width = _width(module)
        elements[name] = width[0] * width[1] if width else weight.numel()  # type: ignore[union-attr]
        if any(_named(name, pattern) for pattern in ignored):
            kept[name] = "the checkpoint's config leaves it as it was"
        elif name in heads:
            kept[name] = f"{heads[name]}, left as it was as is the custom"
    for name, module in model.named_modules():
        for parameter, stack in _stacks(module).items():
            packed = bits if bits and not stack.is_floating_point() else 8 * stack.element_size()
            full = f"{name}.{parameter}" if name else parameter
            elements[full] = stack.numel() * 8 * stack.element_size() // packed
    return Layout((), kept, elements, tuple(h for h in heads if h in kept))


def _stacks(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters of `module` that hold a linear layer's weight several times over, as mixtures of
    experts do: three sizes, and no convolution."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return {}
    return {
        name: weight
        for name, weight in module._parameters.items()
        if weight is not None and weight.dim() == 3 and min(weight.shape) > 1
    }


@dataclass(frozen=True)
class Layout:
    """The linear layers of a model as loaded: what could be converted, and what is kept and why.

    A head tied to the embedding counts as embedding, so it is in neither. `elements` maps the name
    of every counted layer to its number of weight elements; `heads` are those kept by custom.
    """

    targets: tuple[str, ...]
    kept: dict[str, str]
    elements: dict[str, int]
    heads: tuple[str, ...]

    @property
    def linear_elements(self) -> int:
        """Weight elements of all linear layers, tied heads apart."""
        return sum(self.elements.values())


def layout(model: nn.Module) -> Layout:
    """Find the linear layers before a format is applied.

    The output head (`lm_head`, the classifier) stays in the compute type, as is the custom since
    LLM.int8() (Dettmers et al. 2022): it is small or most sensitive. It is counted and named.
    """
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    tied = getattr(embeddings, "weight", None)
    layers = linear_layers(model)
    heads = _heads(model, layers)
    targets, kept, elements = [], {}, {}
    for name, module in layers.items():
        if module.weight is tied:
            continue
        elements[name] = module.weight.numel()
        if name in heads:
            kept[name] = f"{heads[name]}, kept in the compute type as is the custom"
        elif not isinstance(module, nn.Linear):
            kept[name] = f"{type(module).__name__} is a kind of layer that no handler converts"
        else:
            targets.append(name)
    for name, module in model.named_modules():
        for parameter, weight in _stacks(module).items():
            full = f"{name}.{parameter}" if name else parameter
            elements[full] = weight.numel()
            kept[full] = (
                "weights stacked in one tensor, as experts are, are converted by no handler"
            )
    return Layout(tuple(targets), kept, elements, tuple(h for h in heads if h in kept))


def _heads(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, str]:
    """The layers that make the model's answer, each with what it is."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    heads = {name: "output head" for name, module in layers.items() if module is output}
    if type(model).__name__.endswith("ForSequenceClassification"):
        # The head's order among the modules is not fixed: XLM-Roberta makes it before the body.
        body = getattr(model, "base_model_prefix", "") + "."
        labels = getattr(getattr(model, "config", None), "num_labels", None)
        outer = [
            name
            for name, module in layers.items()
            if not name.startswith(body) and getattr(module, "out_features", None) == labels
        ]
        heads |= dict.fromkeys(outer[-1:], "classification head")
    return heads


@dataclass
class Census:
    """Real storage: elements and bytes by dtype, and per layer the dtype that holds its weight."""

    weight_bytes: int = 0
    elements_by_dtype: dict[str, int] = field(default_factory=dict)
    bytes_by_dtype: dict[str, int] = field(default_factory=dict)
    held_in: dict[str, str] = field(default_factory=dict)

    def add(self, dtype: str, elements: int, size: int) -> None:
        """Count `elements` values of `size` bytes in all."""
        self.weight_bytes += size
        self.elements_by_dtype[dtype] = self.elements_by_dtype.get(dtype, 0) + elements
        self.bytes_by_dtype[dtype] = self.bytes_by_dtype.get(dtype, 0) + size


def _module_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module._parameters.values()  # type: ignore[misc]
    for name, buffer in module._buffers.items():
        if name not in module._non_persistent_buffers_set and buffer is not None:
            yield buffer
    # bitsandbytes keeps the scales of its int8 weight beside the parameter, not in the state.
    weight = module._parameters.get("weight")
    for holder in (weight, getattr(module, "state", None)):
        scales = getattr(holder, "SCB", None)
        if isinstance(scales, torch.Tensor):
            yield scales
    # Nor the scales and code tables of its 4-bit weights, the scales' own scales among them.
    state = getattr(weight, "quant_state", None)
    for holder in (state, getattr(state, "state2", None)):
        found = (getattr(holder, name, None) for name in ("absmax", "code", "offset"))
        yield from (tensor for tensor in found if isinstance(tensor, torch.Tensor))


@dataclass(frozen=True)
class _Packed:
    """Block formats and types of less than a byte: what the items of `values` stand for."""

    storage: str
    elements: int
    values: torch.Tensor


def _packed(tensor: torch.Tensor) -> _Packed | None:
    """What `tensor` holds if it is no plain type, told by its inner tensors; None for others."""
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        return _Packed(str(state.quant_type), math.prod(state.shape), tensor)
    values, scale = getattr(tensor, "qdata", None), getattr(tensor, "scale", None)
    if values is None:
        return None
    count = tensor.numel()
    if hasattr(tensor, "scale_and_zero"):
        # Two to a byte, padded to whole tiles by the kernel for CUDA.
        return _Packed("int4", count, values) if 2 * values.nbytes >= count else None
    scaled = getattr(scale, "dtype", None)
    if values.dtype == torch.float8_e4m3fn and scaled == torch.float8_e8m0fnu:
        return _Packed("mxfp8", count, values)
    if 2 * values.nbytes == count and scaled == torch.float8_e4m3fn:
        return _Packed("nvfp4", count, values)
    return None


def _own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """The ordinary tensors that `module` itself stores."""
    found = (t for t in _module_tensors(module) if t is not None)
    return [plain for tensor in found for plain in plain_tensors(tensor)]


def census(model: nn.Module) -> Census:
    """Count what `model` stores: parameters and persistent buffers, each piece of memory once."""
    result = Census()
    seen: set[tuple[int, int]] = set()
    for name, module in model.named_modules():
        stored = getattr(module, "stored", None)
        if callable(stored):
            parts = stored()
            for dtype, (elements, size) in parts.items():
                result.add(dtype, elements, size)
            result.held_in[name] = max(parts, key=lambda d: parts[d][0])
        for tensor in _module_tensors(module):
            if tensor is None:
                continue
            packed = _packed(tensor)
            for plain in plain_tensors(tensor):
                key = (plain.data_ptr(), plain.numel() * plain.element_size())
                if key in seen and plain.data_ptr() != 0:
                    continue
                seen.add(key)
                if packed is not None and packed.values is plain:
                    result.add(packed.storage, packed.elements, key[1])
                else:
                    result.add(_name(plain.dtype), plain.numel(), key[1])
        for parameter, stack in _stacks(module).items():
            full = f"{name}.{parameter}" if name else parameter
            result.held_in[full] = _name(stack.dtype)
        weight = module._parameters.get("weight")
        if weight is None:
            weight = module._buffers.get("weight_int8", module._buffers.get("weight_8bit"))
        if weight is None and _width(module):
            # Packed under a name of its library's: the weight is the largest of what is there.
            own = _own_tensors(module)
            weight = max(own, key=lambda t: t.numel() * t.element_size(), default=None)
        if weight is not None and name not in result.held_in:
            packed = _packed(weight)
            largest = max(plain_tensors(weight), key=lambda t: t.numel())
            result.held_in[name] = packed.storage if packed else _name(largest.dtype)
    return result


def is_held(found: str | None, storage: str) -> bool:
    """Whether a weight that was found in `found` is held in a format's `storage`. A checkpoint that
    comes quantized counts whatever is no 16- or 32-bit float type."""
    if storage == AS_SHIPPED:
        return found not in (*_WIDE, "nowhere", None)
    return found == storage


def left_behind(
    before: Layout,
    after: Census,
    wanted: Mapping[str, str],
    compute_dtype: str,
    reasons: Mapping[str, str],
) -> tuple[int, list[LeftBehind]]:
    """Elements of `before`'s layers found in the storage that `wanted` names for them, and every
    layer that was not, with why: `reasons` are those of the layers that were left on purpose."""
    converted, left = 0, []
    for name, elements in before.elements.items():
        found = after.held_in.get(name, "nowhere")
        if name in wanted and is_held(found, wanted[name]):
            converted += elements
            continue
        silent = f"the library left it in {found} without saying so (compute type {compute_dtype})"
        reason = before.kept.get(name) or reasons.get(name, silent)
        left.append(LeftBehind(name=name, elements=elements, reason=reason))
    return converted, left
