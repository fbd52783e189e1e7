"""Each export read back by its own library and held against the CSV, cell by cell."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import openpyxl
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from precision_explorer.economics import parse_slo
from precision_explorer.errors import UsageError
from precision_explorer.export import SUFFIXES, Target, export, make, target_of
from precision_explorer.export.document import (
    INTEGER_COLUMNS,
    TEXT_COLUMNS,
    context_document,
    plain_rows,
)
from precision_explorer.export.mlflow_ import ROW_ID, log_rows, logged_rows
from precision_explorer.export.model_card import MARK
from precision_explorer.export.png import to_pngs
from precision_explorer.report import to_csv, to_html, to_markdown
from precision_explorer.report.placing import Box, covered, place
from precision_explorer.stats import Tail
from precision_explorer.table import COLUMNS, ROW_KEY, Curve, CurvePoint, Table, build
from precision_explorer.table.limits import Limits
from tests.command import run
from tests.test_report import row, table, without

RESULTS = Path(__file__).parents[1] / "results"
DEMO, H200 = RESULTS / "demo-sentiment-cpu", RESULTS / "h200-decoder"
ONE_FILE = ("parquet", "json", "xlsx", "model-card")
HOSTILE = (
    '=HYPERLINK("http://x","y")', "<script>alert(1)</script>", "\x1b[31mred\x1b[0m\x07", "@SUM(A1)",
    "\t=1+1", "-1+1", "+1", "a|b`c`", "---\nx: 1\n---", "$\\frac{$", "\u202egnp.exe",
    "_x0041_", "\ufffe\uffff", "\ud800", "123", "http://example.com", "*a* {b: c} # d",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> dict[str, Table]:
    """The tables of stored runs: one with quality, one of random weights, two together."""
    other = RESULTS / "smollm2-choice-cpu"
    return {"demo": build([DEMO]), "h200": build([H200]), "two": build([DEMO, other])}


TABLES = ("demo", "h200", "two", "empty", "hostile")


@pytest.fixture(params=TABLES)
def shown(request: pytest.FixtureRequest, runs: dict[str, Table]) -> Table:
    """Tables of all sorts."""
    made = {
        "empty": table(row("fp32", quality=None, latency_p99_s=None), without("x", "failed", "no")),
        "hostile": hostile(HOSTILE[0]),
    }
    return (runs | made)[request.param]


def hostile(text: str) -> Table:
    """A table whose model, format and device are called `text`, in the context too."""
    plain = table()
    rows = [r | {"model": text, "device": text, "reason": text} for r in plain.rows]
    rows[1]["format"] = text
    models = (replace(plain.context.models[0], name=text, cautions=(text,)),)
    return table(*rows, models=models, run=text, caveats=(text,), devices=(text,))


def stored(shown: Table) -> list[dict[str, str]]:
    """The rows of the CSV."""
    return list(csv.DictReader(io.StringIO(to_csv(shown), newline="")))


def assert_cell(value: Any, text: str, name: str, quoted: bool = False) -> None:
    """`value` is what the CSV's `text` says; `quoted`: with the mark before a formula."""
    if text == "":
        # A text may be empty, as where there are no cautions; nothing else stands for missing.
        assert value is None or (value == "" and name in TEXT_COLUMNS), name
    elif isinstance(value, (int, float)):
        # XlsxWriter keeps 16 digits, of which Excel shows 15.
        assert value == (pytest.approx(float(text), rel=1e-15) if quoted else float(text)), name
    else:
        assert value == (text if quoted else text.removeprefix("'")), name


def sheet_rows(content: bytes) -> tuple[list[str], list[dict[str, Any]]]:
    """(names of the sheets, rows of the second)."""
    book = openpyxl.load_workbook(io.BytesIO(content))
    head, *lines = book.worksheets[1].iter_rows(values_only=True)
    return book.sheetnames, [dict(zip(head, line, strict=True)) for line in lines]


