"""storage: reading files, tar members and remote files; opening videos from stored frame tables, bit for bit."""

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

from pipelines import av_input, storage
from pipelines.av_input import RemoteFile
from pipelines.data.dataset import VideoEntry
from pipelines.data.metadata import build_index
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.encoder import encode_video
from pipelines.decode.frame_table import COUNTED, FrameTable, StoredTable, pack_frame_table, unpack_frame_table
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.trim import trim
from pipelines.decode.video_info import read_video_info
from pipelines.synthetic import render


def copy_packets(source: av.container.InputContainer, target: av.container.OutputContainer) -> None:
    """Copy the packets of a video without decoding them."""
    stream = target.add_stream_from_template(source.streams.video[0])
    for packet in source.demux(video=0):
        if packet.size:
            packet.stream = stream
            target.mux(packet)


@pytest.fixture(params=["file", "member", "address", "member of an address"])
def stored(request, video, tmp_path):
    """stored(kind): the path of a video in one kind of storage, and the path of the same plain file."""

    def store(kind: str, *shape: int) -> tuple[str, str]:
        file = video(kind, *shape)
        plain = shutil.copy(file, tmp_path / f"{kind}.mp4")
        tar = tmp_path / f"{kind}.tar"
        with tarfile.open(tar, "w") as members:
            members.add(video("vp9", 40), "a/before.mp4")
            members.add(file, "a/it.mp4")
            members.add(video("vp9", 40), "a/behind.mp4")
        with tarfile.open(tar) as members:
            info = members.getmember("a/it.mp4")
        member = str(storage.Location(str(tar), info.offset_data, info.size, info.name))
        path = {"file": plain, "member": member, "address": f"file://{plain}"}.get(request.param, f"file://{member}")
        return str(path), str(plain)

    return store


@pytest.mark.parametrize("kind", ["h264_bframes", "hevc", "vp9", "mjpeg"])
def test_video_is_the_same_in_every_storage(stored, kind):
    path, plain = stored(kind)
    actual, expected = read_video_info(path), read_video_info(plain)
    assert expected.table
    for name in ("table", "num_frames", "keyframes"):
        assert getattr(actual, name) == getattr(expected, name)
    frames, box = np.array([[3, 40, 41, 70, 70]]), np.array([[0, 0, 64, 80]], np.float32)
    expected_views = decode_views(plain, frames, box, 32)
    expected_positions = trim(plain, frames[0])[1]
    for table in ("", expected.table):
        data, positions = trim(path, frames[0], table=table)
        assert positions.tolist() == expected_positions.tolist()
        assert np.array_equal(decode_views(path, frames, box, 32, table=table), expected_views)
        assert np.array_equal(decode_views(data, positions[None], box, 32), expected_views)


def test_trim_reads_only_the_bytes_that_a_clip_needs(stored, monkeypatch):
    path, plain = stored("mjpeg", 200, 160, 128)
    table, size = read_video_info(plain).table, os.path.getsize(plain)
    bytes_read, fetch = [], storage.fetch_spans

    def counting_fetch(location, spans):
        bytes_read.append(sum(end - start for start, end in spans))
        return fetch(location, spans)

    monkeypatch.setattr(storage, "fetch_spans", counting_fetch)
    monkeypatch.setattr(av_input, "_REMOTE_BLOCK", 1 << 12)
    monkeypatch.setattr(storage, "_MAX_GAP_LOCAL", 0)
    monkeypatch.setattr(storage, "_MAX_GAP_REMOTE", 0)
    with VideoDemuxer(path, table=table) as video:
        packet_bytes = sum(packet.size for packet in video.packets([30, 31, 33]))
        assert sum(packet.size for packet in video.packets(range(200))) < size
        assert packet_bytes < size / 5
    bytes_read.clear()
    trim(path, [100, 101, 102], table=table)
    assert 0 < sum(bytes_read) < size / 2


def test_packets_read_by_ranges_are_padded_with_zeros(video):
    """FFmpeg's decoders read past the end of a packet: without padding MPEG-4 sometimes decoded to wrong frames."""
    path = str(video("h264", 75))
    with VideoDemuxer(path, table=read_video_info(path).table) as demuxer:
        packets = demuxer.packets(range(75))
        assert all(ctypes.string_at(packet.buffer_ptr + packet.size, 32) == bytes(32) for packet in packets)


