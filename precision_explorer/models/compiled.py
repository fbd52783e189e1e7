"""A loaded model whose forward is run by torch.compile, padded to few shapes where the runtime has
fixed ones. Adapters call it as they call an eager model."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import ModelError
from precision_explorer.formats.compiling import (
    compiled,
    compiled_share,
    share_blocks,
    unshare_blocks,
    without_guards,
)
from precision_explorer.formats.runtimes import Runtime, next_power, padded_length

Shape = tuple[Any, ...]
# The argument that takes the cache: transformers 5.24 renamed it and drops the second in 5.40.
_CACHES: tuple[str, ...] = ("cache", "past_key_values")
# A GPU's int8 products are padded to more rows than this (`formats.kernels`), which is a branch, so
# that code for more rows, of all sequences together, is other code.
_PADDED_ROWS = 16
# Outputs beside the logits that adapters read, one per token of the input.
_PER_TOKEN = ("start_logits", "end_logits", "last_hidden_state")


class _OnlyLooking(Exception):
    """Raised in place of the forward pass while `shape_of` asks for shapes."""

    def __init__(self, shape: Shape) -> None:
        super().__init__("only the shape was asked for")
        self.shape = shape


class CompiledModel:
    """Replaces `model.forward`; `eager` is the forward that it had.

    With fixed shapes, ids and mask are padded with `pad` to the declared lengths up to `longest`:
    on the right for scores and labels, on the left for generation, whose cache then has a fixed
    size with room for `new_tokens`. Rows are padded to a power of two by repeating the first, since
    a row of nothing but padding may give NaN, on which scales per tensor would run aground. Of the
    answer only what was asked for is returned.
    """

    def __init__(
        self,
        model: nn.Module,
        runtime: Runtime,
        device: str,
        *,
        pad: int,
        longest: int,
        new_tokens: int = 0,
    ) -> None:
        kind = torch.device(device).type
        self.model, self.runtime, self.device = model, runtime, device
        self.pad, self.longest, self.new_tokens = pad, longest, new_tokens
        self.eager = model.forward
        self.replays = runtime.cuda_graphs(kind)
        self._kind = kind
        self.shared_blocks = 0 if runtime.dynamic else share_blocks(model)
        self._call = compiled(self.eager, runtime, kind)
        self._looking = self._eagerly = False
        self._caches: dict[tuple[int, int], Any] = {}
        # The tokens of the prompt, padding apart, that each cache was begun with.
        self._prompts: dict[int, int] = {}
        self._sample: dict[str, Any] = {}
        self._made: set[Shape] = set()

        # The adapters read the signature of `model.forward`.
        @functools.wraps(self.eager)
        def forward(**inputs: Any) -> Any:
            return self.forward(**inputs)

        # `models.causal_forward` reads it and leaves out what has other shapes.
        forward.pads = True  # type: ignore[attr-defined]
        model.forward = forward

    def forward(self, **inputs: Any) -> Any:
        """The model's output for `inputs`, padded on the way where shapes are fixed."""
        if self._eagerly:
            return self.eager(**inputs)
        if self.runtime.dynamic:
            return self._run(inputs)
        if inputs.get("use_cache"):
            return self._generate(inputs)
        return self._score(inputs)

    def _run(self, inputs: dict[str, Any]) -> Any:
        if self._looking:
            raise _OnlyLooking(self._shape(inputs))
        if not self._sample:
            self._sample = inputs
        if self.replays:
            # The outputs of the last replay have been read and may be overwritten.
            torch.compiler.cudagraph_mark_step_begin()
        if self.runtime.dynamic:
            return self._call(**inputs)
        inputs = {name: _in_order(value) for name, value in inputs.items()}
        # The cache is part of it, as itself.
        shape = self._shape(inputs)
        if shape in self._made:
            with without_guards():
                return self._call(**inputs)
        out = self._call(**inputs)
        self._made.add(shape)
        return out

    @contextlib.contextmanager
    def eagerly(self) -> Iterator[None]:
        """Meanwhile the model runs as if it had never been compiled."""
        self._eagerly = True
        try:
            yield
        finally:
            self._eagerly = False

    def compile_whole(self) -> None:
        """From now on each block has code of its own, and all is compiled anew."""
        unshare_blocks(self.model)
        self.shared_blocks = 0
        self._made.clear()
        self._call = compiled(self.eager, self.runtime, self._kind)

    # -- padding -----------------------------------------------------------------------------

    def _score(self, inputs: dict[str, Any]) -> Any:
        """Padding on the right, which no token before it sees."""
        if "input_ids" not in inputs:
            return self._see(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        rows, length = ids.shape
        more = padded_length(length, self.longest) - length
        padded = inputs | {
            "input_ids": _rows(_pad(ids, 0, more, self.pad)),
            "attention_mask": _rows(_pad(mask, 0, more, 0)),
        }
        if "token_type_ids" in inputs:
            padded["token_type_ids"] = _rows(_pad(inputs["token_type_ids"], 0, more, 0))
        wanted = inputs.get("logits_to_keep")
        if isinstance(wanted, torch.Tensor):
            length = len(wanted)
            filled = next_power(length)
            padded["logits_to_keep"] = torch.cat([wanted, wanted[-1:].expand(filled - length)])
        out = self._run(padded)
        if "logits" in out:
            out.logits = out.logits[:rows]
            if out.logits.dim() == 3:
                out.logits = out.logits[:, :length]
        for name in _PER_TOKEN:
            if name in out:
                setattr(out, name, out[name][:rows, :length])
        return out

    def _see(self, inputs: dict[str, Any]) -> Any:
        """Images, which have one size: only rows are padded."""
        pixels = inputs["pixel_values"]
        out = self._run(inputs | {"pixel_values": _rows(pixels)})
        out.logits = out.logits[: len(pixels)]
        return out

    def _generate(self, inputs: dict[str, Any]) -> Any:
        """A prompt, padded on the left, into a cache of fixed size; or its next token."""
        names = [name for name in _CACHES if name in inputs]
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        rows, length = ids.shape
        if names:
            name, cache = names[0], inputs[names[0]]
            seen = self._prompts[id(cache)]
            length = padded_length(seen, self.longest)
            padded = inputs | {"input_ids": _rows(ids)}
            positions = inputs["position_ids"]
        else:
            seen, longer = length, padded_length(length, self.longest)
            name, cache = self._cache(next_power(rows), longer)
            self._prompts[id(cache)] = seen
            padded = inputs | {"input_ids": _rows(_pad(ids, longer - length, 0, self.pad))}
            positions = _pad(inputs["position_ids"], longer - length, 0, 0)
            length = longer
        before = length - seen
        after = length + self.new_tokens - before - mask.shape[1]
        padded["attention_mask"] = _rows(_pad(mask, before, after, 0))
        padded["position_ids"] = _rows(positions)
        out = self._run(padded | {name: cache})
        out.logits = out.logits[:rows]
        return out

    def _cache(self, rows: int, length: int) -> tuple[str, Any]:
        """(its argument's name, the empty cache) of this shape: the same tensors at each request,
        as a replayed graph needs them. They are made by one eager pass, which knows their sizes."""
        name = "cache" if "cache" in _parameters(self.eager) else "past_key_values"
        key = (rows, length)
        if self._looking:
            return name, _NoCache()
        if key not in self._caches:
            self._caches[key] = self._new_cache(name, rows, length)
        self._caches[key].reset()
        return name, self._caches[key]

    def _new_cache(self, name: str, rows: int, length: int) -> Any:
        from transformers import StaticCache

        size = length + self.new_tokens
        try:
            cache = StaticCache(config=self.model.config, max_cache_len=size)
            ids = torch.zeros((rows, length), dtype=torch.long, device=self.device)
            mask = torch.zeros((rows, size), dtype=torch.long, device=self.device)
            mask[:, :length] = 1
            self.eager(input_ids=ids, attention_mask=mask, use_cache=True, **{name: cache})
        except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            raise ModelError(
                f"the model can't generate with a cache of fixed size ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no message'}); use --runtime "
                "compile or eager"
            ) from error
        return cache

    # -- shapes ------------------------------------------------------------------------------

    def shape_of(self, call: Callable[[], Any]) -> Shape | None:
        """The shape of the first forward pass that `call` makes, which is not run; None if it makes
        none. Of a generating call that is its prompt's."""
        self._looking = True
        try:
            call()
        except _OnlyLooking as found:
            return found.shape
        finally:
            self._looking = False
        return None

    def _shape(self, inputs: dict[str, Any]) -> Shape:
        return tuple(
            (name, tuple(value.shape) if isinstance(value, torch.Tensor) else value)
            for name, value in sorted(inputs.items())
            if not isinstance(value, _NoCache)
        )

    def shape_class(self, shape: Shape) -> Shape:
        """What shapes share code: those that are alike, and with dynamic shapes those that differ
        in sizes above 1 only (torch.compile takes 0 and 1 as special), on a GPU with their rows on
        one side of `_PADDED_ROWS`."""
        if not self.runtime.dynamic:
            return shape
        sizes = tuple(
            (name, tuple(min(size, 2) for size in value) if isinstance(value, tuple) else value)
            for name, value in shape
        )
        ids = dict(shape).get("input_ids")
        if self._kind == "cpu" or not isinstance(ids, tuple):
            return sizes
        return (*sizes, ("rows", math.prod(ids) > _PADDED_ROWS))

    def share(self) -> float | None:
        """The share of a forward pass's operators that is run compiled, at the first shape that was
        run; see `formats.compiling.compiled_share`."""
        inputs = self._sample

        def run(forward: Callable[..., Any]) -> Callable[[], Any]:
            def call() -> Any:
                for name in _CACHES:
                    if name in inputs:
                        inputs[name].reset()
                return forward(**inputs)

            return call

        return compiled_share(run(self._run_again), run(self.eager)) if inputs else None

    def _run_again(self, **inputs: Any) -> Any:
        return self._run(inputs)


class _NoCache:
    """Stands for the cache while only shapes are asked for."""


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    import inspect

    return frozenset(inspect.signature(function).parameters)


def _pad(tensor: torch.Tensor, before: int, after: int, value: int) -> torch.Tensor:
    """(rows, before + length + after): `tensor` with `value` on both sides."""
    return nn.functional.pad(tensor, (before, after), value=value)


def _in_order(value: Any) -> Any:
    """A tensor with the strides that its shape alone gives. Two of one shape can differ in those of
    sizes of 1, and would be compiled apart."""
    return value.reshape(-1).view(value.shape) if isinstance(value, torch.Tensor) else value


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with its first row repeated at the end, up to a power of two rows."""
    more = next_power(len(tensor)) - len(tensor)
    return torch.cat([tensor, tensor[:1].expand(more, *tensor.shape[1:])]) if more else tensor