def card_of(content: bytes) -> tuple[list[Any], str]:
    """(the model-index, the Markdown) of a model card."""
    _, head, text = content.decode().split("---\n", 2)
    return yaml.safe_load(head)["model-index"], text


# -- every format against the CSV ---------------------------------------------------------------


def test_json_holds_the_csv_cell_by_cell(shown):
    document = json.loads(make(shown, "json"), parse_constant=pytest.fail)
    assert list(document) == ["schema_version", "context", "rows"]
    assert document["schema_version"] == 1
    assert len(document["rows"]) == len(stored(shown))
    for found, old in zip(document["rows"], stored(shown), strict=True):
        assert list(found) == list(COLUMNS)
        for name, text in old.items():
            assert_cell(found[name], text, name)


def test_parquet_holds_the_csv_cell_by_cell_with_the_same_types_in_every_export(shown):
    read = pq.read_table(io.BytesIO(make(shown, "parquet")))
    assert read.column_names == list(COLUMNS)
    kinds = {f.name: str(f.type) for f in read.schema}
    for name in COLUMNS:
        wanted = "string" if name in TEXT_COLUMNS else "double"
        assert kinds[name] == ("int64" if name in INTEGER_COLUMNS else wanted)
    for found, old in zip(read.to_pylist(), stored(shown), strict=True):
        for name, text in old.items():
            assert_cell(found[name], text, name)


def test_xlsx_holds_the_csv_cell_by_cell_after_a_sheet_of_context(shown):
    names, rows = sheet_rows(make(shown, "xlsx"))
    assert names == ["Context", "Table"]
    for found, old in zip(rows, stored(shown), strict=True):
        assert list(found) == list(COLUMNS)
        for name, text in old.items():
            number = text != "" and name not in TEXT_COLUMNS
            assert not number or isinstance(found[name], (int, float)), name
            assert_cell(found[name], text, name, quoted=True)


def test_mlflow_is_told_every_cell_of_the_csv_once(shown):
    for found, old in zip(logged_rows(shown), stored(shown), strict=True):
        for name, text in old.items():
            places = [d[name] for d in (found.params, found.metrics, found.tags) if name in d]
            assert len(places) == (text != ""), name
            if places and name not in TEXT_COLUMNS:
                assert float(places[0]) == float(text), name
            elif places:
                assert places[0] == text.removeprefix("'"), name


@pytest.mark.parametrize("name", ["demo", "two"])
def test_the_card_s_metrics_are_those_of_the_csv(runs, name):
    index, _ = card_of(make(runs[name], "model-card"))
    old = {(r["model"], r["format"], r["device"]): r for r in stored(runs[name])}
    assert [entry["name"] for entry in index] == list(dict.fromkeys(k[0] for k in old))
    seen = 0
    for entry in index:
        for result in entry["results"]:
            assert result["task"]["type"] in ("text-classification", "multiple-choice")
            assert {"type", "name"} <= set(result["dataset"])
            for metric in result["metrics"]:
                args = metric["args"]
                csv_row = old[entry["name"], args["format"], args["device"]]
                column = metric["type"] if metric["type"] in COLUMNS else "quality"
                assert float(csv_row[column]) == metric["value"]
                assert ";".join(args.get("cautions", [])) == csv_row["cautions"]
                seen += column == "quality"
    assert seen == sum(r["quality"] != "" for r in stored(runs[name]))


def test_the_hub_s_own_library_reads_the_card(runs):
    url = "https://example.com/runs/1"
    card = huggingface_hub.ModelCard(make(runs["demo"], "model-card", url).decode())
    assert card.data.model_name == "demo"
    scores = [r for r in card.data.eval_results if r.metric_type == "accuracy"]
    quality = {r["format"]: float(r["quality"]) for r in stored(runs["demo"]) if r["quality"]}
    assert {r.metric_args["format"]: r.metric_value for r in scores} == quality
    assert {r.source_url for r in scores} == {url}
    assert scores[0].source_name == "precision-explorer, run demo-sentiment-cpu"


