# What people do with this repository. `make` alone lists it.

# Where rustup puts cargo, for shells that do not know it yet.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

ARGS ?=
SEEDS ?= 1000

.PHONY: help demo test sim bench bench-peers bench-nexmark lint fmt services-up services-down clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \2/p' $(MAKEFILE_LIST) | awk '{ printf "  %s %-14s", $$1, $$2; $$1 = $$2 = ""; print $$0 }'

demo: ## build the program and run the demonstration job, with nothing else to install
	@exec scripts/demo

test: ## run all tests, with real servers (ARGS='-p perennial-core' for some)
	@scripts/setup test
	@PERENNIAL_TEST_SERVICES=required PERENNIAL_PYSPARK=$$(scripts/pyspark) scripts/with-services -- cargo test --workspace $(ARGS) -- --include-ignored

sim: ## run jobs in a world that fails on purpose (SEEDS=10000 for more of them, ARGS='--from 10000' for others)
	@scripts/setup build
	@# With the packages of the benchmarks, so that all release builds share every dependency.
	cargo build --release -p perennial -p perennial-bench -p perennial-sim --bin simulate
	$${CARGO_TARGET_DIR:-target}/release/simulate --seeds $(SEEDS) $(ARGS)

bench: ## measure the main job from files and Kafka, decoding, the stateful query, the sinks, and a job that is asked how it is
	@scripts/setup bench
	@PERENNIAL_KAFKA_JAVA_OPTS=-XX:TieredStopAtLevel=4 scripts/with-services kafka -- \
		python3 bench/peers/run.py --only perennial,perennial-kafka,datafusion-batch $(ARGS)
	cargo run --release -p perennial-bench --bin perennial-bench-decode
	cargo run --release -p perennial-bench --bin perennial-bench-throughput
	cargo run --release -p perennial-bench --bin perennial-bench-state
	python3 bench/health.py
	cargo run --release -p perennial-bench --bin perennial-bench-sinks

bench-peers: ## compare with PySpark, PyFlink and a plain DataFusion query
	@scripts/setup bench
	@python3 bench/peers/run.py --only perennial,datafusion-batch,pyspark,pyflink $(ARGS)

bench-nexmark: ## run the queries of the Nexmark benchmark, and compare every result with DuckDB's
	@scripts/setup bench
	@python3 bench/nexmark/run.py $(ARGS)

lint: ## check the formatting, and clippy without warnings
	@scripts/setup build
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

fmt: ## format the code
	cargo fmt

services-up: ## start Kafka, PostgreSQL and InfluxDB for development
	@scripts/setup test
	@scripts/services up
	@echo 'eval "$$(scripts/services env)" tells the shell where they are'

services-down: ## stop them (their data stays)
	@scripts/services down

clean: ## remove what was built, and the demonstration's data
	cargo clean
	rm -rf demo
