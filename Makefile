# What one does with firn's sources. `make` alone says what there is.
#
# Nothing is installed without being asked for: with YES=1, in CI, or by an answer on the terminal.

SHELL := /bin/bash
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:/usr/sbin:/sbin:$(PATH)
PREFIX ?= /usr/local
RELEASE := target/release/firn

.PHONY: help try test check bench build install clean packages-build packages-try packages-test packages-bench guest rust

help: ## this list
	@echo "firn: snapshots of virtual machines, and anything back out of them"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18
	@echo
	@echo "YES=1 agrees beforehand to the installation of what is missing (packages by apt, Rust by rustup)."

try: packages-try rust ## the main job on a real disk image, step by step, in a folder of its own
	cargo build --release --package firn
	@FIRN=$(RELEASE) lab/try.sh

test: packages-test guest rust ## every check and every test; what CI runs
	cargo xtask check
	FIRN_LAB_GUEST=$${FIRN_LAB_GUEST:-$(CURDIR)/target/lab-guest} cargo xtask test

check: rust ## the quick inner loop: format, clippy, rules of the project, unit tests
	cargo xtask check --quick
	cargo xtask test --quick

bench: packages-bench rust ## firn beside restic, borg, qemu-img and cp; makes its guests first (root, 3 minutes)
	cargo build --release --package firn
	@if ! ls target/bench-data/guest-{a,a2,b}.raw >/dev/null 2>&1; then \
	  . tools/ask.sh && as_root lab/make-bench-images.sh target/bench-data; fi
	@FIRN=$(RELEASE) benches/pool.py target/bench-data
	@FIRN=$(RELEASE) benches/files.py

build: packages-build rust ## the program, as target/release/firn
	cargo build --release --package firn

install: build ## the program into PREFIX/bin (/usr/local)
	install -D -m 755 $(RELEASE) $(DESTDIR)$(PREFIX)/bin/firn

clean: ## remove what was built
	cargo clean

packages-build packages-try:
	@tools/install-packages.sh $(@:packages-%=%)

# Without them the tests that need them are skipped, loudly; in CI everything has to be there.
packages-test:
	@tools/install-packages.sh build
	@tools/install-packages.sh test $(if $(filter 1,$(FIRN_REQUIRE_ALL)),,optional)
	@lab/setup-qemu.sh || $(if $(filter 1,$(FIRN_REQUIRE_ALL)),exit 1,echo "Going on without QEMU's machines; what needs them is skipped and says so." >&2)

# The guest that tests of running machines boot: made once, as root. Without it they are skipped, loudly.
guest:
	@if [ -n "$$FIRN_LAB_GUEST" ] || [ -e target/lab-guest/guest-base.qcow2 ]; then exit 0; fi; \
	  . tools/ask.sh && ask "Make a small Debian guest in target/lab-guest for the tests (450 MB, a minute, as root)?" && \
	  mkdir -p target && as_root lab/make-guest.sh target/lab-guest >&2 || \
	  $(if $(filter 1,$(FIRN_REQUIRE_ALL)),exit 1,echo "Going on without a guest; what needs it is skipped and says so." >&2)

packages-bench:
	@tools/install-packages.sh bench optional

rust:
	@tools/install-rust.sh
