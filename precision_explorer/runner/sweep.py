"""One sweep from its options to its files; what `cli` calls. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from precision_explorer.endpoint import ENDPOINT
from precision_explorer.errors import UsageError
from precision_explorer.formats import AS_SHIPPED, Support
from precision_explorer.formats.catalog import CATALOG, spec_of
from precision_explorer.formats.recipe import row_id
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.hardware import (
    DeviceFacts,
    check_floors,
    device_facts,
    library_versions,
    resolve_device,
    with_those_beside,
)
from precision_explorer.models import (
    ModelRef,
    check_inputs,
    has_head,
    refuse_synthetic,
    resolve,
)
from precision_explorer.models.shipped import check_library
from precision_explorer.paths import expand_user
from precision_explorer.plan import Plan, SweepSpec, expand
from precision_explorer.plan.endpoints import check_asked, endpoint_cells, served_ref
from precision_explorer.plan.expand import reference_of
from precision_explorer.plan.placing import (
    Blocks,
    blocks_key,
    is_asked_for,
    is_over,
    may_spread,
    need_of,
)
from precision_explorer.plan.spec import OF_PLACES, READER_FIELDS
from precision_explorer.records import Environment, Roof, metric_info
from precision_explorer.runner.background import prepare_background
from precision_explorer.runner.batch_budget import Budgets, batch_budgets
from precision_explorer.runner.environment import make_environment
from precision_explorer.runner.estimates import estimated
from precision_explorer.runner.local import Executor, Tally
from precision_explorer.runner.lots import lots, start_anew
from precision_explorer.runner.manager import Event, OnEvent, prepare_environment
from precision_explorer.runner.mix_tasks import mixed_examples, with_tasks
from precision_explorer.runner.mixed import (
    check_against,
    check_revisions,
    formats_in,
    read_recipes,
    with_mixed,
)
from precision_explorer.runner.offered import Load, check_served, draws_input, trace_path
from precision_explorer.runner.places import ALL, Told
from precision_explorer.runner.probe import probe, probe_compiled
from precision_explorer.runner.roof import device_roof, roof_key
from precision_explorer.runner.scoring import cells_to_score, score_cells
from precision_explorer.runner.servers import ask_servers, client_environment
from precision_explorer.runner.shapes import blocks_of, counted, tensors_of
from precision_explorer.runner.sources import open_pool
from precision_explorer.runner.spread import Pool, Spread, asked_of
from precision_explorer.store import RunFolder
from precision_explorer.store.shape import planned_ids
from precision_explorer.tasks import (
    HarnessCard,
    NoCalibration,
    PreparedTask,
    check_allowed,
    is_harness,
    load_calibration,
    load_card,
    prepare,
    prepare_harness,
)
from precision_explorer.units import seconds
from precision_explorer.workload import Workload, changed, load_workload, repeats_s


@dataclass(frozen=True)
class Prepared:
    """Everything resolved and validated; nothing measured yet."""

    spec: SweepSpec
    refs: list[ModelRef]
    tasks: list[PreparedTask]
    workload: Workload
    facts: DeviceFacts
    supports: dict[str, Support]
    environment: Environment
    plan: Plan
    budgets: Budgets
    """Padded tokens of a batch, by `plan.batches.budget_key`."""
    load: Load = field(default_factory=Load)
    background: tuple[dict[str, Any], ...] = ()
    """What the processes of the workload's background are asked to become."""
    pool: Pool | None = None
    """The places that measure; None where this process's own workers do."""

    def close(self) -> None:
        """End the places, if there are any. `run_sweep` does it too."""
        if self.pool is not None:
            self.pool.close()


def default_task(refs: list[ModelRef]) -> str:
    """The task of a sweep that names none: the first bundled one that fits the models' heads.

    Raises UsageError where no one task fits all of them.
    """
    for name, kind in (
        ("sentiment", "text-classification"),
        ("sentiment-choice", "multiple-choice"),
        ("digits", "image-classification"),
        ("news-similarity", "similarity"),
    ):
        if all(has_head(ref, kind) for ref in refs):
            return name
    raise UsageError("no bundled task fits all models; name one by --task")


def prepare_sweep(
    spec: SweepSpec, on_event: OnEvent, compiling: bool = True, batches: bool = True
) -> Prepared:
    """Resolve and check all inputs, ask the device what it can do, and plan.

    Fetches what must be fetched. Without `compiling` nothing is compiled: kernels that a runtime
    would choose are those of earlier answers, and a note says which are not known; the same holds
    for the size of batches. Without `batches` that is left alone, for work that has none. Raises
    UsageError, ModelError, TaskError; writes no result. Where other places are to measure, the
    first of them is asked; whoever does not run the sweep then ends them (`Prepared.close`).
    """
    check_floors()
    pool = open_pool(spec, on_event)
    try:
        with asked_of(pool, spec) as told:
            prepared = _prepared(spec, on_event, compiling, batches, told)
    except BaseException:
        if pool is not None:
            pool.close()
        raise
    return replace(prepared, pool=pool)


