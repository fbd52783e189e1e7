"""YAML and JSON that may come from a stranger, read within bounds: a small file takes neither all
memory nor all time, and whatever is wrong with it is one `BadDocument` of one line."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NoReturn

MAX_YAML_BYTES = 1_000_000
"""Files of options and cards are written by people: a few kilobytes."""
MAX_YAML_NODES = 100_000
"""Keys and values of a YAML document, those behind an alias counted at each of its uses: nested
aliases can stand for billions (a "billion laughs" document)."""
MAX_JSON_BYTES = 64_000_000
"""Python takes up to some 20 times as much memory. Records have below a megabyte, a manifest of
200,000 files some 25."""
MAX_DEPTH = 100
"""Lists and mappings in each other. Below Python's limit on recursion (1,000 calls) for all that
walks a document afterwards; this program's own documents have about ten."""
MAX_DIGITS = 60
"""Characters of a number: one in base 60, which YAML 1.1 has, takes time in the square of them, and
beyond 309 digits no float holds a whole number."""


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class BadDocument(ValueError):
    """A document that can't be read; the message says why in one line, without advice."""


class TooLarge(BadDocument):
    """A file of more bytes than its kind ever has."""


class NoPlainFile(BadDocument):
    """What is neither a file nor a link to one: a pipe, a device, a socket."""


