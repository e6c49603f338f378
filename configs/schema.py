"""What can be set: a frozen dataclass a section, each key with its default, meaning and the values it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WIDER = -1  # eval.short_side: 8/7 of data.size, 256 for 224
# How the multi-view tests of the published figures place their views.
PRESETS: dict[str, dict[str, Any]] = {
    "timesformer": {"clips": 1, "crops": 3, "place": "start", "short_side": 0},
    "vivit": {"clips": 4, "crops": 3, "place": "spread", "short_side": 0},
    "mvit": {"clips": 5, "crops": 1, "place": "spread", "short_side": WIDER},
    "mvit-b": {"clips": 10, "crops": 3, "place": "spread", "short_side": 0},
    "maskfeat": {"clips": 10, "crops": 1, "place": "spread", "short_side": WIDER},
    "videomae": {"clips": 5, "crops": 3, "place": "spread", "short_side": 0},
}
NO_CUDA_GRAPHS = (
    "DALI frees the buffers of its batches in a thread that waits for the whole device, which breaks the capture of "
    "CUDA graphs"
)
# Words that somebody may expect a key to take, and why it does not.
REFUSED: dict[str, dict[str, str]] = {
    "run.compile": {
        mode: f"this mode of torch.compile captures CUDA graphs, and {NO_CUDA_GRAPHS}; use run.compile=yes"
        for mode in ("reduce-overhead", "max-autotune")
    }
}


def _key(default: Any, meaning: str, choices: tuple[str, ...] = ()) -> Any:
    """A field with its one-line meaning (shown by --help) and, for strings, the words it may take."""
    metadata = {"meaning": meaning, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Data:
    train: str = _key("", "training list, or a folder with one sub-folder a class")
    val: str = _key("", "validation list; scored after each epoch (empty: none)")
    test: str = _key("", "list of the multi-view test (empty: the validation list)")
    root: str = _key("", "folder that relative paths of a list are under (empty: the list's own folder)")
    classes: str = _key(
        "",
        "a file of names (one a line, UCF's or JSON), k400, k600 or k700; or a subset: 10 for the training list's "
        "first ten, or names with commas between (empty: all that the training list names or numbers)",
    )
    frames: int = _key(8, "frames a clip")
    stride: int = _key(8, "distance between the frames of a clip, in frames of the file (0: one frame repeated)")
    fps: float = _key(0, "stride counts frames at this rate, whatever a file's own (0: the file's frames)")
    sampling: str = _key(
        "clip", "clip: frames `stride` apart; segments: one of each equal part of the video (TSN)", ("clip", "segments")
    )
    snap: str = _key(
        "", "keyframe: move each frame to the nearest key frame within stride / 2: little to decode", ("", "keyframe")
    )
    size: int = _key(224, "height and width of the network's input, in pixels")
    scale: tuple[float, float] = _key((0.08, 1.0), "random-resized crop: area of the box as a share of the frame")
    ratio: tuple[float, float] = _key((3 / 4, 4 / 3), "random-resized crop: width / height of the box")
    crop: str = _key(
        "resized",
        "training crops: resized (scale, ratio) or jitter (short_sides); letterbox: whole frames, in testing too",
        ("resized", "jitter", "letterbox"),
    )
    short_sides: tuple[float, float] = _key(
        (256, 320), "crop=jitter: the short side is resized to one of these before size x size pixels are cropped"
    )
    per_class: int = _key(0, "only the first so many training videos of each class (0: all)")
    eval_per_class: int = _key(0, "the same for val and test, each counted by itself")
    flip: float = _key(0.5, "probability of a left-right flip; 0 where direction is the class")
    rand_augment: str = _key("", "RandAugment in timm's notation: m7-n4-mstd0.5 (empty: none)")
    colour_jitter: float = _key(
        0, "brightness, contrast and saturation change by factors of up to 1 - this to 1 + this"
    )
    grey: float = _key(0, "probability that a clip loses its colours")
    mixup: float = _key(0, "alpha of mixup (0: none); with cutmix, either for each clip")
    cutmix: float = _key(0, "alpha of cutmix (0: none)")
    erase: float = _key(0, "probability that a box of a clip becomes noise (random erasing)")
    repeats: int = _key(1, "crops and augmentations of each decoded clip, side by side in a batch")
    short: str = _key(
        "loop", "a clip longer than its video starts over (loop) or repeats the last frame (edge)", ("loop", "edge")
    )
    mean: tuple[float, float, float] = _key((0.45, 0.45, 0.45), "subtracted from each channel, in units of 0..1")
    std: tuple[float, float, float] = _key((0.225, 0.225, 0.225), "each channel is divided by it, in units of 0..1")
    batch: int = _key(8, "clips a step on each device")
    decoder: str = _key(
        "auto",
        "who decodes: dali (NVDEC on a GPU; PyAV what it cannot), host (PyAV), or both at once; auto: both on a GPU, "
        "host without",
        ("auto", "dali", "host", "both"),
    )
    pyav_share: float = _key(
        -1, "decoder=both: share of the videos that PyAV decodes of those that DALI could (-1: from cores and engines)"
    )
    workers: int = _key(2, "processes that read and trim (and, with the host decoder, decode); 0: in this process")
    threads: str = _key("auto", "DALI threads per device; auto: two per NVDEC engine, or one per core, at most four")
    prefetch: int = _key(2, "batches prepared ahead")
    seconds: float = _key(
        60, "that reading (and on the host decoding) one video may take before it counts as unreadable"
    )
    max_bad: float = _key(0.1, "share of unreadable videos above which training stops")


@dataclass(frozen=True)
class Model:
    name: str = _key("vivit_b", "a name that networks.build knows")
    args: dict[str, Any] = _key({}, "keyword arguments of the network, e.g. model.args.depth=4")
    init: str = _key("", "weights to start from: a checkpoint of any known format, a run, timm:NAME or hf:OWNER/NAME")
    freeze: str = _key("", "what is not trained: backbone (a linear probe), or parts: patch_embed,blocks.0-5")
    init_args: dict[str, Any] = _key(
        {}, "how they are fitted: inflation=central|average, temporal=copy|zero, head=auto|new, source_grid=[t,h,w]"
    )


@dataclass(frozen=True)
class Task:
    name: str = _key("classify", "what is trained: classes, or MaskFeat's pre-training", ("classify", "maskfeat"))
    label_smoothing: float = _key(0.0, "share of the target spread over all classes")
    mask: str = _key(
        "cube", "what MaskFeat hides; runs: of frames, with the loss on their middle ones",
        ("cube", "tube", "random", "runs"),
    )  # fmt: skip
    mask_ratio: float = _key(0.4, "share of a clip that MaskFeat hides")
    hog_window: int = _key(0, "pixels of the Gaussian that weighs MaskFeat's gradients (0: none, 16: mmselfsup's)")
    hog_gradient: str = _key("sobel", "of MaskFeat's HOG; central: as scikit-image has it", ("sobel", "central"))
    show_epochs: int = _key(10, "epochs between two pictures of MaskFeat's predictions")


@dataclass(frozen=True)
class Optim:
    name: str = _key("adamw", "the optimiser; lamb and lion are timm's", ("adamw", "sgd", "lamb", "lion"))
    batch: int = _key(
        0,
        "clips an optimiser step, over all devices: data.batch of each, several times where that is less "
        "(0: data.batch of each, once)",
    )
    lr: float = _key(1e-3, "peak learning rate")
    lr_per: str = _key("none", "clips a step that lr is for, and is scaled from linearly; none: used as it stands")
    min_lr: float = _key(1e-6, "learning rate at the start of the warm-up and the end of the cosine, scaled as lr is")
    schedule: str = _key("cosine", "of the learning rate, step by step", ("cosine", "step", "constant"))
    drops: tuple[float, ...] = _key((), "schedule=step: epochs at which the rate is multiplied by gamma")
    gamma: float = _key(0.1, "schedule=step: the factor")
    weight_decay: float = _key(0.05, "on weights with two or more dimensions only")
    weight_decay_end: float = _key(-1.0, "where a cosine takes it by the last step (-1: it stays)")
    betas: tuple[float, float] = _key((0.9, 0.999), "the two averages of adamw, lamb and lion")
    layer_decay: float = _key(1.0, "learning rate of each block as a multiple of the next one's, embeddings before all")
    epochs: int = _key(30, "passes over the training list")
    warmup_epochs: float = _key(2.0, "epochs of linear warm-up, counted in steps")
    clip_grad: float = _key(1.0, "largest gradient norm (0: no clipping)")
    clip: str = _key("global", "the norm is of all gradients together, or of each parameter's", ("global", "each"))
    ema: float = _key(0.0, "decay of an average of the weights, which is then what is evaluated and saved (0: none)")


@dataclass(frozen=True)
class Eval:
    preset: str = _key(
        "",
        "clips, crops, place and short_side as a project tests; what follows on the command line wins",
        ("", *PRESETS),
    )
    clips: int = _key(4, "clips a video in the multi-view test, spread over its length")
    place: str = _key(
        "spread", "where clips lie: from first place to last, from frame 0 on, or each in its part's middle",
        ("spread", "start", "centre"),
    )  # fmt: skip
    crops: int = _key(3, "crops a clip in the multi-view test: 1 (centre) or 3 (along the longer side)")
    average: str = _key("probability", "what is averaged over a video's views", ("probability", "logits"))
    show: str = _key(
        "",
        "a picture of what the network looks at in four of the videos: attention of the last layer, or rolled out",
        ("", "attention", "rollout"),
    )
    features: str = _key("", "a .npz or .safetensors file that features of the videos are written to, and no test made")
    layer: str = _key("", "whose features: a layer's, blocks.5 (empty: what the head is given)")
    pool: str = _key("mean", "of a layer: the mean of its tokens, its class token, or all", ("mean", "cls", "tokens"))
    batch: int = _key(4, "videos a step in the multi-view test, each with clips x crops views")
    short_side: int = _key(
        0, "short side the frame is resized to before cropping (0: data.size, -1: 8/7 of it, 256 for 224)"
    )


@dataclass(frozen=True)
class Run:
    name: str = _key("", "name of the run (empty: the name of the configuration file)")
    folder: str = _key("runs", "where run folders lie")
    seed: int = _key(0, "seed of the weights, the order and every random draw")
    device: str = _key("auto", "where it runs; auto takes a GPU if there is one", ("auto", "cpu", "cuda"))
    amp: str = _key(
        "auto", "precision of the step; auto is bf16 on a GPU and fp32 without", ("auto", "bf16", "fp16", "fp32")
    )
    compile: str = _key("auto", "torch.compile the network; auto does on a GPU", ("auto", "yes", "no"))
    resume: str = _key("auto", "auto continues from last.pt if there is one, no starts over, a path must exist")
    save_minutes: float = _key(0, "minutes between two checkpoints within an epoch (0: only at its end)")
    log_every: int = _key(20, "steps between two log lines")
    profile: int = _key(0, "steps that are profiled: RUN/profile/trace.json.gz and the costliest operators")
    shard: str = _key(
        "no", "full: weights, gradients and optimiser are spread over the processes (FSDP)", ("no", "full")
    )
    max_bad_steps: int = _key(10, "steps in a row whose loss is not finite that stop the run")
    threads: int = _key(0, "torch threads on a CPU (0: all cores but one, which decoding needs)")


@dataclass(frozen=True)
class Config:
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    task: Task = field(default_factory=Task)
    optim: Optim = field(default_factory=Optim)
    eval: Eval = field(default_factory=Eval)
    run: Run = field(default_factory=Run)


SECTIONS: dict[str, type] = {"data": Data, "model": Model, "task": Task, "optim": Optim, "eval": Eval, "run": Run}


def _check_decoding(data: Data, need: Callable[[bool, str, Any, str], None]) -> None:
    threads, share = data.threads, data.pyav_share
    need(threads == "auto" or threads.isdecimal() and int(threads) > 0, "data.threads", threads, "auto, or 1 or more")
    need(share == -1 or 0 <= share <= 1, "data.pyav_share", share, "a share, 0 to 1, or -1")


def check_ranges(cfg: Config) -> None:
    def need(holds: bool, key: str, value: Any, expected: str) -> None:
        if not holds:
            raise ValueError(f"{key}={value}: expected {expected}")

    for section, names in _AT_LEAST.items():
        for name, least in names.items():
            value = getattr(getattr(cfg, section), name)
            need(value >= least, f"{section}.{name}", value, f"{least} or more")
    need(0 <= cfg.data.flip <= 1, "data.flip", cfg.data.flip, "a probability, 0 to 1")
    need(0 <= cfg.data.colour_jitter <= 1, "data.colour_jitter", cfg.data.colour_jitter, "0 to 1")
    need(0 <= cfg.data.erase <= 1, "data.erase", cfg.data.erase, "a probability, 0 to 1")
    mixes = [key for key in ("mixup", "cutmix", "erase") if getattr(cfg.data, key)]
    need(cfg.task.name == "classify" or not mixes, "data." + "|".join(mixes), "on", "0 with task.name=" + cfg.task.name)
    need(0 <= cfg.data.grey <= 1, "data.grey", cfg.data.grey, "a probability, 0 to 1")
    need(
        cfg.data.batch % cfg.data.repeats == 0 and cfg.data.repeats < 32,
        "data.repeats",
        cfg.data.repeats,
        f"a divisor of data.batch={cfg.data.batch}, below 32",
    )
    _check_decoding(cfg.data, need)
    need(0 <= cfg.data.max_bad <= 1, "data.max_bad", cfg.data.max_bad, "a share, 0 to 1")
    need(0 < cfg.data.scale[0] <= cfg.data.scale[1] <= 1, "data.scale", cfg.data.scale, "0 < low <= high <= 1")
    need(0 < cfg.data.ratio[0] <= cfg.data.ratio[1], "data.ratio", cfg.data.ratio, "0 < low <= high")
    need(0 <= cfg.task.label_smoothing < 1, "task.label_smoothing", cfg.task.label_smoothing, "a share, 0 to below 1")
    need(
        0 <= min(cfg.optim.betas) <= max(cfg.optim.betas) < 1, "optim.betas", cfg.optim.betas, "numbers of 0 to below 1"
    )
    need(0 < cfg.task.mask_ratio < 1, "task.mask_ratio", cfg.task.mask_ratio, "a share between 0 and 1")
    need(0 <= cfg.optim.ema < 1, "optim.ema", cfg.optim.ema, "0 to below 1")
    need(cfg.optim.lr_per == "none" or cfg.optim.lr_per.isdecimal() and int(cfg.optim.lr_per) > 0, "optim.lr_per",
         cfg.optim.lr_per, "none, or a number of clips, 256 for instance")  # fmt: skip
    end = cfg.optim.weight_decay_end
    need(end == -1 or end >= 0, "optim.weight_decay_end", end, "0 or more, or -1 for none")
    need(cfg.optim.schedule == "step" or not cfg.optim.drops, "optim.drops", list(cfg.optim.drops),
         "none unless optim.schedule=step")  # fmt: skip
    need(not (cfg.optim.ema and cfg.run.shard == "full"), "optim.ema", cfg.optim.ema, "0 with run.shard=full")
    need(0 < cfg.optim.layer_decay <= 1, "optim.layer_decay", cfg.optim.layer_decay, "above 0, at most 1")
    need(min(cfg.data.std) > 0, "data.std", cfg.data.std, "numbers above 0")
    need(
        cfg.optim.warmup_epochs < cfg.optim.epochs,
        "optim.warmup_epochs",
        cfg.optim.warmup_epochs,
        f"less than optim.epochs={cfg.optim.epochs}",
    )
    need(cfg.optim.min_lr <= cfg.optim.lr, "optim.min_lr", cfg.optim.min_lr, f"at most optim.lr={cfg.optim.lr}")
    need(cfg.eval.crops in (1, 3), "eval.crops", cfg.eval.crops, "1 or 3")
    low, high = cfg.data.short_sides
    need(
        cfg.data.crop != "jitter" or cfg.data.size <= low <= high,
        "data.short_sides",
        cfg.data.short_sides,
        f"data.size={cfg.data.size} <= low <= high",
    )
    need(
        cfg.data.crop != "letterbox" or cfg.eval.crops == 1, "eval.crops", cfg.eval.crops, "1 with data.crop=letterbox"
    )
    need(
        cfg.eval.short_side in (0, WIDER) or cfg.eval.short_side >= cfg.data.size,
        "eval.short_side",
        cfg.eval.short_side,
        f"0, -1, or at least data.size={cfg.data.size}",
    )


_AT_LEAST: dict[str, dict[str, float]] = {
    "data": {
        "per_class": 0,
        "seconds": 0.001,
        "mixup": 0,
        "cutmix": 0,
        "repeats": 1,
        "eval_per_class": 0,
        "frames": 1,
        "stride": 0,
        "fps": 0,
        "size": 1,
        "batch": 1,
        "workers": 0,
        "prefetch": 1,
    },
    "optim": {
        "lr": 0,
        "min_lr": 0,
        "weight_decay": 0,
        "epochs": 1,
        "warmup_epochs": 0,
        "clip_grad": 0,
        "batch": 0,
        "gamma": 0,
    },
    "eval": {"clips": 1, "batch": 1},
    "run": {"seed": 0, "log_every": 1, "max_bad_steps": 1, "threads": 0, "save_minutes": 0, "profile": 0},
    "task": {"label_smoothing": 0, "hog_window": 0, "show_epochs": 1},
}
