"""Kernels of the `triton` backend; ../triton.py launches them."""
