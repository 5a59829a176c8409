# Everything a person or a machine does with this repository. `make help` lists it.
#
# One build profile (dev) and one target folder serve the demo, the tests and lint, because the C++ dependencies are what a build
# costs. The folder lies in a cache outside the checkout, so that a second clone on this machine reuses it; nothing needs it to
# be there. CARGO_TARGET_DIR, when set, wins.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

export MILLSTREAM_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/millstream
export CARGO_TARGET_DIR ?= $(MILLSTREAM_CACHE)/target
export CARGO_TERM_COLOR ?= $(if $(CI),never,auto)

MILLSTREAM := $(CARGO_TARGET_DIR)/debug/millstream
TIMED := tools/timed

.PHONY: help
help: ## this list
	@echo "Millstream. Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo "Built code:   $(CARGO_TARGET_DIR)   (CARGO_TARGET_DIR)"
	@echo "Test servers: $(MILLSTREAM_CACHE)   (MILLSTREAM_CACHE)"

.PHONY: demo
demo: build ## build, then run the whole pipeline in one process and check what comes out
	@"$(MILLSTREAM)" demo

.PHONY: build
build: setup-build ## build the program `millstream`
	@cargo build --locked --workspace --bin millstream

.PHONY: test
test: ## everything that must pass: lint, docs, test servers, all tests
	@$(TIMED) setup $(MAKE) --no-print-directory setup-test
	@$(TIMED) lint $(MAKE) --no-print-directory lint
	@$(TIMED) docs $(MAKE) --no-print-directory docs
	@$(TIMED) servers $(MAKE) --no-print-directory servers
	@$(TIMED) program cargo build --locked --workspace --bins
	@$(TIMED) build cargo test --locked --workspace --no-run --quiet
	@$(TIMED) tests cargo test --locked --workspace --exclude millstream-operator-tests
	@$(TIMED) operator cargo test --locked -p millstream-operator-tests -- --test-threads 4
	@$(TIMED) mutants $(MAKE) --no-print-directory mutants

.PHONY: unit
unit: setup-build ## only the tests that need no server: model, stages, plan, shard, ownership, simulation
	@cargo test --locked -p millstream-model -p millstream-stages -p millstream-plan -p millstream-shard -p millstream-ownership-model -p millstream-sim

.PHONY: e2e
e2e: setup-test servers ## a real cluster of three nodes through everything that happens to clusters, under load; writes its report into docs (half an hour) [ONLY=words: scenarios whose names have these, no report]
	@cargo build --locked --workspace --bins
	@said=$$(mktemp); trap 'rm -f "$$said"' EXIT; result=0; \
	MILLSTREAM_E2E_ONLY="$(ONLY)" MILLSTREAM_E2E_REPORT="$(CURDIR)/docs/src/design/e2e.md" cargo test --locked -p millstream-tests --test e2e -- --ignored --nocapture \
		| tee "$$said" | grep --line-buffered -v "^test \|^running\|^$$" || result=$$?; \
	grep "^[0-9]* passed, [0-9]* failed$$" "$$said" | tail -1; exit $$result

.PHONY: mutants
mutants: setup-build ## the simulation with its deliberate bugs: each must be found
	@cargo test --locked -p millstream-sim --features mutants --test mutants

.PHONY: sim
SEEDS ?= 10000
FIRST_SEED ?= 0
sim: setup-build ## run the simulation: SEEDS=10000 [FIRST_SEED=n] [FORGETFUL=yes]; a failing seed says how to replay it
	@cargo run --locked --quiet -p millstream-sim -- --seeds $(SEEDS) --first $(FIRST_SEED) $(if $(FORGETFUL),--forgetful)

.PHONY: servers
servers: setup-test ## fetch and build the test servers (Kafka, MongoDB-compatible) into the cache
	@cargo run --locked --quiet -p millstream-tests --bin servers -- install

FOR ?= 3600
CHAOS_SEED ?= $(shell date +%s)
.PHONY: chaos
chaos: setup-test ## kill, stop and cut everything under load: FOR=3600 (seconds) [CHAOS_SEED=n]; says its seed
	@cargo build --locked --workspace --bins
	@MILLSTREAM_CHAOS_SECONDS=$(FOR) MILLSTREAM_CHAOS_SEED=$(CHAOS_SEED) cargo test --locked --workspace --test failover -- --nocapture goes_on_through_everything

# What is measured is optimised fully, but RocksDB is the one of daily builds (-O1): a release would compile it for 40 minutes of a core.
FAST := xxhash-rust libmimalloc-sys millstream-model millstream-shard millstream-stages millstream-stores millstream-bench-engine

.PHONY: bench-engine
bench-engine: setup-test ## the engine's figures, about 35 minutes: bench/results/engine.json (QUICK=1: shorter, only printed, without kills and handoffs)
	@cargo build --locked --workspace --bin millstream-bench-engine $(foreach crate,$(FAST),--config profile.dev.package.$(crate).opt-level=3)
	@"$(CARGO_TARGET_DIR)/debug/millstream-bench-engine" $(if $(QUICK),--quick,--out bench/results/engine.json)
	@$(if $(QUICK),true,$(MAKE) --no-print-directory bench-failover)

.PHONY: bench-failover
bench-failover: setup-test ## its last part, 12 minutes: longest gaps when a worker is killed, and when its shards are handed off, into bench/results/engine.json
	@cargo build --locked --workspace --bins
	@"$(CARGO_TARGET_DIR)/debug/millstream-bench-failover"
	@tools/generate

.PHONY: bench-tenants
bench-tenants: setup-test ## what a change of one tenant among 5,000 takes, two minutes: bench/results/tenants.json
	@cargo build --locked --workspace --bins
	@"$(CARGO_TARGET_DIR)/debug/millstream-bench-tenants"

.PHONY: lint
lint: setup-build ## formatting, clippy, rustdoc, licences and bans, unsafe rule, generated files, documents
	@tools/check-unsafe
	@tools/check-docs
	@cargo fmt --all -- --check -l || { echo "not formatted (files above); run: make fmt" >&2; exit 1; }
	@cargo clippy --locked --quiet --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" cargo doc --locked --quiet --workspace --no-deps
	@deny=$$(tools/tool cargo-deny) && "$$deny" --log-level error --offline --locked check bans licenses sources
	@tools/generate --check

.PHONY: fmt
fmt: ## format the code
	@cargo fmt --all

.PHONY: generate
generate: ## write anew what is generated from the code
	@tools/generate

.PHONY: docs
docs: ## check the documents and build the book: docs/book/index.html
	@tools/check-docs
	@mdbook=$$(tools/tool mdbook) && "$$mdbook" build docs

.PHONY: clean
clean: ## remove what was built from this checkout, here and in the cache; test servers stay
	@cargo clean --quiet --workspace || true
	@rm -rf docs/book

.PHONY: setup-build setup-test
setup-build:
	@tools/setup build
	@tools/fetch
setup-test:
	@tools/setup test
	@tools/fetch
