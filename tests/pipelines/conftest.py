"""Fixtures of pipeline tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["dali", "pyav"])
def decoder(request: pytest.FixtureRequest) -> str:
    """Return the override that chooses a decoder; a test runs once with each."""
    return f"data.decoder={request.param}"
