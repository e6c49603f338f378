"""Find FFmpeg's libraries for torchcodec and SPDL, whose packages come without them."""

from __future__ import annotations

import ctypes.util
import os
import re
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path


def restart_with_ffmpeg() -> None:
    """Start this command anew with PyAV's libraries on the path if the system has no FFmpeg.

    The dynamic linker reads LD_LIBRARY_PATH only when a process begins. Call it before anything else is done.
    """
    path = os.environ.get("LD_LIBRARY_PATH", "")
    if any(list(Path(folder).glob("libavcodec.so*")) for folder in path.split(os.pathsep) if folder):
        return
    libraries = ffmpeg_libraries(Path(tempfile.gettempdir()) / f"clipline-ffmpeg-{os.getuid()}")
    if libraries:
        print("FFmpeg is not installed: torchcodec and SPDL use the libraries that come with PyAV", flush=True)
        environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join([*filter(None, [path]), *libraries])}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def ffmpeg_libraries(folder: Path) -> list[str]:
    """Return folders for LD_LIBRARY_PATH in which torchcodec and SPDL find FFmpeg where the system has none.

    PyAV's own libraries are linked into `folder` under the names that both look for. The list is empty where the system
    has FFmpeg or PyAV comes without libraries.
    """
    package = find_spec("av")
    if ctypes.util.find_library("avcodec") or not package or not package.origin:
        return []
    bundled = Path(package.origin).parents[1] / "av.libs"
    links = {}
    for path in bundled.glob("lib*.so.*"):
        if match := re.fullmatch(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+(\.so\.\d+)[.\d]*", path.name):
            links[match[1] + match[2]] = path
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in links.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path.resolve())
    return [str(folder), str(bundled)] if links else []
