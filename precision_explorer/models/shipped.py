"""Checkpoints that come quantized: what their config.json says of the scheme, which library reads
it, and what a device makes of it. No torch here: it is decided before anything is loaded.

Which library a method needs, and on which devices it is loaded, follows transformers 5.24
(`transformers/quantizers/quantizer_*.py`, `validate_environment` of each).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from precision_explorer.errors import ModelError
from precision_explorer.formats import AS_SHIPPED, Support
from precision_explorer.formats.support import promise
from precision_explorer.hardware import NEEDS, DeviceFacts, fp8_native, int8_native

Config = dict[str, Any]
# Methods whose weights transformers widens where it has no kernel for them.
_WIDENED = ("compressed-tensors", "fp8", "mxfp8")
_FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint was quantized, from its config alone.

    `short` names it in a table; `weights` and `activations` are words (activations None: not
    quantized). `arithmetic` is the number type that is multiplied where the device and the library
    have it (as in `FormatSpec`); None where the config does not tell. `ignored` are the modules
    that the config leaves as they were.
    """

    method: str
    short: str
    weights: str
    activations: str | None
    weight_bits: int | None
    arithmetic: str | None
    ignored: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The scheme in one phrase."""
        inputs = "as they come" if self.activations is None else self.activations
        left = f"; as they were: {_few(self.ignored)}" if self.ignored else ""
        return f"{self.method}: weights {self.weights}, activations {inputs}{left}"


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _grouped(config: Config) -> str:
    size = config.get("group_size")
    if size in (None, 0):
        return ""
    return " per channel" if size == -1 else f" in groups of {size}"


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in value) if isinstance(value, (list, tuple)) else ()


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _integer_weights(method: str, config: Config, *marks: str) -> Scheme:
    """GPTQ and its kin: integer weights in groups, widened before each product."""
    bits = _whole(config.get("bits", config.get("w_bit")))
    name = f"int{bits}" if bits else "low-bit integers"
    size = _whole(config.get("group_size"))
    group = f" g{size}" if size and size > 0 else ""
    weights = ", ".join([f"{name}{_grouped(config)}", *filter(None, marks)])
    return Scheme(
        method, f"{method} {name}{group}", weights, None, bits, "compute",
        _names(config.get("modules_to_not_convert")),
    )  # fmt: skip


def _gptq(config: Config) -> Scheme:
    marks = ["symmetric" if config.get("sym", True) else "asymmetric"]
    marks += ["columns in order of activation"] if config.get("desc_act") else []
    return _integer_weights("gptq", config, *marks)


def _awq(config: Config) -> Scheme:
    return _integer_weights("awq", config, "zero points" if config.get("zero_point") else "")


def _auto_round(config: Config) -> Scheme:
    return _integer_weights("auto-round", config, "symmetric" if config.get("sym") else "")


def _bitsandbytes(config: Config) -> Scheme:
    ignored = _names(config.get("llm_int8_skip_modules"))
    if config.get("load_in_8bit"):
        threshold = config.get("llm_int8_threshold", 6.0)
        text = f"int8 (LLM.int8(), outlier threshold {threshold})"
        return Scheme(
            "bitsandbytes", "bitsandbytes int8", text, "int8 and outliers", 8, "int8", ignored
        )
    kind = str(config.get("bnb_4bit_quant_type", "fp4"))
    twice = ", scales quantized again" if config.get("bnb_4bit_use_double_quant") else ""
    text = f"{kind} in blocks of 64{twice}"
    return Scheme("bitsandbytes", f"bitsandbytes {kind}", text, None, 4, "compute", ignored)


def _fp8(config: Config) -> Scheme:
    block = config.get("weight_block_size")
    over = f"in blocks of {'x'.join(map(str, block))}" if block else "per tensor"
    scales = "at run time" if config.get("activation_scheme", "dynamic") == "dynamic" else "fixed"
    return Scheme(
        "fp8", "fp8 e4m3", f"e4m3 {over}", f"e4m3, scales {scales}", 8, "float8_e4m3fn",
        _names(config.get("modules_to_not_convert")),
    )  # fmt: skip


def _tensor_args(found: Config) -> tuple[str, int | None]:
    """compressed-tensors' QuantizationArgs in words, and their bits."""
    bits = _whole(found.get("num_bits"))
    kind = {"int": "int", "float": "fp"}.get(str(found.get("type", "int")), "")
    strategy = found.get("strategy")
    size = found.get("group_size")
    over = f"in groups of {size}" if strategy == "group" and size else f"per {strategy or 'tensor'}"
    return f"{kind}{bits} {over}", bits


