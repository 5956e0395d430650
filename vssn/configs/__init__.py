"""Packaged configurations: `vssn fit --config jsb`."""
