# `make` lists what there is. Everything runs in .venv, made on first use from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MOSAIC := $(BIN)/mosaic
CPU_STUDIES := stories-depth ablations v2-parts length length-turns length-long v2-parts-long induction regbench regbench-long regbench-parts
GPU_STUDIES := babistories-depth

# Where containers set this, bytecode would be kept nowhere, and every process would compile torch's modules anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test smoke lint bench docs results clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/ready  ## Train a mosaic and a transformer on the built-in stories, compare them, write a story (5 minutes)
	@MOSAIC=$(MOSAIC) sh scripts/demo.sh

test: $(VENV)/ready  ## Run the tests (4 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

smoke: $(VENV)/ready  ## Run every subcommand on tiny settings (1 minute)
	$(BIN)/python scripts/smoke.py

lint: $(VENV)/ready  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/ready  ## Measure speed and memory beside the usual transformers; writes docs/performance.md's tables (long)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[bench]'
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.run --page

docs: $(VENV)/ready  ## Write the generated pages and tables (docs/cli, recipes, studies, results)
	$(BIN)/python -m mosaic_cli.commands.manual

# STORIES=path/to/folder adds the study on text of your own; what is done is skipped, and the cost is printed first
results: $(VENV)/ready  ## Run the studies that are not done, then `make docs`; GPU=1 for the full sizes
	$(MOSAIC) compare $(if $(GPU),$(GPU_STUDIES),$(CPU_STUDIES))
	$(if $(STORIES),$(MOSAIC) compare snakes-depth -s 'data.files=[$(STORIES)]')
	$(if $(GPU),,$(BIN)/python -m studies.choices --page)
	$(BIN)/python -m mosaic_cli.commands.manual

clean:  ## Delete the virtual environment, caches and what the demo made
	rm -rf $(VENV) .pytest_cache .ruff_cache runs/quickstart runs/quickstart-transformer data/quickstart

# pip compiles every installed module by default; the imports that happen compile what they need
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mosaic needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@
