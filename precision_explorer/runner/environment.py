"""The system as a cell's record has it. No torch here."""

from __future__ import annotations

import os
import platform

from precision_explorer.hardware import (
    DeviceFacts,
    container,
    device_settings,
    relevant_variables,
)
from precision_explorer.plan.expand import NVML_CHECK, OWN_VARIABLES, SET_BY_LIBRARIES
from precision_explorer.records import Environment, Placement

VISIBLE = "CUDA_VISIBLE_DEVICES"
# Of each process, whatever the sweep's own has: set by the manager, by imports, or by what hands
# out devices.
_OF_PROCESSES = (VISIBLE, *OWN_VARIABLES, *SET_BY_LIBRARIES, NVML_CHECK)


def variables_to_send() -> dict[str, str]:
    """The variables of this process that change results, which are part of a cell's identity: what
    measures it elsewhere gets the same (`take_variables`)."""
    return {name: os.environ[name] for name in relevant_variables(without=_OF_PROCESSES)}


def take_variables(given: dict[str, str]) -> None:
    """Have those that change results in this process be the ones `given`, and no others."""
    for name in relevant_variables(without=_OF_PROCESSES):
        del os.environ[name]
    os.environ.update(given)


def make_environment(
    facts: DeviceFacts,
    threads: int,
    versions: dict[str, str],
    placement: Placement | None = None,
) -> Environment:
    """The system as recorded in each cell; no host or user names."""
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        device_name=facts.name,
        device=facts.model_dump(mode="json", exclude={"device", "name", "cpu_model"}),
        cpu_model=facts.cpu_model,
        cores=facts.cores,
        memory_bytes=facts.memory_bytes,
        threads=threads,
        libraries=versions,
        # Whether they are set hangs on what else this process has imported.
        # Which of a machine's devices a place sees, its placement tells.
        variables=relevant_variables(
            without=SET_BY_LIBRARIES if placement is None else (*SET_BY_LIBRARIES, VISIBLE)
        ),
        kernel=platform.release(),
        container=container(),
        settings=device_settings(facts),
        placement=placement,
    )
