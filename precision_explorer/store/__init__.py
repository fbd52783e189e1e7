"""The results folder: the only room that knows its layout."""

from precision_explorer.store.folder import RunFolder, read_run, unrecorded
from precision_explorer.store.manifest import TABLES, Fault, Manifest

__all__ = ["TABLES", "Fault", "Manifest", "RunFolder", "read_run", "unrecorded"]
