"""Pallas kernels, each a folder: `reference.py` is the specification, `pallas.py` the kernel, `api.py` what callers use."""
