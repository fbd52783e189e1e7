"""The adapter for tasks of lm-evaluation-harness: its task says what is asked and how answers are
scored, its `hf` model how texts become tokens; the forward passes are this project's own."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import InvalidNumerics, TaskError
from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import Item, plan_batches
from precision_explorer.models.causal_lm import _CausalLM
from precision_explorer.tasks import example_bytes, example_words
from precision_explorer.tasks.harness_library import (
    aggregation_name,
    build,
    doc_hash,
    filters_of,
)
from precision_explorer.tasks.harness_metrics import metric_name, stored, zero_one

_CHUNK = 256
GENERATE = "generate_until"


class HarnessTask(_CausalLM):
    """One task on one loaded model. An item is one row of tokens of a document: choices that differ
    in their last token only share it, as in the harness's logits cache; or one prompt."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        device: str,
        examples: list[dict[str, Any]],
        card: dict[str, Any],
        batch_plan: dict[str, Any] | None,
    ) -> None:
        from precision_explorer.models.harness_lm import LoadedLM

        super().__init__(model, tokenizer, device, examples, card)
        self.lm = LoadedLM(model, tokenizer, device)
        self.max_length = self.lm.limit(card["max_length"])
        self.plan = batch_plan
        self.task = build(card["spec"])
        self.docs = _docs_of(self.task, examples)
        self.kinds = {kind for example in examples for kind, _, _ in example["requests"]}
        self.generates = self.kinds == {GENERATE}
        self.metrics = list(card["metrics"])
        self._batch: list[tuple[str, bool]] = []
        # Whether each token is the most likely one is asked for by few tasks, and is not what the
        # shared rows of the other kinds are made for.
        self.greedy = _asks_greedy(self.task)
        if self.greedy or GENERATE in self.kinds:
            self.share = None  # type: ignore[method-assign,assignment]

    # -- items -------------------------------------------------------------------------------

    def items(self) -> list[Item]:
        """The rows of all documents."""
        return [item for index in range(len(self.examples)) for item in self._items_of(index)]

    def _items_of(self, index: int) -> list[Item]:
        example = self.examples[index]
        shared: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        found: list[Item] = []
        cut = False
        for slot, (kind, arguments, repeats) in enumerate(example["requests"]):
            if kind == GENERATE:
                found += [self._prompt(index, slot, arguments)] * repeats
                continue
            where = f"document {example['id']}, request {slot + 1}"
            for context, tokens in self.lm.encode(kind, arguments, where):
                whole = context + tokens
                kept = whole[-(self.max_length + 1) :]
                cut = cut or len(kept) < len(whole)
                ids = tuple(kept[:-1])
                first = len(ids) - len(tokens)
                targets = [(slot, first + k, token) for k, token in enumerate(tokens)]
                shared.setdefault(ids, []).extend(targets)
        return found + [Item(index, ids, tuple(t), cut) for ids, t in shared.items()]

    def _prompt(self, index: int, slot: int, arguments: Sequence[Any]) -> Item:
        ids = self.lm.tok_encode(arguments[0])
        most = arguments[1].get("max_gen_toks", self.lm.max_gen_toks)
        room = max(self.max_length - most, 1)
        kept = tuple(ids[-room:])
        # What is read of it where only distributions are asked for: the one after its last token.
        last = ((slot, len(kept) - 1, 0),)
        return Item(index, kept, last, len(ids) > room, room=most)

    # -- scores ------------------------------------------------------------------------------

    def score(self, batch: Sequence[Item]) -> list[Any]:
        """Per item {slot: (log-probability in nats, whether greedy)}, or of a prompt {slot: (text,
        whether finite)}."""
        prompts = [item for item in batch if self._request_of(item)[0] == GENERATE]
        if not prompts:
            return self._score_tokens(batch)
        texts = iter(self.lm.generate([self._request_of(item)[1] for item in prompts]))
        others = [item for item in batch if self._request_of(item)[0] != GENERATE]
        sums = iter(self._score_tokens(others) if others else [])
        answers = []
        for item in batch:
            prompt = self._request_of(item)[0] == GENERATE
            answers.append({item.targets[0][0]: next(texts)} if prompt else next(sums))
        return answers

    def _request_of(self, item: Item) -> list[Any]:
        """[type, arguments, repeats] of the first request that `item` answers."""
        return self.examples[item.example]["requests"][item.targets[0][0]]

    def _score_tokens(self, batch: Sequence[Item]) -> list[dict[int, tuple[float, bool]]]:
        if self.greedy:
            return self._score_greedy(batch)
        return [
            {slot: (value, False) for slot, value in sums.items()} for sums in super().score(batch)
        ]

    def _score_greedy(self, batch: Sequence[Item]) -> list[dict[int, tuple[float, bool]]]:
        places = sorted({(i, t[1]) for i, item in enumerate(batch) for t in item.targets})
        logits, _ = self.scorer.forward.logits([item.ids for item in batch], places)
        place = {found: k for k, found in enumerate(places)}
        wanted = [(place[i, p], token) for i, it in enumerate(batch) for _, p, token in it.targets]
        values, greedy = _read(logits, wanted)
        found: list[dict[int, tuple[float, bool]]] = []
        step = iter(zip(values, greedy, strict=True))
        for item in batch:
            sums: dict[int, tuple[float, bool]] = defaultdict(lambda: (0.0, True))
            for slot, _, _ in item.targets:
                value, best = next(step)
                sums[slot] = (sums[slot][0] + value, sums[slot][1] and best)
            found.append(dict(sums))
        return found

    # -- rows --------------------------------------------------------------------------------

    def rows(self, items: Sequence[Item], answers: Sequence[Any]) -> list[dict[str, Any]]:
        """id, target, prediction, score, finite and a column per metric (see `harness_metrics`);
        of log-likelihoods their values, of whole texts loss, words and bytes."""
        found: list[dict[int, list[Any]]] = [defaultdict(list) for _ in self.examples]
        rows = [self._blank(example) for example in self.examples]
        for item, answer in zip(items, answers, strict=True):
            for slot, value in answer.items():
                found[item.example][slot].append(value)
            rows[item.example]["input_tokens"] += len(item.ids)
            rows[item.example]["cut"] |= item.cut
        responses = [self._responses(i, slots) for i, slots in enumerate(found)]
        for row, response in zip(rows, responses, strict=True):
            row["finite"] = None if response is None else True
        if None not in responses:
            self._fill(rows, responses)
        return rows

    def _blank(self, example: dict[str, Any]) -> dict[str, Any]:
        row = {"id": example["id"], "group": example["group"], "target": None, "prediction": None}
        return row | {"score": None, "finite": None, "input_tokens": 0, "cut": False}

    def _responses(self, index: int, slots: dict[int, list[Any]]) -> list[list[Any]] | None:
        """What the harness would have been answered to each request, once per repeat; None where
        the model's output was not finite."""
        result: list[list[Any]] = []
        for slot, (kind, _, _) in enumerate(self.examples[index]["requests"]):
            parts = slots[slot]
            if kind == GENERATE:
                if not all(finite for _, finite in parts):
                    return None
                result.append([text for text, _ in parts])
                continue
            total = sum(value for value, _ in parts)
            if not math.isfinite(total):
                return None
            greedy = all(best for _, best in parts)
            result.append([total if kind == "loglikelihood_rolling" else (total, greedy)])
        return result

    def _fill(self, rows: list[dict[str, Any]], responses: list[Any]) -> None:
        """Targets, predictions and metrics of all rows."""
        from precision_explorer.models.harness_lm import instance

        asked = []
        for index, example in enumerate(self.examples):
            for (kind, arguments, _), answers in zip(
                example["requests"], responses[index], strict=True
            ):
                one = instance(kind, arguments)
                one.doc, one.doc_id, one.resps = self.docs[index], index, list(answers)
                asked.append(one)
        self.task._instances = asked
        self.task.apply_filters()
        of_doc: dict[int, list[Any]] = defaultdict(list)
        for one in asked:
            of_doc[one.doc_id].append(one)
        names = filters_of(self.task)
        self.values = [
            {
                metric_name(metric, name): value
                for name in names
                for metric, value in self.task.process_results(
                    doc, [one.filtered_resps[name] for one in of_doc[index]]
                ).items()
            }
            for index, doc in enumerate(self.docs)
        ]
        for index, row in enumerate(rows):
            self._fill_row(row, index, [one.filtered_resps[names[0]] for one in of_doc[index]])
        self._store(rows)

    def _fill_row(self, row: dict[str, Any], index: int, answers: list[Any]) -> None:
        doc, requests = self.docs[index], self.examples[index]["requests"]
        row["target"] = _text(self.task.doc_to_target(doc))
        if GENERATE in self.kinds:
            row["prediction"] = _text(answers[0])
        elif self.kinds == {"loglikelihood_rolling"}:
            text = requests[0][1][0]
            row |= {"loss": -sum(answers), "words": example_words(text)}
            row["bytes"] = example_bytes(text)
        else:
            values = [value for value, _ in answers]
            row["choice_logprobs"] = values
            row["prediction"] = str(max(range(len(values)), key=values.__getitem__))

    def _store(self, rows: list[dict[str, Any]]) -> None:
        """A column for each metric that is a mean, in all rows."""
        aggregations = {m: aggregation_name(f) for m, f in self.task.aggregation().items()}
        for metric in dict.fromkeys(name for values in self.values for name in values):
            kind = aggregations.get(_bare(metric), "mean")
            for row, values in zip(rows, self.values, strict=True):
                if metric in values:
                    made = stored(metric, kind, values[metric])
                    if made is not None:
                        row[made[0]] = made[1]
        for name in {name: None for row in rows for name in row}:
            for row in rows:
                row.setdefault(name, None)
        first = self.metrics[0]
        columns = {first.partition(":")[2]: [row.get(first.partition(":")[2]) for row in rows]}
        if zero_one(first, columns):
            for row, value in zip(rows, *columns.values(), strict=True):
                row["score"] = value

    def own_scores(self) -> dict[str, float]:
        """Each metric as the harness itself aggregates it; after `rows`. TaskError where the task
        did not score what it declares."""
        result: dict[str, float] = {}
        functions = self.task.aggregation()
        for metric in self.metrics:
            found = [values[metric] for values in self.values if metric in values]
            if not found:
                continue
            result[metric] = float(functions[_bare(metric)](found))
            if not math.isfinite(result[metric]):
                raise InvalidNumerics(f"{metric} is no number on these examples")
        if self.metrics[0] not in result:
            made = sorted({name for values in self.values for name in values})
            raise TaskError(
                f"the task declares {self.metrics[0]} and scores {', '.join(made)}; correct its "
                "metric_list"
            )
        return result

    # -- requests ----------------------------------------------------------------------------

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """All requests of one document, as a user would send them."""
        if self.generates:
            return self._generate(index, phases)
        with phases("tokenize"):
            items = self._items_of(index)
        with phases("forward"):
            self._score_all(items)
        return {}

    def _generate(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        from precision_explorer.models.harness_lm import FirstToken

        seen = FirstToken()
        start = time.perf_counter()
        with phases("forward"):
            text, _ = self.lm.generate([self.examples[index]["requests"][0][1]], seen)[0]
        end = time.perf_counter()
        first = seen.first or end
        rest = seen.tokens - 1
        return {
            "answer": text,
            "ttft_s": first - start,
            "tpot_s": (end - first) / rest if rest > 0 else None,
            "output_tokens": seen.tokens,
        }

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """The requests of several documents at once."""
        if self.generates:
            self._batch = self.lm.generate([self.examples[i]["requests"][0][1] for i in indices])
            return {}
        self._score_all([item for i in indices for item in self._items_of(i)])
        return {}

    def batch_answers(self) -> list[dict[str, Any]]:
        """The text (`answer`) of each request of the last batch of generated answers."""
        return [{"answer": text} for text, _ in self._batch]

    def _score_all(self, items: list[Item]) -> None:
        """Whole texts may hold more windows than fit at once."""
        lengths = [len(item.ids) for item in items]
        plan = self.plan or {"max_tokens": 1, "max_items": 1}
        for batch in plan_batches(lengths, plan["max_tokens"], plan["max_items"]):
            # Whole rows, as a user's request has them: nothing is left in the cache by others.
            chosen = [items[i] for i in batch]
            if self.scorer.shares:
                self.scorer.whole(chosen)
            else:
                self.score(chosen)


def _docs_of(task: Any, examples: list[dict[str, Any]]) -> list[Any]:
    """The documents of `examples`; TaskError where the data changed since they were planned."""
    docs = task.eval_docs
    found = [docs[e["doc"]] if e["doc"] < len(docs) else None for e in examples]
    for doc, example in zip(found, examples, strict=True):
        if doc_hash(doc) != example["hash"]:
            raise TaskError(
                f"document {example['id']} of lm-eval:{task.config.task} is another than when the "
                "sweep was planned; run it again"
            )
    return found


def _asks_greedy(task: Any) -> bool:
    scored = {_bare(metric) for metric in task.aggregation()}
    own_code = callable(task.get_config("process_results"))
    return task.OUTPUT_TYPE == "loglikelihood" or "exact_match" in scored or own_code


def _bare(metric: str) -> str:
    """The harness's metric without the prefix and its filter."""
    return metric.partition(":")[2].partition(",")[0] if ":" in metric else metric


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _read(logits: torch.Tensor, wanted: list[tuple[int, int]]) -> tuple[list[float], list]:
    """log softmax(logits[row])[token], in float32, and whether no token is more likely."""
    rows, tokens = (torch.tensor(c, device=logits.device) for c in zip(*wanted, strict=True))
    parts = []
    for start in range(0, len(wanted), _CHUNK):
        part = slice(start, start + _CHUNK)
        chosen = logits[rows[part]].float()
        value = chosen.gather(-1, tokens[part, None]).squeeze(-1) - chosen.logsumexp(-1)
        parts.append(torch.stack([value, chosen.argmax(-1).eq(tokens[part]).float()]))
    values, greedy = torch.cat(parts, dim=1).double().cpu().tolist()
    return values, [bool(best) for best in greedy]
