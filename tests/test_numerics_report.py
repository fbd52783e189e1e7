"""What an inspection says and shows: documents made by hand, no run; and the command itself."""

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from precision_explorer.cli import main
from precision_explorer.errors import StoreError, UsageError
from precision_explorer.models.reference import DEMO
from precision_explorer.records import Caution, Environment
from precision_explorer.records.numerics import (
    FormatNumerics,
    LayerNumerics,
    NonFinite,
    NumericsDocument,
    read_numerics,
)
from precision_explorer.report.heat import STEPS, make_heat, split_name
from precision_explorer.report.numerics import make_numerics
from precision_explorer.report.numerics_files import (
    NUMERICS_COLUMNS,
    numerics_csv,
    numerics_html,
    numerics_markdown,
    print_numerics,
    write_numerics,
)
from precision_explorer.runner import numerics as runner
from precision_explorer.runner.jobs import JobFailed
from tests.command import run

ENVIRONMENT = Environment(
    python="3.11", platform="Linux", device_name="Test CPU", device={}, cpu_model="Test", cores=2,
    memory_bytes=8, threads=2, libraries={"torch": "2.13"},
)  # fmt: skip


def layer(order, name, db=None, **more):
    """A layer whose output has `db`; `more` replaces what a test is about."""
    measured = {
        "output_state": "measured", "output_sqnr_db": db, "local_state": "measured",
        "local_sqnr_db": 40.0, "weight_state": "measured", "weight_sqnr_db": 42.0,
    }  # fmt: skip
    if db is None:
        measured |= {"output_state": "exact", "local_state": "exact", "local_sqnr_db": None}
    values = measured | {
        "order": order, "layer": name, "kind": "linear", "converted": True, "rows": 10,
        "input_max_abs": 3.0, "output_max_abs": 7.0, "weight_max_abs": 0.5,
        "input_outlier_ratio": 2.0,
    }  # fmt: skip
    return LayerNumerics(**(values | more))


def format_(name="int8-dynamic", layers=(), **more):
    values = {"format": name, "status": "ok", "reason": "a unit", "execution": "native"}
    return FormatNumerics(layers=list(layers), **(values | more))


def document(*formats, **more):
    values = {
        "model": "tiny", "revision": "files:1", "task": "sentiment", "task_version": 1,
        "device": "cpu", "reference": "fp32", "seed": 0, "max_tokens": 512, "examples": ["a", "b"],
        "tokens": 30, "cautions": [], "environment": ENVIRONMENT,
    }  # fmt: skip
    return NumericsDocument(formats=list(formats), **(values | more))


BLOCKS = [layer(i, f"model.layers.{i}.mlp.down_proj", 40.0 - i) for i in range(7)]
OVERFLOW = NonFinite(
    module="model.layers.3.mlp.down_proj", example="a", inputs_finite=True, input_max_abs=12.0,
    reference_output_max_abs=91_000.0, type="float16", type_largest=65504.0, after="x", examples=2,
)  # fmt: skip


def sentences(found):
    return " ".join(make_numerics(document(found)).formats[0].sentences)


# -- sentences -------------------------------------------------------------------------------------


def test_the_median_and_the_worst_layers_are_named_in_order():
    content = make_numerics(document(format_(layers=BLOCKS)))
    (row,) = content.summary.rows
    assert [c.text for c in row] == [
        "int8-dynamic", "native", "7", "37.0", "34.0", "40.0", "42.0", "none",
    ]  # fmt: skip
    worst = content.formats[0].worst
    assert [r[0].text[13] for r in worst.rows] == list("65432")
    assert "The largest error built up is in model.layers.6.mlp.down_proj: 34.0 dB, an error of " \
        "2.0 %; fed exact inputs, that layer alone has 40.0 dB, an error of 1.0 %" in sentences(
            format_(layers=BLOCKS)
        )  # fmt: skip


def test_the_first_non_finite_layer_is_a_result_with_its_numbers():
    layers = [*BLOCKS[:3], layer(3, OVERFLOW.module, 1.0, output_state="not-finite",
                                 output_sqnr_db=None)]  # fmt: skip
    found = format_("fp16", layers, first_non_finite=OVERFLOW)
    text = sentences(found)
    assert "First non-finite: model.layers.3.mlp.down_proj in fp16, example a" in text
    assert "reaches 91,000, against 65,504 that float16 can hold" in text
    (row,) = make_numerics(document(found)).summary.rows
    assert row[4].text == "not finite"
    assert row[7].text == OVERFLOW.module


