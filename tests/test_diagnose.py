"""Roofs, bounds, speed-ups and rankings on fixed numbers, by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_explorer.diagnose import expected, explain, is_above_roof, share_of_roof
from precision_explorer.diagnose.diagnosis import _tau
from precision_explorer.diagnose.executed import as_executed
from precision_explorer.diagnose.roofline import LARGEST_BATCH, winning_batches
from precision_explorer.records import (
    AppliedFormat,
    Bandwidth,
    Caution,
    CellRecord,
    Launch,
    MatmulRate,
    PhaseProfile,
    Profile,
    Roof,
    Spent,
    Timing,
    Work,
)
from precision_explorer.report.why import why_section
from precision_explorer.runner.join import profile_of
from tests.test_records import make_cell

SHARES = {"matmul": 0.9, "quantizing": 0.0, "other": 0.1, "outside": 0.0}


def rate(kind, value, note=None):
    return MatmulRate(type=kind, kernel="torch", flops_per_s=value, note=note)


def a_roof(**changes):
    """1 G float32 and 4 G int8 operations a second, 100 MB/s from memory and 1 GB/s from a cache of
    1 MB, 1 ms per operator and 2 ms per product."""
    values = {
        "threads": 1,
        "matmul": [rate("float32", 1e9), rate("int8", 2e9), rate("int8", 4e9),
                   rate("float16", None, "RuntimeError: not here")],
        "read": Bandwidth(bytes_per_s=1e8, working_set_bytes=4_000_000, how="sum"),
        "cache": Bandwidth(bytes_per_s=1e9, working_set_bytes=500_000, how="sum"),
        "copied": None,
        "launch": Launch(operator_s=1e-3, matmul_s=2e-3),
        "last_level_cache_bytes": 1_000_000,
    }  # fmt: skip
    return Roof(**(values | changes))


def a_phase(flops=None, fixed=10_000_000, each=0, took=1.0, operators=10, matmuls=4, **work):
    return PhaseProfile(
        tokens=128,
        cached_tokens=0,
        timings={"1": Timing(seconds=[took]), "8": Timing(seconds=[], note="not timed")},
        spent=Spent(**SHARES),
        operators=operators,
        matmuls=matmuls,
        work=Work(
            flops_by_type=flops or {"float32": 500_000_000},
            fixed_bytes=fixed,
            request_bytes=each,
            **work,
        ),
    )


def test_the_three_roofs_by_hand():
    found = expected(a_phase(), a_roof())
    # 0.5 G at 1 G/s; 10 MB at 100 MB/s; 4 products at 2 ms and 6 others at 1 ms.
    assert found.compute_s == pytest.approx(0.5)
    assert found.memory_s == pytest.approx(0.1)
    assert found.launch_s == pytest.approx(0.014)
    assert (found.seconds, found.bound) == (found.compute_s, "compute")
    assert share_of_roof(a_phase(), a_roof()) == pytest.approx(0.5)


def test_types_share_the_units_and_the_best_kernel_of_a_type_is_its_roof():
    phase = a_phase({"int8": 800_000_000, "float32": 100_000_000})
    assert expected(phase, a_roof()).compute_s == pytest.approx(0.2 + 0.1)
    assert expected(phase, a_roof(), batch=3).compute_s == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("phase", "bound"),
    [
        (a_phase(), "compute"),
        (a_phase({"float32": 1000}), "memory"),
        (a_phase({"float32": 1000}, fixed=1000), "launch"),
    ],
)
def test_the_bound_is_the_longest(phase, bound):
    assert expected(phase, a_roof()).bound == bound


def test_what_fits_the_cache_is_read_at_the_caches_rate():
    roof = a_roof()
    assert expected(a_phase(fixed=1_000_000), roof).memory_s == pytest.approx(0.001)
    assert expected(a_phase(fixed=1_000_001), roof).memory_s == pytest.approx(0.01, rel=1e-3)
    # A batch may leave the cache that one request fits in.
    assert expected(a_phase(fixed=0, each=600_000), roof, 2).memory_s == pytest.approx(0.012)
    unknown = a_roof(last_level_cache_bytes=None)
    assert expected(a_phase(fixed=1_000_000), unknown).memory_s == pytest.approx(0.01)


def test_widened_weights_are_moved_again():
    phase = a_phase(fixed=2_000_000, widened_bytes=8_000_000, largest_widened_bytes=2_000_000)
    assert expected(phase, a_roof()).memory_s == pytest.approx(0.02 + 0.08)
    small = a_phase(fixed=2_000_000, widened_bytes=8_000_000, largest_widened_bytes=500_000)
    assert expected(small, a_roof()).memory_s == pytest.approx(0.02 + 0.008)


def test_a_type_without_a_roof_is_not_guessed():
    found = expected(a_phase({"float16": 1000}), a_roof())
    assert found.compute_s is None
    assert found.seconds is None
    assert found.bound is None
    assert share_of_roof(a_phase({"float16": 1000}), a_roof()) is None
    assert expected(a_phase(), a_roof(read=None)).seconds is None
    assert expected(a_phase(operators=None), a_roof()).seconds is None


def test_above_the_roof_is_5_per_cent():
    assert not is_above_roof(a_phase(took=0.5 / 1.049), a_roof())
    assert is_above_roof(a_phase(took=0.5 / 1.051), a_roof())


def test_a_cell_above_its_roof_carries_a_caution():
    def answer(took):
        return {"profile": Profile(arithmetic="float32", compute_dtype="float32",
                                   prefill=a_phase(took=took)).model_dump()}  # fmt: skip

    assert profile_of(answer(1.0), a_roof())[1] == []
    profile, (caution,) = profile_of(answer(0.1), a_roof())
    assert caution.id == "above-roof"
    assert "prefill" in caution.message
    assert profile.prefill.timings["1"].seconds == [0.1]
    assert profile_of(answer(0.1), None)[1] == []
    assert profile_of(None, a_roof()) == (None, [])


def test_the_crossover_by_hand():
    """Launch-bound until the reference's arithmetic takes over: 14 operators of 1 ms against
    5 operators; 1 M operations a request take 1 ms in float32, 0.25 ms in int8."""
    reference = a_phase({"float32": 1_000_000}, fixed=0, operators=5, matmuls=0)
    faster = a_phase({"int8": 1_000_000}, fixed=0, operators=14, matmuls=0)
    # At batch 8: 8 ms against max(2, 14) ms; at 16: 16 against 14.
    assert winning_batches(faster, reference, a_roof()) == (16, LARGEST_BATCH)
    assert winning_batches(reference, faster, a_roof()) == (1, 8)
    assert winning_batches(reference, reference, a_roof()) is None


def test_half_a_per_cent_is_no_gain_to_speak_of():
    reference = a_phase({"float32": 1_000_000_000}, fixed=0)
    assert winning_batches(a_phase({"float32": 995_000_000}, fixed=0), reference, a_roof()) is None
    assert winning_batches(a_phase({"float32": 985_000_000}, fixed=0), reference, a_roof())


def test_a_gain_that_is_lost_and_comes_again_counts_to_where_it_was_lost():
    """0.9 MB and 20 kB a request leave the cache of 1 MB at batch 8 (10.6 ms against the 2 ms of
    two operators); the reference's 100 kB a request leave it at 16 (16 ms against 12.2)."""
    reference = a_phase({"float32": 1}, fixed=0, each=100_000, operators=2, matmuls=0)
    tight = a_phase({"float32": 1}, fixed=900_000, each=20_000, operators=0, matmuls=0)
    assert winning_batches(tight, reference, a_roof()) == (1, 4)


