"""The DALI graphs, train and eval side by side: decode -> crop and resize -> flip and normalise.

They are deterministic functions of what the source feeds; nothing here draws a random number. Layouts, DALI's letters:
F sequence, D depth (time, once the frames are one volume), H, W, C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nvidia.dali import Pipeline, fn, pipeline_def, types

from pipelines.augment import augmented
from pipelines.source import Views


@dataclass(frozen=True)
class Graph:
    """How the graph runs, beside what it computes."""

    views: Views
    host: bool  # fed with views that the workers decoded
    mean: tuple[float, float, float]  # of 0..1
    std: tuple[float, float, float]
    half: bool  # float16 instead of float32
    device_id: int | None  # None: CPU
    threads: int
    prefetch: int
    workers: int


def build_pipeline(graph: Graph, source: Callable[..., Any], batch: int, workers: int | None = None) -> Pipeline:
    """A pipeline that yields (video, info) batches, both splits with all views of a sample together, (V, C, T, H, W):
    train repeats, eval clips x crops; info (7,) int64.

    `workers` processes call `source` (0: this one does). Not built yet.
    """
    workers = graph.workers if workers is None else workers
    build = host_views if graph.host else train_views if graph.views.train else eval_views

    @pipeline_def(
        batch_size=batch, num_threads=graph.threads, device_id=graph.device_id, prefetch_queue_depth=graph.prefetch,
        exec_dynamic=True,  # the executor that hands its buffers over instead of overwriting them
        enable_conditionals=True,  # a clip's own operations of RandAugment
        py_num_workers=max(workers, 1), py_start_method="spawn",
    )  # fmt: skip
    def described() -> tuple[Any, Any]:
        return build(graph, source, workers)

    return described()


def train_views(graph: Graph, source: Callable[..., Any], workers: int) -> tuple[Any, Any]:
    """Every view is a crop of its own of the same decoded frames."""
    video, boxes, *draws, mirror, info = decoded(graph, source, workers)
    crops = []
    for i in range(graph.views.repeats):
        crop = varied(graph, resized(graph, video, boxes[i]), i, draws)
        crop = fn.reshape(crop, layout="DHWC")
        crops.append(fn.crop_mirror_normalize(crop, mirror=mirror[i], output_layout="CDHW", **normalisation(graph)))
    return together(crops), info


def eval_views(graph: Graph, source: Callable[..., Any], workers: int) -> tuple[Any, Any]:
    """Views in the order clip 0 crop 0, clip 0 crop 1, ...; every crop is of the same decoded frames."""
    v = graph.views
    video, boxes, mirror, info = decoded(graph, source, workers)
    crops = []
    for i in range(v.crops):
        crop = resized(graph, video, boxes[i])
        crop = fn.reshape(crop, shape=[v.clips, v.frames, v.size, v.size, 3], layout="FDHWC")
        crops.append(fn.crop_mirror_normalize(crop, mirror=mirror[0], output_layout="FCDHW", **normalisation(graph)))
    return fn.reshape(fn.stack(*crops, axis=1), shape=[v.clips * v.crops, 3, v.frames, v.size, v.size]), info


def host_views(graph: Graph, source: Callable[..., Any], workers: int) -> tuple[Any, Any]:
    """Train and eval alike: the workers have decoded, cropped and resized (pipelines.host)."""
    v = graph.views
    views, *draws, mirror, info = fed(graph, source, workers, [(types.UINT8, 5, "FCDHW")])
    if graph.device_id is not None:
        views = views.gpu()
    if not v.train:
        return fn.crop_mirror_normalize(views, mirror=mirror[0], output_layout="FCDHW", **normalisation(graph)), info
    crops = []
    for i in range(v.repeats):
        crop = fn.reshape(views[i] if v.repeats > 1 else fn.squeeze(views, axes=0), layout="CDHW")
        if v.augment:
            crop = varied(graph, fn.transpose(crop, perm=[1, 2, 3, 0], output_layout="FHWC"), i, draws)
            crop = fn.reshape(crop, layout="DHWC")
        crops.append(fn.crop_mirror_normalize(crop, mirror=mirror[i], output_layout="CDHW", **normalisation(graph)))
    return together(crops), info


def decoded(graph: Graph, source: Callable[..., Any], workers: int) -> tuple[Any, ...]:
    """Frames that DALI decoded (FHWC, uint8 RGB), boxes, what was drawn for augmentation, mirror and info."""
    data, positions, *more = fed(
        graph, source, workers, [(types.UINT8, 1, ""), (types.INT32, 1, ""), (types.FLOAT, 2, "")]
    )
    device = "cpu" if graph.device_id is None else "mixed"
    return fn.decoders.video(data, frames=positions, device=device, pad_mode="edge"), *more


def together(crops: list[Any]) -> Any:
    """(C, T, H, W) each -> (V, C, T, H, W); one alone is not copied."""
    return fn.stack(*crops) if len(crops) > 1 else fn.expand_dims(crops[0], axes=0)


def varied(graph: Graph, clip: Any, view: int, draws: Sequence[Any]) -> Any:
    """The clip (FHWC) augmented as was drawn for this view of it."""
    v = graph.views
    if not v.augment:
        return clip
    return augmented(clip, [drawn[view] for drawn in draws], v.augment, v.size, mean_colour(graph.mean))


def resized(graph: Graph, video: Any, box: Any) -> Any:
    """The box of each frame, size x size: stretched to it, or letterboxed in the mean colour."""
    square = (graph.views.size, graph.views.size)
    roi = {"roi_start": box[:2], "roi_end": box[2:]}
    if graph.views.crop != "letterbox":
        return fn.resize(video, size=square, **roi)
    fitted = fn.resize(video, size=square, mode="not_larger", **roi)
    return fn.crop(fitted, crop=square, out_of_bounds_policy="pad", fill_values=list(mean_colour(graph.mean)))


def fed(graph: Graph, source: Callable[..., Any], workers: int, pictures: list[tuple[Any, int, str]]) -> Any:
    """What the source returns for each sample: `pictures` (type, dimensions, layout), then what every graph gets."""
    drawn = [(types.FLOAT, 1 + dimensions, "") for dimensions in graph.views.augment.shapes]  # a row a view
    outputs = [*pictures, *drawn, (types.INT32, 1, ""), (types.INT64, 1, "")]  # mirror, a number a view; info
    parallel: dict[str, Any] = {"parallel": True, "prefetch_queue_depth": graph.prefetch} if workers else {}
    return fn.external_source(
        source, batch=False, num_outputs=len(outputs), dtype=[kind for kind, _, _ in outputs],
        ndim=[dimensions for _, dimensions, _ in outputs], layout=[layout for _, _, layout in outputs], **parallel,
    )  # fmt: skip


def mean_colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """RGB, 0 to 255: what normalisation makes zero, but for rounding."""
    red, green, blue = (round(255 * m) for m in mean)
    return red, green, blue


def normalisation(graph: Graph) -> dict[str, Any]:
    """(x / 255 - mean) / std, in DALI's units of 0..255."""
    return {
        "mean": [255 * m for m in graph.mean],
        "std": [255 * s for s in graph.std],
        "dtype": types.FLOAT16 if graph.half else types.FLOAT,
    }
