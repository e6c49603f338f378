"""The DALI graph: views from who decoded them -> augment -> flip and normalize.

It is a deterministic function of what the source feeds; nothing here draws a random number. Layouts, DALI's letters:
F sequence, D depth (time, once the frames are one volume), H, W, C. V are a sample's views: train repeats, eval clips x
crops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.sample_source import Info, Views
from pipelines.sampling.rand_augment import augmented

_BY_PYAV = Info._fields.index("by_pyav")
_NUMBERS = Info._fields.index("label")  # and `scored` after it


@dataclass(frozen=True)
class Graph:
    """How the graph runs, beside what it computes."""

    views: Views
    uses_dali: bool  # False: it is fed with views that the workers decoded, and with no files
    mean: tuple[float, float, float]  # of 0..1
    std: tuple[float, float, float]
    half: bool  # float16 instead of float32
    device_id: int | None  # None: CPU
    threads: int
    prefetch: int
    workers: int


def build_pipeline(graph: Graph, source: Callable[..., Any], batch: int) -> Pipeline:
    """A pipeline that yields (video, numbers, info) batches: video (V, C, T, H, W) on the device, numbers (2,) int64
    with Info's label and scored row on the device, info (9,) int64 on the host.

    `graph.workers` processes call `source` (0: this one does). Not built yet.
    """

    @pipeline_def(
        batch_size=batch, num_threads=graph.threads, device_id=graph.device_id, prefetch_queue_depth=graph.prefetch,
        exec_dynamic=True,  # the executor that hands its buffers over instead of overwriting them
        enable_conditionals=True,  # who decodes a sample, and a clip's own operations of RandAugment
        py_num_workers=max(graph.workers, 1), py_start_method="spawn",
    )  # fmt: skip
    def described() -> tuple[Any, Any, Any]:
        *files, views, draws, mirror, info = external_inputs(graph, source)
        views = mixed_views(graph, files, views, info) if graph.uses_dali else on_device(graph, views)
        video = train_video(graph, views, draws, mirror) if graph.views.train else eval_video(graph, views, mirror)
        return video, on_device(graph, info[_NUMBERS : _NUMBERS + 2]), info

    return described()


def external_inputs(graph: Graph, source: Callable[..., Any]) -> Any:
    """Return what the source feeds for each sample (`Source.sample`): with DALI a file, positions, their order, boxes
    and a color matrix; always views, the list of what Augment draws, mirror and info."""
    views = [(types.UINT8, 5, "FCDHW")]
    numbers = (types.INT32, 1, "")
    files = [(types.UINT8, 1, ""), numbers, numbers, (types.FLOAT, 2, ""), (types.FLOAT, 2, "")]
    draws = [(types.FLOAT, 1 + dimensions, "") for dimensions in graph.views.augment.shapes]  # a row for each view
    before = [*files, *views] if graph.uses_dali else views
    arrays = [*before, *draws, (types.INT32, 1, ""), (types.INT64, 1, "")]  # type, dimensions, layout
    parallel: dict[str, Any] = {"parallel": True, "prefetch_queue_depth": graph.prefetch} if graph.workers else {}
    inputs = fn.external_source(
        source, batch=False, num_outputs=len(arrays), dtype=[kind for kind, _, _ in arrays],
        ndim=[dimensions for _, dimensions, _ in arrays], layout=[layout for _, _, layout in arrays], **parallel,
    )  # fmt: skip
    return *inputs[: len(before)], inputs[len(before) : -2], *inputs[-2:]


def mixed_views(graph: Graph, files: Sequence[Any], views: Any, info: Any) -> Any:
    """(V, T, size, size, 3) uint8, layout FDHWC: of each sample the views of PyAV, or those that DALI decodes of a file
    and what belongs to it."""
    if info[_BY_PYAV] == 1:
        mixed = fn.transpose(on_device(graph, views), perm=[0, 2, 3, 4, 1], output_layout="FDHWC")
    else:
        mixed = dali_views(graph, *files)
    return mixed


def dali_views(graph: Graph, data: Any, positions: Any, frame_order: Any, boxes: Any, matrix: Any) -> Any:
    """Decode the same with DALI; each crop is of the same decoded frames; crop k of clip c is view c * crops + k."""
    v = graph.views
    device = "cpu" if graph.device_id is None else "mixed"
    video = fn.decoders.video(data, frames=positions, device=device, pad_mode="edge")
    count = v.repeats if v.train else v.crops
    shape = [v.clips, v.frames, v.size, v.size, 3]
    crops = []
    for i in range(count):
        crop = in_order(crop_resize(graph, video, boxes[i], matrix), frame_order)
        crops.append(fn.reshape(crop, shape=shape, layout=""))
    views = fn.stack(*crops, axis=1) if count > 1 else crops[0]
    return fn.reshape(views, shape=[v.clips * count, v.frames, v.size, v.size, 3], layout="FDHWC")


def in_order(frames: Any, order: Any) -> Any:
    """Repeat and reorder frames as a clip has them. DALI is asked for each once, ascending: for one that
    it has passed it would start over from the beginning of the file."""
    return fn.sequence_rearrange(frames, new_order=order)


def crop_resize(graph: Graph, video: Any, box: Any, matrix: Any) -> Any:
    """Cut the box of each frame out and make it size x size: stretched, or letterboxed in the mean color."""
    square = (graph.views.size, graph.views.size)
    letterbox = graph.views.crop == "letterbox"
    options: dict[str, Any] = {"roi_start": box[:2], "roi_end": box[2:]}
    if letterbox:
        options["mode"] = "not_larger"
    resized = fn.resize(video, size=square, **options)
    if matrix[0, 0] == 1.0:  # only the identity has a 1 there: the file's colors are BT.601's, as DALI takes them
        colored = resized
    else:
        colored = fn.coord_transform(resized, M=matrix, dtype=types.UINT8)
    if letterbox:
        fill = list(mean_colour(graph.mean))
        colored = fn.crop(colored, crop=square, out_of_bounds_policy="pad", fill_values=fill)
    return colored


def train_video(graph: Graph, views: Any, draws: Sequence[Any], mirror: Any) -> Any:
    """Augment, flip and normalize each view by itself. `views` as mixed_views(), or planar, layout FCDHW."""
    v, planar = graph.views, not graph.uses_dali
    clips = []
    for i in range(v.repeats):
        clip = views[i] if v.repeats > 1 else fn.squeeze(views, axes=0)
        clip = fn.reshape(clip, layout="CDHW" if planar else "DHWC")
        if v.augment:
            if planar:
                clip = fn.transpose(clip, perm=[1, 2, 3, 0])
            drawn = [draw[i] for draw in draws]
            clip = augmented(fn.reshape(clip, layout="FHWC"), drawn, v.augment, v.size, mean_colour(graph.mean))
            clip = fn.reshape(clip, layout="DHWC")
        clips.append(fn.crop_mirror_normalize(clip, mirror=mirror[i], output_layout="CDHW", **normalization(graph)))
    return fn.stack(*clips) if len(clips) > 1 else fn.expand_dims(clips[0], axes=0)  # one alone is not copied


def eval_video(graph: Graph, views: Any, mirror: Any) -> Any:
    """Normalize all views of a sample together."""
    return fn.crop_mirror_normalize(views, mirror=mirror[0], output_layout="FCDHW", **normalization(graph))


def on_device(graph: Graph, data: Any) -> Any:
    return data if graph.device_id is None else data.gpu()


def mean_colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """RGB, 0 to 255: what normalization makes zero, but for rounding."""
    red, green, blue = (round(255 * m) for m in mean)
    return red, green, blue


def normalization(graph: Graph) -> dict[str, Any]:
    """(x / 255 - mean) / std, in DALI's units of 0..255."""
    return {
        "mean": [255 * m for m in graph.mean],
        "std": [255 * s for s in graph.std],
        "dtype": types.FLOAT16 if graph.half else types.FLOAT,
    }
