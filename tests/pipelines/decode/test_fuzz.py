"""Random damage and random text cause only ValueErrors, no crashes and no hangs; memory does not grow. Slow."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.data.annotations import read_entries
from pipelines.data.classes import read_classes
from pipelines.data.dataset import read_class_names, read_list
from pipelines.data.verify import check_video
from pipelines.decode.demuxer import VideoDemuxer
from pipelines.decode.encoder import encode_video
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.trim import trim
from pipelines.sampling.spatial import view_boxes
from pipelines.synthetic import render
from tests.helpers.loaders import make_loader

pytestmark = pytest.mark.slow
many = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = {"h264": {"bframes": 3, "gop": 15}, "hevc": {"bframes": 3, "gop": 15}, "vp9": {"gop": 12}, "mjpeg": {}}


@pytest.fixture(scope="module")
def valid_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    for kind, options in KINDS.items():
        encode_video(folder / kind, render(0, 0, 1, 30, 64, 48), Fraction(30), kind, **options)
    return {kind: (folder / kind).read_bytes() for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@many
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    cut=st.floats(0, 1),
    frames=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    splice=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_decoding_damaged_bytes_raises_only_value_errors(valid_files, kind, changes, cut, frames, splice):
    data = bytearray(valid_files[kind])
    start, end, target = (int(fraction * len(data)) for fraction in splice)
    if len(changes) % 3 == 0:  # copy a part of it to somewhere else
        data[target:target] = data[min(start, end) : max(start, end)]
    for fraction, value in changes:
        data[int(fraction * len(data))] = value
    data = bytes(data[: int(cut * len(data)) if len(changes) % 4 == 1 else len(data)])
    try:
        trimmed, positions = trim(data, frames, timeout=20)
        assert len(positions) == len(frames) and positions.min() >= 0 and trimmed
        with VideoDemuxer(trimmed) as video:
            assert positions.max() < max(len(video.frame_table.rank), len(frames))
    except ValueError:
        pass
    try:
        with VideoDemuxer(data, timeout=20) as video:
            width, height = video.width, video.height
        if width * height < 10**6:
            views = decode_views(data, np.array([frames]), view_boxes(width, height, 32, 32, 1), 32, timeout=20)
            assert views.shape == (1, 3, len(frames), 32, 32)
    except ValueError:
        pass


@many
@given(
    st.one_of(
        st.text(max_size=300),
        st.lists(st.from_regex(r"[a-z/ .,_\t\d\[\]{}\"#-]{0,30}", fullmatch=True), max_size=8).map("\n".join),
        st.from_regex(
            r"(label,youtube_id,time_start,time_end,split\n)"
            r"([a-z\", ]{0,9},[\w-]{0,11},\d{0,3}\.?,\d{0,3},\w{0,5}\n){0,4}",
            fullmatch=True,
        ),
        st.from_regex(r"(\w{1,5})/v_\w{1,5}_g\d\d_c\d\d\.avi( \d{1,2})?\n", fullmatch=True),
    )
)
def test_reading_random_lists_raises_only_value_errors_with_path(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (read_entries, read_list, read_class_names, read_classes):
        try:
            entries = read(str(path))
        except ValueError as error:
            assert str(path) in str(error)
            continue
        assert len(entries) > 0
    try:
        names = read_class_names(path)
        assert all(0 <= video.label < len(names) for video in read_list(path, classes=names))
    except ValueError:
        pass


def test_check_video_reports_damaged_files(valid_files, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(60):
        data = bytearray(valid_files[list(KINDS)[number % 4]])
        data[rng.integers(len(data))] ^= 255
        (tmp_path / "x.mp4").write_bytes(data)
        result = check_video(str(tmp_path / "x.mp4"))
        assert result.broken or result.num_frames > 0


@pytest.mark.parametrize("decoder", ["dali", "pyav"])
def test_loader_does_not_leak_memory_or_file_handles(clips_folder, tmp_path, decoder):
    """Read 2,000 batches from a list with one bad file; nothing grows after the first 500."""
    path = clips_folder(tmp_path, 12)
    path.write_text(path.read_text() + "gone.mp4 0\n")
    loader = make_loader(
        path, f"data.decoder={decoder}", "data.num_workers=1", "data.image_size=16", "data.batch_size=2"
    )

    def measure() -> tuple[float, int]:
        """Return the resident memory in MiB and the number of file handles of all processes."""
        pids = [os.getpid(), *(process.pid for process in loader.decoder.dali.processes)]
        resident = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * 4096 / 2**20
        return resident, sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)

    measurements, count = [], 0
    while count < 2000:
        for _ in loader:
            count += 1
            if count in (500, 1250, 2000):
                measurements.append(measure())
            if count >= 2000:
                break
    (first, handles), _, (last, handles_after) = measurements
    assert last - first < 20, f"{first:.0f} MiB -> {last:.0f} MiB"
    assert handles_after <= handles + 2
