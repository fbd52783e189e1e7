"""Generation cards, the extraction rule, and metrics of texts against the libraries that define
them."""

import json
import math
import random
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import yaml

from precision_explorer.errors import TaskError
from precision_explorer.table.quality import Quality, own_columns, paired_columns
from precision_explorer.table.unparsed import unparsed_caution
from precision_explorer.tasks import (
    answer_columns,
    card_hash,
    cut_at_stop,
    extract,
    load_card,
    metric_libraries,
    prepare,
    scores,
    signatures,
    squad,
    sufficient,
    text_metrics,
    unparsed,
)
from precision_explorer.tasks.generation import Extraction, GenerationRules

RULES = GenerationRules()
CARD = {
    "name": "sums",
    "version": 1,
    "kind": "generation",
    "data": {"path": "data.jsonl"},
    "columns": {"text": "question", "reference": "answer"},
    "prompt": "{text} =",
    "metrics": ["exact_match"],
}


def write(folder, rows, **keys):
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(yaml.safe_dump({**CARD, **keys}))
    return folder


def refused(folder, *parts, rows=({"question": "1 + 1", "answer": "2"},), **keys):
    with pytest.raises(TaskError) as caught:
        prepare(load_card(str(write(folder, rows, **keys))), None, 0)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# -- cards ---------------------------------------------------------------------------------------


def test_a_card_may_say_nothing_of_generation(tmp_path):
    rows = [{"question": "1 + 1", "answer": "2"}, {"question": "2 + 2", "answer": ["4", "four"]}]
    task = prepare(load_card(str(write(tmp_path, rows[1:]))), None, 0)
    (example,) = task.examples
    assert example["prompt"] == "2 + 2 ="
    assert example["references"] == ["4", "four"]
    assert task.card.rules == RULES
    assert task.card.asked()["generation"]["max_new_tokens"] == 256


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2", ["2"]), (2, ["2"]), (2.0, ["2"]), (2.5, ["2.5"]), ('["a", "b"]', ["a", "b"]),
        ("[1] a footnote", ["[1] a footnote"]), ("[1, 2]", ["[1, 2]"]),
    ],
)  # fmt: skip
def test_a_reference_is_a_text_a_number_or_a_list(value, expected, tmp_path):
    rows = [{"question": "1 + 1", "answer": value}]
    task = prepare(load_card(str(write(tmp_path, rows))), None, 0)
    assert task.examples[0]["references"] == expected


@pytest.mark.parametrize("value", [[], [""], ["a", ""], {"text": "a"}, True])
def test_other_references_are_refused(value, tmp_path):
    refused(tmp_path, "example 1", "reference", rows=[{"question": "1 + 1", "answer": value}])


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"generation": {"max_new_token": 3}}, ["max_new_token", "did you mean", "max_new_tokens"]),
        ({"generation": {"extract": {"patern": "a"}}}, ["patern", "pattern"]),
        ({"generation": {"extract": {"pattern": "("}}}, ["no regular expression", "correct it"]),
        ({"generation": {"extract": {"take": "middle"}}}, ["generation.extract.take"]),
        ({"generation": {"extract": {"clean": ["upper"]}}}, ["generation.extract.clean"]),
        ({"generation": {"max_new_tokens": 0}}, ["generation.max_new_tokens"]),
        ({"generation": {"stop": [""]}}, ["generation.stop"]),
        ({"prompt": None}, ["generation needs a prompt"]),
        ({"prompt": "what?"}, ["no {field}"]),
        ({"prompt": "{text} = {reference}"}, ["can't show '{reference}'"]),
        ({"prompt": "{text} = {answer}"}, ["can't show '{answer}'"]),
        ({"columns": {"text": "question"}}, ["needs columns.reference"]),
        ({"metrics": ["accuracy"]}, ["does not fit kind generation"]),
        (
            {"kind": "translation", "metrics": ["bleu"], "generation": {"chat": True}},
            ["generation.chat does not fit"],
        ),
        (
            {"kind": "language-modeling", "metrics": ["bits_per_byte"], "generation": {},
             "columns": {"text": "question"}, "prompt": None},
            ["generation does not fit kind language-modeling"],
        ),
    ],
)  # fmt: skip
def test_what_a_card_gets_wrong_is_said_in_one_line(keys, parts, tmp_path):
    refused(tmp_path, *parts, **keys)


