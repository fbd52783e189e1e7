"""The options that `sweep` and `plan` share, and those of them that `inspect` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from precision_explorer.cli import completing
from precision_explorer.cli.money import WORTH, grid_option, slo_option

_OPTIONS: list[Callable[..., Any]] = [
    click.option(
        "--model", multiple=True, metavar="ID|PATH|demo",
        shell_complete=completing.one_of(completing.MODELS, or_file=True),
        help="A hub id, a local folder, smollm2-135m once fetched, or demo (the default).",
    ),
    click.option(
        "--task", multiple=True, metavar="NAME|PATH",
        shell_complete=completing.one_of(completing.tasks, or_file=True),
        help="A bundled card (see: precision-explorer tasks), a path to a task.yaml, or "
        "lm-eval:NAME for a task of lm-evaluation-harness.",
    ),
    click.option(
        "--formats", metavar="a,b,...|all",
        shell_complete=completing.several_of(completing.FORMATS),
        help="Formats, comma-separated; by default the nine from fp32 to int8-dynamic. "
        "mixed:recipe.yaml is a recipe of mix. The reference is always among them.",
    ),
    click.option(
        "--reference", metavar="FORMAT", help="What others are compared to (fp32).",
        shell_complete=completing.one_of(completing.FORMATS[:-1]),
    ),
    click.option(
        "--device", metavar="auto|cpu|cuda:0|all",
        help="Where to run (auto); all: every GPU of this machine at once.",
    ),
    click.option(
        "--runtime", metavar="eager,compile,...",
        shell_complete=completing.several_of(completing.RUNTIMES),
        help="How the model is run (eager): eager, compile (torch.compile, inputs of any length), "
        "compile-fixed (padded to few lengths; CUDA graphs on a GPU), or a server that is asked: "
        "endpoint:[FORMAT:]http://host:8000/v1[#MODEL].",
    ),
    click.option(
        "--batch-size", metavar="N,M,...",
        help="Offline batch sizes to try (1,8); the row shows the best, the record all.",
    ),
    click.option(
        "--batch-tokens", type=int, metavar="N",
        help="Padded tokens of a batch of the quality pass; by default a short probe of the "
        "reference fixes them once per task.",
    ),
    click.option(
        "--limit", type=int, metavar="N",
        help="Only the first N examples of one seeded order, the same for every format.",
    ),
    click.option(
        "--until-decided", is_flag=True, default=None,
        help="Score examples in looks, and stop a format's as soon as its verdict is clear.",
    ),
    click.option(
        "--calibration", metavar="FILE",
        help="Texts for formats with calibrated scales, in place of those that the cards name.",
    ),
    click.option(
        "--workload", metavar="NAME|FILE",
        shell_complete=completing.one_of(completing.WORKLOADS, or_file=True),
        help="How requests come (single-stream); a preset, or a .yaml file.",
    ),
    click.option(
        "--tails", metavar="p99|p999",
        help="Under a workload of scenario server: serve longer windows until this percentile of "
        "the latency can be printed, or the budget ends.",
    ),
    click.option(
        "--duration", metavar="TIME", help="Length of the measured window, as in 30s, 5m or 1h."
    ),
    click.option(
        "--background", metavar="cpu:N,copy,model:PATH",
        help="Measure each format a second time beside this work: N processes that compute, copies "
        "of memory, a model that serves requests.",
    ),
    click.option(
        "--find-rate", is_flag=True, default=None,
        help="Under a workload of scenario server: search for the largest rate that holds the "
        "objective of --slo, in place of the workload's own rate.",
    ),
    click.option(
        "--audit", is_flag=True, default=None,
        help="Audit each cell's measurement after its timed rounds, as MLPerf's compliance tests "
        "do; cells that are there already are audited too.",
    ),
    click.option(
        "--spec", type=click.Path(path_type=Path), metavar="FILE.yaml",
        help="A file that holds these options; those given on the command line win.",
    ),
    click.option("--out", metavar="DIR", help="The run's own folder (results/<name>)."),
    click.option(
        "--cell-timeout", type=float, metavar="SECONDS",
        help="After this long a cell is ended and recorded as timeout (3600).",
    ),
    click.option("--price-per-hour", type=float, metavar="USD", help="Your price for the device."),
    click.option(
        "--price", metavar="FILE.yaml",
        help="A price model: an hourly price, a list price under another term, or ownership.",
    ),
    *WORTH,
    grid_option,
    slo_option("p99=200ms", "Latency limit within which requests count."),
    click.option(
        "--quality-budget", metavar="1%",
        help="The loss of quality that you accept: points for shares, relative otherwise (1%).",
    ),
    click.option("--seed", type=int, metavar="N", help="Seed of the order of examples (0)."),
    click.option(
        "--executor", metavar="local|ray|slurm",
        help="Where cells run (local): this machine, the nodes of a Ray cluster, or Slurm jobs.",
    ),
    click.option(
        "--ray-address", metavar="HOST:PORT",
        help="A running Ray cluster; without it one is started on this machine for the sweep.",
    ),
    click.option(
        "--on", metavar="TYPE,...",
        help="Only nodes with this custom resource of Ray's, or of this GPU type of Slurm's; of "
        "several types each is a run of its own.",
    ),
    click.option(
        "--cores", type=int, metavar="N",
        help="Whole CPU cores for each place that measures, which no other place has.",
    ),
    click.option(
        "--one-at-a-time", is_flag=True, default=None,
        help="Measure on one place after the other, never on two at once.",
    ),
    click.option(
        "--devices", type=int, metavar="N",
        help="Spread a model that one GPU does not hold over up to N of its kind (all visible "
        "ones); 1: never.",
    ),
    click.option(
        "--split", metavar="layers|tensors",
        help="How a model goes over several GPUs (layers): whole layers one after the other, or a "
        "share of every tensor on each (tensor parallel), by --devices N also of a model that one "
        "GPU would hold.",
    ),
    click.option(
        "--slurm", metavar="NAME=VALUE,...",
        help="Settings of the jobs, as in partition=gpu,time=120 (sbatch's names).",
    ),
    click.option("--revision", metavar="REV", help="Hub revision of the model; recorded."),
    click.option(
        "--trust-remote-code", is_flag=True, default=None,
        help="Let the model's own code run. Off unless given.",
    ),
    click.option(
        "--allow-pickle", is_flag=True, default=None,
        help="Read pickled weights (pytorch_model.bin) of a model without safetensors. Off unless "
        "given.",
    ),
    click.option("--threads", type=int, metavar="N", help="CPU threads (all usable cores)."),
    click.option(
        "--allow-metric", multiple=True, metavar="NAME",
        help="A metric of a card, evaluate:NAME, that may be fetched: its Python is run.",
    ),
    click.option(
        "--memory-limit", metavar="SIZE",
        help="Most memory that a CPU worker may take, as in 8GB; beyond it a cell is recorded as "
        "out_of_memory.",
    ),
]  # fmt: skip


def sweep_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add all sweep options to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


# Options of a sweep that mean the same to `inspect`.
_OF_INSPECT = (
    "--model", "--task", "--formats", "--device", "--out", "--seed", "--revision",
    "--trust-remote-code", "--allow-pickle", "--threads", "--calibration",
)  # fmt: skip


def inspect_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `inspect` that a sweep has too, and its own number of examples."""
    limit = click.option(
        "--limit", type=int, metavar="N", help="Run the first N examples of the seeded order (8)."
    )
    function = limit(function)
    for option in reversed(_OPTIONS):
        if _name_of(option) in _OF_INSPECT:
            function = option(function)
    return function


def _name_of(option: Callable[..., Any]) -> str:
    """The option's first name, which click tells only of one that decorates something."""

    def blank() -> None:
        pass

    parameter: click.Parameter = option(blank).__click_params__[0]
    return parameter.opts[0]


def spec_from(options: dict[str, Any]) -> Any:
    """A validated SweepSpec from the command line's options and the spec file, if one is given."""
    from precision_explorer.plan.spec import spec_from as made

    return made(options)
