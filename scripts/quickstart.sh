#!/usr/bin/env bash
# From a fresh clone to a tradeoff table: makes .venv, installs, runs the default sweep.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${PRECISION_EXPLORER_VENV:-.venv}"
echo "installing into $venv (once; a few minutes)" >&2
scripts/install.sh
exec "$venv/bin/precision-explorer" sweep "$@"
