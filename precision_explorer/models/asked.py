"""Tasks asked of a server over HTTP: prompts, answers, and the timed requests. No torch.

The same definitions as of models that are loaded here; what differs is who computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from precision_explorer.endpoint.completions import AT_ONCE, Answer, Asking, Prompt
from precision_explorer.errors import EndpointError, ModelError, TaskError
from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.answering import SHOWN, answer_rows
from precision_explorer.models.tokens import prompt_ids
from precision_explorer.tasks import GenerationRules, cut_at_stop, extract

Row = dict[str, Any]
T = TypeVar("T")


class Asked:
    """One task on one server. `tokenizer`: of the model, where prompts go as token ids; None where
    they go as text. `window`: the server's, in tokens, None where it does not say."""

    generates = False
    max_length: int
    _batch: Sequence[Row] = ()
    short = 0
    """Timed answers that ended before as many tokens as were asked for."""

    def __init__(
        self,
        asking: Asking,
        examples: list[Row],
        tokenizer: Any | None,
        window: int | None,
    ) -> None:
        self.asking, self.examples = asking, examples
        self.tokenizer, self.window = tokenizer, window

    async def ask(self, index: int) -> Any:
        """What the row of example `index` is made of."""
        raise NotImplementedError

    def rows(self, answers: Sequence[Any]) -> list[Row]:
        """One sample row per example, from all answers; None where not finite."""
        raise NotImplementedError

    async def send(
        self, index: int, input_tokens: int | None = None, output_tokens: int | None = None
    ) -> Row:
        """One timed request; extra numbers of its row (`first_token_s` since it was sent)."""
        raise NotImplementedError

    def answers(self, order: Sequence[int], tell: Callable[[int], None]) -> list[Any]:
        """What `ask` gives for every example, in their order; asked in `order`, `AT_ONCE` at a
        time. `tell` is given how many are done."""
        found: dict[int, Any] = {}

        async def one(index: int) -> None:
            found[index] = await self.ask(index)
            tell(len(found))

        self.asking.client.run(in_turn(one, order, AT_ONCE))
        return [found[index] for index in range(len(self.examples))]

    def ready(self) -> None:
        """Ask beforehand what timed requests would ask the first time only."""

    # -- timed requests ----------------------------------------------------------------------

    def request(self, index: int, phases: Phases | NullPhases) -> Row:
        """One example, asked and answered."""
        made = self.asking.client.run(self.send(index))
        first_s = made.pop("first_token_s", None)
        return made if first_s is None else made | {"ttft_s": first_s}

    def offline(self, indices: Sequence[int]) -> Row:
        """Examples that are all sent at once; done when the last is answered."""
        made = self._together(indices)
        tokens = [one.get("output_tokens") for one in made]
        return {} if None in tokens else {"output_tokens": sum(tokens)}

    def _together(self, indices: Sequence[int]) -> list[Row]:
        found: dict[int, Row] = {}

        async def one(place: int) -> None:
            found[place] = await self.send(indices[place])

        places = range(len(indices))
        self.asking.client.run(in_turn(one, places, max(len(indices), 1)))
        self._batch = [found[place] for place in places]
        return self._batch

    def batch_answers(self) -> list[Row]:
        """What each request of the last batch was answered, as of `request`."""
        return list(self._batch)