@pytest.mark.parametrize("name", ["cnn-dailymail", "wmt16-de-en"])
def test_the_hub_cards_are_valid(name):
    card = load_card(name).card
    assert card.name == name
    assert card.data.hub is not None
    assert card.rules.extract.pattern is None


def test_an_encoder_decoder_needs_no_prompt_and_may_have_a_prefix(tmp_path):
    rows = [{"question": "Guten Tag", "answer": "Good day"}]
    keys = {"kind": "translation", "metrics": ["bleu"]}
    plain = prepare(load_card(str(write(tmp_path, rows, **keys, prompt=None))), None, 0)
    assert plain.examples[0]["prompt"] == "Guten Tag"
    prefix = "translate German to English: {text}"
    task = prepare(load_card(str(write(tmp_path, rows, **keys, prompt=prefix))), None, 0)
    assert task.examples[0]["prompt"] == "translate German to English: Guten Tag"


def test_the_rules_are_part_of_a_generating_card_s_identity_and_of_no_other(tmp_path):
    rows = [{"question": "1 + 1", "answer": "2"}]

    def hashed(**keys):
        return card_hash(load_card(str(write(tmp_path, rows, **keys))).card)

    assert hashed() == hashed(generation={"max_new_tokens": 256})
    assert hashed() != hashed(generation={"max_new_tokens": 255})
    assert hashed() != hashed(generation={"extract": {"pattern": "a"}})
    # As it was before there were any rules: stored results of these cards stay theirs.
    assert card_hash(load_card("sentiment").card) == "d6cc85e74c1e6205"
    assert card_hash(load_card("sentiment-choice").card) == "4d6edd297774156d"


# -- the rule ------------------------------------------------------------------------------------

NUMBER = r"-?\$?\d+(?:,\d{3})*(?:\.\d+)?"


@pytest.mark.parametrize(
    ("text", "take", "clean", "answer"),
    [
        ("3 and 4, so 7.", "last", ["strip"], "7"),
        ("3 and 4, so 7.", "first", ["strip"], "3"),
        ("so $1,234.00.", "last", ["thousands", "number"], "1234"),
        ("so $1,234.00.", "last", ["thousands"], "$1234.00"),
        ("it is -0012.50", "last", ["number"], "-12.5"),
        ("-0.0", "last", ["number"], "0"),
        ("12345678901234567890123456789.10", "last", ["number"],
         "12345678901234567890123456789.1"),
        ("nothing here", "last", ["number"], None),
    ],
)  # fmt: skip
def test_the_rule_takes_a_number_out_of_an_output(text, take, clean, answer):
    assert extract(text, Extraction(pattern=NUMBER, take=take, clean=clean)) == answer


def test_the_answer_is_the_first_group_or_else_the_match():
    assert extract("A: yes", Extraction(pattern="A: (yes|no)")) == "yes"
    assert extract("B: no", Extraction(pattern="A: (yes)|B: (no)")) == "no"
    assert extract("A: yes", Extraction(pattern="yes")) == "yes"
    assert extract("  Whole ", Extraction(clean=["strip", "casefold"])) == "whole"
    assert extract("1,234,567 and 1,23", Extraction(clean=["thousands"])) == "1234567 and 1,23"
    assert extract("v1.20.", Extraction(clean=["number"])) == "v1.20."


def test_a_pattern_that_takes_too_long_is_refused_in_one_line():
    with pytest.raises(TaskError, match="more than 1 s") as caught:
        extract("a" * 80 + "b", Extraction(pattern="(a|aa)+$"))
    assert "\n" not in str(caught.value)


def test_an_output_is_cut_at_the_first_stop_text():
    assert cut_at_stop("one\n\nQ: two", ["Q:", "\n\n"]) == "one"
    assert cut_at_stop("one", ["Q:"]) == "one"


# -- metrics -------------------------------------------------------------------------------------

ANSWERS = [
    "the cat sat on the mat",
    "A quick brown fox jumps over lazy dogs.",
    None,
    "Brown bread",
    "nothing in common",
    "",
]
REFERENCES = [
    ["the cat sat on a mat", "a cat was sitting on the mat today"],
    ["the quick brown fox jumps over the lazy dog"],
    ["an answer that nobody gave"],
    ["brown bread", "white bread", "rye"],
    ["quite another thing altogether"],
    ["some text"],
]


def columns(metrics, rules=RULES, answers=ANSWERS, references=REFERENCES):
    return answer_columns(metrics, answers, references, rules)


