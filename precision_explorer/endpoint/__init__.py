"""Servers of models that speak OpenAI's API: where one is, what it can do, and how it is asked. No
torch, and nothing of tasks. What talks HTTP is imported from its own modules where it is needed."""

from precision_explorer.endpoint.address import (
    AS_SERVED,
    DECLARED,
    ENDPOINT,
    Address,
    is_declared,
    is_endpoint,
    parse_address,
)

__all__ = [
    "AS_SERVED",
    "DECLARED",
    "ENDPOINT",
    "Address",
    "is_declared",
    "is_endpoint",
    "parse_address",
]
