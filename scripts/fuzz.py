"""Feed the readers of files what no one would write, and see that nothing but the tool's own errors
comes out, in bounded time.

    python scripts/fuzz.py --minutes 10
    python scripts/fuzz.py --only records,cards --minutes 1 --seed 3
    python scripts/fuzz.py --engine atheris --minutes 10

Sound documents are changed in their structure (values replaced by odd ones, keys taken out, added
and wrapped), tables are made of odd types and texts, by hypothesis; each is fed as it is and with
changed bytes. All inputs follow from the seed. Atheris (libFuzzer; the extra `fuzz`, Linux) begins
with inputs so made and goes on by what they reach in the code of this program and of PyYAML. A
reader must return, or raise an error of the project's own tree, within `SLOWEST_S` of processor
time. What does not is saved, the shortest input of each place that raised.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from precision_explorer.economics import load_prices, load_sheet
from precision_explorer.errors import PrecisionExplorerError
from precision_explorer.formats.recipe import read_recipe
from precision_explorer.models import resolve
from precision_explorer.models.reference import DEMO
from precision_explorer.plan.spec import load_spec
from precision_explorer.records import read_record, read_scores
from precision_explorer.records.numerics import NUMERICS_FILE, read_numerics
from precision_explorer.runner.protocol import receive
from precision_explorer.store.bundle import unpack
from precision_explorer.store.folder import read_run, unrecorded
from precision_explorer.store.manifest import manifest_fault, parse_manifest
from precision_explorer.table import build
from precision_explorer.tasks import bundled_cards, load_card
from precision_explorer.tasks.cards import hub_cards
from precision_explorer.workload import load_workload
from precision_explorer.workload.trace import read_trace

ROOT = Path(__file__).resolve().parents[1]
# Whose sweep.json, records and samples are changed: of the first sweep that anybody makes.
SWEPT = ROOT / "results" / "demo-sentiment-cpu"
SLOWEST_S = 10.0
"""Processor time that one input may take: more is as good as a crash to who waits for it."""
_MEMORY_BYTES = 16_000_000_000
_BATCH = 20
"""Inputs that hypothesis makes between two looks at the clock."""
_VARIANTS = 4
"""Times that each of them is fed again with other bytes, since hypothesis takes longer to make one
than a reader to refuse it."""


# -- what is fed --------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, -1e308, 5e-324, float("inf"), float("nan"),
    2**31, 2**63, -(2**63) - 1, 10**30, 10**400, "", " ", "0", "1%", "-1%", "nan", "inf", "1e999",
    "all", "demo", "fp32", "../x", "/dev/null", "~nobody/x", "a\0b", "a\nb", "\x1b[31m", "=1+1",
    "\u202e", "\ud800", "x" * 5000, [], {}, [[]], [{}], {"": None}, [None], ["a", "a"],
    {"a": {"b": [1]}}, "2026-11-26", "2026-02-30", "12:30:45", "yes", "<<", "{text}",
    "{0.__class__}", "{", "p99=1ms", "1h", "1GB", "endpoint:http://x", "mixed:x", "evaluate:./x",
    "lm-eval:x",
)  # fmt: skip
_TEXT_PIECES = (
    b"&a ", b"*a", b"<<: *a\n", b"!!timestamp x", b"!!bool x", b"!!int ''", b"!!binary x",
    b"!!python/object/apply:os.getcwd []", b"!!set {a, b}", b"!!omap [a: 1]", b"!x ", b"---\n",
    b"? ", b": ", b"- ", b"[" * 300, b"{" * 300, b"- " * 200, b"{a: " * 150, b'"', b"'", b"|\n",
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\t", b"\xed\xa0\x80", b"#", b",", b"1" * 5000,
    b"1:" * 3000, b"0x" + b"f" * 3000, b"NaN", b"Infinity", b"-", b"1e999", b'{"a":1,"a":2}',
    b"9" * 400, b"a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", b"\x1b[2J", b"%YAML 9.9\n",
)  # fmt: skip
_BINARY_PIECES = (b"\0", b"\xff", b"\x7f", b"\x80", b"PAR1", b"PK\x03\x04", b"\0" * 64, b"\xff" * 8)


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Each (container, key) of a document."""
    found, todo = [], [document]
    while todo:
        one = todo.pop()
        items = one.items() if isinstance(one, dict) else enumerate(one)
        for key, value in items:
            found.append((one, key))
            if isinstance(value, (dict, list)):
                todo.append(value)
    return found


