"""Which adapter answers which kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from precision_explorer.models.adapter import Adapter
from precision_explorer.models.causal_lm import LanguageModeling, MultipleChoice
from precision_explorer.models.text_classifier import TextClassifier

Json = dict[str, Any]
Make = Callable[[nn.Module, Any, str, Json], Adapter]
"""(model, tokenizer or processor, device, request) -> adapter. The request holds ``card`` (kind,
metrics, max_length), ``examples``, ``label_ids`` and ``workload``; see `runner.local`."""


def _text_classifier(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    examples, card = request["examples"], request["card"]
    return TextClassifier(model, tokenizer, device, examples, card, request["label_ids"])


def _multiple_choice(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    return MultipleChoice(model, tokenizer, device, request["examples"], request["card"])


def _language_modeling(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    workload = request["workload"]
    return LanguageModeling(
        model,
        tokenizer,
        device,
        request["examples"],
        request["card"],
        prompt_tokens=workload["prompt_tokens"],
        output_tokens=workload["output_tokens"],
    )


def _lm_eval(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    from precision_explorer.models.harness import HarnessTask

    examples, card = request["examples"], request["card"]
    return HarnessTask(model, tokenizer, device, examples, card, request["batch_plan"])


ADAPTERS: dict[str, Make] = {
    "text-classification": _text_classifier,
    "multiple-choice": _multiple_choice,
    "language-modeling": _language_modeling,
    "lm-eval": _lm_eval,
}


def make_adapter(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    """The adapter of the card's kind of task for `model`."""
    return ADAPTERS[request["card"]["kind"]](model, tokenizer, device, request)