def test_exact_match_compares_what_the_rule_cleaned():
    assert columns(["exact_match"])["score"] == [0.0] * 6
    loose = GenerationRules(extract=Extraction(clean=["casefold"]))
    answers = [a if a is None else a.casefold() for a in ANSWERS]
    assert columns(["exact_match"], loose, answers)["score"] == [0, 0, 0, 1, 0, 0]


def test_squad_f1_by_hand():
    assert squad.token_f1("The cat!", ["a cat"]) == 1.0
    assert squad.token_f1("cat dog", ["mouse", "cat"]) == pytest.approx(2 / 3)
    assert squad.token_f1("cat cat", ["cat"]) == pytest.approx(2 / 3)
    assert squad.token_f1("the", ["an"]) == 1.0
    assert squad.token_f1("", ["cat"]) == 0.0
    assert columns(["token_f1"])["token_f1"][3] == 1.0


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_the_package_s_best_f_measure(stemmer):
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    names = ["rouge1", "rouge2", "rougeL"]
    found = columns(names, GenerationRules(rouge_stemmer=stemmer))
    plain = scorer.RougeScorer(names, use_stemmer=stemmer)
    for k, (answer, refs) in enumerate(zip(ANSWERS, REFERENCES, strict=True)):
        for name in names:
            best = max(plain.score(ref, answer or "")[name].fmeasure for ref in refs)
            assert found[name][k] == pytest.approx(best)
    # "dogs" is "dog" with the stemmer alone.
    other = columns(["rouge1"], GenerationRules(rouge_stemmer=not stemmer))["rouge1"][1]
    assert (found["rouge1"][1] > other) == stemmer


def corpus(name, answers, references):
    library = pytest.importorskip("sacrebleu.metrics")
    metric = library.BLEU(force=True) if name == "bleu" else library.CHRF()
    most = max(map(len, references))
    streams = [[r[k] if k < len(r) else None for r in references] for k in range(most)]
    return metric.corpus_score(answers, streams).score


def random_texts(n, seed):
    rng = random.Random(seed)
    words = ["the", "a", "cat", "dog", "sat", "on", "over", "mat", "hill", "and", "quickly", "home"]
    references = [
        [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(rng.randint(1, 3))]
        for _ in range(n)
    ]
    answers = []
    for refs in references:
        own = refs[0].split()
        answers.append(" ".join(w if rng.random() < 0.7 else rng.choice(words) for w in own))
    return answers, references


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_corpus_metrics_of_resamples_are_sacrebleu_s(metric):
    pytest.importorskip("sacrebleu")
    answers, references = random_texts(40, 0)
    stored = columns([metric], RULES, answers, references)
    terms, finish = sufficient(metric, stored)
    assert float(finish(terms.sum(0))) == pytest.approx(corpus(metric, answers, references))
    # Also of two or three examples, where orders without a match are smoothed.
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 40, size) for size in (2, 3, 3, 3, 10, 40, 40)]
    values = finish(np.stack([terms[index].sum(0) for index in drawn]))
    for index, value in zip(drawn, values, strict=True):
        own = corpus(metric, [answers[i] for i in index], [references[i] for i in index])
        assert value == pytest.approx(own, abs=1e-9)
    assert len(set(values.round(6))) > 4


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
@pytest.mark.parametrize("answers", [["", ""], ["x", "y"], ["a b", "c"], ["a b c d e", "a"]])
def test_corpus_metrics_of_hopeless_answers_are_sacrebleu_s(metric, answers):
    pytest.importorskip("sacrebleu")
    references = [["a b c d e f"], ["c"]]
    terms, finish = sufficient(metric, columns([metric], RULES, answers, references))
    value = float(finish(terms.sum(0)))
    assert value == pytest.approx(corpus(metric, answers, references), abs=1e-9)
    assert math.isnan(finish(np.zeros(terms.shape[1])))


def test_signatures_say_how_the_libraries_were_asked():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    found = signatures(["exact_match", "rougeL", "bleu", "chrf"], REFERENCES, RULES)
    assert set(found) == {"rougeL", "bleu", "chrf"}
    assert found["bleu"].startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].startswith("nrefs:var|case:mixed|eff:yes|nc:6|nw:0|")
    assert "stemmer:no" in found["rougeL"]
    stems = signatures(["rouge1"], REFERENCES, GenerationRules(rouge_stemmer=True))
    assert "stemmer:yes" in stems["rouge1"]


