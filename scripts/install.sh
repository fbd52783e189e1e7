#!/usr/bin/env bash
# Make the virtual environment if it is missing and install the project into it, with the versions
# in constraints.txt. An argument names an extra: scripts/install.sh test
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${PRECISION_EXPLORER_VENV:-.venv}"
extra="${1:+[$1]}"
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
# The stamp holds what was installed from: an unchanged environment costs nothing the second time.
stamp="$venv/.installed-${1:-core}"
wanted="$(cat pyproject.toml constraints.txt | sha256sum)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    # torch first, by its exact version alone, so that pip takes a build of it that lies at hand (a CPU
    # build, say) and the rest is solved around it.
    torch="$(grep '^torch==' constraints.txt)"
    "$venv/bin/python" -m pip install -q "$torch" -c constraints.txt
    "$venv/bin/python" -m pip install -q -e ".$extra" -c constraints.txt
    echo "$wanted" >"$stamp"
fi
