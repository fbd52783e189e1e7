"""Models spread over several devices: the cut, the plan, the meters, and a real spread on stand-ins
(``cpu:0``, ``cpu:1``), whose hooks are accelerate's and whose memory is the processor's."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from precision_explorer.cli import plan
from precision_explorer.economics import price_for
from precision_explorer.economics.price_sheet import of_several
from precision_explorer.errors import UsageError
from precision_explorer.formats.apply import apply_format
from precision_explorer.formats.verify import census
from precision_explorer.hardware import (
    DeviceFacts,
    device_facts,
    open_sensor,
    with_those_beside,
)
from precision_explorer.hardware.fakes import FakeGpu, FakeNvml
from precision_explorer.hardware.readings import open_readings
from precision_explorer.measure import CudaPeakMemory
from precision_explorer.models.aligned import _Aligned, hooks_of
from precision_explorer.models.dispatch import blocks, is_spread
from precision_explorer.models.loading import load
from precision_explorer.models.reference import DEMO
from precision_explorer.models.splitting import ROOM, Block, Split, in_short, split
from precision_explorer.models.synthetic import make
from precision_explorer.plan.fit import request_cache
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import shapes, sweep
from precision_explorer.runner.jobs import JobFailed
from precision_explorer.runner.parking import Parking
from precision_explorer.runner.session import _devices
from precision_explorer.runner.sweep import prepare_sweep, run_sweep
from precision_explorer.table import build
from tests.test_measure import FakeCuda

# -- the cut ------------------------------------------------------------------------------------


def body(layers: int, layer: int, ends: int) -> list[Block]:
    middle = [Block((f"model.layers.{k}",), layer, True) for k in range(layers)]
    first, last = Block(("embed",), ends, False), Block(("norm", "head"), ends, False)
    return [first, *middle, last]


def test_every_cut_is_whole_in_order_and_on_the_fewest_devices():
    draw = random.Random(0)
    made = 0
    for _ in range(400):
        found = [Block((f"b{k}",), draw.randint(1, 100), draw.random() < 0.7) for k in range(12)]
        total, memory = sum(b.elements for b in found), draw.randint(60, 700)
        most, cache = draw.randint(2, 8), draw.choice([0, 50])
        result = split(found, total, total, cache, memory, most)
        if result is None:
            # Filling one device after the other is the fewest for blocks in order.
            assert _first_fit(found, cache, ROOM * memory) > most
            continue
        made += 1
        assert list(result.device_map) == [name for b in found for name in b.names]
        places = list(result.device_map.values())
        assert places == sorted(places)
        assert set(places) == set(range(result.devices))
        assert max(result.bytes_by_device) <= ROOM * memory
        assert sum(result.bytes_by_device) >= total
        assert result.devices == max(2, _first_fit(found, cache, ROOM * memory))
    assert made > 100


def _first_fit(found: list[Block], cache: int, room: float) -> float:
    layers = sum(b.layer for b in found)
    each = math.ceil(cache / layers) if layers else 0
    count, held = 1, 0.0
    for block in found:
        size = block.elements + each * block.layer
        if size > room:
            return math.inf
        if held + size > room:
            count, held = count + 1, 0
        held += size
    return count


def test_the_fullest_device_holds_as_little_as_can_be():
    # Two devices would hold 900 each; the halves are 4 layers each.
    found = split(body(8, 100, 50), 900, 900, 0, 1000, 4)
    assert found is not None
    assert found.bytes_by_device == (450, 450)
    assert found.largest_share == 0.5


def test_a_layer_is_not_cut_so_that_it_may_take_more_devices_than_bytes_do():
    three = [Block((f"l.{k}",), 60, True) for k in range(3)]
    assert 2 * ROOM * 100 >= 180  # By bytes alone two would do.
    assert split(three, 180, 180, 0, 100, 3).devices == 3
    assert split(three, 180, 180, 0, 100, 2) is None


def test_the_cache_counts_with_the_layers():
    assert split(body(4, 100, 0), 400, 400, 0, 250, 4).devices == 2
    assert split(body(4, 100, 0), 400, 400, 400, 250, 4).devices == 4
    # A format that takes less once it is applied has room for it.
    assert split(body(4, 100, 0), 400, 100, 300, 250, 4).devices == 2


def test_names_in_short():
    names = ["embed", *(f"m.layers.{k}" for k in range(3)), "m.layers.5", "norm"]
    assert in_short(names) == "embed, m.layers.0 to 2, m.layers.5, norm"


# -- blocks of models ---------------------------------------------------------------------------


def config(**more: Any) -> Any:
    return transformers.LlamaConfig(**{
        "vocab_size": 6400, "hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 6,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "initializer_range": 0.2, "bos_token_id": 2,
        "eos_token_id": 3, "pad_token_id": 0,
    } | more)  # fmt: skip


def built(made: Any, kind: Any) -> Any:
    with torch.device("meta"):
        model = kind(made)
        model.tie_weights()
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_of_a_model_is_in_one_block(tied):
    model = built(config(tie_word_embeddings=tied), transformers.LlamaForCausalLM)
    found = blocks(model)
    names = [name for block in found for name in block.names]
    for key in model.state_dict():
        assert sum(key.startswith(f"{name}.") or key == name for name in names) == 1, key
    assert sum(block.layer for block in found) == 6
    buffers = sum(b.numel() for b in model.buffers())
    total = sum(p.numel() for p in model.parameters())
    assert total <= sum(block.elements for block in found) <= total + buffers
    # A head that shares the embedding's weight is where that is.
    assert ("lm_head" in found[0].names) == tied
    assert "model.rotary_emb" in found[0].names


def test_blocks_of_other_architectures():
    bert = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        vocab_size=50,
    )  # fmt: skip
    found = blocks(built(bert, transformers.BertForSequenceClassification))
    names = [name for block in found for name in block.names]
    assert names[0] == "bert.embeddings"
    assert "bert.encoder.layer.1" in names
    model = built(config(), transformers.LlamaForCausalLM)
    model._no_split_modules = None
    assert blocks(model) is None


# -- a model whose blocks are apart -----------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config()).save_pretrained(folder, max_shard_size="2MB")
    transformers.AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    return folder


def mapped(made: Any = None) -> dict[str, str]:
    model = built(made or config(), transformers.LlamaForCausalLM)
    found = split(blocks(model), 6_000_000, 6_000_000, 0, 4_000_000, 2)
    return {name: f"cpu:{place}" for name, place in found.device_map.items()}


def both(checkpoint: Path) -> tuple[Any, Any]:
    given = (checkpoint, "language-modeling", torch.float32)
    return load(*given, "cpu", False), load(*given, "cpu:0", False, device_map=mapped())


IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.mark.parametrize(
    ("format_id", "recipe"),
    [
        ("fp32", {"kernel": "torch", "library": "torch"}),
        ("int8-weight-only", {"kernel": "torchao", "library": "torchao"}),
        ("int8-dynamic", {"kernel": "fbgemm-per-token", "library": "torch"}),
        ("nf4", {"kernel": "bitsandbytes", "library": "bitsandbytes"}),
        ("int8-llm", {"kernel": "bitsandbytes", "library": "bitsandbytes"}),
    ],
)
def test_formats_on_a_spread_model_compute_what_they_do_on_one_device(
    checkpoint, format_id, recipe, monkeypatch
):
    one, several = both(checkpoint)
    recipe = recipe | {"compute_dtype": "float32"}
    held = [apply_format(m, format_id, recipe, "native", "") for m in (one, several)]
    assert held[0].applied == held[1].applied
    ran = []
    usual = _Aligned.pre_forward

    def seen(self: Any, module: Any, *given: Any, **named: Any) -> Any:
        ran.append((type(module).__name__, self.execution_device))
        return usual(self, module, *given, **named)

    monkeypatch.setattr(_Aligned, "pre_forward", seen)
    with torch.inference_mode():
        expected, found = one(input_ids=IDS).logits, several(input_ids=IDS).logits
    assert torch.equal(expected, found)
    # Each block was entered through its hook, first those of one device, then those of the other.
    assert ran[0] == ("LlamaForCausalLM", "cpu:0")
    assert [name for name, _ in ran].count("LlamaDecoderLayer") == 6
    devices = [d for name, d in ran if name in ("Embedding", "LlamaDecoderLayer", "LlamaRMSNorm")]
    assert devices == sorted(devices)
    assert set(devices) == {"cpu:0", "cpu:1"}
    assert hooks_of(several) == mapped() | {"": "cpu:0"}
    assert is_spread(several)
    assert not is_spread(one)


def test_a_layer_that_is_a_block_of_its_own_keeps_its_hook_when_it_is_converted():
    auto = transformers.AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto.from_config(transformers.AutoConfig.from_pretrained(DEMO))
    names = [name for block in blocks(model) for name in block.names]
    device_map = {name: f"cpu:{int(2 * k >= len(names))}" for k, name in enumerate(names)}
    found = load(DEMO, "text-classification", torch.float32, "cpu:0", False, device_map=device_map)
    before = hooks_of(found)
    assert "bert.pooler.dense" in before
    recipe = {"kernel": "fbgemm-per-token", "library": "torch", "compute_dtype": "float32"}
    apply_format(found, "int8-dynamic", recipe, "native", "")
    assert type(found.bert.pooler.dense) is not torch.nn.Linear
    assert hooks_of(found) == before


def test_generation_with_a_cache_is_the_same(checkpoint):
    one, several = both(checkpoint)
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    with torch.inference_mode():
        found = [m.generate(input_ids=IDS, **how).tolist() for m in (one, several)]
    assert found[0] == found[1]


def test_random_weights_are_drawn_on_their_own_devices(checkpoint):
    given = (checkpoint, "language-modeling", torch.bfloat16)
    found = make(*given, "cpu:0", False, 3, mapped())
    again = make(*given, "cpu:0", False, 3, mapped())
    assert hooks_of(found) == mapped() | {"": "cpu:0"}
    assert census(found).weight_bytes == census(make(*given, "cpu", False, 3)).weight_bytes
    frequencies = make(*given, "cpu", False, 3).model.rotary_emb.inv_freq
    assert torch.equal(found.model.rotary_emb.inv_freq, frequencies)
    spread = found.model.layers[3].mlp.up_proj.weight.float()
    assert 0.15 < spread.std() < 0.25  # The config's own initialisation.
    with torch.inference_mode():
        logits = found(input_ids=IDS).logits
        assert torch.isfinite(logits).all()
        assert torch.equal(logits, again(input_ids=IDS).logits)


# -- what looks at devices ----------------------------------------------------------------------


def gpus(count: int, **more: Any) -> FakeNvml:
    return FakeNvml([
        FakeGpu(bus_id=f"00000000:0{k}:00.0", uuid=f"GPU-{k}", energy_mj=1000 * (k + 1), **more)
        for k in range(count)
    ])  # fmt: skip


def facts_of(nvml: FakeNvml, device: str = "cuda:0") -> DeviceFacts:
    found = device_facts(device, cpuinfo="", variables={}, nvml=nvml)
    assert found.beside == ()
    return with_those_beside(found, variables={}, nvml=nvml)


def test_devices_of_the_same_kind_are_beside_a_device():
    found = facts_of(gpus(3), "cuda:1")
    assert [one.device for one in found.each] == ["cuda:1", "cuda:0", "cuda:2"]
    assert _devices(found.over(2)) == ["cuda:1", "cuda:0"]
    assert _devices(found.over(1)) == ["cuda:1"]
    # No part of what is stored, hashed or sent.
    assert "beside" not in found.model_dump(mode="json")
    nvml = FakeNvml([FakeGpu(), FakeGpu(memory=80_000_000_000, bus_id="b")])
    assert facts_of(nvml).beside == ()


def test_slices_of_a_gpu_are_beside_nothing():
    for cut in ({"is_slice": True}, {"is_cut": True}):
        nvml = gpus(3)
        nvml.gpus[1] = replace(nvml.gpus[1], **cut)
        assert [one.device for one in facts_of(nvml).each] == ["cuda:0", "cuda:2"]
        assert facts_of(nvml, "cuda:1").beside == ()


def test_energy_is_that_of_all_devices_or_none():
    nvml = gpus(3)
    found = open_sensor(facts_of(nvml).over(2), nvml=nvml)
    assert found.source == "measured:nvml"
    assert found.energy_j() == 3.0
    assert found.boundary.startswith("sum of 2 devices, each: GPU")
    assert open_sensor(facts_of(nvml).over(1), nvml=nvml).energy_j() == 1.0
    nvml.gpus[1].energy_mj = None
    lacking = open_sensor(facts_of(nvml).over(2), nvml=nvml)
    assert not lacking.supported()
    assert "not all of the 2 devices" in lacking.boundary


def test_readings_tell_the_worst_of_all_devices():
    nvml = gpus(2)
    nvml.gpus[1].celsius, nvml.gpus[1].sm_mhz, nvml.gpus[1].event_reasons = 80, 900, 0x40
    nvml.gpus[1].sm_percent = {1: 50, 2: 30}
    found = open_readings(facts_of(nvml).over(2), nvml)
    seen = found.read()
    assert (seen.temperature_c, seen.clock_hz, seen.power_w) == (80, 900e6, 600)
    assert seen.throttle_reasons == {"hw-thermal-slowdown"}
    assert seen.other_share == pytest.approx(0.3)
    assert "the sum of 2 devices" in found.sources["power_w"]


class TwoCudas:
    """Two of `FakeCuda`, by the device's name."""

    def __init__(self) -> None:
        self.each = {"cuda:0": FakeCuda(), "cuda:1": FakeCuda()}

    def __getattr__(self, name: str) -> Any:
        if name == "empty_cache":
            return lambda: None
        return lambda device: getattr(self.each[device], name)(device)


