"""The groups of a table, where the reports' modules look for them."""

from precision_explorer.table.groups import Group, Row, direction_words, groups

__all__ = ["Group", "Row", "direction_words", "groups"]
