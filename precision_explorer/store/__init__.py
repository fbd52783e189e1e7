"""The results folder: the only room that knows its layout."""

from precision_explorer.store.folder import RunFolder, read_run

__all__ = ["RunFolder", "read_run"]
