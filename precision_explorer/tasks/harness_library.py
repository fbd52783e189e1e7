"""What is asked of lm-evaluation-harness itself: its names, its tasks, the requests that they make.

The library is imported inside functions only, which run in a process of their own or in a worker:
its import takes seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from precision_explorer.bounded import MAX_YAML_BYTES, TooLarge, read_bounded
from precision_explorer.errors import TaskError, unknown_name
from precision_explorer.paths import cache_dir

Json = dict[str, Any]
# lm_eval/defaults.py: the seed of few-shot examples in `simple_evaluate`.
_FEWSHOT_SEED = 1234
# Readers of the `datasets` library that take local files.
LOCAL_READERS = ("json", "csv", "parquet", "arrow", "text")
# What a task's config may hold that changes no result: names, places, and remarks.
_NOT_IN_HASH = ("task_alias", "tag", "metadata", "dataset_path", "dataset_kwargs")


# -- files of tasks --------------------------------------------------------------------------------


def check_file(path: Path, trusted: bool) -> bool:
    """Whether the task in the YAML file `path` reads nothing but local files; TaskError where the
    file, or one that it includes, would run Python and is not `trusted`."""
    documents = list(_documents(path.resolve(), set()))
    if not trusted:
        for where, node in documents:
            found = _runs_code(node)
            if found:
                raise TaskError(
                    f"{where.name} runs Python of its own ({found}); read it, then give "
                    "--trust-remote-code to allow that"
                )
    readers = {_scalar(node, "dataset_path") for _, node in documents} - {None}
    return readers <= set(LOCAL_READERS)


def _documents(path: Path, seen: set[Path]) -> Iterator[tuple[Path, Any]]:
    """(path, root node) of a YAML file and of all that it includes."""
    import yaml

    if path in seen:
        return
    seen.add(path)
    try:
        content = read_bounded(path, MAX_YAML_BYTES)
        # Only composed, by the library's own rules: it takes tags of its own, and the last of two
        # keys of one name.
        node = yaml.compose(content.decode("utf8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise TaskError(f"can't read {path} ({error.strerror}); check the file") from error
    except TooLarge as error:
        raise TaskError(f"{path} {error}; a task is a short YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TaskError(f"{path} is no valid YAML ({reason}); correct it") from error
    yield path, node
    for include in _scalars(node, "include"):
        yield from _documents((path.parent / include).resolve(), seen)


def _pairs(node: Any) -> list[tuple[Any, Any]]:
    pairs = getattr(node, "value", None)
    return pairs if pairs and isinstance(pairs[0], tuple) else []


def _scalars(node: Any, key: str) -> list[str]:
    """The text or texts under `key` at the top of a document."""
    found = [value for name, value in _pairs(node) if name.value == key]
    flat = [
        v for value in found for v in (value.value if isinstance(value.value, list) else [value])
    ]
    return [v.value for v in flat if isinstance(v.value, str)]


def _scalar(node: Any, key: str) -> str | None:
    return next(iter(_scalars(node, key)), None)


def _runs_code(node: Any) -> str | None:
    """What in a document would run code other than the library's own; None if nothing."""
    if node is None:
        return None
    if not node.tag.startswith("tag:yaml.org,2002:"):
        return f"{node.tag} {node.value if isinstance(node.value, str) else ''}".strip()
    for key in ("use_prompt", "class", "custom_dataset"):
        if _scalar(node, key) is not None:
            return key
    children = node.value if isinstance(node.value, list) else []
    for child in children:
        for part in child if isinstance(child, tuple) else (child,):
            if getattr(part, "value", None) == "hf_evaluate":
                return "hf_evaluate"
            found = _runs_code(part)
            if found:
                return found
    return None


# -- names -----------------------------------------------------------------------------------------


def version() -> str:
    """The installed version of lm-evaluation-harness."""
    return metadata.version("lm_eval")


