"""Tiny dry runs of every format on the device at hand: does it run, is it right, how fast is it?

The answers are JSON-able and cached by device and library versions; `support` decides from them.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from precision_explorer.formats import reference
from precision_explorer.formats.apply import apply_format, set_matmul_precision
from precision_explorer.formats.catalog import OWN_ON_CUDA, spec_of
from precision_explorer.formats.compiling import compiled
from precision_explorer.formats.footprint import INT4_GROUPS
from precision_explorer.formats.kernels import CPU_KERNELS, CUDA_KERNELS
from precision_explorer.formats.runtimes import RUNTIMES, Runtime
from precision_explorer.formats.static import (
    CPU_STATIC_KERNELS,
    CUDA_STATIC_KERNELS,
    SMOOTHING_ALPHA,
)

# Rows x in x out of the timed shapes: a short prompt and a single token of a small model.
_SHAPES = ((128, 576, 1536), (1, 576, 1536))
# Code that was compiled for many rows must serve few: a kernel may have been chosen that refuses
# them (cuBLASLt's int8 GEMM does 16 or fewer).
_FEW_ROWS = 8
_REPEATS = 7
# Calls that take so long together tell enough before that: what disturbs one is short beside them.
_ENOUGH_S = 0.5
# The relative error (Frobenius) above which a result is wrong rather than rounded. Rounding to e4m3
# gives about 0.026 on these inputs and int8 below 0.02; the saturating AVX2 kernels 0.1 to 0.9.
WRONG = 0.06
# Where the error itself proves what computed: float32 rounds to 24 bits (an error of about 1e-7
# here), TF32 to 11 (about 3e-4), bfloat16 to 8 (about 3e-3).
_EXACTNESS = {"fp32": (0.0, 1e-5), "tf32": (2e-5, 2e-3), "bf16-autocast": (5e-4, 2e-2)}
# Kernels whose times differ by less than this are equally fast: so much do two dry runs differ.
_AS_FAST = 0.1


class _Tiny(nn.Module):
    """One linear layer under a name, as in a model."""

    def __init__(self, rows_in: int, rows_out: int) -> None:
        super().__init__()
        self.body = nn.Linear(rows_in, rows_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def _timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of the fastest of a few calls: the floor is what kernels are compared by."""
    best, spent_s = float("inf"), 0.0
    for attempt in range(_REPEATS + 2):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        spent_s += took
        if attempt >= 2:
            best = min(best, took)
            if spent_s > _ENOUGH_S:
                break
    return best


def _inputs(shape: tuple[int, int, int], hard: bool) -> tuple[_Tiny, torch.Tensor]:
    """A layer and its input. `hard`: all products of one sign and near the largest magnitude, so
    that any accumulator too narrow for the sum must saturate."""
    generator = torch.Generator().manual_seed(0)
    rows, inner, outer = shape
    model = _Tiny(inner, outer)
    with torch.no_grad():
        if hard:
            x = 0.9 + 0.1 * torch.rand(rows, inner, generator=generator)
            model.body.weight.copy_(0.9 + 0.1 * torch.rand(outer, inner, generator=generator))
            model.body.weight[::2] *= -1
            # Kernels that are sound for some pairs of columns only are found out by the others.
            model.body.weight[1::4, ::2] *= 0.01
            model.body.weight[2::4, 1::2] *= 0.01
        else:
            x = torch.randn(rows, inner, generator=generator)
            weight = torch.randn(outer, inner, generator=generator) / inner**0.5
            model.body.weight.copy_(weight)
        model.body.bias.zero_()
    return model, x


def _error(result: torch.Tensor, exact: torch.Tensor) -> float:
    difference = (result.detach().double().cpu() - exact).norm() / exact.norm()
    value = float(difference)
    return value if value == value else float("inf")