def changed_document(rng: Random, whole: list[Any], drawn: Any) -> Any:
    """One of the documents with up to four changes of its structure; `drawn` is one odd value
    more."""
    document = copy.deepcopy(rng.choice(whole))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 4))):
        places = _places(document) if isinstance(document, (dict, list)) else []
        if not places:
            return copy.deepcopy(rng.choice(ODD))
        owner, key = rng.choice(places)
        other, from_key = rng.choice(places)
        how = rng.choice(("odd", "odd", "drawn", "drop", "wrap", "move", "more"))
        if how == "odd":
            owner[key] = copy.deepcopy(rng.choice(ODD))
        elif how == "drawn":
            owner[key] = drawn
        elif how == "wrap":
            owner[key] = rng.choice(([owner[key]], {"a": owner[key]}, [owner[key]] * 3))
        elif how == "move":
            owner[key] = copy.deepcopy(other[from_key])
        elif how == "drop":
            del owner[key]
        elif isinstance(owner, dict):
            owner[rng.choice(("x", "", "kind", "name", "path", "version"))] = 1
        else:
            owner.append(copy.deepcopy(rng.choice(ODD)))
    return document


def changed_bytes(rng: Random, content: bytes, pieces: tuple[bytes, ...]) -> bytes:
    """`content` with one to four changes of its bytes."""
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        place = rng.randint(0, len(content))
        length = rng.choice((0, 0, 1, 2, 8, 64, 4096))
        how = rng.choice(("piece", "piece", "any", "flip", "cut", "twice", "end"))
        part, after = content[place : place + length], content[place + length :]
        new = {
            "piece": rng.choice(pieces),
            "any": rng.randbytes(rng.randint(1, 8)),
            "flip": bytes([part[0] ^ 1 << rng.randrange(8)]) + part[1:] if part else b"",
            "cut": b"",
            "twice": part * 2,
            "end": b"",
        }[how]
        content = content[:place] + new + (b"" if how == "end" else after)
    return content


def _as_yaml(document: Any) -> bytes:
    try:
        return yaml.safe_dump(document, allow_unicode=True, sort_keys=False).encode()
    except (yaml.YAMLError, UnicodeError):
        return _as_json(document)


def _as_json(document: Any) -> bytes:
    return json.dumps(document, skipkeys=True, default=str).encode()


_SEEDS = st.integers(0, 2**64 - 1)
_VALUES = st.integers() | st.floats() | st.text(max_size=8)


def texts(whole: list[Any], write: Callable[[Any], bytes]) -> Any:
    """Files of YAML or JSON."""
    return st.builds(
        lambda seed, drawn: write(changed_document(Random(seed), whole, drawn)), _SEEDS, _VALUES
    )


_CELLS = ("1", "2.5", "-1", "", "nan", "inf", "1e999", "2023-11-16 18:15:46.68", "2023-11-16",
          "2023-11-16T10:00:00Z", "9999-12-31 00:00:00", "0001-01-01", "x", '"', "=1", "1" * 400,
          "9223372036854775808", "true", " ", "\0", "12:00")  # fmt: skip
_HEADERS = ("time_s", "TIMESTAMP", "ContextTokens", "GeneratedTokens", "input_tokens", "time_s ",
            "output_tokens", "Request tokens", "", "x", "time_s")  # fmt: skip


@st.composite
def csv_traces(draw: Any) -> bytes:
    """A trace as CSV: odd headers and cells, more often than not some of them right."""
    usual = ["time_s", "input_tokens", "output_tokens"]
    header = draw(st.just(usual) | st.just(usual) | st.lists(st.sampled_from(_HEADERS), max_size=5))
    cell = st.sampled_from(_CELLS) | st.integers(-5, 10**6).map(str) | st.floats().map(str)
    row = st.lists(cell, min_size=len(header), max_size=len(header))
    rows = draw(st.just([]) | st.lists(row, max_size=1) | st.lists(row, max_size=8))
    if draw(st.sampled_from((True, True, False))):
        rows = [[str(n), "3", "4"][: len(header)] for n in range(4)] + rows
    return "\n".join(",".join(row) for row in [header, *rows]).encode("utf8", "replace")


