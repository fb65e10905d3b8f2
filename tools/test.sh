#!/usr/bin/env bash
# The whole test suite, cheapest first; stops at the first part that fails. Nothing that an earlier run has made is used: models, raw
# answers and runs go to a fresh folder. Only a built Ollama is taken from the user's cache, and a finished run of profile smoke from
# MEDLAB_SMOKE_RUN, if that is set.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if ollama=$(tools/build_ollama.sh --print); then PATH="$PATH:$(dirname "$ollama")"; fi
export MEDLAB_CACHE_DIR="$scratch/cache"
unset MEDLAB_RUN

part() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }

part "ruff, mypy, no keys in notebooks"
ruff check .
mypy
python tools/scan_secrets.py

part "notebooks clean and valid, cells in order; modules as exported; imports only from below; README as rendered"
pytest -q tests/test_repository.py

part "every notebook alone, each lesson with an empty cache of its own"
python tools/run_alone.py

part "pytest, two files at a time"
pytest -q --ignore=tests/test_repository.py -n 2 --dist loadfile --no-loadscope-reorder --durations=60

part "pytest: the tests that look for examples, with new ones (a failure prints how to repeat it)"
HYPOTHESIS_EXAMPLES=new pytest -q -m fuzz --ignore=tests/test_repository.py

printf '\nAll parts passed in %d s.\n' "$SECONDS"
