"""Running cells: a manager without torch, workers that join the measuring wing, executors."""
