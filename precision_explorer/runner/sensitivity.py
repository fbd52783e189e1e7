"""What each linear layer costs and harms in each format, measured on calibration data; and what
whole assignments of formats to layers do there. Runs in a worker; `runner.mix` asks."""

from __future__ import annotations

import importlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import nn

from precision_explorer.errors import InvalidNumerics, TaskError
from precision_explorer.formats.apply import apply_format, compute_dtype
from precision_explorer.formats.partly import held_in, is_held, stored_bytes
from precision_explorer.formats.recipe import packages_of
from precision_explorer.formats.verify import census, layout
from precision_explorer.hardware import DeviceFacts, open_sensor
from precision_explorer.measure import EnergyWindow
from precision_explorer.models.adapter import Adapter, Item, plan_batches
from precision_explorer.models.adapters import make_adapter
from precision_explorer.models.loading import auto_class, load, prepare
from precision_explorer.models.replay import Replay
from precision_explorer.store.atomic import write_json

Progress = Callable[[str, int, int], None]
Json = dict[str, Any]

# Padded tokens of one calibration batch: bounds the scores held, tokens x classes.
_BATCH_TOKENS = 1024
# A state is written at most so often, since it grows with the model.
_STORE_S = 5.0
# The median of so many calls after the first, or of as many as fit in the seconds.
_REPEATS, _CALLS_S = 5, 0.05


class Bench:
    """A loaded model with its calibration passes: what both jobs share."""

    def __init__(self, request: Json) -> None:
        for format_id, recipe in request["formats"].items():
            for package in packages_of(format_id, recipe):
                importlib.import_module(package)
        path, kind = Path(request["path"]), request["card"]["kind"]
        trusted = request["trust_remote_code"]
        self.request, self.device = request, request["device"]
        self.recipes: dict[str, Json] = request["formats"]
        base = request["base_recipe"]
        self.tokenizer = prepare(path, kind, trusted)
        pickled, dtype = request.get("pickled", False), compute_dtype(base)
        self.model = load(path, kind, dtype, self.device, trusted, pickled=pickled)
        apply_format(self.model, request["base"], base, "unverified", "the base of a search")
        self.plan = layout(self.model)
        # Of the layers as they are: a converted one need not say how wide its input is.
        self.inner = {n: self.model.get_submodule(n).in_features for n in self.plan.targets}
        self.adapter = _adapter(self.model, self.tokenizer, request)
        self.items = _taken(self.adapter.items(), request["tokens"])
        plan = plan_batches([len(item.ids) for item in self.items], _BATCH_TOKENS, 1 << 30)
        self.batches = [[self.items[i] for i in batch] for batch in plan]
        passes = [self._pass(batch) for batch in self.batches]
        self.replay = Replay(self.model, passes, self.plan.targets)
        if not all(bool(r.isfinite().all()) for r in self.replay.reference):
            raise InvalidNumerics(
                f"the model in {request['base']} gives NaN or infinity on the calibration data; "
                "choose formats that compute in a wider type, or another model"
            )

    def _pass(self, batch: Sequence[Item]) -> Callable[[], torch.Tensor]:
        return lambda: self.adapter.scores(batch)

    @property
    def tokens(self) -> int:
        """Calibration tokens seen."""
        return sum(len(item.ids) for item in self.items)

    def tokens_of(self, index: int) -> list[int]:
        """The token that came in the text after each row of a language model's pass `index`."""
        return [token for item in self.batches[index] for _, _, token in sorted(item.targets)]

    def kl(self, layers: dict[str, list[str]]) -> float:
        """Mean KL in nats of the model with ``layers[format]`` held in each format."""
        with held_in(self.model, self.plan, layers, self.recipes):
            value = self.replay.kl([name for held in layers.values() for name in held])
        if value != value or value in (float("inf"), float("-inf")):
            raise InvalidNumerics(
                f"{' and '.join(layers)} gave NaN or infinity on the calibration data; leave the "
                "format out of --formats"
            )
        return value


def _adapter(model: nn.Module, tokenizer: Any, request: Json) -> Adapter:
    card = dict(request["card"])
    # Short windows of many texts tell more than one long text of as many tokens.
    card["max_length"] = min(card["max_length"], request["window"])
    labels = {str(e.get("label")): 0 for e in request["examples"]}  # Answers are not scored.
    workload = {"prompt_tokens": 1, "output_tokens": 1}
    asked = request | {"card": card, "label_ids": labels, "workload": workload}
    return make_adapter(model, tokenizer, request["device"], asked)


