"""The identity of a cell: everything that, if it changed, would make an old result a stale one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

SYNTHETIC = "synthetic:"
"""What the name and the revision of a model with random weights begin with."""
NOT_SCORED = "synthetic weights: quality not measured"
"""What is said of such a model's quality."""


def canonical_hash(document: Any, length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 of `document` as canonical JSON (sorted keys)."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelIdentity(_Frozen):
    """Which weights: the name as the user gave it, and what pins it.

    `revision` is the hub's commit, or ``files:<hash>`` of the names and SHA-256 of a local folder's
    files, or ``synthetic:<hash>`` of the config, tokenizer and seed that random weights were made
    with.
    """

    name: str
    revision: str
    cautions: tuple[str, ...] = ()

    @property
    def is_synthetic(self) -> bool:
        """Whether the weights are random, so that quality is not measured."""
        return self.revision.startswith(SYNTHETIC)


class TaskIdentity(_Frozen):
    """Which questions: card, data and the examples asked, in order."""

    name: str
    version: int
    kind: str
    card_hash: str
    data_hash: str
    item_ids_hash: str
    n: int
    order_hash: str | None = None
    """Of the ids of all examples in the order in which they are asked, whatever the limit. None in
    records from before it was taken, and where a library gives only those that are asked."""


class Cell(_Frozen):
    """One (model, task, format, runtime, device, workload) with all that its result depends on."""

    model: ModelIdentity
    task: TaskIdentity
    format: str
    recipe: dict[str, Any]
    """How the format is made here: kernel, compute type, library (from the probe)."""
    runtime: str
    device: str
    device_name: str
    device_flags: tuple[str, ...] = ()
    """Instruction sets that the libraries may use: the same processor capped is another device."""
    threads: int
    workload: dict[str, Any]
    batch_plan: dict[str, Any]
    batch_sizes: tuple[int, ...]
    rules: dict[str, Any]
    seed: int
    trust_remote_code: bool = False
    libraries: dict[str, str]
    variables: dict[str, str] = {}
    """Environment variables that change numbers or speed, those apart that the tool sets itself."""
    protocol: dict[str, Any] | None = None
    """What the card and the options declare of how results come about, in words beside the hashes:
    prompt, decoding, quality metric, energy. None in records from before version 2 of the method.
    """
    devices: int | None = None
    """Over how many devices the model is spread; None where it is on one."""
    split: str | None = None
    """``tensors`` where each of these holds a share of every tensor; None where each holds layers.
    """
    until_decided: dict[str, Any] | None = None
    """What decides when enough examples are scored: budget and reference. The rule itself is one of
    the `rules`. None where all examples are."""

    @property
    def cell_id(self) -> str:
        """16 hex digits, the hash of the whole identity."""
        document = self.model_dump(mode="json")
        document["model"].pop("name")  # A folder that was moved holds the same model.
        # Records from before there were any keep their id.
        for name in ("until_decided", "protocol", "devices", "split"):
            if document[name] is None:
                document.pop(name)
        if self.task.order_hash is None:
            document["task"].pop("order_hash")
        return canonical_hash(document)

    def method(self) -> dict[str, Any]:
        """What two results must share to be comparable: not the format, device or libraries, not
        the number of examples reached, nor anything that a reader decides later.

        Version 1 is that of records without a `protocol`; 2 holds it, and the order of examples.
        """
        unasked = {"item_ids_hash", "n"} | (
            {"order_hash"} if self.task.order_hash is None else set()
        )
        document = {
            "version": 1 if self.protocol is None else 2,
            # Not the name, which is the folder's: the revision pins the weights.
            "model": self.model.revision,
            "task": self.task.model_dump(mode="json", exclude=unasked),
            "workload": self.workload,
            "batch_plan": self.batch_plan,
            "rules": self.rules,
            "seed": self.seed,
        }
        return document if self.protocol is None else document | self.protocol

    @property
    def method_id(self) -> str:
        """12 hex digits, the hash of `method`."""
        return canonical_hash(self.method(), 12)
