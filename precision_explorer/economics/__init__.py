"""What an hour costs, and cost, efficiency and value from it; latency objectives, and the machines
that meet one."""

from precision_explorer.economics.capacity import (
    HOURS_PER_MONTH,
    Capacity,
    Demand,
    Spread,
    declared_arrivals,
    parse_arrivals,
    plan_capacity,
)
from precision_explorer.economics.formulas import (
    carbon_g_per_1k,
    cost_per_1k,
    cost_per_1m_tokens,
    net_per_1k,
    ownership_per_hour,
    rate_within_slo,
    requests_per_joule,
    requests_per_usd,
    value_per_usd,
)
from precision_explorer.economics.price_model import Prices, load_prices, parse_prices, price_by
from precision_explorer.economics.price_sheet import (
    Price,
    PriceSheet,
    load_sheet,
    of_several,
    price_for,
)
from precision_explorer.economics.slo import Slo, parse_slo

__all__ = [
    "HOURS_PER_MONTH",
    "Capacity",
    "Demand",
    "Price",
    "PriceSheet",
    "Prices",
    "Slo",
    "Spread",
    "carbon_g_per_1k",
    "cost_per_1k",
    "cost_per_1m_tokens",
    "declared_arrivals",
    "load_prices",
    "load_sheet",
    "net_per_1k",
    "of_several",
    "ownership_per_hour",
    "parse_arrivals",
    "parse_prices",
    "parse_slo",
    "plan_capacity",
    "price_by",
    "price_for",
    "rate_within_slo",
    "requests_per_joule",
    "requests_per_usd",
    "value_per_usd",
]
