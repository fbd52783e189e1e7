"""The device's own limits: matrix products per number type, memory and cache bandwidth, and the
time to start an operator. The ceilings of the roofline model (Williams et al., CACM 52(4), 2009).

Bandwidth by STREAM's rules (McCalpin, 1995): arrays of at least four times the last-level cache,
the best of several kernels, a copy counts the bytes read and those written. Each figure is the
median of its repeats; of shapes and kernels the best one stands.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from precision_explorer.formats.apply import set_matmul_precision
from precision_explorer.formats.dryrun import WRONG
from precision_explorer.formats.kernels import int8_linear, quantize_rows
from precision_explorer.hardware.caches import last_level_cache_bytes, last_level_cache_count
from precision_explorer.records import Bandwidth, Launch, MatmulRate, Roof

Shape = tuple[int, int, int]
Make = Callable[[Shape, str], Callable[[], Any]]

# Rows, inner, outer: squares, and a prompt through the wide layer of a model.
_SHAPES: dict[str, tuple[Shape, ...]] = {
    "cpu": ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (128, 2048, 8192)),
    "cuda": ((2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192), (2048, 4096, 16384)),
}
# Repeats of a product, of which the median counts, as many as fit in the seconds: declared, a
# second for each type and shape. An odd number has a middle that two disturbed
# ones don't move.
_REPEATS = 5
_BUDGET_S = 1.0
# A product expected to take longer is left out: smaller ones have told enough of a slow type.
_LONGEST_S = 1.0
# STREAM's rule (McCalpin 1995): arrays of at least four times the last cache.
_TIMES_CACHE = 4
# Where the cache's size is not told: a quarter of it is above any core complex's last cache.
_UNKNOWN_CACHE_BYTES = 1 << 30
# On a GPU a pass over four times its cache is so short that starting and waiting for it would
# count: at 3 TB/s they are some per cent of 1 GiB, and below 1 % of 4.
_LEAST_CUDA_BYTES = 4 << 30
# A GPU raises its clocks when it gets work; until then nothing is timed.
_CUDA_WARM_UP_S = 0.1
# Calls shorter than this are timed several in a row, for the same reason.
_CUDA_LEAST_S = 2e-3
_CUDA_REPEATS = 15
_MOST_IN_A_ROW = 1000
# So many that reading the clock twice does not count: a launch takes a few microseconds.
_LAUNCHES = 2000


def _sync(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _repeats(call: Callable[[], Any], device: str, first_s: float) -> list[float]:
    """Seconds of up to `_REPEATS` calls within the budget; at least one."""
    if device != "cpu":
        return _cuda_repeats(call, device)
    taken: list[float] = []
    while len(taken) < _REPEATS and (not taken or sum(taken) + first_s < _BUDGET_S):
        taken.append(_once(call, device))
    return taken


def _cuda_repeats(call: Callable[[], Any], device: str) -> list[float]:
    """Seconds of a call, up to `_CUDA_REPEATS` times within the budget: warmed up first, and each
    the mean of so many in a row that waiting for them does not count."""
    began, calls, last = time.perf_counter(), 0, 0.0
    while calls == 0 or time.perf_counter() - began < _CUDA_WARM_UP_S:
        last = _once(call, device)
        calls += 1
    row = min(max(math.ceil(_CUDA_LEAST_S / max(last, 1e-9)), 1), _MOST_IN_A_ROW)

    def several() -> None:
        for _ in range(row):
            call()

    taken: list[float] = []
    while len(taken) < _CUDA_REPEATS and (not taken or sum(taken) * row < _BUDGET_S):
        taken.append(_once(several, device) / row)
    return taken


def _once(call: Callable[[], Any], device: str) -> float:
    _sync(device)
    start = time.perf_counter()
    call()
    _sync(device)
    return time.perf_counter() - start


# -- matrix products ---------------------------------------------------------------------------


def _plain(shape: Shape, device: str, dtype: torch.dtype) -> Callable[[], Any]:
    """`nn.functional.linear`, as models call it."""
    rows, inner, outer = shape
    x = torch.randn(rows, inner, device=device).to(dtype)
    weight = torch.randn(outer, inner, device=device).to(dtype)
    return lambda: nn.functional.linear(x, weight)


def _int8_operands(shape: Shape, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows, inner, outer = shape
    x = torch.randint(-127, 128, (rows, inner), dtype=torch.int8)
    weight = torch.randint(-127, 128, (outer, inner), dtype=torch.int8)
    return x.to(device), weight.to(device)


def _int_mm(shape: Shape, device: str) -> Callable[[], Any]:
    x, weight = _int8_operands(shape, device)
    return lambda: torch._int_mm(x, weight.t())


def _fbgemm(shape: Shape, device: str, paired: bool) -> Callable[[], Any]:
    rows, inner, outer = shape
    values, scale = quantize_rows(torch.randn(outer, inner), paired)
    zeros = torch.zeros(outer, dtype=torch.long)
    weight = torch._make_per_channel_quantized_tensor(values, scale.double(), zeros, 0)
    torch.backends.quantized.engine = "fbgemm"
    packed = torch.ops.quantized.linear_prepack(weight, None)
    x = torch.quantize_per_tensor(torch.randn(rows, inner), 0.03, 128, torch.quint8)
    return lambda: torch.ops.quantized.linear(x, packed, 1.0, 128)


def _onednn(shape: Shape, device: str, paired: bool) -> Callable[[], Any]:
    rows, inner, outer = shape
    values, scale = quantize_rows(torch.randn(outer, inner), paired)
    packed = torch.ops.onednn.qlinear_prepack(values, None)
    zeros = torch.zeros(outer, dtype=torch.int32)
    x = torch.randint(0, 256, (rows, inner), dtype=torch.uint8)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 128, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _float8(shape: Shape, device: str, by_row: bool) -> Callable[[], Any]:
    rows, inner, outer = shape
    x = torch.randn(rows, inner, device=device).to(torch.float8_e4m3fn)
    weight = torch.randn(outer, inner, device=device).to(torch.float8_e4m3fn)
    # One scale a tensor, or (rows, 1) and (1, outer): one a row, as `fp8-dynamic` has them, with
    # its sums too (torchao's default).
    rows_by, outer_by = ((rows, 1), (1, outer)) if by_row else ((), ())
    scale_a, scale_b = torch.ones(rows_by, device=device), torch.ones(outer_by, device=device)
    return lambda: torch._scaled_mm(
        x,
        weight.t(),
        scale_a=scale_a,
        scale_b=scale_b,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def _candidates(kind: str) -> list[tuple[str, str, Make]]:
    """(number type, kernel, maker of a call) of everything that is tried on a kind of device."""
    found: list[tuple[str, str, Make]] = [
        (name, "torch", partial(_plain, dtype=getattr(torch, name)))
        for name in ("float32", "bfloat16", "float16")
    ]
    if kind == "cuda":
        return [
            *found,
            ("tf32", "torch", partial(_plain, dtype=torch.float32)),
            ("int8", "int-mm", _int_mm),
            ("float8_e4m3fn", "scaled-mm", partial(_float8, by_row=False)),
            ("float8_e4m3fn", "scaled-mm-per-row", partial(_float8, by_row=True)),
        ]
    packed = [("fbgemm", _fbgemm), ("onednn", _onednn)]
    for name, make in packed:
        for paired, suffix in ((False, ""), (True, "-paired")):
            found.append(("int8", f"{name}-per-token{suffix}", partial(make, paired=paired)))
    return [*found, ("int8", "int-mm", _int_mm)]


def _is_sound(kernel: str) -> bool:
    """Whether the int8 layer of `kernel` is right where all products have one sign and the largest
    magnitude, as `formats.dryrun` asks of each."""
    linear = nn.Linear(512, 64, bias=False)
    nn.init.constant_(linear.weight, 0.95)
    x = torch.full((4, 512), 0.95)
    exact = x.double() @ linear.weight.detach().double().t()
    result = int8_linear(linear, kernel)(x).double()
    return bool((result - exact).norm() <= WRONG * exact.norm())


def matmul_rate(number_type: str, kernel: str, make: Make, device: str) -> MatmulRate:
    """The best rate of `make`'s product over the shapes; no rate, and why, where it raises, is
    wrong, or is too slow for the smallest shape."""
    kind = "cpu" if device == "cpu" else "cuda"
    set_matmul_precision("tf32" if number_type == "tf32" else "fp32")
    best = MatmulRate(type=number_type, kernel=kernel, flops_per_s=None, note="not measured")
    try:
        if kind == "cpu" and number_type == "int8" and not _is_sound(kernel):
            return best.model_copy(update={"note": "its sums saturate here: wrong results"})
        second_per_flop = 0.0
        for shape in _SHAPES[kind]:
            flops = 2 * shape[0] * shape[1] * shape[2]
            if second_per_flop * flops > _LONGEST_S:
                continue
            call = make(shape, device)
            first = _once(call, device)
            seconds = _repeats(call, device, first)
            second_per_flop = median(seconds) / flops
            if flops / median(seconds) > (best.flops_per_s or 0.0):
                best = MatmulRate(
                    type=number_type,
                    kernel=kernel,
                    flops_per_s=flops / median(seconds),
                    shape=shape,
                    seconds=seconds,
                )
    except (RuntimeError, NotImplementedError, AttributeError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or ["no message"])[0]
        return best.model_copy(update={"note": f"{type(error).__name__}: {first_line[:160]}"})
    finally:
        set_matmul_precision("fp32")
    return best


# -- memory ------------------------------------------------------------------------------------


def _stream_bytes(device: str, cache: int | None, free: int) -> int | None:
    """Size of the array for the memory roof; None where it would not fit twice in what is free."""
    wanted = _TIMES_CACHE * cache if cache else _UNKNOWN_CACHE_BYTES
    if device != "cpu":
        wanted = max(wanted, _LEAST_CUDA_BYTES)
    return wanted if 2 * wanted < free else None


def _free_bytes(device: str, limit: int) -> int:
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return min(int(psutil.virtual_memory().available), limit)


def read_bandwidth(device: str, size: int) -> Bandwidth:
    """Bytes read per second from `size` bytes: the best of a sum, a dot product with itself and
    products of a matrix and a vector, each of which reads every value once."""
    values = torch.ones(size // 4 // 4096 * 4096, device=device)
    matrix, vector = values.view(-1, 4096), torch.ones(4096, device=device)
    read = values.numel() * 4
    calls: dict[str, Callable[[], Any]] = {
        "sum": values.sum,
        "dot": lambda: torch.dot(values, values),
        "mv": lambda: torch.mv(matrix, vector),
    }
    rates = {}
    for name, call in calls.items():
        first = _once(call, device)
        rates[name] = read / median(_repeats(call, device, first))
    best = max(rates, key=rates.__getitem__)
    return Bandwidth(bytes_per_s=rates[best], working_set_bytes=read, how=best)


def copy_bandwidth(device: str, size: int) -> Bandwidth:
    """Bytes read and written per second by a copy of half of `size` bytes to the other half."""
    source = torch.ones(size // 8, device=device)
    target = torch.zeros_like(source)
    first = _once(lambda: target.copy_(source), device)
    seconds = median(_repeats(lambda: target.copy_(source), device, first))
    moved = 2 * source.numel() * 4
    return Bandwidth(bytes_per_s=moved / seconds, working_set_bytes=moved, how="copy")


# -- launches ----------------------------------------------------------------------------------


def launch(device: str) -> Launch:
    """Seconds to start a tiny operator; see `records.Launch`."""
    one = torch.ones(1, 1, device=device)
    linear = nn.Linear(1, 1).to(device)
    count = _LAUNCHES

    def many(call: Callable[[], Any]) -> float:
        def loop() -> None:
            for _ in range(count):
                call()

        loop()
        return median(_once(loop, device) for _ in range(_REPEATS)) / count

    def add() -> Any:
        return torch.add(one, one)

    if device == "cpu":
        return Launch(operator_s=many(add), matmul_s=many(lambda: linear(one)))
    operator_s = many(add)

    def add_and_wait() -> None:
        add()
        _sync(device)

    return Launch(operator_s=operator_s, matmul_s=operator_s, sync_s=many(add_and_wait))


def measure_roof(request: dict[str, Any], progress: Any) -> tuple[dict[str, Any], bytes]:
    """The job ``roof``: `Roof` of ``request["device"]`` as a document. ``memory_bytes`` bounds the
    host's arrays, ``threads`` is recorded."""
    device = request["device"]
    kind = "cpu" if device == "cpu" else "cuda"
    if kind == "cpu":
        cache, caches = last_level_cache_bytes(), last_level_cache_count()
    else:
        caches = 1
        cache = int(torch.cuda.get_device_properties(device).L2_cache_size) or None
    wanted = _candidates(kind)
    rates = []
    with torch.inference_mode():
        for done, (number_type, kernel, make) in enumerate(wanted):
            progress("roof", done, len(wanted))
            rates.append(matmul_rate(number_type, kernel, make, device))
        # Threads spread over all caches: together they must not hold the array.
        every = cache and cache * caches
        size = _stream_bytes(device, every, _free_bytes(device, request["memory_bytes"]))
        roof = Roof(
            threads=request["threads"],
            matmul=rates,
            read=read_bandwidth(device, size) if size else None,
            cache=read_bandwidth(device, cache // 2) if cache else None,
            copied=copy_bandwidth(device, size) if size else None,
            launch=launch(device),
            last_level_cache_bytes=cache,
        )
    progress("roof", len(wanted), len(wanted))
    return roof.model_dump(mode="json"), b""
