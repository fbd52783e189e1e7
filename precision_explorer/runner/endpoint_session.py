"""A server over HTTP, and what is measured of it: quality and blocks. Runs in a worker; no torch.

The same requests as a `runner.session.Session` answers: `quality`, `park`, `block`, `certificate`,
`noise`, `audit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from precision_explorer.endpoint.capabilities import Capabilities, ask_capabilities
from precision_explorer.endpoint.client import Client, Limits
from precision_explorer.endpoint.completions import Asking
from precision_explorer.errors import EndpointError
from precision_explorer.hardware.sensors import UnavailableSensor
from precision_explorer.models.asked import Asked, AskedAnswers, load_tokenizer
from precision_explorer.models.asked_scores import AskedChoices, AskedDocuments
from precision_explorer.records import AppliedFormat, Caution, canonical_hash
from precision_explorer.records.record import Quality, Repeat
from precision_explorer.runner.audit_answers import Texts
from precision_explorer.runner.auditing import AuditSubject, audit
from precision_explorer.runner.endpoint_load import EndpointLoad
from precision_explorer.runner.rows import refuse_non_finite, signatures_of, to_arrow
from precision_explorer.runner.timed import Subject, timed_part
from precision_explorer.tasks import KINDS, scores, unparsed

Json = dict[str, Any]
Progress = Callable[[str, int, int], None]


class EndpointSession:
    """One (model, declared format) on one server; `load_answer` says what is known of it."""

    def __init__(self, request: Json, progress: Progress) -> None:
        self.request, self.progress = request, progress
        limits = Limits(**request.get("limits", {}))
        self.client = Client(request["url"], request.get("key"), limits)
        known = request["capabilities"]
        self.can = (
            Capabilities(**known)
            if known is not None
            else ask_capabilities(self.client, request["model"])
        )
        self.tokenizer = load_tokenizer(request["tokenizer"]) if self.can.token_ids else None
        self._check(request.get("recipe"))
        self._made: tuple[Json, Asked] | None = None
        self.load_answer = self._loaded()

    def close(self) -> None:
        """Let go of all connections."""
        self.client.close()

    def _check(self, recipe: Json | None) -> None:
        """EndpointError where the server is not the one that the cell was planned for, when it did
        not answer; None: it did."""
        if recipe is None:
            return
        prompts = "token ids" if self.tokenizer is not None else "text"
        now = {"reported": self.can.reported, "extras": list(self.can.extras), "prompts": prompts}
        if any(recipe[name] != value for name, value in now.items()):
            raise EndpointError(
                "the endpoint is another than in the stored run (version, model or what it takes); "
                "run the sweep again while it is up"
            )

    def _loaded(self) -> Json:
        applied = AppliedFormat(
            format=self.request["format"],
            execution="unverified",
            reason=self.request["reason"],
            library="the server's",
            kernel=None,
            compute_dtype=None,
            linear_elements=None,
            converted_elements=None,
            converted_share=None,
            weight_bytes=None,
            reported=self.can.reported,
        )
        return {"applied": applied.model_dump(mode="json"), "cautions": [], "load": None}

    # -- requests ----------------------------------------------------------------------------

    def quality(self, request: Json) -> tuple[Json, bytes]:
        """Ask every example; rows come as Arrow."""
        adapter = self._adapter(request)
        start = time.perf_counter()
        order = range(len(adapter.examples))
        rows = self._rows(adapter, order, "quality", request["card"])
        elapsed = time.perf_counter() - start
        card = request["card"]
        counts = [row["input_tokens"] for row in rows]
        quality = Quality(
            metric=card["metrics"][0],
            scores=scores(card["kind"], card["metrics"], rows),
            seconds=elapsed,
            examples=len(rows),
            tokens=None if None in counts else sum(counts),
            # How the server puts them together it does not say.
            batches=len(rows),
            batch_plan_hash=canonical_hash(list(order)),
            cut_examples=sum(bool(row["cut"]) for row in rows),
            unparsed=unparsed(rows),
            signatures=signatures_of(card, rows),
        )
        answer = {"quality": quality.model_dump(), "peak_bytes": None, "recompiles": None}
        return answer, to_arrow(rows)

    def _rows(self, adapter: Asked, order: Any, phase: str, card: Json) -> list[Json]:
        count = len(adapter.examples)
        self.progress(phase, 0, count)
        answers = adapter.answers(order, lambda done: self.progress(phase, done, count))
        rows = adapter.rows(answers)
        refuse_non_finite(rows, KINDS[card["kind"]].proof)
        return rows

    def noise(self, request: Json) -> tuple[Json, bytes]:
        """Every example once more, in another order, so that the server puts others together."""
        adapter = self._adapter(request)
        start = time.perf_counter()
        seed = self.request["seed"]
        order = np.random.default_rng(seed).permutation(len(adapter.examples)).tolist()
        rows = self._rows(adapter, order, "noise", request["card"])
        noise = Repeat(
            seconds=time.perf_counter() - start,
            examples=len(rows),
            batches=len(rows),
            batch_plan_hash=canonical_hash(order),
        )
        return {"noise": noise.model_dump()}, to_arrow(rows)

    def park(self, request: Json) -> tuple[Json, bytes]:
        """Nothing is held here."""
        return {}, b""

    def block(self, request: Json) -> tuple[Json, bytes]:
        """One round of the latency of the workload's scenario, and of offline throughput."""
        adapter = self._adapter(request)
        adapter.ready()
        before = adapter.short
        subject = Subject(
            adapter,  # type: ignore[arg-type]
            request,
            self.request["seed"],
            lambda: None,
            self.progress,
        )
        if subject.rules.scenario == "server":
            answer, rows = self._served(adapter, subject)
        else:
            sensor = UnavailableSensor("a server over HTTP tells of no energy")
            answer, rows = timed_part(subject, sensor)
        # What else runs on this machine may be the server itself.
        answer |= {"other_work_share": None, "peak_bytes": None, "recompiles": None}
        answer["ended_early"] = adapter.short - before
        return answer, to_arrow(rows) if rows else b""

    def _served(self, adapter: Asked, subject: Subject) -> tuple[Json, list[Json]]:
        self.progress("serve", 0, 1)
        answer, rows = EndpointLoad(adapter, subject).measure()
        self.progress("serve", 1, 1)
        for row in rows:
            row |= {"id": subject.examples[row["index"]]["id"], "round": subject.round}
        return answer, rows

    def audit(self, request: Json) -> tuple[Json, bytes]:
        """The checks that need no model here; what else runs on this machine may be the server."""
        adapter = self._adapter(request)
        adapter.ready()
        subject = AuditSubject(
            adapter,  # type: ignore[arg-type]
            request,
            self.request["seed"],
            lambda: None,
            self.progress,
            texts=Texts(stop=tuple((request["card"].get("generation") or {}).get("stop") or ())),
        )
        return {"audit": audit(subject).model_dump(mode="json")}, b""

    def certificate(self, request: Json) -> tuple[Json, bytes]:
        """That nothing is proved, and what the reader must be told of the timed requests."""
        cautions = [self._declared(), _repeated(len(request["examples"]))]
        answer = {
            "certificate": None,
            "execution": "unverified",
            "reason": self.request["reason"],
            "cautions": [caution.model_dump() for caution in cautions],
        }
        return answer, b""

    def _declared(self) -> Caution:
        told = ", ".join(f"{name} {value}" for name, value in self.can.reported.items())
        text = (
            "model and format are what was declared of the endpoint: nothing proves what a server "
            "computes in, and its device, weights, memory and energy are not seen; it says of "
            f"itself: {told or 'nothing'}"
        )
        return Caution(id="served-as-declared", message=text)

    def _adapter(self, request: Json) -> Asked:
        """The request's task on the server; the last one again while nothing of it differs."""
        wanted = {name: request[name] for name in ("card", "examples", "workload")}
        if self._made is None or self._made[0] != wanted:
            self._made = wanted, self._new_adapter(request)
        return self._made[1]

    def _new_adapter(self, request: Json) -> Asked:
        card, workload, examples = request["card"], request["workload"], request["examples"]
        kind, window = card["kind"], self.can.window
        chat = kind == "generation" and card["generation"]["chat"]
        extras = dict.fromkeys(self.can.extras)
        asking = Asking(self.client, self.request["model"], extras, chat)
        # A chat's template is the server's.
        tokenizer = None if chat else self.tokenizer
        common = asking, examples, card, tokenizer, window
        if kind == "generation":
            return AskedAnswers(*common, workload["output_tokens"])
        if not self.can.scores:
            raise EndpointError(f"{self.can.why}, which {kind} needs")
        if kind == "multiple-choice":
            return AskedChoices(*common)
        if tokenizer is None:
            raise EndpointError(
                "language-modeling needs token ids: a server that takes them, and the model's "
                "tokenizer here; give the model's folder as --model, and the server's name for it "
                "behind the address, as in endpoint:http://host:8000/v1#NAME"
            )
        tokens = workload["prompt_tokens"], workload["output_tokens"]
        return AskedDocuments(*common, *tokens)


def _repeated(count: int) -> Caution:
    text = (
        f"the timed requests take the task's {count} prompts over and over, and the server was "
        "asked them before: one that keeps prefixes answers sooner than it would new ones; turn "
        "its prefix caching off to measure without"
    )
    return Caution(id="prompts-repeated", message=text)
