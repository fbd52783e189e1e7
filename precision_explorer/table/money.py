"""Columns of cost, efficiency and value: three numbers, each with its own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from precision_explorer.economics import (
    Price,
    Slo,
    cost_per_1k,
    cost_per_1m_tokens,
    load_sheet,
    net_per_1k,
    of_several,
    parse_prices,
    parse_slo,
    price_by,
    price_for,
    rate_within_slo,
    requests_per_usd,
    value_per_usd,
)
from precision_explorer.errors import UsageError
from precision_explorer.stats import draws_interval, tail
from precision_explorer.table.curve import best_rate_within
from precision_explorer.table.samples import NO_NET, placed_beside
from precision_explorer.table.serving import is_steady_load

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry


@dataclass(frozen=True)
class Within:
    """The largest rate within an objective; None where it can't be told. `size`: the batch size
    that it rests on, `latencies` (n,) in seconds those at a searched rate."""

    rate_per_s: float | None
    size: int | None = None
    latencies: np.ndarray | None = None


def check_money(reader: dict[str, Any]) -> None:
    """UsageError for a worth or a cost that can't be, and for two prices at once."""
    for name, example in (("value_per_correct", "0.002"), ("cost_per_error", "0.01")):
        value = reader.get(name)
        if value is not None and not 0 <= value < float("inf"):
            option = name.replace("_", "-")
            raise UsageError(f"{option} {value} can't be; give dollars of 0 or more, as {example}")
    if reader.get("price") is not None and reader.get("price_per_hour") is not None:
        raise UsageError("--price and --price-per-hour are two prices; give one of them")


def check_worth(entries: Sequence[Entry], reader: dict[str, Any]) -> None:
    """UsageError where results were given a worth and no row's metric counts right ones."""
    given = [n for n in ("value_per_correct", "cost_per_error") if reader.get(n) is not None]
    scored = [e for e in entries if e.quality is not None]
    if given and not any(e.quality.is_share for e in scored if e.quality):
        option = given[0].replace("_", "-")
        names = ", ".join(dict.fromkeys(e.quality.metric for e in scored if e.quality))
        raise UsageError(
            f"--{option} needs a share of right results, and {names or 'no quality'} is none; "
            "leave it out"
        )


def check_priced(entries: Sequence[Entry]) -> None:
    """UsageError where the reader's own price file has a price for no row."""
    ok = [e for e in entries if e.record.status == "ok"]
    if ok and all(e.price is None for e in ok):
        raise UsageError(unpriced(ok[0]))


def unpriced(entry: Entry) -> str:
    """Why the price file has no price for the entry, and what to do."""
    prices, device = parse_prices(entry.reader["price"]), entry.row["device"]
    model = prices.model_for(device)
    name = f"price file {prices.file}"
    if model is None:
        return f"{name} has no price for {device}; add an entry whose device fits that name"
    if model.kind == "list":
        return (
            f"no {model.term} list price of {device} is known; give one by kind: hourly with its "
            "source"
        )
    return (
        f"{name} takes the measured power, which was not read of {entry.row['format']} on {device} "
        "(its latency window was not metered, or too short); give power_w in watts"
    )


def economics_columns(entry: Entry) -> None:
    """Fill those of an entry whose verdict stands."""
    row, reader = entry.row, entry.reader
    entry.slo = parse_slo(reader["slo"]) if reader.get("slo") else entry.searched
    row.update(
        usd_per_correct=reader.get("value_per_correct"),
        usd_per_error=reader.get("cost_per_error"),
    )
    price = _price(entry)
    if price is None:
        return
    entry.price = price
    within = within_slo(entry, entry.slo)
    entry.value_size, entry.value_latencies = within.size, within.latencies
    inputs = ";".join(f"{name}={value!r}" for name, value in price.inputs.items())
    row.update(
        price_per_hour_usd=price.per_hour_usd,
        price_source=f"{price.source} ({price.date})",
        price_kind=price.kind,
        price_term=price.term,
        price_inputs=inputs,
        cost_per_1k_requests_usd=cost_per_1k(price.per_hour_usd, row["throughput_per_s"]),
        cost_per_1m_output_tokens_usd=cost_per_1m_tokens(
            price.per_hour_usd, row["output_tokens_per_s"]
        ),
    )
    _offered(entry, price)
    quality = entry.quality
    if quality and quality.is_share:
        # Early examples may be easier or harder than all: beside the others stands what is placed.
        place = placed_beside(entry)
        share = row["quality"] if place is None else place[0]
        row["value_per_usd"] = value_per_usd(share, within.rate_per_s, price.per_hour_usd)
        row["net_usd_per_1k_requests"] = net_per_1k(
            share,
            within.rate_per_s,
            price.per_hour_usd,
            row["usd_per_correct"],
            row["usd_per_error"],
        )
    elif quality:
        # The reference, which has no verdict, loses nothing against itself.
        verdict = "within" if row["format"] == reader["reference"] else row["verdict"]
        row["value_per_usd"] = requests_per_usd(verdict, within.rate_per_s, price.per_hour_usd)


