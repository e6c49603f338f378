"""The candidates of a machine: from its cores, its GPU, and what DALI decodes of the videos."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

import torch

from configs.schema import Data
from pipelines.dali_probe import probe_dali
from pipelines.decode import nvdec
from pipelines.decode.decoder_choice import DaliSupport, balanced_pyav_share, plan_decoders
from pipelines.decode.video_info import VideoInfo
from pipelines.loader import dali_threads
from pipelines.tuning.search import Candidate, Space
from utils.distributed import local_world_size

KEYS = Candidate._fields  # keys of the section data that are tuned
_MAX_WORKERS = 64


def candidate_of(data: Data) -> Candidate:
    """Return the values that a configuration has."""
    return Candidate(**{key: getattr(data, key) for key in KEYS})


def build_space(infos: Sequence[VideoInfo], data: Data, fixed: Collection[str], device: torch.device) -> Space:
    """Return what can be tried on this machine with these videos; keys in `fixed` keep their value."""
    start = candidate_of(data)
    cores = max(1, len(os.sched_getaffinity(0)) // local_world_size())
    dali = probe_dali(device)
    decoders = decoder_choices(infos, start, fixed, dali, cores)
    axes: dict[str, Sequence[dict[str, Any]]] = {"decoder": decoders}
    if "num_workers" not in fixed:
        counts = worker_counts(cores)
        if decoders:  # compared with a worker per core, as few would make all but NVDEC slow
            full: dict[str, Any] = {"num_workers": counts[0]}
            axes["decoder"] = [full, *(choice | full for choice in decoders)]
        axes["num_workers"] = [{"num_workers": number} for number in dict.fromkeys([*counts, start.num_workers])]
    if "dali_threads" not in fixed:
        automatic = dali_threads("auto", plan_decoders(infos, data.decoder, data.pyav_share, dali, cores))
        numbers = [number for number in thread_counts(cores, dali.on_gpu) if number != automatic]
        axes["dali_threads"] = [{"dali_threads": number} for number in numbers]
    if "prefetch" not in fixed:
        axes["prefetch"] = [{"prefetch": number} for number in (1, 2, 4)]
    return Space(start, axes)


def decoder_choices(
    infos: Sequence[VideoInfo], start: Candidate, fixed: Collection[str], dali: DaliSupport, cores: int
) -> list[dict[str, Any]]:
    """Return the decoders, and the shares of both, beside those of `start`."""
    decodable = [info for info in infos if not nvdec.reason_refused(info, dali.capabilities)]
    if not decodable or "pyav_share" in fixed:
        return []
    is_shared = start.decoder == "both" or (start.decoder == "auto" and dali.on_gpu)
    # On a CPU both decoders need the same cores, so no share is better than another by reason.
    estimate = balanced_pyav_share(decodable, dali.capabilities, cores) if dali.on_gpu else 0.5
    shares = sorted({round(min(estimate * factor, 0.9), 3) for factor in ((0.5, 2.0) if dali.on_gpu else (1,))})
    if "decoder" in fixed:
        return [{"pyav_share": share} for share in shares] if is_shared else []
    if dali.on_gpu:  # auto, unlike dali and both, also reads a validation list, or runs on a machine, without NVDEC
        return [{"decoder": "auto", "pyav_share": share} for share in (0.0, *shares, 1.0)]
    choices: list[dict[str, Any]] = [{"decoder": "dali", "pyav_share": "auto"}]
    return choices + [{"decoder": "both", "pyav_share": share} for share in shares]


def worker_counts(cores: int) -> list[int]:
    """Return numbers of worker processes, first one per core, then fewer and more, up to two per core."""
    counts = (cores, cores // 2, cores + cores // 2, 2 * cores, cores // 4)
    return list(dict.fromkeys(min(max(1, count), _MAX_WORKERS) for count in counts))


def thread_counts(cores: int, on_gpu: bool) -> list[int]:
    """Return numbers of DALI threads. On a GPU they wait for NVDEC more than they compute."""
    counts = (4, 8, 16, 32) if on_gpu else (1, cores // 2, cores)
    return sorted({min(max(1, count), max(2 * cores, 4)) for count in counts})
