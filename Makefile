# Everything is installed into .venv, nothing outside of it.

SHELL := bash
.SHELLFLAGS := -eo pipefail -c

# Python 3.11 or newer.
PYTHON ?= python3

# make demo PICTURES=folder BUNDLE=folder: with your own pictures, with a real model.
PICTURES ?=
BUNDLE ?=

.PHONY: demo
demo: .venv/demo.stamp
	@.venv/bin/python -m clickhouse_clip.demo \
	    $(if $(PICTURES),--pictures '$(PICTURES)') $(if $(BUNDLE),--bundle '$(BUNDLE)')

.venv/demo.stamp: pyproject.toml
	@echo 'Installing into .venv (no torch; a minute or two):'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --disable-pip-version-check --editable '.[demo]' \
	    | grep --line-buffered --extended-regexp --only-matching '^(Collecting [A-Za-z0-9_.-]+|Installing)'
	@touch $@
	@echo
