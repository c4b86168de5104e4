# The two commands of the README, `make demo` and `make test`, set up all they need in a virtual environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

PIP_INSTALL_PEERS := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/peers \
  --requirement tests/benchmarks/peers.txt

.PHONY: demo test notebooks lint format bench clean

demo: $(VENV)/.base
	$(BIN)/lince-rag demo

test: $(VENV)/.all
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# Run top to bottom, each in a kernel of its own; a cell that fails is a failure.
notebooks: $(VENV)/.all
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --nbmake notebooks

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# DATA is a folder with xquad.es.json and faquad.json (SQuAD format); the benchmarks say so where it is absent.
# BENCHMARKS may be one file of them; the tables of the others stay.
DATA ?= ../shared/data
BENCHMARKS ?= tests/benchmarks
# The peers to measure against are in a folder that only the benchmarks see: some of their requirements contradict ours.
bench: $(VENV)/.peers
	PYTHONPATH=$(abspath $(VENV))/peers HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(BENCHMARKS) \
	  --data $(DATA) --results tests/benchmarks/RESULTS.md -s

$(VENV)/.peers: $(VENV)/.all tests/benchmarks/peers.txt
	rm -rf $(VENV)/peers
	$(PIP_INSTALL_PEERS)
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) .
	touch $@

$(VENV)/.all: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) '.[all]'
	touch $@ $(VENV)/.base