_TYPES: tuple[tuple[Any, list[Any]], ...] = (
    (pa.int64(), [1, 2, 3]), (pa.float64(), [0.0, 1.5, float("nan")]),
    (pa.string(), ["1", "2", "x"]),
    (pa.timestamp("ns"), [1, 2, 3]), (pa.timestamp("s"), [2**40, 2**41, 2**42]),
    (pa.timestamp("us", "UTC"), [1, 2, 3]), (pa.date32(), [1, 2, 3]), (pa.time64("ns"), [1, 2, 3]),
    (pa.bool_(), [True, False, None]), (pa.uint64(), [1, 2**64 - 1, 2**64 - 1]),
    (pa.null(), [None] * 3),
    (pa.list_(pa.int64()), [[1], [], None]), (pa.struct([("a", pa.int64())]), [{"a": 1}] * 3),
    (pa.decimal128(38, 2), [None, None, None]), (pa.binary(), [b"\xff", b"", b"1"]),
    (pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a"]), (pa.duration("ns"), [1, 2, 3]),
    (pa.float16(), [None, None, None]), (pa.int8(), [1, 2, 3]),
    (pa.large_string(), ["1", "2", "3"]),
)  # fmt: skip


@st.composite
def parquet_files(draw: Any, names: tuple[str, ...], sound: tuple[int, ...]) -> bytes:
    """A parquet file of three rows of `names`, half of them in odd types; `sound`: the others'."""
    columns, shown = [], []
    for name, usual in zip(names, sound, strict=True):
        kind, values = draw(st.sampled_from((*(_TYPES[usual],) * 20, *_TYPES)))
        columns.append(pa.array(values, kind))
        shown.append(draw(st.sampled_from((*(name,) * 8, "x", names[0]))))
    out = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_arrays(columns, names=shown), out)
    except pa.ArrowException:
        return b""
    return out.getvalue()


# -- what reads it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A reader: `read(folder, content)` puts the content where the reader looks for it. `allowed`:
    errors beside the project's own that its callers answer."""

    inputs: Any
    read: Callable[[Path, bytes], Any]
    allowed: tuple[type[BaseException], ...] = ()
    pieces: tuple[bytes, ...] = _TEXT_PIECES
    """What is put into its bytes."""