def test_trim_refuses_a_file_that_changed_after_it_was_indexed(video, tmp_path):
    path = str(shutil.copy(video("h264", 75), tmp_path / "x.mp4"))
    table = read_video_info(path).table
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
def test_packed_frame_table_keeps_everything_but_the_times(rows, size):
    times, *flags = (np.array(column) for column in zip(*rows, strict=True))
    table = FrameTable(np.unique(times, return_inverse=True)[1], *flags, proof="decoded")
    stored = unpack_frame_table(pack_frame_table(StoredTable(table, len(times), size, bool(size % 2), (size % 999, 7))))
    assert stored[1:] == (len(times), size, bool(size % 2), (size % 999, 7), None)
    for name in (
        "rank",
        "packet_of_frame",
        "is_random_access",
        "is_closed",
        "is_reference",
        "is_output",
        "is_displayed",
    ):
        assert np.array_equal(getattr(stored.table, name), getattr(table, name))
    assert stored.table.proof == "decoded"


def test_packed_frame_table_keeps_seek_points() -> None:
    table = FrameTable(seek_points=((0, 0), (7, 5), (20, 19)), num_counted=40, irregularity=COUNTED, proof="decoded")
    stored = unpack_frame_table(pack_frame_table(StoredTable(table, 41, 99, False, (64, 48))))
    assert stored[1:] == (41, 99, False, (64, 48), None) and stored.table.keyframes.tolist() == [0, 5, 19]
    for name in ("seek_points", "num_counted", "irregularity", "proof"):
        assert getattr(stored.table, name) == getattr(table, name)


@given(st.text(max_size=200) | st.binary(max_size=99).map(lambda b: base64.b85encode(b).decode()))
def test_unpack_refuses_text_that_is_not_a_frame_table(text):
    with pytest.raises(ValueError, match="a damaged frame table"):
        unpack_frame_table(text)


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_read_ranges_returns_the_bytes_of_the_file(tmp_path_factory, content, data):
    file = tmp_path_factory.getbasetemp() / "bytes.tar"
    file.write_bytes(content)
    start = data.draw(st.integers(0, len(content) - 1))
    size = data.draw(st.integers(1, len(content) - start))
    cuts = data.draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)), min_size=1, max_size=20))
    ranges = [(min(cut), max(cut)) for cut in cuts]  # in any order, overlapping, repeated
    member = str(storage.Location(str(file), start, size, "a b@1+2#c.mp4"))
    expected = content[start : start + size]
    for path in (member, f"file://{member}"):
        assert storage.parse_location(path)[1:] == (start, size, "a b@1+2#c.mp4")
        assert str(storage.parse_location(path)) == path
        assert storage.read_bytes(path) == expected
        assert storage.read_ranges(path, ranges) == [expected[first:last] for first, last in ranges]
    remote = io.BufferedReader(RemoteFile(f"file://{member}", size, block=16), 64)
    offset = data.draw(st.integers(0, size))
    assert remote.seek(offset) == offset and remote.read() == expected[offset:]
    assert remote.seek(-1, 2) == size - 1 and remote.read() == expected[-1:]


def test_read_continues_after_a_partial_pread(tmp_path, monkeypatch):
    """Linux reads at most 2 GiB per call."""
    (tmp_path / "x").write_bytes(bytes(range(256)) * 10)
    real_pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: real_pread(file, min(size, 7), offset))
    assert storage.read_bytes(str(tmp_path / "x")) == bytes(range(256)) * 10
    with pytest.raises(ValueError, match="ends before byte 2561"):
        storage.read_ranges(str(tmp_path / "x"), [(0, 2561)])


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "frag_keyframe+dash"])
def test_fragmented_mp4_is_demuxed_each_time(video, tmp_path, flags):
    """The head of the file does not tell where the packets are, so opening it reveals less than the index knows."""
    path = tmp_path / "x.mp4"
    options = {"movflags": flags}
    with av.open(str(video("h264_bframes", 75))) as source, av.open(str(path), "w", options=options) as target:
        copy_packets(source, target)
    info = read_video_info(str(path))
    assert (info.num_frames, info.proof, unpack_frame_table(info.table).has_byte_ranges) == (75, "decoded", False)
    assert trim(path, [3, 70])[1].tolist() == trim(video("h264_bframes", 75), [3, 70])[1].tolist()


