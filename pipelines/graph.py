"""The DALI graphs, train and eval side by side: decode -> crop and resize -> flip and normalise.

They are deterministic functions of what the source feeds; nothing here draws a random number. Layouts, DALI's letters:
F sequence, D depth (time, once the frames are one volume), H, W, C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nvidia.dali import Pipeline, fn, types

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
    """A pipeline that yields (video, info) batches: train (C, T, H, W) a sample, eval (V, C, T, H, W); info (7,) int64.

    `workers` processes call `source` (0: this one does). Not built yet.
    """
    workers = graph.workers if workers is None else workers
    pipe = Pipeline(
        batch_size=batch, num_threads=graph.threads, device_id=graph.device_id, prefetch_queue_depth=graph.prefetch,
        exec_dynamic=True,  # the executor that hands its buffers over instead of overwriting them
        py_num_workers=max(workers, 1), py_start_method="spawn",
    )  # fmt: skip
    with pipe:
        build = host_views if graph.host else train_views if graph.views.train else eval_views
        pipe.set_outputs(*build(graph, source, workers))
    return pipe


def train_views(graph: Graph, source: Callable[..., Any], workers: int) -> tuple[Any, Any]:
    video, boxes, mirror, info = decoded(graph, source, workers)
    clip = fn.reshape(resized(graph, video, boxes[0]), layout="DHWC")
    return fn.crop_mirror_normalize(clip, mirror=mirror, output_layout="CDHW", **normalisation(graph)), info


def eval_views(graph: Graph, source: Callable[..., Any], workers: int) -> tuple[Any, Any]:
    """Views in the order clip 0 crop 0, clip 0 crop 1, ...; every crop is of the same decoded frames."""
    v = graph.views
    video, boxes, mirror, info = decoded(graph, source, workers)
    crops = []
    for i in range(v.crops):
        crop = resized(graph, video, boxes[i])
        crop = fn.reshape(crop, shape=[v.clips, v.frames, v.size, v.size, 3], layout="FDHWC")
        crops.append(fn.crop_mirror_normalize(crop, mirror=mirror, output_layout="FCDHW", **normalisation(graph)))
    return fn.reshape(fn.stack(*crops, axis=1), shape=[v.clips * v.crops, 3, v.frames, v.size, v.size]), info


def host_views(graph: Graph, source: Callable[..., Any], workers: int) -> tuple[Any, Any]:
    """Train and eval alike: the workers have decoded, cropped and resized (pipelines.host)."""
    layout = "CDHW" if graph.views.train else "FCDHW"
    views, mirror, info = fed(
        graph, source, workers, [types.UINT8, types.INT32, types.INT64], [len(layout), 0, 1], layout
    )
    if graph.device_id is not None:
        views = views.gpu()
    return fn.crop_mirror_normalize(views, mirror=mirror, output_layout=layout, **normalisation(graph)), info


def decoded(graph: Graph, source: Callable[..., Any], workers: int) -> tuple[Any, ...]:
    """Frames that DALI decoded (FHWC, uint8 RGB), boxes, mirror and info."""
    kinds = [types.UINT8, types.INT32, types.FLOAT, types.INT32, types.INT64]
    data, positions, *more = fed(graph, source, workers, kinds, [1, 1, 2, 0, 1])
    device = "cpu" if graph.device_id is None else "mixed"
    return fn.decoders.video(data, frames=positions, device=device, pad_mode="edge"), *more


def resized(graph: Graph, video: Any, box: Any) -> Any:
    """The box of each frame, size x size: stretched to it, or letterboxed in the mean colour."""
    square = (graph.views.size, graph.views.size)
    roi = {"roi_start": box[:2], "roi_end": box[2:]}
    if graph.views.crop != "letterbox":
        return fn.resize(video, size=square, **roi)
    fitted = fn.resize(video, size=square, mode="not_larger", **roi)
    return fn.crop(fitted, crop=square, out_of_bounds_policy="pad", fill_values=list(mean_colour(graph.mean)))


def fed(
    graph: Graph, source: Callable[..., Any], workers: int, kinds: list[Any], ndim: list[int], layout: str = ""
) -> Any:
    """What the source returns for each sample, an output for each of `kinds`; `layout` is of the first."""
    parallel: dict[str, Any] = {"parallel": True, "prefetch_queue_depth": graph.prefetch} if workers else {}
    layouts = [layout] if layout else None
    return fn.external_source(
        source, batch=False, num_outputs=len(kinds), dtype=kinds, ndim=ndim, layout=layouts, **parallel
    )


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
