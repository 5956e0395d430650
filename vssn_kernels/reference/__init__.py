"""The reference in pure PyTorch: the judge of every kernel."""
