# Everything that people and CI do. `make demo` and `make test` need nothing but the Rust toolchain, make and apt-get.

CARGO ?= cargo
# The tests make network namespaces: they run as root, the build does not have to.
ifneq ($(shell id -u),0)
SUDO := sudo -E env "PATH=$$PATH"
RUNNER := --config 'target."cfg(unix)".runner = ["sudo", "-E"]'
endif

.PHONY: build demo test bench bench-quick bench-scale bench-micro bench-build fmt lint doc clean install-deps

build: install-deps
	$(CARGO) build --release --bins

demo: build
	$(SUDO) tests/demo.sh

# The tests run the binaries of the same profile: those are built first, together with the tests, so that nothing is built
# twice. More threads than cores, because tests mostly wait.
test: install-deps
	$(CARGO) build --workspace --bins --tests
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} $(CARGO) test --workspace --no-fail-fast $(RUNNER)

# swd beside its rivals and as it grows: tables and plots in docs/benchmarks, in under half an hour. Leave the machine alone
# meanwhile.
bench: bench-build
	$(SUDO) target/release/compare
	$(SUDO) target/release/scale

# The same in a few minutes, in short rounds: to see that nothing fell back, not to quote from.
bench-quick: bench-build
	$(SUDO) target/release/compare --quick --out target/benchmarks
	$(SUDO) target/release/scale --quick --out target/benchmarks

bench-scale: bench-build
	$(SUDO) target/release/scale

# What the parts cost without the kernel, by criterion.
bench-micro: install-deps
	$(CARGO) bench -p benches

bench-build: build
	@$(SUDO) benches/install-rivals.sh target/rivals

fmt:
	$(CARGO) fmt --all

lint: install-deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc: install-deps
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --workspace --no-deps --document-private-items

clean:
	$(CARGO) clean

install-deps:
	@$(SUDO) tests/install-deps.sh
