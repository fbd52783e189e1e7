"""HTTP to one server: requests, streams of server-sent events, and each way to fail in one line.

Errors name neither host nor key, since they are stored in records.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from precision_explorer.bounded import json_document
from precision_explorer.endpoint.address import may_carry_key, without_host
from precision_explorer.errors import EndpointError

Json = dict[str, Any]
T = TypeVar("T")
KEY_VARIABLE = "OPENAI_API_KEY"
"""What the API's own clients read the key from."""
# An answer is a few kilobytes; log-probabilities of a long prompt some megabytes.
_MOST_BYTES = 64_000_000
_SHOWN = 200
# Busy for a moment, by HTTP's own words (RFC 9110, RFC 6585); anything else stays as it is.
_PASSING = (429, 502, 503, 504)
_DONE = b"[DONE]"
_REST_S = 0.1


@dataclass(frozen=True)
class Limits:
    """Seconds: to connect, without a byte, and for a whole answer; how often a request that found
    the server busy is sent again, and how long is waited before the first time (twice as long each
    further time)."""

    connect_s: float = 10.0
    silence_s: float = 120.0
    whole_s: float = 600.0
    tries: int = 4
    pause_s: float = 1.0


def api_key() -> str | None:
    """The key for servers that want one."""
    return os.environ.get(KEY_VARIABLE) or None


