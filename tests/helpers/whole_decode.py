"""The truth: what FFmpeg gives of a whole file; and a comparison of everything that gives parts of it."""

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
from pipelines.decode.video_info import Row, read_row


def samples_of(frame: av.VideoFrame) -> tuple[bytes, ...]:
    """The samples of each plane that are shown, and the size."""
    planes = [f"{frame.width}x{frame.height} {frame.format.name}".encode()]
    for number, plane in enumerate(frame.planes):
        bits = frame.format.components[number].bits if frame.format.is_planar else frame.format.padded_bits_per_pixel
        width = -(-plane.width * (-(-bits // 8) * 8 if frame.format.is_planar else bits) // 8)
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height]
        planes.append(rows[:, :width].tobytes())
    return tuple(planes)


def decode_whole(source: str | Path | bytes) -> list[tuple[bytes, ...]]:
    """All frames of a file, as `ffmpeg` gives them: a packet that does not decode is passed over."""
    frames = []
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
        file.streams.video[0].thread_type = "NONE"
        for packet in file.demux(video=0):
            if packet.size or packet.dts is None:
                try:
                    frames += [samples_of(frame) for frame in packet.decode()]
                except av.error.FFmpegError:
                    continue
    return frames


def check(path: str | Path, draws: int = 4) -> Row:
    """Compare the frames of a file with the whole decode, for drawn clips and each way to get them; return its row."""
    path, whole = str(path), decode_whole(path)
    row = read_row(path)
    assert not row.error, row.error
    assert row.num_frames == len(whole) > 0
    assert row.proof in ("bitstream", "decoded", "sequential")
    member = _in_a_tar(Path(path))
    content = Path(path).read_bytes()
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, len(whole) + 2, 5)
        if seed % 2:
            frames = rng.integers(0, len(whole)) + np.arange(6) * rng.integers(1, 5)
        expected = [whole[min(frame, len(whole) - 1)] for frame in frames]
        for source in (path, content, member):
            for table in (row.table, ""):
                data, positions = trim(source, frames, table=table)
                small = decode_whole(data)
                assert [small[at] for at in positions] == expected
                with open_video(source, table=table) as video:
                    seen = 0
                    for frame, stands_at in decode_frames(video, frames):
                        assert all(samples_of(frame) == expected[place] for place in stands_at)
                        seen += len(stands_at)
                    assert seen == len(frames)
    return row


def _in_a_tar(path: Path) -> str:
    """The path of the same file as a member of a tar, between others."""
    tar = path.with_suffix(path.suffix + ".tar")
    with tarfile.open(tar, "w") as members:
        for name in ("before", "it", "behind"):
            members.add(path, f"{name}{path.suffix}")
    with tarfile.open(tar) as members:
        found = members.getmember(f"it{path.suffix}")
    return storage.member_path(str(tar), found.name, found.offset_data, found.size)
