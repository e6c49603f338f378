"""trim: frames of trimmed videos are bit-identical to those of the whole, for every codec and list of frames."""

from __future__ import annotations

import functools
import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.decode.bitstream.parameter_sets import read_sps
from pipelines.decode.encoder import encode_video
from pipelines.decode.frame_table import FrameTable, required_packets
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.decode.trim import trim
from pipelines.synthetic import render
from tests.conftest import KINDS

FRAMES = 75
any_frames = st.lists(st.integers(0, FRAMES + 5), min_size=1, max_size=20)  # repeats, any order, past the end
forty_examples = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@functools.lru_cache
def decode_rgb(source: Path | bytes) -> list[np.ndarray]:
    """Decode all frames of a file as RGB."""
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        container.streams.video[0].thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("kind", KINDS)
@forty_examples
@given(frames=any_frames)
def test_trim_frames_match_whole_decode(video, kind, frames):
    path = video(kind, FRAMES)
    whole = decode_rgb(path)
    data, positions = trim(path, frames)
    trimmed = decode_rgb(data)
    for frame, position in zip(frames, positions, strict=True):
        assert np.array_equal(trimmed[position], whole[min(frame, FRAMES - 1)])


@pytest.mark.parametrize("kind", KINDS)
@forty_examples
@given(frames=any_frames)
def test_decode_frames_matches_whole_decode(video, kind, frames):
    whole = decode_rgb(video(kind, FRAMES))
    decoded_positions = []
    with open_video(video(kind, FRAMES)) as demuxer:
        for frame, positions in decode_frames(demuxer, frames):
            decoded_positions += positions
            for position in positions:
                assert np.array_equal(frame.to_ndarray(format="rgb24"), whole[min(frames[position], FRAMES - 1)])
    assert sorted(decoded_positions) == list(range(len(frames)))


@pytest.mark.parametrize("kind", ["vp9", "mjpeg"])
def test_dali_decodes_trimmed_video_as_whole_video(video, kind):
    from nvidia.dali import Pipeline, fn, types

    def decode_with_dali(data: np.ndarray, positions: np.ndarray) -> np.ndarray:
        pipe = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
        with pipe:
            inputs = fn.external_source(
                lambda sample: (data, np.asarray(positions, np.int32)),
                num_outputs=2,
                batch=False,
                dtype=[types.UINT8, types.INT32],
                ndim=[1, 1],
            )
            pipe.set_outputs(fn.decoders.video(inputs[0], frames=inputs[1], device="cpu", pad_mode="edge"))
        return np.array(pipe.run()[0][0])

    path = video(kind, FRAMES)
    rng = np.random.default_rng(0)
    for _ in range(8):
        frames = rng.integers(0, FRAMES, 6)
        data, positions = trim(path, frames)
        whole = decode_with_dali(np.fromfile(path, np.uint8), frames)
        assert np.array_equal(decode_with_dali(np.frombuffer(data, np.uint8), positions), whole)


def test_required_packets_leave_out_other_groups_and_unreferenced_pictures(video):
    """A clip late in the file needs only its own group of pictures, without other unreferenced pictures."""
    with open_video(video("h264_bframes", FRAMES)) as demuxer:
        keep, _ = required_packets(demuxer.frame_table, [64, 68, 72])
        assert keep.min() >= 60, "packets before the group's key picture were kept"
        references = set(keep) - set(demuxer.frame_table.packet_of_frame[[64, 68, 72]])
        assert demuxer.frame_table.is_reference[sorted(references)].all()
        assert (~demuxer.frame_table.is_reference).sum() > FRAMES // 3, "the file has too few unreferenced pictures"
    data, _ = trim(video("vp9", FRAMES), [70])
    assert len(data) < video("vp9", FRAMES).stat().st_size / 3


def test_trim_of_bytes_equals_trim_of_path(video):
    path = video("h264_bframes", FRAMES)
    expected_data, expected_positions = trim(path, [5, 40])
    data, positions = trim(path.read_bytes(), [5, 40])
    assert data == expected_data and np.array_equal(positions, expected_positions)


def test_frame_table_has_expected_keyframes_and_closed_groups(video):
    gop_of_kind = {"vp9": 12, "h264": 30, "h264_bframes": 30, "hevc": 30, "hevc_open": 20, "mjpeg": 1}
    for kind, gop in gop_of_kind.items():
        with open_video(video(kind, FRAMES)) as demuxer:
            assert demuxer.frame_table.keyframes.tolist() == list(range(0, FRAMES, gop)), kind
            assert demuxer.frame_table.is_closed[demuxer.frame_table.is_random_access][1:].all() == (
                kind != "hevc_open"
            ), kind
    with open_video(video("h264_open", FRAMES)) as demuxer:  # recovery points are not entry points
        assert demuxer.frame_table.keyframes.tolist() == [0]
        assert sum(packet.is_keyframe for packet in demuxer.raw_packets) > 1


def as_transport_stream(source: Path | bytes) -> bytes:
    """Remux into MPEG-TS: start codes instead of lengths, no edit list, and times that do not begin at 0."""
    output = io.BytesIO()
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    with av.open(file) as old, av.open(output, "w", format="mpegts") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return output.getvalue()


@pytest.mark.parametrize("kind", ["h264_bframes", "hevc_open"])
def test_trim_reads_annex_b_streams(video, kind):
    data = as_transport_stream(video(kind, FRAMES))
    whole, (trimmed, positions) = decode_rgb(data), trim(data, [3, 50, 71])
    for frame, position in zip([3, 50, 71], positions, strict=True):
        assert np.array_equal(decode_rgb(trimmed)[position], whole[frame])
    with open_video(data) as demuxer:
        assert (~demuxer.frame_table.is_reference).any()


