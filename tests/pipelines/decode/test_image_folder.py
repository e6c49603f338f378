"""image_folder: names and their patterns, headers, decoded images against PIL, and what is wrong with a folder."""

from __future__ import annotations

import io
import math
import os
import random

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipelines.data.verify import check_video
from pipelines.decode import image_folder
from pipelines.decode.image_folder import (
    ImageFolder,
    expand_pattern,
    find_pattern,
    is_image_folder,
    list_images,
    natural_key,
    read_header,
)
from pipelines.decode.pyav_decoder import decode_views
from pipelines.decode.video_info import read_video_info
from tests.helpers.image_folders import encode_image, moving_texture, write_images
from tests.helpers.videos import smooth_image

WIDTH, HEIGHT = 96, 64
FRAMES = moving_texture(12, width=WIDTH, height=HEIGHT)
SMOOTH = smooth_image(WIDTH, HEIGHT)  # so that how chroma is upsampled does not show


# --- names --------------------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z%. _]{0,4}[0-9]{0,3}[a-z_%. -]{0,3}[0-9]{0,6}\.(jpg|JPEG|png)", fullmatch=True)


def test_images_are_in_natural_order_and_other_files_are_none(tmp_path):
    names = ["img_1.jpg", "img_2.JPG", "img_10.jpeg", "img_10b.png", "x_9.png"]
    for name in [*reversed(names), "readme.txt", "._img_1.jpg", "img_3.jpg.tmp", "clip.mp4"]:
        (tmp_path / name).touch()
    assert list_images(tmp_path) == names
    assert sorted(["a1.jpg2.jpg", "a1.jpg", "a01.jpg"], key=natural_key) == ["a01.jpg", "a1.jpg", "a1.jpg2.jpg"]


@given(st.sets(NAMES, min_size=1, max_size=6))
def test_pattern_of_any_names_gives_the_same_names(names):
    ordered = sorted(names, key=natural_key)
    packed = find_pattern(ordered)
    assert not packed or expand_pattern(packed) == ordered


@given(
    before=st.text(st.sampled_from("ab%_. -d"), max_size=5),
    first=st.integers(0, 10**6),
    count=st.integers(1, 30),
    width=st.sampled_from(["", "01", "05", "010"]),
)
def test_consecutive_numbers_have_a_short_pattern(before, first, count, width):
    names = [f"{before}{number:{width}d}.jpg" for number in range(first, first + count)]
    packed = find_pattern(names)
    assert expand_pattern(packed) == names and len(packed) < 50


def test_gap_in_the_numbers_leaves_no_pattern():
    assert find_pattern(["img_1.jpg", "img_2.jpg", "img_4.jpg"]) == ""
    assert find_pattern(["a.jpg", "b.jpg"]) == ""


# --- headers ------------------------------------------------------------------------------------------------------

ENCODED = {
    "420": encode_image(SMOOTH),
    "444": encode_image(SMOOTH, subsampling=0),
    "progressive": encode_image(SMOOTH, progressive=True),
    "gray": encode_image(SMOOTH, mode="L"),
    "cmyk": encode_image(SMOOTH, mode="CMYK"),
    "comment": encode_image(SMOOTH, comment=b"\xff\xc0" * 20),
    "png": encode_image(SMOOTH, ".png"),
    "png_alpha": encode_image(SMOOTH, ".png", mode="RGBA"),
    "png_palette": encode_image(SMOOTH, ".png", mode="P"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_header_says_kind_and_size(name):
    assert read_header(ENCODED[name]) == ("png" if name.startswith("png") else "jpeg", WIDTH, HEIGHT)


@given(st.binary(max_size=60), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]), st.integers(0, 700))
def test_header_of_anything_else_is_none(data, start, end):
    assert read_header(start + data) is None or start
    header = read_header(ENCODED["420"][:end])
    assert header in (None, ("jpeg", WIDTH, HEIGHT))


# --- decoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODED)
def test_decoded_image_equals_pils(name, tmp_path):
    (tmp_path / "1.jpg").write_bytes(ENCODED[name])  # the content counts, not the suffix
    with ImageFolder(tmp_path) as folder:
        actual = folder.decode(0).to_ndarray(format="rgb24").astype(int)
    expected = np.asarray(Image.open(io.BytesIO(ENCODED[name])).convert("RGB"))
    difference = np.abs(actual - expected)
    assert difference.max() <= (0 if name.startswith("png") else 8) and difference.mean() < 1.1


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_views_show_the_requested_images_in_the_requested_order(suffix, tmp_path):
    folder = write_images(tmp_path / "clip", FRAMES, suffix, pattern="%d")
    info = read_video_info(str(folder))
    frames = np.array([[9, 0, 9, 11], [1, 99, 5, 5]])  # past the end: the last one
    boxes = np.array([[0, 0, HEIGHT, HEIGHT]], np.float32)
    views = decode_views(str(folder), frames, boxes, HEIGHT, table=info.table)
    expected = FRAMES[np.minimum(frames, 11)][:, :, :, :HEIGHT].transpose(0, 4, 1, 2, 3)
    assert np.abs(views.astype(int) - expected).mean() < (0.01 if suffix == ".png" else 4)
    assert np.array_equal(views, decode_views(folder, frames, boxes, HEIGHT)), "also without an index"
    with pytest.raises(ValueError, match=r"clip: frame number -1: expected 0 or more"):
        decode_views(folder, np.array([[-1]]), boxes, HEIGHT)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_rotation_is_that_of_the_video(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x112] = orientation
    folder = write_images(tmp_path / "clip", [SMOOTH, SMOOTH], exif=exif)
    info = read_video_info(str(folder))
    stored = ImageFolder(folder).decode(0).to_ndarray(format="rgb24")
    with Image.open(folder / "img_00001.jpg") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert (info.height, info.width) == expected.shape[:2]
    assert np.abs(np.rot90(stored, info.rotation).astype(int) - expected).mean() < 1


