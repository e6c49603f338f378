"""places: the bytes of files, members and addresses; tables: videos opened without demuxing them, to the bit."""

from __future__ import annotations

import base64
import ctypes
import io
import os
import shutil
import tarfile
import time
from fractions import Fraction
from typing import ClassVar

import av
import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pipelines import storage
from pipelines.data.dataset import Clip
from pipelines.data.metadata import build_index
from pipelines.decode.demuxer import Video
from pipelines.decode.encoder import encode
from pipelines.decode.frame_table import COUNTED, FrameTable, pack, unpack
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.trim import trim
from pipelines.decode.video_info import read_row
from pipelines.synthetic import render


@pytest.fixture(params=["file", "member", "address", "member of an address"])
def stored(request, video, tmp_path):
    """stored(kind): the same video in one of the places; with the plain file's path."""

    def put(kind: str, *shape: int) -> tuple[str, str]:
        file = video(kind, *shape)
        plain = shutil.copy(file, tmp_path / f"{kind}.mp4")
        tar = tmp_path / f"{kind}.tar"
        with tarfile.open(tar, "w") as members:
            members.add(video("vp9", 40), "a/before.mp4")
            members.add(file, "a/it.mp4")
            members.add(video("vp9", 40), "a/behind.mp4")
        with tarfile.open(tar) as members:
            found = members.getmember("a/it.mp4")
        member = storage.member_path(str(tar), found.name, found.offset_data, found.size)
        path = {"file": plain, "member": member, "address": f"file://{plain}"}.get(request.param, f"file://{member}")
        return str(path), str(plain)

    return put


@pytest.mark.parametrize("kind", ["h264_bframes", "hevc", "vp9", "mjpeg"])
def test_a_video_is_the_same_wherever_it_lies(stored, kind):
    path, plain = stored(kind)
    here, there = read_row(plain), read_row(path)
    assert here.table and (here.table, here.num_frames, here.keyframes) == (
        there.table, there.num_frames, there.keyframes)  # fmt: skip
    frames, box = np.array([[3, 40, 41, 70, 70]]), np.array([[0, 0, 64, 80]], np.float32)
    expected = decode_views(plain, frames, box, 32)
    for table in ("", here.table):
        assert trim(path, frames[0], table=table)[1].tolist() == trim(plain, frames[0])[1].tolist()
        assert np.array_equal(decode_views(path, frames, box, 32, table=table), expected)
        assert np.array_equal(decode_views(trim(path, frames[0], table=table)[0],
                                           trim(plain, frames[0])[1][None], box, 32), expected)  # fmt: skip


def test_only_what_a_clip_needs_is_read(stored, monkeypatch):
    path, plain = stored("mjpeg", 200, 160, 128)
    table, size = read_row(plain).table, os.path.getsize(plain)
    read, fetch = [], storage._fetch

    def counted(place, spans):
        read.append(sum(end - start for start, end in spans))
        return fetch(place, spans)

    monkeypatch.setattr(storage, "_fetch", counted)
    monkeypatch.setattr(storage, "_BLOCK", 1 << 12)
    monkeypatch.setattr(storage, "_GAPS", {False: 0, True: 0})
    with Video(path, table=table) as v:
        packets = sum(packet.size for packet in v.packets([30, 31, 33]))
        assert sum(packet.size for packet in v.packets(range(200))) < size
        assert packets < size / 5
    read.clear()
    trim(path, [100, 101, 102], table=table)
    assert 0 < sum(read) < size / 2


def test_packets_that_are_read_have_zeros_behind_them(video):
    """FFmpeg's decoders read on past the end: MPEG-4 decoded wrong pictures now and then without them."""
    path = str(video("h264", 75))
    with Video(path, table=read_row(path).table) as v:
        packets = v.packets(range(75))
        assert all(ctypes.string_at(p.buffer_ptr + p.size, 32) == bytes(32) for p in packets)


def test_a_file_that_has_changed_since_is_refused(video, tmp_path):
    path = str(shutil.copy(video("h264", 75), tmp_path / "x.mp4"))
    table = read_row(path).table
    for kind in ("h264_bframes", "vp9", "mjpeg"):
        shutil.copy(video(kind, 75), path)
        with pytest.raises(ValueError, match="changed since it was indexed"):
            trim(path, [0], table=table)
    shutil.copy(video("h264", 75), path)
    assert trim(path, [0], table=table)
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)
    with pytest.raises(ValueError, match=r"x\.mp4: "):
        trim(path, [0, 74], table=table)


