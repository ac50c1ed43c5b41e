# make demo | test | bench: each sets up all it needs in .venv. PYTHON names the interpreter to make it from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench lint clean

demo: $(VENV)/.package
	@mkdir -p out
	$(BIN)/adabm upscale adabm_kernels/assets/sample.png -o out/sample_x4.png --compare

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

bench: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds --benchmark-json=benchmarks/results/latest.json
	$(BIN)/python benchmarks/report.py benchmarks/results/latest.json

lint: $(VENV)/.test
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build out *.egg-info adabm_kernels/_lib

# The package is built again whenever a source of the native libraries is newer.
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

$(VENV)/.requirements: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt
	@touch $@

$(VENV)/.package: $(VENV)/.requirements $(SOURCES)
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/.test: $(VENV)/.package requirements-test.txt
	$(BIN)/pip install -q -r requirements-test.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.test requirements-bench.txt
	$(BIN)/pip install -q -r requirements-bench.txt
	@touch $@
