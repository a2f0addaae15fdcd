# The two commands of the README, the slower checks, and the benchmarks. PYTHON=python3.12 make test picks another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Huge pages for malloc where glibc has them: training on a CPU is about 30 % faster, since big buffers no longer fault page by page.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# What `make benchmark` measures: a file of experiments/benchmarks.
SUITE ?= ranking
BENCHMARK_VENV ?= .venv-benchmark

# Tests run in a process for each processor, at most four (each may take 6 GB), a file in one of them, in the order of the folders.
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# What `make notebook` runs and renders: a file of notebooks/, on a finished RUN or SWEEP, into RENDERED.
NOTEBOOK ?= 01_quickstart
RENDERED ?= docs/notebooks

.PHONY: quickstart test test-slow test-aot parity lint notebook benchmark

quickstart: $(VENV)/installed
	$(BIN)/python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/installed
	$(PYTEST) -m "not slow and not aot and not parity"

test-slow: $(VENV)/installed
	$(PYTEST) -m slow

test-aot: $(VENV)/installed-aot
	$(PYTEST) -m aot

# Decoders and an exported policy against transformers itself, in the environment of the benchmarks' peers.
parity: $(BENCHMARK_VENV)/installed-parity
	$(BENCHMARK_VENV)/bin/python -m pytest -q -m parity tests/models/test_parity.py tests/experiments/test_export.py

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy

# Kernels work in notebooks/, so the paths that they are given are whole ones.
notebook: $(VENV)/installed
	$(if $(RUN),GR2_RUN=$(abspath $(RUN))) $(if $(SWEEP),GR2_SWEEP=$(abspath $(SWEEP))) $(BIN)/python -m nbconvert \
	  --to markdown --execute --output-dir=$(abspath $(RENDERED)) --TagRemovePreprocessor.enabled=True \
	  --TagRemovePreprocessor.remove_input_tags=install notebooks/$(NOTEBOOK).ipynb

# The peers live in an environment of their own, so that none of them decides which versions the package runs with. Big ones come only
# with the suite that names them in experiments/benchmarks/SUITE.txt.
benchmark: $(BENCHMARK_VENV)/installed-$(SUITE)
	@$(BENCHMARK_VENV)/bin/python -m experiments.benchmark --suite=$(SUITE)

$(VENV)/installed: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gr2_jax needs Python 3.11 or later; try: PYTHON=python3.12 make $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/installed-aot: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,aot]'
	@touch $@

$(BENCHMARK_VENV)/installed: setup.py
	$(PYTHON) -m venv $(BENCHMARK_VENV)
	$(BENCHMARK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[benchmark]'
	@touch $@

SUITE_PEERS := $(wildcard experiments/benchmarks/$(SUITE).txt)
$(BENCHMARK_VENV)/installed-parity: $(BENCHMARK_VENV)/installed experiments/benchmarks/parity.txt
	$(BENCHMARK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r experiments/benchmarks/parity.txt
	@touch $@

$(BENCHMARK_VENV)/installed-$(SUITE): $(BENCHMARK_VENV)/installed $(SUITE_PEERS)
	$(if $(SUITE_PEERS),$(BENCHMARK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $(SUITE_PEERS))
	@touch $@
