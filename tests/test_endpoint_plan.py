"""Servers in options and in the plan: what is refused, what is skipped, what identifies a cell."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from precision_explorer.endpoint import parse_address
from precision_explorer.endpoint.capabilities import Capabilities
from precision_explorer.errors import EndpointError, UsageError
from precision_explorer.models.reference import shown_name, tokenizer_folder
from precision_explorer.plan.endpoints import check_asked, endpoint_cells, served_ref
from precision_explorer.plan.served import Served
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import servers
from precision_explorer.runner.comparisons import Comparisons
from precision_explorer.runner.offered import draws_input
from precision_explorer.runner.requests import load_request
from precision_explorer.tasks import load_card, prepare
from precision_explorer.workload import Workload, load_workload

A = "endpoint:bf16:http://gpu-one.example:8000/v1"
B = "endpoint:fp8:http://gpu-two.example:8000/v1#org/other"
SEARCH = {"kind": "poisson", "search": {"percentile": "p99", "limit_s": 0.2}}
OTHER = {"name": "b", "weight": 1, "task": "capitals"}
CAN = Capabilities({"version": "1", "quantization": "fp8"}, True, True, None, ("ignore_eos",))


def spec(**options):
    return make_spec({"runtime": [A, B]} | options)


def cells(task="sentiment-choice", workload=None, tokenizer=None, can=CAN, **options):
    made = spec(**options)
    prepared = prepare(load_card(task), 3, 0)
    asked = [Served(address, address.model or "m", tokenizer, can) for address in made.endpoints]
    rules = workload or Workload()
    return made, endpoint_cells(
        made, [(served_ref("m"), asked)], [prepared], rules, {"aiohttp": "3"}, draws_input(rules)
    )


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "endpoint"}, "write endpoint:http"),
        ({"runtime": "endpoint:http://u:p@h/v1"}, "no name and no password"),
        ({"runtime": ["endpoint:http://a/v1", "endpoint:http://b/v1"]}, "declare each one's"),
        ({"formats": "bf16"}, "declare it in the runtime"),
        ({"reference": "int4"}, "give bf16, fp8"),
        ({"until_decided": True}, "not for endpoints"),
        ({"runtime": "eagre"}, "did you mean eager"),
        ({"runtime": "eager", "reference": "fp33"}, "unknown format 'fp33'"),
    ],
)
def test_options_that_can_t_be_are_refused_in_one_line(options, words):
    with pytest.raises(UsageError, match=words) as caught:
        spec(**options)
    assert "\n" not in str(caught.value)


def test_the_reference_of_servers_is_the_first_or_the_one_that_is_named():
    assert spec().served_reference == "declared:bf16"
    assert spec(reference="fp8").served_reference == "declared:fp8"
    assert spec(reference="declared:fp8").served_reference == "declared:fp8"
    assert spec(runtime="endpoint:http://a/v1").served_reference == "as-served"


def test_beside_runtimes_here_the_reference_is_theirs():
    mixed = spec(runtime=["eager", A], formats="fp32")
    assert mixed.served_reference is None
    assert mixed.local_runtimes == ("eager",)
    assert [a.label for a in mixed.endpoints] == ["bf16"]


def test_a_task_that_no_server_answers_is_refused():
    task = SimpleNamespace(card=SimpleNamespace(name="sentiment", kind="text-classification"))
    with pytest.raises(UsageError, match="sentiment is text-classification"):
        check_asked([task], Workload())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"batching": "static"}, "batching is not for endpoints"),
        ({"arrivals": SEARCH}, "a search for the largest rate is not for endpoints"),
        ({"mix": [{"name": "a", "weight": 1}, OTHER]}, "a mix of tasks is not for endpoints"),
        ({"background": ["copy"]}, "background is not for endpoints"),
    ],
)
def test_what_is_done_to_requests_here_alone_is_refused(more, words):
    rules = {"scenario": "server", "arrivals": {"kind": "poisson", "rate_per_s": 1}} | more
    with pytest.raises(UsageError, match=words):
        check_asked([], Workload.model_validate(rules))


# -- cells -------------------------------------------------------------------------------------


def test_a_cell_tells_of_the_server_but_not_where_it_is():
    _, (one, other) = cells()
    text = json.dumps([c.cell.model_dump(mode="json") for c in (one, other)])
    assert "gpu-one" not in text
    assert "8000" not in text
    assert (one.cell.format, one.cell.runtime) == ("declared:bf16", "endpoint")
    assert one.cell.device == one.cell.device_name == "endpoint"
    assert one.cell.recipe["reported"]["quantization"] == "fp8"
    assert other.cell.recipe["served_model"] == "org/other"
    assert one.support.execution == "unverified"
    # Two servers of one method can be compared.
    assert one.cell_id != other.cell_id
    assert one.cell.method_id == other.cell.method_id


def test_another_address_version_or_tokenizer_is_another_cell(tmp_path):
    first = cells()[1][0]
    newer = replace(CAN, reported=CAN.reported | {"version": "2"})
    moved = cells(runtime=["endpoint:bf16:http://elsewhere:8000/v1"])[1][0]
    ids = {first.cell_id, cells(can=newer)[1][0].cell_id, moved.cell_id,
           cells(tokenizer=tmp_path)[1][0].cell_id}  # fmt: skip
    assert len(ids) == 4


def test_a_server_that_is_down_keeps_its_measured_cells(monkeypatch):
    made, (one, _) = cells(model=["m"])
    told = {"plan": {"cells": [{"cell_id": one.cell_id}]}}
    record = SimpleNamespace(status="ok", cell=one.cell)
    folder = SimpleNamespace(read_sweep_or_none=lambda: told, read_record=lambda _: record)

    def down(address, model):
        raise EndpointError("no server answers", passing=True)

    monkeypatch.setattr(servers, "_ask", down)
    found = servers.ask_servers(made, lambda _: None, folder)
    again, other = endpoint_cells(
        made, found, [one.task], Workload(), {"aiohttp": "3"}, draws_input=False
    )
    assert again.cell_id == one.cell_id
    # Of the other nothing was known.
    assert other.served.capabilities is None
    # When its turn comes it is asked anew, and must be the same.
    request = load_request(again, made, None, "")
    assert request["capabilities"] is None
    assert request["recipe"] == one.cell.recipe
    record.status = "failed"
    assert servers.ask_servers(made, lambda _: None, folder)[0][1][0].capabilities is None


def test_what_a_server_lacks_skips_its_cells_with_the_reason(tmp_path):
    mute = replace(CAN, scores=False, why="it gives none")
    skips = [c.skip for c in cells(can=mute)[1]]
    assert all("it gives none, which multiple-choice needs" in skip for skip in skips)
    assert [c.skip for c in cells(can=mute, task="gsm8k")[1]] == [None, None]
    assert [c.skip for c in cells()[1]] == [None, None]
    # One that has not answered is tried.
    assert [c.skip for c in cells(can=None)[1]] == [None, None]


def test_a_reason_to_skip_is_one_line_without_paths_and_host():
    said = "no echo:\n/home/someone/models/tiny/config.json at gpu-one.example:8000"
    skip = cells(can=replace(CAN, scores=False, why=said))[1][0].skip
    assert "no echo: .../tiny/config.json at (host), which multiple-choice" in skip


def test_lengths_of_prompts_take_token_ids(tmp_path):
    chat = load_workload("chat")
    assert draws_input(chat)
    assert not draws_input(load_workload("poisson"))
    given = {"output": {"kind": "fixed", "tokens": 9}}
    assert not draws_input(Workload.model_validate(chat.model_dump() | {"lengths": given}))
    without = cells("gsm8k", chat)[1][0].skip
    assert "tokenizer is not here" in without
    no_ids = replace(CAN, token_ids=False)
    assert "takes no token ids" in cells("gsm8k", chat, tmp_path, no_ids)[1][0].skip
    assert cells("gsm8k", chat, tmp_path)[1][0].skip is None


def test_a_second_pass_is_asked_of_the_reference_alone(tmp_path):
    made, both = cells()
    folder = SimpleNamespace(has_part=lambda _, part: part == "quality", read_record=lambda _: None)
    comparisons = Comparisons(made, SimpleNamespace(to_run=both), folder)
    one, other = both
    assert comparisons.reference(other) is one
    # Nothing of next tokens, which a server does not tell.
    assert [ask.part for ask in comparisons.lacking(one)] == ["noise"]
    assert comparisons.lacking(other) == []


# -- names -------------------------------------------------------------------------------------


def test_a_model_that_is_not_here_keeps_its_name_and_no_path(tmp_path):
    assert shown_name("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    assert shown_name("/srv/models/tiny/") == "tiny"
    folder = tmp_path / "mine"
    folder.mkdir()
    assert shown_name(str(folder)) == "mine"
    assert tokenizer_folder(str(folder)) is None
    (folder / "tokenizer.json").write_text("{}")
    assert tokenizer_folder(str(folder)) == folder
    assert tokenizer_folder("no/such-model") is None
    served = Served(parse_address(A), "/home/someone/tiny", None, None)
    assert served.recipe()["served_model"] == "tiny"
