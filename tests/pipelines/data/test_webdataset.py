"""shards: tars of WebDataset's layout as lists, and training from them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import loading
from pipelines import prepare, storage
from pipelines.data import webdataset
from pipelines.data.annotations import is_there, plain_name
from pipelines.data.dataset import class_names, read_list
from pipelines.decode.video_info import read_row
from pipelines.index import main as index
from pipelines.loader import build_loader
from pipelines.sample_source import Unreadable
from tests.helpers.runs import SMALL
from utils.distributed import World


def write(tar: Path, *members: tuple[str, bytes | str | Path], **more) -> Path:
    with tarfile.open(tar, "w", **more) as file:
        for name, content in members:
            data = content.read_bytes() if isinstance(content, Path) else content
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return tar


@pytest.fixture
def sharded(video, tmp_path):
    """sharded(n, tars): tars of n videos side by side with a list of the same files; their two list names."""

    def make(n: int = 7, tars: int = 3, scheme: str = "") -> tuple[str, str]:
        files = [video("vp9", 40, 80 + 8 * (i % 3), 64, i) for i in range(n)]
        for number in range(tars):
            members = []
            for i in range(number, n, tars):
                label = (
                    (f"s{i:02}.cls", str(i % 6))
                    if i % 2
                    else (f"s{i:02}.json", json.dumps({"label": i % 6, "id": "x"}))
                )
                members += [(f"s{i:02}.mp4", files[i]), label, (f"s{i:02}.txt", "a caption")]
            write(tmp_path / f"t-{number:03}.tar", *members)
        rows = [i for number in range(tars) for i in range(number, n, tars)]
        (tmp_path / "list.txt").write_text("".join(f"{files[i]} {i % 6}\n" for i in rows))
        return f"{scheme}{tmp_path}/t-{{000..{tars - 1:03}}}.tar", str(tmp_path / "list.txt")

    return make


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def batches(path: str, *overrides: str, split: str = "train") -> list[tuple[list[int], torch.Tensor]]:
    cfg = loading.load(None, [
        f"data.train={path}", f"data.val={path}", "data.frames=4", "data.stride=3", "data.size=32", "data.batch=3",
        "data.workers=0", "data.threads=1", *overrides,
    ])  # fmt: skip
    loader = build_loader(cfg, split, [str(i) for i in range(6)], World(), torch.device("cpu"))
    return [(batch.label.tolist(), batch.video.clone()) for batch in loader]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("decoder", ["dali", "host"])
def test_the_stream_is_that_of_the_single_files(sharded, scheme, decoder):
    tars, plain = sharded(scheme=scheme)
    for split, workers in (("train", 0), ("train", 2), ("val", 0)):
        here, there = (
            batches(p, f"data.decoder={decoder}", f"data.workers={workers}", split=split) for p in (plain, tars)
        )
        assert len(here) == len(there) > 0
        assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(here, there, strict=True))


def test_names_and_numbers(video, tmp_path):
    clip = video("vp9", 40)
    tar = write(
        tmp_path / "a.tar",
        ("k/x y.mp4", clip),
        ("k/x y.cls", "riding a bike\n"),
        ("-u.b.json", '{"class": "juggling_balls"}'),
        ("-u.b.webm", clip),
        ("k/", ""),
        ("readme.txt", "no sample"),
    )
    assert class_names(tar) == ["juggling_balls", "riding a bike"]
    found = read_list(tar, classes=["riding a bike", "juggling balls"])
    assert [(storage.place_of(c.path).name, c.label) for c in found] == [("k/x y.mp4", 0), ("-u.b.webm", 1)]
    assert all(read_row(c.path).num_frames == 40 for c in found)
    assert [c.label for c in read_list(tar, classes=["juggling balls"], subset=True)] == [0]
    with pytest.raises(ValueError, match=r"a\.tar#k/x y\.mp4: label 'riding a bike' is none of"):
        read_list(tar, classes=["juggling balls", "riding a bicycle"])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_every_form_of_tar(video, tmp_path, form):
    names = ["a" * 60 + "/" + "b" * 90, "plain"] + ["ü" * 70 + "/日本"] * (form != tarfile.USTAR_FORMAT)
    members = [pair for n in names for pair in ((f"{n}.mp4", video("h264", 40)), (f"{n}.cls", "3"))]
    found = read_list(write(tmp_path / "x.tar", *members, format=form))
    assert [storage.place_of(c.path).name for c in found] == [f"{n}.mp4" for n in names]
    assert {(read_row(c.path).num_frames, c.label) for c in found} == {(40, 3)}


def test_patterns(tmp_path):
    for name in ("t-08", "t-09", "t-10", "v-1"):
        write(tmp_path / f"{name}.tar")
    name = str(tmp_path)
    assert [Path(p).name for p in webdataset.expand(f"{name}/t-{{08..10}}.tar")] == ["t-08.tar", "t-09.tar", "t-10.tar"]
    assert [Path(p).name for p in webdataset.expand(f"{name}/t-1?.tar")] == ["t-10.tar"]
    assert [p.rpartition("/")[2] for p in webdataset.expand(f"file://{name}/t-*.tar")] == [
        "t-08.tar",
        "t-09.tar",
        "t-10.tar",
    ]
    assert webdataset.expand("s3://b/{1..2}/{08..09}.tar") == [
        f"s3://b/{a}/{b}.tar" for a in "12" for b in ("08", "09")
    ]
    for pattern, reason in {f"{name}/none*.tar": "no such tar", f"{name}/t-{{10..08}}.tar": "counts downwards"}.items():
        with pytest.raises(ValueError, match=reason):
            webdataset.expand(pattern)
    with pytest.raises(ValueError, match=r"t-11\.tar: no such file"):
        read_list(f"{name}/t-{{11..12}}.tar")
    with pytest.raises(ValueError, match=r"v-1\.tar: no videos in it"):
        read_list(f"{name}/v-1.tar")
    assert plain_name(f"{name}/t-*.tar") == f"{name}/t-all.tar"
    assert plain_name("s3://b/k 400/t-{0..9}.tar") == f"{name}/cache/clipline/s3_b_k_400_t-{{0..9}}.tar"


def test_damaged_tars(video, tmp_path, capsys):
    clip = video("vp9", 40)
    sample = [("a.mp4", clip), ("a.cls", "0"), ("b.mp4", clip), ("b.cls", "1"), ("c.cls", "1"), ("c.mp4", clip)]
    whole = write(tmp_path / "whole.tar", *sample)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: -clip.stat().st_size])
    found = read_list(tmp_path / "cut.tar")
    read_list(tmp_path / "cut.tar")
    assert capsys.readouterr().err.count("cut.tar: not a whole tar") == 1
    assert [c.label for c in found] == [0, 1, 1] and not read_row(found[1].path).error
    assert read_row(found[2].path).error  # the member that is cut
    refused = {
        "gz.tar": ("not a whole tar without compression", None),
        "text.tar": ("not a whole tar", b"no tar at all" * 100),
        "empty.tar": ("not a whole tar", b""),
        "bare.tar": (r"bare\.tar#b\.mp4.*: no label beside it", [*sample[:3]]),
        "odd.tar": (r"odd\.tar#a\.mp4.*: no label beside it", [sample[0], ("a.json", '["label"]')]),
        "twice.tar": ("two videos of one sample: a.mp4 and a.2.webm", [sample[0], ("a.2.webm", clip)]),
    }
    with tarfile.open(tmp_path / "gz.tar", "w:gz") as file:
        file.add(clip, "a.mp4")
    for name, (reason, content) in refused.items():
        if isinstance(content, list):
            write(tmp_path / name, *content)
        elif content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            read_list(tmp_path / name)


def test_a_shard_is_walked_through_once_and_again_when_it_changes(sharded, monkeypatch):
    tars, plain = sharded()
    first = read_list(tars)
    monkeypatch.setattr(webdataset, "read_shard", lambda tar: pytest.fail(f"{tar} is read again"))
    assert read_list(tars) == first
    monkeypatch.undo()
    tar = webdataset.expand(tars)[1]
    write(Path(tar), ("new.mp4", Path(read_list(plain)[0].path)), ("new.cls", "5"))
    again = read_list(tars)
    assert [storage.place_of(c.path).name for c in again if c not in first] == ["new.mp4"]
    assert len(again) == len(first) - 2 + 1


def test_index_and_prepare_commands(sharded, tmp_path, capsys):
    tars, plain = sharded(4, 2, "file://")
    assert index([tars, "--verify"]) == 0
    assert "4 videos, 4 found" in capsys.readouterr().out
    assert prepare.main([tars, str(tmp_path / "small"), "short=32", "codec=vp9", "workers=1"]) == 0
    prepared = read_list(tmp_path / "small" / "t-{000..001}.txt")
    assert [c.label for c in prepared] == [c.label for c in read_list(plain)]
    assert sorted(p.relative_to(tmp_path / "small").as_posix() for p in (tmp_path / "small").glob("*/*.mp4")) == [
        "t-000/s00.mp4", "t-000/s02.mp4", "t-001/s01.mp4", "t-001/s03.mp4"]  # fmt: skip


def test_a_shard_that_is_replaced_while_training_is_no_silent_fault(sharded, tmp_path):
    """The members' places hold other videos: their labels would be wrong."""
    tars, _ = sharded(6, 1)
    cfg = loading.load(None, [f"data.train={tars}", *SMALL, "data.batch=2", "data.max_bad=1"])
    loader = build_loader(cfg, "train", [str(i) for i in range(6)], World(), torch.device("cpu"))
    tar = Path(webdataset.expand(tars)[0])
    tar.write_bytes(tar.read_bytes())
    with pytest.raises(Unreadable, match="100 videos in a row cannot be read"):
        next(iter(loader))
    assert loader.source.reason(0) == "it has changed since it was indexed"
    tar.unlink()
    assert loader.source.reason(0) == "no such file"


