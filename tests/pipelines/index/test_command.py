"""Command that indexes a list."""

import subprocess
import sys

from pipelines.data.metadata import summary
from pipelines.decode.video_info import VideoInfo
from pipelines.index import main
from tests.helpers import ROOT


def test_summary_counts_usable_files_only():
    infos = [
        VideoInfo("a", num_frames=3600, fps=1.0, width=4, height=2, codec="vp9", proof="bitstream"),
        VideoInfo("b", num_frames=1800, fps=0.5, width=4, height=4, codec="h264", proof="sequential"),
        VideoInfo("c", error="empty file"),
    ]
    assert summary(infos) == (
        "3 videos, 3 found, 0 missing, 1 unusable, 2.00 hours, frame tables: 1 bitstream, 1 sequential, "
        "5400 frames, codecs: h264, vp9, 2 frame sizes"
    )
    assert summary(infos[2:]) == (
        "1 videos, 1 found, 0 missing, 1 unusable, 0.00 hours, 0 frames, codecs: none, 0 frame sizes"
    )


def test_command_prints_a_summary_and_writes_the_index(videos, tmp_path):
    (tmp_path / "l.txt").write_text("a.mp4 0\nb.mp4 1\nc.mp4 0\n")
    command = [sys.executable, "-m", "pipelines.index", str(tmp_path / "l.txt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "3 videos, 3 found, 0 missing, 0 unusable, 0.00 hours, frame tables: 3 bitstream, 39 frames, "
        "codecs: h264, mjpeg, vp9, 3 frame sizes, 2 classes of 1 to 2 videos (fewest: 1)\n"
    )
    assert len((tmp_path / "l.txt.index.jsonl").read_text().splitlines()) == 3


def test_command_counts_the_videos_of_each_of_their_labels(videos, tmp_path, capsys):
    (tmp_path / "l.txt").write_text("a.mp4 0,1\nb.mp4 1\nc.mp4 1,2,1\n")
    main([str(tmp_path / "l.txt"), "multi_label=yes"])
    assert capsys.readouterr().out.endswith(", 3 classes of 1 to 3 videos (fewest: 0), 1.7 labels per video\n")
    (tmp_path / "l.txt").write_text("a.mp4\nb.mp4\n")
    main([str(tmp_path / "l.txt")])
    assert capsys.readouterr().out.endswith(" frame sizes\n")


def test_command_names_bad_files_and_fails(videos, tmp_path, capsys):
    (tmp_path / "l.txt").write_text("a.mp4 0\nmissing.mp4 1\n")
    assert main([str(tmp_path / "l.txt")]) == 1
    out = capsys.readouterr().out
    assert f"{tmp_path}/missing.mp4: no such file\n" in out
    assert "2 videos, 1 found, 1 missing, 0 unusable, 0.00 hours, frame tables: 1 bitstream, 17 frames" in out


def test_command_reads_files_below_root(videos, tmp_path, capsys):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text("a.mp4 0\n")
    assert main([str(tmp_path / "lists" / "l.txt")]) == 1
    assert main([str(tmp_path / "lists" / "l.txt"), f"root={tmp_path}"]) == 0


def test_command_prints_help_and_names_a_missing_list(tmp_path, capsys):
    assert main([]) == 2 and "python -m pipelines.index LIST" in capsys.readouterr().out
    assert main(["--help"]) == 0 and "python -m pipelines.index LIST" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing.txt")]) == 2
    assert f"{tmp_path}/nothing.txt: no such list or folder" in capsys.readouterr().err


def test_command_refuses_an_unknown_setting(videos, tmp_path, capsys):
    (tmp_path / "l.txt").write_text("a.mp4 0\n")
    assert main([str(tmp_path / "l.txt"), f"rot={tmp_path}"]) == 2
    assert f"rot={tmp_path}: unknown argument; did you mean root=?" in capsys.readouterr().err
