# pgark's targets. Each runs from a fresh clone of Debian 12 with Rust; as root they install what is
# missing, otherwise they say what it is. Idempotent.

PG_CONFIG ?= /usr/lib/postgresql/15/bin/pg_config
PREFIX ?= /usr/local
SETUP := regress/setup
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
FAULTS := --features pgark-archiver/fault-injection
# Everything that needs no Postgres headers, fault injection off and on.
PLAIN := -p pgark-types -p pgark-archiver
EXTENSION_LINT := PGRX_PG_CONFIG_PATH=$(PG_CONFIG) cargo clippy --locked --target-dir $(TARGET)/pg15 \
	-p pgark -p pgark-archive

.NOTPARALLEL:
.PHONY: demo demo-stack test test-full regress conformance bench install clean lint unit build shipped

# Installs nothing of pgark's: it runs from the target directory.
demo:
	$(SETUP)/install.sh demo
	cargo build --locked -p pgark-archiver
	cargo build --locked -p pgark-archive --no-default-features --features pg15 --target-dir $(TARGET)/pg15
	regress/demo.sh $(TARGET)/debug/pgark $(TARGET)/pg15/debug/libpgark_archive.so

# Postgres, Redis, Chroma and files, wrecked and brought back to one moment.
demo-stack:
	$(SETUP)/install.sh stack
	cargo build --locked -p pgark-archiver
	regress/demo-stack.sh $(TARGET)/debug/pgark

# At most 45 minutes on 2 cores.
test: setup lint unit build regress

.PHONY: setup
setup:
	$(SETUP)/install.sh test

lint:
	cargo fmt --all --check
	cargo clippy --locked $(PLAIN) --all-targets -- -D warnings
	cargo clippy --locked -p pgark-regress --all-targets --all-features -- -D warnings
	$(EXTENSION_LINT) -- -D warnings
	! cargo tree --locked -p pgark-archiver -e features | grep fault-injection

unit:
	cargo test --locked $(PLAIN) $(FAULTS)
	cargo test --locked -p pgark-archive

build:
	cargo build --locked -p pgark-archiver $(FAULTS)
	$(SETUP)/build-extension.sh /usr/lib/postgresql/15/bin/pg_config
	$(SETUP)/build-extension.sh "$$($(SETUP)/chroot.sh --path)/pg_config"

# End to end. The servers share two cores: more tests at once only make time-outs.
regress:
	cargo test --locked -p pgark-regress -- --test-threads=2

# The storage conformance suite on every storage; the real S3 server needs root and two minutes to install.
conformance:
	$(SETUP)/install.sh conformance
	cargo run --locked -q -p pgark-regress --bin conformance

# Everything, in resumable parts of at most 40 minutes: make test-full PART=3. Without PART: lists them.
# What is shipped is looked at first: the tests want the binary with faults in its place.
test-full: $(if $(PART),setup shipped build)
	cargo run --locked -q -p pgark-regress --bin full -- $(PART)

# Not in `make test`: it would build everything a second time.
shipped:
	$(SETUP)/release-check.sh dev

bench:
	$(SETUP)/install.sh bench
	regress/bench/run.sh

# For one Postgres: make install PG_CONFIG=/usr/lib/postgresql/17/bin/pg_config
install:
	cargo build --locked --release -p pgark-archiver
	install -D -m 755 $(TARGET)/release/pgark $(DESTDIR)$(PREFIX)/bin/pgark
	$(SETUP)/build-extension.sh $(PG_CONFIG) release

clean:
	cargo clean
	rm -rf regress/artifacts regress/results