class Client:
    """One event loop, and connections that are kept. `url`: up to ``/v1``. `key`: sent only where
    `may_carry_key`."""

    def __init__(self, url: str, key: str | None = None, limits: Limits | None = None) -> None:
        self._url, self._key, self.limits = url, key, limits or Limits()
        self._sends_key = key is not None and may_carry_key(url)
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` to its end, also where a loop runs in this thread, as in a notebook."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._loop.run_until_complete(work)
        with ThreadPoolExecutor(1) as beside:
            return beside.submit(self._loop.run_until_complete, work).result()

    def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            self.run(self._session.close())
            self._session = None
        self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- requests ----------------------------------------------------------------------------

    async def get(self, path: str) -> Any:
        """The JSON at `path` below ``/v1``; one that begins with ``..`` is beside it."""
        async with self._asked("GET", path, None) as response:
            return _parsed(await self._whole(response))

    async def post(self, path: str, body: Json) -> Json:
        """The JSON object that answers `body`."""
        async with self._asked("POST", path, body) as response:
            found = _parsed(await self._whole(response))
        if not isinstance(found, dict):
            raise EndpointError("the endpoint answered no JSON object; is it such a server?")
        return found

    async def post_patiently(self, path: str, body: Json) -> Json:
        """The same, sent again where the server is busy or a connection breaks: for what is not
        timed."""
        return await self._patiently(lambda: self.post(path, body))

    async def still_there(self) -> None:
        """EndpointError where no connection can be made any more; whatever else it answers, or
        that it is too busy to, a server is there."""
        try:
            await self._patiently(lambda: self.get("models"))
        except EndpointError as error:
            if error.passing and error.status is None:
                raise

    async def _patiently(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        pause_s = self.limits.pause_s
        for _ in range(self.limits.tries - 1):
            try:
                return await ask()
            except EndpointError as error:
                if not error.passing:
                    raise
            await asyncio.sleep(pause_s)
            pause_s *= 2
        return await ask()

    async def stream(self, path: str, body: Json) -> AsyncIterator[Json]:
        """The events that answer `body`, as they come. EndpointError where the stream breaks off:
        it ends by ``[DONE]``, or after an event with a ``finish_reason``."""
        finished = False
        async with self._asked("POST", path, body) as response:
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                text = line[5:].strip()
                if text == _DONE:
                    # Read to its end, a connection can be used again.
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(response.content.read(), _REST_S)
                    return
                event = _parsed(text)
                if not isinstance(event, dict) or event.get("error"):
                    raise EndpointError(self._in_words("broke its stream off", text))
                finished = finished or _finish(event)
                yield event
        if not finished:
            raise EndpointError("the endpoint's stream ended in the middle of an answer", True)

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, path: str, body: Json | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to a request that the server took; what fails is an EndpointError."""
        session = self._open()
        url = f"{self._url}/{path}"
        if path.startswith("../"):
            url = f"{self._url.rpartition('/')[0]}/{path[3:]}"
        headers = {"Authorization": f"Bearer {self._key}"} if self._sends_key else {}
        try:
            # A redirect would carry prompts, and the key, to where the user has not sent them.
            async with session.request(
                method, url, json=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise self._refused(response.status, await self._whole(response), path)
                yield response
        # Without their causes, which name the host: a worker's log is stored.
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise EndpointError(self._silent(error), silent=True) from None
        except aiohttp.ClientConnectorError as error:
            raise EndpointError(_not_there(error), True) from None
        except aiohttp.InvalidURL:
            raise EndpointError("the endpoint's address can't be used; correct it") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = type(error).__name__
            raise EndpointError(
                f"the connection to the endpoint broke off ({why}); see the server's log", True
            ) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = self.limits
            self._session = aiohttp.ClientSession(
                # As many at once as are sent: a limit here would be a queue of the client's own.
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(
                    total=limits.whole_s,
                    sock_connect=limits.connect_s,
                    sock_read=limits.silence_s,
                ),
                # No proxy, whose time would be measured, and no passwords of ~/.netrc.
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    @staticmethod
    async def _whole(response: aiohttp.ClientResponse) -> bytes:
        found = bytearray()
        async for part in response.content.iter_any():
            found += part
            if len(found) > _MOST_BYTES:
                raise EndpointError(
                    f"the endpoint's answer has more than {_MOST_BYTES:,} bytes; is it such a "
                    "server?"
                )
        return bytes(found)

    # -- words -------------------------------------------------------------------------------

    def _refused(self, status: int, body: bytes, path: str) -> EndpointError:
        what = self._in_words(f"answered HTTP {status}", body)
        return EndpointError(
            f"{what}; {self._advice(status, path)}", passing=status in _PASSING, status=status
        )

    def _advice(self, status: int, path: str) -> str:
        if status in (401, 403):
            if self._key and not self._sends_key:
                return (
                    f"the key of {KEY_VARIABLE} is sent only over https, or to an address of this "
                    "machine or a private network: give such an address"
                )
            wants = "another key" if self._key else "a key"
            return f"it wants {wants}: set the environment variable {KEY_VARIABLE}"
        if 300 <= status < 400:
            return "give the address that it redirects to"
        if status == 404:
            return f"it has no {path}, or no such model: check the address (up to /v1) and the name"
        if status == 429:
            return (
                "more was asked than it takes: lower the rate or --batch-size, or raise its limit"
            )
        if status >= 500:
            return "see the server's log"
        return "it does not take what was asked"

    def _in_words(self, what: str, body: bytes) -> str:
        said = _message(body)
        if self._key:
            said = said.replace(self._key, "***")
        # Cut last: a part of the key or the host would be found no more.
        said = without_host(said, self._url)[:_SHOWN].strip()
        return f"the endpoint {what}{f' ({said})' if said else ''}"

    def _silent(self, error: BaseException) -> str:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            seconds = self.limits.connect_s
            return f"the endpoint took no connection within {seconds:g} s; is the server up?"
        if isinstance(error, aiohttp.SocketTimeoutError):
            return f"the endpoint was silent for {self.limits.silence_s:g} s; see the server's log"
        return f"the endpoint gave no whole answer within {self.limits.whole_s:g} s"


def _not_there(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "the endpoint's certificate is not trusted; give the address that it is made out to"
    why = "it refused the connection"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        why = "its host is not known"
    elif not isinstance(error.os_error, ConnectionRefusedError):
        why = type(error.os_error).__name__
    return f"no server answers at the endpoint's address ({why}); start it, or correct the address"


def _parsed(body: bytes) -> Any:
    try:
        return json_document(body, strict=False)
    except ValueError as error:
        raise EndpointError(
            "the endpoint answered no JSON; give the address of an OpenAI-compatible server, up to "
            "/v1"
        ) from error


def _message(body: bytes) -> str:
    """What an error's body says; empty where it says nothing readable."""
    try:
        found = json_document(body, strict=False)
    except ValueError:
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(found, Mapping):
            found = found.get(name, found)
    return found if isinstance(found, str) else ""


def _finish(event: Json) -> bool:
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return bool(isinstance(first, dict) and first.get("finish_reason"))