def known_names() -> dict[str, Json]:
    """Every registered task, group and tag: ``kind``, ``path`` (in the library's tasks), ``tags``.
    Kept in the cache, since the library reads some 15,000 files to make it."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    place = cache_dir() / f"lm-eval-{version()}-names.json"
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(place.read_text(encoding="utf8"))
        if known["root"] == str(root):
            return known["names"]
    names = {
        name: {
            "kind": entry.kind.name,
            "path": None if entry.yaml_path is None else str(entry.yaml_path.relative_to(root)),
            "tags": sorted(entry.tags),
        }
        for name, entry in lm_eval.tasks.TaskManager().task_index.items()
    }
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_suffix(f".tmp{os.getpid()}")
        temporary.write_text(json.dumps({"root": str(root), "names": names}), encoding="utf8")
        temporary.replace(place)
    return names


def task_specs(name: str) -> list[Json]:
    """What `build` needs of each task of the registered `name`: one for a task, all members for a
    group or tag. TaskError for an unknown name, with those near it."""
    names = known_names()
    if name not in names:
        near = unknown_name("lm-eval task", name, names).partition("; known:")[0]
        raise TaskError(f"{near}; lm-eval ls tasks lists all, a path to a YAML file works too")
    found: dict[str, Json] = {}
    for member, overrides in _members(name, {}, names, ()):
        found[member] = {"name": member, "overrides": overrides}
    return list(found.values())


def _members(
    name: str, overrides: Json, names: dict[str, Json], above: tuple[str, ...]
) -> Iterator[tuple[str, Json]]:
    """(task, what its groups override in its config) of all tasks in `name`."""
    kind = names[name]["kind"]
    if kind == "TAG":
        for member in names[name]["tags"]:
            yield member, overrides
    elif kind == "GROUP":
        if name in above:
            raise TaskError(f"lm-eval group {name} holds itself; name its tasks one by one")
        yield from _group_members(name, overrides, names, above)
    else:
        yield name, overrides


def _group_members(
    name: str, overrides: Json, names: dict[str, Json], above: tuple[str, ...]
) -> Iterator[tuple[str, Json]]:
    from lm_eval.tasks._factory import GROUP_FIELD_NAMES
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(_root() / names[name]["path"], resolve_func=False)
    own = {key: value for key, value in config.items() if key not in GROUP_FIELD_NAMES} | overrides
    for member in config.get("task") or []:
        more = member if isinstance(member, dict) else {"task": member}
        target = more.get("task", more.get("group"))
        if target not in names:
            raise TaskError(
                f"lm-eval group {name} defines {target} within itself; name its other tasks one by "
                "one"
            )
        changed = own | {k: v for k, v in more.items() if k not in ("task", "group")}
        yield from _members(target, changed, names, (*above, name))


def group_specs(name: str) -> list[Json]:
    """The groups in the registered `name`, itself first, that declare how their tasks' scores make
    one: ``name``, ``tasks`` (names) and ``metrics``: ``metric``, ``filters`` (None: all that the
    tasks have) and ``by_size``, as the library's `GroupConfig` reads ``aggregate_metric_list``."""
    from lm_eval.config.group import GroupConfig
    from lm_eval.tasks._yaml_loader import load_yaml

    names = known_names()
    if names[name]["kind"] != "GROUP":
        return []
    config = load_yaml(_root() / names[name]["path"], resolve_func=False)
    found = GroupConfig(
        group=name, aggregate_metric_list=config.get("aggregate_metric_list") or None
    )
    metrics = [
        {"metric": m.metric, "filters": m.filter_list, "by_size": m.weight_by_size}
        for m in found.aggregate_metric_list or []
    ]
    own = [{"name": name, "tasks": [s["name"] for s in task_specs(name)], "metrics": metrics}]
    members = [m if isinstance(m, str) else m.get("group") for m in config.get("task") or []]
    inner = [g for m in members if m in names for g in group_specs(m)]
    return (own if metrics else []) + inner


def _root() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


# -- tasks -----------------------------------------------------------------------------------------


def build(spec: Json) -> Any:
    """The library's task object, its data loaded.

    `spec`: ``name`` and ``overrides`` of a registered task, or ``path`` of a YAML file; ``trusted``
    and ``folder``, from which relative paths in a file lead. TaskError in one line.
    """
    with _folder(spec.get("folder")):
        try:
            task = _build(spec)
        except TaskError:
            raise
        # Its own errors, those of the data libraries, of Jinja, and of tasks' own code.
        except Exception as error:
            raise _build_error(spec, error) from error
    _check_kind(task)
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return task


def _build(spec: Json) -> Any:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._factory import TaskFactory
    from lm_eval.tasks._index import Entry, Kind

    if "path" in spec:
        if not spec["trusted"]:
            _close()
        manager = TaskManager(include_defaults=False)
        tasks = list(manager.load([spec["path"]])["tasks"].values())
        if len(tasks) != 1:
            raise TaskError(f"{Path(spec['path']).name} is a group; give the files of its tasks")
        return tasks[0]
    known = known_names()[spec["name"]]
    path = None if known["path"] is None else _root() / known["path"]
    entry = Entry(spec["name"], Kind[known["kind"]], path)
    return TaskFactory().build(entry, overrides=dict(spec["overrides"]), registry={})


