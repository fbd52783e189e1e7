"""A loaded model and what is measured on it: load, quality, blocks, profile. Runs in a worker."""

from __future__ import annotations

import gc
import importlib
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch

from precision_explorer.errors import DoesNotFit
from precision_explorer.formats.apply import apply_format, compute_dtype, set_matmul_precision
from precision_explorer.formats.catalog import AS_SHIPPED
from precision_explorer.formats.certificate import certify, wanted_in
from precision_explorer.formats.compiling import configure, graphs, load_compiler
from precision_explorer.formats.execution import judge
from precision_explorer.formats.recipe import packages_of, spec_in
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.hardware import (
    DeviceFacts,
    EnergySensor,
    UnavailableSensor,
    int8_native,
    open_sensor,
    process_bytes,
)
from precision_explorer.measure import (
    CudaPeakMemory,
    NullPhases,
    OtherWork,
    PeakMemory,
    set_aside_imports,
)
from precision_explorer.models.adapter import Adapter, Item, plan_batches
from precision_explorer.models.adapters import make_adapter
from precision_explorer.models.compiled import CompiledModel
from precision_explorer.models.dispatch import parts_of_model
from precision_explorer.models.loading import load, prepare
from precision_explorer.models.synthetic import make
from precision_explorer.models.tensors import (
    answer_of,
    check_shares,
    elements_in,
    join,
    parts_of_all,
    summed,
)
from precision_explorer.records import Roof, canonical_hash
from precision_explorer.records.record import Load, Quality
from precision_explorer.runner.audit_model import audit_subject
from precision_explorer.runner.auditing import audit
from precision_explorer.runner.comparing import (
    HeardPasses,
    compare_distributions,
    keep_distributions,
    score_again,
)
from precision_explorer.runner.compiling import calls, compilation, warm_up
from precision_explorer.runner.followers import Followers, GiveUp, MemoryOfAll
from precision_explorer.runner.guard import limit_memory
from precision_explorer.runner.non_finite import first_non_finite
from precision_explorer.runner.profiling import make_subject, profile_cell
from precision_explorer.runner.rows import refuse_non_finite, signatures_of, to_arrow
from precision_explorer.runner.serving import batch_sizes
from precision_explorer.runner.timed import Subject, timed_part
from precision_explorer.tasks import KINDS, scores, unparsed
from precision_explorer.units import bytes_
from precision_explorer.workload import Workload

Progress = Callable[[str, int, int], None]