def test_of_random_weights_the_card_has_speeds_and_says_what_was_not_measured(runs):
    index, text = card_of(make(runs["h200"], "model-card"))
    found = {m["type"] for result in index[0]["results"] for m in result["metrics"]}
    assert found == {"latency_p50_s", "throughput_per_s", "weight_bytes", "peak_memory_bytes"}
    assert "synthetic weights: quality not measured" in text


def test_a_card_has_the_tables_of_the_report(runs):
    _, text = card_of(make(runs["demo"], "model-card"))
    lines = [x for x in to_markdown(runs["demo"]).splitlines() if x.startswith("| int8-dynamic")]
    assert sum(line in text for line in lines) == 3


# -- the context travels ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "h200", "two"])
def test_the_context_is_in_every_format(runs, name):
    shown = runs[name]
    context = context_document(shown)
    assert context["method_ids"]
    assert context["prices"]
    assert context["caveats"]
    assert context["stack"]["torch"]
    assert context["measured_on"][0].startswith("2026-")
    assert json.loads(make(shown, "json"))["context"] == context
    metadata = pq.read_schema(io.BytesIO(make(shown, "parquet"))).metadata
    assert json.loads(metadata[b"precision_explorer"])["context"] == context
    book = openpyxl.load_workbook(io.BytesIO(make(shown, "xlsx")))
    sheet = "\n".join(str(c) for line in book.worksheets[0].values for c in line)
    for text in (sheet, card_of(make(shown, "model-card"))[1].replace("\\", "")):
        for line in (*context["method_ids"], *context["prices"], *context["caveats"]):
            assert line.replace("&", "&amp;") in text or line in text
        assert context["manifest_root"] in text
        assert context["measured_on"][0] in text
        assert context["run"] in text
        assert f"torch {context['stack']['torch']}" in text
    for logged in logged_rows(shown):
        assert logged.tags["precision_explorer.measured_on"] == ", ".join(context["measured_on"])
        assert context["caveats"][-1][:40] in logged.tags["mlflow.note.content"].replace("\\", "")
    pytest.importorskip("matplotlib")
    for _, content in to_pngs(shown):
        picture = Image.open(io.BytesIO(content))
        assert json.loads(picture.text["precision_explorer"])["context"] == context


def test_a_row_alone_says_its_run_day_limits_and_what_it_does_not_say(runs):
    limits = Limits(max_memory_bytes=8_000_000_000)
    limited = build([DEMO], {"slo": "p99=50ms", "limits": limits})
    for shown in (*runs.values(), limited):
        for found in stored(shown):
            assert found["run"] in shown.context.run.split(", ")
            assert found["measured_on"][:5] == ("" if found["status"] == "skipped" else "2026-")
            assert found["caveats"] == " ".join(shown.context.caveats)
            assert found["method_id"]
            assert found["manifest_root"] in shown.context.manifest_root
            told = "requests count within p99=50ms; peak memory at most 8.00 GB"
            assert found["limits"] == (told if shown is limited else "")
    assert {r["run"] for r in stored(runs["two"])} == {DEMO.name, "smollm2-choice-cpu"}
    index, text = card_of(make(runs["demo"], "model-card"))
    args = index[0]["results"][0]["metrics"][0]["args"]
    assert (args["run"], args["measured_on"]) == (DEMO.name, "2026-11-25")
    for text in (to_markdown(runs["demo"]), to_html(runs["demo"])):
        assert "2026-11-25" in text


