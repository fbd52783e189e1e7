"""A server of completions over HTTP on 127.0.0.1 that really runs a tiny model, for tests.

It speaks the parts of OpenAI's API, and of vLLM's additions, that the tool asks for; `Faults` makes
it go wrong in declared ways.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Json = dict[str, Any]


@dataclass
class Faults:
    """What the server does wrong. `status`: by path, answered in place of anything else, after
    `after` proper answers; `key`: without it HTTP 401 is answered."""

    status: dict[str, int] = field(default_factory=dict)
    after: int = 0
    times: int = 1 << 30
    body: bytes | None = None
    key: str | None = None
    silent: bool = False
    breaks: bool = False
    no_echo: bool = False
    text_only: bool = False
    strict: bool = False
    no_usage: bool = False
    ends: Callable[[list[Json]], bool] | None = None
    """By what was asked so far: whether the server is gone from now on."""


class TinyServer:
    """`model` and `tokenizer` behind a port; `seen` holds every request's body, `keys` its
    Authorization. One request computes at a time; `delay_s` is added to each pass."""

    def __init__(
        self, model: Any, tokenizer: Any, name: str = "tiny", delay_s: float = 0.0
    ) -> None:
        self.model, self.tokenizer, self.name, self.delay_s = model, tokenizer, name, delay_s
        self.faults = Faults()
        self.seen: list[Json] = []
        self.keys: list[str | None] = []
        self.running = self.most_running = 0
        self.is_gone = False
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> TinyServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def go(self) -> None:
        """No connection is taken any more, and none that is there is answered."""
        self.is_gone = True
        self._server.server_close()

    # -- the model ---------------------------------------------------------------------------

    def ids(self, prompt: Any) -> list[int]:
        return list(prompt) if not isinstance(prompt, str) else self.tokenizer(prompt)["input_ids"]

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        with self.lock:
            if self.delay_s:
                time.sleep(self.delay_s)
            return self.model(torch.tensor([ids])).logits[0].float()

    def steps(self, ids: list[int], body: Json) -> Iterator[tuple[int, str, str | None]]:
        """(token, text, finish_reason) of each greedy token."""
        made: list[int] = []
        most, stops = body.get("max_tokens", 16), body.get("stop") or []
        ends = None if body.get("ignore_eos") else self.tokenizer.eos_token_id
        told = ""
        while True:
            token = int(self.logits(ids + made)[-1].argmax())
            made.append(token)
            whole = self.tokenizer.decode(made, skip_special_tokens=True)
            place = min((whole.find(s) for s in stops if s in whole), default=None)
            finish = "stop" if token == ends or place is not None else None
            finish = finish or ("length" if len(made) == most else None)
            whole = whole if place is None else whole[:place]
            # A letter of which bytes are missing is shown when it is whole.
            shown = told if whole.endswith("\ufffd") and not finish else whole
            yield token, shown[len(told) :], finish
            told = shown
            if finish:
                return

    def logprobs(self, ids: list[int], made: list[int]) -> list[float | None]:
        every = self.logits(ids + made).log_softmax(-1)
        whole = ids + made
        return [None, *(float(every[k - 1, whole[k]]) for k in range(1, len(whole)))]


class _Handler(BaseHTTPRequestHandler):
    owner: TinyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.owner
        if self._faulty(self.path):
            return
        if self.path == "/v1/models":
            entry = {"id": owner.name, "object": "model", "owned_by": "tiny", "max_model_len": 512}
            self._json({"object": "list", "data": [entry | {"root": "/home/someone/tiny-fp32"}]})
        elif self.path == "/version":
            self._json({"version": "1.2.3"})
        else:
            self._json({"error": {"message": "no such path"}}, 404)

    def do_POST(self) -> None:
        owner = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner.seen.append(body)
        if owner.faults.ends is not None and owner.faults.ends(owner.seen):
            owner.go()
        if owner.is_gone:
            self.close_connection = True
            return
        if self._faulty(self.path):
            return
        if refusal := self._refusal(body):
            self._json({"error": {"message": refusal}}, 400)
            return
        owner.running += 1
        owner.most_running = max(owner.most_running, owner.running)
        try:
            chat = self.path == "/v1/chat/completions"
            if not chat and self.path != "/v1/completions":
                self._json({"error": {"message": "no such path"}}, 404)
            elif body.get("stream"):
                self._stream(body, chat)
            else:
                self._complete(body, chat)
        finally:
            owner.running -= 1

    def _faulty(self, path: str) -> bool:
        owner, faults = self.owner, self.owner.faults
        owner.keys.append(self.headers["Authorization"])
        if faults.silent:
            time.sleep(3)
            return True
        if faults.key is not None and self.headers["Authorization"] != f"Bearer {faults.key}":
            said = f"Incorrect API key provided: {self.headers['Authorization']}"
            self._json({"error": {"message": said}}, 401)
            return True
        status = faults.status.get(path)
        if status is not None or faults.body is not None:
            if faults.after > 0:
                faults.after -= 1
                return False
            if faults.times <= 0:
                return False
            faults.times -= 1
            if status is not None:
                self._json({"error": {"message": "as the test\nwants it"}}, status)
            else:
                self._send(faults.body or b"", "application/json")
            return True
        return False

    def _refusal(self, body: Json) -> str | None:
        faults = self.owner.faults
        if faults.no_echo and body.get("echo"):
            return "Only no echo is supported"
        if faults.text_only and not isinstance(body.get("prompt", ""), str):
            return "prompt must be a text"
        if faults.strict and ({"ignore_eos", "repetition_penalty"} & set(body)):
            return "unknown field"
        return None

    def _prompt(self, body: Json, chat: bool) -> list[int]:
        if chat:
            turns = "".join(f"{t['role']}: {t['content']}\n" for t in body["messages"])
            return self.owner.ids(turns + "assistant:")
        return self.owner.ids(body["prompt"])

    def _complete(self, body: Json, chat: bool) -> None:
        owner, ids = self.owner, self._prompt(body, chat)
        steps = list(owner.steps(ids, body))
        made, text = [s[0] for s in steps], "".join(s[1] for s in steps)
        choice: Json = {"index": 0, "finish_reason": steps[-1][2]}
        if chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = (owner.tokenizer.decode(ids) if body.get("echo") else "") + text
        if body.get("logprobs"):
            values = owner.logprobs(ids, made)
            choice["logprobs"] = {
                "token_logprobs": values if body.get("echo") else values[len(ids) :]
            }
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(made)}
        told = {} if owner.faults.no_usage else {"usage": usage}
        self._json({"object": "text_completion", "choices": [choice]} | told)

    def _stream(self, body: Json, chat: bool) -> None:
        owner, ids = self.owner, self._prompt(body, chat)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        count = 0
        if chat:
            self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for _, text, finish in owner.steps(ids, body):
            count += 1
            said = {"delta": {"content": text or " "}} if chat else {"text": text}
            self._event({"choices": [{"index": 0, "finish_reason": finish} | said]})
            if owner.faults.breaks:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
        if (body.get("stream_options") or {}).get("include_usage") and not owner.faults.no_usage:
            usage = {"prompt_tokens": len(ids), "completion_tokens": count}
            self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event: Json) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, part: bytes) -> None:
        self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")

    def _json(self, document: Json, status: int = 200) -> None:
        self._send(json.dumps(document).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: int = 200) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