def sampled_money(entries: Sequence[Entry]) -> None:
    """What the samples of the entries know of money; and the 95 % intervals of the net dollars:
    percentiles of the paired draws, empty where in some of them no request is within the SLO."""
    for entry in entries:
        if entry.samples is None:
            continue
        entry.samples.price = entry.price
        entry.samples.rate_within = partial(_rate_within, entry)
        drawn = entry.samples.draws("net")
        if drawn is not None and drawn.min() > NO_NET:
            low, high = draws_interval(drawn)
            entry.row.update(
                net_usd_per_1k_requests_ci_low=low, net_usd_per_1k_requests_ci_high=high
            )


def _rate_within(entry: Entry, slo: Slo | None) -> float | None:
    return within_slo(entry, slo).rate_per_s


def _price(entry: Entry) -> Price | None:
    row, reader = entry.row, entry.reader
    environment = entry.record.environment
    kind = environment.device.get("kind", "cpu") if environment else "cpu"
    threads = entry.record.cell.threads
    count = entry.record.cell.devices or 1
    if reader.get("price") is not None:
        metered = str(row["power_source"] or "").startswith("measured:")
        power_w = row["power_w"] if metered else None
        if power_w is not None:
            power_w /= count  # The price is of one device, and the power of all.
        made = price_by(parse_prices(reader["price"]), kind, row["device"], threads, power_w)
    else:
        made = price_for(kind, row["device"], threads, reader["price_per_hour"], load_sheet(None))
    return made if made is None or count == 1 else of_several(made, count)


def _offered(entry: Entry, price: Price) -> None:
    """Costs at the rate that came, of a row whose requests came by their own clock and were all
    served: the device is paid for while it waits, too."""
    row, serving = entry.row, entry.record.measurements.serving
    offered = row["offered_rate_per_s"]
    if not serving or offered is None or not is_steady_load(serving):
        return
    row["cost_per_1k_requests_offered_usd"] = cost_per_1k(price.per_hour_usd, offered)
    tokens = [t for t in entry.output_tokens if t is not None]
    if tokens and len(tokens) == len(entry.output_tokens):
        mean = sum(tokens) / len(tokens)
        row["cost_per_1m_output_tokens_offered_usd"] = cost_per_1m_tokens(
            price.per_hour_usd, offered * mean
        )


def within_slo(entry: Entry, slo: Slo | None) -> Within:
    """The highest rate within the objective over the batch sizes tried; a request takes as long as
    its batch. Of a row whose requests came by their own clock the rate that was achieved, if its
    latencies under that load meet the objective: what batches take when all are at hand says
    nothing of a queue; of a search at the largest rate tried that holds the objective. None there
    where no latency is shown or too few requests tell."""
    tried = entry.record.measurements.tried
    if slo is not None and tried:
        rate, latencies = best_rate_within(tried, entry.tried, slo)
        return Within(rate, latencies=latencies)
    if slo is not None and entry.record.measurements.serving:
        latencies = np.concatenate([*entry.latencies, np.array([])])
        if not len(latencies) or tail(latencies, slo.quantile).value is None:
            return Within(None)
        return Within(rate_within_slo(entry.row["achieved_rate_per_s"], latencies, slo))
    throughput = entry.record.measurements.throughput
    if throughput is None:
        return Within(None)
    found = {
        int(size): rate_within_slo(s.requests_per_s, s.batch_s, slo)
        for size, s in throughput.by_batch_size.items()
    }
    rates = {size: rate for size, rate in found.items() if rate is not None}
    best = max(rates, key=lambda size: rates[size], default=None)
    return Within(None if best is None else rates[best], best)
