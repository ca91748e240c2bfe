"""Shared by tests: small models, oracles, files, processes."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
