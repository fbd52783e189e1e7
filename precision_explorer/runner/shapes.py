"""How many weights a shape has, counted before any is made. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from precision_explorer.errors import ModelError
from precision_explorer.hardware import DeviceFacts
from precision_explorer.models import ModelRef
from precision_explorer.runner.jobs import JobFailed, run_job
from precision_explorer.runner.manager import OnEvent

# A model without weights is built in a second or two.
_TIME_LIMIT_S = 300.0


def counted(
    refs: Sequence[ModelRef],
    kind: str,
    facts: DeviceFacts,
    threads: int,
    trust_remote_code: bool,
    on_event: OnEvent,
) -> list[ModelRef]:
    """`refs` with the number of weights of those that are shapes alone: a worker builds each with
    the head of the task `kind`, without weights. ModelError where the config makes no model."""

    def count(ref: ModelRef) -> ModelRef:
        if ref.synthetic is None:
            return ref
        request = {
            "device": facts.device,
            "path": str(ref.path),
            "kind": kind,
            "trust_remote_code": trust_remote_code,
        }
        return replace(ref, elements=_elements(ref.name, request, threads, on_event))

    return [count(ref) for ref in refs]


def _elements(name: str, request: dict[str, Any], threads: int, on_event: OnEvent) -> int:
    try:
        answer, _ = run_job("layer-names", request, threads, on_event, _TIME_LIMIT_S)
    except JobFailed as error:
        raise ModelError(f"{name}: its config.json makes no model ({error})") from error
    return int(answer["elements"])
