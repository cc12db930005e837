"""Kernels of the layers: a pure torch reference, numba kernels for the CPU, and who runs when."""