def _try(
    format_id: str, recipe: dict[str, Any], device: str, runtime: Runtime = RUNTIMES["eager"]
) -> dict[str, Any]:
    """Run `format_id` on both kinds of input and all shapes as `runtime` does; never raises."""
    answer: dict[str, Any] = {"kernel": recipe["kernel"], "recipe": recipe, "ok": False}
    dtype = getattr(torch, recipe["compute_dtype"])
    try:
        errors, deviations, seconds = [], [], []
        for shape in _SHAPES:
            for hard in (True, False):
                model, x = _inputs(shape, hard)
                exact = x.double() @ model.body.weight.detach().double().t()
                ready = model.to(device=device, dtype=dtype).eval()
                inputs = x.to(device=device, dtype=dtype)
                weight = ready.body.weight.detach().cpu()
                expected = reference.product(format_id, recipe, inputs.cpu(), weight)
                calibrate = partial(ready, inputs)
                apply_format(ready, format_id, recipe, "unverified", "dry run", calibrate)
                if runtime.compiles:
                    ready = compiled(ready, runtime, torch.device(device).type)
                with torch.inference_mode():
                    result = ready(inputs)
                    errors.append(_error(result, exact))
                    if expected is not None:
                        deviations.append(_error(result, expected))
                    if not hard:
                        seconds.append(_timed(partial(ready, inputs), device))
                    if runtime.compiles and runtime.dynamic and len(inputs) > _FEW_ROWS:
                        errors.append(_error(ready(inputs[:_FEW_ROWS]), exact[:_FEW_ROWS]))
        answer |= {"seconds": seconds} | _judged(format_id, recipe, errors, deviations)
    except Exception as failure:
        message = str(failure).strip().splitlines() or ["no message"]
        answer["why"] = f"{type(failure).__name__}: {message[0][:200]}"
    return answer


def _judged(
    format_id: str, recipe: dict[str, Any], errors: list[float], deviations: list[float]
) -> dict[str, Any]:
    """Whether the errors against exact arithmetic, or, where the format is emulated in `reference`,
    the deviations from that, are those of a right kernel."""
    worst, deviation = max(errors), max(deviations, default=None)
    if not math.isfinite(worst):
        # JSON, in which the answer travels, has no infinity.
        return {"error": None, "ok": False, "why": "wrong results: NaN or infinity"}
    if deviation is not None:
        allowed = reference.tolerance(getattr(torch, recipe["compute_dtype"]))
        why = (
            f"wrong results: {deviation:.3g} away from an exact emulation of the format; its "
            f"rounding explains {allowed:.2g}"
        )
        found = {"error": worst, "deviation": deviation, "ok": deviation <= allowed}
        return found if found["ok"] else found | {"why": why}
    low, high = _EXACTNESS.get(format_id, (0.0, WRONG))
    ok = low <= worst <= high
    return {"error": worst, "ok": ok} | ({} if ok else {"why": _wrong(format_id, worst)})


def _wrong(format_id: str, error: float) -> str:
    if format_id == "fp32" and error <= WRONG:
        return (
            f"a relative error of {error:.1e} is not float32's: a narrower type computes; unset "
            "NVIDIA_TF32_OVERRIDE and ONEDNN_DEFAULT_FPMATH_MODE"
        )
    if format_id == "tf32" and error <= WRONG:
        return f"a relative error of {error:.1e} is not TF32's: another type computes"
    if format_id == "bf16-autocast" and error <= WRONG:
        return f"a relative error of {error:.1e} is not bfloat16's: another type computes"
    return f"wrong results: relative error {error:.3f} (saturation)"


def _compute_rate(dtype: torch.dtype, device: str) -> float:
    """Seconds of one matmul large enough to be bound by arithmetic."""
    size = 768 if device == "cpu" else 4096
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    with torch.inference_mode():
        return _timed(lambda: a @ b, device)


