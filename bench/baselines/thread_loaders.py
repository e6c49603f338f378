"""The loaders that decode in threads of the main process: on a GPU torchcodec, PyNvVideoCodec and SPDL, on a CPU SPDL.

They deliver the clips that Clipline's source drew, as those of bench.baselines.loaders do. A GPU's decoder is used as
its library recommends: one process, a thread and a CUDA stream for each decoding session, sessions that are kept for
the next file, frames that stay on the GPU and are cropped and resized there, by torchvision.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from bench.baselines.loaders import Drawn

BT601 = 6  # SPDL's number of the matrix that the bench's own files are coded with
Reader = Callable[[str, Sequence[int]], torch.Tensor]  # frames of a file -> (T, C, H, W) uint8


class TorchcodecCuda:
    """torchcodec's VideoDecoder on a GPU, whose decoding sessions go back into torchcodec's own cache.

    Frames are found by the container's times, which is faster than torchcodec's scan of the file and exact for files of
    constant rate.
    """

    def __init__(self, device: torch.device, largest: tuple[int, int], threads: int):
        from torchcodec.decoders import VideoDecoder, get_nvdec_cache_capacity, set_nvdec_cache_capacity

        set_nvdec_cache_capacity(max(threads, get_nvdec_cache_capacity()))
        self.decoder_of, self.device = VideoDecoder, str(device)

    def __call__(self, path: str, frames: Sequence[int]) -> torch.Tensor:
        decoder = self.decoder_of(path, device=self.device, seek_mode="approximate")
        if decoder.cpu_fallback:
            raise RuntimeError(f"torchcodec decodes {path} on the CPU: {decoder.cpu_fallback}")
        return decoder.get_frames_at(list(frames)).data


class PyNvVideoCodec:
    """A SimpleDecoder that is reconfigured from file to file, one for each thread."""

    def __init__(self, device: torch.device, largest: tuple[int, int], threads: int):
        import PyNvVideoCodec as nvc

        self.nvc, self.device, self.largest, self.decoder = nvc, device, largest, None
        names = "PyNvVCException", "PyNvVCExceptionUnsupported"  # which are no RuntimeErrors
        self.errors = tuple(getattr(nvc, name) for name in names if hasattr(nvc, name))

    def __call__(self, path: str, frames: Sequence[int]) -> torch.Tensor:
        stream = torch.cuda.current_stream(self.device)
        try:
            if self.decoder is None:
                width, height = self.largest
                self.decoder = self.nvc.SimpleDecoder(
                    path, gpu_id=self.device.index or 0, cuda_stream=stream.cuda_stream, use_device_memory=True,
                    max_width=width, max_height=height, output_color_type=self.nvc.OutputColorType.RGB,
                )  # fmt: skip
            else:
                self.decoder.reconfigure_decoder(path)
            unique = sorted(set(frames))
            decoded = self.decoder.get_batch_frames_by_index(unique)
        except self.errors as error:
            raise RuntimeError(f"{path}: {error}") from None
        if len(decoded) != len(unique):
            raise RuntimeError(f"{path}: PyNvVideoCodec gave {len(decoded)} frames of {len(unique)}")
        video = torch.stack([torch.from_dlpack(frame) for frame in decoded])  # a copy: the decoder's memory is reused
        return video[[unique.index(frame) for frame in frames]].permute(0, 3, 1, 2)


class Spdl:
    """SPDL's decoding on a CPU, which decodes from key frames on and not further than the last wanted frame."""

    def __init__(self, device: torch.device, largest: tuple[int, int], threads: int):
        import spdl.io

        self.io = spdl.io

    def __call__(self, path: str, frames: Sequence[int]) -> torch.Tensor:
        unique = sorted(set(frames))
        pictures = self.io.sample_decode_video(self.io.demux_video(path), unique)
        video = self.io.to_torch(self.io.convert_frames(pictures))
        return video[[unique.index(frame) for frame in frames]].permute(0, 3, 1, 2)