@given(
    st.lists(st.tuples(st.integers(-(2**62), 2**62), *[st.booleans()] * 5), min_size=1, max_size=400),
    st.integers(0, 2**60),
)
def test_a_table_holds_everything_but_the_clock(rows, size):
    times, *flags = (np.array(column) for column in zip(*rows, strict=True))
    table = FrameTable(np.unique(times, return_inverse=True)[1], *flags, proof="decoded")
    found = unpack(pack(table, len(times), size, bool(size % 2), (size % 999, 7)))
    assert found[1:] == (len(times), size, bool(size % 2), (size % 999, 7))
    for name in ("rank", "frames", "is_random_access", "is_closed", "is_reference", "is_output", "is_displayed"):
        assert np.array_equal(getattr(found.table, name), getattr(table, name))
    assert found.table.proof == "decoded"


def test_a_table_of_seek_points_is_held() -> None:
    table = FrameTable(seek_points=((0, 0), (7, 5), (20, 19)), num_counted=40, irregularity=COUNTED, proof="decoded")
    found = unpack(pack(table, 41, 99, False, (64, 48)))
    assert found[1:] == (41, 99, False, (64, 48)) and found.table.keyframes.tolist() == [0, 5, 19]
    for name in ("seek_points", "num_counted", "irregularity", "proof"):
        assert getattr(found.table, name) == getattr(table, name)


@given(st.text(max_size=200) | st.binary(max_size=99).map(lambda b: base64.b85encode(b).decode()))
def test_what_is_no_table_is_refused(text):
    with pytest.raises(ValueError, match="a damaged frame table"):
        unpack(text)


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_ranges_are_the_bytes_of_the_file(tmp_path_factory, content, data):
    file = tmp_path_factory.getbasetemp() / "bytes.tar"
    file.write_bytes(content)
    start = data.draw(st.integers(0, len(content) - 1))
    size = data.draw(st.integers(1, len(content) - start))
    cuts = data.draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)), min_size=1, max_size=20))
    ranges = [(min(cut), max(cut)) for cut in cuts]  # in any order, over each other, twice
    member = storage.member_path(str(file), "a b@1+2#c.mp4", start, size)
    held = content[start : start + size]
    for path in (member, f"file://{member}"):
        assert storage.place_of(path)[1:] == (start, size, "a b@1+2#c.mp4")
        assert storage.read(path) == [held]
        assert storage.read(path, ranges) == [held[a:b] for a, b in ranges]
    sliced = io.BufferedReader(storage.Slice(f"file://{member}", size, block=16), 64)
    at = data.draw(st.integers(0, size))
    assert (sliced.seek(at), sliced.read(), sliced.seek(-1, 2), sliced.read()) == (at, held[at:], size - 1, held[-1:])


