# Each command installs what it needs into a virtual environment. `make check` is the fast check while you work
# (lint, types, the fast unit tests); `make test` runs every test.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

PIP_INSTALL_PEERS := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/peers \
  --requirement tests/benchmarks/peers.txt

# Beside the environment: with what checks JSON for it there, importing Chroma would take two seconds more everywhere.
PIP_INSTALL_RELEASE := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
  --no-compile --target $(VENV)/release --requirement .ci/release.txt

.PHONY: demo check unit test notebooks docs site pages images release rehearsal lint format bench clean

demo: $(VENV)/.base
	$(BIN)/lince-rag demo

# At the same time: mypy takes as long as the tests when its cache is empty.
check: $(VENV)/.all
	$(MAKE) --no-print-directory --jobs=2 lint unit

unit: $(VENV)/.all
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/unit_tests -m "not slow"

# Three processes for two cores, since many tests wait for servers and other processes, and one thread in each: the
# models of the tests are too small for more. The longest files come first, so that no core is idle in the end.
# LONG=1 tries what tests/lengths.py shortens.
TEST_PROCESSES ?= $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 )))
test: $(VENV)/.all
	LINCE_LONG_TESTS=$(LONG) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	  --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder tests/integration_tests tests/unit_tests

# Every notebook runs from top to bottom in its own kernel; a cell that fails is a failure.
notebooks: $(VENV)/.all
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal --nbmake notebooks

# Links, headings and references that lead nowhere fail the build; at the same time every code block of the pages runs.
docs: $(VENV)/.all
	$(MAKE) --no-print-directory --jobs=2 site pages

site: $(VENV)/.all
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(CURDIR) $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python -m pytest tests/docs/test_site.py

pages: $(VENV)/.all
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	  --numprocesses=$(TEST_PROCESSES) --dist=worksteal tests/docs/test_pages.py

# The images of the README, from a real index; Chromium takes the one of the page.
images: $(VENV)/.all
	$(BIN)/python .ci/images.py

# make release VERSION=0.2.0: build, list what is in it, commit and tag; a rehearsal does it in a clone. See .ci/release.py.
release rehearsal: $(VENV)/.all
	PYTHONPATH=$(abspath $(VENV))/release $(BIN)/python .ci/release.py $(VERSION) $(if $(filter rehearsal,$@),--dry-run)

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# DATA is a folder with xquad.es.json and faquad.json (SQuAD format); without it the benchmarks are skipped.
# Without a GPU, those of test_gpu*.py are skipped (pytest's --tiny tries them with tiny models on the CPU).
# BENCHMARKS may be a single file; then the tables of the other files are kept.
# REAL is the folder that its real/fetch.sh has filled; without it the questions over real documents are skipped.
DATA ?= ../shared/data
REAL ?= ../shared/data/real
BENCHMARKS ?= tests/benchmarks
# The packages to compare with go into a folder that only the benchmarks use: some of their requirements conflict with ours.
bench: $(VENV)/.peers
	PYTHONPATH=$(abspath $(VENV))/peers HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(BENCHMARKS) \
	  --data $(DATA) --real $(REAL) --results tests/benchmarks/RESULTS.md -s

$(VENV)/.peers: $(VENV)/.all tests/benchmarks/peers.txt
	rm -rf $(VENV)/peers
	$(PIP_INSTALL_PEERS)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time this takes some minutes …"
	$(PIP_INSTALL) '.[e5]'
	touch $@

$(VENV)/.all: $(VENV)/bin/python pyproject.toml constraints.txt .ci/release.txt
	$(PIP_INSTALL) '.[all]'
	rm -rf $(VENV)/release
	$(PIP_INSTALL_RELEASE)
	touch $@ $(VENV)/.base
