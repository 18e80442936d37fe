# Everything is installed into .venv and its sisters, nothing outside of this folder.

SHELL := bash
.SHELLFLAGS := -eo pipefail -c

# Python 3.11 or newer.
PYTHON ?= python3

# make demo PICTURES=folder BUNDLE=folder: with your own pictures, with a real model.
PICTURES ?=
BUNDLE ?=

# Engines that the functions are tried on besides the newest: the package that holds each.
ENGINE_24.8 := chdb==3.1.2
ENGINE_25.8 := chdb==3.7.2
ENGINE_26.1 := chdb-core==26.1.0 clickhouse-connect
ENGINE_26.5 := chdb-core==26.5.0 clickhouse-connect
OLD_ENGINES := 24.8 25.8 26.1 26.5

PIP := -m pip install --disable-pip-version-check
# What pip is doing, a line for each package.
PROGRESS := { grep --line-buffered --extended-regexp --only-matching '^(Collecting [A-Za-z0-9_.-]+|Installing)' || true; }

.PHONY: demo
demo: .venv/demo.stamp
	@.venv/bin/python -m clickhouse_clip.demo \
	    $(if $(PICTURES),--pictures '$(PICTURES)') $(if $(BUNDLE),--bundle '$(BUNDLE)')

.PHONY: test lint test-unit test-parity test-engines
test: lint test-unit test-parity test-engines
	@echo 'make test: all of it passed'

lint: .venv/test.stamp typing
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy $(addprefix -p clickhouse_clip.,udf installer config sql demo) -p demo.train

# The tests that need no torch, the embedded ones on the newest engine.
test-unit: .venv/test.stamp
	.venv/bin/python -m pytest tests/unit tests/embedded

# Against open_clip itself, which needs torch: some GB, in an environment of its own.
test-parity: .venv-export/stamp
	.venv-export/bin/python -m pytest tests/parity

# The functions on older engines, the oldest and a middle one.
test-engines: test-engine-24.8 test-engine-25.8

# All engines that the README names.
.PHONY: test-versions
test-versions: $(addprefix test-engine-,$(OLD_ENGINES))

test-engine-%: .venv/test.stamp .venv-%/stamp
	ENGINE_PYTHON=.venv-$*/bin/python .venv/bin/python -m pytest -m 'not any_engine' tests/embedded

# The image, in containers: on the official server, or where no registry answers, on a stand-in.
.PHONY: test-docker
test-docker: .venv/docker.stamp
	PYTHON=$(CURDIR)/.venv/bin/python tests/docker/run

.venv/demo.stamp .venv/test.stamp .venv/docker.stamp: .venv/%.stamp: pyproject.toml
	@echo 'Installing into .venv (no torch; a minute or two):'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python $(PIP) --editable '.[$*]' | $(PROGRESS)
	@touch $@
	@echo

.venv-export/stamp: pyproject.toml
	@echo 'Installing into .venv-export (torch and open_clip; some minutes):'
	@test -x .venv-export/bin/python || $(PYTHON) -m venv .venv-export
	@.venv-export/bin/python $(PIP) --editable '.[export,test]' | $(PROGRESS)
	@touch $@
	@echo

# An engine's environment holds nothing of ours, and make would delete it as an intermediate.
.PRECIOUS: .venv-%/stamp
.venv-%/stamp:
	@echo 'Installing the engine $*:'
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python $(PIP) $(ENGINE_$*) | $(PROGRESS)
	@touch $@
	@echo

# Recall and latency of the vector index over its settings, as a table, JSON and a picture.
# make recall ROWS=1000000 takes an hour or more, most of it for building indexes.
ROWS ?= 200000
.PHONY: recall
recall: .venv/demo.stamp
	.venv/bin/python -m bench.recall --rows $(ROWS) --output bench/results
	.venv/bin/python -m bench.recall_plot bench/results/recall-$(ROWS).json

# The functions beside the guide's way, peers and limits: a table, bench/results/*.json and pictures.
.PHONY: bench bench-quick
bench: .venv-export/bench.stamp
	.venv-export/bin/python -m bench.run
bench-quick: .venv-export/bench.stamp
	.venv-export/bin/python -m bench.run --quick

.venv-export/bench.stamp: .venv-export/stamp
	@.venv-export/bin/python $(PIP) --editable '.[bench]' | $(PROGRESS)
	@touch $@

# The long forms of what `make test` tries for seconds: many clients at once, with memory and
# descriptors watched; and each of four parsers for MINUTES, and the model-based test, against chance.
MINUTES ?= 10
SEQUENCES ?= 20
.PHONY: soak fuzz
soak: .venv/soak.stamp
	.venv/bin/python -m tests.soak --minutes $(MINUTES) --output build/soak
fuzz: .venv/fuzz.stamp
	.venv/bin/python -m tests.fuzz --minutes $(MINUTES)
	SEQUENCES=$(SEQUENCES) .venv/bin/python -m pytest -s tests/embedded/test_model_based.py

.venv/soak.stamp: .venv/test.stamp
	@.venv/bin/python $(PIP) 'matplotlib>=3.9,<4' | $(PROGRESS)
	@touch $@

# atheris has wheels for some versions of Python only; without it, hypothesis does its part.
.venv/fuzz.stamp: .venv/test.stamp
	@.venv/bin/python $(PIP) --only-binary :all: atheris || true
	@touch $@

# mypy looks for clickhouse_clip.udf in clickhouse_clip/udf, which is only a name of udf/.
.PHONY: typing
typing:
	@mkdir -p build/typing/clickhouse_clip
	@for part in udf installer config sql demo; do \
	    ln -sfn ../../../$$part build/typing/clickhouse_clip/$$part; done

.PHONY: clean
clean:
	rm -rf .venv .venv-* build demo-out *.egg-info .mypy_cache .ruff_cache .pytest_cache