def test_avi_without_index_is_demuxed_each_time(tmp_path):
    frames = render(0, 0, 1, 300, 64, 48)
    encode_video(tmp_path / "x.mp4", frames, Fraction(25), "mjpeg")
    with av.open(str(tmp_path / "x.mp4")) as source, av.open(str(tmp_path / "x.avi"), "w") as target:
        copy_packets(source, target)
    content = (tmp_path / "x.avi").read_bytes()
    assert unpack_frame_table(read_video_info(str(tmp_path / "x.avi")).table).has_byte_ranges
    (tmp_path / "cut.avi").write_bytes(content[: content.rindex(b"idx1")])
    info = read_video_info(str(tmp_path / "cut.avi"))
    assert info.num_frames == 300 and not unpack_frame_table(info.table).has_byte_ranges
    assert len(trim(tmp_path / "cut.avi", [0, 299])[1]) == 2


class FlakyFileSystem(LocalFileSystem):
    """A file system that raises `failures` first and records the size of every read."""

    protocol = "flaky"
    failures: ClassVar[list[Exception]] = []
    read_sizes: ClassVar[list[int]] = []

    def cat_file(self, path, start=None, end=None, **kwargs):
        if self.failures:
            raise self.failures.pop()
        self.read_sizes.append(0)
        data = super().cat_file(path, start, end, **kwargs)
        self.read_sizes[-1] = len(data)
        return data


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError("by peer"), KeyError("secret")])
def test_index_retries_a_remote_file_after_a_network_failure(video, tmp_path, error):
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    file = video("h264", 75)
    videos = [VideoEntry(f"flaky://{file}", 0)]
    FlakyFileSystem.failures.append(error)
    (info,) = build_index(videos, tmp_path / "i.jsonl")
    assert info.error and not info.missing and info.num_frames == 0
    FlakyFileSystem.read_sizes.clear()
    (info,) = build_index(videos, tmp_path / "i.jsonl")
    assert (info.error, info.num_frames) == ("", 75)
    assert FlakyFileSystem.read_sizes == [file.stat().st_size], "fetched once"
    build_index(videos, tmp_path / "i.jsonl")
    assert len(FlakyFileSystem.read_sizes) == 1, "and not again"


def test_trim_by_ranges_obeys_the_timeout(video, monkeypatch):
    path = str(video("h264", 75))
    table, real_read = read_video_info(path).table, storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda *args: time.sleep(0.2) or real_read(*args))
    with pytest.raises(ValueError, match=r"not read within 0\.1 seconds"):
        trim(path, [3], timeout=0.1, table=table)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_missing_empty_and_short_files_are_named_with_the_reason(tmp_path, scheme):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "short.tar").write_bytes(bytes(1000))
    for name, reason in {
        "none.mp4": "no such file",
        "empty.mp4": "empty file",
        "short.tar#a.mp4@900+200": "ends before byte",
        "none.tar#a.mp4@0+9": "no such file",
    }.items():
        path = f"{scheme}{tmp_path}/{name}"
        info = read_video_info(path)
        assert reason in info.error or "not a readable video" in info.error and ".tar#" in path, info.error
        assert "No such file" not in info.error and info.missing == (reason == "no such file")
    with pytest.raises(ValueError, match="ends before byte 200"):
        storage.read_bytes(f"{scheme}{tmp_path}/short.tar#a.mp4@900+200")
    with pytest.raises(ValueError, match="nosuch://a/b.mp4: "):
        trim("nosuch://a/b.mp4", [0])


def test_join_path_and_relative_path_for_folders_tars_and_addresses():
    assert storage.join_path("s3://bucket/k400/", "train/a.mp4") == "s3://bucket/k400/train/a.mp4"
    assert storage.join_path("s3://bucket", "/data/a.mp4") == "/data/a.mp4"
    assert storage.join_path("/data", "gs://b/a.mp4") == "gs://b/a.mp4"
    assert storage.join_path("", "a.mp4") == "a.mp4" and storage.join_path("/data/", "a/b.mp4") == "/data/a/b.mp4"
    assert storage.relative_path("/data/x/a.mp4", "/data") == "x/a.mp4"
    assert storage.relative_path("/data/t-01.tar#n01/a.mp4@512+9", "/data") == "t-01/n01/a.mp4"
    assert storage.relative_path("s3://b/t/01.tar#a.mp4@512+9", "s3://b/t") == "01/a.mp4"
    assert storage.relative_path("/data/t.tar#../../etc/a.mp4@512+9", "/data") == "t/etc/a.mp4"