def test_where_it_became_non_finite_is_told_by_its_inputs():
    between = OVERFLOW.model_copy(update={"inputs_finite": False, "after": "act"})
    assert "after act, in arithmetic between layers" in sentences(
        format_(layers=BLOCKS, first_non_finite=between)
    )
    inside = OVERFLOW.model_copy(update={"reference_output_max_abs": 10.0})
    assert "reaches only 10.0, so it is a value inside" in sentences(
        format_(layers=BLOCKS, first_non_finite=inside)
    )


def test_range_and_small_values_are_said():
    over = layer(0, "up", 30.0, input_overflow_share=0.1, input_type="float16", input_max_abs=9e4)
    small = layer(1, "down", 30.0, weight_flushed_share=0.25, input_flushed_share=0.5)
    text = sentences(format_(layers=[over, small]))
    assert "inputs of up are beyond what float16 can hold; the largest is 90,000" in text
    assert "up to 25 % of the weights of down and 50 % of the inputs of down become zero" in text


def test_no_difference_is_said_so():
    found = format_(layers=[layer(0, "a")])
    assert sentences(found) == "No layer's output differs from the reference's."
    assert make_numerics(document(found)).summary.rows[0][3].text == "exact"
    assert make_numerics(document(found)).formats[0].worst is None


def test_outliers_of_the_model_are_said_once():
    layers = [*BLOCKS, layer(7, "wide", 30.0, input_outlier_ratio=250.0)]
    content = make_numerics(document(format_(layers=layers), format_("bf16", layers)))
    assert "in the inputs of wide the largest channel reaches 250 times" in content.model[0]
    assert len(content.model) == 2


def test_skips_failures_and_cautions_are_shown():
    caution = Caution(id="reference-was-4bit", message="it flatters")
    skipped = FormatNumerics(
        format="tf32", status="skipped", reason="no unit", execution="unsupported"
    )
    content = make_numerics(document(skipped, cautions=[caution]))
    assert [c.text for c in content.skipped.rows[0]] == ["tf32", "skipped", "no unit"]
    assert content.cautions == ("reference-was-4bit: it flatters",)
    assert content.heats == ()
    for text in (numerics_markdown, numerics_html):
        assert "no unit" in text(document(skipped, cautions=[caution]))


# -- heat-map --------------------------------------------------------------------------------------


def test_colours_are_steps_of_ten_decibels():
    layers = [
        layer(i, f"l{i}", db) for i, db in enumerate([-1.0, 0.0, 9.9, 10.0, 59.9, 60.0, 99.0])
    ]
    layers += [layer(7, "e"), layer(8, "n", 1.0, output_state="not-finite", output_sqnr_db=None),
               layer(9, "u", 1.0, output_state="unavailable", output_sqnr_db=None)]  # fmt: skip
    heat = make_heat([format_(layers=layers)])[0]
    assert [row.cells[0].css for row in heat.rows] == [
        "c0", "c1", "c1", "c2", "c6", "c7", "c7", "exact", "bad", "none",
    ]  # fmt: skip
    assert [css for css, _ in heat.key] == [f"c{k}" for k in range(len(STEPS) + 1)] + [
        "exact", "bad", "none",
    ]  # fmt: skip
    assert "1 layers not finite" in heat.description


def test_blocks_are_grouped_and_many_layers_keep_apart():
    names = [
        f"model.layers.{b}.{p}" for b in range(30) for p in ("q", "k", "v", "o", "g", "u", "d")
    ]
    layers = [layer(i, name, 30.0) for i, name in enumerate([*names, "lm_head"])]
    heat = make_heat([format_(layers=layers)])[0]
    assert (heat.rows[0].block, heat.rows[0].span, heat.rows[0].name) == ("model.layers.0", 7, "q")
    assert sum(row.span for row in heat.rows) == len(heat.rows) == 211
    assert (heat.rows[-1].block, heat.rows[-1].name) == ("", "lm_head")
    places = [at for at, _ in heat.ticks]
    assert min(b - a for a, b in pairwise(places)) >= 34
    last = heat.strips[0].cells[-1]
    assert last[0] + last[1] == pytest.approx(heat.width, abs=1)
    assert split_name("lm_head") == ("", "lm_head")


