#!/usr/bin/env bash
# Make the environment if it is missing, install the test extras, run the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${PRECISION_EXPLORER_VENV:-.venv}"
scripts/install.sh test
exec "$venv/bin/python" -m pytest "$@"
