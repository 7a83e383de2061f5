# Everything from a fresh clone: `make quickstart` and `make test` set up .venv/ by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written last, so that an install cut short is done again.
INSTALLED := $(VENV)/.installed
PACKAGES := datamodules heads foundation

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slurm lint benchmark benchmark-full benchmark-accuracy clean
.DELETE_ON_ERROR:

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

install: $(INSTALLED)  ## make .venv/ with everything in it

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
		echo "Python 3.11, 3.12 or 3.13 is needed, but $(PYTHON) is" \
			"$$($(PYTHON) --version 2>/dev/null || echo missing); name another: make PYTHON=python3.12" >&2; exit 2; }
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV)/ (several minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(INSTALLED)  ## the main job on crystals made here; plots and tables in runs/quickstart/
	$(BIN)/foundation quickstart --out runs/quickstart

# One thread per worker: two workers with two threads each slow one another down.
test: $(INSTALLED)  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests --ignore tests/slurm

# On the Slurm that answers, or one of two simulated nodes, which is started and stopped again and needs root.
test-slurm: $(INSTALLED)  ## requeueing on a real Slurm; skipped with the reason where there is none
	OMP_NUM_THREADS=1 KILLS=20 $(BIN)/python -m pytest -q -rs tests/slurm tests/test_preemption.py -k "slurm or killed"

lint: $(INSTALLED)  ## what pre-commit runs: ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(PACKAGES)

# One thread, as the README's figures are, unless OMP_NUM_THREADS says otherwise.
benchmark: $(INSTALLED)  ## training, predicting and graph building rates; OUT=FILE keeps them
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/foundation benchmark $(if $(OUT),--out $(OUT))

# PEERS='nequip=ENV/bin/python alignn=ENV/bin/python': see foundation/benchmarks/peers/README.md
benchmark-full: $(INSTALLED)  ## where time goes, how cost grows, peers side by side; OUT=DIR PEERS=...
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/foundation benchmark full --out $(or $(OUT),runs/benchmark-full) \
		$(if $(PEERS),--peers $(PEERS))

benchmark-accuracy: $(INSTALLED)  ## error at equal processor time, beside the peers; OUT=DIR PEERS=...
	OMP_NUM_THREADS=1 $(BIN)/foundation benchmark accuracy --jobs 2 --out $(or $(OUT),runs/benchmark-accuracy) \
		$(if $(PEERS),--peers $(PEERS))

clean:  ## remove caches and build outputs; .venv/ and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