def test_peak_memory_is_the_sum_of_the_devices_and_the_fullest_is_named():
    cuda = TwoCudas()
    memory = CudaPeakMemory(["cuda:0", "cuda:1"], lambda: 9000, cuda=cuda)
    memory.baseline()
    assert memory.baseline_bytes == 200
    memory.begin()
    cuda.each["cuda:0"].take(1000)
    cuda.each["cuda:1"].take(300)
    assert memory.end() == 1300
    assert memory.extras()["largest_device_peak_bytes"] == 1000


def test_a_spread_model_is_parked_where_each_device_has_room():
    free = {"00000000:00:00.0": 100, "00000000:01:00.0": 40}
    facts = facts_of(gpus(2))
    parking = Parking(facts, available=lambda: 10**9, own=lambda pid: 0, free=free.get)
    even = Split({"a": 0, "b": 1}, (50, 50))
    assert parking.fits(60, [1], even)  # 30 on each.
    assert not parking.fits(100, [1], even)
    assert parking.fits(70, [1])  # On the first one alone.


def test_the_price_is_that_of_all_devices():
    one = price_for("cuda", "x", 1, 2.0, SimpleNamespace(devices=[], cpu=None))
    both = of_several(one, 3)
    assert both.per_hour_usd == 6.0
    assert both.inputs == {"usd_per_hour": 2.0, "devices": 3}


