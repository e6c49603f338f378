"""Compare trimmed with whole videos in DALI's decoder: for `python -m pipelines.index LIST --verify`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.dali_probe import probe_dali
from pipelines.data.verify import drawn_clips
from pipelines.decode.bitstream.parameter_sets import SPS
from pipelines.decode.nvdec import reason_refused
from pipelines.decode.trim import trim
from pipelines.decode.video_info import Row
from pipelines.storage import read


def find_differing(rows: Sequence[Row]) -> tuple[int, dict[str, str]]:
    """Decode clips of the videos that DALI decodes on this machine, trimmed and from whole files.

    Returns how many files were compared, and of each that differs the reason. What DALI refuses is left out: a run
    gives it to PyAV.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dali = probe_dali(device)
    chosen = {row.path: row for row in rows if not row.error and not reason_refused(row, dali.capabilities)}
    compared, differing = 0, {}
    decoder = _Decoder(0 if dali.on_gpu else None)
    for path, row in chosen.items():
        try:
            wrong = [number for clip in drawn_clips(row.num_frames, 1) for number in _compare(decoder, row, clip)]
        except RuntimeError:
            decoder = _Decoder(0 if dali.on_gpu else None)  # a pipeline that failed is not to be used again
            continue
        compared += 1
        if wrong:
            differing[path] = (f"{len(wrong)} frames of clips differ between DALI's decodes of the trimmed and of the "
                               f"whole file, the first is frame {min(wrong)}")  # fmt: skip
    return compared, differing


def _compare(decoder: _Decoder, row: Row, clip: np.ndarray) -> list[int]:
    """The frames of a clip that differ."""
    wanted = np.unique(np.minimum(clip, row.num_frames - 1))
    is_uncropped = row.codec in SPS  # as `source.Source` has it
    data, positions = trim(row.path, wanted, table=row.table,
                           coded_size=(row.coded_width, row.coded_height) if is_uncropped else None)  # fmt: skip
    trimmed = decoder.decode(np.frombuffer(data, np.uint8), positions)
    whole = decoder.decode(np.frombuffer(read(row.path)[0], np.uint8), wanted.astype(np.int32))
    height, width = whole.shape[1:3]
    same = (trimmed[:, :height, :width] == whole).all(axis=(1, 2, 3))
    return wanted[~same].tolist()


class _Decoder:
    """DALI's decoder of one video at a time, on a card or on the CPU (None)."""

    def __init__(self, device_id: int | None):
        self._fed: tuple[np.ndarray, np.ndarray] = (np.zeros(1, np.uint8), np.zeros(1, np.int32))

        @pipeline_def(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True)
        def decode() -> object:
            encoded, frames = fn.external_source(
                lambda: [[part] for part in self._fed], num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
            )
            return fn.decoders.video(encoded, frames=frames, device="cpu" if device_id is None else "mixed")

        self._pipeline: Pipeline = decode()

    def decode(self, data: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """(T, H, W, 3) uint8: frames, ascending, of a video file. Raises RuntimeError for what DALI refuses."""
        self._fed = data, frames.astype(np.int32)
        (decoded,) = self._pipeline.run()
        return np.array(decoded.as_cpu()[0])
