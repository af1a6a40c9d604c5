# The commands of this project. `make` alone lists them.

SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CONFIG ?= serve_config.yaml
EXTRAS ?= minilm,openvino,cl100k
URL    ?= http://127.0.0.1:8000
VENV   := .venv
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock
UV     := 0.13.9

# Of what pip says, the large downloads (5 MB and more) and that it unpacks; its errors are on the other stream.
CALMLY  = awk '/(Downloading|Using cached).*\(([5-9]|[0-9][0-9]+)(\.[0-9]+)? MB\)/ { sub(/^ +/, ""); print "      " $$0; fflush() } \
	/^Installing collected/ { print "      unpacking"; fflush() }'

# The first call of pip takes torch alone: nothing else gets to choose another build of it. TORCH_INDEX adds an index to
# that call; a build that is made for one kind of machine (2.13.0+cpu) is preferred where it is found.
TORCH   = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch

# The clients of the README's table, each kind in an environment of its own, with versions pinned beside its tests. What
# cannot be installed is done without, and its tests say so.
CLIENTS       := tests/serve/clients
CLIENT_STAMPS := .venv-clients/openai-1/stamp .venv-clients/frameworks/stamp \
	$(CLIENTS)/scripts/node_modules/stamp

.DEFAULT_GOAL := help
.PHONY: help install serve test test-all clients lint fuzz bench simulate soak lock clean

help: ## list the commands
	@echo 'make COMMAND, where COMMAND is one of'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-10s %s\n", $$1, $$2}'
	@echo
	@echo 'Settings, as NAME=value after the command:'
	@echo '  CONFIG       the Serve config file of `make serve`, instead of serve_config.yaml; more in configs/'
	@echo '  ARGS         what `make test` gives to pytest, `make lock` to the resolver (--upgrade), `make bench` and `make fuzz` to theirs'
	@echo '  EXTRAS       what is installed beyond the core, of pyproject.toml: minilm,openvino,cl100k'
	@echo '  QUICK, ONLY  `make bench QUICK=1` measures one short round; ONLY="throughput infinity short" leaves parts out'
	@echo '  BASE         another checkout of this project, with its own `make install`, as one more server in `make bench`'
	@echo '  URL          where the server is that `make fuzz` calls: http://127.0.0.1:8000'
	@echo '  PYTHON       the Python (3.11 or later) that makes .venv, instead of the one on the PATH'
	@echo '  TORCH_INDEX  an index with another build of torch. On Linux the default build brings gigabytes of CUDA; on a'
	@echo '               machine without a GPU: make install TORCH_INDEX=https://download.pytorch.org/whl/cpu'

install: $(VENV)/runtime.stamp ## make .venv with what serving needs (serve and test do so by themselves)

serve: $(VENV)/runtime.stamp ## start the server, with the settings of throughput.env; Ctrl-C stops it
	@exec $(BIN)/python -m serve_app.cli.serve --config $(CONFIG) --env throughput.env

test: $(VENV)/dev.stamp ## run the tests of every module, of small models and of one server: a few minutes
	@$(BIN)/python -m pytest -m 'not slow and not clients' $(ARGS)

test-all: test $(CLIENT_STAMPS) ## and all others: both proxy modes, clients, kills, rollouts, scaling
	@$(BIN)/python -m pytest -m 'slow or clients' $(ARGS)

clients: $(CLIENT_STAMPS) .venv-clients/more/stamp ## install all clients that the tests can run, also those that `make test-all` does without

lint: $(VENV)/dev.stamp ## check style, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(VENV)/dev.stamp ## send a running server what schemathesis makes of its /openapi.json
	@$(BIN)/st run $(URL)/openapi.json --url $(URL) --max-examples 500 $(ARGS)

bench: $(VENV)/dev.stamp benchmarks/.venv-infinity/stamp ## measure speed here beside other servers; QUICK=1 in five minutes
	@$(BIN)/python -m benchmarks.compare $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(BASE),--base $(BASE)) $(ARGS)

