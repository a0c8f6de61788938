"""Benchmarks: pagefold beside the kernel's KSM, in the same run on the same machine. `make bench` runs them."""