def _taken(items: Sequence[Item], tokens: int) -> list[Item]:
    """The first row of each text until about `tokens` tokens are reached; the last one is whole."""
    taken: list[Item] = []
    seen: set[int] = set()
    for item in items:
        if item.example in seen or not item.ids:
            continue
        if sum(len(one.ids) for one in taken) >= tokens:
            break
        seen.add(item.example)
        taken.append(item)
    if not taken:
        raise TaskError("the calibration set holds no text of a token; give another one")
    return taken


# -- each layer alone --------------------------------------------------------------------------


def measure_layers(request: Json, progress: Progress) -> tuple[Json, bytes]:
    """The job: {base, tokens, shortcut, formats: {format: {recipe, layers: {name: {bytes, kl_nats,
    held, seconds}}, uniform_kl_nats, power_w}}}.

    It goes on from the file ``request["state"]`` where that was made with the same identity, and
    keeps it up to date, so that an interruption loses seconds.
    """
    with torch.inference_mode():
        bench = Bench(request)
        state = _stored(request)
        keeper = _Keeper(Path(request["state"]), state)
        state["base"] = _base(bench, state.get("base"))
        state |= {"tokens": bench.tokens, "shortcut": bench.replay.shortcut}
        total = len(bench.recipes) * len(bench.plan.targets)
        done = 0
        for format_id, recipe in bench.recipes.items():
            found = state["formats"].setdefault(format_id, {"recipe": recipe, "layers": {}})
            for name in bench.plan.targets:
                if name not in found["layers"]:
                    found["layers"][name] = _alone(bench, format_id, name)
                    keeper.tick()
                done += 1
                progress("layers", done, total)
            if "uniform_kl_nats" not in found:
                _together(bench, format_id, found)
                keeper.tick()
        keeper.write()
    return state, b""


def _stored(request: Json) -> Json:
    """What an earlier run measured under the same identity; formats made otherwise are left out."""
    fresh: Json = {"version": 1, "identity": request["identity"], "formats": {}}
    try:
        state = json.loads(Path(request["state"]).read_text(encoding="utf8"))
        if state["version"] != 1 or state["identity"] != request["identity"]:
            return fresh
        state["formats"] = {
            name: found
            for name, found in state["formats"].items()
            if name not in request["formats"] or found["recipe"] == request["formats"][name]
        }
        return state
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return fresh


class _Keeper:
    """Writes a state to its file now and then."""

    def __init__(self, path: Path, state: Json) -> None:
        self.path, self.state, self._last = path, state, time.monotonic()

    def tick(self) -> None:
        """Write if the last time is some seconds ago."""
        if time.monotonic() - self._last > _STORE_S:
            self.write()

    def write(self) -> None:
        """Write now."""
        write_json(self.path, self.state)
        self._last = time.monotonic()


def _alone(bench: Bench, format_id: str, name: str) -> Json:
    layers = {format_id: [name]}
    with held_in(bench.model, bench.plan, layers, bench.recipes):
        size = stored_bytes(bench.model, name)
        held = is_held(bench.model, name, format_id)
    # What was left as it was loses nothing, and no recipe may name it.
    return {"bytes": size, "kl_nats": bench.kl(layers) if held else 0.0, "held": held}


def _together(bench: Bench, format_id: str, found: Json) -> None:
    """The whole model in the format: its KL, and each layer's seconds in one window of energy."""
    layers = {format_id: list(bench.plan.targets)}
    found["uniform_kl_nats"] = bench.kl(layers)
    with held_in(bench.model, bench.plan, layers, bench.recipes):
        seconds, power = _timed(bench)
    for name, taken in seconds.items():
        found["layers"][name]["seconds"] = taken
    found["power_w"] = power


def _base(bench: Bench, stored: Json | None) -> Json:
    if stored is not None:
        return stored
    seconds, power = _timed(bench)
    layers = {
        name: {
            "elements": bench.plan.elements[name],
            "bytes": stored_bytes(bench.model, name),
            "seconds": seconds[name],
        }
        for name in bench.plan.targets
    }
    return {
        "weight_bytes": census(bench.model).weight_bytes,
        "request_s": _request_s(bench),
        "power_w": power,
        "layers": layers,
    }


