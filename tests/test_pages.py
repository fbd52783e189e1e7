"""The pages are run as they stand: a newcomer's commands and Python, what code prints, the examples
of what can be added, and the figures that a decision maker reads. The site is built of them."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from precision_explorer.api.options import ReaderOptions, SweepOptions
from precision_explorer.formats import apply
from precision_explorer.formats.catalog import CATALOG
from precision_explorer.table import build
from precision_explorer.units import count, seconds, usd

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Those whose blocks with a language are run, in order, in one folder.
RUN = ("getting-started.md", "adding.md", "api.md", "cases.md")


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    return _BLOCK.findall((DOCS / page).read_text(encoding="utf8"))


def run_bash(text: str, folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def run_doctest(text: str, names: dict, page: str) -> None:
    test = doctest.DocTestParser().get_doctest(text, names, page, page, 0)
    test.globs = names  # Not a copy: what a block defines the next ones know.
    runner = doctest.DocTestRunner()
    told: list[str] = []
    runner.run(test, out=told.append, clear_globs=False)
    assert not told, "".join(told)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the stored runs, and the command on the path."""
    (tmp_path / "results").mkdir()
    for run in (ROOT / "results").iterdir():
        if (run / "sweep.json").is_file():
            (tmp_path / "results" / run.name).symlink_to(run)
    command = tmp_path / "bin" / "precision-explorer"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from precision_explorer.cli import main\nmain()\n"
    )
    command.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    # A page adds a format, which is to be forgotten afterwards.
    for known in (CATALOG, apply._HANDLERS):
        monkeypatch.setitem(known, "int8-per-tensor", None)
        del known["int8-per-tensor"]
    return tmp_path


@pytest.mark.parametrize("page", RUN)
def test_a_page_works_as_it_is_written(page, folder):
    names: dict = {"__name__": page}
    found = blocks(page)
    assert len(found) >= 3
    for language, text in found:
        if language == "bash":
            run_bash(text, folder)
        elif language == "pycon":
            run_doctest(text, names, page)
        else:
            assert language == "python", f"{page}: nothing runs {language}"
            exec(compile(text, page, "exec"), names)


def test_the_newcomer_s_path_leaves_what_the_page_says(folder):
    """Of the same blocks: each command of the page's path is one of them."""
    text = "".join(text for language, text in blocks("getting-started.md") if language == "bash")
    assert re.findall(r"^precision-explorer (\w+)", text, re.MULTILINE) == [
        "sweep", "decide", "report", "verify",
    ]  # fmt: skip
    page = (DOCS / "getting-started.md").read_text()
    for script in re.findall(r"scripts/\w+\.sh", page):
        assert os.access(ROOT / script, os.X_OK)


def test_the_decision_maker_s_figures_are_those_of_the_stored_run():
    page = (DOCS / "reading-the-table.md").read_text(encoding="utf8")
    stored = (ROOT / "results/demo-sentiment-cpu/tradeoffs.md").read_text().splitlines()
    rows = {row["format"]: row for row in build([ROOT / "results/demo-sentiment-cpu"]).rows}
    part = page.split("## Then the rows", 1)[1].split("\n1. ", 1)[0]
    shown = [line for line in part.splitlines() if line.startswith("|")]
    assert len(shown) == 6
    assert [line for line in shown if line not in stored] == []
    names = ("bf16", "int8-dynamic", "fp32")
    for label, column, show in (
        ("cost per 1,000 requests", "cost_per_1k_requests_usd", usd),
        ("useful results per dollar", "value_per_usd", count),
        ("requests per joule", "requests_per_joule", lambda v: f"{v:.1f} est."),
    ):
        cells = " | ".join(show(rows[name][column]) for name in names)
        assert f"| {label} | {cells} |" in page
    fastest = seconds(rows["int8-dynamic"]["latency_p50_s"])
    assert f"| lowest latency | int8-dynamic, {fastest};" in page
    answers = "\n".join(stored[:12])
    for topic, said in (
        ("Lowest cost", "bf16, cost per 1,000 requests $0.000106 (the best of 7 in 75 %"),
        ("Most value", "bf16, useful results per dollar 8.12 million"),
        ("Most efficient", "Can't tell: energy is an estimate"),
    ):
        assert f"- **{topic}:** {said}" in answers
    assert "$0.000106 per 1,000 requests (the best of 7 in 75 % of the resamples)" in page


# -- the site ---------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_once():
    text = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n", 1)[1]
    named = re.findall(r": (\S+\.md)$", text, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in DOCS.glob("*.md"))


def test_the_reference_names_what_python_offers():
    import precision_explorer as pe

    page = (DOCS / "api.md").read_text()
    assert [name for name in pe.__all__ if name not in page and name != "__version__"] == []
    for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        assert importlib.util.find_spec(module) is not None
        found = importlib.import_module(module)
        assert hasattr(found, attribute), name


@pytest.mark.parametrize("options", [SweepOptions, ReaderOptions], ids=lambda o: o.__name__)
def test_every_keyword_stands_in_the_reference_with_its_type(options):
    part = (DOCS / "api.md").read_text().split(f"api.options.{options.__name__}\n", 1)[1]
    told = re.findall(r"^\| `(\w+)` \| (.+) \|$", part.split("\n:::", 1)[0], re.MULTILINE)
    known = {name: getattr(t, "__forward_arg__", t) for name, t in options.__annotations__.items()}
    assert [name for name, _ in told] == list(known)
    for name, shown in told:
        assert shown.replace(" or ", " | ") + " | None" == known[name]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built by the script as people build it."""
    if not all(map(importlib.util.find_spec, ("mkdocs", "mkdocstrings", "material"))):
        pytest.skip("needs the extra docs: scripts/install.sh docs")
    made = tmp_path_factory.mktemp("site")
    # No proxy leads anywhere: what would fetch fails.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [ROOT / "scripts" / "docs.sh", made],
        env=os.environ | nowhere | {"PRECISION_EXPLORER_VENV": sys.prefix},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def test_the_site_has_every_page_and_the_reference(site):
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    reference = (site / "api.html").read_text()
    for name in ("sweep", "open_run", "Run", "ReaderOptions", "quality_budget", "pareto"):
        assert name in reference


_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=[\"']?([^\"'\s>]+)"
    r"|<link\b(?![^>]*rel=[\"']?(?:canonical|alternate))[^>]*?\bhref=[\"']?([^\"'\s>]+)"
)


def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf8")
        for found in _LOADED.findall(text):
            (target,) = filter(None, found)
            assert not target.startswith(("http:", "https:", "//")), f"{page.name}: {target}"
            if page.name != "404.html" and not target.startswith("data:"):
                assert (page.parent / target.partition("?")[0]).exists(), f"{page.name}: {target}"
        assert not re.findall(r"<td\b[^<]*(?:<code>)?[^<]*\\\|", text), page.name
        # For which the theme would fetch a program.
        assert 'class="mermaid"' not in text
    for sheet in site.rglob("*.css"):
        loaded = re.findall(r"url\(\s*[\"']?(https?:|//)|@import", sheet.read_text(encoding="utf8"))
        assert not loaded, sheet


def test_links_into_the_repository_become_links_where_one_is_named(monkeypatch):
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "scripts" / "docs_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "see [results](../results/README.md) and [a](table.md)"
    monkeypatch.delenv("DOCS_REPOSITORY", raising=False)
    assert module.on_page_markdown(text) == "see results and [a](table.md)"
    monkeypatch.setenv("DOCS_REPOSITORY", "https://host/o/n/blob/main/")
    assert "(https://host/o/n/blob/main/results/README.md)" in module.on_page_markdown(text)