def _default_recipe(format_id: str, device: str) -> dict[str, Any]:
    quantized = "float32" if device == "cpu" else "bfloat16"
    dtype = {
        "bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "tf32": "float32",
        "bf16-autocast": "float32", "mxfp8": "bfloat16", "nvfp4": "bfloat16",
    }  # fmt: skip
    spec = spec_of(format_id)
    recipe: dict[str, Any] = {
        "kernel": "torch" if not spec.quantizes else spec.library,
        "library": "torch" if not spec.quantizes else spec.library,
        "compute_dtype": dtype.get(format_id, quantized),
    }
    if format_id in ("mxfp8", "nvfp4"):
        recipe["kernel"] = "scaled-mm" if _scales_blocks(device) else "emulated"
    elif format_id == "int4-weight-only":
        packing = "cpu" if device == "cpu" else "tile_packed_to_4d"
        recipe |= {"kernel": "int4pack-mm", "packing": packing, "group_size": list(INT4_GROUPS)}
    elif spec.calibrates:
        recipe["smoothing_alpha"] = SMOOTHING_ALPHA
    return recipe


def _scales_blocks(device: str) -> bool:
    """Whether torchao's kernels for scaled blocks run on `device`: it asks for 10.0 itself."""
    return device != "cpu" and torch.cuda.get_device_capability(device) >= (10, 0)


def _recipes(format_id: str, device: str) -> list[dict[str, Any]]:
    """The ways of making `format_id` on `device` among which the dry run chooses."""
    base = _default_recipe(format_id, device)
    if format_id == "int4-weight-only" and device == "cpu":
        # torch's kernel for CPUs is fast in one type only: on a CPU with AVX2 it took 31 x as long
        # in float32 as in bfloat16 (128 rows; `formats --json` shows both as candidates).
        return [base | {"compute_dtype": dtype} for dtype in ("float32", "bfloat16")]
    if format_id in OWN_ON_CUDA and device != "cpu":
        return [base | {"kernel": OWN_ON_CUDA[format_id], "library": "torch"}, base]
    if format_id not in ("int8-dynamic", "int8-static"):
        return [base]
    if format_id == "int8-static":
        names = CPU_STATIC_KERNELS if device == "cpu" else CUDA_STATIC_KERNELS
    else:
        names = CPU_KERNELS if device == "cpu" else CUDA_KERNELS
    return [
        base | {"kernel": n, "library": "torchao" if n == "torchao" else "torch"} for n in names
    ]


def best_kernel(candidates: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The most exact of those that are right and about as fast as the fastest; None if none is
    right. Speed is the geometric mean of the seconds over the shapes, so that no shape outweighs
    another."""

    def typical(candidate: dict[str, Any]) -> float:
        seconds = candidate["seconds"]
        return math.exp(sum(map(math.log, seconds)) / len(seconds))

    right = [c for c in candidates if c["ok"]]
    if not right:
        return None
    fastest = min(map(typical, right))
    fast = [c for c in right if typical(c) <= fastest * (1 + _AS_FAST)]
    return min(fast, key=lambda c: (c["error"], typical(c)))


def _refusal(candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer where none of `candidates` is right: its own words where there is one kernel."""
    one = len({c["kernel"] for c in candidates}) == 1
    return candidates[0] if one else {"ok": False, "why": "no kernel is right"}


def dry_run(
    device: str, formats: list[str], runtime: Runtime = RUNTIMES["eager"]
) -> dict[str, Any]:
    """{format: answer} for `formats` on `device` under `runtime`; see `_try` for an answer's
    fields."""
    warnings.filterwarnings("ignore")
    answers: dict[str, Any] = {}
    for format_id in formats:
        recipes = _recipes(format_id, device)
        if len(recipes) > 1:
            candidates = [_try(format_id, r, device, runtime) for r in recipes]
            chosen = best_kernel(candidates) or _refusal(candidates)
            answers[format_id] = copy.deepcopy(chosen) | {"candidates": candidates}
            continue
        answers[format_id] = _try(format_id, recipes[0], device, runtime)
    set_matmul_precision("fp32")
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16, "bf16-autocast": torch.bfloat16}
    for format_id, dtype in halves.items():
        if answers.get(format_id, {}).get("ok"):
            answers[format_id]["speed_ratio"] = _speed_ratio(dtype, device)
    return answers


def _speed_ratio(dtype: torch.dtype, device: str) -> float | None:
    """How many times fp32's rate `dtype` reaches; None where that can't be measured."""
    try:
        return _compute_rate(torch.float32, device) / _compute_rate(dtype, device)
    except RuntimeError:
        return None
