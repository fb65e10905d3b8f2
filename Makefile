# The commands of medlab. Each makes the environment first, once; give a command again to mend it.
# Without make (macOS, Windows): README.md lists the same commands.

# Bytecode makes every import two to three times faster; some build machines switch it off.
unexport PYTHONDONTWRITEBYTECODE
export GRADIO_ANALYTICS_ENABLED = False
PYTHON ?= python3
BIN := .venv/bin
PROFILE ?= cpu

.PHONY: help course test lab ollama setup clean

help: ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

course: setup ## run every lesson with profile cpu (PROFILE=smoke for a quick look), print where the report is
	$(BIN)/medlab run --profile $(PROFILE)

test: setup ## run the whole test suite
	tools/test.sh

lab: setup ## open the lessons in JupyterLab
	$(BIN)/jupyter lab nbs

ollama: ## build a real Ollama server from its pinned Go module, once
	@PYTHON=$(PYTHON) tools/build_ollama.sh

setup: ## make or mend .venv
	@$(PYTHON) tools/setup_env.py

clean: ## remove runs and build products; the environment and the caches stay
	rm -rf runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
