"""Temporary folders are removed however the process ends that made them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.files import temporary_folder

_FILL_AND_WAIT = """
import pathlib
from utils.files import temporary_folder
with temporary_folder() as folder:
    pathlib.Path(folder, "a").mkdir()
    pathlib.Path(folder, "a", "file").write_text("text")
    print(folder, flush=True)
    input()
"""


def test_temporary_folder_when_the_block_raises_is_removed():
    with pytest.raises(ValueError, match="inside"), temporary_folder() as folder:
        Path(folder, "file").write_text("text")
        raise ValueError("inside")
    assert not Path(folder).exists()


def test_temporary_folder_when_its_process_is_killed_is_removed():
    with subprocess.Popen(
        [sys.executable, "-c", _FILL_AND_WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        folder = Path(process.stdout.readline().strip())
        assert (folder / "a" / "file").exists()
        process.kill()
    end = time.monotonic() + 20
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not folder.exists()
