"""webdataset: tars in WebDataset's layout as lists, and training from them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import prepare, storage
from pipelines.data import webdataset
from pipelines.data.annotations import cache_stem, list_exists
from pipelines.data.dataset import VideoEntry, read_class_names, read_list
from pipelines.data.webdataset import expand_shards
from pipelines.decode.video_info import read_video_info
from pipelines.index import main as index
from pipelines.sample_source import TooManyUnreadableVideos
from tests.helpers.loaders import collect, is_same_stream, make_loader


def write(tar: Path, *members: tuple[str, bytes | str | Path], **options) -> Path:
    with tarfile.open(tar, "w", **options) as file:
        for name, content in members:
            data = content.read_bytes() if isinstance(content, Path) else content
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return tar


@pytest.fixture
def sharded(video, tmp_path):
    """sharded(n, tars): write n videos into tars and a list of the same files; return the pattern and the list."""

    def make(n: int = 7, tars: int = 3, scheme: str = "") -> tuple[str, str]:
        files = [video("vp9", 40, 80 + 8 * (i % 3), 64, i) for i in range(n)]
        for number in range(tars):
            members = []
            for i in range(number, n, tars):
                in_json = f"s{i:02}.json", json.dumps({"label": i % 6, "id": "x"})
                label = (f"s{i:02}.cls", str(i % 6)) if i % 2 else in_json
                members += [(f"s{i:02}.mp4", files[i]), label, (f"s{i:02}.txt", "a caption")]
            write(tmp_path / f"t-{number:03}.tar", *members)
        indices = [i for number in range(tars) for i in range(number, n, tars)]
        (tmp_path / "list.txt").write_text("".join(f"{files[i]} {i % 6}\n" for i in indices))
        return f"{scheme}{tmp_path}/t-{{000..{tars - 1:03}}}.tar", str(tmp_path / "list.txt")

    return make


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("decoder", "scheme"),
    [
        ("pyav", "file://"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("pyav", ""), ("dali", ""), ("dali", "file://")]),
    ],
)
def test_stream_of_shards_is_that_of_single_files(sharded, scheme, decoder):
    tars, plain = sharded(scheme=scheme)
    for split, workers in (("train", 0), ("train", 2), ("val", 0)):
        settings = f"data.decoder={decoder}", f"data.num_workers={workers}"
        expected, actual = (collect(make_loader(path, *settings, split=split), epochs=1) for path in (plain, tars))
        assert expected and is_same_stream(actual, expected)


def member_names(videos: list[VideoEntry]) -> list[str]:
    return [storage.parse_location(video.path).member for video in videos]


def test_labels_are_names_from_cls_and_json(video, tmp_path):
    file = video("vp9", 40)
    tar = write(
        tmp_path / "a.tar",
        ("k/x y.mp4", file),
        ("k/x y.cls", "riding a bike\n"),
        ("-u.b.json", '{"class": "juggling_balls"}'),
        ("-u.b.webm", file),
        ("k/", ""),
        ("readme.txt", "no sample"),
    )
    assert read_class_names(tar) == ["juggling_balls", "riding a bike"]
    videos = read_list(tar, classes=["riding a bike", "juggling balls"])
    assert member_names(videos) == ["k/x y.mp4", "-u.b.webm"] and [video.label for video in videos] == [0, 1]
    assert all(read_video_info(video.path).num_frames == 40 for video in videos)
    assert [video.label for video in read_list(tar, classes=["juggling balls"], subset=True)] == [0]
    with pytest.raises(ValueError, match=r"a\.tar#k/x y\.mp4: label 'riding a bike' is none of"):
        read_list(tar, classes=["juggling balls", "riding a bicycle"])


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_non_ascii_names_in_every_tar_format(video, tmp_path, tar_format):
    stems = ["a" * 60 + "/" + "b" * 90, "plain"] + ["ü" * 70 + "/日本"] * (tar_format != tarfile.USTAR_FORMAT)
    members = [member for s in stems for member in ((f"{s}.mp4", video("h264", 40)), (f"{s}.cls", "3"))]
    videos = read_list(write(tmp_path / "x.tar", *members, format=tar_format))
    assert member_names(videos) == [f"{stem}.mp4" for stem in stems]
    assert {(read_video_info(entry.path).num_frames, entry.label) for entry in videos} == {(40, 3)}


def test_shard_patterns(tmp_path):
    for name in ("t-08", "t-09", "t-10", "v-1"):
        write(tmp_path / f"{name}.tar")
    folder = str(tmp_path)
    three_tars = ["t-08.tar", "t-09.tar", "t-10.tar"]
    assert [Path(tar).name for tar in expand_shards(f"{folder}/t-{{08..10}}.tar")] == three_tars
    assert [Path(tar).name for tar in expand_shards(f"{folder}/t-1?.tar")] == ["t-10.tar"]
    assert [tar.rpartition("/")[2] for tar in expand_shards(f"file://{folder}/t-*.tar")] == three_tars
    assert expand_shards("s3://b/{1..2}/{08..09}.tar") == [f"s3://b/{a}/{b}.tar" for a in "12" for b in ("08", "09")]
    reasons = {f"{folder}/none*.tar": "no such tar", f"{folder}/t-{{10..08}}.tar": "counts downwards"}
    for pattern, reason in reasons.items():
        with pytest.raises(ValueError, match=reason):
            expand_shards(pattern)
    with pytest.raises(ValueError, match=r"t-11\.tar: no such file"):
        read_list(f"{folder}/t-{{11..12}}.tar")
    with pytest.raises(ValueError, match=r"v-1\.tar: no videos in it"):
        read_list(f"{folder}/v-1.tar")
    assert cache_stem(f"{folder}/t-*.tar") == f"{folder}/t-all.tar"
    assert cache_stem("s3://b/k 400/t-{0..9}.tar") == f"{folder}/cache/clipline/s3_b_k_400_t-{{0..9}}.tar"


def test_damaged_tars_are_reported_or_refused(video, tmp_path, capsys):
    file = video("vp9", 40)
    sample = [("a.mp4", file), ("a.cls", "0"), ("b.mp4", file), ("b.cls", "1"), ("c.cls", "1"), ("c.mp4", file)]
    undamaged = write(tmp_path / "undamaged.tar", *sample)
    (tmp_path / "cut.tar").write_bytes(undamaged.read_bytes()[: -file.stat().st_size])
    videos = read_list(tmp_path / "cut.tar")
    read_list(tmp_path / "cut.tar")
    assert capsys.readouterr().err.count("cut.tar: not a whole tar") == 1
    assert [entry.label for entry in videos] == [0, 1, 1] and not read_video_info(videos[1].path).error
    assert read_video_info(videos[2].path).error  # the member that is cut
    refused = {
        "gz.tar": ("not a whole tar without compression", None),
        "text.tar": ("not a whole tar", b"no tar at all" * 100),
        "empty.tar": ("not a whole tar", b""),
        "bare.tar": (r"bare\.tar#b\.mp4.*: no label beside it", [*sample[:3]]),
        "odd.tar": (r"odd\.tar#a\.mp4.*: no label beside it", [sample[0], ("a.json", '["label"]')]),
        "twice.tar": ("two videos of one sample: a.mp4 and a.2.webm", [sample[0], ("a.2.webm", file)]),
    }
    with tarfile.open(tmp_path / "gz.tar", "w:gz") as archive:
        archive.add(file, "a.mp4")
    for name, (reason, content) in refused.items():
        if isinstance(content, list):
            write(tmp_path / name, *content)
        elif content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            read_list(tmp_path / name)


def test_shard_is_read_once_and_again_after_it_changed(sharded, monkeypatch):
    tars, plain = sharded()
    before = read_list(tars)
    monkeypatch.setattr(webdataset, "read_shard", lambda tar: pytest.fail(f"{tar} is read again"))
    assert read_list(tars) == before
    monkeypatch.undo()
    tar = expand_shards(tars)[1]
    write(Path(tar), ("new.mp4", Path(read_list(plain)[0].path)), ("new.cls", "5"))
    after = read_list(tars)
    assert member_names([video for video in after if video not in before]) == ["new.mp4"]
    assert len(after) == len(before) - 2 + 1


def test_index_and_prepare_commands_with_shards(sharded, tmp_path, capsys):
    tars, plain = sharded(4, 2, "file://")
    assert index([tars, "--verify"]) == 0
    assert "4 videos, 4 found" in capsys.readouterr().out
    out = tmp_path / "small"
    assert prepare.main([tars, str(out), "short_side=32", "codec=vp9", "workers=1"]) == 0
    prepared = read_list(out / "t-{000..001}.txt")
    assert [video.label for video in prepared] == [video.label for video in read_list(plain)]
    assert sorted(path.relative_to(out).as_posix() for path in out.glob("*/*.mp4")) == [
        "t-000/s00.mp4",
        "t-000/s02.mp4",
        "t-001/s01.mp4",
        "t-001/s03.mp4",
    ]


def test_shard_that_is_replaced_during_training_is_reported(sharded):
    """Its byte ranges may now contain other videos, so the labels would be wrong."""
    tars, _ = sharded(6, 1)
    loader = make_loader(tars, "data.batch_size=2", "data.max_unreadable=1")
    tar = Path(expand_shards(tars)[0])
    tar.write_bytes(tar.read_bytes())
    with pytest.raises(TooManyUnreadableVideos, match="100 videos in a row cannot be read"):
        next(iter(loader))
    assert loader.source.reason(0) == "the file has changed since it was indexed"
    tar.unlink()
    assert loader.source.reason(0) == "no such file"


def test_relative_paths_of_shards(sharded, tmp_path, monkeypatch):
    sharded(3, 2)
    monkeypatch.chdir(tmp_path.parent)
    for pattern in (f"{tmp_path.name}/t-*.tar", f"./{tmp_path.name}/t-{{000..001}}.tar"):
        assert [read_video_info(video.path).error for video in read_list(pattern, root="elsewhere")] == [""] * 3
    monkeypatch.chdir(tmp_path)
    assert [read_video_info(video.path).error for video in read_list("t-000.tar")] == [""] * 2
    (tmp_path / "[x]{1..2}").mkdir()
    shutil.copy("t-000.tar", "[x]{1..2}/t.tar")
    assert len(read_list("[x]{1..2}/t.tar")) == 2, "the name of an existing file is not a pattern"


def test_list_exists_for_tars_patterns_and_lists(sharded, tmp_path, monkeypatch):
    sharded(3, 2)
    monkeypatch.chdir(tmp_path)
    for path in ("t-000.tar", "t-*.tar", "list.txt", "s3://b/t-*.tar"):
        assert list_exists(path), path
    for path in ("x*.tar", "t-{000..002}.tar", "none.txt"):
        assert not list_exists(path), path


def test_bytes_after_a_damaged_header_are_reported(video, tmp_path, capsys):
    sample = [(f"{n}.{kind}", content) for n in "abc" for kind, content in (("mp4", video("vp9", 40)), ("cls", "1"))]
    undamaged = write(tmp_path / "undamaged.tar", *sample).read_bytes()
    with tarfile.open(tmp_path / "undamaged.tar") as tar:
        header = tar.getmember("b.mp4").offset
    for name, content in {
        "flipped": undamaged[: header + 9] + b"x" + undamaged[header + 10 :],
        "cut": undamaged[: header + 100],
        "two": undamaged + undamaged,
    }.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        assert len(read_list(tmp_path / f"{name}.tar")) == (3 if name == "two" else 1)
        assert "from byte" in capsys.readouterr().err
    without_zeros = undamaged.rstrip(b"\0")
    (tmp_path / "bare.tar").write_bytes(without_zeros + bytes(-len(without_zeros) % 512))
    assert len(read_list(tmp_path / "bare.tar")) == 3
    assert capsys.readouterr().err == "", "the zeros at the end may be missing"


def test_links_within_a_tar_are_followed(video, tmp_path):
    write(tmp_path / "x.tar", ("k/a.mp4", video("vp9", 40)), ("k/a.cls", "1"))
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        for name, kind, target in (
            ("b.mp4", tarfile.LNKTYPE, "k/a.mp4"),
            ("b.cls", tarfile.LNKTYPE, "k/a.cls"),
            ("k/c.mp4", tarfile.SYMTYPE, "../b.mp4"),
            ("k/c.cls", tarfile.SYMTYPE, "a.cls"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    videos = read_list(tmp_path / "x.tar")
    assert member_names(videos) == ["k/a.mp4", "b.mp4", "k/c.mp4"]
    assert [(entry.label, read_video_info(entry.path).num_frames) for entry in videos] == [(1, 40)] * 3
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        info = tarfile.TarInfo("d.mp4")
        info.type, info.linkname = tarfile.SYMTYPE, "/videos/d.mp4"
        tar.addfile(info)
    with pytest.raises(ValueError, match=r"d\.mp4 is a link to /videos/d\.mp4, which is not in it"):
        read_list(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"json": '{"cls": null, "label": 4}'}, "4"),
        ({"json": '{"label": 3.0}'}, "3"),
        ({"json": '{"label": [3]}'}, ""),
        ({"json": '{"label": true}'}, ""),
        ({"json": "[" * 100_000}, ""),
        ({"json": '{"label": 3}', "cls": "7"}, "7"),
        ({"cls": "7", "json": '{"label": 3}'}, "7"),
        ({"cls": "\ufeff5"}, "5"),
    ],
)
def test_label_is_taken_from_cls_or_json(video, tmp_path, labels, expected):
    write(tmp_path / "x.tar", ("a.mp4", video("vp9", 40)), *((f"a.{kind}", text) for kind, text in labels.items()))
    assert webdataset.read_shard(str(tmp_path / "x.tar")).labels == (expected,)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_shard_never_raises_or_hangs_on_a_damaged_tar(video, tmp_path, data):
    content = bytearray(write(tmp_path / "w.tar", ("a.mp4", video("vp9", 40)), ("a.cls", "1")).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.one_of(st.integers(0, 511), st.integers(0, len(content) - 1)))
        content[offset] = data.draw(st.sampled_from([0, 0x20, 0x2D, 0x37, 0x4C, 0x53, 0x78, 0x80, 0xFF]))
    if data.draw(st.booleans()):  # make the checksum of the header valid
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "x.tar").write_bytes(content)
    shard = webdataset.read_shard(str(tmp_path / "x.tar"))
    assert shard.error or shard.videos
    assert all(read_video_info(path).path == path for path in shard.videos)