def _file(name: str, read: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    def feed(folder: Path, content: bytes) -> Any:
        path = folder / name
        path.write_bytes(content)
        return read(path)

    return feed


def _yaml_seeds(paths: list[Path]) -> list[Any]:
    return [yaml.safe_load(path.read_text(encoding="utf8")) for path in paths]


def _json_seeds(paths: list[Path]) -> list[Any]:
    return [json.loads(path.read_text(encoding="utf8")) for path in paths]


SPECS = [
    {"model": ["demo"], "task": ["sentiment"], "formats": "fp32,bf16", "limit": 5,
     "slo": "p99=50ms", "batch-size": [1, 8], "quality-budget": "2%", "memory-limit": "8GB",
     "seed": 3, "out": "x"},
    {"runtime": ["endpoint:bf16:http://localhost:8000/v1"], "workload": "poisson",
     "find-rate": True, "slo": "p95=1s", "duration": "30s", "background": ["cpu:1"],
     "tails": "p99"},
    {"price": {"prices": [{"kind": "hourly", "usd_per_hour": 1.0, "source": "s", "date": "2026"}]},
     "until-decided": True, "reference": "bf16", "allow-metric": "f1", "allow-pickle": True},
]  # fmt: skip
WORKLOADS = [
    {"name": "a", "scenario": "server", "arrivals": {"kind": "poisson", "rate_per_s": 5.0},
     "lengths": {"input": {"kind": "fixed", "tokens": 128}}, "min_requests": 30},
    {"scenario": "server", "arrivals": {"kind": "on-off", "load": 0.7, "on_s": 1.0, "off_s": 2.0},
     "background": ["cpu:1"]},
    {"scenario": "server", "arrivals": {"kind": "poisson", "load": 0.7},
     "mix": [{"name": "short", "weight": 3}, {"name": "b", "weight": 1, "task": "sentiment"}]},
    {"min_requests": 5, "min_seconds": 0, "budget_seconds": 20, "rounds": 3},
]  # fmt: skip
PRICES = [
    {"currency": "USD", "kind": "hourly", "usd_per_hour": 2.5, "source": "s", "date": "2026-11-26"},
    {"currency": "USD", "prices": [
        {"kind": "ownership", "purchase_usd": 1000.0, "life_years": 3.0, "utilisation": 0.5,
         "power_w": "measured", "pue": 1.2, "usd_per_kwh": 0.1, "source": "s", "date": "2026"},
        {"kind": "list", "device": "*h100*", "term": "spot"}]},
]  # fmt: skip
RECIPES = [
    {"base": "bf16", "layers": {"int8-weight-only": ["a.b", "c"], "nf4": ["d"]}},
    {"layers": {"int8-weight-only": ["model.layers.0.mlp.up_proj"]}},
]  # fmt: skip
NUMERICS = [
    {"schema_version": 1, "model": "m", "revision": "r", "task": "t", "task_version": 1,
     "device": "cpu", "reference": "fp32", "seed": 0, "max_tokens": 5, "examples": ["a"],
     "tokens": 3, "cautions": [], "formats": [], "environment": {
         "python": "3", "platform": "x", "device_name": "x", "device": {}, "cpu_model": None,
         "cores": 1, "memory_bytes": None, "threads": 1, "libraries": {}}},
]  # fmt: skip
SCORES = [
    {"schema_version": 1, "samples": "0" * 64, "metrics": {"evaluate:f1": {
        "value": 0.5, "by": "x", "module": None, "higher_is_better": True, "error": None}}},
]  # fmt: skip
HEADERS = [
    {"type": "answer", "op": "load", "answer": {"a": [1, 2.5, None]}, "seconds": 0.1,
     "arrow_bytes": 0},
    {"type": "progress", "phase": "x", "done": 1, "total": 2, "arrow_bytes": 4},
]  # fmt: skip


def _run(folder: Path, content: bytes) -> Any:
    (folder / "sweep.json").write_bytes(content)
    run, _ = read_run(folder)
    unrecorded(folder)
    run.read_roof()
    run.read_estimate()
    return build([folder])


def _manifest(folder: Path, content: bytes) -> Any:
    manifest_fault(content)
    return parse_manifest(content)


def _bundle(folder: Path, content: bytes) -> Any:
    with tempfile.TemporaryDirectory(dir=folder) as target:
        path = folder / "b.zip"
        path.write_bytes(content)
        name = unpack(path, Path(target))
        outside = [p for p in Path(target).iterdir() if p.name != name]
        assert not outside, f"unpacked outside of its run: {outside}"


def _stored(run: Path) -> Callable[[Path, bytes], Any]:
    """A reader of a sweep.json beside the records and samples of the run at `run`."""

    def read(folder: Path, content: bytes) -> Any:
        for name in ("cells", "samples"):
            if not (folder / name).is_dir():
                shutil.copytree(run / name, folder / name)
        # Of a cell without a record.
        (folder / "parts" / "none").mkdir(parents=True, exist_ok=True)
        (folder / "parts" / "none" / "quality.json").write_bytes(b"{}")
        return _run(folder, content)

    return read


def _samples(run: Path) -> Callable[[Path, bytes], Any]:
    """A reader of samples in the place of those of one cell of the run at `run`: what its table
    makes of them."""

    def read(folder: Path, content: bytes) -> Any:
        if not (folder / "sweep.json").is_file():
            sweep = json.loads((run / "sweep.json").read_text(encoding="utf8"))
            sweep["plan"]["cells"] = sweep["plan"]["cells"][:1]
            for name in ("cells", "samples"):
                (folder / name).mkdir(exist_ok=True)
            record = f"{sweep['plan']['cells'][0]['cell_id']}.json"
            shutil.copy(run / "cells" / record, folder / "cells" / record)
            (folder / "sweep.json").write_text(json.dumps(sweep), encoding="utf8")
        (stored,) = (folder / "cells").glob("*.json")
        (folder / "samples" / f"{stored.stem}.parquet").write_bytes(content)
        return build([folder])

    return read


def _few_cells(run: Path) -> Any:
    """A run's sweep.json with the first of its cells, and one without a record: a table of all
    takes a second."""
    sweep = json.loads((run / "sweep.json").read_text(encoding="utf8"))
    first = sweep["plan"]["cells"][0]
    sweep["plan"]["cells"] = [first, first | {"cell_id": "none"}]
    return sweep


def _first_samples(run: Path) -> Path:
    sweep = json.loads((run / "sweep.json").read_text(encoding="utf8"))
    return run / "samples" / f"{sweep['plan']['cells'][0]['cell_id']}.parquet"


@st.composite
def changed_samples(draw: Any, path: Path) -> bytes:
    """A few rows of each kind of the samples at `path`; of two in three files a column is missing,
    empty, of another type or name."""
    whole = pq.read_table(path)
    kinds = whole["row"].to_pylist()
    places = [i for i, kind in enumerate(kinds) if kinds[:i].count(kind) < 8]
    table = whole.take(places[:40])
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, table.num_columns - 1))
        name = table.column_names[place]
        kind, values = draw(st.sampled_from(_TYPES))
        how = draw(st.sampled_from(("drop", "type", "name", "few")))
        table = table.remove_column(place)
        if how == "type":
            column = pa.array((values * len(table))[: len(table)], kind)
            table = table.append_column(name, column)
        elif how == "name":
            table = table.append_column("id", pa.array([name] * len(table)))
        elif how == "few":
            table = table.append_column(name, pa.nulls(len(table)))
    out = io.BytesIO()
    try:
        pq.write_table(table, out)
    except pa.ArrowException:
        return b""
    return out.getvalue()