def _compressed_tensors(config: Config) -> Scheme:
    groups = [g for g in (config.get("config_groups") or {}).values() if isinstance(g, dict)]
    weights, inputs, bits = [], [], []
    for group in groups:
        if isinstance(group.get("weights"), dict):
            text, found = _tensor_args(group["weights"])
            weights.append(text)
            bits.append(found)
        if isinstance(group.get("input_activations"), dict):
            text, _ = _tensor_args(group["input_activations"])
            dynamic = group["input_activations"].get("dynamic")
            inputs.append(f"{text}, scales {'at run time' if dynamic else 'fixed'}")
    known = [b for b in bits if b]
    text = " or ".join(dict.fromkeys(weights)) or "as they were"
    return Scheme(
        "compressed-tensors",
        f"compressed-tensors {config.get('format', 'dense')}",
        f"{text} ({config.get('format', 'dense')})",
        " or ".join(dict.fromkeys(inputs)) or None,
        min(known) if known else None,
        "compute",
        _names(config.get("ignore")),
    )


def _torchao(config: Config) -> Scheme:
    kind = config.get("quant_type")
    entry = kind.get("default") if isinstance(kind, dict) else kind
    name = str(entry.get("_type") if isinstance(entry, dict) else entry)
    plain = name.lower().replace("_", "").removesuffix("config")
    width = re.search(r"(int|float|uint)(\d)weight", plain)
    bits = int(width.group(2)) if width else None
    arithmetic = None
    if "dynamicactivation" in plain and width:
        eight = {"int8": "int8", "float8": "float8_e4m3fn"}
        arithmetic = eight.get(plain.partition("dynamicactivation")[0])
    elif "weightonly" in plain:
        arithmetic = "compute"
    inputs = "8 bits, scales at run time" if "dynamicactivation" in plain else None
    return Scheme(
        "torchao", f"torchao {name}", f"as {name} says", inputs, bits, arithmetic,
        _names(config.get("modules_to_not_convert")),
    )  # fmt: skip


_READERS: dict[str, Callable[[Config], Scheme]] = {
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "torchao": _torchao,
}


@dataclass(frozen=True)
class _Loader:
    """What transformers needs to load a method: (distribution, least version, import name) of each
    package, and whether it does so on a GPU only. `for_fp8` are needed where the device has fp8
    units, else the weights are widened. `refuses`: why it never loads the method."""

    packages: tuple[tuple[str, str | None, str], ...] = ()
    for_fp8: tuple[tuple[str, str | None, str], ...] = ()
    gpu_only: bool = False
    refuses: str | None = None

    def needed(self, facts: DeviceFacts) -> tuple[tuple[str, str | None, str], ...]:
        """The packages that loading takes on the device of `facts`."""
        return self.packages + (self.for_fp8 if fp8_native(facts)[0] else ())


