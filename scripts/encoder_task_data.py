"""The bundled tasks for sentence encoders and vision models; `make_task_data.py` writes them.

Retrieval and similarity are made of the newspaper articles that `news-perplexity` holds too, by the
rules below: no human rated them. The digits are scikit-learn's.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import pairwise
from typing import Any

Example = dict[str, Any]
Articles = dict[int, list[str]]
"""Number of each article to its sentences, in order."""

# A query says something, and leaves a document to be found.
QUERY_WORDS = 8
SENTENCES_LEFT = 3
# Articles of the similarity task, of each of which one sentence stands in three pairs.
SIMILARITY_ARTICLES = 200
# Sentences of one article so far apart that they need not be about one thing.
FAR = 4
CALIBRATION = 64
DIGITS_HELD_OUT_PERCENT = 30
# scikit-learn's pixels run from 0 to 16.
_BRIGHTEST = 16

_NEWS_LICENCE = "MIT (Copyright (c) 2016 C.J. Hutto; the notice is in ../LICENSE-data.txt)"
_NEWS_SOURCE = """\
  Articles of Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for
  Sentiment Analysis of Social Media Text. ICWSM-14. Made into queries and pairs by
  scripts/make_task_data.py; see ../README.md."""

CARDS = {
    "news-retrieval": f"""\
name: news-retrieval
version: 1
kind: retrieval
# A query is one sentence of an article, the document to be found is the rest of it.
data: {{path: test.jsonl}}
columns: {{id: id, text: query, label: article}}
corpus: {{path: corpus.jsonl}}
# Product reviews, since every article is test data.
calibration: {{path: calibration.jsonl, n: {CALIBRATION}}}
max_length: 256
metrics: [ndcg_at_10, recall_at_10]
higher_is_better: true
licence: {_NEWS_LICENCE}
source: >-
{_NEWS_SOURCE}
""",
    "news-similarity": f"""\
name: news-similarity
version: 1
kind: similarity
# Graded by where the sentences stand, not by people: 2 next to each other, 1 in one article,
# 0 in two articles.
data: {{path: test.jsonl}}
columns: {{id: id, group: article, text: first, pair: second, label: grade}}
# Product reviews, since every article is test data.
calibration: {{path: calibration.jsonl, n: {CALIBRATION}}}
max_length: 128
metrics: [spearman]
higher_is_better: true
licence: {_NEWS_LICENCE}
source: >-
{_NEWS_SOURCE}
""",
    "digits": f"""\