def test_reading_goes_on_where_the_system_stops_short(tmp_path, monkeypatch):
    """Linux reads no more than 2 GiB at a time."""
    (tmp_path / "x").write_bytes(bytes(range(256)) * 10)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: real(file, min(size, 7), at))
    assert storage.read(str(tmp_path / "x")) == [bytes(range(256)) * 10]
    with pytest.raises(ValueError, match="ends before byte 2561"):
        storage.read(str(tmp_path / "x"), [(0, 2561)])


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "frag_keyframe+dash"])
def test_fragments_and_lost_indices_are_demuxed_each_time(video, tmp_path, flags):
    """Where pictures lie is not known from the file's head: what the index may know later is not known at opening."""
    path = tmp_path / "x.mp4"
    with av.open(str(video("h264_bframes", 75))) as old, av.open(str(path), "w", options={"movflags": flags}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    row = read_row(str(path))
    assert (row.num_frames, row.proof, unpack(row.table).in_ranges) == (75, "decoded", False)
    assert trim(path, [3, 70])[1].tolist() == trim(video("h264_bframes", 75), [3, 70])[1].tolist()


def test_an_avi_that_lost_its_index_is_demuxed_each_time(tmp_path):
    frames = render(0, 0, 1, 300, 64, 48)
    encode(tmp_path / "x.mp4", frames, Fraction(25), "mjpeg")
    with av.open(str(tmp_path / "x.mp4")) as old, av.open(str(tmp_path / "x.avi"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    whole = (tmp_path / "x.avi").read_bytes()
    assert unpack(read_row(str(tmp_path / "x.avi")).table).in_ranges
    (tmp_path / "cut.avi").write_bytes(whole[: whole.rindex(b"idx1")])
    row = read_row(str(tmp_path / "cut.avi"))
    assert (
        row.num_frames == 300 and not unpack(row.table).in_ranges and len(trim(tmp_path / "cut.avi", [0, 299])[1]) == 2
    )


class Flaky(LocalFileSystem):
    """Fails as often as it is told to; counts what it gives."""

    protocol = "flaky"
    failures: ClassVar[list[Exception]] = []
    given: ClassVar[list[int]] = []

    def cat_file(self, path, start=None, end=None, **kwargs):
        if self.failures:
            raise self.failures.pop()
        self.given.append(0)
        data = super().cat_file(path, start, end, **kwargs)
        self.given[-1] = len(data)
        return data


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError("by peer"), KeyError("secret")])
def test_what_the_network_fails_at_is_tried_again(video, tmp_path, error):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    file = video("h264", 75)
    clips = [Clip(f"flaky://{file}", 0)]
    Flaky.failures.append(error)
    (row,) = build_index(clips, tmp_path / "i.jsonl")
    assert row.error and not row.missing and row.num_frames == 0
    Flaky.given.clear()
    (row,) = build_index(clips, tmp_path / "i.jsonl")
    assert (row.error, row.num_frames) == ("", 75) and Flaky.given == [file.stat().st_size], "fetched once"
    build_index(clips, tmp_path / "i.jsonl")
    assert len(Flaky.given) == 1, "and not again"


def test_time_is_kept_where_packets_are_read_by_ranges(video, monkeypatch):
    path = str(video("h264", 75))
    table, real = read_row(path).table, storage.read
    monkeypatch.setattr(storage, "read", lambda *a: time.sleep(0.2) or real(*a))
    with pytest.raises(ValueError, match=r"not read within 0\.1 seconds"):
        trim(path, [3], 0.1, table)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_is_not_there_is_named(tmp_path, scheme):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "short.tar").write_bytes(bytes(1000))
    for name, reason in {
        "none.mp4": "no such file", "empty.mp4": "empty file", "short.tar#a.mp4@900+200": "ends before byte",
        "none.tar#a.mp4@0+9": "no such file",
    }.items():  # fmt: skip
        path = f"{scheme}{tmp_path}/{name}"
        row = read_row(path)
        assert reason in row.error or "not a readable video" in row.error and ".tar#" in path, row.error
        assert "No such file" not in row.error and row.missing == (reason == "no such file")
    with pytest.raises(ValueError, match="ends before byte 200"):
        storage.read(f"{scheme}{tmp_path}/short.tar#a.mp4@900+200")
    with pytest.raises(ValueError, match="nosuch://a/b.mp4: "):
        trim("nosuch://a/b.mp4", [0])


def test_joining_and_relating_paths():
    assert storage.join("s3://bucket/k400/", "train/a.mp4") == "s3://bucket/k400/train/a.mp4"
    assert storage.join("s3://bucket", "/data/a.mp4") == "/data/a.mp4"
    assert storage.join("/data", "gs://b/a.mp4") == "gs://b/a.mp4"
    assert storage.join("", "a.mp4") == "a.mp4" and storage.join("/data/", "a/b.mp4") == "/data/a/b.mp4"
    assert storage.relative("/data/x/a.mp4", "/data") == "x/a.mp4"
    assert storage.relative("/data/t-01.tar#n01/a.mp4@512+9", "/data") == "t-01/n01/a.mp4"
    assert storage.relative("s3://b/t/01.tar#a.mp4@512+9", "s3://b/t") == "01/a.mp4"
    assert storage.relative("/data/t.tar#../../etc/a.mp4@512+9", "/data") == "t/etc/a.mp4"
