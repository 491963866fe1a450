# The commands of the README and of CI. Each installs what is missing, then leaves the work to xtask.
.PHONY: demo test kernel dist check clean setup

# A container in its own microVM, started by containerd in a node VM.
demo: setup
	cargo xtask demo

# Everything: formatting, lints, unit tests, and the end-to-end suite in both node editions.
test: setup
	cargo xtask test

# The guest kernel; prints its path.
kernel: setup
	cargo xtask kernel

# The bundle that `bulkhead install` puts on a node; prints its path.
dist: setup
	cargo xtask dist

# What needs no virtual machine.
check: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	cargo xtask policy
	cargo test --workspace --exclude e2e

# Removes what this checkout built. The cache of kernels and images stays: ~/.cache/bulkhead.
clean:
	cargo clean

setup:
	@./tools/setup