class Session:
    """One (model, format, runtime, device), loaded; `load_answer` says what came of it."""

    followers: Followers | None = None
    """Of a model whose tensors are split, in the first of its processes."""
    _audited: Adapter | None = None
    """That of an audit under way, where it is another than the cell's."""

    def __init__(
        self, request: dict[str, Any], progress: Progress, give_up: GiveUp | None = None
    ) -> None:
        self.request, self.progress = request, progress
        self.device: str = request["device"]
        facts = request["facts"] | {"beside": request.get("beside", ())}
        self.facts = DeviceFacts.model_validate(facts)
        self.by_tensors = bool(request.get("by_tensors"))
        self.devices = [self.device] if self.by_tensors else _devices(self.facts)
        if self.by_tensors and "rank" not in request:
            # Before threads and CUDA, which a fork does not take along.
            each = [one.model_dump(mode="json") for one in self.facts.each]
            self.followers = Followers(request, each, give_up or _raise)
        torch.set_num_threads(request["threads"])
        torch.manual_seed(request["seed"])
        if self.device != "cpu":
            torch.cuda.set_device(self.device)
        start = time.perf_counter()
        needed = packages_of(request["format"], request["recipe"])
        for package in (*needed, *KINDS[request["kind"]].imports):
            importlib.import_module(package)
        self.runtime = RUNTIMES[request.get("runtime", "eager")]
        if self.runtime.compiles:
            configure(request["compile_cache"], self.facts.kind)
            load_compiler()
        self.synthetic: dict[str, Any] | None = request.get("synthetic")
        """What random weights are made with; nothing is then scored."""
        self.tokenizer = prepare(
            Path(request["path"]),
            request["kind"],
            request["trust_remote_code"],
            Path(self.synthetic["tokenizer"]) if self.synthetic else None,
        )
        import_s = time.perf_counter() - start
        # After the imports, which are not the model's.
        limit_memory(request["memory_limit"])
        self.memory: PeakMemory | CudaPeakMemory | MemoryOfAll = self._memory()
        self.memory.baseline()
        set_aside_imports()
        self.memory.begin()
        self._check_fit()
        self.load_answer = self._load(import_s)
        if self.followers is not None:
            self._join_answers(self.followers)
        self.compiled: CompiledModel | None = None
        self.adapter: Adapter | None = None
        self._asked: Any = None
        """The task and examples that `adapter` is of."""
        self.heard = HeardPasses()

    def _memory(self) -> PeakMemory | CudaPeakMemory:
        if self.device == "cpu":
            return PeakMemory()
        own = self.facts.over(len(self.devices))
        return CudaPeakMemory(self.devices, lambda: process_bytes(own))

    def _check_fit(self) -> None:
        """Refuse before loading what can't fit, rather than have the kernel kill something."""
        if self.request.get("device_bytes"):
            return self._check_each()
        need = self.request["load_bytes"]
        if self.device == "cpu":
            import psutil

            there = min(psutil.virtual_memory().available, self.facts.memory_bytes)
        else:
            there = torch.cuda.mem_get_info(self.device)[0]
        limit = self.request["memory_limit"]
        there = min(there, limit) if limit is not None and self.device == "cpu" else there
        if need > there:
            raise DoesNotFit(
                f"the weights take {bytes_(need)} in {self.request['recipe']['compute_dtype']} "
                f"while loading and {bytes_(there)} are free; use a smaller model or more memory"
            )

    def _check_each(self) -> None:
        """The same of a model that is spread: on every device what it is to hold."""
        for device, need in zip(self.devices, self.request["device_bytes"], strict=False):
            if self.device == "cpu":
                continue  # Stand-ins for devices: all of them are this machine's memory.
            there = torch.cuda.mem_get_info(device)[0]
            if need > there:
                raise DoesNotFit(
                    f"{bytes_(need)} of the weights and their cache were planned on {device}, of "
                    f"which {bytes_(there)} are free; end what else uses it, or use a smaller model"
                )

    def _load(self, import_s: float) -> dict[str, Any]:
        request = self.request
        self.progress("load", 0, 1)
        start = time.perf_counter()
        set_matmul_precision(request["format"])
        self.model = self._model()
        self._sync()
        loaded = time.perf_counter()
        self.outcome = outcome = apply_format(
            self.model,
            request["format"],
            request["recipe"],
            request["execution"],
            request["reason"],
            self._calibrate,
        )
        self._sync()
        applied = time.perf_counter()
        peak = self.memory.end()
        self.memory.trim()
        self.progress("load", 1, 1)
        share = {"share": answer_of(self.model)} if self.by_tensors else {}
        return share | {
            "applied": outcome.applied.model_dump(mode="json") | {"devices": self._parts()},
            "cautions": [c.model_dump() for c in outcome.cautions],
            "load": Load(
                import_s=import_s, load_s=loaded - start, apply_s=applied - loaded
            ).model_dump(),
            "memory": {
                "method": self.memory.method,
                "baseline_bytes": self.memory.baseline_bytes,
                "load_peak_bytes": peak,
            },
            "threads": torch.get_num_threads(),
        }

    def _join_answers(self, followers: Followers) -> None:
        """Have the answer to the load tell of all shares, once they are seen to be the whole."""
        own = self.load_answer
        answers = [own, *followers.told()]
        shares = [answer.pop("share") for answer in answers]
        check_shares(shares)
        names = [one.device for one in self.facts.each]
        parts = {"split": "tensors", "devices": parts_of_all(shares, names)}
        own["applied"] |= summed(shares) | parts
        for name in ("baseline_bytes", "load_peak_bytes"):
            own["memory"][name] = sum(answer["memory"][name] for answer in answers)
        assert not isinstance(self.memory, MemoryOfAll)
        self.memory = MemoryOfAll(self.memory, followers, own["memory"]["baseline_bytes"])
        followers.guard(self.model)

    def _model(self) -> torch.nn.Module:
        request = self.request
        path, kind, trusted = Path(request["path"]), request["kind"], request["trust_remote_code"]
        dtype = compute_dtype(request["recipe"])
        if self.synthetic:
            seed = self.synthetic["seed"]
            return make(path, kind, dtype, self.devices[0], trusted, seed, self._map())
        shipped = request["format"] == AS_SHIPPED
        pickled = request.get("pickled", False)
        how = {"shipped": shipped, "pickled": pickled, "device_map": self._map()}
        if not self.by_tensors:
            return load(path, kind, dtype, self.devices[0], trusted, **how)
        count, rank = len(request["device_bytes"]), request.get("rank", 0)
        folder = Path(request["folder"]) if self.followers is None else self.followers.folder
        with nullcontext() if self.followers is None else self.followers.guarded():
            join(folder, rank, count, self.device)
            return load(path, kind, dtype, self.device, trusted, **how, processes=count)

    def _map(self) -> dict[str, str] | None:
        """{module: device} of a model that is spread over several."""
        places = self.request.get("device_map")
        return places and {name: self.devices[place] for name, place in places.items()}

    def _parts(self) -> list[dict[str, Any]] | None:
        """Where the parts of a model that is spread are, and what they take in the format."""
        found = self._map()
        return None if not found else parts_of_model(self.model, found, self.devices)

    def _calibrate(self) -> None:
        """Run the model on the calibration texts as the task would, one at a time: what stands in
        the padding of a batch is no text."""
        adapter = self._adapter(self.request["calibration"])
        with torch.inference_mode():
            items = adapter.items()
            for done, item in enumerate(items):
                self.progress("calibrate", done, len(items))
                adapter.scores([item])
        self.progress("calibrate", len(items), len(items))

    def _sync(self) -> None:
        if self.device != "cpu":
            for device in self.devices:
                torch.cuda.synchronize(device)

    # -- requests ----------------------------------------------------------------------------

    def compile(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Compile the model for every shape of the task, before anything is scored or timed."""
        adapter = self._made(request)
        count = len(request["examples"])
        model = self.compiled = CompiledModel(
            self.model,
            self.runtime,
            self.device,
            pad=adapter.pad,
            longest=adapter.max_length,
            new_tokens=getattr(adapter, "new_tokens", 0),
        )
        items = adapter.items()
        batches = self._batches(request, items)
        if self.synthetic:
            batches = batches[-1:]  # All that is run of them, for the certificate.
        with torch.inference_mode():
            sizes = batch_sizes(request["batch_sizes"], request["workload"])
            found = calls(adapter, items, batches, count, sizes)
            seconds = warm_up(model, found, self._sync, self.progress)
        made = compilation(model, self.runtime, self.facts.kind)
        self.memory.trim()
        return {"compile_s": seconds, "compilation": made.model_dump()}, b""

    def _batches(self, request: dict[str, Any], items: list[Item]) -> list[list[int]]:
        """The frozen batches; where nothing is compiled, the adapter's `score` shares prefixes from
        now on, if it can."""
        plan = request["batch_plan"]
        if "looks" not in request:
            return self._cut(items, plan)
        batches = []
        # Where examples are scored in looks, each look's by themselves.
        for start, end in pairwise([0, *request["looks"]]):
            part = [k for k, item in enumerate(items) if start <= item.example < end]
            batches += [[part[k] for k in b] for b in self._cut([items[k] for k in part], plan)]
        return batches

    def _cut(self, items: list[Item], plan: dict[str, Any]) -> list[list[int]]:
        lengths, bounds = [i.size for i in items], (plan["max_tokens"], plan["max_items"])
        if self.runtime.compiles:
            return plan_batches(lengths, *bounds)
        share = getattr(self.adapter, "share", None)
        if share is not None:
            return share(items, *bounds, plan["call_tokens"])
        return plan_batches(lengths, *bounds, plan["call_tokens"])

    def quality(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Score every example in the frozen batch plan; rows come as Arrow."""
        adapter = self._made(request)
        made = self._graphs()
        self.memory.begin()
        start = time.perf_counter()
        with torch.inference_mode():
            items = adapter.items()
            batches = self._batches(request, items)
            with self.heard.hear(self, items, "quality", bool(request.get("part"))):
                answers = self._score(items, batches)
        self._release()
        rows = adapter.rows(items, answers)
        elapsed = time.perf_counter() - start
        peak = self.memory.end()
        card = request["card"]
        refuse_non_finite(rows, KINDS[card["kind"]].proof, self._where_non_finite)
        quality = Quality(
            metric=card["metrics"][0],
            scores=_scores(adapter, card, rows),
            higher_is_better=card.get("higher_is_better"),
            seconds=elapsed,
            examples=len(rows),
            tokens=sum(len(item.ids) for item in items),
            batches=len(batches),
            batch_plan_hash=canonical_hash(self._frozen(batches)),
            cut_examples=sum(bool(row["cut"]) for row in rows),
            unparsed=unparsed(rows),
            signatures=signatures_of(card, rows),
        )
        recompiles = self._graphs(made)
        answer = {"quality": quality.model_dump(), "peak_bytes": peak, "recompiles": recompiles}
        if request.get("part"):
            self.adapter = None  # It knows some of the examples only.
        return answer | self.memory.extras(), to_arrow(rows)

    def _where_non_finite(self, example: int) -> str | None:
        """Of an example that came out so, asked once more; None where that tells nothing."""
        adapter = self.adapter
        assert adapter is not None
        items = [item for item in adapter.items() if item.example == example]
        # Hooks see nothing of compiled code.
        eagerly = self.compiled.eagerly() if self.compiled is not None else nullcontext()
        try:
            with torch.inference_mode(), eagerly:
                return first_non_finite(self.model, lambda: [adapter.scores([i]) for i in items])
        except Exception:  # The cell has failed for another reason, which is to be told.
            return None

    def _frozen(self, batches: list[list[int]]) -> Any:
        """The batches, and what is shared in them where anything is."""
        sharing = getattr(self.adapter, "sharing", None)
        return {"batches": batches} | sharing if sharing else batches

    def _release(self) -> None:
        """Let go of what the quality pass kept between batches."""
        release = getattr(self.adapter, "release", None)
        if release is not None:
            release()

    def _score(
        self, items: list[Item], batches: list[list[int]], phase: str = "quality"
    ) -> list[Any]:
        assert self.adapter is not None
        answers: list[Any] = [None] * len(items)
        # An example may have several rows, in several batches.
        left = Counter(item.example for item in items)
        total = len(left)
        self.progress(phase, 0, total)
        for batch in batches:
            found = self.adapter.score([items[i] for i in batch])
            for index, answer in zip(batch, found, strict=True):
                answers[index] = answer
            left.subtract(items[i].example for i in batch)
            left = +left
            self.progress(phase, total - len(left), total)
        return answers

    def park(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Give back what the quality pass left, before other models are loaded beside this one."""
        self.memory.trim()
        return {}, b""

    def block(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """One round of the latency of the workload's scenario with its energy, and of offline
        throughput. `first`: whether this process has not served the cell before. `beside`: the
        processes of a background at work, where there is one; its windows are not watched."""
        adapter = self._adapter_of(request)
        if request.get("mixed"):
            # Of the task alone are what is scored and what is certified.
            request = request | {"examples": [*request["examples"], *request["mixed"]]}
            adapter = self._adapter(request)
        made = self._graphs()
        self.memory.begin()
        beside = request.get("beside")
        facts = None if beside else self.facts
        subject = Subject(adapter, request, self.request["seed"], self._sync, self.progress, facts)
        others = OtherWork(ours=beside or ())
        others.begin()
        with torch.inference_mode():
            answer, rows = timed_part(subject, self._sensor())
        answer |= {
            "other_work_share": others.end(),
            "peak_bytes": self.memory.end(),
            "recompiles": self._graphs(made),
        }
        gc.collect()
        return answer | self.memory.extras(), to_arrow(rows) if rows else b""

    def _sensor(self) -> EnergySensor:
        """Of all devices; none where it would tell of this process alone, of several."""
        found = open_sensor(self.facts)
        if self.followers is None or not found.source.startswith("estimated"):
            return found
        return UnavailableSensor("an estimate is of one process, and several hold the model")

    def _graphs(self, before: int | None = 0) -> int | None:
        """Graphs compiled beyond `before`; None where nothing is compiled."""
        return graphs() - (before or 0) if self.runtime.compiles else None

    def certificate(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """What multiplied in one request and one batch, and what the row may be called for it."""
        adapter = self._adapter_of(request)
        format_id = self.request["format"]
        recipe = self.request["recipe"]
        spec = spec_in(format_id, recipe)
        wanted = recipe["compute_dtype"] if spec.arithmetic == "compute" else spec.arithmetic
        layout = self.outcome.layout

        def run() -> None:
            adapter.request(0, NullPhases())
            items = adapter.items()
            batch = [items[i] for i in self._batches(request, items)[-1]]
            # The shortest inputs: other sizes than the request's, in little time. What a long
            # answer's steps multiply in, the request has shown.
            score = adapter.scores if adapter.generates else adapter.score
            score(batch)
            self._release()

        of_pass = "batch plan" if self.synthetic else "quality pass"
        work = f"one request, and the last batch of the {of_pass}"
        if self.followers is not None:
            work += f", on the first of {self.followers.count} devices"
            layout = replace(layout, elements=elements_in(self.model, layout.elements))
        certificate = certify(
            self.model,
            layout,
            wanted_in(layout, self.outcome.held_in, format_id, recipe),
            run,
            work,
            int8_native(self.facts)[0] or "avx2" in self.facts.cpu_flags,
            self.compiled.eagerly if self.compiled is not None else None,
        )
        promised, reason = self.outcome.applied.execution, self.request["reason"]
        judgement = judge(spec, wanted, promised, reason, certificate)
        answer = {
            "certificate": certificate.model_dump(mode="json"),
            "execution": judgement.execution,
            "reason": judgement.reason,
            "cautions": [c.model_dump() for c in judgement.cautions],
        }
        return answer, b""

    def noise(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The quality pass again in other batches, of the reference only; see `comparing`."""
        answer, rows = score_again(self, request)
        refuse_non_finite(rows, KINDS[request["card"]["kind"]].proof)
        return answer, to_arrow(rows)

    def keep(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The reference's next-token distributions, for others to be held against."""
        return keep_distributions(self, request)

    def compare(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Next-token distributions held against those that the reference kept."""
        answer, rows = compare_distributions(self, request)
        return answer, to_arrow(rows)

    def profile(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """How long passes take at declared shapes and where their time goes; see `profiling`."""
        if self.followers is not None:
            return {"why": "its passes are timed in one process, and the tensors are split"}, b""
        adapter = self._adapter_of(request)
        roof = Roof.model_validate(request["roof"]) if request["roof"] else None
        self.progress("profile", 0, 1)
        with torch.inference_mode():
            rules = Workload.model_validate(request["workload"])
            subject = make_subject(
                self.model, adapter, self.request, self.facts, rules.min_seconds,
                batch_sizes(request["batch_sizes"], request["workload"]),
                self.compiled.eagerly if self.compiled is not None else None,
            )  # fmt: skip
            profile = profile_cell(subject, request["card"]["kind"], roof)
        self.progress("profile", 1, 1)
        return {"profile": profile.model_dump(mode="json")}, b""

    def audit(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Checks of what was measured, whose figures count for nothing else; see `auditing`."""
        adapter = self._adapter_of(request)
        if request.get("mixed"):
            # The task's own examples stand first, and are what is held against the quality pass.
            whole = {"examples": [*request["examples"], *request["mixed"]]}
            adapter = self._adapter(request | whole)
        self._audited = adapter
        with torch.inference_mode():
            found = audit(audit_subject(self, adapter, request))
        self._audited = None
        self._release()
        return {"audit": found.model_dump(mode="json")}, b""

    def _made(self, request: dict[str, Any]) -> Adapter:
        """A new adapter of the request's task, which is kept."""
        self.adapter, self._asked = self._adapter(request), _subject(request)
        return self.adapter

    def _adapter_of(self, request: dict[str, Any]) -> Adapter:
        """The one that is kept, if it is of the request's task: a cell that goes on after an
        interruption has no quality pass, and the last task's may be left."""
        if self.adapter is None or self._asked != _subject(request):
            return self._made(request)
        return self.adapter

    def _adapter(self, request: dict[str, Any]) -> Adapter:
        made = make_adapter(self.model, self.tokenizer, self.device, request)
        if self.followers is None:
            return made
        return self.followers.mirrored(made, request, (self.adapter, self._audited))

    def close(self) -> None:
        """End the processes beside this one."""
        if self.followers is not None:
            self.followers.close()


def _raise(error: BaseException) -> NoReturn:
    raise error


def _devices(facts: DeviceFacts) -> list[str]:
    """torch's names of the devices that are used, the first one that of the inputs."""
    if not facts.beside:
        return [facts.device]
    # accelerate takes a bare ``cpu`` for a place that weights are fetched from.
    return ["cpu:0" if one.device == "cpu" else one.device for one in facts.each]


def _scores(adapter: Adapter, card: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """The card's metrics; the adapter's own where its task has an idea of its own of them."""
    own = getattr(adapter, "own_scores", None)
    return own() if own is not None else scores(card["kind"], card["metrics"], rows)


def _subject(request: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one request's task from another's."""
    return request["card"], request["examples"]
