# Everything runs in .venv, which is made anew whenever pyproject.toml changes.
#   make demo [STEPS=n]    the whole path on real photographs, into runs/demo
#   make test              the tests, without the slow ones          make slow    the slow ones
#   make golden BASE=COMMIT [ONLY=name]   does this checkout train and encode as that commit does, bit for bit?
#   make lint              ruff, mypy
#   PYTHON=python3.12      another interpreter to make .venv with

PYTHON ?= python3
STEPS ?=
BASE ?= HEAD
ONLY ?=
BIN := .venv/bin

.PHONY: demo test slow golden lint

demo: .venv/installed
	@$(BIN)/python -m tools.demo $(if $(STEPS),--steps $(STEPS))

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

slow: .venv/installed
	$(BIN)/python -m pytest -m slow

golden: .venv/installed
	$(BIN)/python -m tools.golden $(BASE) $(if $(ONLY),--only $(ONLY))

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "$(PYTHON) is missing, older than 3.11 or without venv: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv), or name one with make PYTHON=..." >&2; exit 2; }
	@echo "Installing into .venv: some minutes, and several GB where pip takes PyTorch with CUDA."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[test,lint]"
	@touch $@