_HEADER = b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'


def _model_config(folder: Path, content: bytes) -> Any:
    (folder / "model.safetensors").write_bytes(len(_HEADER).to_bytes(8, "little") + _HEADER)
    (folder / "config.json").write_bytes(content)
    return resolve(str(folder)).id2label


def _model_weights(folder: Path, content: bytes) -> Any:
    (folder / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    return resolve(str(folder)).elements


def _model_index(folder: Path, content: bytes) -> Any:
    (folder / "model.safetensors.index.json").write_bytes(content)
    return _model_weights(folder, _HEADER)


def _wire(folder: Path, content: bytes) -> Any:
    ours, theirs = Pipe()
    with ours, theirs:
        # Pipes hold some 64 kB before a writer waits.
        theirs.send_bytes(content[:30_000])
        theirs.send_bytes(b"rows")
        return receive(ours)


def _archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("README.txt", "run/manifest.json", "run/cells/a.json"):
            archive.writestr(name, b"{}")
    return out.getvalue()


def make_targets() -> dict[str, Target]:
    """Every reader that is fed, by its name."""
    cards = [*bundled_cards().values(), *hub_cards().values()]
    records = sorted((ROOT / "tests" / "records").glob("*/*.json"))
    runs = sorted((ROOT / "results").glob("*/sweep.json"))
    stored = [_few_cells(SWEPT)]
    manifests = _json_seeds(
        [p for run in runs[:3] if (p := run.parent / "manifest.json").is_file()]
    )
    config = json.loads((DEMO / "config.json").read_text(encoding="utf8"))
    shipped = config | {
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}
    }
    header = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
              "__metadata__": {"format": "pt"}, "q": {"dtype": "I8", "shape": [4],
                                                      "data_offsets": [24, 28]}}  # fmt: skip
    index = {"metadata": {"total_size": 4}, "weight_map": {"w": "model.safetensors"}}
    sheet = ROOT / "precision_explorer" / "economics" / "prices.yaml"
    trace = ("time_s", "input_tokens", "output_tokens")
    return {
        "specs": Target(texts(SPECS, _as_yaml), _file("s.yaml", lambda p: load_spec(p, {}))),
        "cards": Target(
            texts(_yaml_seeds(cards), _as_yaml), _file("task.yaml", lambda p: load_card(str(p)))
        ),
        "workloads": Target(texts(WORKLOADS, _as_yaml), _file("w.yaml", load_workload)),
        "price files": Target(texts(PRICES, _as_yaml), _file("p.yaml", load_prices)),
        "price sheets": Target(texts(_yaml_seeds([sheet]), _as_yaml), _file("p.yaml", load_sheet)),
        "recipes": Target(texts(RECIPES, _as_yaml), _file("r.yaml", read_recipe)),
        "records": Target(texts(_json_seeds(records), _as_json), _file("r.json", read_record)),
        "runs": Target(texts(stored, _as_json), _stored(SWEPT)),
        "manifests": Target(texts(manifests or [{}], _as_json), _manifest),
        "scores": Target(texts(SCORES, _as_json), lambda _, content: read_scores(content, "x")),
        "numerics": Target(
            texts(NUMERICS, _as_json), _file(NUMERICS_FILE, lambda p: read_numerics(p.parent))
        ),
        "samples": Target(
            changed_samples(_first_samples(SWEPT)), _samples(SWEPT), pieces=_BINARY_PIECES
        ),
        "CSV traces": Target(csv_traces(), _file("t.csv", read_trace)),
        "parquet traces": Target(
            parquet_files(trace, (0, 0, 0)), _file("t.parquet", read_trace), pieces=_BINARY_PIECES
        ),
        "bundles": Target(st.just(_archive()), _bundle, pieces=_BINARY_PIECES),
        "model configs": Target(texts([config, shipped], _as_json), _model_config),
        "model weights": Target(texts([header], _as_json), _model_weights),
        "model indices": Target(texts([index], _as_json), _model_index),
        "workers' answers": Target(
            texts(HEADERS, _as_json), _wire, (ValueError, OSError, EOFError)
        ),
    }