def open_plain(path: Path) -> IO[bytes]:
    """The file at `path`, for reading. NoPlainFile for what could have no end, or keep its reader
    waiting for one: a pipe is not waited for. OSError as `open` raises it, also of a folder."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise NoPlainFile("is no plain file")


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of the file at `path`; TooLarge where there are more than `limit`, however many
    more there are. NoPlainFile and OSError as `open_plain` raises them."""
    with open_plain(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise TooLarge(f"is larger than {limit / 1e6:g} MB")
    return content


# -- JSON ---------------------------------------------------------------------------------------


def json_document(content: bytes | str, strict: bool = True) -> Any:
    """The JSON document (RFC 8259) in `content`. BadDocument for nesting beyond `MAX_DEPTH` and for
    whole numbers of more than `MAX_DIGITS` digits; `strict` also for what Python's parser lets
    pass: NaN and infinity, numbers beyond floats, keys that stand twice. Other programs' files may
    hold these (the limits of some models' config.json are infinite)."""
    own: dict[str, Any] = {
        "object_pairs_hook": _object,
        "parse_float": _real,
        "parse_constant": _constant,
    }
    try:
        # Python's parser would take UTF-16 too, and halves of its pairs within UTF-8.
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        found = json.loads(text, parse_int=_whole, **(own if strict else {}))
    except BadDocument:
        raise
    except RecursionError as error:
        raise BadDocument(f"is nested deeper than {MAX_DEPTH} levels") from error
    # UnicodeDecodeError among them.
    except ValueError as error:
        raise BadDocument(f"is no JSON ({_first_line(error)})") from error
    _check_depth(found)
    if _SURROGATE.search(text):
        _check_text(json.dumps(found, ensure_ascii=False))
    return found


def json_file(path: Path, limit: int = MAX_JSON_BYTES, strict: bool = True) -> Any:
    """The JSON document in the file at `path`, as `json_document`; OSError as `open` raises it."""
    return json_document(read_bounded(path, limit), strict)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        known: set[str] = set()
        for name, _ in pairs:
            if name in known:
                raise BadDocument(f"has the key {_shown(name)} twice")
            known.add(name)
    return found


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise BadDocument(f"holds a number of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadDocument(f"holds the number {text[:20]}, which no float can be")
    return value


def _constant(text: str) -> NoReturn:
    raise BadDocument(f"holds {text}, which is no JSON")


def _check_text(text: str) -> None:
    # Half of a pair of UTF-16, which `\ud800` can write and no file or hash can hold.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadDocument("holds half of a character (a lone surrogate)") from error


def _check_depth(document: Any) -> None:
    level, depth = [document], 0
    while level := [c for c in level if isinstance(c, (dict, list))]:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadDocument(f"is nested deeper than {MAX_DEPTH} levels")
        level = [c for d in level for c in (d.values() if isinstance(d, dict) else d)]


# -- YAML ---------------------------------------------------------------------------------------


def yaml_document(content: bytes | str) -> Any:
    """The YAML document in `content` (UTF-8), of PyYAML's safe types: nothing in it is run.

    BadDocument also for keys that stand twice (YAML 1.2.2, 3.2.1.1), for more than
    `MAX_YAML_NODES` keys and values, aliases counted as what they stand for, for nesting beyond
    `MAX_DEPTH`, and for numbers of more than `MAX_DIGITS` characters.
    """
    import yaml

    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return yaml.load(text, Loader=_loader())
    except BadDocument:
        raise
    # Of YAMLError, but also whatever PyYAML's constructors meet in values that are not what their
    # tag says: `!!timestamp x` is an AttributeError, `!!bool x` a KeyError, `!!int ""` an
    # IndexError, an impossible date a ValueError, a far time zone an OverflowError.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError,
            ArithmeticError, RecursionError) as error:  # fmt: skip
        raise BadDocument(_yaml_reason(error)) from error


def yaml_file(path: Path, limit: int = MAX_YAML_BYTES) -> Any:
    """The YAML document in the file at `path`, as `yaml_document`; OSError as `open` raises it."""
    return yaml_document(read_bounded(path, limit))


@lru_cache(maxsize=1)
def _loader() -> Any:
    """PyYAML's safe loader with bounds. Made when it is first used: commands that read no YAML
    don't import it."""
    import yaml

    class Bounded(yaml.SafeLoader):
        """Counts while it composes, so that nothing large is made before it is refused."""

        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self.depth = self.nodes = 0
            self.sizes: dict[int, int] = {}
            """Nodes in the whole of what each anchor stands for, by the node's `id`."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                return self._alias(super().compose_node(parent, index))
            before = self.nodes
            self._count(1)
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise BadDocument(f"it is nested deeper than {MAX_DEPTH} levels")
            node = super().compose_node(parent, index)
            self.depth -= 1
            if isinstance(node, yaml.ScalarNode):
                _check_text(node.value)
            self.sizes[id(node)] = self.nodes - before
            return node

        def _alias(self, node: Any) -> Any:
            # Without a size it is not whole yet: it would hold itself, and end no walk through it.
            if id(node) not in self.sizes:
                raise BadDocument("an alias stands within what it stands for")
            self._count(self.sizes[id(node)])
            return node

        def _count(self, more: int) -> None:
            self.nodes += more
            if self.nodes > MAX_YAML_NODES:
                raise BadDocument(f"it stands for more than {MAX_YAML_NODES:,} keys and values")

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            known: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in known:
                        line = key.start_mark.line + 1
                        raise BadDocument(f"the key {_shown(key.value)} stands twice, line {line}")
                    known.add((key.tag, key.value))
            return node

        def short_number(self, node: Any) -> None:
            if len(node.value) > MAX_DIGITS:
                line = node.start_mark.line + 1
                raise BadDocument(f"a number of {len(node.value)} characters, line {line}")

        def bounded_int(self, node: Any) -> int:
            self.short_number(node)
            return int(self.construct_yaml_int(node))

        def bounded_float(self, node: Any) -> float:
            self.short_number(node)
            return float(self.construct_yaml_float(node))

    Bounded.add_constructor("tag:yaml.org,2002:int", Bounded.bounded_int)
    Bounded.add_constructor("tag:yaml.org,2002:float", Bounded.bounded_float)
    return Bounded


def _yaml_reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or _first_line(error)
    if isinstance(error, (AttributeError, LookupError, TypeError)):
        reason = "a value is not what its tag says"
    line = f", line {mark.line + 1}" if mark is not None else ""
    return " ".join(str(reason).split()) + line


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _shown(key: str) -> str:
    return repr(key if len(key) <= 40 else f"{key[:40]}...")
