"""Compare trimmed with whole videos in DALI's decoder: for `python -m pipelines.index LIST --verify`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.dali_probe import probe_dali
from pipelines.data.verify import VERSION, CheckResult, draw_clips
from pipelines.decode.bitstream.parameter_sets import SPS
from pipelines.decode.nvdec import reason_refused
from pipelines.decode.trim import trim
from pipelines.decode.video_info import VideoInfo
from pipelines.storage import read_bytes


def verify_with_dali(infos: Sequence[VideoInfo]) -> list[CheckResult]:
    """Decode clips with DALI from the trimmed and from the whole file; `broken` says where they differ.

    Returns the results of the videos that DALI decodes on this machine. Training leaves the others to PyAV.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dali = probe_dali(device)
    device_id = 0 if dali.on_gpu else None
    videos = [info for info in infos if not info.error and not info.is_image_folder]  # an image is decoded by itself
    decodable = {info.path: info for info in videos if not reason_refused(info, dali.capabilities)}
    results = []
    decoder = _Decoder(device_id)
    for info in decodable.values():
        try:
            clips = draw_clips(info.num_frames, draws=1)
            differing = [number for clip in clips for number in _differing_frames(decoder, info, clip)]
        except RuntimeError:  # DALI refuses this video
            decoder = _Decoder(device_id)  # a pipeline that failed cannot be used again
            continue
        broken = ""
        if differing:
            broken = (
                f"{len(differing)} frames of clips differ between DALI's decodes of the trimmed and of the "
                f"whole file, the first is frame {min(differing)}"
            )
        results.append(
            CheckResult(
                path=info.path,
                size=info.size,
                mtime_ns=info.mtime_ns,
                broken=broken,
                num_frames=info.num_frames,
                version=VERSION,
            )
        )
    return results


def _differing_frames(decoder: _Decoder, info: VideoInfo, clip: np.ndarray) -> list[int]:
    """Return the frame numbers of a clip at which the two decodes differ."""
    numbers = np.unique(np.minimum(clip, info.num_frames - 1))
    is_uncropped = info.codec in SPS  # SampleSource gives DALI such files with all coded pixels shown
    coded_size = (info.coded_width, info.coded_height) if is_uncropped else None
    data, positions = trim(info.path, numbers, table=info.table, coded_size=coded_size)
    from_trimmed = decoder.decode(np.frombuffer(data, np.uint8), positions)
    from_whole = decoder.decode(np.frombuffer(read_bytes(info.path), np.uint8), numbers)
    height, width = from_whole.shape[1:3]
    is_equal = (from_trimmed[:, :height, :width] == from_whole).all(axis=(1, 2, 3))
    return numbers[~is_equal].tolist()


class _Decoder:
    """DALI's decoder of one video at a time, on a card or on the CPU (None)."""

    def __init__(self, device_id: int | None):
        self._inputs: tuple[np.ndarray, np.ndarray] = (np.zeros(1, np.uint8), np.zeros(1, np.int32))

        @pipeline_def(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True)
        def decode() -> object:
            encoded, frames = fn.external_source(
                lambda: [[array] for array in self._inputs],
                num_outputs=2,
                dtype=[types.UINT8, types.INT32],
                ndim=[1, 1],
            )
            return fn.decoders.video(encoded, frames=frames, device="cpu" if device_id is None else "mixed")

        self._pipeline: Pipeline = decode()

    def decode(self, data: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Decode frames, ascending, of a video file: (T, H, W, 3) uint8. Raises RuntimeError if DALI refuses it."""
        self._inputs = data, frames.astype(np.int32)
        (decoded,) = self._pipeline.run()
        return np.array(decoded.as_cpu()[0])
