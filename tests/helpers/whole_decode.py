"""Decode whole files with FFmpeg as the reference, and compare everything that decodes parts of a file with it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import av
import numpy as np

from pipelines import storage
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.decode.trim import trim
from pipelines.decode.video_info import VideoInfo, read_video_info


def visible_samples(frame: av.VideoFrame) -> tuple[bytes, ...]:
    """Return the size and the pixel format of a frame, and the visible samples of each plane."""
    planes = [f"{frame.width}x{frame.height} {frame.format.name}".encode()]
    for index, plane in enumerate(frame.planes):
        bits = frame.format.components[index].bits if frame.format.is_planar else frame.format.padded_bits_per_pixel
        row_bytes = -(-plane.width * (-(-bits // 8) * 8 if frame.format.is_planar else bits) // 8)
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height]
        planes.append(rows[:, :row_bytes].tobytes())
    return tuple(planes)


def decode_whole(source: str | Path | bytes) -> list[tuple[bytes, ...]]:
    """Return visible_samples() of all frames as `ffmpeg` gives them; it skips packets that cannot be decoded."""
    frames = []
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
        file.streams.video[0].thread_type = "NONE"
        for packet in file.demux(video=0):
            if packet.size or packet.dts is None:
                try:
                    frames += [visible_samples(frame) for frame in packet.decode()]
                except av.error.FFmpegError:
                    continue
    return frames


def check_against_whole_decode(path: str | Path, draws: int = 4) -> VideoInfo:
    """Compare trimmed and decoded frames of random clips with the whole decode; return the video's record.

    The file is read from its path, from memory and as a member of a tar, with and without the packed frame table.
    """
    path, whole = str(path), decode_whole(path)
    info = read_video_info(path)
    assert not info.error, info.error
    assert info.num_frames == len(whole) > 0
    assert info.proof in ("bitstream", "decoded", "sequential")
    member = _tar_member(Path(path))
    content = Path(path).read_bytes()
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, len(whole) + 2, 5)
        if seed % 2:
            frames = rng.integers(0, len(whole)) + np.arange(6) * rng.integers(1, 5)
        expected = [whole[min(frame, len(whole) - 1)] for frame in frames]
        for source in (path, content, member):
            for table in (info.table, "") if seed < 2 else (info.table,):  # "" proves the same table each time
                _assert_clip(source, table, frames, expected)
    return info


def _assert_clip(source: str | bytes, table: str, frames: np.ndarray, expected: list[tuple[bytes, ...]]) -> None:
    data, positions = trim(source, frames, table=table)
    trimmed = decode_whole(data)
    assert [trimmed[position] for position in positions] == expected
    with open_video(source, table=table) as video:
        num_decoded = 0
        for frame, frame_positions in decode_frames(video, frames):
            assert all(visible_samples(frame) == expected[position] for position in frame_positions)
            num_decoded += len(frame_positions)
        assert num_decoded == len(frames)


def _tar_member(path: Path) -> str:
    """Write the file into a tar between two others, and return the path of that member."""
    tar = path.with_suffix(path.suffix + ".tar")
    with tarfile.open(tar, "w") as members:
        for name in ("before", "it", "behind"):
            members.add(path, f"{name}{path.suffix}")
    with tarfile.open(tar) as members:
        member = members.getmember(f"it{path.suffix}")
    return str(storage.Location(str(tar), member.offset_data, member.size, member.name))