@given(
    flops=st.integers(1, 10**12), fixed=st.integers(0, 10**9), each=st.integers(0, 10**6),
    operators=st.integers(0, 10**4), batch=st.sampled_from([1, 2, 8, 64]),
)  # fmt: skip
def test_no_roof_is_undercut_and_more_work_takes_longer(flops, fixed, each, operators, batch):
    phase = a_phase({"float32": flops}, fixed, each, operators=operators, matmuls=0)
    found = expected(phase, a_roof(), batch)
    assert found.seconds >= max(found.compute_s, found.memory_s, found.launch_s)
    assert expected(phase, a_roof(), 2 * batch).seconds >= found.seconds
    assert getattr(found, f"{found.bound}_s") == found.seconds
    wins = winning_batches(phase, phase, a_roof())
    assert wins is None


# -- whole diagnoses -------------------------------------------------------------------------


def a_record(format_id, phase, arithmetic="float32", execution="native", weights=100, cautions=()):
    cell = make_cell(format=format_id)
    applied = AppliedFormat(
        format=format_id, execution=execution, reason="", library="torch", kernel="torch",
        compute_dtype="float32", linear_elements=1, converted_elements=1, converted_share=1.0,
        weight_bytes=weights,
    )  # fmt: skip
    profile = Profile(arithmetic=arithmetic, compute_dtype="float32", prefill=phase)
    return CellRecord(
        cell_id=cell.cell_id, status="ok", cell=cell, method_id=cell.method_id, applied=applied,
        measurements={"profile": profile}, started_at="2026-01-01T00:00:00Z", cautions=cautions,
    )  # fmt: skip


