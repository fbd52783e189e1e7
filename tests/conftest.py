"""What all tests share: a cache of their own, and a workload that takes moments."""

from pathlib import Path

import pytest
import yaml

from precision_explorer.paths import data_dir


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Nothing that a user's cache holds may make a test pass, and no test may write there. One
    cache for the whole run, so that the device is probed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