def test_formats_and_keys_of_the_context_are_documented(runs):
    page = (RESULTS.parent / "docs" / "export.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.M)) >= set(SUFFIXES)
    part = page.split("Keys of `context`", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall("`([a-z_]+)`", cell)}
    assert named == set(context_document(runs["demo"]))


def test_the_reader_s_price_and_limits_travel(tmp_path):
    out = tmp_path / "t.json"
    done = run("export", DEMO, "--to", out, "--price-per-hour", 3, "--max-memory", "8GB")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(out.read_text())
    assert "$3.000 per hour" in document["context"]["prices"][0]
    assert document["context"]["limits"]
    assert {r["price_per_hour_usd"] for r in document["rows"]} == {3.0, None}


@pytest.mark.parametrize("name", ONE_FILE)
def test_the_same_table_gives_the_same_bytes(name, monkeypatch):
    import time

    first = make(build([DEMO]), name)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1e6)
    assert make(build([DEMO]), name) == first


# -- text that tries to break out -----------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_harmless_in_every_format(text, tmp_path):
    shown = hostile(text)
    for line in json.loads(make(shown, "json"))["rows"]:
        assert not set(line["model"]) & set("\x1b\x07\u202e")
    read = pq.read_table(io.BytesIO(make(shown, "parquet")))
    assert "\x1b" not in read["model"][0].as_py()
    book = openpyxl.load_workbook(io.BytesIO(make(shown, "xlsx")))
    for sheet in book.worksheets:
        assert not list(sheet._hyperlinks)
        for line in sheet.iter_rows():
            for cell in line:
                assert cell.data_type in ("s", "n"), cell.value
                if cell.data_type == "s":
                    assert not str(cell.value).lstrip().startswith(("=", "+", "-", "@"))
    index, markdown = card_of(make(shown, "model-card"))
    assert set(index[0]) == {"name", "results"}
    assert "<script" not in markdown
    assert "\x1b" not in markdown
    assert huggingface_hub.ModelCard(make(shown, "model-card").decode()).data.eval_results
    for logged in logged_rows(shown):
        assert "\x1b" not in "".join([logged.name, *logged.tags.values()])
    pytest.importorskip("matplotlib")
    assert len(to_pngs(shown)) == 1
    lines = export(shown, Target("xlsx", str(tmp_path / "t.xlsx")))
    assert lines == [f"{tmp_path / 't.xlsx'}: 2 rows"]


def test_a_text_too_long_for_excel_is_cut_and_says_so():
    shown = table(row("fp32", reason="x" * 40_000))
    _, rows = sheet_rows(make(shown, "xlsx"))
    assert rows[0]["reason"] == "x" * 32_764 + "..."
    assert logged_rows(shown)[0].tags["reason"].endswith("x...")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_missing_where_a_format_can_t_hold_it(value):
    shown = table(row("fp32", quality=value), row("x"))
    assert json.loads(make(shown, "json"))["rows"][0]["quality"] is None
    assert sheet_rows(make(shown, "xlsx"))[1][0]["quality"] is None
    index, _ = card_of(make(shown, "model-card"))
    scores = [m for m in index[0]["results"][0]["metrics"] if m["type"] == "accuracy"]
    assert [m["args"]["format"] for m in scores] == ["x"]
    assert "quality" not in logged_rows(shown)[0].metrics


def test_columns_of_stored_runs_have_the_declared_types():
    assert set(COLUMNS) >= TEXT_COLUMNS | INTEGER_COLUMNS
    for path in sorted(p.parent for p in RESULTS.glob("*/sweep.json")):
        for line in plain_rows(build([path])):
            for name, value in line.items():
                text, whole = name in TEXT_COLUMNS, name in INTEGER_COLUMNS
                kind = str if text else int if whole else float
                assert value is None or type(value) is kind, (path.name, name, value)


def test_nothing_is_written_into_a_run(tmp_path):
    run = shutil.copytree(RESULTS / "h200-decoder", tmp_path / "run")
    before = (run / "sweep.json").read_bytes()
    for name in ("sweep.json", "mine.json"):
        target = target_of("json", str(run / name), [run], None)
        with pytest.raises(UsageError, match="inside the run"):
            export(build([run]), target)
    assert (run / "sweep.json").read_bytes() == before


# -- PNG ------------------------------------------------------------------------------------------