def _prepared(
    spec: SweepSpec, on_event: OnEvent, compiling: bool, batches: bool, told: Told | None
) -> Prepared:
    """`prepare_sweep` with the device that is asked now: `told` of another place, or this
    machine's."""
    if told is not None:
        facts = told.facts
    else:
        facts = with_those_beside(device_facts(resolve_device(spec.device)))
    workload, others = with_tasks(
        workload_of(spec), spec, lambda name: prepare(load_card(name), spec.limit, spec.seed)
    )
    recipes = read_recipes(spec.formats)
    # Cards that are named are read before models, which may have to be fetched.
    tasks = [task for name in spec.task for task in _prepare_tasks(spec, name, on_event)]
    check_allowed((m for task in tasks for m in task.external), spec.allow_metric)
    if spec.endpoints:
        refuse_synthetic(spec.model, "an endpoint's server has its own")
    local = spec.model if spec.local_runtimes else ()
    trusted, allow_pickle = spec.trust_remote_code, spec.allow_pickle
    refs = [resolve(m, spec.revision, trusted, spec.seed, allow_pickle) for m in local]
    for ref in refs:
        check_inputs(ref)
        if ref.scheme is not None:
            check_library(ref.name, ref.scheme, facts, spec.trust_remote_code)
    check_revisions(recipes, refs)
    tasks = tasks or [_prepare_task(spec, default_task(refs))]
    load = Load(trace_path(workload), mixed_examples(others, tasks))
    if spec.endpoints:
        check_asked(tasks, workload)
    check_served(workload, tasks, spec.local_runtimes, spec.seed, load.mixed)
    threads = spec.threads or facts.cores
    workload, background = prepare_background(workload, spec, facts, threads)
    # Of where the cells run: they are part of what a cell is.
    versions = library_versions() if told is None else told.versions
    # A first expansion with nothing known of the formats checks heads and labels before the probe,
    # which takes seconds when it is not cached.
    blank = {f: Support(f, "unsupported", "not probed yet") for f in spec.formats}
    expand(spec, refs, tasks, workload, facts, blank, versions, threads)
    prepare_environment(threads, spec.trust_remote_code)
    _note_shipped(refs, on_event)
    refs = counted(refs, tasks[0].card.kind, facts, threads, spec.trust_remote_code, on_event)
    supports: dict[str, Support] = {}
    compiled: dict[str, dict[str, Support]] = {}
    plain = [ref for ref in refs if ref.scheme is None]
    if plain:
        tried = formats_in(spec.formats, recipes)
        supports = probe(facts, tried, versions, threads, on_event)
        kind = tasks[0].card.kind
        check_against(recipes, plain, kind, facts, threads, trusted, on_event)
        for runtime in spec.local_runtimes:
            found = probe_compiled(facts, tried, versions, threads, on_event, runtime, compiling)
            compiled[runtime] = found | with_mixed(recipes, supports | found)
        supports = with_mixed(recipes, supports)
    blocks = _blocks(spec, refs, tasks, workload, facts, supports, threads, on_event)
    inputs = (spec, refs, tasks, workload, facts, supports, versions, threads, compiled)
    budgets: Budgets = {}
    if batches:
        stored = _stored_budgets(_folder(spec, refs, tasks, facts))
        first = expand(*inputs, blocks=blocks)
        budgets = batch_budgets(
            spec, first, facts, versions, threads, stored, on_event, ask=compiling
        )
    plan = expand(*inputs, budgets, blocks)
    _note_alike(refs, plan, on_event)
    if told is None:
        environment = make_environment(facts, threads, versions)
    else:
        environment = told.environment.model_copy(update={"threads": threads, "placement": None})
    named = refs or [served_ref(name) for name in spec.model]
    servers = ask_servers(spec, on_event, _folder(spec, named, tasks, facts))
    if servers:
        known = versions | library_versions(("aiohttp",))
        cells = endpoint_cells(spec, servers, tasks, workload, known, draws_input(workload))
        plan = Plan((*plan.cells, *cells))
    if not refs:
        refs, environment = [ref for ref, _ in servers], client_environment(environment)
    return Prepared(
        spec, refs, tasks, workload, facts, supports, environment, plan, budgets, load, background
    )