def test_the_largest_batch_shows_how_near_its_limits_a_gpu_comes():
    """64 requests of 0.5 G operations at 1 G/s and 10 MB at 100 MB/s, in 40 s."""
    phase = a_phase()
    (alone,) = explain([a_record("fp32", phase)], a_roof(), "fp32").cells
    assert alone.largest_batch is None
    assert alone.largest_batch_share_of_roof is None
    timings = phase.timings | {"64": Timing(seconds=[40.0], utilisation=1.0)}
    timings["1"] = Timing(seconds=[1.0], utilisation=1.0)
    why = explain([a_record("fp32", phase.model_copy(update={"timings": timings}))], a_roof(), "x")
    (cell,) = why.cells
    assert (cell.largest_batch, cell.largest_batch_s) == (64, 40.0)
    assert cell.largest_batch_share_of_roof == pytest.approx(32.0 / 40.0)
    assert cell.largest_batch_flops_per_s == pytest.approx(0.8e9)
    assert cell.largest_batch_bytes_per_s == pytest.approx(10e6 / 40.0)
    (view,) = why_section([why]).views
    shown = dict(zip(view.headings, (c.text for c in view.rows[0]), strict=True))
    assert shown["Of its limit, largest batch"] == "80 % at 64"


def spent(phase, **shares):
    return phase.model_copy(update={"spent": Spent(**(SHARES | shares))})


def certified(record, number_type):
    """`record` with a certificate that all its products were made in `number_type`."""
    part = {"kernel": "mkl sgemm", "number_type": number_type, "unit": "native", "flops": 5.0}
    certificate = {
        "evidence": "", "work": "", "linear_flops": 5.0, "executed_flops": 0.0,
        "executed_share": 0.0, "executed": [part | {"converted": True}],
    }  # fmt: skip
    document = record.model_dump(mode="json")
    document["applied"]["certificate"] = certificate
    return CellRecord.model_validate(document)


@pytest.fixture
def why():
    """int8 is promised 4 x and takes twice as long; weight-only is promised nothing."""
    slow = spent(a_phase({"int8": 500_000_000}, fixed=1000, took=2.0), quantizing=0.6, matmul=0.3)
    widening = spent(a_phase(took=1.5, fixed=2_500_000), quantizing=0.38, matmul=0.5)
    return explain(
        [
            a_record("fp32", a_phase(took=1.0)),
            a_record("int8-dynamic", slow, "int8", weights=25),
            a_record("int8-weight-only", widening, "float32", "dequantized", weights=25),
        ],
        a_roof(),
        "fp32",
        "root",
    )


def test_expected_and_observed_speed_ups(why):
    reference, dynamic, weight_only = why.cells
    assert reference.expected_speedup is None
    assert dynamic.expected_speedup == pytest.approx(4.0)
    assert dynamic.observed_speedup == pytest.approx(0.5)
    assert (dynamic.wins_from, dynamic.wins_to) == (1, LARGEST_BATCH)
    assert weight_only.expected_speedup == pytest.approx(1.0)
    assert weight_only.observed_speedup == pytest.approx(1 / 1.5)
    assert weight_only.wins_from is None
    assert weight_only.never == "its products are made in float32, as the reference's are"