def searched() -> Table:
    """Two formats whose rates were searched at p99 of 50 ms."""
    slo = parse_slo("p99=50ms")
    rows, curves = [], []
    for format_, factor in (("fp32", 1.0), ("int8-dynamic", 1.6)):
        made = row(format_, search_slo="p99=50ms")
        points = [point(factor * rate, rate) for rate in (40, 80, 120, 150, 180)]
        held = points[2]
        made |= {"held_rate_per_s": held.rate_per_s, "missed_rate_per_s": points[4].rate_per_s}
        rows.append(made)
        key = tuple(made[name] for name in ROW_KEY)
        curves.append(Curve(key, slo, tuple(points), held, points[4], None))
    plain = table(*rows)
    return replace(plain, curves=tuple(curves))


def point(rate: float, load: float) -> CurvePoint:
    """A rate that was tried; `load`: where it stands on a queue's curve."""
    value = 0.01 / (1 - load / 185) if load < 180 else None
    verdict = "held" if load <= 120 else "unsure" if load < 180 else "missed"
    tail = Tail(0.99, value, value and 0.9 * value, value and 1.2 * value, 900, 900.0, None)
    return CurvePoint(
        rate, rate, rate, load / 185, 900, 10.0, tail, tail, verdict, "", int(load >= 180), 0, 1
    )


def drawn(monkeypatch: pytest.MonkeyPatch, shown: Table) -> list[list[str]]:
    """The texts of each slide."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    texts = []
    saved = Figure.savefig

    def look(self: Any, *args: Any, **options: Any) -> None:
        texts.append([t.get_text() for t in self.axes[0].texts])
        saved(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", look)
    to_pngs(shown)
    return texts


def test_a_slide_shows_title_axes_formats_and_where_the_numbers_come_from(runs, monkeypatch):
    ((title, *texts),) = drawn(monkeypatch, runs["demo"])
    assert title == "demo on sentiment: quality against latency by format"
    assert "Change in accuracy against fp32 (higher is better)" in texts
    assert "Median latency of a request (← faster)" in texts
    assert {"+0.5 pp", "5.00 ms", "bf16", "on the Pareto front", "not on it"} <= set(texts)
    caption = " ".join(texts)
    for wanted in ("run demo-sentiment-cpu", "measured 2026-11-25", "method c0f148b58960"):
        assert wanted in caption


def test_of_random_weights_memory_takes_the_place_of_quality(runs, monkeypatch):
    ((title, *texts),) = drawn(monkeypatch, runs["h200"])
    assert title.endswith("memory against latency by format")
    assert "Peak memory of serving (lower is better)" in texts
    assert "20.0 GB" in texts
    assert "Synthetic (random) weights: quality was not measured." in texts


def test_searched_rates_are_drawn_as_load_curves(monkeypatch):
    ((title, *texts),) = drawn(monkeypatch, searched())
    assert title == "tiny on sentiment: latency against rate by format"
    assert {"fp32", "int8-dynamic", "p99 = 50.0 ms"} <= set(texts)
    assert "Requests per second that come (more →)" in texts
    assert any(text.startswith("Full: held; pale: can't be told") for text in texts)


def test_labels_that_find_no_free_place_are_not_cut_off():
    spots = [(680.0 - n, 200.0) for n in range(60)]
    area = Box(0, 0, 700, 400)
    labels = ["format-weight-only"] * len(spots)
    places = place(spots, labels, area)
    assert all(area.holds(covered(p, label)) for p, label in zip(places, labels, strict=True))


def test_pngs_are_for_slides_and_the_same_each_time(runs, tmp_path):
    pytest.importorskip("matplotlib")
    first, second = to_pngs(runs["two"]), to_pngs(runs["two"])
    assert first == second
    lines = export(runs["two"], Target("png", str(tmp_path / "deck" / "chart.png")))
    assert sorted(p.name for p in (tmp_path / "deck").iterdir()) == ["chart-2.png", "chart.png"]
    assert all(str(tmp_path) in line for line in lines)
    picture = Image.open(tmp_path / "deck" / "chart.png")
    assert (picture.format, picture.size) == ("PNG", (1920, 1080))


def test_nothing_to_draw_is_said():
    with pytest.raises(UsageError, match="png has nothing to draw"):
        to_pngs(table(row("fp32"), without("x", "failed", "no")))


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("png", "matplotlib", "png"), ("mlflow", "mlflow", "mlflow")],
)
def test_a_missing_extra_is_one_line_with_the_pip_command(
    name, package, extra, monkeypatch, tmp_path
):
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    done = run("export", DEMO, "--to", name, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"pip install 'precision-explorer[{extra}]'" in done.stderr


# -- MLflow ---------------------------------------------------------------------------------------


class _Store:
    """MLflow's client as far as it is asked, in memory."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.uri = tracking_uri

    experiments: ClassVar[dict[str, Any]] = {}
    runs: ClassVar[list[dict[str, Any]]] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return self.experiments.get(name)

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        found = types.SimpleNamespace(experiment_id="7", location=artifact_location)
        self.experiments[name] = found
        return "7"

    def search_runs(self, experiments: list[str], text: str) -> list[Any]:
        return [r for r in self.runs if r["tags"][ROW_ID] in text]

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.runs.append({"name": run_name, "files": {}, "id": len(self.runs)})
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=len(self.runs) - 1))

    def log_batch(self, run_id: int, metrics: list, params: list, tags: list) -> None:
        self.runs[run_id] |= {
            "metrics": {m[0]: m[1] for m in metrics},
            "params": dict(params),
            "tags": dict(tags),
        }

    def log_text(self, run_id: int, text: str, name: str) -> None:
        self.runs[run_id]["files"][name] = text

    def set_terminated(self, run_id: int, status: str) -> None:
        self.runs[run_id]["status"] = status


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> type[_Store]:
    """A stand-in for MLflow, which is no dependency of the tests."""

    class Own(_Store):
        experiments: ClassVar[dict[str, Any]] = {}
        runs: ClassVar[list[dict[str, Any]]] = []

    entities = {"Metric": lambda *a: a, "Param": lambda *a: a, "RunTag": lambda *a: a}
    modules = {
        "mlflow": {},
        "mlflow.exceptions": {"MlflowException": RuntimeError},
        "mlflow.tracking": {"MlflowClient": Own},
        "mlflow.entities": entities,
    }
    for name, values in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return Own