def _blocks(
    spec: SweepSpec,
    refs: list[ModelRef],
    tasks: list[PreparedTask],
    workload: Workload,
    facts: DeviceFacts,
    supports: dict[str, Support],
    threads: int,
    on_event: OnEvent,
) -> Blocks:
    """Of the models that one device does not hold in some format, or that are split whatever it
    holds, and that may have more of them: what may be put on several."""
    found: dict[tuple[str, str], Any] = {}
    if may_spread(spec, facts) < 2 or all(RUNTIMES[r].compiles for r in spec.local_runtimes):
        return found
    for ref in (ref for ref in refs if ref.scheme is None):
        for task in tasks:
            kind = task.card.kind
            needs = (need_of(ref, task, workload, spec, s, facts) for s in supports.values())
            if blocks_key(ref, kind) in found:
                continue
            if is_asked_for(spec) or any(is_over(need, facts) for need in needs):
                ask = tensors_of if spec.split == "tensors" else blocks_of
                made = ask(ref, kind, facts, threads, spec.trust_remote_code, on_event)
                found[blocks_key(ref, kind)] = made
    return found


def _stored_budgets(folder: RunFolder) -> Budgets:
    found = (folder.read_sweep_or_none() or {}).get("batch_tokens")
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, int) and v > 0}


def workload_of(spec: SweepSpec) -> Workload:
    """The workload that `spec` names, as its other options change it."""
    named = load_workload(spec.workload)
    workload = changed(named, spec.tails, spec.duration, spec.background, spec.search)
    again_s = repeats_s(workload, spec.duration) if spec.duration else 0.0
    if spec.duration and again_s and spec.duration + again_s >= spec.cell_timeout:
        raise UsageError(
            f"--duration {seconds(spec.duration)} takes up to {seconds(spec.duration + again_s)}, "
            "as disturbed windows are measured again, which leaves no time within the "
            f"--cell-timeout of {seconds(spec.cell_timeout)}; raise that"
        )
    return workload


def _prepare_tasks(spec: SweepSpec, name: str, on_event: OnEvent) -> list[PreparedTask]:
    """The tasks that `name` stands for: one, or the members of a group of lm-evaluation-harness."""
    if not is_harness(name):
        return [_prepare_task(spec, name)]
    if spec.calibration is not None:
        raise UsageError(f"--calibration: {name} takes no calibration texts; leave one of them out")
    on_event(Event("note", {"text": f"asking lm-evaluation-harness for {name}"}))
    tasks = prepare_harness(name, spec.limit, spec.seed, spec.trust_remote_code)
    compiles = [runtime for runtime in spec.local_runtimes if RUNTIMES[runtime].compiles]
    for task in tasks:
        if compiles and isinstance(task.card, HarnessCard) and task.card.decodes:
            raise UsageError(
                f"{task.card.name} generates answers by transformers' own loop, which runs under "
                "--runtime eager only"
            )
    return tasks


def _prepare_task(spec: SweepSpec, name: str) -> PreparedTask:
    """The task `name` with its calibration set, if there is one and a format looks at it."""
    loaded = load_card(name)
    task = prepare(loaded, spec.limit, spec.seed)
    file = expand_user(spec.calibration) if spec.calibration is not None else None
    if not any(spec_of(f).calibrates for f in spec.formats):
        if file is not None:
            raise UsageError("--calibration: no format of this sweep calibrates; add int8-static")
        return task
    try:
        return replace(task, calibration=load_calibration(loaded, spec.seed, file))
    except NoCalibration:
        return task  # Its cells are skipped with that reason; the others run.


def _note_shipped(refs: list[ModelRef], on_event: OnEvent) -> None:
    for ref in refs:
        if ref.scheme is not None:
            text = (
                f"{ref.name} comes quantized ({ref.scheme.words}): it runs as {AS_SHIPPED}, its "
                "own reference; to see what quantizing cost, measure the original on the same task"
            )
            on_event(Event("note", {"text": text}))


def _note_alike(refs: list[ModelRef], plan: Plan, on_event: OnEvent) -> None:
    """Say which models have no cells of their own, as another one has the same content."""
    own = {id(planned.ref) for planned in plan.cells}
    for ref in refs:
        if id(ref) not in own:
            text = (
                f"{ref.name} has the same content as another model of this sweep; it is measured "
                "once, under the other's name"
            )
            on_event(Event("note", {"text": text}))


def probe_device(device: str, on_event: OnEvent) -> tuple[DeviceFacts, dict[str, Support]]:
    """What `device` makes of every format known; for `precision-explorer formats`."""
    facts = device_facts(resolve_device(device))
    prepare_environment(facts.cores)
    versions = library_versions()
    return facts, probe(facts, list(CATALOG), versions, facts.cores, on_event)


