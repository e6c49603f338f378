"""The DALI pipeline: decode, or take the views that PyAV decoded -> crop, resize -> augment -> flip and normalize.

It is a deterministic function of what the source feeds; nothing here draws a random number. Layouts in DALI's letters:
F sequence, D depth (time, once the frames are one volume), H, W, C. V are the views of a sample: clips x crops, where
the crops of training are its repeats.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.sample_meta import SampleMeta
from pipelines.sample_source import ViewSpec
from pipelines.sampling.rand_augment import apply_policy
from utils.files import temporary_folder

_BY_PYAV = SampleMeta._fields.index("by_pyav")
_NUM_IMAGES = SampleMeta._fields.index("num_images")
_LABEL = SampleMeta._fields.index("label")  # scored_index is next to it


@dataclass(frozen=True)
class PipelineConfig:
    """The computation of the pipeline, and its execution."""

    views: ViewSpec
    uses_dali: bool  # False: it is fed with views that workers decoded, and with no files
    mean: tuple[float, float, float]  # in units of 0 to 1
    std: tuple[float, float, float]
    dtype: str  # of the batches: float32 or float16
    device_id: int | None  # None: CPU
    num_threads: int
    prefetch: int
    num_workers: int
    max_images: int = 0  # encoded images of a sample; 0: it is never given any
    has_videos: bool = True  # False: DALI is given images only


def build_pipeline(pipeline: PipelineConfig, source: Callable[..., Any], batch: int) -> Pipeline:
    """Define a pipeline, not built yet, that yields batches of (video, numbers, meta).

    Of each sample: video (V, C, T, H, W) and numbers (2,) int64, label and scored index, on the device; meta (10,),
    SampleMeta as int64, on the host. `pipeline.num_workers` processes call `source` (0: this process does).
    """

    @pipeline_def(
        batch_size=batch,
        num_threads=pipeline.num_threads,
        device_id=pipeline.device_id,
        prefetch_queue_depth=pipeline.prefetch,
        exec_dynamic=True,  # the executor that hands its buffers over instead of overwriting them
        # For who decodes a sample, and for RandAugment's operations per clip; DALI rewrites the code then, which takes
        # most of a second.
        enable_conditionals=pipeline.uses_dali or bool(pipeline.views.augment),
        py_num_workers=max(pipeline.num_workers, 1),
        py_start_method="spawn",
    )
    def define() -> tuple[Any, Any, Any]:
        *files, views, draws, mirror, meta = external_inputs(pipeline, source)
        views = mixed_views(pipeline, files, views, meta) if pipeline.uses_dali else on_device(pipeline, views)
        video = (
            train_video(pipeline, views, draws, mirror) if pipeline.views.train else eval_video(pipeline, views, mirror)
        )
        return video, on_device(pipeline, meta[_LABEL : _LABEL + 2]), meta

    with _code_in_own_folder():
        return define()


@contextlib.contextmanager
def _code_in_own_folder() -> Iterator[None]:
    """Remove the Python files that DALI makes of a definition with conditions as soon as they are imported.

    DALI removes them when the program exits; one that is killed would leave them in the temporary folder.
    """
    before = tempfile.tempdir
    with temporary_folder() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def external_inputs(pipeline: PipelineConfig, source: Callable[..., Any]) -> Any:
    """Return the arrays that the source feeds for each sample (`SampleSource.sample`).

    If DALI decodes: data, positions and order of `EncodedFrames`, boxes and a color matrix. Always: views, the list of
    what AugmentPolicy draws, mirror and meta.
    """
    views = [(types.UINT8, 5, "FCDHW")]
    numbers = (types.INT32, 1, "")
    files = [(types.UINT8, 1, ""), numbers, numbers, (types.FLOAT, 2, ""), (types.FLOAT, 2, "")]
    draws = [(types.FLOAT, 1 + dimensions, "") for dimensions in pipeline.views.augment.ndims]  # a row for each view
    before = [*files, *views] if pipeline.uses_dali else views
    arrays = [*before, *draws, (types.INT32, 1, ""), (types.INT64, 1, "")]  # type, dimensions, layout
    parallel: dict[str, Any] = (
        {"parallel": True, "prefetch_queue_depth": pipeline.prefetch} if pipeline.num_workers else {}
    )
    inputs = fn.external_source(
        source,
        batch=False,
        num_outputs=len(arrays),
        dtype=[kind for kind, _, _ in arrays],
        ndim=[dimensions for _, dimensions, _ in arrays],
        layout=[layout for _, _, layout in arrays],
        **parallel,
    )
    return *inputs[: len(before)], inputs[len(before) : -2], *inputs[-2:]


def mixed_views(pipeline: PipelineConfig, files: Sequence[Any], views: Any, meta: Any) -> Any:
    """Return the views of each sample, from PyAV or decoded here: (V, T, size, size, 3) uint8, layout FDHWC."""
    if meta[_BY_PYAV] == 1:
        mixed = fn.transpose(on_device(pipeline, views), perm=[0, 2, 3, 4, 1], output_layout="FDHWC")
    else:
        mixed = dali_views(pipeline, meta[_NUM_IMAGES], *files)
    return mixed


def dali_views(
    pipeline: PipelineConfig, num_images: Any, data: Any, positions: Any, frame_order: Any, boxes: Any, matrix: Any
) -> Any:
    """Decode the views with DALI, all crops from the same decoded frames; crop k of clip c is view c * crops + k."""
    v = pipeline.views
    video = decode(pipeline, num_images, data, positions)
    count = v.aug_repeats if v.train else v.num_crops
    shape = [v.num_clips, v.num_frames, v.image_size, v.image_size, 3]
    crops = []
    for i in range(count):
        crop = in_order(crop_resize(pipeline, video, boxes[i], matrix), frame_order)
        crops.append(fn.reshape(crop, shape=shape, layout=""))
    views = fn.stack(*crops, axis=1) if count > 1 else crops[0]
    return fn.reshape(views, shape=[v.num_clips * count, v.num_frames, v.image_size, v.image_size, 3], layout="FDHWC")


def decode(pipeline: PipelineConfig, num_images: Any, data: Any, positions: Any) -> Any:
    """Decode the distinct frames of a sample, (K, H, W, 3) uint8, layout FHWC: of a video or of encoded images."""
    device = "cpu" if pipeline.device_id is None else "mixed"
    if not pipeline.max_images:
        frames = fn.decoders.video(data, frames=positions, device=device, pad_mode="edge")
    elif not pipeline.has_videos:
        frames = decode_images(pipeline, num_images, data, positions)
    elif num_images > 0:
        frames = decode_images(pipeline, num_images, data, positions)
    else:
        frames = fn.decoders.video(data, frames=positions, device=device, pad_mode="edge")
    return frames


def decode_images(pipeline: PipelineConfig, num_images: Any, data: Any, bounds: Any) -> Any:
    """Decode images that lie one after the other in `data`: image i from byte bounds[i] to bounds[i + 1].

    DALI decodes one image of each sample at a time, so there is a decoder for each image that a sample may have. Those
    that it does not have add no frame.
    """
    first = decode_image(pipeline, data[bounds[0] : bounds[1]])
    images = [first]
    for i in range(1, pipeline.max_images):
        if i < num_images:
            image = decode_image(pipeline, data[bounds[i] : bounds[i + 1]])
        else:
            image = first[:0]
        images.append(image)
    return fn.cat(*images, axis=0) if len(images) > 1 else first


def decode_image(pipeline: PipelineConfig, data: Any) -> Any:
    """Decode an image as one frame, (1, H, W, 3), which is not rotated: the loader rotates views."""
    image = fn.decoders.image(
        data,
        device="cpu" if pipeline.device_id is None else "mixed",
        output_type=types.RGB,
        adjust_orientation=False,
        # Buffers grow as needed: those that nvJPEG allocates ahead are for each decoder and thread, 32 MB in all.
        device_memory_padding=0,
        host_memory_padding=0,
    )
    return fn.expand_dims(image, axes=0, new_axis_names="F")


def in_order(frames: Any, order: Any) -> Any:
    """Repeat and reorder frames as the clip has them.

    DALI is asked for each frame once, in ascending order: for an earlier one it would start over at the beginning of
    the file.
    """
    return fn.sequence_rearrange(frames, new_order=order)


def crop_resize(pipeline: PipelineConfig, video: Any, box: Any, matrix: Any) -> Any:
    """Crop the box from each frame and resize it to image_size: stretched, or letterboxed in the mean color."""
    square = (pipeline.views.image_size, pipeline.views.image_size)
    letterbox = pipeline.views.crop == "letterbox"
    options: dict[str, Any] = {"roi_start": box[:2], "roi_end": box[2:]}
    if letterbox:
        options["mode"] = "not_larger"
    resized = fn.resize(video, size=square, **options)
    if matrix[0, 0] == 1.0:  # only the identity has a 1 there: the colors are BT.601, as DALI assumes
        colored = resized
    else:
        colored = fn.coord_transform(resized, M=matrix, dtype=types.UINT8)
    if letterbox:
        fill = list(mean_color(pipeline.mean))
        colored = fn.crop(colored, crop=square, out_of_bounds_policy="pad", fill_values=fill)
    return colored


def train_video(pipeline: PipelineConfig, views: Any, draws: Sequence[Any], mirror: Any) -> Any:
    """Augment, flip and normalize each view alone; `views` is that of mixed_views(), or planar, layout FCDHW.

    The clips of a video are augmented and flipped alike.
    """
    v, planar = pipeline.views, not pipeline.uses_dali
    clips = []
    for view in range(v.num_views):
        i = view % v.aug_repeats
        clip = views[view] if v.num_views > 1 else fn.squeeze(views, axes=0)
        clip = fn.reshape(clip, layout="CDHW" if planar else "DHWC")
        if v.augment:
            if planar:
                clip = fn.transpose(clip, perm=[1, 2, 3, 0])
            drawn = [draw[i] for draw in draws]
            frames, fill = fn.reshape(clip, layout="FHWC"), mean_color(pipeline.mean)
            clip = apply_policy(frames, drawn, v.augment, size=v.image_size, fill=fill)
            clip = fn.reshape(clip, layout="DHWC")
        clips.append(normalize(pipeline, clip, mirror[i], "CDHW"))
    return fn.stack(*clips) if len(clips) > 1 else fn.expand_dims(clips[0], axes=0)  # a single view is not copied


def eval_video(pipeline: PipelineConfig, views: Any, mirror: Any) -> Any:
    """Normalize all views of a sample at once."""
    return normalize(pipeline, views, mirror[0], "FCDHW")


def normalize(pipeline: PipelineConfig, clip: Any, mirror: Any, layout: str) -> Any:
    """Mirror and normalize a clip, (x / 255 - mean) / std, and return it in the layout.

    What PyAV decoded for a CPU is planar and mirrored already; DALI's normalize then takes a third of the time.
    """
    mean, std = ([255 * value for value in values] for values in (pipeline.mean, pipeline.std))
    is_ready = not pipeline.uses_dali and not pipeline.views.augment
    if is_ready and pipeline.device_id is None and pipeline.dtype == "float32":
        shape = [3 if axis == "C" else 1 for axis in layout]
        constants = [types.Constant(np.array(values, np.float32).reshape(shape)) for values in (mean, std)]
        return fn.normalize(clip, mean=constants[0], stddev=constants[1], axis_names=layout.replace("C", ""))
    dtype = types.FLOAT16 if pipeline.dtype == "float16" else types.FLOAT
    return fn.crop_mirror_normalize(clip, mirror=mirror, output_layout=layout, mean=mean, std=std, dtype=dtype)


def on_device(pipeline: PipelineConfig, data: Any) -> Any:
    return data if pipeline.device_id is None else data.gpu()


def mean_color(mean: Sequence[float]) -> tuple[int, int, int]:
    """Return the RGB color, 0 to 255, that normalization makes zero up to rounding."""
    red, green, blue = (round(255 * m) for m in mean)
    return red, green, blue