# --- the index ----------------------------------------------------------------------------------------------------


def test_index_knows_the_folder_and_lists_it_no_more(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "clip", FRAMES)
    info = read_video_info(str(folder))
    assert not info.error and info.is_image_folder and (info.num_frames, info.fps) == (12, 0)
    assert (info.width, info.height, info.codec, info.proof) == (WIDTH, HEIGHT, "jpeg_images", "bitstream")
    assert info.table == "96x64 yuvj420p 1 12 img_%05d.jpg"
    assert check_video(str(folder)).num_frames == 12
    monkeypatch.setattr(image_folder, "list_images", lambda folder: pytest.fail("the folder was listed"))
    assert ImageFolder(folder, table=info.table).decode(11).width == WIDTH


def test_other_names_are_listed_each_time(tmp_path):
    folder = write_images(tmp_path / "clip", FRAMES)
    (folder / "img_00005.jpg").unlink()  # frames are what there is
    info = read_video_info(str(folder))
    assert (info.num_frames, info.table) == (11, "96x64 yuvj420p")
    with ImageFolder(folder, table=info.table) as images:
        assert images.names[3:5] == ["img_00004.jpg", "img_00006.jpg"] and images.decode(4).width == WIDTH


def test_folder_of_several_sequences_is_refused(tmp_path):
    """As mmaction2 keeps optical flow beside the frames."""
    folder = write_images(tmp_path / "clip", FRAMES[:3])
    (folder / "cover.jpg").write_bytes(ENCODED["420"])
    assert read_video_info(str(folder)).num_frames == 4
    for number in range(2):
        (folder / f"x_{number}.jpg").write_bytes(ENCODED["420"])
    error = read_video_info(str(folder)).error
    assert error == "2 sequences of images, img_# (3), x_# (2): expected one per folder"


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damaged(data: bytes) -> bytes:
    return data[:-300] + random.Random(0).randbytes(300)


SMALLER = encode_image(FRAMES[0][:48])
BAD_IMAGES = {
    "cut": (cut(ENCODED["420"]), "a broken jpeg image: Invalid data found"),
    "damaged": (damaged(ENCODED["420"]), "a broken jpeg image: Invalid data found"),
    "text": (b"not an image", "not a JPEG or PNG image"),
    "empty": (b"", "empty file"),
    "smaller": (SMALLER, "the frame size changes from 96x64 to 96x48 at img_00006.jpg"),
    "kind": (ENCODED["png"], "the kind of image changes from jpeg to png at img_00006.jpg"),
    "pixel format": (ENCODED["444"], "the pixel format changes from yuvj420p to yuvj444p at img_00006.jpg"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image_is_named_where_it_is_decoded(name, tmp_path):
    data, message = BAD_IMAGES[name]
    folder = write_images(tmp_path / "clip", FRAMES)
    table = read_video_info(str(folder)).table
    (folder / "img_00006.jpg").write_bytes(data)
    box = np.array([[0, 0, 64, 64]])
    decode_views(folder, np.array([[4, 6]]), box, 32, table=table)
    with pytest.raises(ValueError, match=f"^{folder}: (img_00006.jpg: )?{message}"):
        decode_views(folder, np.array([[4, 5, 6]]), box, 32, table=table)
    assert message in check_video(str(folder)).broken
    (folder / "img_00006.jpg").rename(folder / "img_00013.jpg")  # the index reads the first and the last one
    assert message.replace("00006", "00013") in read_video_info(str(folder)).error


def test_missing_image_and_empty_folder_are_named(tmp_path):
    folder = write_images(tmp_path / "clip", FRAMES)
    table = read_video_info(str(folder)).table
    (folder / "img_00003.jpg").unlink()
    with pytest.raises(ValueError, match=r"clip: img_00003.jpg: no such file"):
        ImageFolder(folder, table=table).decode(2)
    (tmp_path / "empty").mkdir()
    assert read_video_info(str(tmp_path / "empty")).error == "a folder without images (.jpeg, .jpg, .png)"


def test_timeout_counts_from_the_opening(tmp_path, monkeypatch):
    folder = ImageFolder(write_images(tmp_path / "clip", FRAMES[:2]), timeout=5)
    folder.decode(0)
    monkeypatch.setattr(image_folder.time, "monotonic", lambda: math.inf)
    with pytest.raises(ValueError, match="clip: not read within 5 seconds"):
        folder.decode(1)


def test_folder_at_an_address_is_refused(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe("/clips/clip_1/img_1.jpg", ENCODED["420"])
    assert not is_image_folder("memory://clips/clip_1")
    error = read_video_info("memory://clips/clip_1").error
    assert error == "a folder; folders of images are read from local disks only"
    assert is_image_folder(os.fspath(tmp_path))
