#!/usr/bin/env bash
# Build the documentation's site from docs/ into site/ (or the folder given), without a network and strictly: a
# link, an anchor or a name of the reference that leads nowhere ends it. DOCS_REPOSITORY, as
# https://host/owner/name/blob/main, makes links to the repository's other files; without it they are plain text.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${PRECISION_EXPLORER_VENV:-.venv}"
if [ ! -x "$venv/bin/mkdocs" ]; then
    scripts/install.sh docs
fi
# What mkdocs-material prints of its successor is no warning of these pages.
NO_MKDOCS_2_WARNING=1 "$venv/bin/python" -m mkdocs build --strict --quiet --clean --site-dir "$(realpath -m "${1:-site}")"
echo "built in ${1:-site}" >&2