_KERNELS = ("kernels", "0.18.2", "kernels")
LOADERS: dict[str, _Loader] = {
    "gptq": _Loader((("optimum", "1.24", "optimum"), ("gptqmodel", "1.4.3", "gptqmodel"))),
    "awq": _Loader((("gptqmodel", None, "gptqmodel"),)),
    "auto-round": _Loader((("auto-round", "0.5", "auto_round"),)),
    "bitsandbytes": _Loader((("bitsandbytes", "0.46.1", "bitsandbytes"),)),
    "compressed-tensors": _Loader((("compressed-tensors", "0.15", "compressed_tensors"),)),
    "torchao": _Loader((("torchao", "0.15", "torchao"),)),
    "fp8": _Loader(for_fp8=(_KERNELS,)),
    "mxfp8": _Loader(for_fp8=(_KERNELS,)),
    "mxfp4": _Loader(),
    "aqlm": _Loader((("aqlm", None, "aqlm"),)),
    "bitnet": _Loader(),
    "eetq": _Loader((_KERNELS,), gpu_only=True),
    "fbgemm_fp8": _Loader((("fbgemm-gpu", None, "fbgemm_gpu"),), gpu_only=True),
    "fouroversix": _Loader((("fouroversix", None, "fouroversix"),)),
    "fp_quant": _Loader((("fp_quant", None, "fp_quant"),), gpu_only=True),
    "higgs": _Loader(
        (
            ("flute-kernel", "0.3", "flute"),
            ("fast_hadamard_transform", None, "fast_hadamard_transform"),
        ),
        gpu_only=True,
    ),
    "hqq": _Loader((("hqq", "0.2.1", "hqq"),)),
    "quanto": _Loader((("optimum-quanto", None, "optimum.quanto"),)),
    "quark": _Loader((("amd-quark", None, "quark"),)),
    "sinq": _Loader((("sinq", None, "sinq"),)),
    "spqr": _Loader((("spqr_quant", None, "spqr_quant"),), gpu_only=True),
    "vptq": _Loader((("vptq", "0.0.4", "vptq"),), gpu_only=True),
    "gemma": _Loader(),
    "gguf": _Loader(refuses="a GGUF file is converted first"),
    "metal": _Loader(refuses="it runs on Apple's GPUs only"),
    "nvfp4": _Loader(refuses="transformers does not load checkpoints stored so"),
}
"""{quant_method: what loads it}; bitsandbytes' two widths are one method here."""


def scheme_of(name: str, config: Config) -> Scheme | None:
    """The scheme in a model's config; None for a model that is not quantized.

    Raises ModelError where the config names no method, or one that transformers does not read.
    """
    found = config.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, dict):
        raise ModelError(f"quantization_config in {name}'s config.json is no object; get it again")
    eight_or_four = found.get("load_in_8bit") or found.get("load_in_4bit")
    method = str(found.get("quant_method") or ("bitsandbytes" if eight_or_four else ""))
    if method not in LOADERS:
        called = f"by '{method}'" if method else "by a method that its config.json does not name"
        raise ModelError(
            f"{name} is quantized {called}, which transformers does not read; give the model that "
            "it was made from"
        )
    reader = _READERS.get(method)
    try:
        if reader is not None:
            return reader(found)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(
            f"the quantization_config in {name}'s config.json is not as {method} writes it; get "
            "the model again"
        ) from error
    bits = _whole(found.get("bits", found.get("num_bits")))
    weights = f"{bits} bits" if bits else "as its library says"
    ignored = _names(found.get("modules_to_not_convert"))
    return Scheme(method, method, weights, None, bits, None, ignored)


def check_library(
    name: str, scheme: Scheme, facts: DeviceFacts, trust_remote_code: bool = False
) -> None:
    """ModelError, with the line that installs it, where a package is missing that reads `scheme` on
    the device of `facts`; also where its kernel is code of the hub and that is not trusted. Nothing
    is imported."""
    packages = LOADERS[scheme.method].needed(facts)
    if _KERNELS in packages and not trust_remote_code:
        raise ModelError(
            f"{name} is quantized ({scheme.words}) and runs here by a kernel of the hub, which is "
            "code of others; give --trust-remote-code to allow that, or the model it was made from"
        )
    if all(_there(*package) for package in packages):
        return
    wanted = [d if least is None else f"'{d}>={least}'" for d, least, _ in packages]
    raise ModelError(
        f"{name} is quantized ({scheme.words}) and the library that reads it is missing; "
        f"pip install {' '.join(wanted)}"
    )


