# Everything a fresh machine needs. `make demo` and `make test` install what they use, and are quick the second time.
PY := .venv/bin/python
SHELL := /bin/bash

.PHONY: help demo test check test-slow test-gpu e2e-ui e2e-coordinators e2e-litellm e2e-clients lock clean system

help:            ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

demo: .venv/run  ## fetch a small model and repair three sample repositories with it
	@$(PY) -m demo

test: check      ## ruff, pyright, import-linter, pytest
	@$(PY) -m pytest -n 3 --dist loadfile

check: .venv/dev ## the static part of `test`
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/pyright --warnings
	@.venv/bin/lint-imports --no-cache

test-slow: .venv/dev ## tests that take minutes
	@$(PY) -m pytest -m slow

test-gpu: .venv/dev ## tests that need a GPU
	@$(PY) -m pytest -m gpu

e2e-coordinators: .venv/dev ## the real Claude Code, OpenClaw, Codex and opencode delegate to smollm2:135m; prints what they spent
	@$(PY) -m pytest -m coordinators tests/coordinators -rA --timeout 900

e2e-ui: .venv/dev ## the page in a real Chromium: content, colours, light and dark
	@$(PY) -m pytest -m slow tests/e2e/test_ui_for_real.py -rs

e2e-litellm: .venv/dev .venv/litellm/bin/litellm ## 20 tasks through a LiteLLM proxy before two servers, one killed half-way
	@$(PY) -m pytest -m litellm tests/e2e/test_litellm.py -rA --timeout 1500

e2e-clients: .venv/dev ## install and drive the real clients, and print who passed
	@$(PY) -m tests.realclients

lock: .venv/dev  ## write the lock files again from pyproject.toml
	@tools/lock

clean:           ## remove what was built here; models, ledger and results elsewhere stay
	@rm -rf .venv build dist .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

system:          ## compiler and sandbox, from the system's package manager
	@tools/bootstrap system

.venv/run: pyproject.toml requirements.lock tools/bootstrap
	@tools/bootstrap run

.venv/dev: pyproject.toml requirements-dev.lock tools/bootstrap
	@tools/bootstrap dev

# apart from garzone's own packages, which it would hold back
.venv/litellm/bin/litellm: | .venv/dev
	@$(PY) -m venv .venv/litellm && .venv/litellm/bin/pip install -q 'litellm[proxy]'