name: digits
version: 1
kind: image-classification
data: {{path: test.jsonl}}
columns: {{id: id, image: image, label: digit}}
calibration: {{path: calibration.jsonl, n: {CALIBRATION}}}
metrics: [accuracy, macro_f1]
higher_is_better: true
licence: CC BY 4.0 (UCI Machine Learning Repository)
source: >-
  Alpaydin, E. & Kaynak, C. (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning
  Repository, https://doi.org/10.24432/C50P49; as scikit-learn's load_digits has them. Made by
  scripts/make_task_data.py; see ../README.md.
""",
}


def _key(*parts: object) -> str:
    """64 hex digits by which things are put in an order that nobody chose."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))


def articles(sentences: list[tuple[str, str]]) -> Articles:
    """Articles of (``article_sentence``, text) pairs."""
    found: dict[int, list[tuple[int, str]]] = {}
    for number, text in sentences:
        article, place = map(int, number.split("_"))
        found.setdefault(article, []).append((place, text))
    return {n: [text for _, text in sorted(found[n])] for n in sorted(found)}


def _distinct(news: Articles) -> set[tuple[str, ...]]:
    """The sentences that stand once in all the articles together."""
    count = Counter(_words(text) for sentences in news.values() for text in sentences)
    return {words for words, times in count.items() if times == 1}


def query_of(sentences: list[str], once: set[tuple[str, ...]]) -> int | None:
    """Which of an article's sentences is its query: of those that are long enough and stand nowhere
    else, the first by the SHA-256 of its text; None for articles that would leave too little."""
    if len(sentences) <= SENTENCES_LEFT:
        return None
    words = [_words(sentence) for sentence in sentences]
    fit = [
        i
        for i, own in enumerate(words)
        if len(own) >= QUERY_WORDS
        and own in once
        and not any(sentences[i] in other for k, other in enumerate(sentences) if k != i)
    ]
    return min(fit, key=lambda i: _key(sentences[i]), default=None)


def retrieval_examples(news: Articles) -> tuple[list[Example], list[Example]]:
    """(queries, corpus) of `news-retrieval`; an article without a query is in the corpus whole."""
    once = _distinct(news)
    queries, corpus = [], []
    for number, sentences in news.items():
        taken = query_of(sentences, once)
        document, rest = f"news-{number}", sentences
        if taken is not None:
            rest = sentences[:taken] + sentences[taken + 1 :]
            query = {"id": f"query-{number}", "query": sentences[taken], "article": document}
            queries.append(query)
        corpus.append({"id": document, "text": " ".join(rest)})
    return queries, corpus


def similarity_examples(news: Articles) -> list[Example]:
    """The pairs of `news-similarity`: of each article one sentence with the next one (2), with one
    of the same article that is far from it (1), and with one of another article (0)."""
    long = {n: s for n, s in news.items() if len(s) > FAR + 1 and len(set(s)) == len(s)}
    chosen = sorted(long, key=lambda n: _key("article", n))[:SIMILARITY_ARTICLES]
    examples = []
    for place, number in enumerate(sorted(chosen)):
        sentences = long[number]
        anchor = min(range(len(sentences) - 1), key=lambda i: _key("anchor", sentences[i]))
        far = [i for i in range(len(sentences)) if abs(i - anchor) >= FAR] or [
            max(range(len(sentences)), key=lambda i: abs(i - anchor))
        ]
        other = long[sorted(chosen)[(place + 1) % len(chosen)]]
        seconds = {
            2: sentences[anchor + 1],
            1: sentences[min(far, key=lambda i: _key("far", sentences[i]))],
            0: min(other, key=lambda text: _key("other", text)),
        }
        for grade, second in seconds.items():
            examples.append(
                {
                    "id": f"news-{number}-{grade}",
                    "article": f"news-{number}",
                    "first": sentences[anchor],
                    "second": second,
                    "grade": grade,
                }
            )
    return examples


def _reviews(sentences: list[tuple[str, str]]) -> list[tuple[int, str, str]]:
    """(review, sentence, the next one) of product reviews, in the order of the SHA-256."""
    reviews = articles(sentences)
    pairs = [(n, a, b) for n, texts in reviews.items() for a, b in pairwise(texts)]
    first = {text: (n, text, after) for n, text, after in reversed(pairs)}
    return sorted(first.values(), key=lambda pair: _key(*pair))[:CALIBRATION]


def retrieval_calibration(training: list[tuple[str, str]]) -> list[Example]:
    """Sentences of product reviews; their documents are in no corpus, as none is looked up."""
    return [
        {"id": f"product-{i}", "query": text, "article": f"product-{n}"}
        for i, (n, text, _) in enumerate(_reviews(training))
    ]


def similarity_calibration(training: list[tuple[str, str]]) -> list[Example]:
    """Neighbouring sentences of product reviews, every other one with a stranger in its place."""
    found = _reviews(training)
    examples = []
    for i, (n, first, after) in enumerate(found):
        second = after if i % 2 else found[(i + 1) % len(found)][2]
        row = {"id": f"product-{i}", "article": f"product-{n}", "first": first, "second": second}
        examples.append(row | {"grade": 2 if i % 2 else 0})
    return examples


def digits() -> dict[str, list[Example]]:
    """{``test``, ``train``}: scikit-learn's digits with pixels from 0 to 255.

    An image is held out if the first 8 hex digits of the SHA-256 of its pixels, as a number modulo
    100, are below `DIGITS_HELD_OUT_PERCENT`; so equal images are never on both sides.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    parts: dict[str, list[Example]] = {"test": [], "train": []}
    for index, (image, digit) in enumerate(zip(found.images, found.target, strict=True)):
        pixels = [[round(value * 255 / _BRIGHTEST) for value in row] for row in image.tolist()]
        held_out = int(_key(pixels)[:8], 16) % 100 < DIGITS_HELD_OUT_PERCENT
        row = {"id": f"digits-{index}", "image": pixels, "digit": int(digit)}
        parts["test" if held_out else "train"].append(row)
    return parts


def digits_calibration(train: list[Example]) -> list[Example]:
    """Training images, the first in the order of the SHA-256 of their pixels."""
    return sorted(train, key=lambda row: _key(row["image"]))[:CALIBRATION]