def _there(distribution: str, least: str | None, module: str) -> bool:
    try:
        if find_spec(module) is None:
            return False
        return least is None or _version(version(distribution)) >= _version(least)
    except (ImportError, ValueError, PackageNotFoundError):
        return False


def _version(text: str) -> tuple[int, ...]:
    parts = [re.match(r"\d+", part) for part in text.split(".")[:3]]
    return tuple(int(part.group()) for part in parts if part)


def _execution(scheme: Scheme, facts: DeviceFacts) -> tuple[str, str, str | None]:
    """(execution, reason, remedy) of a scheme on a device. What the config does not tell, or what
    only the loaded library shows, is ``unverified``."""
    if scheme.method == "bitsandbytes" and scheme.arithmetic == "int8":
        found = promise("int8-llm", facts)
        return found.execution, found.reason, found.remedy
    if scheme.method == "compressed-tensors":
        return "emulated", "transformers widens the weights when they are first used", None
    if scheme.method in ("fp8", "mxfp8"):
        native, reason = fp8_native(facts)
        if not native:
            text = f"transformers widens the weights while it loads them, as {reason}"
            return "emulated", text, NEEDS["float8_e4m3fn"]
        return "unverified", f"{reason}; transformers gets their kernel from the hub", None
    if scheme.arithmetic == "compute":
        return "dequantized", "the weights are widened before each product", None
    if scheme.arithmetic == "int8":
        native, reason = int8_native(facts)
        return ("native", reason, None) if native else ("emulated", reason, NEEDS["int8"])
    if scheme.arithmetic == "float8_e4m3fn":
        native, reason = fp8_native(facts)
        return ("native" if native else "unsupported"), reason, NEEDS["float8_e4m3fn"]
    return "unverified", "what its library computes in is not known here", None


def _compute_dtype(scheme: Scheme, config: Config, facts: DeviceFacts) -> str:
    """The type of everything that is not quantized: the checkpoint's own; on a CPU float32 as for
    all quantized formats there, but for torchao, whose stored tensors keep their type."""
    own = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    if facts.kind == "cpu" and scheme.method != "torchao":
        return "float32"
    return own if own in _FLOATS else "float32" if facts.kind == "cpu" else "bfloat16"


def shipped_support(scheme: Scheme, config: Config, facts: DeviceFacts) -> Support:
    """What the device of `facts` makes of a checkpoint as it comes."""
    loader = LOADERS[scheme.method]
    refused = loader.refuses
    if refused is None and loader.gpu_only and facts.kind == "cpu":
        refused = "transformers loads it on a GPU only"
    if refused is not None:
        text = f"{scheme.words}; {refused}"
        return Support(AS_SHIPPED, "unsupported", text, remedy="give the model it was made from")
    execution, reason, remedy = _execution(scheme, facts)
    needed = loader.needed(facts)
    requires = [distribution for distribution, _, _ in needed]
    recipe = {
        "kernel": scheme.short,
        "library": requires[-1] if requires else "transformers",
        "compute_dtype": _compute_dtype(scheme, config, facts),
        "scheme": scheme.words,
        "arithmetic": scheme.arithmetic,
        "weight_bits": scheme.weight_bits,
        "widened": execution == "emulated" and scheme.method in _WIDENED,
        "ignored": list(scheme.ignored),
        "requires": requires,
        "packages": [module for _, _, module in needed],
    }
    return Support(AS_SHIPPED, execution, f"{scheme.words}; {reason}", recipe, remedy)


def not_shipped(scheme: Scheme | None, format_id: str) -> Support | None:
    """Why `format_id` can't be had of a model with `scheme`; None where it can."""
    if scheme is None and format_id == AS_SHIPPED:
        text = "the model does not come quantized; run it in a format, such as fp32 or bf16"
        return Support(format_id, "unsupported", text)
    if scheme is not None and format_id != AS_SHIPPED:
        text = (
            f"the model comes quantized by {scheme.method} and runs as {AS_SHIPPED} only; give the "
            "model that it was made from"
        )
        return Support(format_id, "unsupported", text)
    return None
