"""parameter_sets: the sizes in an SPS are those that FFmpeg's decoder uses."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.decode.bitstream.parameter_sets import nal_units, read_sps
from pipelines.decode.encoder import encode_video

DAMAGED_EXTRADATA = [
    b"",
    b"\1",
    b"\1\x64\0\x1f\xff\xe1",
    b"\1" + b"\xff" * 40,
    b"\0\0\1\x67\x64",
    bytes(50),
    b"\1" + bytes(21) + b"\1\x21\0\1\0\x20\x42\1\1" + bytes(12) + b"\xff\x04" + bytes(17),
]


def open_encoded(codec: str, width: int, height: int, **options: str) -> av.container.InputContainer:
    """Encode two gray frames and open the file; `options` go to the encoder."""
    file = io.BytesIO()
    frames = [np.full((height, width, 3), 90, np.uint8)] * 2
    encode_video(file, frames, Fraction(30), codec=codec, options=options)
    file.seek(0)
    return av.open(file)


@settings(max_examples=25)
@given(st.sampled_from(["h264", "hevc"]), st.integers(33, 200), st.integers(33, 200))
def test_read_sps_gives_coded_size_and_crop_of_decoder(codec: str, half_width: int, half_height: int) -> None:
    width, height = 2 * half_width, 2 * half_height
    with open_encoded(codec, width, height) as container:
        stream = container.streams.video[0]
        sps = read_sps(codec, stream.codec_context.extradata)
        assert sps and not sps.interlaced
        frame = next(container.decode(stream))
        assert (sps.coded_width, sps.coded_height) == (
            stream.codec_context.coded_width,
            stream.codec_context.coded_height,
        )
        assert (frame.width, frame.height) == (width, height)
        assert sps.coded_width - sps.crop_left - sps.crop_right == width
        assert sps.coded_height - sps.crop_top - sps.crop_bottom == height


@pytest.mark.parametrize("chroma", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray"])
def test_read_sps_scales_crop_by_chroma_format(chroma: str) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 70, 52, chroma
        container.mux(stream.encode(av.VideoFrame(70, 52, chroma)))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        sps = read_sps("h264", container.streams.video[0].codec_context.extradata)
    assert sps and (sps.coded_width - sps.crop_right, sps.coded_height - sps.crop_bottom) == (70, 52)


def test_read_sps_of_field_coded_stream_is_interlaced() -> None:
    with open_encoded("h264", 96, 80, **{"x264-params": "interlaced=1"}) as container:
        sps = read_sps("h264", container.streams.video[0].codec_context.extradata)
    assert sps and sps.interlaced and (sps.coded_width, sps.coded_height) == (96, 96)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_read_sps_finds_sps_in_packet(codec: str) -> None:
    """In Annex B streams there is no extradata; the parameter sets precede the first picture."""
    with open_encoded(codec, 98, 82) as container:
        stream = container.streams.video[0]
        to_annex_b = av.bitstream.BitStreamFilterContext(f"{codec}_mp4toannexb", stream)
        packet = bytes(to_annex_b.filter(next(packet for packet in container.demux(stream) if packet.size))[0])
        assert read_sps(codec, b"", packet) == read_sps(codec, stream.codec_context.extradata)
    assert len(list(nal_units(packet, 0))) >= 3


@pytest.mark.parametrize("data", DAMAGED_EXTRADATA)
def test_read_sps_of_damaged_extradata_is_none(data: bytes) -> None:
    for codec in ("h264", "hevc"):
        assert read_sps(codec, data) is None
    assert read_sps("vp9", data) is None
