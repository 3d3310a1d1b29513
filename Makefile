# The two headline targets are `make demo` and `make test`.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/assay-target
# rustup puts cargo here; a shell that was open before does not have it on its path.
export PATH := $(HOME)/.cargo/bin:$(PATH)
ARGS ?=
# Our crate fully optimised over the same dependencies: a model computes in it.
FAST := --config 'profile.dev.opt-level=3' --config 'profile.dev.debug-assertions=false' --config 'profile.dev.overflow-checks=false'
# How long `make chaos` takes, in seconds.
SECONDS_OF_CHAOS ?= 3600

# How long `make fuzz` takes for each of its four targets, in seconds.
SECONDS_OF_FUZZING ?= 60

# Answers of `make soak` for each of the four shipped schemas.
ANSWERS ?= 2500

.PHONY: help demo test chaos soak fuzz ci bench fmt setup
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-6s %s\n", $$1, $$2}' Makefile
demo: setup ## build, then run the demo (ARGS="--assets 100")
	cargo build --locked $(FAST)
	"$(CARGO_TARGET_DIR)/debug/assay" demo $(ARGS)
test: setup ## unit tests and the integration tests, then image and chart
	cargo test --locked
	ASSAY_EXPOSITION="$(CARGO_TARGET_DIR)/exposition" tests/image/check.sh
	ASSAY_EXPOSITION="$(CARGO_TARGET_DIR)/exposition" tests/helm/lint.sh
chaos: setup ## an hour of kills, zombies and outages against real servers (SECONDS_OF_CHAOS=600; ASSAY_CHAOS_SEED=7)
	ASSAY_SERVICES=required ASSAY_CHAOS_SECONDS=$(SECONDS_OF_CHAOS) cargo test --locked --test main -- --ignored --nocapture in_a_long_storm
soak: setup ## ten thousand answers of a random model, all must satisfy their schemas (ANSWERS=100)
	ASSAY_ANSWERS=$(ANSWERS) cargo test --locked --lib $(FAST) every_answer
fuzz: setup ## look for input that breaks the readers (SECONDS_OF_FUZZING=600)
	fuzz/run.sh $(SECONDS_OF_FUZZING)
ci: ## everything that must pass before a merge
	.ci/run
bench: setup ## the pipeline bench, our crate fully optimised, same dependencies
	cargo build --locked $(FAST)
	"$(CARGO_TARGET_DIR)/debug/assay" bench pipeline $(ARGS)
fmt: ## format the sources
	cargo fmt
setup:
	@bash tests/setup.sh