def test_one_sentence_says_what_is_slow_and_why(why):
    reference, dynamic, weight_only = why.cells
    assert reference.sentence == (
        "fp32 in prefill is bound by the arithmetic units: it reaches 50 % of that limit."
    )
    assert weight_only.sentence == (
        "int8-weight-only takes 1.50 x as long as fp32 in prefill (the device's limits promise "
        "1.00 x as fast): the arithmetic stays float32 and 38 % of the time goes to widening "
        "weights; it saves weight memory, not time."
    )
    assert "60 % of the time goes to (de)quantizing" in dynamic.sentence


def test_a_pass_far_below_its_limits_is_bound_by_none():
    near, far = (
        explain([a_record("fp32", a_phase(took=took))], a_roof(), "fp32").cells[0]
        for took in (0.5 / 0.51, 0.5 / 0.49)
    )
    assert (near.bound, far.bound, far.expected.bound) == ("compute", None, "compute")
    assert near.sentence == (
        "fp32 in prefill is bound by the arithmetic units: it reaches 51 % of that limit."
    )
    assert far.sentence.startswith("fp32 in prefill is bound by none of the device's limits")
    (view,) = why_section([explain([a_record("fp32", a_phase(took=10.0))], a_roof(), "fp32")]).views
    row = dict(zip(view.headings, (cell.text for cell in view.rows[0]), strict=True))
    assert row["Bound by"] == "none"
    assert row["Nearest limit"] == "500 ms, compute"
    assert row["Of its limit"] == "5 %"


def beside(phase, *arguments, reference=None, **more):
    """The diagnosis of a format beside fp32."""
    base = reference or a_phase(took=1.0)
    other = a_record("int8-dynamic", phase, *arguments, **more)
    return explain([a_record("fp32", base), other], a_roof(), "fp32")


def test_a_gain_is_not_explained_by_what_would_hinder_it():
    """Faster though the limits are the same: that arithmetic stays the same is no cause of it."""
    text = beside(spent(a_phase(took=0.8), quantizing=0.2)).cells[1].sentence
    assert text == (
        "int8-dynamic is 1.25 x as fast as fp32 in prefill (the device's limits promise 1.00 x as "
        "fast): it reaches 62 % of its limit, fp32 50 %."
    )
    why = beside(spent(a_phase(took=0.8), quantizing=0.2))
    assert "at batch 1 it did, so they miss something" in " ".join(why_section([why]).lines)
    foretold = beside(a_phase({"int8": 500_000_000}, took=0.5), "int8").cells[1].sentence
    assert foretold.endswith(": int8 products can be made faster here than float32 ones.")
    more = beside(a_phase({"int8": 500_000_000}, took=0.15), "int8").cells[1].sentence
    assert more.endswith("than float32 ones and it reaches 83 % of its limit, fp32 50 %.")
    lost = beside(spent(a_phase({"int8": 500_000_000}, took=0.5), quantizing=0.3), "int8").cells[1]
    assert lost.sentence.endswith("ones, but 30 % of the time goes to (de)quantizing.")


def test_what_was_lifted_is_what_bound_the_reference():
    """The reference waits for memory; the format, with a quarter of the bytes, for arithmetic."""
    base = a_phase({"float32": 50_000_000}, fixed=40_000_000, took=1.0)
    light = a_phase({"float32": 50_000_000}, fixed=1_000_000, took=0.3)
    cell = beside(light, reference=base, weights=25).cells[1]
    assert cell.expected.bound == "compute"
    assert cell.sentence.endswith(": it moves fewer bytes.")


def test_what_the_reference_spends_as_well_is_no_cause():
    """0.4 s between operators in both: int8 takes longer for its products."""
    base = spent(a_phase(took=1.0), outside=0.4, matmul=0.6)
    slow = spent(a_phase({"int8": 500_000_000}, took=2.0), outside=0.2, matmul=0.8)
    why = beside(slow, "int8", reference=base)
    text = why.cells[1].sentence
    assert "20 % of the time passes between operators, which no format shortens" in text
    assert "its products take 2.67 x as long as fp32's" in text
    (wrong,) = why.rankings[0].wrong
    assert wrong.reason == "int8-dynamic's kernels reach 6 % of its limit, fp32's 50 %"