async def in_turn(
    work: Callable[[int], Awaitable[None]], order: Sequence[int], at_once: int
) -> None:
    """Do `work` of everything in `order`, `at_once` at a time; the first error ends all."""
    left = iter(order)

    async def worker() -> None:
        for one in left:
            await work(one)

    tasks = [asyncio.ensure_future(worker()) for _ in range(min(at_once, len(order)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Streaming(Asked):
    """Timed requests that are answered token by token: `output_tokens` of them, whatever the
    answer, where the server lets them be asked for."""

    generates = True
    output_tokens: int
    prompts: Sequence[Prompt]

    async def send(
        self, index: int, input_tokens: int | None = None, output_tokens: int | None = None
    ) -> Row:
        """A prompt and `output_tokens` tokens, by default the workload's. Of token ids, a prompt of
        another length is cut there, or begins again."""
        prompt, asked = self.prompts[index], output_tokens or self.output_tokens
        if input_tokens is not None:
            assert not isinstance(prompt, str), "lengths are those of token ids"
            prompt = (list(prompt) * -(-input_tokens // len(prompt)))[:input_tokens]
        if self.window is not None and not isinstance(prompt, str):
            asked = min(asked, self.window - 1)
            prompt = prompt[-(self.window - asked) :]
        made = await self.asking.streamed(prompt, asked)
        count = made.answer.output_tokens
        self.short += count != asked
        own = len(prompt) if not isinstance(prompt, str) else made.answer.input_tokens
        return {
            "answer": made.answer.text,
            "first_token_s": made.first_token_s,
            "tpot_s": made.tpot_s(),
            "input_tokens": own,
            "output_tokens": count,
        }

    def serve_batch(self, indices: Sequence[int]) -> list[Row]:
        """Requests that are sent at once."""
        return self._together(indices)


class AskedAnswers(Streaming):
    """`generation`: greedy answers, read by the card's rule."""

    def __init__(
        self,
        asking: Asking,
        examples: list[Row],
        card: Row,
        tokenizer: Any | None,
        window: int | None,
        output_tokens: int,
    ) -> None:
        super().__init__(asking, examples, tokenizer, window)
        self.metrics = card["metrics"]
        self.rules = GenerationRules.model_validate(card["generation"])
        self.output_tokens = output_tokens
        most = max(self.rules.max_new_tokens, output_tokens)
        self.max_length = min(card["max_length"], (window or 1 << 30) - most)
        if self.max_length < 1:
            raise TaskError(
                f"{most} new tokens leave no room for a prompt in the {window} tokens of the "
                "server's window; lower generation.max_new_tokens in the card or the workload's "
                "output_tokens"
            )
        self.cut = [False] * len(examples)
        self.prompts = self._prompts()

    def _prompts(self) -> list[Prompt]:
        texts = [example["prompt"] for example in self.examples]
        if self.tokenizer is None:
            return list(texts)
        whole = prompt_ids(self.tokenizer, texts)
        for example, ids in zip(self.examples, whole, strict=True):
            if not ids:
                raise TaskError(f"example {example['id']}: its prompt holds no token; correct it")
        self.cut = [len(ids) > self.max_length for ids in whole]
        return [ids[-self.max_length :] for ids in whole]

    async def ask(self, index: int) -> Answer:
        """The answer to an example's prompt."""
        rules = self.rules
        found = await self.asking.answer(self.prompts[index], rules.max_new_tokens, rules.stop)
        if found.output_tokens is None:
            raise EndpointError(
                "the endpoint's answers don't say how many tokens they hold (usage); use a server "
                "that does"
            )
        return found

    def rows(self, answers: Sequence[Answer]) -> list[Row]:
        """As of `models.answering`."""
        read = [self._read(answer) for answer in answers]
        sizes = [
            {"input_tokens": answer.input_tokens, "cut": cut}
            for answer, cut in zip(answers, self.cut, strict=True)
        ]
        return answer_rows(self.examples, read, sizes, self.metrics, self.rules)

    def _read(self, answer: Answer) -> Row:
        output = cut_at_stop(answer.text, self.rules.stop)
        prediction = extract(output, self.rules.extract)
        return {
            "prediction": prediction,
            "unparsed": prediction is None if self.rules.extract.pattern else None,
            "output": output[:SHOWN],
            "finish_reason": "stop" if output != answer.text else answer.finish_reason,
            "output_tokens": answer.output_tokens,
        }


def load_tokenizer(path: str | None) -> Any | None:
    """The tokenizer in a folder; None for no folder. ModelError where it can't be read."""
    if path is None:
        return None
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            "the tokenizer in the model's folder can't be read; save it there with "
            "tokenizer.save_pretrained(folder)"
        ) from error
