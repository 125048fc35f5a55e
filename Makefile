# The whole of what a contributor types. `make help` lists it.
#
#   make run CLIENT_PORT=8700   other ports: 8700, 8710, 8720 (node traffic +1, operations +2)
#   make bench QUICK=1          a smoke run of the comparison

SHELL := /bin/bash
.DEFAULT_GOAL := help

CLIENT_PORT ?= 7700
QUICK ?=
export CLIENT_PORT

.PHONY: help run test test-ansible check dist repo bench fmt clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: ## build (release, some minutes the first time) and run three nodes: 127.0.0.1:7700, 7710, 7720
	@scripts/run.sh

test: ## everything that holds AegisKV to its word, fast parts first; totals at the end
	@scripts/test.sh all

test-ansible: ## all tests of the Ansible collection on booted hosts, as root; some 30 minutes
	@scripts/setup.sh test
	@tests/ops/run.sh ansible

check: ## format, clippy, documentation, licences and sources of dependencies
	@scripts/test.sh check

dist: ## what is published, into dist/: packages, tarball, image, bill of materials, checksums
	@scripts/setup.sh dist
	@scripts/dist.sh

# Whatever goes into what is published: these files, and which commit it is.
sources = $(wildcard $(shell git rev-parse --git-path logs/HEAD; \
	git ls-files Cargo.* src packaging systemd scripts CHANGELOG.md LICENSE README.md))

dist/SHA256SUMS: $(sources)
	@$(MAKE) dist

repo: dist/SHA256SUMS ## signed repositories of that for apt and dnf, into repo/
	@scripts/setup.sh repo
	@scripts/repo.sh

bench: ## side by side with its peers; writes docs/benchmarks.md
	@scripts/setup.sh build
	@python3 benches/compare.py $(if $(QUICK),--quick)

fmt: ## format the code
	cargo fmt --all

clean: ## remove what was built
	cargo clean
	rm -rf dist repo