# -- a sweep ------------------------------------------------------------------------------------


def stand_ins(count: int, memory: int) -> DeviceFacts:
    """This processor as several devices of `memory` bytes each."""
    here = device_facts("cpu").model_copy(update={"memory_bytes": memory})
    more = (here.model_copy(update={"device": f"cpu:{k}"}) for k in range(1, count))
    return here.model_copy(update={"beside": tuple(more)})


def options(checkpoint: Path, folder: Path, workload: Path) -> dict[str, Any]:
    return {
        "model": str(checkpoint), "task": "sentiment-choice", "device": "cpu", "limit": 8,
        "formats": "fp32,bf16,int8-weight-only", "batch_size": (1, 2), "threads": 1,
        "batch_tokens": 512, "workload": str(workload), "out": str(folder),
        "price_per_hour": 2.0,
    }  # fmt: skip


# fp32 takes 6.4 MB, its half 3.2 MB.
MEMORY = 4_500_000


def planned(monkeypatch: Any, given: dict[str, Any], count: int = 3, memory: int = MEMORY) -> Any:
    monkeypatch.setattr(sweep, "device_facts", lambda device: stand_ins(count, memory))
    return prepare_sweep(make_spec(given), lambda event: None)


def test_a_cell_is_planned_on_the_fewest_devices(checkpoint, tmp_path, quick_workload, monkeypatch):
    given = options(checkpoint, tmp_path, quick_workload)
    usual = prepare_sweep(make_spec(given), lambda event: None)
    found = planned(monkeypatch, given)
    cells = {c.cell.format: c for c in found.plan.cells}
    assert {f: c.cell.devices for f, c in cells.items()} == {
        "fp32": 2, "bf16": None, "int8-weight-only": 2,
    }  # fmt: skip
    assert [c.skip for c in found.plan.cells] == [None] * 3
    assert "several-devices" in {c.id for c in cells["fp32"].cautions}
    assert cells["bf16"].cautions == ()
    # The number is part of what a cell is only where it is above 1.
    for before in usual.plan.cells:
        same = before.cell_id == cells[before.cell.format].cell_id
        assert same == (cells[before.cell.format].split is None)
        assert before.cell.method_id == cells[before.cell.format].cell.method_id
    assert [c.get("devices") for c in found.plan.document()["cells"]] == [2, None, 2]
    three = planned(monkeypatch, given, memory=2_500_000)
    assert {c.cell.format: c.cell.devices for c in three.plan.cells} == {
        "fp32": 3, "bf16": 2, "int8-weight-only": 3,
    }  # fmt: skip


