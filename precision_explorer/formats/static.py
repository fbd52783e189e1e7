"""Linear layers of int8 weights and int8 activations with calibrated scales, after SmoothQuant
(Xiao et al. 2023, arXiv 2211.10438).

The scheme is ``y = (q_x q_w^T) * s_x * s_w + b`` with one scale s_x for all of a layer's input,
chosen beforehand, and one s_w per weight row (output channel). A few input channels hold outliers,
to which a common scale would go, so channel j is first divided by a factor that the weight's column
is multiplied by (equation 4): ``s_j = max|X_j|^a / max|W_j|^(1-a)``. But for rounding the layer
computes the same. The paper folds 1/s into the norm before the layer; here it is in the
multiplication that quantizes the input, where it costs nothing and every layer has its own.

The range of an input is the largest magnitude that the calibration texts show, as in the authors'
code for the static setting (O3). A percentile would clip the few very large values that language
models rest on (Sun et al. 2024, arXiv 2402.17762). What exceeds the range in use is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import FormatNotApplied, InvalidNumerics
from precision_explorer.formats.kernels import FbgemmLinear, IntMatmulLinear, OnednnLinear

# The paper's default: half of the difficulty moves to the weights (section 4).
SMOOTHING_ALPHA = 0.5
_LEVELS = 127
_ZERO_POINT = 128

CPU_STATIC_KERNELS: tuple[str, ...] = (
    "fbgemm-per-tensor",
    "fbgemm-per-tensor-paired",
    "onednn-per-tensor",
    "onednn-per-tensor-paired",
    "int-mm",
)
CUDA_STATIC_KERNELS: tuple[str, ...] = ("int-mm",)

Calibrate = Callable[[], Any]


def observe(
    model: nn.Module, targets: Iterable[str], calibrate: Calibrate | None
) -> dict[nn.Module, torch.Tensor]:
    """{layer: (in,) largest magnitude of each input channel} of the `targets` that `calibrate`,
    which runs `model`, reaches.

    Raises FormatNotApplied where there is nothing to calibrate on, InvalidNumerics where an input
    is not finite.
    """
    if calibrate is None:
        raise FormatNotApplied("calibrated scales need texts; name a calibration set in the card")
    peaks: dict[nn.Module, torch.Tensor] = {}

    def watch(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = arguments[0] if arguments else named["input"]
        if x.numel():
            peak = x.detach().reshape(-1, x.shape[-1]).abs().amax(dim=0).float()
            peaks[layer] = torch.maximum(peaks[layer], peak) if layer in peaks else peak

    names = {model.get_submodule(name): name for name in targets}
    hooks = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer in names]
    try:
        calibrate()
    finally:
        for hook in hooks:
            hook.remove()
    for layer, peak in peaks.items():
        if not peak.isfinite().all():
            raise InvalidNumerics(
                f"calibration: NaN or infinity goes into {names[layer]} before anything is "
                "quantized; the model's weights are damaged or its compute type is too narrow"
            )
    return peaks


def smoothing(peak: torch.Tensor, weight: torch.Tensor, alpha: float) -> torch.Tensor:
    """(in,) float64 factors s_j of a layer from its inputs' largest magnitudes `peak`, (in,), and
    its weight, (out, in). 1 for a channel whose weights are zero, or of which the calibration shows
    nothing but zeros."""
    inputs, weights = peak.double(), weight.detach().double().abs().amax(dim=0)
    factors = inputs.pow(alpha) / weights.pow(1 - alpha)
    return torch.where((inputs > 0) & (weights > 0), factors, 1.0)


class _Static(nn.Module):
    """What the layers below share: `inverse` takes an input to steps of its scale, smoothed."""

    in_features: int
    out_features: int
    bias: nn.Parameter | None
    inverse: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = x.reshape(-1, self.in_features).float() * self.inverse
        y = self.steps_product(steps).to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def steps_product(self, steps: torch.Tensor) -> torch.Tensor:
        """(rows, in) float32 `steps`, rounded and held within -128 to 127, times the weight."""
        raise NotImplementedError


class FbgemmStatic(_Static, FbgemmLinear):
    """FBGEMM; the operator rounds and clips."""

    def steps_product(self, steps: torch.Tensor) -> torch.Tensor:
        return self.multiplied(steps)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Steps times the weight."""
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            values, 1.0, _ZERO_POINT, self._packed
        )

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """As `FbgemmLinear.exact`; the step stands in the weight's scales."""
        return self.exact_product(x.reshape(-1, self.in_features).float() * self.inverse, 1.0)


class OnednnStatic(_Static, OnednnLinear):
    """oneDNN."""

    def steps_product(self, steps: torch.Tensor) -> torch.Tensor:
        return self.multiplied(steps.round_().add_(_ZERO_POINT).clamp_(0, 255).to(torch.uint8))

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Unsigned bytes around the zero point times the weight."""
        return self.integer_product(values)


class IntMatmulStatic(_Static, IntMatmulLinear):
    """`torch._int_mm`."""

    def steps_product(self, steps: torch.Tensor) -> torch.Tensor:
        values = steps.round_().clamp_(-128, 127).to(torch.int8)
        return self.integer_product(values).float() * self.scale


def static_weight(module: nn.Module) -> torch.Tensor | None:
    """(out, in) float32 weight by which a layer of this module multiplies its inputs, smoothing
    undone; None for other layers. A step of one passes the rounding of inputs unchanged."""
    if not isinstance(module, _Static):
        return None
    steps = torch.eye(module.in_features, device=module.inverse.device)
    return module.steps_product(steps).float().t() * module.inverse


def static_linear(
    linear: nn.Linear, kernel: str, peak: torch.Tensor, alpha: float | None
) -> nn.Module:
    """The replacement of `linear` by `kernel` for inputs whose channels reach `peak`, (in,);
    `linear` itself where the kernel can't multiply its sizes. Without `alpha` nothing is smoothed.
    """
    factors = None if alpha is None else smoothing(peak, linear.weight, alpha)
    smoothed, reach = _smoothed(linear, factors), peak.double()
    reach = float((reach if factors is None else reach / factors).amax())
    # An input that was zero throughout has no range; any scale holds a zero.
    step = (reach or 1.0) / _LEVELS
    new: nn.Module
    if kernel == "int-mm":
        # cuBLASLt's int8 GEMM takes multiples of 8 only (torch._int_mm's own check).
        if linear.weight.is_cuda and (linear.in_features % 8 or linear.out_features % 8):
            return linear
        new = IntMatmulStatic(smoothed, step)
    else:
        layer = FbgemmStatic if kernel.startswith("fbgemm") else OnednnStatic
        new = layer(smoothed, kernel.endswith("paired"), step)
    inverse = torch.tensor(1.0 / step) if factors is None else (1.0 / (factors * step)).float()
    new.register_buffer("inverse", inverse.to(linear.weight.device))
    return new


def _smoothed(linear: nn.Linear, factors: torch.Tensor | None) -> nn.Linear:
    """`linear` with its weight's columns multiplied by `factors`."""
    if factors is None:
        return linear
    weight = (linear.weight.detach().double() * factors).float()
    new = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    new.weight = nn.Parameter(weight, requires_grad=False)
    new.bias = linear.bias
    return new
