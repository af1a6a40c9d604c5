# The commands of this project. `make` without arguments lists them.

SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CONFIG ?= serve_config.yaml
EXTRAS ?= minilm,openvino,cl100k
URL    ?= http://127.0.0.1:8000
VENV   := .venv
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock
UV     := 0.13.9

# Reduces pip's output to downloads of 5 MB or more and the final unpacking. Errors go to stderr and stay visible.
CALMLY  = awk '/(Downloading|Using cached).*\(([5-9]|[0-9][0-9]+)(\.[0-9]+)? MB\)/ { sub(/^ +/, ""); print "      " $$0; fflush() } \
	/^Installing collected/ { print "      unpacking"; fflush() }'

# The first pip call installs only torch, so that no other requirement selects a different build of it. TORCH_INDEX adds
# an index to that call. pip prefers a build for one kind of machine (2.13.0+cpu) if the index has one.
TORCH   = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch

# The clients that the tests run, in several environments, with versions pinned next to the tests. If a client cannot be
# installed, its tests are skipped with that reason.
CLIENTS       := tests/serve/clients
CLIENT_STAMPS := .venv-clients/openai-1/stamp .venv-clients/frameworks/stamp \
	$(CLIENTS)/scripts/node_modules/stamp

.DEFAULT_GOAL := help
.PHONY: help install serve test test-all clients lint docs fuzz bench simulate soak lock clean

help: ## list all commands
	@echo 'Usage: make COMMAND [NAME=value ...]'
	@echo
	@echo 'Commands:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-10s %s\n", $$1, $$2}'
	@echo
	@echo 'Settings:'
	@echo '  CONFIG       Serve config file for `make serve` (default: serve_config.yaml; more are in configs/)'
	@echo '  ARGS         extra arguments for the tool that the command runs, such as ARGS=--upgrade for `make lock`'
	@echo '  EXTRAS       optional dependencies to install (default: $(EXTRAS))'
	@echo '  QUICK        with `make bench`, QUICK=1 measures one short round'
	@echo '  ONLY         with `make bench`, the parts to measure, such as ONLY="throughput infinity short"'
	@echo '  BASE         with `make bench`, another installed checkout of this project to compare with'
	@echo '  URL          server that `make fuzz` sends requests to (default: http://127.0.0.1:8000)'
	@echo '  PYTHON       Python 3.11 or later that creates .venv (default: the one on the PATH)'
	@echo '  TORCH_INDEX  package index with another build of torch. On Linux, the default build includes gigabytes of CUDA'
	@echo '               libraries. Without a GPU, use TORCH_INDEX=https://download.pytorch.org/whl/cpu'

install: $(VENV)/runtime.stamp ## install the server into .venv (other commands do this when needed)

serve: $(VENV)/runtime.stamp ## start the server with the environment of throughput.env; Ctrl-C stops it
	@exec $(BIN)/python -m serve_app.cli.serve --config $(CONFIG) --env throughput.env

test: $(VENV)/dev.stamp ## run the unit tests, small models and one served application: a few minutes
	@$(BIN)/python -m pytest -m 'not slow and not clients' $(ARGS)

test-all: $(VENV)/dev.stamp $(CLIENT_STAMPS) ## run all tests, including both proxy modes, clients, kills, rollouts and scaling
ifeq ($(ARGS),)
	@$(MAKE) --no-print-directory test
	@$(BIN)/python -m pytest -m 'slow or clients'
else
	@$(BIN)/python -m pytest $(ARGS)
endif

clients: $(CLIENT_STAMPS) .venv-clients/more/stamp ## install all clients for the tests, including those that `make test-all` skips

lint: $(VENV)/dev.stamp ## check style, types, import contracts and the documentation's links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

docs: $(VENV)/dev.stamp ## serve the documentation at http://127.0.0.1:8001
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

fuzz: $(VENV)/dev.stamp ## test a running server with requests generated from its /openapi.json
	@$(BIN)/st run $(URL)/openapi.json --url $(URL) --max-examples 500 $(ARGS)

bench: $(VENV)/dev.stamp benchmarks/.venv-infinity/stamp ## measure the speed in comparison with other servers; QUICK=1 takes five minutes
	@$(BIN)/python -m benchmarks.compare $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(BASE),--base $(BASE)) $(ARGS)

