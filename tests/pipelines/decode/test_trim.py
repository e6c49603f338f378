"""Trimmed video against whole video: the same pictures bit for bit, for every codec and any list of frames."""

from __future__ import annotations

import functools
import io
import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.decode.bitstream.parameter_sets import read_sps
from pipelines.decode.encoder import encode
from pipelines.decode.frame_table import FrameTable, required_packets
from pipelines.decode.frames import decode_frames
from pipelines.decode.prove import open_video
from pipelines.decode.trim import trim
from pipelines.synthetic import render
from tests.conftest import KINDS

FRAMES = 75
any_frames = st.lists(st.integers(0, FRAMES + 5), min_size=1, max_size=20)  # repeats, any order, past the end
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@functools.lru_cache
def decode_whole(source) -> list[np.ndarray]:
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        container.streams.video[0].thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("kind", KINDS)
@many
@given(frames=any_frames)
def test_trimmed_equals_whole(video, kind, frames):
    path = video(kind, FRAMES)
    whole = decode_whole(path)
    data, positions = trim(path, frames)
    small = decode_whole(data)
    for frame, position in zip(frames, positions, strict=True):
        assert np.array_equal(small[position], whole[min(frame, FRAMES - 1)])


@pytest.mark.parametrize("kind", KINDS)
@many
@given(frames=any_frames)
def test_host_decode_equals_whole(video, kind, frames):
    whole = decode_whole(video(kind, FRAMES))
    seen = []
    with open_video(video(kind, FRAMES)) as v:
        for frame, places in decode_frames(v, frames):
            seen += places
            for place in places:
                assert np.array_equal(frame.to_ndarray(format="rgb24"), whole[min(frames[place], FRAMES - 1)])
    assert sorted(seen) == list(range(len(frames)))


@pytest.mark.parametrize("kind", ["vp9", "mjpeg"])
def test_dali_decodes_the_trimmed_video_as_the_whole_one(video, kind):
    from nvidia.dali import Pipeline, fn, types

    def run(data: np.ndarray, positions) -> np.ndarray:
        pipe = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
        with pipe:
            fed = fn.external_source(
                lambda place: (data, np.asarray(positions, np.int32)), num_outputs=2, batch=False,
                dtype=[types.UINT8, types.INT32], ndim=[1, 1],
            )  # fmt: skip
            pipe.set_outputs(fn.decoders.video(fed[0], frames=fed[1], device="cpu", pad_mode="edge"))
        return np.array(pipe.run()[0][0])

    path = video(kind, FRAMES)
    rng = np.random.default_rng(0)
    for _ in range(8):
        frames = rng.integers(0, FRAMES, 6)
        data, positions = trim(path, frames)
        whole = run(np.fromfile(path, np.uint8), frames)
        assert np.array_equal(run(np.frombuffer(data, np.uint8), positions), whole)


def test_trimming_saves_what_it_claims(video):
    """A clip late in the file costs its own group of pictures and no unreferenced picture that was not asked for."""
    with open_video(video("h264_bframes", FRAMES)) as v:
        keep, _ = required_packets(v.frame_table, [64, 68, 72])
        assert keep.min() >= 60, "nothing before the group's key picture"
        unwanted = set(keep) - set(v.frame_table.frames[[64, 68, 72]])
        assert v.frame_table.is_reference[sorted(unwanted)].all()
        assert (~v.frame_table.is_reference).sum() > FRAMES // 3, "the file has unreferenced pictures"
    data, _ = trim(video("vp9", FRAMES), [70])
    assert len(data) < video("vp9", FRAMES).stat().st_size / 3


def test_bytes_and_path_are_the_same(video):
    path = video("h264_bframes", FRAMES)
    a, b = trim(path, [5, 40]), trim(path.read_bytes(), [5, 40])
    assert a[0] == b[0] and np.array_equal(a[1], b[1])


def test_keyframes_and_openness(video):
    expected = {"vp9": 12, "h264": 30, "h264_bframes": 30, "hevc": 30, "hevc_open": 20, "mjpeg": 1}
    for kind, gop in expected.items():
        with open_video(video(kind, FRAMES)) as v:
            assert v.frame_table.keyframes.tolist() == list(range(0, FRAMES, gop)), kind
            assert v.frame_table.is_closed[v.frame_table.is_random_access][1:].all() == (kind != "hevc_open"), kind
    with open_video(video("h264_open", FRAMES)) as v:  # a recovery point is not taken for an entry
        assert v.frame_table.keyframes.tolist() == [0]
        assert sum(p.is_keyframe for p in v.raw_packets) > 1


def annex_b(source) -> bytes:
    """The same pictures in MPEG-TS: start codes instead of lengths, no edit list, timestamps that do not start at 0."""
    output = io.BytesIO()
    with av.open(str(source)) as a, av.open(output, "w", format="mpegts") as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for packet in a.demux(video=0):
            if packet.size:
                packet.stream = stream
                b.mux(packet)
    return output.getvalue()


@pytest.mark.parametrize("kind", ["h264_bframes", "hevc_open"])
def test_annex_b(video, kind):
    data = annex_b(video(kind, FRAMES))
    whole, (small, positions) = decode_whole(data), trim(data, [3, 50, 71])
    for frame, position in zip([3, 50, 71], positions, strict=True):
        assert np.array_equal(decode_whole(small)[position], whole[frame])
    with open_video(data) as v:
        assert (~v.frame_table.is_reference).any()


