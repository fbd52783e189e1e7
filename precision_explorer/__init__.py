"""precision-explorer: which numeric format should this model run in, on this task and device?

Two wings are joined by files only. The measuring wing (``models``, ``formats.apply``, ``measure``,
``runner.worker``) may import torch. Everything else never does, so that old results open on a
laptop in a fraction of a second. ``tests/test_rooms.py`` holds both rules.
"""

__version__ = "0.1.0"