simulate: $(VENV)/dev.stamp ## plot autoscaling over a simulated day of traffic, and size a cluster
	@$(BIN)/python -m benchmarks.capacity.simulate $(ARGS)

soak: $(VENV)/dev.stamp ## run mixed traffic, kills and rollouts for half an hour; ARGS="--minutes 5" is shorter
	@$(BIN)/python -m benchmarks.capacity.soak $(ARGS)

lock: ## resolve all dependencies and write requirements.lock
	$(MAKE) --no-print-directory $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate \
		$(ARGS) pyproject.toml --output-file requirements.lock
	@{ echo '# All dependencies of pyproject.toml, pinned for Linux and macOS by `make lock`. Torch comes first because it'; \
	   echo '# is installed first: `pip install --constraint requirements.lock torch`, then the rest.'; \
	   grep '^torch==' requirements.lock; grep -v -e '^torch==' -e '^#' requirements.lock; } > requirements.new
	@mv requirements.new requirements.lock
	@for kind in openai-1 frameworks more; do \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate $(ARGS) \
			$(CLIENTS)/$$kind.in --output-file $(CLIENTS)/$$kind.lock; done
	cd $(CLIENTS)/scripts && npm install --package-lock-only --no-fund --no-audit

clean: ## delete .venv and all other generated files
	rm -rf $(VENV) .venv-clients $(CLIENTS)/scripts/node_modules benchmarks/.venv-infinity build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache
	find serve_app tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Python 3.11 or later was not found. Install it, or set its path: make install PYTHON=/path/to/python3.11' >&2; \
		exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'The venv module of $(PYTHON) does not work. On Debian and Ubuntu, run: apt install python3-venv' >&2; exit 1; }

$(VENV)/runtime.stamp: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo 'Installing into $(VENV). The first time takes a few minutes.'
	@echo '  1/2 torch'
	@set -o pipefail; $(PIP) $(TORCH) | $(CALMLY)
	@echo '  2/2 Ray Serve, sentence-transformers, OpenVINO, the default model and this project'
	@set -o pipefail; $(PIP) --no-build-isolation --editable '.[$(EXTRAS)]' | $(CALMLY)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp
	@echo 'Installing the tools for tests and lint'
	@set -o pipefail; $(PIP) --no-build-isolation --editable '.[$(EXTRAS),dev]' | $(CALMLY)
	@touch $@

.venv-clients/%/stamp: $(CLIENTS)/%.lock | $(VENV)/bin/python
	@echo 'Installing clients for the tests into .venv-clients/$*'
	@mkdir -p build
	@if { $(BIN)/python -m venv .venv-clients/$* && \
		.venv-clients/$*/bin/python -m pip install --disable-pip-version-check --requirement $<; } \
		> build/clients-$*.log 2>&1; then touch $@; else rm -rf .venv-clients/$*; fi

$(CLIENTS)/scripts/node_modules/stamp: $(CLIENTS)/scripts/package-lock.json
	@echo 'Installing the Node clients for the tests'
	@mkdir -p build
	@if (cd $(CLIENTS)/scripts && npm ci --no-fund --no-audit) > build/clients-node.log 2>&1; then touch $@; fi

# infinity is one of the servers in `make bench`. It has its own venv because it needs older versions of almost all
# packages. If it cannot be installed, `make bench` skips it, and the next run tries again. Torch is installed first, in
# the same version as in .venv.
INFINITY     := infinity-emb[server,torch]==0.0.78
INFINITY_PIP := benchmarks/.venv-infinity/bin/python -m pip install --disable-pip-version-check --constraint benchmarks/compare/infinity.lock

benchmarks/.venv-infinity/stamp: benchmarks/compare/infinity.lock | $(VENV)/bin/python
	@echo 'Installing infinity into benchmarks/.venv-infinity for comparison'
	@mkdir -p build
	@if { $(BIN)/python -m venv benchmarks/.venv-infinity && $(INFINITY_PIP) $(TORCH) && $(INFINITY_PIP) '$(INFINITY)'; } \
		> build/infinity.log 2>&1; then touch $@; else rm -rf benchmarks/.venv-infinity; fi
