"""Speed and memory of this library beside its peers and the machine's limits: see README.md in this folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