def test_relative_paths(sharded, tmp_path, monkeypatch):
    sharded(3, 2)
    monkeypatch.chdir(tmp_path.parent)
    for pattern in (f"{tmp_path.name}/t-*.tar", f"./{tmp_path.name}/t-{{000..001}}.tar"):
        assert [read_row(c.path).error for c in read_list(pattern, root="elsewhere")] == [""] * 3
    monkeypatch.chdir(tmp_path)
    assert [read_row(c.path).error for c in read_list("t-000.tar")] == [""] * 2
    (tmp_path / "[x]{1..2}").mkdir()
    shutil.copy("t-000.tar", "[x]{1..2}/t.tar")
    assert len(read_list("[x]{1..2}/t.tar")) == 2, "a name that is there is no pattern"
    there = ("t-000.tar", "t-*.tar", "list.txt", "s3://b/t-*.tar")
    for path in (*there, "x*.tar", "t-{000..002}.tar", "none.txt"):
        assert is_there(path) == (path in there), path


def test_what_lies_behind_a_damaged_header_is_not_lost_in_silence(video, tmp_path, capsys):
    sample = [(f"{n}.{kind}", content) for n in "abc" for kind, content in (("mp4", video("vp9", 40)), ("cls", "1"))]
    whole = write(tmp_path / "whole.tar", *sample).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        third = tar.getmember("b.mp4").offset
    for name, content in {
        "flipped": whole[: third + 9] + b"x" + whole[third + 10 :], "cut": whole[: third + 100], "two": whole + whole,
    }.items():  # fmt: skip
        (tmp_path / f"{name}.tar").write_bytes(content)
        assert len(read_list(tmp_path / f"{name}.tar")) == (3 if name == "two" else 1)
        assert "from byte" in capsys.readouterr().err
    (tmp_path / "bare.tar").write_bytes(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))
    assert len(read_list(tmp_path / "bare.tar")) == 3 and capsys.readouterr().err == "", "zeros at the end may lack"


