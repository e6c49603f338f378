"""Decide which decoder gets which video: DALI (NVDEC on a GPU), PyAV on CPU cores, or both at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from pipelines.decode import nvdec
from pipelines.decode.video_info import VideoInfo
from utils import random_streams

# Measured with bench.loading on two cores: one core decodes, crops and resizes 3,700 frames of 340x256 per second.
_PYAV_PIXELS_PER_S = 3_700 * 340 * 256
# Published for an H100 with 7 engines: the frames per second of NVDEC are limited by a cost per frame (PyNvVideoCodec,
# 32 processes at 340x256: 22,000 per second) and by a cost per pixel (170 streams of 1080p at 30 per second).
_ENGINE_FRAMES_PER_S, _ENGINE_PIXELS_PER_S = 3_150, 170 * 30 * 1920 * 1080 / 7


class DaliSupport(NamedTuple):
    """The formats that DALI can decode on a device; `problem` says why there are none."""

    on_gpu: bool
    capabilities: nvdec.Capabilities
    problem: str = ""

    @property
    def device_phrase(self) -> str:
        return "on this GPU" if self.on_gpu else "without a GPU"


@dataclass(frozen=True)
class DecoderPlan:
    """The formats that DALI decodes, and the share of videos of these formats that PyAV decodes anyway."""

    capabilities: nvdec.Capabilities = field(default_factory=dict)  # DALI's; empty: PyAV decodes everything
    pyav_share: float = 1.0
    needs_pyav: bool = True  # PyAV decodes some of the videos
    max_images: int = 0  # in any folder of images that DALI decodes; 0: it decodes no folder
    needs_video_decoder: bool = True  # DALI decodes some video files

    @property
    def uses_dali(self) -> bool:
        return bool(self.capabilities) and self.pyav_share < 1

    def chooses_pyav(self, info: VideoInfo, seed: int, epoch: int, sample_index: int) -> bool:
        """Return whether PyAV decodes a sample in an epoch; drawn from (seed, epoch, sample_index)."""
        if not self.uses_dali or nvdec.reason_refused(info, self.capabilities):
            return True
        # The constant separates this stream of random numbers from the others of the same sample.
        return (
            self.pyav_share > 0
            and np.random.default_rng([seed, epoch, sample_index, random_streams.DECODER]).random() < self.pyav_share
        )


def plan_decoders(
    infos: Sequence[VideoInfo], decoder: str, pyav_share: float | Literal["auto"], dali: DaliSupport, cores: int
) -> DecoderPlan:
    """Plan which decoder gets which video, from data.decoder and data.pyav_share.

    `infos` are the readable videos, `cores` the number of CPU cores that decode beside NVDEC. Raises ValueError if
    data.decoder requires DALI and DALI can decode none of the videos.
    """
    if decoder == "pyav" or decoder == "auto" and not dali.on_gpu:
        return DecoderPlan()
    decodable = [info for info in infos if not nvdec.reason_refused(info, dali.capabilities)]
    if decoder in ("dali", "both") and not decodable:
        reason = dali.problem or _count_reasons(infos, dali.capabilities)
        raise ValueError(
            f"data.decoder={decoder}: DALI decodes none of the {_num_videos(len(infos))} {dali.device_phrase} "
            f"({reason}); use data.decoder=auto or pyav"
        )
    if not decodable:
        return DecoderPlan()
    if decoder == "dali":
        share = 0.0
    elif pyav_share == "auto":
        share_of_all = balanced_pyav_share(decodable, dali.capabilities, cores)
        num_undecodable = len(infos) - len(decodable)  # PyAV decodes these in any case
        share = round(max(0.0, share_of_all * len(infos) - num_undecodable) / len(decodable), 3)
    else:
        share = pyav_share
    folders = [info.num_frames for info in decodable if info.is_image_folder]
    return DecoderPlan(
        dali.capabilities,
        pyav_share=share,
        needs_pyav=share > 0 or len(decodable) < len(infos),
        max_images=max(folders, default=0),
        needs_video_decoder=len(folders) < len(decodable),
    )


def balanced_pyav_share(infos: Sequence[VideoInfo], capabilities: nvdec.Capabilities, cores: int) -> float:
    """Return the share of videos for PyAV at which `cores` and the card's engines finish at the same time.

    Both decode the same frames of a clip, so their speeds depend only on the frame size.
    """
    pixels = float(np.mean([info.coded_width * info.coded_height for info in infos]))
    engines = max((limits.engines for limits in capabilities.values()), default=1)
    pyav_fps = cores * _PYAV_PIXELS_PER_S / pixels
    nvdec_fps = engines * min(_ENGINE_FRAMES_PER_S, _ENGINE_PIXELS_PER_S / pixels)
    return min(round(pyav_fps / (pyav_fps + nvdec_fps), 3), 0.999)  # with 1, NVDEC would not be used at all


def describe_plan(infos: Sequence[VideoInfo], plan: DecoderPlan, decoder: str, dali: DaliSupport) -> str:
    """Return a line that says how many videos each decoder gets, and why."""
    on_gpu = ("NVDEC",) * plan.needs_video_decoder + ("nvJPEG",) * bool(plan.max_images)
    name = f"DALI {' and '.join(on_gpu) if dali.on_gpu else 'CPU'}"
    if not plan.uses_dali:
        if decoder == "pyav":
            return "PyAV, as data.decoder=pyav asks"
        if decoder == "auto" and not dali.on_gpu:
            return "PyAV, which is faster than DALI without a GPU"
        if plan.capabilities:
            return "PyAV, as data.pyav_share=1 asks"
        reason = dali.problem or _count_reasons(infos, dali.capabilities)
        return f"PyAV, since {name} decodes none of the videos ({reason})"
    decodable = [info for info in infos if not nvdec.reason_refused(info, plan.capabilities)]
    line = f"{name} for {_num_videos(len(decodable))} ({', '.join(sorted({info.codec for info in decodable}))})"
    if plan.pyav_share:
        line += f", of which PyAV takes a share of {plan.pyav_share:g}"
    if len(decodable) < len(infos):
        reasons = dali.problem or _count_reasons(infos, plan.capabilities)
        line += f"; PyAV for {len(infos) - len(decodable)} that DALI does not decode {dali.device_phrase} ({reasons})"
    return line


def _num_videos(count: int) -> str:
    return "1 video" if count == 1 else f"{count} videos"


def _count_reasons(infos: Sequence[VideoInfo], capabilities: nvdec.Capabilities) -> str:
    reasons = Counter(reason for info in infos if (reason := nvdec.reason_refused(info, capabilities)))
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
