# The commands of this workspace. Each does its own set-up; after the first run they work offline.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test lint docs soak clean

## Train a small VLA by SFT, then PPO, on the embedded simulator; results land in runs/.
demo: $(VENV)/.core
	$(BIN)/rlinf train --config tabletop_ppo runner.output_dir=$(RUN)

## Linters, types, architecture and the whole test suite.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak" -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

## The documentation site, in site/; open site/index.html.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

## Long runs and full learning curves.
soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak --timeout=14400

clean:
	rm -rf $(VENV) .cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: core/pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing rlinf-core and its dependencies into $(VENV) (once, about two minutes)"
	$(PIP) -e ./core
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.core
	@echo "Installing the development tools into $(VENV)"
	$(PIP) -r requirements-dev.txt
	touch $@
