"""Workloads: presets, files, one-line refusals, and the round trip through a cell's identity."""

import json

import pytest

from precision_explorer.errors import UsageError
from precision_explorer.workload import PRESETS, Workload, load_workload


def test_the_default_is_single_stream():
    assert load_workload(None) == load_workload("single-stream") == PRESETS["single-stream"]
    rules = load_workload(None).rules()
    assert (rules["min_requests"], rules["min_seconds"], rules["budget_seconds"]) == (30, 3.0, 60.0)
    assert (rules["prompt_tokens"], rules["output_tokens"]) == (128, 16)


def test_rules_make_the_workload_again():
    workload = Workload(name="mine", min_requests=5, budget_seconds=7.5)
    assert Workload.model_validate(json.loads(json.dumps(workload.rules()))) == workload


def test_a_file_overrides_the_defaults(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("min-requests: 5\nmin_seconds: 0.5\n")
    workload = load_workload(str(path))
    assert (workload.name, workload.min_requests, workload.min_seconds) == ("short", 5, 0.5)
    assert workload.warmup_requests == Workload().warmup_requests
    path.write_text("")
    assert load_workload(path) == Workload(name="short")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("min_request: 5", "did you mean min_requests"),
        ("zzz: 5", "known: name, scenario"),
        ("min_seconds: -1", "min_seconds: Input should be greater than or equal to 0"),
        ("min_requests: 0", "min_requests"),
        ("min_requests: 2.5", "min_requests"),
        ("min_requests: yes", "true is no number"),
        ("budget_seconds: .inf", "budget_seconds"),
        ("budget_seconds: .nan", "budget_seconds"),
        ("scenario: single-strem", "did you mean single-stream"),
        ("scenario: server", "not in this release"),
        ("- 1", "no YAML mapping"),
        ("a: [", "no YAML"),
        ("a: !!python/object/apply:os.getcwd []", "no YAML"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, part):
    path = tmp_path / "w.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_workload(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "w.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("single-strem", "did you mean single-stream"),
        ("server", "not in this release; use single-stream"),
        ("xyzzy", "known: single-stream, or give a .yaml file"),
        ("missing.yaml", "can't read"),
        ("no/such", "can't read"),
    ],
)
def test_unknown_names_are_refused_in_one_line(name, part):
    with pytest.raises(UsageError) as caught:
        load_workload(name)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("#" * 1_000_001)
    with pytest.raises(UsageError, match="larger than 1 MB"):
        load_workload(path)
