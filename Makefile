# Everything runs in .venv, which is made anew whenever pyproject.toml changes. `make help` lists what there is: the
# words after ## are its text.

PYTHON ?= python3
STEPS ?=
VERSION ?=
BASE ?= HEAD
ONLY ?=
# Without these variables, since nproc answers with the threads of a process where they are set, not with the cores.
JOBS ?= $(shell n=$$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc); echo $$((n < 4 ? n : 4)))
TESTS ?=
DEPENDENCIES ?= fetched
BIN := .venv/bin
LOWEST := .venv-lowest/bin
# As many processes as cores, at most 4, for each takes up to 2 GB; torch has one thread in each (tests/conftest.py).
PYTEST = OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal --durations 25

.PHONY: demo test slow test-portable test-minimal lower-bounds constraints golden lint format docs help hooks release

demo: .venv/installed  ## The whole path on real photographs, into runs/demo; STEPS=n shortens it
	@$(BIN)/python -m tools.demo $(if $(STEPS),--steps $(STEPS))

test: .venv/installed  ## The tests without the slow ones, on JOBS=n processes
	$(PYTEST) -m "not slow"

slow: .venv/installed  ## The slow tests
	$(PYTEST) -m slow

# Kernels of torch (MKL with them, and numpy's OpenBLAS), of oneDNN, and threads: each two of their values meet once.
SSE := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=Nehalem
AVX2 := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
NUMERICAL := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -m "numerical and not slow"

test-portable: .venv/installed  ## The numerical tests with the kernels of older processors, on one thread and two
	$(SSE) ONEDNN_MAX_CPU_ISA=SSE41 LDM_VAE_TEST_THREADS=1 $(NUMERICAL)
	$(SSE) LDM_VAE_TEST_THREADS=2 $(NUMERICAL)
	$(AVX2) LDM_VAE_TEST_THREADS=1 $(NUMERICAL)
	$(AVX2) ONEDNN_MAX_CPU_ISA=SSE41 LDM_VAE_TEST_THREADS=2 $(NUMERICAL)

# Commands as processes, and how codecs are read and written. The rest needs packages of extras, if only to compare.
MINIMAL_TESTS := tests/test_minimal.py tests/test_extras.py tests/interop/test_export.py

test-minimal: .venv-minimal/installed  ## What the base installation does, in an environment that has no extra
	LDM_VAE_MINIMAL=1 OMP_WAIT_POLICY=PASSIVE .venv-minimal/bin/python -m pytest -q $(MINIMAL_TESTS)

lower-bounds: .venv/installed  ## The tests with the lowest versions of all dependencies; TESTS=tests/cli for some only
	$(BIN)/python -m tools.versions lowest
	$(BIN)/uv venv --clear --python 3.11 .venv-lowest
	$(BIN)/uv pip install --python $(LOWEST)/python --requirement build/lowest.txt 'setuptools>=77.0.3'
	$(BIN)/uv pip install --python $(LOWEST)/python --no-deps --editable .
	PATH="$$PWD/$(LOWEST):$$PATH" OMP_WAIT_POLICY=PASSIVE $(LOWEST)/python -m pytest --numprocesses $(JOBS) \
	  --dist worksteal -m "not slow" $(TESTS)

constraints: .venv/installed  ## Writes constraints.txt, the versions of .venv, after the tests have passed with them
	$(BIN)/python -m tools.versions tested

golden: .venv/installed  ## Does this checkout train and encode as BASE=COMMIT does, bit for bit? ONLY=name picks one
	$(BIN)/python -m tools.golden $(BASE) $(if $(ONLY),--only $(ONLY))

lint: .venv/installed  ## What ruff and mypy say; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed  ## Rewrites the source as `make lint` wants it, as far as ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed  ## The site of docs/ and the docstrings, into build/docs; a warning is an error
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going docs build/docs
	@echo build/docs/index.html

help:  ## This list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.12 names another interpreter to make .venv with."

hooks: .venv/installed  ## Lets git run lint before each commit (pre-commit)
	$(BIN)/pre-commit install

release: .venv/installed  ## Builds and checks VERSION=x.y.z; DEPENDENCIES=present is quick and fetches none anew
	@$(if $(VERSION),,echo "say which: make release VERSION=x.y.z" >&2; exit 2)
	@$(BIN)/python -m tools.release $(VERSION) --dependencies $(DEPENDENCIES)

.venv/installed: INSTALLED := --editable ".[dev]"
# Bytes of Python are compiled when they are needed, which is seldom here: it makes the environment in half the time.
.venv-minimal/installed: CLEAR := --clear
.venv-minimal/installed: INSTALLED := --no-compile --editable . pytest

%/installed: pyproject.toml
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "$(PYTHON) is missing, older than 3.11 or without venv: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv), or name one with make PYTHON=..." >&2; exit 2; }
	@echo "Installing into $(@D): some minutes, and 6 to 7 GB where pip takes PyTorch with CUDA."
	$(PYTHON) -m venv $(CLEAR) $(@D)
	$(@D)/bin/python tools/install.py $(INSTALLED)
	@touch $@
