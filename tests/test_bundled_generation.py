"""The bundled generating tasks are what their descriptions say. Nothing is fetched."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from precision_explorer.tasks import extract, load_calibration, load_card, prepare

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "tasks"


@pytest.fixture(scope="module")
def maker():
    """scripts/make_task_data.py, which is no part of a package."""
    path = ROOT / "scripts" / "make_task_data.py"
    spec = importlib.util.spec_from_file_location("make_task_data", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name; it imports its neighbour.
    sys.modules["make_task_data"] = module
    sys.path.insert(0, str(ROOT / "scripts"))
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "scripts"))
    del sys.modules["make_task_data"]


def rows(name, file="test.jsonl"):
    return [json.loads(line) for line in (TASKS / name / file).read_text("utf8").splitlines()]


@pytest.mark.parametrize(("name", "size"), [("gsm8k", 1319), ("capitals", 143)])
def test_cards_and_rows(name, size, maker):
    assert (TASKS / name / "task.yaml").read_text("utf8") == maker.CARDS[name]
    found = rows(name)
    assert len(found) == len({row["id"] for row in found}) == size
    task = prepare(load_card(name), None, 0)
    assert task.identity.n == size
    # A reference is its own answer by the card's rule.
    rule = task.card.rules.extract
    for example in task.examples:
        for reference in example["references"]:
            assert extract(f" {reference} ", rule) == extract(reference, rule) is not None


def test_gsm8k_asks_no_worked_example_and_ends_in_numbers(maker):
    prompt = load_card("gsm8k").card.prompt
    worked = re.findall("Question: (.*[?])\nAnswer: (.*)", prompt)
    assert len(worked) == 3
    questions = {row["question"] for row in rows("gsm8k")}
    rule = load_card("gsm8k").card.rules.extract
    for question, answer in worked:
        assert question not in questions
        assert answer.endswith(f"The answer is {extract(answer, rule)}.")
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", row["final"]) for row in rows("gsm8k"))
    assert (TASKS / "gsm8k" / "LICENSE.txt").read_text("utf8") == maker.MIT


def test_gsm8k_is_calibrated_on_problems_of_this_project(maker):
    own = rows("gsm8k", "calibration.jsonl")
    assert own == maker.word_problems()
    assert load_calibration(load_card("gsm8k"), seed=0).n == len(own) == 24
    asked = {row["question"] for row in rows("gsm8k")}
    assert not asked & {row["question"] for row in own}
    prompt = load_card("gsm8k").card.prompt
    assert all(row["question"].endswith("?") and row["question"] not in prompt for row in own)
    assert all(re.fullmatch(r"\d+", row["final"]) for row in own)


def test_capitals_are_made_again_and_none_is_shown_before_it_is_asked(maker):
    test, calibration = maker.capital_examples()
    assert test == rows("capitals")
    assert calibration == rows("capitals", "calibration.jsonl")
    assert load_calibration(load_card("capitals"), seed=0).n == 40
    assert not {"France", "Japan"} & {row["country"] for row in (*test, *calibration)}