# -- feeding ------------------------------------------------------------------------------------


@dataclass
class Found:
    """What came of feeding one reader."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    faults: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """{error and place: (the shortest input, the traceback)}."""

    def fault(self, key: str, content: bytes, text: str) -> None:
        """Keep the shortest input."""
        if key not in self.faults or len(content) < len(self.faults[key][0]):
            self.faults[key] = (content, text)


def feed(target: Target, folder: Path, content: bytes, found: Found) -> None:
    """One input."""
    found.inputs += 1
    began = time.process_time()
    try:
        target.read(folder, content)
        found.accepted += 1
    except PrecisionExplorerError as error:
        found.refused += 1
        if "\n" in str(error) or not str(error).strip():
            found.fault(f"{type(error).__name__} is not a line", content, repr(error))
    except target.allowed:
        found.refused += 1
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        key = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        found.fault(key, content, traceback.format_exc())
    took = time.process_time() - began
    found.slowest_s = max(found.slowest_s, took)
    if took > SLOWEST_S:
        found.fault(f"more than {SLOWEST_S:g} s", content, f"{took:.1f} s of processor time")


def run_target(
    target: Target, seed: int, seconds: float | None = None, inputs: int | None = None
) -> Found:
    """Feed one reader for so many seconds or inputs, from `seed` on."""
    found, began, batch = Found(), time.monotonic(), 0

    def more() -> bool:
        if inputs is not None:
            return found.inputs < inputs
        return time.monotonic() - began < (seconds or 0.0)

    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        while more():

            @hypothesis.seed(seed * 1_000_003 + batch)
            @settings(
                max_examples=_BATCH,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(target.inputs, _SEEDS)
            def one(content: bytes, bytes_seed: int) -> None:
                feed(target, Path(work), content, found)
                rng = Random(bytes_seed)
                for _ in range(_VARIANTS):
                    feed(target, Path(work), changed_bytes(rng, content, target.pieces), found)

            one()
            batch += 1
    found.seconds = time.monotonic() - began
    return found


# -- by what is reached -------------------------------------------------------------------------


_CHILD = """
import sys
import atheris

sys.path.insert(0, sys.argv[1])
# What is imported here tells libFuzzer what an input reaches.
with atheris.instrument_imports(include=["precision_explorer", "yaml"]):
    import fuzz
