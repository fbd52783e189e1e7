"""The report in a real Chromium: laid out at three widths, by day and by night, and inert.

Frames of these widths hold the page (`srcdoc`), so that the wrapper's script can measure it while
the page's own policy, which forbids scripts, holds inside. Skipped where no Chromium is installed.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from precision_explorer.report.html import to_html
from tests.test_report import row, table

ROOT = Path(__file__).parents[1]
WIDTHS = (390, 820, 1440)
"""A phone, a tablet, a laptop, in CSS pixels."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

MEASURE = (ROOT / "tests" / "measure_page.js").read_text(encoding="utf8")


def chromium(folder: Path, *arguments: str) -> str:
    """What a new Chromium printed; its profile is the folder's own."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [str(BROWSER), *options, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def look(folder: Path, page: str, *arguments: str) -> dict[str, Any]:
    """What `MEASURE` finds of `page` in frames of the three widths."""
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>'
        for width in WIDTHS
    )
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        f"<!DOCTYPE html><meta charset=utf-8><title>wrapper</title><style>iframe {{ border: 0 }}"
        f"</style><script>{MEASURE}</script>{frames}<pre id=found></pre>",
        encoding="utf8",
    )
    dom = chromium(folder, *arguments, "--dump-dom", wrapper.as_uri())
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found
    return json.loads(html.unescape(found[1]))


PAGES = ("demo-sentiment-cpu", "h200-smollm2")


@pytest.fixture(scope="module", params=PAGES)
def page(request) -> str:
    return (ROOT / "results" / request.param / "report.html").read_text(encoding="utf8")


@pytest.mark.parametrize("night", [False, True])
def test_the_page_fits_three_widths_and_can_be_read(tmp_path, page, night):
    scheme = ["--blink-settings=preferredColorScheme=0"] if night else []
    found = look(tmp_path, page, *scheme)
    assert [frame["width"] for frame in found["frames"]] == list(WIDTHS)
    for frame in found["frames"]:
        assert frame["dark"] == night
        assert frame["charts"]
        assert frame["tables"]
        for fault in ("outside", "faint", "small", "meet"):
            assert frame[fault] == [], (frame["width"], fault)
        assert frame["needs"] <= frame["width"]
        assert frame["unheaded"] == frame["unnamed"] == 0
    assert found["asked"] == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_screenshots_show_a_page(tmp_path, page, width):
    images = pytest.importorskip("PIL.Image")
    source, picture = tmp_path / "wrapper.html", tmp_path / "page.png"
    source.write_text(
        "<!DOCTYPE html><meta charset=utf-8><style>body { margin: 0 } iframe { border: 0 }</style>"
        f'<iframe width="{width}" height="1000" srcdoc="{html.escape(page)}"></iframe>',
        encoding="utf8",
    )
    chromium(tmp_path, f"--window-size={width},1000", f"--screenshot={picture}", source.as_uri())
    with images.open(picture) as image:
        shown = image.convert("RGB").crop((0, 0, width, 1000))
        colours = shown.getcolors(width * 1000) or []
    paper = max(colours)[0]
    # Text and charts cover a part of the page, neither nothing nor all.
    assert 0.02 < 1 - paper / (width * 1000) < 0.8
    assert len(colours) > 50


def test_a_hostile_model_does_nothing_in_a_browser(tmp_path):
    spells = (
        "<img src=x onerror=\"parent.document.title='out'\">",
        "<script>parent.document.title='out'</script>",
        "</title><svg onload=\"parent.document.title='out'\">",
        '"><a href="javascript:parent.document.title=\'out\'">x</a>',
    )
    rows = [row("fp32", model=spell) for spell in spells]
    found = look(tmp_path, to_html(table(*rows)))
    assert found["title"] == "wrapper"
    assert found["asked"] == 0
    # The same wrapper sees a script where the page would let it run.
    loose = f"<!DOCTYPE html><body>{spells[1]}<img src='x.png'></body>"
    found = look(tmp_path, loose)
    assert found["title"] == "out"
    assert found["asked"] > 0
