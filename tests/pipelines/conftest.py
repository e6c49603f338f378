"""Fixtures of pipeline tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.programs import write_lists


@pytest.fixture(params=["dali", "pyav"])
def decoder(request: pytest.FixtureRequest) -> str:
    """Return the override that chooses a decoder; a test runs once with each."""
    return f"data.decoder={request.param}"


@pytest.fixture
def lists(clips_folder, tmp_path, monkeypatch) -> Path:
    """Return the working directory, with nine videos, train.txt and val.txt."""
    write_lists(clips_folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path
