# Everything that people and CI do. `make demo` and `make test` need nothing but the Rust toolchain, make and apt-get.

CARGO ?= cargo
# The tests make network namespaces: they run as root, the build does not have to.
ifneq ($(shell id -u),0)
SUDO := sudo -E env "PATH=$$PATH"
RUNNER := --config 'target."cfg(unix)".runner = ["sudo", "-E"]'
endif

.PHONY: build install uninstall deb image demo test fuzz soak audit bench bench-quick bench-attach bench-scale bench-strain bench-micro bench-build fmt lint doc clean install-deps

build: install-deps
	$(CARGO) build --release --bins

# The programs, their manual pages and completions, the unit and the example of a configuration. Below DESTDIR for packages.
PREFIX ?= /usr/local
SHARE = $(DESTDIR)$(PREFIX)/share
install:
	@test -x target/release/swd || { echo "error: nothing is built yet: run 'make' first" >&2; exit 1; }
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin target/release/swd target/release/swctl
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/lib/cni target/release/swd-cni
	install -d $(SHARE)/man/man1 $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	target/release/swctl man >$(SHARE)/man/man1/swctl.1
	target/release/swctl completions bash >$(SHARE)/bash-completion/completions/swctl
	target/release/swctl completions zsh >$(SHARE)/zsh/site-functions/_swctl
	target/release/swctl completions fish >$(SHARE)/fish/vendor_completions.d/swctl.fish
	install -D -m 644 -t $(SHARE)/doc/swd docs/swd.toml docs/swctl.md
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's,/usr/bin/,$(PREFIX)/bin/,' switch/systemd/swd.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/swd.service
	install -m 644 switch/systemd/swd.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/swd.socket

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/swd $(DESTDIR)$(PREFIX)/bin/swctl $(SHARE)/man/man1/swctl.1 \
	  $(SHARE)/bash-completion/completions/swctl $(SHARE)/zsh/site-functions/_swctl \
	  $(SHARE)/fish/vendor_completions.d/swctl.fish $(DESTDIR)$(PREFIX)/lib/systemd/system/swd.service
	rm -f $(DESTDIR)$(PREFIX)/lib/systemd/system/swd.socket $(DESTDIR)$(PREFIX)/lib/cni/swd-cni
	rm -rf $(SHARE)/doc/swd

# A Debian package in target/debian: what `install` installs, below /usr.
deb: build
	rm -rf target/package
	$(MAKE) install DESTDIR=$(CURDIR)/target/package PREFIX=/usr
	$(CARGO) deb --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deb
	$(CARGO) deb -p switch --no-build

# An image for Docker or Podman, without a base: `swd`, from what is built here.
ENGINE ?= docker
image: build
	rm -rf target/image
	switch/image/stage.sh target/image target/release/swd target/release/swctl target/release/swd-cni
	$(SUDO) $(ENGINE) build -t swd -f switch/image/Containerfile target/image

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

bench-attach: build
	$(SUDO) target/release/attach

bench-scale: bench-build
	$(SUDO) target/release/scale

# Limits that are set, one container against the others, captures, restarts: minutes. Tables in docs/benchmarks/strain.md.
bench-strain: build
	$(SUDO) target/release/strain

# What the parts cost without the kernel, by criterion.
bench-micro: install-deps
	$(CARGO) bench -p benches

bench-build: build
	@$(SUDO) benches/install-rivals.sh target/rivals

# Looks for inputs that make something panic, each target for so many minutes. What it finds is in tests/fuzz/artifacts; what
# it learned is in target/fuzz-corpus, and begins with what is kept in tests/fuzz/corpus (`make test` feeds that, too).
MINUTES ?= 1
FUZZ_TARGETS ?= frame nat_packet nat_sequence state_file config journal api words dns cni
fuzz: install-deps
	$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install cargo-fuzz
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p target/fuzz-corpus/$$target && \
	  $(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz $$target \
	    target/fuzz-corpus/$$target tests/fuzz/corpus/$$target -- \
	    -max_total_time=$$(($(MINUTES) * 60)) -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 || exit 1; \
	done

# Faults at random, under traffic, for so many minutes; what must always hold is looked at throughout. SEED repeats one.
soak: install-deps
	$(CARGO) build --workspace --bins
	$(SUDO) target/debug/soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# The dependencies: licences, where they come from, known vulnerabilities. The last needs the network.
audit:
	$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check

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
