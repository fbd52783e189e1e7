"""For mkdocs: what the pages say to readers of a repository, as the site says it.

Links that lead out of ``docs/`` become links into the repository, where one is named
(``DOCS_REPOSITORY``, as https://host/owner/name/blob/main), and else plain text, so that none leads
nowhere. Bars in a table's code, which GitHub wants escaped and shows bare, would keep their
backslash.
"""

from __future__ import annotations

import os
import re
from typing import Any

_CELL = re.compile(r"<td\b.*?</td>", re.DOTALL)
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with those links replaced."""
    base = os.environ.get("DOCS_REPOSITORY", "").rstrip("/")
    if base:
        return _OUTSIDE.sub(lambda link: f"[{link[1]}]({base}/{link[2]})", markdown)
    return _OUTSIDE.sub(r"\1", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """The page's HTML with bare bars in its tables."""
    return _CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)
