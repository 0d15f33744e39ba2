# make demo    a three-node cluster, a request across nodes, and the way it took
# make test    the whole test suite
# make help    the rest
.DEFAULT_GOAL := help
BIN := .venv/bin

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: install
install: ## what running needs: .venv and a few Debian packages
	@scripts/bootstrap

.PHONY: demo
demo: install ## start a cluster, curl a Service on another node, show the packet's way, stop
	@scripts/demo

.PHONY: test
test: ## the whole test suite (PYTEST="-k name" for some)
	@scripts/bootstrap test
	$(BIN)/python -m pytest $(PYTEST)

.PHONY: compiled
compiled: ## compile the datapath with mypyc: faster packets, the same sources (needs gcc and python3-dev)
	@scripts/bootstrap compile
	@scripts/compile

.PHONY: test-compiled
test-compiled: ## the datapath's tests over the compiled build
	@scripts/bootstrap compile
	@scripts/compile
	PODWIRE_COMPILED=require $(BIN)/python -m pytest tests/nodeagent/datapath tests/oracle tests/podwire tests/system/test_commands.py $(PYTEST)

.PHONY: lint
lint: ## ruff: rules and format
	@scripts/bootstrap
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: ## mypy --strict
	@scripts/bootstrap
	$(BIN)/mypy

.PHONY: bench
bench: ## the benchmarks, quickly (bench/README.md says how to run them for real)
	@scripts/bootstrap test
	@for each in bench/*.py; do echo "== $$each" >&2; $(BIN)/python $$each --quick || exit 1; done

.PHONY: compose-test
compose-test: ## the demo with docker-compose, one container a node (needs root or a Docker engine)
	@scripts/compose-test

.PHONY: clean
clean: ## stop all clusters of this user and remove what was built
	-@[ ! -x $(BIN)/podwire ] || $(BIN)/podwire down --all
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: compose-possible
compose-possible:
	@scripts/compose-test possible
