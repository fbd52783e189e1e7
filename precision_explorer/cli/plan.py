"""``precision-explorer plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precision_explorer.cli.options import spec_from, sweep_options

if TYPE_CHECKING:
    from precision_explorer.hardware import DeviceFacts
    from precision_explorer.plan import Plan, PlannedCell, SweepSpec
    from precision_explorer.plan.fit import Fit
    from precision_explorer.runner.manager import OnEvent
    from precision_explorer.workload import Workload


@click.command("plan", short_help="Print cells and skips; run nothing.")
@sweep_options
@click.option(
    "--estimate",
    is_flag=True,
    help="Say what the sweep will take: time, energy and money by cell and part, and how sure.",
)
@click.option(
    "--error-of",
    metavar="RUN",
    help="Of a run that is done: how far its estimate was off, by part. Plans nothing.",
)
@click.option(
    "--target",
    metavar="NAME",
    help="Plan for a device that is not here, such as h100, l4 or rtx4090 (the names of formats "
    "--device-profile), by its published facts alone.",
)
@click.option(
    "--target-memory", metavar="SIZE",
    help="Plan for a device with this memory, as in 24GB; with --target in place of its own.",
)  # fmt: skip
def command(
    estimate: bool,
    error_of: str | None,
    target: str | None,
    target_memory: str | None,
    **options: Any,
) -> int:
    """Print the cells and skips of a sweep with their reasons; run nothing.

    Takes the same options as sweep; a model may be a folder that holds a config.json alone. Each
    cell shows what its weights and its cache will take in memory; cells whose weights don't fit
    into the device's are skips. Device answers that are not cached yet are asked for, except those
    for which kernels would have to be compiled: what they would tell is named. Of a --target
    nothing is probed.
    """
    from precision_explorer.errors import UsageError
    from precision_explorer.models.shapes import by_config_alone

    if error_of is not None:
        return _error_of(error_of)
    elsewhere = target is not None or target_memory is not None
    if estimate and elsewhere:
        raise UsageError(
            "--estimate rests on what this device was measured to do at most, which says nothing "
            "of a --target; leave one of them out"
        )
    spec = spec_from(options)
    spec = spec.model_copy(update={"model": tuple(map(by_config_alone, spec.model))})
    if elsewhere:
        return _elsewhere(spec, target, target_memory)
    for one in spec.by_type():
        _here(one, estimate)
    return 0


def _error_of(run: str) -> int:
    from pathlib import Path
    from statistics import fmean

    from precision_explorer.errors import StoreError
    from precision_explorer.report.estimate import error_lines
    from precision_explorer.store import read_run

    folder, _ = read_run(Path(run))
    stored = folder.read_estimate()
    if stored is None:
        raise StoreError(
            f"{run} holds no estimate.json: it was measured before sweeps kept one, or nothing "
            "told how fast its cells would be; run the sweep into another folder"
        )
    records = [folder.read_record(cell.cell_id) for cell in stored.cells]
    shares = [r.measurements.other_work_share for r in records if r is not None]
    known = [one for one in shares if one is not None]
    for line in error_lines(stored, fmean(known) if known else None):
        click.echo(line)
    return 0


def _here(spec: SweepSpec, estimate: bool) -> None:
    from precision_explorer.api.progress import progress
    from precision_explorer.errors import UsageError
    from precision_explorer.runner.estimates import estimate_now
    from precision_explorer.runner.sweep import prepare_sweep, run_folder

    with progress() as on_event:
        prepared = prepare_sweep(spec, on_event, compiling=False)
        try:
            if estimate and any(c.split is not None for c in prepared.plan.to_run):
                raise UsageError(
                    "--estimate is of cells on one device, and some of these are spread over "
                    "several; leave it out, or give --devices 1"
                )
            if estimate and prepared.pool is not None:
                raise UsageError(
                    "--estimate is of one place after the other, and this sweep has several; "
                    "leave one of them out"
                )
            kind = prepared.tasks[0].card.kind
            fits = _fits(spec, prepared.plan, prepared.facts, prepared.workload, kind, on_event)
            folder = run_folder(prepared)
            expected = estimate_now(folder, prepared, on_event) if estimate else None
        finally:
            prepared.close()
    for planned in prepared.plan.cells:
        record = folder.read_record(planned.cell_id)
        done = record is not None and record.status == "ok"
        click.echo(_line(planned, fits[planned.cell_id], "done" if done else "run"))
    cells = prepared.plan.cells
    skipped = len(cells) - len(prepared.plan.to_run)
    click.echo(f"{len(cells)} cells, {skipped} skipped; results would go to {folder.path}")
    if estimate:
        from precision_explorer.report.estimate import estimate_lines

        for line in estimate_lines(expected):
            click.echo(line)


def _elsewhere(spec: SweepSpec, name: str | None, memory: str | None) -> int:
    from precision_explorer.api.progress import progress
    from precision_explorer.errors import UsageError
    from precision_explorer.runner.elsewhere import plan_elsewhere, target_of
    from precision_explorer.units import bytes_, parse_size

    try:
        size = None if memory is None else parse_size(memory)
    except ValueError as error:
        raise UsageError(f"--target-memory: {error}") from error
    if size is not None and size < 1:
        raise UsageError(f"--target-memory {memory} is no memory; give one such as 24GB")
    target = target_of(name, size)
    with progress() as on_event:
        made = plan_elsewhere(spec, target, on_event)
        fits = _fits(spec, made.plan, target.facts, made.workload, made.first_kind, on_event)
    for planned in made.plan.cells:
        fit = fits[planned.cell_id]
        # Of a cell that is no skip the weights fit; whether the cache does beside them is another
        # question.
        click.echo(_line(planned, fit, "over" if (fit.devices or 1) > 1 else "fits"))
    skipped = len(made.plan.cells) - len(made.plan.to_run)
    click.echo(
        f"{len(made.plan.cells)} cells, {skipped} skipped; {target.facts.name} with "
        f"{bytes_(target.memory_bytes)} ({target.source}); nothing was probed there"
    )
    return 0


def _fits(
    spec: SweepSpec,
    plan: Plan,
    facts: DeviceFacts,
    workload: Workload,
    first: str,
    on_event: OnEvent,
) -> dict[str, Fit]:
    from precision_explorer.plan.fit import Fit, request_cache
    from precision_explorer.runner.shapes import compute_type, footprints

    held = footprints(plan, facts, first, on_event)
    there = facts.device_memory_bytes if facts.kind == "cuda" else facts.memory_bytes
    found = {}
    for planned in plan.cells:
        dtype = compute_type(planned)
        cache = dtype and request_cache(planned.ref, planned.task, workload, spec, dtype)
        spread = None if planned.split is None else planned.split.devices
        found[planned.cell_id] = Fit(held[planned.cell_id], cache or None, there, spread)
    return found


def _line(planned: PlannedCell, fit: Fit, state: str) -> str:
    why = planned.support.reason if planned.skip is None else planned.skip
    state = state if planned.skip is None else "skip"
    return (
        f"{state:5}{planned.ref.name}  {planned.task.card.name} (n={planned.task.identity.n})  "
        f"{planned.cell.format:22} {planned.support.execution:12}{planned.cell.runtime}  "
        f"{planned.cell.device}  {_memory(planned, fit)}  {why}"
    )


def _memory(planned: PlannedCell, fit: Fit) -> str:
    """What weights and cache take, and how many devices hold them where one does not."""
    from precision_explorer.runner.shapes import left_in
    from precision_explorer.units import MISSING, bytes_

    if fit.held_bytes is None:
        return f"weights {MISSING}"
    rest = left_in(planned)
    text = f"weights {bytes_(fit.held_bytes)}{f' (the rest in {rest})' if rest else ''}"
    if fit.cache is not None:
        text += (
            f"  cache {bytes_(fit.cache.total_bytes)} ({fit.cache.sequences} x "
            f"{fit.cache.tokens:,} tokens of {bytes_(fit.cache.token_bytes)})"
        )
    if fit.spread is not None:
        return f"{text}  on {fit.spread} devices"
    if fit.devices is not None and fit.devices > 1:
        text += f"  together {fit.devices:,} such devices"
    return text
