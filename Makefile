# Everything that a developer or a newcomer runs. Each target does its own set-up, in .venv, and only once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# A stamp is touched when its step has succeeded, so a step that was cut off is done again.
VENV_STAMP := $(VENV)/.created
RUNTIME_STAMP := $(VENV)/.installed-runtime
DEV_STAMP := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo check test bench distclean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNTIME_STAMP) ## run the whole chain on the embedded images; needs no development tools
	$(BIN)/ensadv-data demo

check: $(DEV_STAMP) ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(DEV_STAMP) ## all tests, with branch coverage
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

bench: $(DEV_STAMP) ## paired measurements on this machine, also of the engines in benchmarks/peers.txt
	$(PIP) install --no-deps -r benchmarks/peers.txt
	$(BIN)/python benchmarks/run.py

distclean: ## remove the virtual environment and every cache
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* build dist *.egg-info

$(VENV_STAMP):
	@command -v $(PYTHON) > /dev/null || { \
	  echo "expected Python 3.11 to 3.13, found no '$(PYTHON)'; install one, or name it: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; v = tuple(sys.version_info[:2]); sys.exit(not (3, 11) <= v < (3, 14) and "expected Python 3.11 to 3.13, got %d.%d; name another one: make PYTHON=python3.12" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "expected the modules venv and ensurepip in $(PYTHON), found them missing; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# Always with -c: an unpinned torch would be replaced by the newest one. setuptools comes first and pinned, so
# that the build uses it instead of fetching the newest.
$(RUNTIME_STAMP): $(VENV_STAMP) pyproject.toml constraints.txt
	@echo "installing the pinned libraries into $(VENV): some minutes, the first time"
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt --no-build-isolation -e .
	@touch $@

$(DEV_STAMP): $(RUNTIME_STAMP)
	@echo "installing the pinned development tools into $(VENV)"
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@
