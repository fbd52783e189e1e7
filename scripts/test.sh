#!/usr/bin/env bash
# Make the environment if it is missing, install the test extras, run the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${PRECISION_EXPLORER_VENV:-.venv}"
scripts/install.sh test
# A real language model for the tests marked smollm2; a complete one is left as it is.
"$venv/bin/precision-explorer" fetch smollm2-135m >/dev/null ||
    echo "going on without SmolLM2: the tests that need it will be skipped" >&2
# Two files of tests at a time, in the order of their names; those of a file share what it sweeps.
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