def test_trim_refuses_negative_frames_and_empty_list(video):
    for frames in ([-1], []):
        with pytest.raises(ValueError, match="at least one, none below 0"):
            trim(video("vp9", FRAMES), frames)


# --- required_packets() on streams drawn by hypothesis ----------------------------------------------------------------


@st.composite
def streams(draw) -> tuple[FrameTable, list[set[int]]]:
    """Draw a frame table, and for each packet the packets that it is predicted from.

    Groups are closed or open. The leading pictures of an open group refer to the group before it, its other pictures
    never do. A decoder that begins at an open group skips its leading pictures and must be able to decode all others,
    so no later picture refers to leading ones.
    """
    is_entry, is_closed, is_reference, times, parents = [], [], [], [], []
    clock = 0
    for group in range(draw(st.integers(1, 5))):
        is_closed_group = group == 0 or draw(st.booleans())
        num_leading = 0 if is_closed_group else draw(st.integers(0, 3))
        num_trailing = draw(st.integers(0, 5))
        start = len(times)
        last_entry = max((number for number in range(start) if is_entry[number]), default=0)
        group_before = [
            number for number in range(last_entry, start) if is_reference[number] and times[number] >= times[last_entry]
        ]
        leading_times = range(clock, clock + num_leading)
        trailing_times = range(clock + num_leading + 1, clock + num_leading + 1 + num_trailing)
        group_times = [clock + num_leading, *leading_times, *trailing_times]
        clock += 1 + num_leading + num_trailing
        for index, time in enumerate(group_times):
            is_leading = 0 < index <= num_leading
            same_group = [
                start + earlier
                for earlier in range(index)
                if is_reference[start + earlier] and (is_leading or not 0 < earlier <= num_leading)
            ]
            pool = same_group + (group_before if is_leading else [])
            parents.append(set(draw(st.lists(st.sampled_from(pool), max_size=2))) if pool and index else set())
            is_entry.append(index == 0)
            is_closed.append(is_closed_group)
            is_reference.append(index == 0 or draw(st.booleans()))
            times.append(time)
            assert start + index == len(times) - 1
    always = np.ones(len(times), bool)
    table = FrameTable(
        rank=np.array(times),
        is_random_access=np.array(is_entry),
        is_closed=np.array(is_closed),
        is_reference=np.array(is_reference),
        is_output=always,
        is_displayed=always,
    )
    return table, parents


@given(streams(), st.data())
def test_required_packets_hold_all_references(stream, data):
    table, parents = stream
    num_packets = len(table.rank)
    frames = data.draw(st.lists(st.integers(0, num_packets - 1), min_size=1, max_size=6))
    keep, positions = required_packets(table, frames)
    kept = set(keep.tolist())
    in_presentation_order = keep[np.argsort(table.rank[keep])]
    assert np.array_equal(in_presentation_order[positions], table.packet_of_frame[frames])
    todo = set(table.packet_of_frame[frames].tolist())
    while todo:  # every packet that a requested one is predicted from, directly or not
        packet = todo.pop()
        assert packet in kept
        todo |= parents[packet]
    assert table.is_random_access[keep[0]], "decoding must begin at an entry point"
    entries = np.flatnonzero(table.is_random_access)
    groups = sorted({int(np.searchsorted(entries, packet, "right")) - 1 for packet in keep})
    for group, next_group in itertools.pairwise(groups):
        assert next_group == group + 1 or table.is_closed[entries[next_group]], "only a closed group may follow a gap"
    assert all(int(entries[group]) in kept for group in groups)


# --- removal of cropping ----------------------------------------------------------------------------------------------


def decode_planes(data: bytes) -> tuple[tuple[int, int], list[list[np.ndarray]]]:
    """Return the size that a container states, and the planes of each frame."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        size = stream.codec_context.width, stream.codec_context.height
        frames = [
            [
                np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
                for plane in frame.planes
            ]
            for frame in container.decode(stream)
        ]
    return size, frames


@settings(max_examples=30)
@given(
    st.sampled_from(["h264", "hevc"]),
    st.integers(36, 120),
    st.integers(36, 120),
    st.sampled_from([0, 3]),
    st.booleans(),
    st.lists(st.integers(0, 20), min_size=1, max_size=4),
)
def test_trim_without_cropping_keeps_visible_pixels(codec, half_width, half_height, bframes, is_annex_b, frames):
    """Most of the drawn sizes are not multiples of 16, so the decoder's surface is larger than the visible frame."""
    width, height = 2 * half_width, 2 * half_height
    file = io.BytesIO()
    encode_video(file, render(0, 0, 0, 21, width, height), Fraction(30), codec, gop=8, bframes=bframes)
    source = as_transport_stream(file.getvalue()) if is_annex_b else file.getvalue()
    with open_video(source) as video:
        sps = read_sps(codec, video.stream.codec_context.extradata or b"", bytes(video.raw_packets[0]))
    assert sps
    cropped, positions = trim(source, frames)
    uncropped, uncropped_positions = trim(source, frames, coded_size=(sps.coded_width, sps.coded_height))
    assert uncropped_positions.tolist() == positions.tolist()
    size, cropped_frames = decode_planes(cropped)
    coded_size, uncropped_frames = decode_planes(uncropped)
    assert size == (width, height) and coded_size == (sps.coded_width, sps.coded_height)
    assert len(cropped_frames) == len(uncropped_frames)
    for cropped_planes, uncropped_planes in zip(cropped_frames, uncropped_frames, strict=True):
        for expected, actual in zip(cropped_planes, uncropped_planes, strict=True):
            assert np.array_equal(actual[: expected.shape[0], : expected.shape[1]], expected)
