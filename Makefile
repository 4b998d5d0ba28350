# Everything runs in .venv, which is made anew whenever pyproject.toml changes.
#   make demo [STEPS=n]    the whole path on real photographs, into runs/demo
#   make test              the tests, without the slow ones          make slow    the slow ones
#   make test-portable     the numerical tests with the kernels that older processors run, on one thread and on two
#   make lint              ruff, mypy
#   PYTHON=python3.12      another interpreter to make .venv with

PYTHON ?= python3
STEPS ?=
BIN := .venv/bin

.PHONY: demo test slow test-portable lint

demo: .venv/installed
	@$(BIN)/python -m tools.demo $(if $(STEPS),--steps $(STEPS))

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# Kernels of torch (MKL with them, and numpy's OpenBLAS), of oneDNN, and threads: each two of their values meet once.
SSE := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=Nehalem
AVX2 := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
NUMERICAL := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -m "numerical and not slow"

test-portable: .venv/installed
	$(SSE) ONEDNN_MAX_CPU_ISA=SSE41 LDM_VAE_TEST_THREADS=1 $(NUMERICAL)
	$(SSE) LDM_VAE_TEST_THREADS=2 $(NUMERICAL)
	$(AVX2) LDM_VAE_TEST_THREADS=1 $(NUMERICAL)
	$(AVX2) ONEDNN_MAX_CPU_ISA=SSE41 LDM_VAE_TEST_THREADS=2 $(NUMERICAL)

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
