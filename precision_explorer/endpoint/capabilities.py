"""What a server says of itself, and what it was seen to take, by requests of one token."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from precision_explorer.endpoint.client import Client, Json
from precision_explorer.endpoint.completions import EXACT_LENGTH, NO_PENALTY, Asking
from precision_explorer.errors import EndpointError

_PROBE = "The capital of France is"
# Of what /v1/models tells of a model: what names software, window, number types or weights.
_TOLD = ("owned_by", "root", "max_model_len", "quantization", "dtype", "parent")
_META = ("n_ctx_train", "n_params", "size", "n_ctx")
# Where servers tell their version, and how it is called: vLLM and TensorRT-LLM, llama.cpp, SGLang.
_VERSIONS = (
    ("../version", ("version",)),
    ("../props", ("build_info", "model_path")),
    ("../get_server_info", ("version", "quantization", "dtype", "kv_cache_dtype")),
)


@dataclass(frozen=True)
class Capabilities:
    """`reported`: what the server says of itself and its model, nothing of it checked.
    `token_ids`: prompts may be token ids. `scores`: it gives log-probabilities of prompts; `why`:
    what it said where it does not. `extras`: fields beyond OpenAI's that it takes."""

    reported: Json = field(default_factory=dict)
    token_ids: bool = False
    scores: bool = False
    why: str | None = None
    extras: tuple[str, ...] = ()

    @property
    def window(self) -> int | None:
        """Most tokens of a prompt with its answer, where the server says so."""
        for name in ("max_model_len", "n_ctx"):
            found = self.reported.get(name)
            if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                return found
        return None

    def document(self) -> Json:
        """As JSON-able values, from which it can be made again."""
        return asdict(self) | {"extras": list(self.extras)}


def ask_capabilities(client: Client, model: str) -> Capabilities:
    """What the server makes of `model`. EndpointError where it does not answer at all, or says that
    it has no such model."""
    return client.run(_ask(client, model))


async def _ask(client: Client, model: str) -> Capabilities:
    reported = await _reported(client, model)
    plain = Asking(client, model, {})
    body = plain.body(_PROBE, 1)
    await client.post_patiently("completions", body)
    extras = [
        name
        for name, value in (NO_PENALTY | EXACT_LENGTH).items()
        if await _takes(client, body | {name: value})
    ]
    why = None
    try:
        await plain.prompt_logprobs(_PROBE)
    except EndpointError as error:
        if error.passing or error.silent:
            raise
        why = str(error)
    token_ids = await _takes(client, body | {"prompt": [1, 2, 3]})
    return Capabilities(reported, token_ids, why is None, why, tuple(extras))


async def _takes(client: Client, body: Json) -> bool:
    """Whether the server answers `body`, of which a part is in doubt."""
    try:
        await client.post_patiently("completions", body)
    except EndpointError as error:
        if error.passing or error.status is None:
            raise
        return False
    return True


async def _reported(client: Client, model: str) -> Json:
    found: Json = {}
    for path, names in _VERSIONS:
        with contextlib.suppress(EndpointError):
            told = await client.get(path)
            if isinstance(told, dict):
                found |= {name: _kept(told[name]) for name in names if _is_told(told.get(name))}
                break
    try:
        listed = await client.get("models")
    except EndpointError as error:
        if error.status != 404:
            raise
        return found
    data = listed.get("data") if isinstance(listed, dict) else None
    entries = [e for e in data or () if isinstance(e, dict)] if isinstance(data, list) else []
    ids = [str(entry.get("id")) for entry in entries]
    own = next((e for e, name in zip(entries, ids, strict=True) if name == model), None)
    if own is None and ids:
        shown = ", ".join(ids[:4]) + (", ..." if len(ids) > 4 else "")
        raise EndpointError(
            f"the endpoint has no model '{model}'; it has {shown}: name it by --model, or behind "
            "the address, as in endpoint:http://host:8000/v1#NAME"
        )
    own = own or {}
    meta = own.get("meta")
    more = meta if isinstance(meta, dict) else {}
    said = {n: own.get(n) for n in _TOLD} | {n: more.get(n) for n in _META}
    return found | {name: _kept(value) for name, value in said.items() if _is_told(value)}


def _is_told(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and value != "" and not isinstance(value, bool)


def _kept(value: Any) -> Any:
    """`value`; of a path its last name, since records are passed on and paths name people."""
    if not isinstance(value, str):
        return value
    short = value[:200]
    if short.startswith(("/", "~", "./", "../")):
        return PurePosixPath(short).name
    return PureWindowsPath(short).name if "\\" in short else short
