"""Baseline loaders that decode in threads on a GPU: torchcodec, PyNvVideoCodec and SPDL.

They deliver the clips that Clipline's source drew, like bench.baselines.loaders. A GPU is used as each library
recommends: one process, one thread and one CUDA stream per decoding session, sessions that are reused for the next
file, and frames that stay on the GPU, where torchvision crops and resizes them.
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

from bench.baselines.clips import DrawnClip, describe_error

BT601 = 6  # SPDL's number for the color matrix of the generated videos
Reader = Callable[[str, Sequence[int]], torch.Tensor]  # frames of a file -> (T, C, H, W) uint8
ReaderClass = Callable[[torch.device, tuple[int, int], int], Reader]  # device, largest (width, height), threads


class TorchcodecCuda:
    """torchcodec's VideoDecoder on a GPU; its decoding sessions return to torchcodec's own cache.

    Frames are located by the container's timestamps, which is faster than torchcodec's scan of the file and exact for
    files of constant frame rate.
    """

    def __init__(self, device: torch.device, max_size: tuple[int, int], num_threads: int):
        from torchcodec.decoders import VideoDecoder, get_nvdec_cache_capacity, set_nvdec_cache_capacity

        set_nvdec_cache_capacity(max(num_threads, get_nvdec_cache_capacity()))
        self.decoder_class, self.device = VideoDecoder, str(device)

    def __call__(self, path: str, frames: Sequence[int]) -> torch.Tensor:
        decoder = self.decoder_class(path, device=self.device, seek_mode="approximate")
        if decoder.cpu_fallback:
            raise RuntimeError(f"torchcodec decodes {path} on the CPU: {decoder.cpu_fallback}")
        return decoder.get_frames_at(list(frames)).data


class PyNvVideoCodec:
    """A SimpleDecoder of PyNvVideoCodec per thread, reconfigured from file to file."""

    def __init__(self, device: torch.device, max_size: tuple[int, int], num_threads: int):
        import PyNvVideoCodec as nvc

        self.nvc, self.device, self.max_size, self.decoder = nvc, device, max_size, None
        names = "PyNvVCException", "PyNvVCExceptionUnsupported"  # they do not derive from RuntimeError
        self.errors = tuple(getattr(nvc, name) for name in names if hasattr(nvc, name))

    def __call__(self, path: str, frames: Sequence[int]) -> torch.Tensor:
        stream = torch.cuda.current_stream(self.device)
        try:
            if self.decoder is None:
                width, height = self.max_size
                self.decoder = self.nvc.SimpleDecoder(
                    path,
                    gpu_id=self.device.index or 0,
                    cuda_stream=stream.cuda_stream,
                    use_device_memory=True,
                    max_width=width,
                    max_height=height,
                    output_color_type=self.nvc.OutputColorType.RGB,
                )
            else:
                self.decoder.reconfigure_decoder(path)
            unique = sorted(set(frames))
            decoded = self.decoder.get_batch_frames_by_index(unique)
        except self.errors as error:
            raise RuntimeError(f"{path}: {error}") from None
        if len(decoded) != len(unique):
            raise RuntimeError(f"{path}: PyNvVideoCodec returned {len(decoded)} of {len(unique)} frames")
        video = torch.stack([torch.from_dlpack(frame) for frame in decoded])  # a copy: the decoder reuses its memory
        return video[[unique.index(frame) for frame in frames]].permute(0, 3, 1, 2)


class SpdlCuda:
    """SPDL's NVDEC decoder, one per thread, which SPDL itself keeps and reuses.

    It decodes every packet that it gets, so it gets those of the clip's time window, from the key frame before it. The
    timestamps of a file are looked up once, as Clipline has them from its index.
    """

    def __init__(self, device: torch.device, max_size: tuple[int, int], num_threads: int):
        import spdl.io

        self.io, self.device = spdl.io, device
        self.timestamps: dict[str, list[float]] = {}
        self.allocator = torch.cuda.caching_allocator_alloc, torch.cuda.caching_allocator_delete

    def __call__(self, path: str, frames: Sequence[int]) -> torch.Tensor:
        if path not in self.timestamps:
            self.timestamps[path] = self.io.demux_video(path).get_timestamps()
        timestamps = self.timestamps[path]
        half_frame = (timestamps[1] - timestamps[0]) / 2 if len(timestamps) > 1 else 0.0
        window = timestamps[min(frames)], timestamps[max(frames)] + half_frame
        packets = self.io.demux_video(path, timestamp=window)
        codec = packets.codec
        packet_times = sorted(packets.get_timestamps(raw=True))
        if codec.name in ("h264", "hevc"):
            packets = self.io.apply_bsf(packets, f"{codec.name}_mp4toannexb")
        stream = torch.cuda.current_stream(self.device).cuda_stream
        config = self.io.cuda_config(device_index=self.device.index or 0, stream=stream, allocator=self.allocator)
        surfaces = self.io.nvdec_decoder(config, codec).decode_packets(packets)
        video = self.io.to_torch(self.io.nv12_to_rgb(surfaces, device_config=config, coeff=BT601))
        if len(video) != len(packet_times):
            raise RuntimeError(f"{path}: SPDL decoded {len(video)} frames of {len(packet_times)} packets")
        return video[[bisect.bisect_left(packet_times, timestamps[frame] - half_frame) for frame in frames]]


# name of the case -> class of its readers, and whether they decode on a GPU
READERS: dict[str, tuple[ReaderClass, bool]] = {
    "torchcodec_cuda": (TorchcodecCuda, True),
    "pynvvideocodec": (PyNvVideoCodec, True),
    "spdl_cuda": (SpdlCuda, True),
}


class ClipReader:
    """Read drawn clips, (C, T, H, W) float32 each, on the device that the case decodes on; any thread may call it."""

    def __init__(
        self,
        case: str,
        device: torch.device,
        *,
        max_size: tuple[int, int],
        num_threads: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        self.reader_class, on_gpu = READERS[case]
        if on_gpu and device.type != "cuda":
            raise RuntimeError(f"{case} needs a GPU")
        self.device = device if on_gpu else torch.device("cpu")
        self.max_size, self.num_threads, self.image_size = max_size, num_threads, image_size
        self.mean, self.std = list(mean), list(std)
        self.local = threading.local()

    def __call__(self, clip: DrawnClip) -> torch.Tensor:
        """Read one clip; it is complete when this returns."""
        if self.device.type == "cpu":
            return self.read(clip)
        if not hasattr(self.local, "stream"):
            self.local.stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self.local.stream):
            video = self.read(clip)
        self.local.stream.synchronize()  # blocks this thread only
        return video

    def read(self, clip: DrawnClip) -> torch.Tensor:
        """Decode, crop, resize, flip and normalize one clip on the current stream."""
        if not hasattr(self.local, "reader"):
            self.local.reader = self.reader_class(self.device, self.max_size, self.num_threads)
        video = tv.crop(self.local.reader(clip.path, clip.frames), *clip.box)
        if self.device.type == "cuda":  # there torchvision would convert bytes to floats anyway, and round the result
            video = tv.to_dtype(video, torch.float32, scale=True)
        video = tv.resize(video, [self.image_size] * 2, InterpolationMode.BILINEAR, antialias=True)
        if clip.mirror:
            video = tv.horizontal_flip(video)
        video = tv.normalize(tv.to_dtype(video, torch.float32, scale=True), self.mean, self.std, inplace=True)
        return video.permute(1, 0, 2, 3)


def iterate_batches(
    clip_reader: ClipReader, drawn_clips: Sequence[DrawnClip], batch_size: int, prefetch: int
) -> Iterator[torch.Tensor]:
    """Yield the full batches once, in order; `prefetch` batches are read in advance, and every thread stays busy."""
    pending: deque[Future[torch.Tensor]] = deque()
    clips = iter(drawn_clips)
    with ThreadPoolExecutor(clip_reader.num_threads, "bench-decoder") as pool:
        try:
            for _ in range(len(drawn_clips) // batch_size):
                for clip in clips:
                    pending.append(pool.submit(clip_reader, clip))
                    if len(pending) >= prefetch * batch_size + clip_reader.num_threads:
                        break
                videos = [pending.popleft().result() for _ in range(batch_size)]
                if clip_reader.device.type == "cuda":
                    for video in videos:  # their memory belongs to the streams of the threads
                        video.record_stream(torch.cuda.current_stream(clip_reader.device))
                yield torch.stack(videos)
        finally:
            for future in pending:
                future.cancel()


def unavailable_reason(clip_reader: ClipReader, clip: DrawnClip) -> str:
    """Return why a library cannot read a clip here; empty if it can."""
    try:
        clip_reader(clip)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return describe_error(error)
    return ""