def test_what_is_not_spread_is_skipped_and_says_why(
    checkpoint, tmp_path, quick_workload, monkeypatch
):
    given = options(checkpoint, tmp_path, quick_workload) | {"formats": "fp32"}

    def why(count: int = 3, memory: int = MEMORY, **more: Any) -> str:
        (cell,) = planned(monkeypatch, given | more, count, memory).plan.cells
        assert cell.split is None
        assert cell.cell.devices is None
        return cell.skip or ""

    assert "leave out --devices 1 to spread it over several" in why(devices=1)
    assert "2 of them do not hold it in whole layers" in why(devices=2, memory=3_000_000)
    assert "runtime compile is for one device" in why(runtime="compile")
    assert why(count=1).endswith("use a smaller model or a device with more memory")
    assert why(devices=2, memory=10**9) == ""


def test_devices_is_an_option_of_cells_that_run_in_turn():
    assert make_spec({}).measuring_hash() == make_spec({"devices": None}).measuring_hash()
    assert make_spec({"devices": 2}).devices == 2
    for options_ in ({"device": "all"}, {"executor": "ray"}, {"cores": 1}):
        with pytest.raises(UsageError, match="leave it out"):
            make_spec({"devices": 2} | options_)


def test_a_sweep_spreads_a_model_and_scores_it_as_one_device_does(
    checkpoint, tmp_path, quick_workload, monkeypatch
):
    quiet = lambda event: None  # noqa: E731
    given = options(checkpoint, tmp_path / "one", quick_workload)
    usual = prepare_sweep(make_spec(given), quiet)
    one, tally = run_sweep(usual, quiet)
    assert tally.failed == 0
    given = options(checkpoint, tmp_path / "several", quick_workload)
    prepared = planned(monkeypatch, given)
    several, tally = run_sweep(prepared, quiet)
    records = {c.cell.format: several.read_record(c.cell_id) for c in prepared.plan.cells}
    assert tally.failed == 0, [r.error for r in records.values()]
    expected = {c.cell.format: one.read_record(c.cell_id) for c in usual.plan.cells}
    for name, record in records.items():
        samples = [
            folder.read_samples(r.cell_id, "example", r.known_samples)
            for folder, r in ((one, expected[name]), (several, record))
        ]
        assert len(samples[0]["id"]) == 8
        told = [{k: list(map(repr, values)) for k, values in s.items()} for s in samples]
        assert told[0] == told[1], name
        assert record.applied.weight_bytes == expected[name].applied.weight_bytes
    parts = records["fp32"].applied.devices
    assert [p.device for p in parts] == ["cpu:0", "cpu:1"]
    assert sum(p.weight_bytes for p in parts) == records["fp32"].applied.weight_bytes
    assert "model.layers.0 to" in parts[0].modules
    assert "lm_head" in parts[1].modules
    assert records["bf16"].applied.devices is None
    table = build([several.path])
    assert table.columns[-1] == "devices"
    assert "devices" not in build([one.path]).columns
    rows = {row["format"]: row for row in table.rows}
    assert {f: row["devices"] for f, row in rows.items()} == {
        "fp32": 2, "bf16": None, "int8-weight-only": 2,
    }  # fmt: skip
    assert "several-devices" in rows["fp32"]["cautions"]
    assert rows["fp32"]["price_per_hour_usd"] == 4.0
    assert rows["bf16"]["price_per_hour_usd"] == 2.0
    document = json.loads((several.path / "sweep.json").read_text())
    assert "devices" not in document["spec"]
    assert not (several.path / "estimate.json").exists()


