"""Everything that can be set: one frozen pydantic model per section, with type, bounds and meaning beside each key.

The meaning of a key is one line of `python train.py --help`; `python train.py --schema` prints them all as a JSON
schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from configs.adapter import Adapter
from configs.combinations import check_combinations
from configs.evaluation import PRESETS as PRESETS
from configs.evaluation import Eval, Probe
from configs.section import Arguments, Section, option
from configs.task import Task

NO_CUDA_GRAPHS = (
    "DALI frees the buffers of its batches in a thread that waits for the whole device, which breaks the capture of "
    "CUDA graphs"
)
Probability = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]


class Data(Section):
    """Videos, frames and crops; augmentation; decoders."""

    train: str = option("", "training list, or a folder with a folder per class; to pre-train also a folder of videos")
    val: str = option("", "validation list, scored after each epoch (empty: no validation)")
    test: str = option("", "list for the multi-view test (empty: the validation list)")
    root: str = option("", "folder that the relative paths in a list refer to (empty: the folder of the list)")
    class_names: str = option(
        "",
        "file with one class name per line (also UCF-101 or JSON), or k400, k600 or k700 (empty: the names or numbers "
        "in the training list)",
    )
    class_subset: str = option("", "use some classes only: the first N, or names separated by commas (empty: all)")
    multi_label: bool = option(
        False,
        "videos may have several labels, or none: path 3,17,40, path<TAB>name<TAB>name, or the files of Charades",
    )
    num_frames: int = option(8, "frames per clip", ge=1)
    frame_stride: int = option(
        8, "distance between the frames of a clip, in frames of the file (0: one frame repeated)", ge=0
    )
    fps: float = option(0, "frame rate that frame_stride refers to (0: that of each file)", ge=0)
    sampling: Literal["dense", "tsn"] = option(
        "dense", "dense: frames that are frame_stride apart; tsn: one frame from each of num_frames equal segments"
    )
    num_clips: int = option(
        1, "clips of each training video, one from each of as many equal parts; a probe pools their tokens", ge=1
    )
    snap_to_keyframes: bool = option(
        False, "move each frame to the nearest key frame within half a stride, which leaves little to decode"
    )
    image_size: int = option(224, "height and width of the network's input, in pixels", ge=1)
    crop: Literal["random_resized_crop", "scale_jitter", "letterbox"] = option(
        "random_resized_crop",
        "training crops: random_resized_crop (crop_scale, crop_ratio) or scale_jitter (short_side_range); letterbox: "
        "the whole frame with borders, in testing too",
    )
    crop_scale: Interval = option((0.08, 1.0), "random_resized_crop: area of the box as a fraction of the frame")
    crop_ratio: Interval = option((3 / 4, 4 / 3), "random_resized_crop: width / height of the box")
    short_side_range: Interval = option(
        (256, 320), "scale_jitter: range of the short side before image_size x image_size pixels are cropped"
    )
    max_per_class: int = option(0, "use only N training videos of each class (0: all)", ge=0)
    few_shot_seed: Literal["first"] | Annotated[int, Field(ge=0)] = option(
        "first", "which videos max_per_class keeps: the first of each class, or some drawn with this seed (few-shot)"
    )
    eval_max_per_class: int = option(
        0, "use only the first N videos of each class of the validation and test lists (0: all)", ge=0
    )
    balance: Literal["", "class", "sqrt"] = option(
        "",
        "how often classes come in training; class: equally often, sqrt: in proportion to the square roots of their "
        "sizes (empty: every video once in an epoch)",
    )
    hflip: Probability = option(0.5, "probability of a horizontal flip; use 0 where direction tells the class")
    rand_augment: str = option("", "RandAugment in timm's notation, m7-n4-mstd0.5 (empty: off)")
    color_jitter: Probability = option(
        0, "strength of color jitter: brightness, contrast and saturation change by factors of 1 - this to 1 + this"
    )
    grayscale: Probability = option(0, "probability that a clip becomes gray")
    blur: Probability = option(0, "probability that a clip is blurred on the device (Gaussian, as in SimCLR)")
    solarize: Probability = option(0, "probability that a clip is solarized on the device (as in BYOL)")
    mixup: float = option(0, "alpha of mixup (0: off); with cutmix, each clip gets one or the other", ge=0)
    cutmix: float = option(0, "alpha of CutMix (0: off)", ge=0)
    random_erasing: Probability = option(0, "probability that a box of a clip is replaced by noise")
    aug_repeats: int = option(
        1, "repeated augmentation: crops and augmentations of each decoded clip, side by side in a batch", ge=1, lt=32
    )
    short_clip: Literal["wrap", "repeat_last"] = option(
        "wrap", "how a clip longer than its video is filled: start over, or repeat the last frame"
    )
    mean: tuple[float, float, float] = option((0.45, 0.45, 0.45), "mean of each channel, in units of 0 to 1")
    std: tuple[float, float, float] = option(
        (0.225, 0.225, 0.225), "standard deviation of each channel, in units of 0 to 1"
    )
    batch_size: int = option(8, "clips per batch and device", ge=1)
    decoder: Literal["auto", "dali", "pyav", "both"] = option(
        "auto",
        "dali: NVDEC on a GPU, and PyAV for what it cannot decode; pyav: the CPU; both: GPU and CPU share the videos; "
        "auto: both on a GPU, else pyav",
    )
    pyav_share: Literal["auto"] | Probability = option(
        "auto", "decoder=both: share of the videos that PyAV decodes (auto: estimated from CPU cores and NVDEC engines)"
    )
    num_workers: int = option(
        2, "processes that read, trim and (with PyAV) decode; 0: everything in the main process", ge=0
    )
    dali_threads: Literal["auto"] | Annotated[int, Field(ge=1)] = option(
        "auto", "DALI threads per device (auto: two per NVDEC engine; on a CPU one per core, at most four)"
    )
    prefetch: int = option(2, "batches that are prepared in advance", ge=1)
    tune: bool = option(
        False,
        "train.py measures at its start which decoder, workers, threads and prefetch are fastest, and keeps the answer "
        "beside the index; those given on its command line stay",
    )
    decode_timeout: float = option(
        60, "seconds that reading (and with PyAV decoding) one video may take before it counts as unreadable", ge=0.001
    )
    max_unreadable: Probability = option(0.1, "fraction of unreadable videos above which training stops")


class Model(Section):
    """The network, the weights it starts from, and the parts that stay fixed."""

    name: str = option("vivit_b", "name of a network (`python -m networks.flops` lists them)")
    args: Arguments = option({}, "arguments of the network's constructor, for example model.args.depth=4")
    pretrained: str = option(
        "", "weights to start from: a checkpoint in any known format, a run folder, timm:NAME or hf:OWNER/NAME"
    )
    pretrained_args: Arguments = option(
        {},
        "how pretrained weights are adapted: inflation=central|average, temporal=copy|zero, head=auto|new, "
        "source_grid=[t,h,w]",
    )
    freeze: str = option(
        "", "parts that are not trained: backbone (for a linear or attentive probe), or patch_embed,blocks.0-5"
    )


class Optim(Section):
    """The optimizer, its schedule and the size of a step."""

    name: Literal["adamw", "sgd", "lamb", "lion"] = option("adamw", "optimizer; lamb and lion come from timm")
    global_batch_size: int = option(
        0,
        "clips per optimizer step over all devices; gradients are accumulated over several batches where needed (0: "
        "one batch per device)",
        ge=0,
    )
    lr: float = option(1e-3, "peak learning rate", ge=0)
    lr_base_batch: int = option(
        0, "clips per step that lr was chosen for; it is scaled linearly from there (0: lr is used as it is)", ge=0
    )
    min_lr: float = option(
        1e-6, "lr at the start of the warm-up and at the end of the cosine schedule, scaled as lr is", ge=0
    )
    schedule: Literal["cosine", "step", "constant"] = option("cosine", "schedule of the lr, applied at each step")
    milestones: tuple[float, ...] = option((), "schedule=step: epochs at which the lr is multiplied by gamma")
    gamma: float = option(0.1, "schedule=step: factor of the lr at each milestone", ge=0)
    weight_decay: float = option(0.05, "weight decay of parameters with two or more dimensions", ge=0)
    weight_decay_end: Literal["constant"] | Annotated[float, Field(ge=0)] = option(
        "constant", "weight decay at the last step, reached along a cosine (constant: no change)"
    )
    betas: Interval = option((0.9, 0.999), "decay rates of the two moments of adamw, lamb and lion")
    layer_decay: float = option(
        1.0, "lr of each block as a multiple of that of the next block; embeddings count as the first block", gt=0, le=1
    )
    epochs: int = option(30, "passes over the training list", ge=1)
    warmup_epochs: float = option(2.0, "epochs of linear warm-up, rounded to steps", ge=0)
    backbone_lr_scale: float = option(
        1.0, "factor of the lr of everything but the head, and an attentive pooler before it", gt=0
    )
    head_epochs: int = option(0, "epochs at the start in which only the head (and its pooler) is trained", ge=0)
    clip_grad_norm: float = option(1.0, "maximum gradient norm (0: no clipping)", ge=0)
    clip_mode: Literal["global", "per_param"] = option(
        "global", "whether the norm is that of all gradients together or of each parameter"
    )
    ema_decay: float = option(
        0.0, "decay of the EMA of the weights, which is then evaluated and saved (0: off)", ge=0, lt=1
    )


class Run(Section):
    """Device, precision and distribution; checkpoints, logs and the run folder."""

    name: str = option("", "name of the run (empty: the name of the configuration file)")
    output_dir: str = option("runs", "folder that contains the run folders")
    seed: int = option(0, "seed of the weights, the order and every random draw", ge=0)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto uses a GPU if there is one")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "auto", "precision of the forward and backward pass (auto: bf16 on a GPU, else fp32)"
    )
    compile: Literal["auto", "yes", "no"] = option("auto", "torch.compile the network (auto: on a GPU)")
    resume: str = option(
        "auto", "auto: continue from last.pt if there is one; no: start over; a path: continue from it"
    )
    checkpoint_minutes: float = option(0, "minutes between two checkpoints within an epoch (0: after each epoch)", ge=0)
    log_interval: int = option(20, "steps between two log lines", ge=1)
    profile_steps: int = option(0, "steps to profile: RUN/profile/trace.json.gz and the most expensive operators", ge=0)
    fit: bool = option(
        False,
        "train.py first finds the largest batch (a power of two) that fits into memory, and the recomputation with "
        "which it is fastest; clips per step stay",
    )
    parallel: Literal["ddp", "fsdp"] = option(
        "ddp", "fsdp: weights, gradients and optimizer state are sharded over the processes"
    )
    patience: int = option(
        0, "validations without a better one after which a run stops early (0: it does not; see eval.metric)", ge=0
    )
    keep_checkpoints: int = option(
        0, "networks of the last N epochs that are kept in RUN/checkpoints, for eval.py --soup (0: none)", ge=0
    )
    max_nonfinite_steps: int = option(
        10, "consecutive steps with a loss that is not finite after which a run stops", ge=1
    )
    cpu_threads: int = option(0, "torch threads on a CPU (0: all cores but one, which decoding needs)", ge=0)

    @field_validator("compile", mode="before")
    @classmethod
    def _no_cuda_graphs(cls, value: Any) -> Any:
        if value in ("reduce-overhead", "max-autotune"):
            raise PydanticCustomError(
                "refused", f"this mode of torch.compile captures CUDA graphs, and {NO_CUDA_GRAPHS}; use run.compile=yes"
            )
        return value


class Config(Section):
    """The whole configuration. Raises ValueError for values that contradict each other."""

    data: Data = Data()
    model: Model = Model()
    adapter: Adapter = Adapter()
    task: Task = Task()
    optim: Optim = Optim()
    probe: Probe = Probe()
    eval: Eval = Eval()
    run: Run = Run()

    @model_validator(mode="after")
    def _check_combinations(self) -> Config:
        check_combinations(self)
        return self


SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "model": Model,
    "adapter": Adapter,
    "task": Task,
    "optim": Optim,
    "probe": Probe,
    "eval": Eval,
    "run": Run,
}
