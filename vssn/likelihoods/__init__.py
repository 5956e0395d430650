"""Emission densities p(x_t | z_t, d_t): one file each, and a registry by name."""
