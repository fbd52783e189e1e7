"""What only a loaded model can tell an audit: examples scored again, tokens made again without a
cache, and the work of a request. Runs in a worker."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from precision_explorer.measure import OtherWork
from precision_explorer.models.adapter import Item
from precision_explorer.models.work import counted_rows, request_work
from precision_explorer.runner.audit_answers import Reread, Texts
from precision_explorer.runner.auditing import AuditSubject
from precision_explorer.runner.profiling import make_subject
from precision_explorer.tasks import KINDS

if TYPE_CHECKING:
    from precision_explorer.runner.session import Session

Json = dict[str, Any]
Work = tuple[dict[str, int], int, int]
# num_local_experts, num_experts, n_routed_experts, moe_num_experts, ...
_EXPERTS = re.compile(r"(^|_)(n|num)_(\w+_)?experts$")


def audit_subject(session: Session, adapter: Any, request: Json) -> AuditSubject:
    """`adapter`, of the task of `request`, on the model that `session` holds."""
    reads_all = KINDS[request["card"]["kind"]].head != "seq2seq-lm"
    return AuditSubject(
        adapter=adapter,
        request=request | {"device_kind": session.facts.kind},
        seed=session.request["seed"],
        sync=session._sync,
        progress=session.progress,
        again=lambda index: scored_again(session, request, index),
        reread=lambda index, answer: reread(session, adapter, index, answer),
        work=(lambda call: query_work(session, adapter, request, call, reads_all))
        if session.followers is None
        else None,
        others=OtherWork,
        labels=_labels(adapter),
        texts=_texts(adapter),
        experts=experts_of(session.model.config.to_dict()),
        no_work="its tensors are split over several devices, and the limits are those of one",
    )


def experts_of(config: Json) -> str | None:
    """The key of `config`, or of one in it, that counts several experts; None without one."""
    for name, value in config.items():
        if isinstance(value, dict):
            found = experts_of(value)
            if found is not None:
                return f"{name}.{found}"
        elif _EXPERTS.search(str(name)) and isinstance(value, int) and value > 1:
            return f"{name} {value}"
    return None


def _labels(adapter: Any) -> list[str]:
    names = getattr(adapter, "names", None) or {}
    return [names[k] for k in sorted(names)]


def _texts(adapter: Any) -> Texts | None:
    """What ends the generated answers of `adapter`; None where it gives none."""
    ends, rules = getattr(adapter, "ends", None), getattr(adapter, "rules", None)
    if ends is None or rules is None:
        return None
    tokenizer = adapter.tokenizer
    return Texts(
        [tokenizer.decode([token]) for token in ends],
        tuple(map(str, tokenizer.all_special_tokens)),
        tuple(rules.stop),
    )


def _eagerly(session: Session) -> Any:
    """Other shapes than those of the cell are not compiled for it."""
    return session.compiled.eagerly() if session.compiled is not None else contextlib.nullcontext()


def scored_again(session: Session, request: Json, index: int) -> Json:
    """The row of example `index`, scored by itself as the quality pass scores it."""
    adapter = session._adapter(request | {"examples": [request["examples"][index]]})
    with _eagerly(session):
        items = adapter.items()
        rows = adapter.rows(items, adapter.score(items))
    return rows[0]


def reread(session: Session, adapter: Any, index: int, answer: str) -> Reread:
    """The last request's tokens, after the prompt of example `index`, against single passes over
    prompt and tokens without a cache: in each the token must be the likeliest after those before.

    The noise is what the log-probabilities of these tokens, and of the likeliest, differ by between
    a pass over all of it, one beside another prompt, and one over its first half.
    """
    tokens = list(adapter.served_tokens)
    if not tokens or adapter.tokenizer.decode(tokens) != answer:
        return Reread(float("inf"), 0.0, whole=False)
    prompt = adapter.prompt_ids(index)
    whole = (*prompt, *tokens[:-1])
    places = [len(prompt) - 1 + k for k in range(len(tokens))]
    half = max(len(tokens) // 2, 1)
    other = tuple(adapter.prompt_ids((index + 1) % len(adapter.examples)))

    def logprobs(count: int, *beside: tuple[int, ...]) -> torch.Tensor:
        """(count, vocabulary) in nats, of the first `count` tokens."""
        targets = tuple((0, place, tokens[k]) for k, place in enumerate(places[:count]))
        ids = whole[: places[count - 1] + 1]
        batch = [Item(0, ids, targets), *(Item(1, found) for found in beside)]
        return adapter.scores(batch).float().log_softmax(-1)[:count]

    with _eagerly(session):
        found = logprobs(len(tokens))
        wanted = torch.stack(
            [torch.tensor(tokens, device=found.device), found.argmax(-1)], 1
        )  # Of each place the token, and the likeliest.
        own = found.gather(-1, wanted)
        moved = [(own - logprobs(len(tokens), other).gather(-1, wanted)).abs().max()]
        moved.append((own[:half] - logprobs(half).gather(-1, wanted[:half])).abs().max())
    return Reread(
        margin_nats=float((own[:, 1] - own[:, 0]).max()),
        noise_nats=float(torch.stack(moved).max()),
    )


def query_work(
    session: Session,
    adapter: Any,
    request: Json,
    call: Callable[[], Any],
    each_pass_reads: bool,
) -> Work:
    """(operations by number type, bytes of weights that a pass reads, passes) of `call`, counted
    from what the layers are given. Where not `each_pass_reads` all weights (an encoder-decoder's
    steps leave the encoder's), one pass is counted."""
    layers = make_subject(session.model, adapter, session.request, None, 0.0).layers
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    handle = session.model.register_forward_pre_hook(count)
    try:
        with _eagerly(session), counted_rows(layers) as rows:
            call()
    finally:
        handle.remove()
    flops, weight_bytes = request_work(session.model, layers, rows)
    return flops, weight_bytes, passes if each_pass_reads else min(passes, 1)
