"""Cost, efficiency and value: three numbers, never blended into a score.

Every function returns None when an input is None, or when its quotient has no denominator (a rate
or an energy of 0): what can't be computed is missing, not 0. Prices are in US dollars.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from precision_explorer.economics.slo import Slo
from precision_explorer.errors import UsageError

_HOURS_PER_YEAR = 8760
_JOULES_PER_KWH = 3.6e6


def _quotient(dividend: float, divisor: float) -> float | None:
    return dividend / divisor if divisor > 0 else None


def cost_per_1k(price_per_hour: float | None, rate_per_s: float | None) -> float | None:
    """Dollars per 1,000 requests at a sustained rate: 1000 x price / (3600 x rate)."""
    if price_per_hour is None or rate_per_s is None:
        return None
    return _quotient(1000 * price_per_hour, 3600 * rate_per_s)


def cost_per_1m_tokens(price_per_hour: float | None, tokens_per_s: float | None) -> float | None:
    """Dollars per million output tokens at a sustained rate: 1e6 x price / (3600 x tokens/s)."""
    if price_per_hour is None or tokens_per_s is None:
        return None
    return _quotient(1e6 * price_per_hour, 3600 * tokens_per_s)


def net_per_1k(
    quality_share: float | None,
    rate_within_slo: float | None,
    price_per_hour: float | None,
    usd_per_correct: float | None,
    usd_per_error: float | None,
) -> float | None:
    """Net dollars per 1,000 requests that are answered within the SLO.

    1000 x (q x worth of a correct result - (1 - q) x cost of an error) - 1000 x price /
    (3600 x rate within the SLO). Requests beyond the limit are paid for and bring nothing. Of
    worth and cost one may be None, which is then 0; both None: there is no net.
    """
    cost = cost_per_1k(price_per_hour, rate_within_slo)
    if quality_share is None or cost is None or (usd_per_correct is None and usd_per_error is None):
        return None
    gain = quality_share * (usd_per_correct or 0.0)
    loss = (1 - quality_share) * (usd_per_error or 0.0)
    return 1000 * (gain - loss) - cost


def requests_per_joule(requests: float | None, energy_j: float | None) -> float | None:
    """Requests per joule over one window: both counted within the same boundary."""
    if requests is None or energy_j is None:
        return None
    return _quotient(requests, energy_j)


def carbon_g_per_1k(energy_per_request_j: float | None, g_per_kwh: float | None) -> float | None:
    """Grams of CO2 equivalent per 1,000 requests, of the energy in use alone: 1000 x energy in kWh
    x the grid's factor (GHG Protocol, Scope 2 Guidance: activity data x emission factor)."""
    if energy_per_request_j is None or g_per_kwh is None:
        return None
    return 1000 * energy_per_request_j / _JOULES_PER_KWH * g_per_kwh


def rate_within_slo(
    rate: float | None, seconds: Sequence[float] | np.ndarray | None, slo: Slo | None
) -> float | None:
    """Requests per second that meet `slo` at a rate at which requests take `seconds`: rate x share
    within the limit if that share is at least the objective's percentile, else 0.

    Without an objective every request counts. None without a rate, or without seconds to judge.
    """
    if rate is None or slo is None:
        return rate
    if seconds is None or len(seconds) == 0:
        return None
    share = float(np.mean(np.asarray(seconds, dtype=float) <= slo.limit_s))
    return rate * share if share >= slo.quantile else 0.0


def value_per_usd(
    quality_share: float | None, rate_within_slo: float | None, price_per_hour: float | None
) -> float | None:
    """Useful results per dollar: quality share x rate within the SLO x 3600 / price per hour."""
    if quality_share is None or rate_within_slo is None or price_per_hour is None:
        return None
    return _quotient(quality_share * rate_within_slo * 3600, price_per_hour)


def requests_per_usd(
    verdict: str | None, rate_within_slo: float | None, price_per_hour: float | None
) -> float | None:
    """Value where quality is no share (perplexity): requests per dollar if the loss is `within`
    the quality budget, else None."""
    if verdict != "within":
        return None
    return value_per_usd(1.0, rate_within_slo, price_per_hour)


def ownership_per_hour(
    purchase: float | None,
    life_years: float | None,
    utilisation: float | None,
    power_w: float | None,
    pue: float | None,
    usd_per_kwh: float | None,
) -> float | None:
    """Dollars per hour of use of an owned device: capital plus energy.

    purchase / (life x 8760 h x utilisation) + power / 1000 x PUE x price per kWh: straight-line
    capital and energy at the meter (Barroso, Hoelzle & Ranganathan 2018, chapter 6), without
    interest, staff or maintenance. `utilisation`: share of its life in which the device serves.
    Raises UsageError for a value that can't be.
    """
    if (
        purchase is None
        or life_years is None
        or utilisation is None
        or power_w is None
        or pue is None
        or usd_per_kwh is None
    ):
        return None
    rules = [
        (purchase >= 0, "the purchase price must be 0 dollars or more"),
        (life_years > 0, "the life must be above 0 years"),
        (0 < utilisation <= 1, "the utilisation must be above 0 and at most 1"),
        (power_w >= 0, "the power must be 0 watts or more"),
        (pue >= 1, "the PUE must be 1 or more"),
        (usd_per_kwh >= 0, "the price per kWh must be 0 dollars or more"),
    ]
    for holds, rule in rules:
        if not holds:
            raise UsageError(f"{rule}; correct the ownership figures")
    capital = purchase / (life_years * _HOURS_PER_YEAR * utilisation)
    return capital + power_w / 1000 * pue * usd_per_kwh
