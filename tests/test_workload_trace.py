"""Traces: the public column names, times, cuts and speeds, the hash, and each fault in one line."""

import csv
import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from precision_explorer.errors import UsageError
from precision_explorer.workload import TraceArrivals, Workload, plan_schedule, read_trace

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,370,40
2023-11-16 18:15:50.9951690,390,110
2023-11-16 18:15:51.2224670,880,50
"""
PLAIN = "time_s,input_tokens,output_tokens\n10,370,40\n14.314579,390,110\n14.541877,880,50\n"
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
10,ChatGPT,370,40,410,Conversation log
14.314579,GPT-4,390,110,500,API log
14.541877,GPT-4,880,50,930,API log
"""
ZONED = (
    AZURE.replace(".6805900", ".680590+00:00")
    .replace("1690", "169+00:00")
    .replace("4670", "467+00:00")
)


def written(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    "text", [AZURE, PLAIN, BURSTGPT, ZONED, "\ufeff" + PLAIN, PLAIN.replace("time_s", "Timestamp")]
)
def test_the_known_names_give_the_same_requests(tmp_path, text):
    path = written(tmp_path, text)
    data = read_trace(path)
    assert data.times_s == pytest.approx([0, 4.314579, 4.541877], abs=1e-9)
    assert data.input_tokens.tolist() == [370, 390, 880]
    assert data.output_tokens.tolist() == [40, 110, 50]
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", None])
def test_parquet_is_read_too(tmp_path, unit):
    ticks = [1_700_000_000, 1_700_000_004, 1_700_000_005]
    times = pa.array(ticks, pa.int64())
    if unit:
        times = times.cast(pa.timestamp("s")).cast(pa.timestamp(unit))
    table = pa.table({"TIMESTAMP": times, "ContextTokens": [3, 4, 5], "GeneratedTokens": [1, 2, 3]})
    path = tmp_path / "trace.parquet"
    parquet.write_table(table, path)
    data = read_trace(path)
    assert data.times_s.tolist() == [0, 4, 5]
    assert data.output_tokens.tolist() == [1, 2, 3]


@given(
    steps=st.lists(st.floats(0, 1e4, width=32), min_size=2, max_size=50), start=st.floats(0, 1e6)
)
@settings(max_examples=30, deadline=None)
def test_what_was_written_is_read(tmp_path_factory, steps, start):
    path = tmp_path_factory.mktemp("trace") / "t.csv"
    times = start + np.cumsum([0.001, *steps])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["time_s"], *[[repr(float(t))] for t in times]])
    if times[-1] == times[0]:
        return
    assert read_trace(path, with_lengths=False).times_s == pytest.approx(times - times[0], abs=1e-9)