def test_links_within_a_tar(video, tmp_path):
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
    found = read_list(tmp_path / "x.tar")
    assert [(storage.place_of(c.path).name, c.label, read_row(c.path).num_frames) for c in found] == [
        ("k/a.mp4", 1, 40), ("b.mp4", 1, 40), ("k/c.mp4", 1, 40)]  # fmt: skip
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        info = tarfile.TarInfo("d.mp4")
        info.type, info.linkname = tarfile.SYMTYPE, "/videos/d.mp4"
        tar.addfile(info)
    with pytest.raises(ValueError, match=r"d\.mp4 is a link to /videos/d\.mp4, which is not in it"):
        read_list(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("beside", "label"),
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
def test_labels(video, tmp_path, beside, label):
    write(tmp_path / "x.tar", ("a.mp4", video("vp9", 40)), *((f"a.{kind}", text) for kind, text in beside.items()))
    assert webdataset.read_shard(str(tmp_path / "x.tar")).labels == (label,)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_tar_never_raises_or_hangs(video, tmp_path, data):
    whole = bytearray(write(tmp_path / "w.tar", ("a.mp4", video("vp9", 40)), ("a.cls", "1")).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 511), st.integers(0, len(whole) - 1)))
        whole[at] = data.draw(st.sampled_from([0, 0x20, 0x2D, 0x37, 0x4C, 0x53, 0x78, 0x80, 0xFF]))
    if data.draw(st.booleans()):  # with a checksum that fits
        whole[148:156] = b" " * 8
        whole[148:156] = b"%06o\0 " % sum(whole[:512])
    (tmp_path / "x.tar").write_bytes(whole)
    found = webdataset.read_shard(str(tmp_path / "x.tar"))
    assert found.error or found.videos
    assert all(read_row(path).path == path for path in found.videos)