fuzz.atheris_child(*sys.argv[2:])
"""


def with_atheris(name: str, seed: int, seconds: float) -> Found:
    """Feed one reader by Atheris for so many seconds, in a process of its own, which libFuzzer
    ends."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        command = [sys.executable, "-c", _CHILD, str(Path(__file__).resolve().parent), name, work]
        command += [str(seed), str(seconds)]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        answer = Path(work) / "found.json"
        if not answer.is_file():
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            sys.exit(f"{name}: Atheris gave no answer ({last}); is the extra `fuzz` installed?")
        told = json.loads(answer.read_text(encoding="utf8"))
        faults = {k: (bytes.fromhex(c), text) for k, (c, text) in told.pop("faults").items()}
        found = Found(**told, faults=faults)
        found.seconds = time.monotonic() - began
        if done.returncode:
            # A crash of the interpreter, or no answer in time: libFuzzer keeps the input.
            kept = list(Path(work).glob("libfuzzer-*"))
            content = kept[0].read_bytes() if kept else b""
            found.fault(f"libFuzzer's exit code {done.returncode}", content, done.stderr[-4000:])
    return found


def atheris_child(name: str, folder: str, seed: str, seconds: str) -> None:
    """Never returns: libFuzzer ends the process. What was found is written again and again."""
    import atheris

    work = Path(folder)
    target, corpus = make_targets()[name], work / "corpus"
    corpus.mkdir()
    first = Target(target.inputs, lambda _, content: _kept(corpus, content), (), target.pieces)
    run_target(first, int(seed), inputs=100)
    found, fed = Found(), work / "fed"
    fed.mkdir()

    def one(content: bytes) -> None:
        known = len(found.faults)
        feed(target, fed, content, found)
        if found.inputs % 100 == 0 or len(found.faults) > known or found.inputs == 1:
            faults = {k: (content.hex(), text) for k, (content, text) in found.faults.items()}
            told = json.dumps(vars(found) | {"faults": faults})
            (work / "found.tmp").write_text(told, encoding="utf8")
            (work / "found.tmp").replace(work / "found.json")

    options = [
        f"-max_total_time={max(1, round(float(seconds)))}", f"-seed={int(seed) + 1}",
        "-max_len=65536",
        f"-timeout={int(SLOWEST_S) * 3}", "-rss_limit_mb=8000",
        f"-artifact_prefix={work}/libfuzzer-",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def _kept(corpus: Path, content: bytes) -> None:
    (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)


def save(name: str, found: Found, folder: Path) -> None:
    """The inputs that a reader came to grief with, and the tracebacks beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(c if c.isalnum() else "-" for c in name)
    for number, (key, (content, text)) in enumerate(sorted(found.faults.items())):
        (folder / f"{stem}-{number}.input").write_bytes(content)
        (folder / f"{stem}-{number}.txt").write_text(f"{key}\n{text}\n", encoding="utf8")


def main() -> None:
    """Print a line per reader; exit 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for all readers together")
    parser.add_argument("--only", metavar="NAME,...", help="some of the readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("hypothesis", "atheris"), default="hypothesis")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"), metavar="DIR")
    options = parser.parse_args()
    targets = make_targets()
    if options.only:
        unknown = set(options.only.split(",")) - set(targets)
        if unknown:
            parser.error(f"unknown reader {min(unknown)}; known: {', '.join(targets)}")
        targets = {name: targets[name] for name in options.only.split(",")}
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, hard))
    print(f"{'reader':18} {'inputs':>8} {'read':>8} {'refused':>8} {'slowest':>8}  faults")
    faults = total = 0
    for name, target in targets.items():
        seconds = options.minutes * 60 / len(targets)
        if options.engine == "atheris":
            found = with_atheris(name, options.seed, seconds)
        else:
            found = run_target(target, options.seed, seconds)
        print(
            f"{name:18} {found.inputs:8,} {found.accepted:8,} {found.refused:8,} "
            f"{found.slowest_s:6.2f} s  {len(found.faults)}",
            flush=True,
        )
        for key in sorted(found.faults):
            print(f"    {key}", flush=True)
        if found.faults:
            save(name, found, options.save)
        faults, total = faults + len(found.faults), total + found.inputs
    print(f"{total:,} inputs, {faults} faults")
    if faults:
        sys.exit(f"the inputs lie in {options.save}")


if __name__ == "__main__":
    main()
