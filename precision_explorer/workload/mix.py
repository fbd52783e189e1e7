"""Several kinds of requests in one workload, each with its share."""

from __future__ import annotations

from pydantic import Field

from precision_explorer.workload.declared import Declared
from precision_explorer.workload.lengths import Lengths


class MixPart(Declared):
    """One kind of request: its share is `weight` over the sum of all weights.

    It takes the examples whose `group` is the one named (None: all examples), with `lengths` of its
    own (None: the workload's).
    """

    name: str = Field(min_length=1, max_length=64)
    weight: float = Field(gt=0)
    group: str | None = None
    lengths: Lengths | None = None
