# make forecast   the main job, from nothing to a result
# make test       what has to pass
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help forecast test slow lint benchmarks clean FORCE

PYTHON_IN_VENV := .venv/bin/python
# -P: neither the current folder nor the script's joins the path, so 'import models' cannot work.
RUN := $(PYTHON_IN_VENV) -P
# Every file that a forecast depends on, however deep, but not the byte code beside them.
SOURCES := $(shell find models analysis -name __pycache__ -prune -o -type f -print)
INSTALL := $(PYTHON_IN_VENV) -m pip install --quiet --disable-pip-version-check --editable

help:
	@echo "make forecast    set up .venv, fit the embedded runs, write forecasts/"
	@echo "make test        lint, type check and test (also installs all extras but benchmark)"
	@echo "make slow        the tests that sample or train for minutes"
	@echo "make lint        ruff and mypy only"
	@echo "make benchmarks  how to run the comparisons with other packages"
	@echo "make clean       remove all that make made, .venv and forecasts/ included"

forecast: forecasts/.made
	@echo "The result is in forecasts/, which is up to date."

forecasts/.made: .venv/.modelling $(SOURCES)
	@mkdir -p forecasts
	$(RUN) analysis/make_forecast.py
	@touch $@

test: lint
	$(RUN) -m pytest --numprocesses auto --dist loadfile

slow: .venv/.dev
	$(RUN) -m pytest -m slow

lint: .venv/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy typings/tunecast tools tests benchmarks

benchmarks: .venv/.modelling
	@echo "They compare with other packages and take a while, so each is run by hand:"
	@echo "  $(PYTHON_IN_VENV) -m pip install --editable '.[benchmark]'"
	@echo "  $(PYTHON_IN_VENV) benchmarks/NAME.py     (the first lines of each say what it asks)"

clean:
	rm -rf .venv forecasts build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps live inside .venv, so removing it removes them.
.venv/.modelling: pyproject.toml .venv/.place
	$(INSTALL) .
	@touch $@

.venv/.dev: pyproject.toml .venv/.modelling
	$(INSTALL) '.[dev,train,cluster,database]'
	@touch $@

# Looked at every time but renewed only if the environment is missing, broken, or made for another
# folder: a moved or copied checkout would otherwise import the code of the old place.
.venv/.place: FORCE
	@if [ "$$(cat $@ 2>/dev/null)" != "$(CURDIR)" ] || ! $(PYTHON_IN_VENV) -c "" 2>/dev/null; then \
	  python=$$(./find-python.sh) || exit 1; \
	  echo "making .venv with $$python"; \
	  rm -rf .venv && "$$python" -m venv .venv && echo "$(CURDIR)" > $@; \
	fi

FORCE:
