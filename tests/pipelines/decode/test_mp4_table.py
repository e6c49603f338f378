"""Opening an MP4 by its sample table: no demuxer, the same packets, the same frames; otherwise the demuxer."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decode import demuxer
from pipelines.decode.bitstream import parameter_sets
from pipelines.decode.bitstream.bit_reader import BitReader, rbsp
from pipelines.decode.bitstream.parameter_sets import stored_units
from pipelines.decode.frame_table import unpack_frame_table
from pipelines.decode.frames import decode_frames
from pipelines.decode.mp4_table import SampleTable, read_sample_table
from pipelines.decode.prove import open_video
from pipelines.decode.video_info import read_video_info
from pipelines.synthetic import render
from tests.helpers.mp4_boxes import box, build_mp4, encode_stream, full_box
from tests.helpers.videos import write_video


def decode_all(path: str, table: str = "") -> list[np.ndarray]:
    with open_video(path, table=table) as video:
        numbers = np.arange(video.frame_table.num_frames)
        return [frame.to_ndarray() for frame, _ in decode_frames(video, numbers)]


@pytest.mark.parametrize("encoder", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
def test_frames_of_a_file_opened_by_its_sample_table_are_those_of_the_demuxer(tmp_path, monkeypatch, encoder):
    path = str(write_video(tmp_path / "v.mp4", encoder, 96, 80))
    info = read_video_info(path)
    expected = decode_all(path)
    monkeypatch.setattr(demuxer, "open_container", None)  # raises TypeError if it is called
    assert np.array_equal(decode_all(path, info.table), expected) and len(expected) == 24


def without_vui(path: Path) -> bytes:
    """Return an MP4 of H.264 whose SPS says nothing about reordering; its unit ends with zeros instead."""
    data = path.read_bytes()
    with av.open(str(path)) as file:
        (sps,) = [
            unit for unit in stored_units("h264", file.streams.video[0].codec_context.extradata) if unit[0] & 31 == 7
        ]
    assert data.count(sps) == 1
    plain = rbsp(sps)
    bits = BitReader(plain, 8)
    parameter_sets._parse_h264_sps(bits)
    position = 8 * len(plain) - bits._left  # of vui_parameters_present_flag
    kept = int.from_bytes(plain, "big") >> (8 * len(plain) - position)
    stopped = (kept << 2 | 1) << (8 * len(sps) - position - 2)  # the flag is 0, and then comes the stop bit
    return data.replace(sps, stopped.to_bytes(len(sps), "big"))


def test_h264_that_does_not_state_its_reordering_loses_no_frame(video, tmp_path, monkeypatch):
    """FFmpeg guesses from what it has decoded so far; a decoder that has decoded nothing would drop frames."""
    path = tmp_path / "v.mp4"
    path.write_bytes(without_vui(video("h264_bframes", 60)))
    info = read_video_info(str(path))
    assert info.proof == "bitstream" and unpack_frame_table(info.table).sample_table
    expected = decode_all(str(video("h264_bframes", 60)))
    monkeypatch.setattr(demuxer, "open_container", None)
    assert np.array_equal(decode_all(str(path), info.table), expected) and len(expected) == 60


@pytest.mark.parametrize("first_is_black", [False, True])
def test_file_whose_container_alone_states_its_colors_is_opened_by_the_demuxer(tmp_path, first_is_black):
    """The frames would be converted with another matrix if the decoder did not see the container. Black shows none."""
    frames = list(render(0, 0, 0, 10, 96, 80))
    if first_is_black:
        frames[0] = np.zeros_like(frames[0])
    stream = encode_stream(frames)
    plain, colored = tmp_path / "plain.mp4", tmp_path / "colored.mp4"
    plain.write_bytes(build_mp4(stream))
    nclx = box(b"colr", b"nclx", struct.pack(">HHHB", 1, 1, 1, 0))
    entry = stream.entry[:4] and box(stream.entry[4:8], stream.entry[8:], nclx)
    colored.write_bytes(build_mp4(stream, entries=[entry]))
    assert read_video_info(str(colored)).colorspace == "bt709" and not read_video_info(str(plain)).colorspace
    tables = [unpack_frame_table(read_video_info(str(path)).table).sample_table for path in (plain, colored)]
    assert tables[0] and not tables[1]


def test_changed_or_missing_file_is_an_error_with_its_path(video, tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(video("h264", 40).read_bytes())
    table = read_video_info(str(path)).table
    path.write_bytes(video("h264", 75).read_bytes())
    with pytest.raises(ValueError, match="v.mp4: the file has changed since it was indexed"):
        open_video(str(path), table=table)
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="v.mp4: the file has changed since it was indexed"):
        open_video(str(path), table=table)
    path.unlink()
    with pytest.raises(ValueError, match="v.mp4: no such file"):
        open_video(str(path), table=table)


@given(st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=5), min_size=1, max_size=9), st.booleans())
def test_packets_of_chunks_anywhere_in_the_file_are_found(chunks, wide):
    """Chunks are placed in reverse order, with gaps; equal counts of neighbors share an entry of stsc."""
    offsets = [10_000 * (len(chunks) - number) for number in range(len(chunks))]
    expected = [
        (offset + sum(sizes[:i]), offset + sum(sizes[: i + 1]))
        for offset, sizes in zip(offsets, chunks, strict=True)
        for i in range(len(sizes))
    ]
    runs = [(n + 1, len(sizes), 1) for n, sizes in enumerate(chunks) if not n or len(sizes) != len(chunks[n - 1])]
    sizes = [size for chunk in chunks for size in chunk]
    content = b"".join(
        [
            full_box(b"stsd", struct.pack(">I", 1), box(b"avc1", b"configuration")),
            full_box(b"stsc", struct.pack(">I", len(runs)), *(struct.pack(">3I", *run) for run in runs)),
            full_box(b"stsz", struct.pack(f">{2 + len(sizes)}I", 0, len(sizes), *sizes)),
            full_box(
                b"co64" if wide else b"stco",
                struct.pack(f">I{len(offsets)}{'Q' if wide else 'I'}", len(offsets), *offsets),
            ),
        ]
    )
    start = content.index(b"configuration")
    table = read_sample_table(content, SampleTable(0, len(content), start, 13))
    assert table.byte_ranges == expected and (table.decoder, table.config) == ("h264", b"configuration")
    with pytest.raises(ValueError, match="no sample table"):
        read_sample_table(content[: len(content) // 2], SampleTable(0, len(content), start, 13))