def test_a_layer_that_a_format_does_not_have_is_a_dash():
    heat = make_heat([format_(layers=BLOCKS[:2]), format_("bf16", BLOCKS[:1])])[0]
    assert [c.css for c in heat.rows[1].cells] == ["c4", "none"]


# -- files -----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what a test asks for."""

    VOID = frozenset({"meta", "br", "rect", "line", "path", "circle"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


EVIL = "<script>alert(1)</script>\x1b[31m"


def test_the_page_is_whole_has_no_script_and_escapes_names():
    found = format_(layers=[layer(0, EVIL, 30.0), *BLOCKS], first_non_finite=OVERFLOW)
    text = numerics_html(document(found, model=EVIL, task="=1+1"))
    page = Page(text)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"(src|href)=", text)
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert "<script>alert(1)</script>" in "".join(page.text)
    assert "\x1b" not in text
    # The drawing has its words, and the table every number.
    assert page.tags.count("desc") == 2
    assert ("role", "img") in page.attributes
    assert page.tags.count("tr") > 2 * 8


def test_the_page_says_the_numbers_of_the_map():
    text = "".join(Page(numerics_html(document(format_(layers=BLOCKS)))).text)
    for value in range(34, 41):
        assert str(value) in text


def test_the_columns_of_the_csv_are_declared_and_its_texts_harmless():
    found = format_(layers=[layer(0, "=cmd()", 30.5), layer(1, "b")])
    rows = list(csv.reader(io.StringIO(numerics_csv(document(found, format_("bf16"))))))
    assert tuple(rows[0]) == NUMERICS_COLUMNS
    assert len(rows) == 3
    first, second = (dict(zip(rows[0], row, strict=True)) for row in rows[1:])
    assert first["layer"] == "'=cmd()"
    assert (first["output_sqnr_db"], first["output_state"]) == ("30.5", "measured")
    assert (second["output_sqnr_db"], second["output_state"]) == ("", "exact")
    assert first["converted"] == "true"


def test_markdown_and_terminal_say_the_same():
    found = format_(layers=[*BLOCKS, layer(7, "a|b", 3.0)], first_non_finite=OVERFLOW)
    text = numerics_markdown(document(found))
    out = Console(file=io.StringIO(), width=2000)
    print_numerics(document(found), out)
    shown = out.file.getvalue()
    for sentence in make_numerics(document(found)).formats[0].sentences:
        assert sentence in shown
        assert sentence.replace("|", "\\|") in text
    assert r"a\|b" in text


def test_files_are_made_again_byte_for_byte(tmp_path):
    first = write_numerics(document(format_(layers=BLOCKS)), tmp_path / "a")
    second = write_numerics(read_numerics(tmp_path / "a"), tmp_path / "b")
    assert [p.name for p in first] == [
        "numerics.json", "numerics.csv", "numerics.md", "numerics.html",
    ]  # fmt: skip
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no numerics.json"),
        ("{", "no record of inspect"),
        ('{"schema_version": 99}', "newer release"),
        ('{"model": 1}', "no record of inspect"),
        ('{"schema_version": "x"}', "no record of inspect"),
    ],
)
def test_a_folder_that_is_none_is_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "numerics.json").write_text(content)
    with pytest.raises(StoreError, match=words) as error:
        read_numerics(tmp_path)
    assert "\n" not in str(error.value)


