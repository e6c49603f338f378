"""Helpers of the tests. This module imports nothing heavy, as worker processes import it too."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