def run_folder(prepared: Prepared) -> RunFolder:
    """``--out``, or ``results/<name>`` with a name that is the same for the same spec."""
    return _folder(prepared.spec, prepared.refs, prepared.tasks, prepared.facts)


def _folder(
    spec: SweepSpec, refs: list[ModelRef], tasks: list[PreparedTask], facts: DeviceFacts
) -> RunFolder:
    if spec.out:
        return RunFolder(expand_user(spec.out))
    models = "+".join(safe_name(ref.name) for ref in refs)
    asked = "+".join(safe_name(task.card.name) for task in tasks)
    # Cut before the hash, which keeps apart what the words no longer do.
    words = f"{models}-{asked}"[:100].rstrip("-+")
    device = safe_name(facts.device if spec.local_runtimes else ENDPOINT)
    name = f"{words}-{device}-{spec.measuring_hash()}"
    return RunFolder(Path("results") / name)


def safe_name(name: str) -> str:
    """A piece of a file name from a name that may be a path or a hub id; never a path."""
    last = name.rstrip("/").split("/")[-1]
    kept = "".join(c if (c.isascii() and c.isalnum()) or c in "-_" else "-" for c in last.lower())
    return kept.strip("-")[:40] or "model"


def sweep_document(prepared: Prepared, run: str) -> dict[str, Any]:
    """sweep.json: spec, plan with skips, environment, method, and the context of the tables."""
    spec = prepared.spec.model_dump(mode="json", exclude={"out"})
    # Names in place of paths: the folder is passed on.
    spec["model"] = [ref.name for ref in prepared.refs]
    spec["task"] = [task.card.name for task in prepared.tasks]
    spec["workload"] = prepared.workload.name
    if spec["devices"] is None:
        spec.pop("devices")  # Sweeps from before there was any keep their document.
    if spec["split"] == "layers":
        spec.pop("split")  # As above.
    if not spec["allow_pickle"]:
        spec.pop("allow_pickle")  # Sweeps from before there was any keep their document.
    if spec["background"] is None:
        spec.pop("background")  # As above.
    else:
        spec["background"] = list(map(str, prepared.workload.background or ()))
    if not spec["audit"]:
        spec.pop("audit")  # As above.
    # They name machines, accounts and people.
    spec.pop("ray_address")
    spec.pop("slurm")
    for name in OF_PLACES:
        if not spec.get(name):
            spec.pop(name, None)  # As above.
    if spec["calibration"] is not None:
        spec["calibration"] = Path(spec["calibration"]).name
    references = {reference_of(prepared.spec, ref) for ref in prepared.refs}
    if len(references) == 1:
        # Where all models come quantized; beside others, their rows have no reference.
        spec["reference"] = references.pop()
    if prepared.spec.served_reference is not None:
        spec["reference"] = prepared.spec.served_reference
    # Addresses name machines.
    asked = [ENDPOINT] if prepared.spec.endpoints else []
    spec["runtime"] = [*prepared.spec.local_runtimes, *asked]
    # A recipe's file is known by its label alone.
    here = prepared.spec.formats if prepared.spec.local_runtimes else ()
    spec["formats"] = [*map(row_id, here), *(a.format for a in prepared.spec.endpoints)]
    return {
        "schema_version": 1,
        "run": run,
        "spec": spec,
        "reader": {name: spec[name] for name in sorted(READER_FIELDS)},
        "plan": prepared.plan.document(),
        "batch_tokens": prepared.budgets,
        "models": [
            {
                "name": ref.name,
                "revision": ref.identity.revision,
                "cautions": [c.model_dump() for c in ref.cautions],
            }
            for ref in _all_refs(prepared)
        ],
        "tasks": [_task_context(task) for task in prepared.tasks],
        **_groups(prepared.tasks),
        "environment": prepared.environment.model_dump(mode="json"),
        "device": _device(prepared),
        "methods": {c.cell.method_id: c.cell.method() for c in prepared.plan.cells},
    }


def _all_refs(prepared: Prepared) -> list[ModelRef]:
    """Those run here, then those of servers."""
    known = {ref.identity.revision: ref for ref in prepared.refs}
    known |= {c.ref.identity.revision: c.ref for c in prepared.plan.cells if c.served}
    return list(known.values())


def _device(prepared: Prepared) -> dict[str, Any]:
    if prepared.spec.local_runtimes:
        return prepared.facts.model_dump(mode="json")
    return {"kind": ENDPOINT, "device": ENDPOINT, "name": ENDPOINT}