def test_a_cause_that_would_not_turn_the_order_is_not_given():
    """Without its 20 % for quantizing, 1.6 s would still be more than 1 s."""
    slow = spent(a_phase({"int8": 500_000_000}, took=2.0), quantizing=0.2)
    (wrong,) = beside(slow, "int8").rankings[0].wrong
    assert wrong.reason == "int8-dynamic's kernels reach 6 % of its limit, fp32's 50 %"


def test_times_that_repeats_differ_by_are_no_wrong_order():
    assert beside(a_phase({"int8": 500_000_000}, took=1.04), "int8").rankings[0].wrong == ()
    assert len(beside(a_phase({"int8": 500_000_000}, took=1.06), "int8").rankings[0].wrong) == 1


def test_emulated_arithmetic_is_named():
    emulated = a_record("fp16", a_phase({"int8": 500_000_000}, took=4.0), "int8", "emulated")
    why = explain([a_record("fp32", a_phase()), emulated], a_roof(), "fp32")
    assert "this device has no int8 arithmetic" in why.cells[1].sentence
    assert "limits promise" not in why.cells[1].sentence


def test_what_is_emulated_is_outside_the_prediction():
    """The limits are those of the device's units: of slow software they foretell nothing."""
    emulated = a_record("fp16", a_phase({"int8": 500_000_000}, took=4.0), "int8", "emulated")
    native = a_record("int8-dynamic", a_phase({"int8": 500_000_000}), "int8")
    why = explain([a_record("fp32", a_phase()), emulated, native], a_roof(), "fp32")
    _, fp16, dynamic = why.cells
    assert (fp16.expected_speedup, fp16.wins_from, fp16.never) == (None, None, None)
    assert fp16.observed_speedup == pytest.approx(0.25)
    assert dynamic.expected_speedup is not None
    (ranking,) = why.rankings
    assert "fp16" not in (*ranking.promised, *ranking.observed)
    assert set(ranking.promised) == {"fp32", "int8-dynamic"}
    section = why_section([why])
    assert any(line.startswith("Outside the prediction: fp16.") for line in section.lines)
    shown = {row[0].text: row[-1].text for row in section.views[0].rows}
    assert shown["fp16"] == "not foretold"
    assert not any(
        "Outside" in line for line in why_section([explain([native], a_roof(), "x")]).lines
    )


def test_emulation_is_of_the_type_that_was_meant_not_of_the_one_that_multiplied():
    """An 8-bit float format whose products are made in float32: that type is not what lacks."""
    phase = a_phase({"float8_e4m3fn": 500_000_000}, took=4.0)
    record = certified(a_record("mxfp8", phase, "float8_e4m3fn", "emulated"), "float32")
    why = explain([a_record("fp32", a_phase()), record], a_roof(), "fp32")
    assert (
        "this device has no float8_e4m3fn arithmetic, so its products are made in float32"
        in why.cells[1].sentence
    )
    assert why.no_roof == ()  # Of a type in which nothing was multiplied none is needed.


def test_a_limit_that_was_passed_in_this_phase_is_the_reason():
    """0.5 s is the least that fp32 should take; a caution may be another phase's."""
    slow = a_phase({"int8": 500_000_000}, took=0.6)
    (wrong,) = beside(slow, "int8", reference=a_phase(took=0.4)).rankings[0].wrong
    assert wrong.reason == "fp32 was faster than its measured limit, so that limit is wrong"
    caution = {"id": "above-roof", "message": ""}
    (wrong,) = (
        beside(a_phase({"int8": 500_000_000}, took=1.5), "int8", cautions=[caution])
        .rankings[0]
        .wrong
    )
    assert "kernels reach" in wrong.reason


def test_wrong_pairs_of_one_reason_are_one_line(why):
    assert (
        "Wrong in prefill: int8-dynamic was expected before fp32 and int8-weight-only: 60 % of "
        "int8-dynamic's time goes to (de)quantizing."
    ) in why_section([why]).lines


