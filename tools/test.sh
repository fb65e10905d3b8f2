#!/usr/bin/env bash
# The whole test suite, cheapest first; stops at the first part that fails.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

part() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }

part "ruff, mypy, no keys in notebooks"
ruff check .
mypy
python tools/scan_secrets.py

part "notebooks clean and valid; modules as exported; imports only to lower rooms; README as rendered"
pytest -q tests/test_repository.py

part "every notebook, cell by cell (nbdev_test), sharing one fresh run"
MEDLAB_RUN="$scratch/lessons" nbdev_test --n_workers 2 --do_print

part "pytest"
MEDLAB_SMOKE_RUN="$scratch/lessons" pytest -q --ignore=tests/test_repository.py --durations=10

part "pytest: the tests that look for examples, with new ones (a failure prints how to repeat it)"
HYPOTHESIS_EXAMPLES=new pytest -q -m fuzz --ignore=tests/test_repository.py

part "all lessons through papermill, profile smoke"
medlab run --profile smoke --run "$scratch/smoke"

printf '\nAll parts passed in %d s.\n' "$SECONDS"
