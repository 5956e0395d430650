"""Backends: one module each, chosen by table.py."""
