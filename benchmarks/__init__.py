"""Speed and memory of this library beside its peers and the machine's limits: see README.md in this folder."""
