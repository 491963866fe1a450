# The commands of the README and of CI. Each installs what is missing, then leaves the work to xtask.
.PHONY: demo test test-long bench bench-compare bench-budget bench-disk kernel dist check clean setup

# A container in its own microVM, started by containerd in a node VM.
demo: setup
	cargo xtask demo

# Everything: formatting, lints, unit tests, the end-to-end suite in both node editions, and whether starts are as short as they were.
test: setup
	cargo xtask test
	cargo xtask bench budget

# The end-to-end suite with the tests that take many minutes, in both node editions: more than an hour. TEMPLATES=off boots every pod.
test-long: setup
	cargo xtask test --skip-unit --long $(if $(filter off,$(TEMPLATES)),--without-templates)

# Start time and memory, in a node whose clock counts instructions: docs/performance.md. QUICK=1 is for a first look.
bench: setup
	cargo xtask bench $(if $(QUICK),--quick)

# The last result's figures as multiples of the baseline's (tests/bench/baseline.json).
bench-compare: setup
	cargo xtask bench compare

# Whether a phase of a start has become slower than tests/bench/budget.json allows.
bench-budget: setup
	cargo xtask bench budget

# Disks compared with QEMU's microvm: docs/performance.md.
bench-disk: setup
	cargo xtask bench disk

# The guest kernel; prints its path.
kernel: setup
	cargo xtask kernel

# The bundle that `bulkhead install` puts on a node; prints its path.
dist: setup
	cargo xtask dist

# What needs no virtual machine.
check: setup
	cargo xtask check

# Removes what this checkout built. The cache of kernels and images stays: ~/.cache/bulkhead.
clean:
	cargo clean

setup:
	@./tools/setup