def test_frames_below_zero_and_none(video):
    for frames in ([-1], []):
        with pytest.raises(ValueError, match="at least one, none below 0"):
            trim(video("vp9", FRAMES), frames)


# --- the arithmetic alone, on streams drawn by hypothesis -----------------------------------------------------------


@st.composite
def streams(draw) -> tuple[FrameTable, list[set[int]]]:
    """A stream, and for each picture those it is predicted from. Groups are closed or open; an open group's leading
    pictures refer to the group before, its other pictures never do. Who begins to decode at an open group leaves its
    own leading pictures out and must be able to decode all others, so no later group refers to them."""
    entry, closed, reference, pts, parents = [], [], [], [], []
    clock = 0
    for group in range(draw(st.integers(1, 5))):
        is_closed = group == 0 or draw(st.booleans())
        leading = 0 if is_closed else draw(st.integers(0, 3))
        trailing = draw(st.integers(0, 5))
        start = len(pts)
        last = max((j for j in range(start) if entry[j]), default=0)
        before = [i for i in range(last, start) if reference[i] and pts[i] >= pts[last]]
        times = [
            clock + leading,
            *range(clock, clock + leading),
            *range(clock + leading + 1, clock + leading + 1 + trailing),
        ]
        clock += 1 + leading + trailing
        for i, time in enumerate(times):
            number = start + i
            is_leading = 0 < i <= leading
            same = [start + j for j in range(i) if reference[start + j] and (is_leading or not 0 < j <= leading)]
            pool = same + (before if is_leading else [])
            parents.append(set(draw(st.lists(st.sampled_from(pool), max_size=2))) if pool and i else set())
            entry.append(i == 0)
            closed.append(is_closed)
            reference.append(i == 0 or draw(st.booleans()))
            pts.append(time)
            assert number == len(pts) - 1
    n = len(pts)
    always = np.ones(n, bool)
    flags = (np.array(flag) for flag in (entry, closed, reference))
    return FrameTable(np.array(pts), *flags, always, always), parents


@given(streams(), st.data())
def test_all_that_is_needed_is_kept(stream, data):
    table, parents = stream
    n = len(table.rank)
    frames = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6))
    keep, positions = required_packets(table, frames)
    kept = set(keep.tolist())
    shown = keep[np.argsort(table.rank[keep])]
    assert np.array_equal(shown[positions], table.frames[frames])
    todo = set(table.frames[frames].tolist())
    while todo:  # everything a wanted picture is predicted from, directly or not
        picture = todo.pop()
        assert picture in kept
        todo |= parents[picture]
    assert table.is_random_access[keep[0]], "decoding begins at an entry"
    entries = np.flatnonzero(table.is_random_access)
    groups = sorted({int(np.searchsorted(entries, k, "right")) - 1 for k in keep})
    for a, b in itertools.pairwise(groups):
        assert b == a + 1 or table.is_closed[entries[b]], "only a closed group follows a gap"
    assert all(int(entries[g]) in kept for g in groups)


# --- all that is coded is shown -----------------------------------------------------------------------------------


def planes(data: bytes) -> tuple[tuple[int, int], list[list[np.ndarray]]]:
    """The size that a container states, and the planes of each frame."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        size = stream.codec_context.width, stream.codec_context.height
        frames = [
            [np.frombuffer(bytes(p), np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]
            for frame in container.decode(stream)
        ]
    return size, frames


@settings(max_examples=30)
@given(
    st.sampled_from(["h264", "hevc"]), st.integers(36, 120), st.integers(36, 120), st.sampled_from([0, 3]),
    st.booleans(), st.lists(st.integers(0, 20), min_size=1, max_size=4),
)  # fmt: skip
def test_uncropped_trimmed_files_hold_the_same_visible_pixels(codec, half_width, half_height, bframes, annex_b, wanted):
    """Of every size, most of which are no multiples of 16: a decoder's surface is what the container says."""
    width, height = 2 * half_width, 2 * half_height
    file = io.BytesIO()
    encode(file, render(0, 0, 0, 21, width, height), Fraction(30), codec=codec, gop=8, bframes=bframes)
    source = as_annex_b(file.getvalue(), codec) if annex_b else file.getvalue()
    with open_video(source) as video:
        sps = read_sps(codec, video.stream.codec_context.extradata or b"", bytes(video.raw_packets[0]))
    assert sps
    cropped, positions = trim(source, wanted)
    uncropped, same_positions = trim(source, wanted, coded_size=(sps.coded_width, sps.coded_height))
    assert positions.tolist() == same_positions.tolist()
    (size, before), (coded_size, after) = planes(cropped), planes(uncropped)
    assert size == (width, height) and coded_size == (sps.coded_width, sps.coded_height)
    assert len(before) == len(after)
    for frame, whole in zip(before, after, strict=True):
        for plane, coded in zip(frame, whole, strict=True):
            assert np.array_equal(plane, coded[: plane.shape[0], : plane.shape[1]])


def as_annex_b(data: bytes, codec: str) -> bytes:
    """The stream of an MP4 in a transport stream, where start codes stand before its units."""
    output = io.BytesIO()
    with av.open(io.BytesIO(data)) as old, av.open(output, "w", format="mpegts") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return output.getvalue()