@pytest.mark.parametrize(
    ("references", "words"),
    [(REFERENCES[:5], "5 references for 6 predictions"), ([*REFERENCES[:5], []], "prediction 6"),
     ([*REFERENCES[:5], "some text"], "prediction 6")],
)  # fmt: skip
def test_references_that_do_not_pair_are_refused_in_one_line(references, words):
    with pytest.raises(TaskError, match=words) as caught:
        columns(["exact_match"], references=references)
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics", None)
    with pytest.raises(TaskError, match=r"pip install 'precision-explorer\[text-metrics\]'"):
        columns(["bleu"])


def test_a_missing_library_is_told_before_anything_runs(monkeypatch):
    assert metric_libraries(["accuracy", "exact_match"]) == {}
    known = {"sacrebleu": "2.6.0", "rouge-score": "0.1.2", "torch": "2"}
    assert metric_libraries(["chrf", "bleu"], known) == {"sacrebleu": "2.6.0"}

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(text_metrics, "version", absent)
    with pytest.raises(TaskError, match=r"need rouge-score.*\[text-metrics\]"):
        metric_libraries(["rouge2"])


# -- statistics ----------------------------------------------------------------------------------


def rows_of(answers, references, metrics):
    found = columns(metrics, RULES, answers, references)
    return [
        {"id": str(k), "group": None, "unparsed": answers[k] is None, "score": None}
        | {name: values[k] for name, values in found.items()}
        for k in range(len(answers))
    ]


@pytest.mark.parametrize("kind", ["generation", "summarization", "translation"])
def test_both_faces_agree(kind):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    metrics = ["exact_match", "token_f1", "rouge1", "rouge2", "rougeL", "bleu", "chrf"]
    answers, references = random_texts(30, 1)
    answers[3] = None
    rows = rows_of(answers, references, metrics)
    measured = scores(kind, metrics, rows)
    stored = {name: [row[name] for row in rows] for name in rows[0]}
    for metric in metrics:
        terms, finish = sufficient(metric, stored)
        assert float(finish(terms.sum(0))) == pytest.approx(measured[metric], rel=1e-12)
        found = own_columns(Quality.of(metric, stored), measured[metric], 0)
        assert found["quality_ci_low"] <= measured[metric] <= found["quality_ci_high"]
    assert unparsed(rows) == 1
    assert unparsed([row | {"unparsed": None} for row in rows]) is None


def test_the_difference_of_two_corpora_is_on_the_same_resamples():
    pytest.importorskip("sacrebleu")
    answers, references = random_texts(60, 2)
    worse = [a if k % 3 else "dog" for k, a in enumerate(answers)]
    pair = []
    for own in (answers, worse):
        rows = rows_of(own, references, ["bleu"])
        pair.append(Quality.of("bleu", {n: [row[n] for row in rows] for n in rows[0]}))
    found = paired_columns(*pair, 0.01, 0)
    delta = corpus("bleu", worse, references) - corpus("bleu", answers, references)
    assert found["quality_delta"] == pytest.approx(delta)
    assert found["quality_delta_ci_low"] < delta < found["quality_delta_ci_high"] < 0
    assert found["verdict"] == "outside"


def test_a_reference_that_scores_nothing_can_have_no_share_lost():
    pytest.importorskip("sacrebleu")
    rows = rows_of(["x", "y"], [["a b"], ["c d"]], ["bleu"])
    zero = Quality.of("bleu", {n: [row[n] for row in rows] for n in rows[0]})
    found = paired_columns(zero, zero, 0.01, 0)
    assert (found["quality_delta"], found["verdict"]) == (0.0, "cannot-tell")


@pytest.mark.parametrize(("missing", "told"), [(0, False), (3, False), (12, True)])
def test_a_format_that_loses_the_form_of_its_answers_is_told(missing, told):
    def quality(flags):
        flags = list(flags)
        names = {"id": list(range(len(flags))), "unparsed": flags, "score": [0.0] * len(flags)}
        return Quality.of("exact_match", names)

    reference = quality([False] * 100)
    found = unparsed_caution(reference, quality(k < missing for k in range(100)), "fp32")
    assert (found is not None) == told
    if told:
        assert found.id == "unparsed-differs"
        assert "in 12 outputs" in found.message
    assert unparsed_caution(reference, quality([None] * 100), "fp32") is None
