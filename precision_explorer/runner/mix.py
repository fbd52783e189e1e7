"""From options to a mixed-precision recipe: measure each layer, search, try it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.formats import Support
from precision_explorer.formats.catalog import CATALOG
from precision_explorer.formats.recipe import (
    BASES,
    Recipe,
    label_of,
    layer_formats,
    not_for_layers,
    write_recipe,
)
from precision_explorer.hardware import (
    DeviceFacts,
    check_floors,
    device_facts,
    library_versions,
    open_sensor,
    resolve_device,
)
from precision_explorer.models import (
    ModelRef,
    check_head,
    check_inputs,
    refuse_synthetic,
    resolve,
)
from precision_explorer.models.heads import HEADS
from precision_explorer.paths import expand_user
from precision_explorer.runner.budget import Budget, costs, parse_budget, reference_of
from precision_explorer.runner.jobs import run_job
from precision_explorer.runner.manager import Event, OnEvent, prepare_environment
from precision_explorer.runner.probe import probe
from precision_explorer.runner.sweep import default_task
from precision_explorer.search import Assignment, Infeasible, Option, assign
from precision_explorer.tasks import (
    KINDS,
    Calibration,
    LoadedCard,
    load_calibration,
    load_card,
)
from precision_explorer.workload import Workload

# A model without weights is built in a second or two.
_NAMES_LIMIT_S = 300.0
# Bytes per weight of the base formats' types, and at least of the formats that layers are held in.
_WIDE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_NARROW_BYTES = {
    "int8": 1.0, "float8_e4m3fn": 1.0, "mxfp8": 1.0, "int4": 0.5, "nf4": 0.5, "nvfp4": 0.5,
}  # fmt: skip
# Scales and buffers are not counted yet: what is nearer than this is left to the exact count.
_ROUGH = 0.99
# A job may take long: one that is interrupted loses nothing.
_TIME_LIMIT_S = 86_400.0
# Environment and libraries whose change makes an earlier sensitivity another one.
_STACK = ("torch", "transformers", "torchao", "bitsandbytes")

Json = dict[str, Any]


@dataclass(frozen=True)
class MixOptions:
    """What `precision-explorer mix` was asked for; `budget` is (kind, text) as written."""

    model: str
    task: str | None
    formats: tuple[str, ...]
    budget: tuple[str, str]
    out: str
    device: str = "auto"
    tokens: int = 512
    seed: int = 0
    threads: int | None = None
    calibration: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True)
class _Setting:
    """Everything resolved; nothing measured yet."""

    options: MixOptions
    ref: ModelRef
    card: LoadedCard
    calibration: Calibration
    facts: DeviceFacts
    supports: dict[str, Support]
    base: str
    budget: Budget
    threads: int

    @property
    def quantized(self) -> list[str]:
        """The formats that layers are tried in."""
        return [name for name in self.options.formats if name not in BASES]


@dataclass(frozen=True)
class Layer:
    """One layer of the ranking: `kl_nats`, `bytes` and `seconds` by format, `bytes` and `seconds`
    of the base too."""

    name: str
    kl_nats: dict[str, float]
    bytes: dict[str, int]
    seconds: dict[str, float]
    chosen: str


@dataclass(frozen=True)
class Uniform:
    """The whole model in one format, on the calibration data."""

    format: str
    weight_bytes: int
    kl_nats: float


@dataclass(frozen=True)
class Found:
    """A recipe with what it was chosen from; `path` is where it lies."""

    recipe: Recipe
    path: Path
    label: str
    layers: list[Layer]
    """Most harmful first, by the least precise format."""
    uniform: list[Uniform]
    tokens: int


def find_recipe(options: MixOptions, on_event: OnEvent) -> Found:
    """Measure, search, try, and write the recipe to ``options.out``.

    Raises UsageError, ModelError or TaskError in one line for what can't be asked, and where no
    assignment keeps the budget; JobFailed where the worker failed.
    """
    path = expand_user(options.out)
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder; give --out a file in one that exists")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; give a file, such as {path / 'recipe.yaml'}")
    setting = _resolve(options, on_event)
    request = _request(setting, path)
    _refuse_impossible(setting, on_event)
    state, _ = run_job("layers", request, setting.threads, on_event, _TIME_LIMIT_S)
    items, rest = costs(setting.budget.kind, setting.base, setting.options.formats, state)
    limit = setting.budget.of(reference_of(setting.budget.kind, state["base"]))
    best = _search(items, limit, rest, setting.budget)
    layers = _grouped(best)
    tried = _try(setting, request, layers, on_event)
    recipe = _recipe(setting, state, best, layers, tried)
    write_recipe(path, recipe)
    text = f"what was measured of each layer is kept in {request['state']} for the next search"
    on_event(Event("note", {"text": text}))
    return Found(
        recipe, path, label_of(path), _ranking(setting, state, best), _uniform(setting, state),
        state["tokens"],
    )  # fmt: skip


def _refuse_impossible(setting: _Setting, on_event: OnEvent) -> None:
    """UsageError for a budget of bytes below what any assignment takes, before hours of measuring:
    every layer in the narrowest of the formats, scales and offsets not counted."""
    if setting.budget.kind != "bytes":
        return
    request = {
        "device": setting.facts.device,
        "path": str(setting.ref.path),
        "kind": setting.card.card.kind,
        "trust_remote_code": setting.options.trust_remote_code,
    }
    found, _ = run_job("layer-names", request, setting.threads, on_event, _NAMES_LIMIT_S)
    wide = _WIDE_BYTES[BASES[setting.base]]
    narrow = min(_NARROW_BYTES.get(CATALOG[f].storage or "", wide) for f in setting.options.formats)
    layers, rest = found["layer_elements"], found["elements"] - found["layer_elements"]
    least = rest * wide + layers * narrow
    # The share is of the exact bytes, buffers included, which only loading tells.
    if setting.budget.of(found["elements"] * wide) < least * _ROUGH:
        raise UsageError(setting.budget.missed(least, at_least=True))


def _resolve(options: MixOptions, on_event: OnEvent) -> _Setting:
    # Before data is read and anything fetched.
    check_floors()
    device = resolve_device(options.device)
    formats = _known_formats(options.formats)
    budget = parse_budget(*options.budget)
    card = load_card(options.task) if options.task else None
    refuse_synthetic([options.model], "mix looks for what a model loses least by")
    ref = resolve(
        options.model, options.revision, options.trust_remote_code, 0, options.allow_pickle
    )
    check_inputs(ref)
    card = card or load_card(default_task([ref]))
    check_head(ref, card.card.kind)
    if HEADS[KINDS[card.card.kind].head].embeds:
        raise UsageError(
            f"mix tells harm by how a model's distribution moves, and {card.card.kind} has none; "
            "choose another task, or sweep the formats one by one"
        )
    file = expand_user(options.calibration) if options.calibration else None
    calibration = load_calibration(card, options.seed, file)
    facts = device_facts(device)
    if budget.kind == "energy":
        _check_meter(facts)
    threads = options.threads or facts.cores
    prepare_environment(threads, options.trust_remote_code)
    wanted = list(dict.fromkeys([*formats, *BASES]))
    supports = probe(facts, wanted, library_versions(), threads, on_event)
    base = _base(formats, supports)
    return _Setting(
        options, ref, card, calibration, facts, supports, base, budget, threads
    )  # fmt: skip


def _known_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    known = (*layer_formats(), *BASES)
    for name in names:
        if name not in known:
            raise UsageError(not_for_layers(name, known))
    if len([n for n in names if n not in BASES]) == 0 or len(set(names)) < 2:
        raise UsageError(
            "a mixture needs two formats at least, one of them quantized; give --formats such as "
            "int8-weight-only,nf4"
        )
    return tuple(dict.fromkeys(names))


def _base(formats: tuple[str, ...], supports: dict[str, Support]) -> str:
    """The format that the rest of the model stays in: the one of the type that all compute in."""
    types = {}
    for name in formats:
        if not supports[name].supported:
            raise UsageError(f"{name} is unsupported here: {supports[name].reason}; leave it out")
        types[name] = supports[name].recipe["compute_dtype"]
    if len(set(types.values())) > 1:
        found = ", ".join(f"{name} in {dtype}" for name, dtype in types.items())
        raise UsageError(f"the formats compute in different types here ({found}); leave some out")
    base = next(b for b, dtype in BASES.items() if dtype in types.values())
    if not supports[base].supported:
        raise UsageError(f"{base}, in which the rest would stay, is unsupported here")
    return base


def _check_meter(facts: DeviceFacts) -> None:
    """An estimate is CPU time by a constant: a budget of it would be one of latency in disguise."""
    sensor = open_sensor(facts)
    if not sensor.source.startswith("measured:"):
        raise UsageError(
            f"no energy meter can be read on {facts.device} ({sensor.source}); an energy budget "
            "would be a time budget times a constant: use --budget-latency"
        )


def window_tokens(tokens: int) -> int:
    """How much of one calibration text is looked at: at least eight texts are, if there are."""
    return min(256, max(32, tokens // 8))


def _request(setting: _Setting, out: Path) -> Json:
    options, card = setting.options, setting.card.card
    formats = {name: setting.supports[name].recipe for name in setting.quantized}
    workload = Workload()
    generates = KINDS[card.kind].generates
    versions = library_versions()
    return {
        "device": setting.facts.device,
        "facts": setting.facts.model_dump(mode="json"),
        "path": str(setting.ref.path),
        "trust_remote_code": options.trust_remote_code,
        "pickled": setting.ref.pickled,
        "card": card.asked(),
        "examples": setting.calibration.examples,
        "tokens": options.tokens,
        "window": window_tokens(options.tokens),
        "base": setting.base,
        "base_recipe": setting.supports[setting.base].recipe,
        "formats": formats,
        "prompt_tokens": workload.prompt_tokens if generates else None,
        "decode_steps": workload.output_tokens - 1 if generates else 0,
        "state": str(out.with_name(f"{out.stem}.layers.json").absolute()),
        "identity": {
            "model": setting.ref.identity.revision,
            "calibration": setting.calibration.hash,
            "card": card.kind,
            "max_length": card.max_length,
            "tokens": options.tokens,
            "base": setting.base,
            "device": setting.facts.name,
            "threads": setting.threads,
            "libraries": {n: versions[n] for n in _STACK if n in versions},
        },
    }


def _search(
    items: dict[str, dict[str, Option]], limit: float, rest: float, budget: Budget
) -> Assignment:
    try:
        return assign(items, limit - rest)
    except Infeasible as error:
        raise UsageError(budget.missed(error.least + rest)) from error


def _grouped(best: Assignment) -> dict[str, list[str]]:
    layers: dict[str, list[str]] = {}
    for name, format_id in best.chosen.items():
        layers.setdefault(format_id, []).append(name)
    return {name: layers[name] for name in sorted(layers)}


def _try(setting: _Setting, request: Json, layers: dict[str, list[str]], on_event: OnEvent) -> Json:
    held = {name: names for name, names in layers.items() if name not in BASES}
    answer, _ = run_job(
        "recipes", request | {"assignments": [held]}, setting.threads, on_event, _TIME_LIMIT_S
    )
    return answer["tried"][0]


def _recipe(
    setting: _Setting, state: Json, best: Assignment, layers: dict[str, list[str]], tried: Json
) -> Recipe:
    held = {name: names for name, names in layers.items() if name not in BASES}
    if not held:
        raise UsageError(
            f"the budget is kept with every layer in {setting.base}, so there is nothing to mix; "
            "lower it, or run the base format"
        )
    return Recipe(
        model=setting.ref.name,
        model_revision=setting.ref.identity.revision,
        base=setting.base,
        layers=held,
        budget=setting.budget.document(state["base"]),
        calibration={
            "task": setting.card.card.name,
            "hash": setting.calibration.hash,
            "tokens": state["tokens"],
        },
        predicted_kl_nats=best.harm,
        verified_kl_nats=tried["kl_nats"],
        weight_bytes=tried["weight_bytes"],
    )


def _uniform(setting: _Setting, state: Json) -> list[Uniform]:
    base = state["base"]
    layers = base["layers"]
    rows = [Uniform(setting.base, base["weight_bytes"], 0.0)]
    for name in setting.quantized:
        found = state["formats"][name]
        size = base["weight_bytes"] + sum(
            found["layers"][layer]["bytes"] - layers[layer]["bytes"] for layer in layers
        )
        rows.append(Uniform(name, size, found["uniform_kl_nats"]))
    return rows


def _ranking(setting: _Setting, state: Json, best: Assignment) -> list[Layer]:
    def of(name: str, key: str) -> dict[str, Any]:
        found = {f: state["formats"][f]["layers"][name][key] for f in setting.quantized}
        own = state["base"]["layers"][name].get(key)
        return found if own is None else {setting.base: own} | found

    rows = [
        Layer(name, of(name, "kl_nats"), of(name, "bytes"), of(name, "seconds"), chosen)
        for name, chosen in best.chosen.items()
    ]
    return sorted(rows, key=lambda row: -max(row.kl_nats.values()))


__all__ = ["Found", "Layer", "MixOptions", "Uniform", "find_recipe"]
