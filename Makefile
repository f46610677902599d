# make demo   a Redis with 1 GiB and eight clients, moved between two hosts, by both strategies
# make test   every test, among them migrations of real containers (root)
# make bench  workloads moved by every strategy: the report is target/bench/report.html (root, about a quarter of an hour)
# make bench-full   the same at the sizes of the paper, and by CRIU (root, hours, 13 GiB; goes on where it was interrupted)
# make soak   containers move to and fro while agents are killed and links cut (root); SOAK_SECONDS=N, SOAK_SEED=S
# make lint   formatting, clippy and documentation, without a warning
# make install [DESTDIR=... PREFIX=/usr/local]
# make deps   the Debian packages that demo, test and bench use
# make criu   CRIU 4 in target/criu, to compare with: target/release/pclive-bench run --criu target/criu/criu

CARGO   ?= cargo
PREFIX  ?= /usr/local
DESTDIR ?=

.PHONY: faulty-agent build tests demo test bench bench-full soak lint install deps criu

build:
	$(CARGO) build --release --workspace --bins

# Every test, and the programs that they start.
tests:
	$(CARGO) test --release --workspace --no-run

# For tests only: an agent that can be made to end at named points of a migration. With a test beside it, so that it uses the
# dependencies as the tests have them, and nothing but agent and engine is compiled again.
faulty-agent:
	$(CARGO) build --release --workspace --features pclive-agent/fault-injection --bin pclive-agent-faulty --test corpora

demo: deps build
	target/release/demo

bench: deps build
	target/release/pclive-bench run --selection quick

bench-full: deps criu build
	target/release/pclive-bench run --selection full --repetitions 3 --criu target/criu/criu --out target/bench-full

soak: deps build
	target/release/soak

# The tests of whole migrations run one after the other: each has two hosts, agents and a gigabyte or more.
test: deps tests faulty-agent
	-@tests/install-criu target/criu
	tests/run-tests

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --workspace --no-deps

install: build
	install -D -m 0755 target/release/pclive-agent $(DESTDIR)$(PREFIX)/sbin/pclive-agent
	install -D -m 0755 target/release/pclivectl $(DESTDIR)$(PREFIX)/bin/pclivectl
	sed 's,/usr/local,$(PREFIX),; s,/usr/share,$(PREFIX)/share,' systemd/pclive-agent.service > target/pclive-agent.service
	install -D -m 0644 target/pclive-agent.service $(DESTDIR)/etc/systemd/system/pclive-agent.service
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/doc/pclive README.md SECURITY.md CONTRIBUTING.md CHANGELOG.md
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/doc/pclive/docs docs/*.md
	test -e $(DESTDIR)/etc/pclive/agent.toml || \
		install -D -m 0600 configs/agent.toml $(DESTDIR)/etc/pclive/agent.toml

deps:
	@tests/install-deps

criu:
	@tests/install-criu target/criu