# -- the command -----------------------------------------------------------------------------------


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["inspect", *map(str, arguments)])
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--formats", "int8-dynamc"], "did you mean int8-dynamic"),
        (["--formats", "fp32"], "name another by --formats"),
        (["--model", "demo", "--model", "other"], "inspect takes one model"),
        (["--task", "a", "--task", "b"], "inspect takes one task"),
        (["--task", "no-such-task"], "unknown task"),
        (["--model", "./no-such-folder"], "does not exist"),
        (["--limit", "0"], "leaves no example"),
        (["--formats", "bf16", "--calibration", "x.jsonl"], "no format of this sweep calibrates"),
        (["--formats", "int8-static", "--calibration", "x.jsonl"], "no calibration file"),
        (["--from", "no-such-folder"], "holds no numerics.json"),
        (["--from", ".", "--limit", "3"], "leave them out"),
    ],
)
def test_wrong_use_is_one_line(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert words in error
    assert list(tmp_path.iterdir()) == []


def test_from_makes_the_files_again_and_prints(tmp_path, capsys):
    write_numerics(document(format_(layers=BLOCKS)), tmp_path)
    before = (tmp_path / "numerics.html").read_bytes()
    (tmp_path / "numerics.html").write_text("spoilt")
    assert call("--from", tmp_path) == 0
    assert (tmp_path / "numerics.html").read_bytes() == before
    assert "int8-dynamic" in capsys.readouterr().out


def test_the_limit_is_small_unless_given():
    assert runner.inspection_spec({}).limit == runner.EXAMPLES
    assert runner.inspection_spec({"limit": 2}).limit == 2
    assert runner.inspection_spec({"formats": "bf16"}).formats == ("fp32", "bf16")
    with pytest.raises(UsageError):
        runner.inspection_spec({"formats": "fp32"})


def test_a_format_that_fails_costs_only_itself(monkeypatch, tmp_path, capsys):
    """The others are there, and the exit code says that one is not."""

    def job(name, request, threads, on_event, timeout_s):
        assert name == "numerics"
        assert request["card"]["max_length"] == 100  # The card's own is longer.
        if request["format"] == "bf16":
            raise JobFailed("numerics: out of memory")
        row = layer(0, "only", 30.0).model_dump()
        return {"layers": [row], "first_non_finite": None, "tokens": 9, "cautions": []}, b""

    monkeypatch.setattr(runner, "run_job", job)
    monkeypatch.setattr(runner, "MAX_TOKENS", 100)
    out = tmp_path / "out"
    assert call("--formats", "bf16,int8-weight-only,tf32", "--device", "cpu", "--out", out) == 3
    found = {f.format: f for f in read_numerics(out).formats}
    assert found["bf16"].status == "failed"
    assert found["bf16"].reason == "numerics: out of memory"
    assert found["tf32"].status == "skipped"
    assert found["int8-weight-only"].layers[0].layer == "only"
    assert read_numerics(out).tokens == 9
    assert "out of memory" in capsys.readouterr().out


def test_a_model_that_comes_quantized_has_no_reference(tmp_path, capsys):
    copied = shutil.copytree(DEMO, tmp_path / "shipped")
    config = json.loads((copied / "config.json").read_text())
    scheme = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (copied / "config.json").write_text(json.dumps(config | {"quantization_config": scheme}))
    assert call("--model", copied, "--device", "cpu", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "comes quantized" in error
    assert "inspect the original" in error


def test_what_was_found_is_kept_when_a_later_format_is_interrupted(monkeypatch, tmp_path, capsys):
    def job(name, request, threads, on_event, timeout_s):
        if request["format"] == "int8-weight-only":
            raise KeyboardInterrupt
        row = layer(0, "only", 30.0).model_dump()
        return {"layers": [row], "first_non_finite": None, "tokens": 9, "cautions": []}, b""

    monkeypatch.setattr(runner, "run_job", job)
    out = tmp_path / "out"
    assert call("--formats", "bf16,int8-weight-only", "--device", "cpu", "--out", out) == 130
    assert [f.format for f in read_numerics(out).formats] == ["bf16"]
    assert "only" in (out / "numerics.csv").read_text()
    assert "what was done is kept" in capsys.readouterr().err


def test_the_command_end_to_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    formats = "bf16,int8-dynamic,fp8-dynamic"
    done = run("inspect", "--device", "cpu", "--formats", formats, "--limit", 2, "--threads", 1)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "inspect-demo-sentiment-cpu"
    assert sorted(p.name for p in folder.iterdir()) == [
        "numerics.csv", "numerics.html", "numerics.json", "numerics.md",
    ]  # fmt: skip
    with (folder / "numerics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # 12 linear layers in two blocks, pooler, classifier; embeddings and norms beside them.
    by_format = {
        name: [r for r in rows if r["format"] == name] for name in ("bf16", "int8-dynamic")
    }
    for name, low, high in (("bf16", 35, 60), ("int8-dynamic", 20, 50)):
        linear = [r for r in by_format[name] if r["kind"] in ("linear", "head")]
        assert len(linear) == 14
        values = sorted(float(r["output_sqnr_db"]) for r in linear)
        assert low < values[0] <= values[-1] < high
    document = json.loads(Path(folder / "numerics.json").read_text())
    assert [f["status"] for f in document["formats"]] == ["ok", "ok", "skipped"]
    assert len(document["examples"]) == 2
    assert "bf16" in done.stdout
    assert "numerics.html" in done.stderr
