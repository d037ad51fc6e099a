# make demo: everything, end to end, on this machine.  make test: the tests.  Both install what is missing first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_ROOT_USER_ACTION := ignore
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check setup wheel clean
.DEFAULT_GOAL := setup

demo: setup
	$(BIN)/orchestrator demo

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel: setup
	rm -rf dist
	$(BIN)/python -m hatchling build -t wheel

setup: $(VENV)/.installed

$(VENV)/.installed: requirements/cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.11 ..." % v[:2])'
	@echo "Installing the locked requirements into $(VENV) (3 GB, about four minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-deps -r requirements/cpu.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) dist
