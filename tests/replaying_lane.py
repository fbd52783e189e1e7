"""A lane whose workers replay kept answers, so that places are lost and sweeps stopped in moments.
Its process, its pipe and all that is sent are the real ones."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from precision_explorer.runner import lane, local
from precision_explorer.runner.manager import WorkerGone
from tests.replayed import script

VARIABLE = "PRECISION_EXPLORER_TEST_REPLAY"
"""Names the file that `told` wrote."""


def told(path: Path, answers: Any, pause_s: float, log: Path) -> None:
    """Write what lanes replay: the answers of `scripts/kill_parents.py`, each after `pause_s`."""
    path.write_bytes(pickle.dumps((answers, pause_s, log)))


def main() -> None:
    """As `lane.main`."""
    kill_parents = script()

    class Replaying(kill_parents.Replaying):
        """One that may be told to end in place of an answer."""

        def ask(self, request: dict[str, Any], deadline: float) -> Any:
            """The kept answer, or a `WorkerGone` of what is kept as ``("raise", ...)``."""
            op = f"{request['op']}-{request.get('round', '')}"
            name = request.get("format", self.format)
            kept = kill_parents.Keeping.kept.get((name, op))
            if kept is not None and kept[0] == "raise":
                with self.log.open("a") as file:
                    file.write(f'["{name}", "{op}"]\n')
                self.kill()
                raise WorkerGone(*kept[1].values())
            return super().ask(request, deadline)

    path = Path(os.environ[VARIABLE])
    answers, Replaying.pause_s, Replaying.log = pickle.loads(path.read_bytes())
    kill_parents.Keeping.kept = answers
    local.WorkerHandle = Replaying
    local.start_context = lambda **given: None  # type: ignore[assignment]
    lane.main()