def test_a_row_is_a_run_and_stays_one_when_it_is_logged_again(runs, store, tmp_path):
    shown = runs["demo"]
    place = str(tmp_path / "m" / "x.db")
    (line,) = log_rows(shown, place)
    assert line == f"{place}: {len(shown.rows)} runs in the experiment demo-sentiment-cpu"
    assert len(store.runs) == len(shown.rows)
    assert store.runs[0]["files"]["tradeoffs.md"] == to_markdown(shown)
    assert json.loads(store.runs[0]["files"]["context.json"]) == context_document(shown)
    assert {r["status"] for r in store.runs} == {"FINISHED"}
    location = store.experiments["demo-sentiment-cpu"].location
    assert location == (tmp_path / "m" / "x.db.artifacts").as_uri()
    (line,) = log_rows(shown, place)
    assert line.startswith(f"{place}: 0 runs")
    assert line.endswith(f"{len(shown.rows)} were there already")
    # At another price it is another result.
    log_rows(build([DEMO], {"price_per_hour": 3.0}), place)
    assert len(store.runs) == 2 * len(shown.rows)


def test_a_failed_row_is_a_failed_run_and_a_refusal_one_line(store, monkeypatch, tmp_path):
    log_rows(table(row("fp32"), without("x", "failed", "no")), str(tmp_path / "x.db"))
    assert [r["status"] for r in store.runs] == ["FINISHED", "FAILED"]

    def refuse(*args: Any) -> None:
        raise RuntimeError("no such\nstore")

    monkeypatch.setattr(store, "get_experiment_by_name", refuse)
    done = run("export", DEMO, "--to", tmp_path / "x.db")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "MLflow refused" in done.stderr


