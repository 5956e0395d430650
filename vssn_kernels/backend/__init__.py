"""Backends: a package each (`reference`: vssn_kernels/reference), chosen by table.py."""