def test_a_model_that_can_t_be_built_without_weights_is_not_spread(
    checkpoint, tmp_path, quick_workload, monkeypatch
):
    def fail(*given: Any) -> Any:
        raise JobFailed("no weights")

    monkeypatch.setattr(shapes, "run_job", fail)
    monkeypatch.setattr(sweep, "device_facts", lambda device: stand_ins(3, MEMORY))
    notes: list[str] = []
    spec = make_spec(options(checkpoint, tmp_path, quick_workload) | {"formats": "fp32,bf16"})
    found = prepare_sweep(spec, lambda event: notes.append(event.data.get("text", "")))
    assert [c.skip is None for c in found.plan.cells] == [False, True]
    assert "nothing tells which of its layers must stay whole" in found.plan.cells[0].skip
    assert any("can't be built without weights" in text for text in notes)


def test_a_batch_that_memory_may_refuse_moves_no_cell_to_more_devices(
    checkpoint, tmp_path, quick_workload, monkeypatch
):
    """Of one request the cache is small; of 10,000 it is larger than three devices."""
    given = options(checkpoint, tmp_path, quick_workload) | {"task": "capitals", "formats": "bf16"}
    usual = prepare_sweep(make_spec(given | {"batch_size": (1, 10_000)}), lambda event: None)
    found = planned(monkeypatch, given | {"batch_size": (1, 10_000)})
    (before, after) = ({c.cell.format: c for c in p.plan.cells}["bf16"] for p in (usual, found))
    cache = request_cache(after.ref, after.task, found.workload, found.spec, "bfloat16")
    assert cache.total_bytes > 3 * MEMORY
    assert after.split is None
    assert after.cell_id == before.cell_id


def test_plan_says_on_how_many_devices_a_cell_runs(
    checkpoint, tmp_path, quick_workload, monkeypatch, capsys
):
    monkeypatch.setattr(sweep, "device_facts", lambda device: stand_ins(3, MEMORY))
    spec = make_spec(options(checkpoint, tmp_path, quick_workload))
    plan._here(spec, False)
    lines = capsys.readouterr().out.splitlines()
    assert ["on 2 devices" in line for line in lines[:3]] == [True, False, True]
    assert "together" not in "".join(lines)
    with pytest.raises(UsageError, match="spread over several"):
        plan._here(spec, True)


def test_what_the_fork_server_imports_asks_accelerate_of_no_gpu():
    """It imports the session; accelerate comes with a model that is spread."""
    code = "import sys, precision_explorer.runner.session; print('accelerate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