def _task_context(task: PreparedTask) -> dict[str, Any]:
    card = task.card
    return {
        "name": card.name,
        "version": card.version,
        "kind": card.kind,
        "metric": card.metric,
        # The registry knows the direction of all but the metrics of other libraries.
        **({} if metric_info(card.metric) else {"higher_is_better": card.higher_is_better}),
        "n": task.identity.n,
        "licence": card.licence,
        "source": card.source,
    }


def _groups(tasks: list[PreparedTask]) -> dict[str, Any]:
    """Groups of tasks that have a score of their own, each once; nothing where there are none."""
    cards = [task.card for task in tasks]
    found = {g["name"]: g for card in cards if isinstance(card, HarnessCard) for g in card.groups}
    return {"groups": list(found.values())} if found else {}


def run_sweep(
    prepared: Prepared, on_event: OnEvent, manifest_if_stopped: bool = True
) -> tuple[RunFolder, Tally]:
    """Run what has no finished record and write every file but the tables.

    The folder's lock is held while cells run. On KeyboardInterrupt what was done is kept; without
    `manifest_if_stopped` the manifest is then left to the caller, as it takes a large run seconds.
    """
    folder = run_folder(prepared)
    try:
        folder.open()
    except BaseException:
        prepared.close()
        raise
    folder.on_damaged = lambda path: _note_damaged(path, on_event)
    try:
        document, before = sweep_document(prepared, folder.name), folder.read_sweep_or_none()
        _note_replaced(before, document, on_event)
        if before is not None and _places(before) != _places(document):
            # Rounds that other places have measured are no rounds of cells that are measured here.
            for lot in lots(prepared.plan):
                start_anew(folder, lot)
        folder.write_sweep(document)
        with asked_of(prepared.pool, prepared.spec):
            roof = _roof(folder, prepared, on_event)
        try:
            pool = prepared.pool
            with estimated(folder, prepared, roof, on_event) as watched:
                executor = Executor(
                    prepared.spec,
                    prepared.plan,
                    prepared.facts,
                    prepared.environment,
                    folder,
                    watched,
                    roof,
                    prepared.load,
                    prepared.background,
                )
                tally = executor.run() if pool is None else Spread(executor, pool).run()
            cells = cells_to_score(folder, prepared.plan)
            tally.unscored, _ = score_cells(folder, cells, on_event)
        except KeyboardInterrupt:
            if manifest_if_stopped:
                folder.write_manifest()
            raise
        except BaseException:
            folder.write_manifest()
            raise
        folder.write_manifest()
    finally:
        prepared.close()
        folder.close()
    return folder, tally


def _places(document: dict[str, Any]) -> tuple[Any, ...]:
    """Where the cells of a sweep.json were measured, as far as it tells."""
    spec = document.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    device = spec.get("device") == ALL
    return spec.get("executor", "local"), device, spec.get("cores"), str(spec.get("on"))


def _roof(folder: RunFolder, prepared: Prepared, on_event: OnEvent) -> Roof | None:
    """The roofs that this sweep's profiles are held against, stored in the folder. Measured before
    the cells, and only where there is a cell to measure."""
    environment = prepared.environment
    if not prepared.spec.local_runtimes:
        return None
    assert environment.threads is not None
    key = roof_key(prepared.facts, environment.libraries, environment.threads)
    stored = folder.read_roof()
    if stored is not None and stored.key == key:
        return stored
    done = [folder.read_record(cell.cell_id) for cell in prepared.plan.to_run]
    if all(record is not None and record.status == "ok" for record in done):
        return None
    roof = device_roof(prepared.facts, environment.libraries, environment.threads, on_event)
    if roof is not None:
        folder.write_roof(roof)
    return roof


def _note_damaged(path: str, on_event: OnEvent) -> None:
    text = (
        f"{path} is not as it was written; it was set aside, and what a record lacks without it "
        "is measured again"
    )
    on_event(Event("note", {"text": text}))


def _note_replaced(
    before: dict[str, Any] | None, document: dict[str, Any], on_event: OnEvent
) -> None:
    """Say so when the folder holds cells that this sweep's tables will no longer show."""
    cells, earlier = set(planned_ids(document)), set(planned_ids(before))
    if earlier - cells:
        text = (
            f"{document['run']} held another sweep: its {len(earlier - cells)} other cells stay in "
            "cells/, but the tables show this sweep's; use another --out to keep both"
        )
        on_event(Event("note", {"text": text}))


__all__ = [
    "Event",
    "Prepared",
    "default_task",
    "prepare_sweep",
    "probe_device",
    "run_folder",
    "run_sweep",
]
