"""Kernels of the `triton` backend; the modules beside this folder launch them."""