HEAD = "time_s,input_tokens,output_tokens\n"
FAULTS = {
    "no time": ("when,input_tokens,output_tokens\n0,1,1\n1,1,1\n", "no column for the time"),
    "no input": ("time_s,output_tokens\n0,1\n1,1\n", "no column for the input length"),
    "no output": ("time_s,input_tokens\n0,1\n1,1\n", "output_tokens or GeneratedTokens"),
    "a way out": ("time_s\n0\n1\n", "set use_lengths: false"),
    "empty": ("", "is empty"),
    "no rows": (HEAD, "fewer than two requests"),
    "one row": (HEAD + "0,1,1\n", "fewer than two requests"),
    "backwards": (HEAD + "0,1,1\n5,1,1\n4.5,1,1\n", "row 3: its time is 0.5 s before"),
    "one time": (HEAD + "3,1,1\n3,1,1\n", "all its requests have one time"),
    "negative": (HEAD + "0,1,1\n1,-7,1\n", "row 2: input length -7 is below 1 token"),
    "no answer": (HEAD + "0,1,0\n1,7,1\n", "row 1: output length 0 is below 1 token"),
    "half": (HEAD + "0,1,1\n1,7.5,1\n", "row 2: input length 7.5 is no whole number"),
    "word": (HEAD + "0,1,1\n1,many,1\n", "row 2: input length 'many' is no number"),
    "gap": (HEAD + "0,1,1\n1,,1\n", "row 2: the input length is missing"),
    "no clock": (HEAD + "0,1,1\n,1,1\n", "row 2: the time is missing"),
    "odd time": (HEAD + "0,1,1\nnoon,1,1\n", "row 2: time 'noon' is neither seconds"),
    "mixed": (HEAD + "0,1,1\n2023-11-16 18:15:46,1,1\n", "row 2: time '2023-11-16 18:15:46'"),
    "infinite": (HEAD + "0,1,1\ninf,1,1\n", "row 2: time inf is no number of seconds"),
    "ragged": (HEAD + "0,1,1\n1,1\n", "no CSV or parquet file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line(tmp_path, fault):
    text, part = FAULTS[fault]
    with pytest.raises(UsageError) as caught:
        read_trace(written(tmp_path, text))
    assert part in str(caught.value)
    assert "trace.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "."])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(UsageError, match="can't read the trace"):
        read_trace(tmp_path / name)


@pytest.mark.parametrize("name", ["bad.parquet", "bad.csv"])
def test_a_file_that_is_no_trace(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\xff\xfe\x00\x01" * 50)
    with pytest.raises(UsageError, match=r"no CSV or parquet file|no column"):
        read_trace(path)


def test_a_file_that_changed_is_read_again(tmp_path):
    path = written(tmp_path, PLAIN)
    before = read_trace(path)
    written(tmp_path, PLAIN + "20,7,7\n")
    assert read_trace(path).times_s.size == before.times_s.size + 1


def trace(tmp_path, **more):
    text = HEAD + "".join(f"{100 + t},{10 + t},{1 + t}\n" for t in range(11))
    return TraceArrivals(**({"path": str(written(tmp_path, text))} | more))


def test_a_replay_is_the_recording(tmp_path):
    replay = trace(tmp_path)
    assert replay.scale == 1
    assert replay.rate() == pytest.approx(1.1)
    assert replay.times(rng(), duration_s=60).tolist() == list(range(11))
    assert replay.times(rng(), duration_s=4.5).tolist() == [0, 1, 2, 3, 4]
    assert replay.times(rng(), n=3).tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="the trace holds 11 requests, not 12"):
        replay.times(rng(), n=12)


def test_a_scale_is_how_many_times_faster(tmp_path):
    replay = trace(tmp_path, scale=4)
    assert replay.rate() == pytest.approx(4.4)
    assert replay.span_s(replay.rate()) == pytest.approx(2.5)
    assert replay.times(rng(), duration_s=2.5) == pytest.approx(np.arange(11) / 4)


def test_a_rate_or_a_load_sets_the_speed(tmp_path):
    for replay in (trace(tmp_path, rate_per_s=11), trace(tmp_path, load=0.5).at(11)):
        times = replay.times(rng(), duration_s=1)
        assert times == pytest.approx(np.arange(11) / 10)
        assert replay.scale is None
    with pytest.raises(ValueError, match="give one of rate_per_s, load and scale"):
        trace(tmp_path, rate_per_s=11, scale=2)


def test_a_cut_is_replayed_from_its_own_start(tmp_path):
    replay = trace(tmp_path, from_s=2.5, to_s=6)
    assert replay.times(rng(), duration_s=60) == pytest.approx([0.5, 1.5, 2.5, 3.5])
    assert replay.rate() == pytest.approx(4 / 3.5)
    got_in, got_out = replay.lengths(3)
    assert (got_in.tolist(), got_out.tolist()) == ([13, 14, 15], [4, 5, 6])
    for cut in ({"from_s": 50}, {"from_s": 9.5}, {"from_s": 10}):
        with pytest.raises(UsageError, match="fewer than two requests lie between"):
            trace(tmp_path, **cut)
    with pytest.raises(ValueError, match="to_s 2 is not after from_s 3"):
        trace(tmp_path, from_s=3, to_s=2)


def test_times_alone_are_enough_where_lengths_are_not_used(tmp_path):
    path = written(tmp_path, "time_s\n0\n1\n3\n")
    replay = TraceArrivals(path=str(path), use_lengths=False)
    assert replay.times(rng(), duration_s=9).tolist() == [0, 1, 3]
    assert replay.lengths(3) is None


def test_the_rules_hold_the_hash_and_no_path(tmp_path):
    replay = trace(tmp_path)
    workload = Workload(name="replay", scenario="server", arrivals=replay)
    rules = workload.rules()
    assert rules["arrivals"]["sha256"] == read_trace(tmp_path / "trace.csv").sha256
    assert str(tmp_path) not in str(rules)
    again = Workload.model_validate(rules)
    assert again.rules() == rules
    with pytest.raises(UsageError, match="the trace's file is not at hand"):
        plan_schedule(again, 5, 0)


def test_another_content_is_another_trace(tmp_path):
    first = trace(tmp_path)
    written(tmp_path, PLAIN)
    with pytest.raises(UsageError, match="is not the trace that was planned"):
        TraceArrivals(path=first.path, sha256=first.sha256)
    assert TraceArrivals(path=first.path).sha256 != first.sha256


def test_a_schedule_takes_the_trace_s_lengths_and_ends_with_it(tmp_path):
    workload = Workload(name="r", scenario="server", arrivals=trace(tmp_path), warmup_seconds=0)
    plan = plan_schedule(workload, 5, 0)
    assert plan.duration_s == pytest.approx(10)
    assert plan.rate_per_s == pytest.approx(1.1)
    assert plan.input_tokens.tolist() == list(range(10, 21))
    assert plan.output_tokens.tolist() == list(range(1, 12))
    short = plan_schedule(workload, 5, 0, duration_s=3.5)
    assert (short.n, short.duration_s) == (4, 3.5)


def test_a_replay_shorter_than_the_warm_up_is_refused(tmp_path):
    workload = Workload(name="r", scenario="server", arrivals=trace(tmp_path, scale=100))
    with pytest.raises(UsageError, match="the trace takes 100 ms at this speed, not longer than"):
        plan_schedule(workload, 5, 0)
