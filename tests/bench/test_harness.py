"""Test what the benchmarks share: statistics, readings of the system, and the generated videos."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.harness import system, videos
from bench.harness.result_file import summarize, without_folders
from bench.harness.system import cpu_used_by_others
from bench.harness.videos import VideoSettings, encoder_arguments
from pipelines.decode.video_info import read_video_info


def test_summarize_keeps_the_digits_of_small_figures() -> None:
    assert summarize([0.0244, 0.0246])["median"] == 0.0245
    assert summarize([1, 2, 3, 4, 5]) == {"median": 3, "p25": 2, "p75": 4, "samples": [1, 2, 3, 4, 5]}


def test_settings_in_a_result_have_no_folders_of_this_machine() -> None:
    assert without_folders(("/tmp/videos/a.mp4", "b/c.mp4")) == ["a.mp4", "b/c.mp4"]
    assert without_folders(3) == 3 and without_folders("auto") == "auto"


def test_cpu_used_by_others_excludes_own_processes() -> None:
    before = system.Usage(wall_s=0, tree_cpu_s=1, machine_cpu_s=2, read_bytes=0)
    after = system.Usage(wall_s=10, tree_cpu_s=3, machine_cpu_s=9, read_bytes=0)
    assert cpu_used_by_others(before, after) == 0.5
    assert cpu_used_by_others(before, after._replace(tree_cpu_s=9)) == 0, "ticks are coarse"


def test_usage_counts_the_work_of_this_process() -> None:
    before, cpu_s = system.Usage.now(), 0.0
    while cpu_s - before.tree_cpu_s < 0.2:
        sum(range(100_000))
        cpu_s = system.process_tree_cpu_s()
    after = system.Usage.now()
    assert after.tree_cpu_s - before.tree_cpu_s >= 0.2
    assert after.machine_cpu_s - before.machine_cpu_s >= 0.15


def make_nvml() -> SimpleNamespace:
    return SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=80),
        nvmlDeviceGetDecoderUtilization=lambda handle: [50, 1000],
    )


def fail(*_: object) -> None:
    raise RuntimeError("no libnvidia-ml.so.1")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stand in for nvidia-ml-py and a GPU."""
    module = make_nvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    system.load_nvml.cache_clear()
    yield module
    system.load_nvml.cache_clear()


def test_gpu_utilization_is_sampled(nvml: SimpleNamespace) -> None:
    with system.GpuUtilization(torch.device("cuda")) as utilization:
        time.sleep(0.3)
    assert utilization.means() == {"gpu_busy": pytest.approx(0.8), "nvdec_busy": pytest.approx(0.5)}
    assert len(utilization.samples) >= 2
    with system.GpuUtilization(torch.device("cpu")) as utilization:
        time.sleep(0.1)
    assert utilization.means() == {}


def test_gpu_utilization_is_empty_if_the_card_does_not_report_it(nvml: SimpleNamespace) -> None:
    nvml.nvmlDeviceGetHandleByUUID = fail
    with system.GpuUtilization(torch.device("cuda")) as utilization:
        time.sleep(0.1)
    assert utilization.means() == {}


def test_gpu_utilization_is_empty_without_the_driver_library(
    nvml: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    nvml.nvmlInit = fail
    with system.GpuUtilization(torch.device("cuda")) as utilization:
        pass
    assert utilization.means() == {} and "no libnvidia-ml.so.1" in capsys.readouterr().out


def test_mixed_set_has_files_of_several_sizes_and_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "MIXED", ((64, 48, 25, 20), (96, 64, 30, 20)))
    settings = VideoSettings(sets=("mixed",), sizes=("64x48", "32x32"), files=2, length=30, cache=str(tmp_path))
    (paths,) = settings.find_videos().values()
    infos = [read_video_info(path) for path in paths]
    assert [(info.width, info.height, info.fps, info.num_frames) for info in infos] == [
        (64, 48, 25, 25),
        (96, 64, 30, 30),
    ]
    written = Path(paths[0]).stat().st_mtime_ns
    settings.find_videos()
    assert Path(paths[0]).stat().st_mtime_ns == written, "files of an equal call are reused"
    monkeypatch.setattr(videos, "MIXED", ((32, 32, 25, 20),))
    assert read_video_info(settings.find_videos()["mixed"][0]).width == 32


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h264_bframes", {"codec": "h264", "gop": 250, "bframes": 3, "crf": 15}),
        ("vp9_gop4", {"codec": "vp9", "gop": 4, "bframes": 0, "crf": 18}),
        ("hevc_gop1", {"codec": "hevc", "gop": 1, "bframes": 0, "crf": 11}),
    ],
)
def test_set_is_encoded_as_its_name_says(name: str, expected: dict[str, object], tmp_path: Path) -> None:
    assert encoder_arguments(name) == expected
    settings = VideoSettings(sets=(name,), sizes=("64x48",), files=1, length=24, cache=str(tmp_path))
    (path,) = settings.find_videos()[name]
    info = read_video_info(path)
    assert (info.codec, info.num_frames, info.width) == (expected["codec"], 24, 64)
    assert len(info.keyframes) == -(-24 // int(str(expected["gop"])))


def test_prepared_sets_have_folders_of_their_own(tmp_path: Path) -> None:
    sets = ("h264_bframes", "h264_bframes_prepared", "vp9_gop12_prepared")
    paths = VideoSettings(sets=sets, sizes=("64x48",), files=1, length=24, cache=str(tmp_path)).find_videos()
    first, second = paths["h264_bframes_prepared"], paths["vp9_gop12_prepared"]
    assert first != second and all(Path(path).exists() for path in (*first, *second))
    assert read_video_info(first[0]).num_frames == 24 and first != paths["h264_bframes"]
