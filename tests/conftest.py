"""What all tests share: a cache of their own, a device whose roofs are known, and a workload that
takes moments."""

import os
import signal
from pathlib import Path

import pytest
import yaml

from precision_explorer.hardware import device_facts, library_versions
from precision_explorer.paths import data_dir
from precision_explorer.records import Bandwidth, Launch, MatmulRate, Roof
from precision_explorer.runner import batch_budget
from precision_explorer.runner.roof import roof_key, store

real_probe = batch_budget._probe
AT_ONCE = "PYTEST_XDIST_WORKER" in os.environ
if AT_ONCE:
    # Threads of files of tests that run at once wait for each other. Read when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# Under `nohup` SIGHUP is ignored, by this process and all that it starts, and the command leaves it
# so: tests of what it does send it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Nothing that a user's cache holds may make a test pass, and no test may write there. One
    cache for the whole run, so that the device is probed once."""
    folder = tmp_path_factory.getbasetemp()
    if AT_ONCE:
        folder = folder.parent  # Of all the processes that pytest-xdist has started.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRECISION_EXPLORER_CACHE", str(folder / "cache"))
        # pytest-xdist tells its processes of a terminal's width.
        patch.delenv("COLUMNS", raising=False)
        know_the_roofs()
        # Batches keep their usual size: each model and task would else be loaded once more, to be
        # timed. tests/test_batch_budget.py has the real probe.
        patch.setattr(batch_budget, "_probe", lambda *args: None)
        yield


def know_the_roofs() -> None:
    """Put roofs that nothing reaches into the cache, so that no sweep of a test measures them,
    which takes some 20 s."""
    facts, versions = device_facts("cpu"), library_versions()
    types = ("float32", "bfloat16", "float16", "int8")
    bandwidth = Bandwidth(bytes_per_s=1e12, working_set_bytes=1 << 27, how="sum")
    for threads in range(1, facts.cores + 1):
        store(
            Roof(
                key=roof_key(facts, versions, threads),
                device_name=facts.name,
                threads=threads,
                matmul=[MatmulRate(type=t, kernel="torch", flops_per_s=1e15) for t in types],
                read=bandwidth,
                cache=None,
                copied=bandwidth,
                launch=Launch(operator_s=1e-9, matmul_s=1e-9),
            )
        )


@pytest.fixture(scope="session")
def quick_workload(tmp_path_factory) -> Path:
    """A workload file whose rules are met after a few requests."""
    path = tmp_path_factory.mktemp("workload") / "quick.yaml"
    rules = {
        "min_requests": 5,
        "min_seconds": 0,
        "warmup_requests": 1,
        "warmup_seconds": 0,
        "budget_seconds": 20,
        "offline_seconds": 0,
        "offline_min_batches": 2,
        "prompt_tokens": 32,
        "output_tokens": 4,
    }
    path.write_text(yaml.safe_dump(rules))
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the fetched SmolLM2-135M; the test is skipped where it was not fetched."""
    folder = data_dir() / "models" / "smollm2-135m"
    if not (folder / "config.json").is_file():
        pytest.skip("needs SmolLM2: precision-explorer fetch smollm2-135m")
    return folder