simulate: $(VENV)/dev.stamp ## draw how replicas follow a day's traffic within minutes, and plan a cluster
	@$(BIN)/python -m benchmarks.capacity.simulate $(ARGS)

soak: $(VENV)/dev.stamp ## half an hour of mixed traffic, kills and rollouts; ARGS="--minutes 5" for less
	@$(BIN)/python -m benchmarks.capacity.soak $(ARGS)

lock: ## resolve all dependencies anew into requirements.lock
	$(MAKE) --no-print-directory $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate \
		$(ARGS) pyproject.toml --output-file requirements.lock
	@{ echo '# Pins everything that pyproject.toml asks for, for Linux and macOS; made by `make lock`. Torch stands first,'; \
	   echo '# as it is installed first: `pip install --constraint requirements.lock torch`, then the rest.'; \
	   grep '^torch==' requirements.lock; grep -v -e '^torch==' -e '^#' requirements.lock; } > requirements.new
	@mv requirements.new requirements.lock
	@for kind in openai-1 frameworks more; do \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate $(ARGS) \
			$(CLIENTS)/$$kind.in --output-file $(CLIENTS)/$$kind.lock; done
	cd $(CLIENTS)/scripts && npm install --package-lock-only --no-fund --no-audit

clean: ## remove .venv and everything else that was made here
	rm -rf $(VENV) .venv-clients $(CLIENTS)/scripts/node_modules benchmarks/.venv-infinity build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache
	find serve_app tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Python 3.11 or later is needed and was not found. Install it, or name it: make install PYTHON=/path/to/python3.11' >&2; \
		exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'The venv module of $(PYTHON) does not work; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }

$(VENV)/runtime.stamp: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo 'Installing into $(VENV); the first time this takes some minutes.'
	@echo '  1/2 torch'
	@set -o pipefail; $(PIP) $(TORCH) | $(CALMLY)
	@echo '  2/2 Ray Serve, sentence-transformers, OpenVINO, the default model and this project'
	@set -o pipefail; $(PIP) --no-build-isolation --editable '.[$(EXTRAS)]' | $(CALMLY)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp
	@echo 'Installing the tools for tests and checks'
	@set -o pipefail; $(PIP) --no-build-isolation --editable '.[$(EXTRAS),dev]' | $(CALMLY)
	@touch $@

.venv-clients/%/stamp: $(CLIENTS)/%.lock | $(VENV)/bin/python
	@echo 'Installing clients into .venv-clients/$*, for the tests'
	@mkdir -p build
	@if { $(BIN)/python -m venv .venv-clients/$* && \
		.venv-clients/$*/bin/python -m pip install --disable-pip-version-check --requirement $<; } \
		> build/clients-$*.log 2>&1; then touch $@; else rm -rf .venv-clients/$*; fi

$(CLIENTS)/scripts/node_modules/stamp: $(CLIENTS)/scripts/package-lock.json
	@echo 'Installing the clients for Node, for the tests'
	@mkdir -p build
	@if (cd $(CLIENTS)/scripts && npm ci --no-fund --no-audit) > build/clients-node.log 2>&1; then touch $@; fi

# What `make bench` compares with, in a venv of its own because it needs older versions of almost everything. It is done
# without where it cannot be installed, and then tried again the next time. Torch comes first, and the same as ours.
INFINITY     := infinity-emb[server,torch]==0.0.78
INFINITY_PIP := benchmarks/.venv-infinity/bin/python -m pip install --disable-pip-version-check --constraint benchmarks/compare/infinity.lock

benchmarks/.venv-infinity/stamp: benchmarks/compare/infinity.lock | $(VENV)/bin/python
	@echo 'Installing infinity into benchmarks/.venv-infinity, to compare with'
	@mkdir -p build
	@if { $(BIN)/python -m venv benchmarks/.venv-infinity && $(INFINITY_PIP) $(TORCH) && $(INFINITY_PIP) '$(INFINITY)'; } \
		> build/infinity.log 2>&1; then touch $@; else rm -rf benchmarks/.venv-infinity; fi
