# make demo | lint | test | test-all | fuzz | sanitize | bench: each sets up all it needs in .venv. PYTHON names the interpreter to make it from.
# fuzz takes MINUTES, 10 unless it is told. make matrix | lock | licences | audit: versions and what is installed, docs/versions.md;
# matrix takes CELLS, options of tests/package/matrix.py.
# test-all takes the long sweeps too, and builds the Triton kernels with every release of Triton that they are known to work with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

MINUTES ?= 10

.PHONY: demo test test-all fuzz sanitize bench lint clean matrix lock licences audit

# Releases of Triton beside the one of requirements-test.txt, each in a folder of its own (0.6 to 1 GB): the oldest that the kernels
# need and the newest; test-all takes those between too. Triton comes for Linux alone.
ifeq ($(shell uname -s),Linux)
TRITONS := 3.5.1 3.9.0
TRITONS_ALL := $(TRITONS) 3.6.0 3.8.0
endif

# A process for each core, a file of tests in one of them: what a file's tests share is made once. Networks of tests are so small that
# threads of theirs would only wait for one another.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

demo: $(VENV)/.package
	@mkdir -p out
	$(BIN)/adabm upscale adabm_kernels/assets/sample.png -o out/sample_x4.png --compare

test: lint $(TRITONS:%=$(VENV)/triton-%/.installed)
	$(PYTEST)

test-all: lint $(TRITONS_ALL:%=$(VENV)/triton-%/.installed)
	$(PYTEST) -m "slow or not slow"

# The package is built again whenever a source of the native libraries is newer.
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

# It builds the programs that fuzz the C interface itself (tests/helpers/native_programs.py), with libFuzzer where there is a clang that has it.
fuzz: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --minutes $(MINUTES)

# Sanitizers for addresses, undefined behaviour, leaks and threads in programs of C++, valgrind where it is installed, and pages that
# may not be touched around every tensor; then the tests of all that calls the CPU library, with sanitizers in every kernel of it.
sanitize: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cpu/test_sanitizers.py tests/cpu/test_guard_pages.py -m "slow or not slow"
	$(BIN)/python tests/fuzz/sanitized.py

bench: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds --benchmark-json=benchmarks/results/latest.json
	$(BIN)/python benchmarks/report.py benchmarks/results/latest.json

# Every version that is worked with: interpreters, torch, the oldest and newest requirements, compilers. Half an hour to two.
matrix: $(VENV)/.test
	$(BIN)/pip install -q uv
	$(BIN)/python tests/package/matrix.py $(CELLS)

lock: $(VENV)/.test
	$(BIN)/pip install -q uv
	$(BIN)/python tests/package/supply_chain.py lock

licences: $(VENV)/.test
	$(BIN)/python tests/package/supply_chain.py licences

# Asks a registry for known weaknesses of what is locked: needs its network service, and fails where that knows nothing of a package.
audit: $(VENV)/.test
	$(BIN)/pip install -q pip-audit
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements-bench-lock.txt

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(filter %.cpp %.h %.cu %.cuh,$(SOURCES))
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build out *.egg-info adabm_kernels/_lib

# Locked versions, by their digests, then torch, which is in no lock: its builds have other digests on every kind of machine.
LOCKED = $(BIN)/pip install -q --require-hashes -r
$(VENV)/.requirements: requirements.txt requirements-lock.txt
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) requirements-lock.txt
	$(BIN)/pip install -q -r requirements.txt
	@touch $@

$(VENV)/.package: $(VENV)/.requirements $(SOURCES)
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/.test: $(VENV)/.package requirements-test-lock.txt $(VENV)/wheels/.downloaded
	$(LOCKED) requirements-test-lock.txt
	@touch $@

# What a build in isolation needs, on disk, for tests that may not use the network.
$(VENV)/wheels/.downloaded: requirements-test-lock.txt | $(VENV)/.requirements
	$(BIN)/pip download -q --no-deps -d $(@D) setuptools ninja
	@touch $@

# A release stays what it is when the package's requirements change.
$(VENV)/triton-%/.installed: | $(VENV)/.requirements
	$(BIN)/pip install -q --no-deps --upgrade --target $(@D) triton==$*
	@touch $@

$(VENV)/.bench: $(VENV)/.test requirements-bench-lock.txt
	$(LOCKED) requirements-bench-lock.txt
	@touch $@