def _close() -> None:
    """Templates of a file that is not trusted reach no Python objects, and its metrics are the
    library's own: by any other name it would fetch and run a module."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils
    from lm_eval.api import task as task_module

    closed = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    closed.filters.update(utils.env.filters)
    utils.env = closed

    task_module.get_metric = _own_metric


def _own_metric(name: Any, from_evaluate: bool = False) -> Any:
    """A metric that lm-evaluation-harness registers itself."""
    from lm_eval.api.registry import get_metric, metric_registry

    if from_evaluate or name not in metric_registry:
        raise TaskError(
            f"metric '{name}' is none of lm-eval's own; --trust-remote-code allows the module of "
            "that name"
        )
    return get_metric(name)


def _build_error(spec: Json, error: Exception) -> TaskError:
    from precision_explorer.tasks.sources import _chain, _unreachable

    name = spec.get("name") or Path(spec["path"]).name
    refused = next((e for e in _chain(error) if isinstance(e, TaskError)), None)
    if refused is not None:
        return refused
    offline = any(type(e).__name__ in _OFFLINE for e in _chain(error))
    if offline or _unreachable(error) or "Couldn't reach" in str(error):
        return TaskError(
            f"can't reach the hub for the data of lm-eval:{name}; go online once, or give a YAML "
            "file whose data are local files"
        )
    if isinstance(error, ModuleNotFoundError):
        missing = error.name
        return TaskError(f"lm-eval:{name} needs the package {missing}; pip install {missing}")
    reason = " ".join(str(error).split())[:300] or "no message"
    return TaskError(f"lm-eval:{name} can't be made ({type(error).__name__}: {reason}); correct it")


_OFFLINE = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectTimeout")


def _check_kind(task: Any) -> None:
    name = task.config.task
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"lm-eval:{name} shows images or sound; choose a task of text alone")
    if getattr(task, "UNSAFE_CODE", False) and os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
        raise TaskError(
            f"lm-eval:{name} runs the code that the model writes; set HF_ALLOW_CODE_EVAL=1 to "
            "allow that, on a machine that can bear it"
        )


@contextlib.contextmanager
def _folder(path: str | None) -> Iterator[None]:
    """Work in `path` for the while: the library takes relative data files from there."""
    before = Path.cwd()
    os.chdir(path or before)
    try:
        yield
    finally:
        os.chdir(before)


# -- documents and requests ------------------------------------------------------------------------


def doc_hash(doc: Any) -> str:
    """16 hex digits over one document of a task."""
    text = json.dumps(doc, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf8", "surrogatepass")).hexdigest()[:16]


def filters_of(task: Any) -> list[str]:
    """The names of the filters under which a task scores, the first one first."""
    return [f.name for f in task._filters] if hasattr(task, "_filters") else ["none"]


def aggregation_name(function: Any) -> str:
    """The registered name of an aggregation, else that of its function."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    for name in AGGREGATION_REGISTRY:
        if AGGREGATION_REGISTRY[name] is function:
            return str(name)
    return str(getattr(function, "__name__", "unknown"))


def describe(spec: Json, limit: int | None, seed: int) -> Json:
    """All that the plan must know of one task: ``name``, ``version``, ``config`` (hashable),
    ``output_type``, ``metrics`` (name, higher_is_better), ``data`` (hash), ``source``, ``n``, and
    ``examples``, the first `limit` of the order ``default_rng(seed).permutation``.

    An example holds ``id``, ``group``, ``doc`` (its place in the data), ``hash`` and ``requests``:
    [type, arguments, repeats] each. Contexts are made in the data's order, since few-shot examples
    are drawn one after the other: a document's context is the same under every limit.
    """
    import numpy as np

    task = build(spec)
    docs = task.eval_docs
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(docs))[:limit]]
    hashes = [doc_hash(docs[i]) for i in range(len(docs))]
    return {
        "spec": spec,
        "name": str(task.config.task),
        "version": task.VERSION,
        "config": _config(task),
        "output_type": task.OUTPUT_TYPE,
        "metrics": _metrics(task),
        "data": hashlib.sha256("".join(hashes).encode()).hexdigest()[:16],
        "source": " ".join(str(v) for v in (task.DATASET_PATH, task.DATASET_NAME) if v),
        "examples": _examples(task, order, hashes),
    }


def _metrics(task: Any) -> list[Json]:
    """Each metric under each filter, the metrics of the first filter first."""
    higher = task.higher_is_better()
    return [
        {"metric": name, "filter": filter_name, "higher_is_better": bool(higher.get(name, True))}
        for filter_name in filters_of(task)
        for name in task.aggregation()
    ]


def _config(task: Any) -> Json:
    config = {k: v for k, v in task.dump_config().items() if k not in _NOT_IN_HASH}
    return json.loads(json.dumps(config, sort_keys=True, default=_plain))


def _plain(value: Any) -> str:
    """A function by its name, since its text holds its place in memory."""
    return str(getattr(value, "__qualname__", type(value).__name__))


def _examples(task: Any, order: list[int], hashes: list[str]) -> list[Json]:
    task.build_all_requests(limit=max(order) + 1, rank=0, world_size=1)
    by_doc: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_doc.setdefault(instance.doc_id, []).append(instance)
    return [
        {
            "id": str(i),
            "group": None,
            "doc": i,
            "hash": hashes[i],
            "requests": [
                [one.request_type, list(one.args), one.repeats or 1]
                for one in sorted(by_doc[i], key=lambda one: one.idx)
            ],
        }
        for i in order
    ]