def test_formats_disturbed_by_other_work_are_named_with_their_runtime():
    busy = a_record("bf16", a_phase())
    busy.cautions.append(Caution(id="machine-busy", message="busy"))
    busy.cell = busy.cell.model_copy(update={"runtime": "compile"})
    assert explain([a_record("fp32", a_phase()), busy], a_roof(), "fp32").busy == ("bf16, compile",)


def test_the_ranking_and_where_it_was_wrong(why):
    (ranking,) = why.rankings
    assert ranking.promised == ("int8-dynamic", "fp32", "int8-weight-only")
    assert ranking.observed == ("fp32", "int8-weight-only", "int8-dynamic")
    assert [(w.promised, w.other) for w in ranking.wrong] == [
        ("int8-dynamic", "fp32"),
        ("int8-dynamic", "int8-weight-only"),
    ]
    assert ranking.wrong[0].reason == "60 % of int8-dynamic's time goes to (de)quantizing"
    # tau-b of (0.125, 2), (0.5, 1), (0.5, 1.5): 0 concordant, 2 discordant, one tie on one side.
    assert ranking.tau == pytest.approx(-2 / (2 * 3) ** 0.5)


def test_records_without_a_profile_are_named():
    bare = a_record("bf16", a_phase())
    bare.measurements.profile = None
    why = explain([a_record("fp32", a_phase()), bare], a_roof(), "fp32")
    assert why.without_profile == ("bf16",)
    assert [c.format for c in why.cells] == ["fp32"]
    assert why.rankings == ()
    bare.status = "failed"
    assert explain([bare], a_roof(), "fp32") is None


def test_formats_timed_beside_other_work_are_named():
    caution = {"id": "machine-busy", "message": ""}
    busy = a_record("bf16", a_phase(), cautions=[caution])
    why = explain([a_record("fp32", a_phase()), busy], a_roof(), "fp32")
    assert why.busy == ("bf16",)
    text = " ".join(why_section([why]).lines)
    assert "Other processes were at work while bf16 were timed" in text


def test_a_missing_roof_and_a_missing_reference_are_said():
    fp16 = a_record("fp16", a_phase({"float16": 1000}), "float16")
    why = explain([a_record("fp32", a_phase()), fp16], a_roof(), "fp32")
    assert why.no_roof == ("float16: RuntimeError: not here",)
    assert why.cells[1].expected_speedup is None
    assert why.cells[1].observed_speedup == pytest.approx(1.0)
    alone = explain([a_record("int8-dynamic", a_phase())], a_roof(), "fp32").cells[0]
    assert alone.observed_speedup is None
    assert alone.wins_from is None


def test_what_the_certificate_saw_goes_before_the_declaration():
    phase = a_phase({"int8": 100, "float32": 10})
    seen = as_executed(phase, "int8", {"float32": 0.75, "int8": 0.25})
    assert seen.work.flops_by_type == {"float32": 10 + 75, "int8": 25}
    assert as_executed(phase, "int8", None) is phase
    record = a_record("int8-llm", a_phase({"int8": 500_000_000}), "int8")
    record = certified(record, "float32")
    (cell,) = explain([record], a_roof(), "fp32").cells
    assert cell.arithmetic == "float32"
    assert cell.expected.compute_s == pytest.approx(0.5)


def test_the_order_s_agreement_is_kendall_s_tau_b():
    from scipy.stats import kendalltau

    rng = np.random.default_rng(0)
    for n in (1, 2, 2, 3, 5, 9) * 9:
        # Of few values, so that there are ties, also of all.
        pairs = [(float(a), float(b)) for a, b in rng.integers(0, 3, (n, 2))]
        found = _tau(pairs)
        asked = kendalltau(*zip(*pairs, strict=True)).statistic if n > 1 else np.nan
        assert (found is None) == bool(np.isnan(asked))
        assert found is None or found == pytest.approx(asked)


def test_a_table_is_made_without_scipy_stats():
    """Its import takes longer than the table."""
    code = (
        "import sys; from pathlib import Path; from precision_explorer.table.build import build; "
        "table = build([Path('results/demo-sentiment-cpu')], {}); "
        "assert table.rows and 'scipy.stats' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=300)
