"""Numbers to text and text to numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_explorer import units
from precision_explorer.errors import unknown_name

SHOWN = [
    units.significant, units.seconds, units.clock, units.bytes_, units.rate, units.usd,
    units.joules, units.watts, units.share, units.points,
]  # fmt: skip


@pytest.mark.parametrize("show", SHOWN)
def test_missing_is_a_dash_and_never_a_number(show):
    assert show(None) == "—"
    assert "—" not in show(0.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.234, "1.23"),
        (-1.234, "-1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (0.5, "0.500"),
        (0.012345, "0.0123"),
        (0.0001, "0.000100"),
        (0.0000837, "0.0000837"),
        (1e-10, "1.00e-10"),
        (1e7, "1.00e+07"),
        (9.999, "10.0"),
        (99.96, "100"),
        (0.9996, "1.00"),
    ],
)
def test_three_significant_digits(value, text):
    assert units.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (12.3, "12.3"),
        (3088.4, "3,088"),
        (999_400, "999,400"),
        (999_600, "1.00 million"),
        (10_636_450, "10.6 million"),
        (2.5e9, "2.50 billion"),
    ],
)
def test_large_counts_are_in_words(value, text):
    assert units.count(value) == text


def test_a_sign_stands_before_positive_values_only():
    assert units.signed(0.5, "0.500") == "+0.500"
    assert units.signed(-0.5, "-0.500") == "-0.500"
    assert units.signed(0, "0") == "0"


def test_more_digits_on_request():
    assert units.significant(0.123456789, 6) == "0.123457"
    assert units.significant(123.456789, 6) == "123.457"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (1.5, "1.50 s"),
        (0.00123, "1.23 ms"),
        (45.6e-6, "45.6 µs"),
        (7e-9, "7.00 ns"),
        (0.9999, "1.00 s"),
        (0.999e-3, "999 µs"),
        (125, "125 s"),
    ],
)
def test_seconds(value, text):
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (65, "1:05"), (7384, "2:03:04")],
)
def test_clock(value, text):
    assert units.clock(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (538e6, "538 MB"),
        (999.7e6, "1.00 GB"),
        (25.3e9, "25.3 GB"),
        (2e12, "2.00 TB"),
        (12, "12.0 B"),
        (1500, "1.50 kB"),
    ],
)
def test_sizes_are_decimal(value, text):
    assert units.bytes_(value) == text


def test_other_units():
    assert units.joules(0.0012) == "1.20 mJ"
    assert units.joules(3400) == "3.40 kJ"
    assert units.watts(65) == "65.0 W"
    assert units.usd(0.00123) == "$0.00123"
    assert units.rate(123.4) == "123 /s"
    assert units.rate(2, "examples/s") == "2.00 examples/s"
    assert units.share(0.979) == "97.9 %"
    assert units.points(-0.0025) == "-0.25 pp"
    assert units.points(0.0025) == "+0.25 pp"


@given(st.floats(min_value=1e-9, max_value=1e15))
def test_the_text_is_within_its_rounding_of_the_value(value):
    text = units.significant(value).replace(",", "")
    assert math.isclose(float(text), value, rel_tol=0.005)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200ms", 0.2),
        ("1.5s", 1.5),
        ("2m", 120),
        ("2min", 120),
        ("1h", 3600),
        ("5us", 5e-6),
        ("5 µs", 5e-6),
        (" .5 s ", 0.5),
        ("1e-3s", 0.001),
    ],
)
def test_durations_are_read(text, value):
    assert units.parse_duration(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8GB", 8_000_000_000),
        ("8gib", 8 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5kb", 1500),
        ("100", 100),
        ("100 B", 100),
        ("8e9", 8_000_000_000),
    ],
)
def test_sizes_are_read(text, value):
    assert units.parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("200/s", 200), ("200", 200), (" 1.2e4 / min", 200), ("7.2e5/h", 200), ("86400/d", 1)],
)
def test_rates_are_read(text, value):
    assert units.parse_rate(text) == pytest.approx(value)


def test_shares_are_read():
    assert units.parse_share("1%") == 0.01
    assert units.parse_share("0.5 %") == 0.005
    assert units.parse_share("0.01") == 0.01


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.parse_duration, "200"),
        (units.parse_duration, "200 fortnights"),
        (units.parse_duration, "-1s"),
        (units.parse_duration, "1e999s"),
        (units.parse_size, "8XB"),
        (units.parse_size, ""),
        (units.parse_size, "1e999"),
        (units.parse_size, "1e300TB"),
        (units.parse_size, "nan"),
        (units.parse_rate, "200/fortnight"),
        (units.parse_rate, "200/"),
        (units.parse_rate, "-5/s"),
        (units.parse_rate, "5k/s"),
        (units.parse_share, "1 pp"),
        (units.parse_share, "one"),
        (units.parse_share, "-1%"),
    ],
)
def test_what_is_no_quantity_is_refused_with_an_example(parse, text):
    with pytest.raises(ValueError, match="write it as") as caught:
        parse(text)
    assert f"'{text}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_come_with_the_near_ones_or_all():
    assert unknown_name("format", "fp23", ["fp32", "int8"]) == (
        "unknown format 'fp23'; did you mean fp32?"
    )
    assert unknown_name("format", "zzz", ["fp32", "int8"]) == (
        "unknown format 'zzz'; known: fp32, int8"
    )