# -- time and energy ---------------------------------------------------------------------------


def _sync(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _call_s(call: Callable[[], Any], device: str) -> float:
    """Seconds of a call."""
    times: list[float] = []
    call()
    while len(times) < _REPEATS and sum(times) < _CALLS_S:
        _sync(device)
        start = time.perf_counter()
        call()
        _sync(device)
        times.append(time.perf_counter() - start)
    return median(times)


def _steps(bench: Bench) -> Iterator[tuple[int, int]]:
    """(rows, how often) of a request's forward passes."""
    own = int(median(len(item.ids) for item in bench.items))
    yield bench.request["prompt_tokens"] or own, 1
    if bench.request["decode_steps"]:
        yield 1, bench.request["decode_steps"]


def _timed(bench: Bench) -> tuple[dict[str, float], float | None]:
    """({layer: seconds of one request's share in it}, watts while that was measured).

    The watts are None where the device has no meter, or where its window would have to be longer.
    """
    sensor = open_sensor(DeviceFacts.model_validate(bench.request["facts"]))
    metered = sensor.source.startswith("measured:")
    generator = torch.Generator().manual_seed(0)
    window = EnergyWindow(sensor)
    window.begin()
    began = time.monotonic()
    rounds: list[dict[str, float]] = []
    while not rounds or (metered and time.monotonic() - began < sensor.min_window_s):
        rounds.append({n: _layer_s(bench, n, generator) for n in bench.plan.targets})
    energy = window.end()
    joules = energy["energy_j"] if metered else None
    power = None if joules is None else joules / energy["window_s"]
    return {name: median(r[name] for r in rounds) for name in bench.plan.targets}, power


def _layer_s(bench: Bench, name: str, generator: torch.Generator) -> float:
    module = bench.model.get_submodule(name)
    total = 0.0
    for rows, times in _steps(bench):
        x = torch.randn(rows, bench.inner[name], generator=generator)
        ready = x.to(bench.device, compute_dtype(bench.request["base_recipe"]))
        total += times * _call_s(partial(module, ready), bench.device)
    return total


def _request_s(bench: Bench) -> float:
    """Seconds of one request's forward passes through the model as it is: the prompt's, and as many
    of one token as it generates (which is a decode step without its look back)."""
    total = 0.0
    for rows, times in _steps(bench):
        ids = (bench.items[0].ids * rows)[:rows]  # A text again and again: time sees no words.
        given = torch.tensor([ids], device=bench.device)
        total += times * _call_s(partial(bench.model, input_ids=given), bench.device)
    return total


# -- whole assignments -------------------------------------------------------------------------


def try_assignments(request: Json, progress: Progress) -> tuple[Json, bytes]:
    """The job: {"tried": [{kl_nats, weight_bytes}]} of each of ``request["assignments"]``
    ({format: layers}), on the calibration data."""
    tried = []
    with torch.inference_mode():
        bench = Bench(request)
        assignments = request["assignments"]
        for index, layers in enumerate(assignments):
            progress("recipes", index, len(assignments))
            given = {f: list(held) for f, held in layers.items() if held}
            with held_in(bench.model, bench.plan, given, bench.recipes):
                size = census(bench.model).weight_bytes
            tried.append({"kl_nats": bench.kl(given), "weight_bytes": size})
        progress("recipes", len(assignments), len(assignments))
    return {"tried": tried}, b""


def list_layers(request: Json, progress: Progress) -> tuple[Json, bytes]:
    """The job: the names of the linear layers that a format can convert (``layers``), their weights
    (``layer_elements``) and all of the model's (``elements``, tied ones once), of the model built
    without them; ``linear``: the same layers as [outputs, inputs, how many such]."""
    common = {"local_files_only": True, "trust_remote_code": request["trust_remote_code"]}
    config = transformers.AutoConfig.from_pretrained(request["path"], **common)
    with torch.device("meta"):
        model = auto_class(request["kind"]).from_config(
            config, trust_remote_code=request["trust_remote_code"]
        )
        model.tie_weights()
    found = layout(model)
    shapes = Counter(tuple(model.get_submodule(n).weight.shape) for n in found.targets)
    return {
        "layers": list(found.targets),
        "linear": [[*shape, count] for shape, count in shapes.items()],
        "layer_elements": sum(found.elements[name] for name in found.targets),
        "elements": sum(weight.numel() for weight in model.parameters()),
    }, b""