class SpdlCuda:
    """SPDL's NVDEC decoder, one for each thread, which SPDL itself keeps and reuses.

    It decodes all packets that it is given, so it is given those of the clip's stretch of time, from the key frame
    before on. When a file's frames are shown is looked up once for each file, as Clipline has it from its index.
    """

    def __init__(self, device: torch.device, largest: tuple[int, int], threads: int):
        import spdl.io

        self.io, self.device, self.times = spdl.io, device, dict[str, list[float]]()
        self.memory = torch.cuda.caching_allocator_alloc, torch.cuda.caching_allocator_delete

    def __call__(self, path: str, frames: Sequence[int]) -> torch.Tensor:
        if path not in self.times:
            self.times[path] = self.io.demux_video(path).get_timestamps()
        times = self.times[path]
        half = (times[1] - times[0]) / 2 if len(times) > 1 else 0.0  # of the time that a frame is shown
        packets = self.io.demux_video(path, timestamp=(times[min(frames)], times[max(frames)] + half))
        codec = packets.codec
        shown = sorted(packets.get_timestamps(raw=True))
        if codec.name in ("h264", "hevc"):
            packets = self.io.apply_bsf(packets, f"{codec.name}_mp4toannexb")
        stream = torch.cuda.current_stream(self.device).cuda_stream
        config = self.io.cuda_config(device_index=self.device.index or 0, stream=stream, allocator=self.memory)
        coded = self.io.nvdec_decoder(config, codec).decode_packets(packets)
        video = self.io.to_torch(self.io.nv12_to_rgb(coded, device_config=config, coeff=BT601))
        if len(video) != len(shown):
            raise RuntimeError(f"{path}: SPDL decoded {len(video)} frames of {len(shown)} packets")
        return video[[bisect.bisect_left(shown, times[frame] - half) for frame in frames]]


# name of the case -> what decodes, and whether on a GPU
READERS: dict[str, tuple[Callable[[torch.device, tuple[int, int], int], Reader], bool]] = {
    "torchcodec_cuda": (TorchcodecCuda, True),
    "pynvvideocodec": (PyNvVideoCodec, True),
    "spdl": (Spdl, False),
    "spdl_cuda": (SpdlCuda, True),
}


class Clips:
    """Make drawn clips, (C, T, H, W) float32 each, on the device that the case decodes on; any thread may ask."""

    def __init__(
        self, case: str, device: torch.device, largest: tuple[int, int], threads: int, size: int,
        mean: Sequence[float], std: Sequence[float],
    ):  # fmt: skip
        self.reader_of, on_gpu = READERS[case]
        if on_gpu and device.type != "cuda":
            raise RuntimeError(f"{case} needs a GPU")
        self.device = device if on_gpu else torch.device("cpu")
        self.largest, self.threads, self.size, self.mean, self.std = largest, threads, size, list(mean), list(std)
        self.local = threading.local()

    def __call__(self, clip: Drawn) -> torch.Tensor:
        """Make one clip, finished when this returns."""
        if self.device.type == "cpu":
            return self.make(clip)
        if not hasattr(self.local, "stream"):
            self.local.stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self.local.stream):
            video = self.make(clip)
        self.local.stream.synchronize()  # this thread waits, the others go on
        return video

    def make(self, clip: Drawn) -> torch.Tensor:
        if not hasattr(self.local, "reader"):
            self.local.reader = self.reader_of(self.device, self.largest, self.threads)
        video = tv.crop(self.local.reader(clip.path, clip.frames), *clip.box)
        if self.device.type == "cuda":  # where torchvision would resize bytes as floats, too, and round them
            video = tv.to_dtype(video, torch.float32, scale=True)
        video = tv.resize(video, [self.size] * 2, InterpolationMode.BILINEAR, antialias=True)
        if clip.mirror:
            video = tv.horizontal_flip(video)
        video = tv.normalize(tv.to_dtype(video, torch.float32, scale=True), self.mean, self.std, inplace=True)
        return video.permute(1, 0, 2, 3)


def batches(clips: Clips, drawn: Sequence[Drawn], batch: int, prefetch: int) -> Iterator[torch.Tensor]:
    """Yield the batches in order, once; so many are read ahead, and every thread has a clip to work on."""
    ahead: deque[Future[torch.Tensor]] = deque()
    wanted = iter(drawn)
    with ThreadPoolExecutor(clips.threads, "bench-decoder") as pool:
        try:
            for _ in range(len(drawn) // batch):
                for clip in wanted:
                    ahead.append(pool.submit(clips, clip))
                    if len(ahead) >= prefetch * batch + clips.threads:
                        break
                videos = [ahead.popleft().result() for _ in range(batch)]
                if clips.device.type == "cuda":
                    for video in videos:  # their memory belongs to the threads' streams
                        video.record_stream(torch.cuda.current_stream(clips.device))
                yield torch.stack(videos)
        finally:
            for future in ahead:
                future.cancel()


def missing(clips: Clips, clip: Drawn) -> str:
    """Return why the library cannot be used here; empty if it can."""
    try:
        clips(clip)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return ""
