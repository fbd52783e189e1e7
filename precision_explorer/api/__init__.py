"""The Python interface, and what the command line shares with it: both call the same functions.

Nothing is imported here: reading a run needs nothing of a sweep. ``import precision_explorer``
offers the names that others use.
"""
