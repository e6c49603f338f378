"""Index of bad files: each has a reason, and none stops the index."""

import random
import wave

import av
import numpy as np
import pytest

from pipelines.decode.video_info import read_video_info
from tests.pipelines.index.conftest import assert_bad, write


def test_missing_empty_and_text_files_and_folders_are_unusable(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "folder.mp4").mkdir()
    assert_bad(read_video_info(str(tmp_path / "missing.mp4")), "^no such file$")
    assert_bad(read_video_info(str(tmp_path / "empty.mp4")), "^empty file$")
    assert_bad(read_video_info(str(tmp_path / "text.mp4")), "^not a readable video: Invalid data")
    assert_bad(read_video_info(str(tmp_path / "folder.mp4")), "^a folder without images ")


def test_file_with_audio_only_is_unusable(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name in ("a.wav", "a.mp4"):
        assert_bad(read_video_info(str(tmp_path / name)), r"^no video stream \(the file has: audio\)$")


def test_file_cut_before_its_moov_box_is_unusable(tmp_path):
    write(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.find(b"mdat") < data.find(b"moov")
    (tmp_path / "a.mp4").write_bytes(data[: data.find(b"moov") - 4])
    assert_bad(read_video_info(str(tmp_path / "a.mp4")), "^not a readable video: ")


def test_file_cut_after_its_moov_box_has_the_frames_before_the_cut(tmp_path):
    write(tmp_path / "a.mp4", 12, "h264", gop=4)
    with av.open(str(tmp_path / "a.mp4")) as source:
        with av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    start = data.find(b"mdat")
    assert 0 < data.find(b"moov") < start
    assert read_video_info(str(tmp_path / "b.mp4")).num_frames == 12
    (tmp_path / "b.mp4").write_bytes(data[: start + (len(data) - start) // 2])
    info = read_video_info(str(tmp_path / "b.mp4"))
    assert 4 <= info.num_frames <= 7 and not info.error


def test_file_of_a_codec_unknown_to_ffmpeg_is_unusable(tmp_path):
    write(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.count(b"vp09") == 1
    (tmp_path / "a.mp4").write_bytes(data.replace(b"vp09", b"zz09"))
    assert_bad(read_video_info(str(tmp_path / "a.mp4")), "codec")


def test_metadata_in_another_encoding_does_not_make_a_file_unusable(tmp_path):
    """Titles and handler names in Latin-1 or Shift-JIS are common in old files and not needed."""
    write(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.count(b"VideoHandler") == 1
    (tmp_path / "a.mp4").write_bytes(data.replace(b"VideoHandler", b"Vid\xe9oHandler"))
    info = read_video_info(str(tmp_path / "a.mp4"))
    assert (info.num_frames, info.error) == (12, "")


def test_file_name_is_not_taken_for_a_protocol_or_pattern(tmp_path, monkeypatch):
    """A list in the current folder gives bare names; FFmpeg must not interpret `a:` or `%03d`."""
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.mp4", "a%03d.mp4", "-a.mp4", "ü #?.mp4"):
        write(tmp_path / name)
        info = read_video_info(name)
        assert (info.path, info.num_frames, info.error) == (name, 12, "")


@pytest.mark.parametrize("codec", ["vp9", "h264", "hevc", "mjpeg"])
def test_read_video_info_never_raises_on_a_damaged_file(tmp_path, codec):
    write(tmp_path / "a.mp4", 14, codec, gop=None if codec == "mjpeg" else 5)
    data = (tmp_path / "a.mp4").read_bytes()
    moov = data.find(b"moov") - 4
    rng, num_errors = random.Random(0), 0
    for trial in range(80):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 3, 10])):
            damaged[rng.randrange(moov if trial % 2 else 0, len(data))] = rng.randrange(256)
        (tmp_path / "b.mp4").write_bytes(damaged)
        info = read_video_info(str(tmp_path / "b.mp4"))
        assert bool(info.error) == (info.num_frames == 0)
        num_errors += bool(info.error)
    assert num_errors, "the damage was too mild to test anything"
