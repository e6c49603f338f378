"""Decide who decodes which video: DALI (NVDEC on a GPU), PyAV on the host's cores, or both at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipelines.decode import nvdec
from pipelines.decode.video_info import Row

AUTO_SHARE = -1.0  # of data.pyav_share
# Measured with bench.loading on two cores: frames of 340x256 pixels that a core decodes, crops and resizes in a second.
_PYAV_PIXELS_PER_S = 3_700 * 340 * 256
# Published of an H100: NVDEC's frames a second are bounded by a cost for each frame (PyNvVideoCodec, 32 processes at
# 340x256: 22,000 with 7 engines) and one for each pixel (170 streams of 1080p at 30 frames a second with 7 engines).
_ENGINE_FRAMES_PER_S, _ENGINE_PIXELS_PER_S = 3_150, 170 * 30 * 1920 * 1080 / 7


class Dali(NamedTuple):
    """What DALI can decode on a device; if that is nothing, `problem` says why."""

    on_gpu: bool
    capabilities: nvdec.Capabilities
    problem: str = ""

    @property
    def place(self) -> str:
        return "on this GPU" if self.on_gpu else "without a GPU"


@dataclass(frozen=True)
class Decoders:
    """Which videos DALI can decode, and the share of those that PyAV decodes all the same."""

    capabilities: nvdec.Capabilities = field(default_factory=dict)  # of DALI; empty: PyAV decodes everything
    pyav_share: float = 1.0
    needs_pyav: bool = True  # whether it decodes some of the videos

    @property
    def uses_dali(self) -> bool:
        return bool(self.capabilities) and self.pyav_share < 1

    def chooses_pyav(self, row: Row, seed: int, epoch: int, number: int) -> bool:
        """Tell whether PyAV decodes a video of the list in an epoch; drawn from (seed, epoch, number)."""
        if not self.uses_dali or nvdec.reason_refused(row, self.capabilities):
            return True
        # 4: [seed, epoch, number] with 1, 2 and 3 are other streams of the same clip.
        return self.pyav_share > 0 and np.random.default_rng([seed, epoch, number, 4]).random() < self.pyav_share


def choose_decoders(rows: Sequence[Row], wanted: str, share: float, dali: Dali, cores: int) -> Decoders:
    """Turn data.decoder and data.pyav_share into who decodes what.

    `rows` are the readable videos, `cores` those that decode beside an NVDEC. Raises ValueError if DALI is asked for
    and can decode none of the videos.
    """
    if wanted == "host" or wanted == "auto" and not dali.on_gpu:
        return Decoders()
    decodable = [row for row in rows if not nvdec.reason_refused(row, dali.capabilities)]
    if wanted in ("dali", "both") and not decodable:
        reason = dali.problem or _count_reasons(rows, dali.capabilities)
        none = f"DALI decodes none of the {_videos(len(rows))} {dali.place} ({reason})"
        raise ValueError(f"data.decoder={wanted}: {none}; use data.decoder=auto or host")
    if not decodable:
        return Decoders()
    if wanted == "dali":
        share = 0.0
    elif share == AUTO_SHARE:
        balanced = pyav_share(decodable, dali.capabilities, cores)
        undecodable = len(rows) - len(decodable)  # which are PyAV's already
        share = round(max(0.0, balanced * len(rows) - undecodable) / len(decodable), 3)
    return Decoders(dali.capabilities, share, needs_pyav=share > 0 or len(decodable) < len(rows))


def pyav_share(rows: Sequence[Row], capabilities: nvdec.Capabilities, cores: int) -> float:
    """Return the share of videos for PyAV at which `cores` and the card's engines are done at the same time.

    Both are taken to decode the same frames of a clip, so their rates depend on the frames' size alone.
    """
    pixels = float(np.mean([row.coded_width * row.coded_height for row in rows]))
    engines = max((limits.engines for limits in capabilities.values()), default=1)
    by_pyav = cores * _PYAV_PIXELS_PER_S / pixels
    by_nvdec = engines * min(_ENGINE_FRAMES_PER_S, _ENGINE_PIXELS_PER_S / pixels)
    return min(round(by_pyav / (by_pyav + by_nvdec), 3), 0.999)  # 1 would leave NVDEC out


def describe_decoders(rows: Sequence[Row], decoders: Decoders, wanted: str, dali: Dali) -> str:
    """Say in a line how many videos go where, and why."""
    name = f"DALI {'NVDEC' if dali.on_gpu else 'CPU'}"
    if not decoders.uses_dali:
        if wanted == "host":
            return "PyAV, as data.decoder=host asks"
        if wanted == "auto" and not dali.on_gpu:
            return "PyAV, which is faster than DALI without a GPU"
        if decoders.capabilities:
            return "PyAV, as data.pyav_share=1 asks"
        reason = dali.problem or _count_reasons(rows, dali.capabilities)
        return f"PyAV, since {name} decodes none of the videos ({reason})"
    decodable = [row for row in rows if not nvdec.reason_refused(row, decoders.capabilities)]
    line = f"{name} for {_videos(len(decodable))} ({', '.join(sorted({row.codec for row in decodable}))})"
    if decoders.pyav_share:
        line += f", of which PyAV takes a share of {decoders.pyav_share:g}"
    if len(decodable) < len(rows):
        reasons = _count_reasons(rows, decoders.capabilities)
        line += f"; PyAV for {len(rows) - len(decodable)} that DALI does not decode {dali.place} ({reasons})"
    return line


def _videos(count: int) -> str:
    return "1 video" if count == 1 else f"{count} videos"


def _count_reasons(rows: Sequence[Row], capabilities: nvdec.Capabilities) -> str:
    reasons = Counter(reason for row in rows if (reason := nvdec.reason_refused(row, capabilities)))
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
