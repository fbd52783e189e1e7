"""Numeric formats. `catalog` and `support` are data and rules without torch; `apply`, `kernels`,
`dryrun` and `verify` belong to the measuring wing and run in a worker only."""

from precision_explorer.formats.catalog import (
    AS_SHIPPED,
    CATALOG,
    DEFAULT_FORMATS,
    FormatSpec,
    spec_of,
)
from precision_explorer.formats.support import Support, decide

__all__ = ["AS_SHIPPED", "CATALOG", "DEFAULT_FORMATS", "FormatSpec", "Support", "decide", "spec_of"]
