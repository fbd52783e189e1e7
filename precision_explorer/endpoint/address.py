"""``endpoint:[FORMAT:]URL[#MODEL]``: where a server is, what it is said to run, under which name.

Records are passed on, and hosts name machines: of an address they hold a hash alone.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from precision_explorer.records import canonical_hash

ENDPOINT = "endpoint"
# What a server is said to run: nothing here makes or proves it.
AS_SERVED = "as-served"
DECLARED = "declared:"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}")
# Names that no public name server answers: RFC 6761, RFC 6762, RFC 8375 and ICANN's board (2024).
_OWN_NAMES = (".localhost", ".local", ".home.arpa", ".internal")
_SHAPE = "write endpoint:http://host:8000/v1, or endpoint:FORMAT:http://host:8000/v1"


@dataclass(frozen=True)
class Address:
    """`url`: up to ``/v1``, without a slash at its end. `label`: the format that the server is
    declared to run, None where nothing is. `model`: its name on the server, None for the sweep's
    own."""

    url: str
    label: str | None = None
    model: str | None = None

    @property
    def format(self) -> str:
        """The row's format, which says that it is only declared."""
        return f"{DECLARED}{self.label}" if self.label else AS_SERVED

    def digest(self, model: str) -> str:
        """12 hex digits that stand for address and model where neither may be told."""
        return canonical_hash([self.url, model], 12)


def is_declared(format_id: str) -> bool:
    """Whether a row's format is a server's, by its user's word or by nobody's."""
    return format_id == AS_SERVED or format_id.startswith(DECLARED)


def is_endpoint(runtime: str) -> bool:
    """Whether `runtime` names a server."""
    return runtime == ENDPOINT or runtime.startswith(f"{ENDPOINT}:")


def parse_address(runtime: str) -> Address:
    """The address in a runtime; ValueError, one line, for what is none."""
    rest = runtime.removeprefix(ENDPOINT).removeprefix(":")
    label = None
    if not re.match(r"https?:", rest):
        first, _, after = rest.partition(":")
        if re.match(r"https?:", after):
            label, rest = first, after
            if not _LABEL.fullmatch(label):
                raise ValueError(
                    f"'{label}' names no format of a server; use letters, digits, '.', '_', '+' "
                    "and '-', 40 at most"
                )
    url, _, model = rest.partition("#")
    return Address(_checked(url), label, model or None)


def may_carry_key(url: str) -> bool:
    """Whether a key may be sent to `url`: over https, or where plain http stays on this machine or
    in a network of one's own. A name counts as such by itself (without a dot, or of a domain that
    is never public): what it resolves to may change."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if parts.scheme == "https":
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        # Numbers alone are another spelling of an IPv4 address.
        return host.endswith(_OWN_NAMES) or ("." not in host and not host[:1].isdigit())
    return not (getattr(found, "ipv4_mapped", None) or found).is_global


def without_host(text: str, url: str) -> str:
    """`text` on one line, without the host of `url`, which names a machine."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    parts = urlsplit(url)
    for name in (parts.netloc, parts.hostname or ""):
        if name:
            own = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
            line = re.sub(own, "(host)", line, flags=re.IGNORECASE)
    return line


def _checked(url: str) -> str:
    """`url` without a slash at its end, and with ``/v1`` where it has no path."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname
        credentials = parts.username is not None or parts.password is not None
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"the endpoint's address can't be read ({error}); {_SHAPE}") from error
    if not known or re.search(r"[\s\\]", url):
        raise ValueError(f"an endpoint's address is http or https with a host; {_SHAPE}")
    if credentials:
        raise ValueError(
            "an endpoint's address must hold no name and no password, which would be seen in lists "
            "of processes; give a key in the environment variable OPENAI_API_KEY"
        )
    if parts.query:
        raise ValueError(
            "an endpoint's address takes no '?' and what follows, which may hold a key; give a key "
            "in the environment variable OPENAI_API_KEY"
        )
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"