def test_mlflow_itself_reads_what_was_logged(runs, tmp_path):
    """In an environment with the extra."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    shown = runs["demo"]
    for _ in range(2):
        log_rows(shown, str(tmp_path / "x.db"))
    client = MlflowClient(f"sqlite:///{tmp_path / 'x.db'}")
    experiment = client.get_experiment_by_name("demo-sentiment-cpu")
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == len(shown.rows)
    by_format = {r.data.params["format"]: r for r in found}
    for old in stored(shown):
        data = by_format[old["format"]].data
        for name, text in old.items():
            value = data.metrics.get(name, data.params.get(name, data.tags.get(name)))
            if text and name not in TEXT_COLUMNS:
                assert float(value) == pytest.approx(float(text), rel=1e-12), name
            else:
                assert (value or "") == text, name
    (tmp_path / "no.db").write_text("no database" * 100)
    with pytest.raises(UsageError, match="MLflow refused at"):
        log_rows(shown, str(tmp_path / "no.db"))
    info = by_format["fp32"].info
    names = {f.path for f in client.list_artifacts(info.run_id)}
    assert names == {"tradeoffs.md", "context.json"}


# -- the command -----------------------------------------------------------------------------------


def test_the_command_writes_by_format_and_by_the_file_s_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("export", DEMO, "--to", "xlsx")
    assert (done.returncode, done.stdout) == (0, "demo-sentiment-cpu.xlsx: 9 rows\n")
    assert run("export", DEMO, "--to", "new/a.parquet").stdout == "new/a.parquet: 9 rows\n"
    assert run("export", DEMO, "--to", "json", "--out", "new").returncode == 0
    assert (tmp_path / "new" / "demo-sentiment-cpu.json").exists()
    done = run("export", DEMO, RESULTS / "smollm2-choice-cpu", "--to", "json")
    rows = json.loads((tmp_path / "tradeoffs.json").read_text())["rows"]
    assert {r["model"] for r in rows} == {"demo", "smollm2-135m"}
    assert run("export", DEMO, DEMO, "--to", "json", "--out", "-").stdout.startswith("{\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "exel"], "unknown format 'exel'"),
        (["--to", "a.docx"], "no format ends in .docx"),
        (["--to", "a.json", "--out", "b.json"], "leave --out away"),
        (["--to", "xlsx", "--out", "-"], "xlsx can't be printed"),
        (["--to", "json", "--source-url", "https://x"], "--source-url belongs to model-card"),
        (["--to", "model-card", "--source-url", "x"], "source-url x is no address"),
        (["--to", "json", "--quality-budget", "x"], "quality-budget"),
    ],
)
def test_wrong_use_is_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("export", DEMO, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_model_card_that_somebody_wrote_is_not_written_over(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# My model\n")
    done = run("export", DEMO, "--to", "model-card", "--out", card)
    assert done.returncode == 1
    assert "not written by export" in done.stderr
    assert card.read_text() == "# My model\n"
    other = tmp_path / "section.md"
    for _ in range(2):
        assert run("export", DEMO, "--to", other).returncode == 0
    assert MARK in other.read_text()


def test_where_mlflow_goes():
    runs = [DEMO]
    assert target_of("mlflow", None, runs, "http://h") == Target("mlflow", None)
    assert target_of("mlflow", None, runs, None) == Target("mlflow", "demo-sentiment-cpu.db")
    assert target_of("mlflow", "http://h:5000", runs, None).place == "http://h:5000"
    assert target_of("x.sqlite", None, runs, "http://h") == Target("mlflow", "x.sqlite")
    assert set(SUFFIXES) == {"parquet", "json", "xlsx", "model-card", "mlflow", "png", "bundle"}
