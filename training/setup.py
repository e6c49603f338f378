"""Build from a configuration what training needs: loaders, network with its first weights, task, training state."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath
from timm.utils import ModelEmaV3
from torch import nn

from configs.schema import NO_CUDA_GRAPHS, Config, Eval, Model
from networks import PRETRAINING, PRETRAINING_TASKS, VARIANTS, build, unknown_network, weights
from networks.adapters import HEADS
from networks.probed_encoder import ProbeGrid
from networks.weights.report import KeyReport
from pipelines.data.feature_shards import is_feature_folder
from pipelines.feature_loader import FeatureLoader
from pipelines.loader import EvalVideoLoader, VideoLoader
from training.feature_input import build_feature_loaders
from training.optimizers import build_optimizer
from training.parallel import distribute
from training.probe_grid import ProbeSetting, build_probe_optimizers, probe_grid_args, probe_settings
from training.run_dir import find_checkpoint
from training.schedule import Schedule
from training.state import TrainState
from utils.checkpoint_io import load_checkpoint
from utils.device import clip_dtype
from utils.distributed import World

Checkpoint = tuple[Path, dict[str, Any]]  # its path and its content


def load_resume_checkpoint(cfg: Config, world: World) -> Checkpoint | None:
    """Load the checkpoint to resume from in every process; the main one decides which it is."""
    checkpoint = find_checkpoint(cfg.run) if world.is_main else None
    path = world.broadcast(lambda: checkpoint[0] if checkpoint else None)
    return checkpoint or (path and (path, load_checkpoint(path))) or None


def build_loaders(
    cfg: Config, device: torch.device, dtype: torch.dtype, world: World
) -> tuple[VideoLoader | FeatureLoader, EvalVideoLoader | FeatureLoader | None]:
    """Read the training and the validation list; of each of its videos one center view is scored, or one per clip.

    Of a pre-training the lists need no labels.
    """
    data = cfg.data
    if not data.train:
        raise ValueError("data.train: expected a training list, or a folder of videos")
    if cfg.run.patience and not data.val:
        raise ValueError(f"run.patience={cfg.run.patience}: expected 0 without data.val, whose validations it counts")
    if cfg.task.name == "probe" and not data.val:
        raise ValueError("data.val=: expected a validation list with task.name=probe: it tells which probe is best")
    shared: dict[str, Any] = {"device": device, "dtype": clip_dtype(dtype), "world": world, "seed": cfg.run.seed}
    if is_feature_folder(data.train):
        return build_feature_loaders(cfg, **shared)
    shared["labeled"] = not cfg.task.is_pretraining
    train_loader = VideoLoader(data.train, data, global_batch_size=cfg.optim.global_batch_size, **shared)
    if not data.val:
        return train_loader, None
    center = Eval(num_clips=data.num_clips, num_crops=1, batch_size=data.batch_size)
    return train_loader, EvalVideoLoader(data.val, data, center, classes=train_loader.classes, **shared)


def build_network(cfg: Config, num_classes: int) -> nn.Module:
    """Build the network for the frames and size of the data. Raises ValueError for arguments that it does not take."""
    sizes: dict[str, Any] = {"num_frames": cfg.data.num_frames, "image_size": cfg.data.image_size}
    if not cfg.task.is_pretraining:
        sizes["num_classes"] = num_classes
    if cfg.task.name != "probe" and cfg.data.num_clips > 1:
        raise ValueError(
            f"data.num_clips={cfg.data.num_clips}: expected 1 with task.name={cfg.task.name}; only probes pool clips"
        )
    variants = PRETRAINING_TASKS.get(cfg.task.name, VARIANTS)
    if cfg.model.name in (VARIANTS | PRETRAINING).keys() - variants.keys():
        is_for = next((task for task, names in PRETRAINING_TASKS.items() if cfg.model.name in names), "classify")
        expected = ", ".join(variants) if cfg.task.is_pretraining else "those of `python -m networks.flops` for classes"
        wrong = f"model.name={cfg.model.name} is not for task.name={cfg.task.name} but for {is_for}"
        raise ValueError(f"{wrong}: expected one of {expected}")
    try:
        if cfg.task.name == "probe" and cfg.model.name not in VARIANTS:
            raise unknown_network(cfg.model.name)
        if cfg.task.name == "probe":
            return build("probe_grid", **probe_grid_args(cfg), **sizes)
        return build(cfg.model.name, **sizes | cfg.model.args)
    except TypeError as error:
        raise ValueError(f"model.args={cfg.model.args}: {error}") from None


def init_from_pretrained(
    network: nn.Module, checkpoint: weights.Checkpoint, model: Model, classes: Sequence[str], complete: bool = False
) -> KeyReport:
    """Fill the network from a checkpoint, as model.pretrained_args says; return what became of every key.

    Of a grid of probes only the encoder is filled. `complete`, and always for a grid: raises ValueError if any of these
    parameters, also those of a head for other classes, stay as they were initialized.
    """
    target, labels = (network.encoder, None) if isinstance(network, ProbeGrid) else (network, classes)
    report = weights.load_pretrained(target, checkpoint, labels, **model.pretrained_args)
    fresh = report.keys_as_initialized()
    if fresh and (complete or target is not network):
        raise ValueError(f"{model.pretrained}: gives no {', '.join(fresh[:3])}, which would be random\n{report.text()}")
    return report


def freeze(network: nn.Module, parts: str) -> None:
    """Keep parts of a network fixed, and switch off dropout and drop path in them.

    `parts`: backbone (everything but the head and an attentive pooler before it, for a probe; an image encoder, but not
    the blocks over time after it), or prefixes of parameter names separated by commas; blocks.0-5 stands for six of
    them. Raises ValueError for a part that does not exist, and if nothing is left to train."""
    names = [name for name, _ in network.named_parameters()]
    heads = [name for name in names if name.startswith(HEADS)]
    if parts == "backbone" and not heads:
        raise ValueError("model.freeze=backbone: the network has no head for classes to train")
    if parts == "backbone":
        backbone = [name for name in names if name.startswith("backbone.")]  # an image encoder on frames
        frozen = set(backbone or names) - set(heads)
    else:
        frozen = {name for prefix in _expand_ranges(parts) for name in _match_prefix(prefix, names)}
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    if trainable <= frozen:
        raise ValueError(f"model.freeze={parts}: nothing is left to train")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in frozen)  # a teacher is never trained
    for module in network.modules():
        trained = [parameter.requires_grad for parameter in module.parameters()]
        if trained and not any(trained):
            for child in module.modules():
                if isinstance(child, DropPath):
                    child.drop_prob = 0.0
                elif isinstance(child, nn.Dropout):
                    child.p = 0.0


def _expand_ranges(parts: str) -> list[str]:
    """Expand patch_embed,blocks.0-2 to patch_embed, blocks.0, blocks.1, blocks.2."""
    prefixes = []
    for part in filter(None, (part.strip() for part in parts.split(","))):
        match = re.fullmatch(r"(.+\.)(\d+)-(\d+)", part)
        if match:
            prefixes += [f"{match[1]}{number}" for number in range(int(match[2]), int(match[3]) + 1)]
        else:
            prefixes.append(part)
    return prefixes


def _match_prefix(prefix: str, names: Sequence[str]) -> list[str]:
    matches = [name for name in names if name == prefix or name.startswith(f"{prefix}.")]
    if not matches:
        modules = list(dict.fromkeys(re.sub(r"(blocks\.\d+|[^.]+)\..*", r"\1", name) for name in names))
        near = difflib.get_close_matches(prefix, modules, n=1)
        hint = f"; did you mean {near[0]}?" if near else f": {', '.join(modules)}"
        raise ValueError(f"model.freeze: the network has no {prefix}{hint}")
    return matches


def build_state(
    cfg: Config, network: nn.Module, world_size: int, dtype: torch.dtype, grad_accum_steps: int
) -> TrainState:
    """Build the training state around a network that is on its device already, and compile the network if asked to."""
    o, device = cfg.optim, next(network.parameters()).device
    sharded = cfg.run.parallel == "fsdp"
    if sharded and dtype is torch.float16:
        raise ValueError("run.precision=fp16: expected bf16 or fp32 with run.parallel=fsdp")
    if sharded and getattr(network, "rlt_threshold", False):
        raise ValueError("model.args.rlt_threshold: expected 0 with run.parallel=fsdp")
    if isinstance(network, ProbeGrid) and dtype is torch.float16:
        raise ValueError(
            "run.precision=fp16: expected bf16 or fp32 with task.name=probe, as probes would share a scale"
        )
    ema = ModelEmaV3(network, o.ema_decay) if o.ema_decay else None
    if ema and cfg.adapter.name:
        share_fixed_weights(network, ema.module)
    if is_compiled(cfg, device):
        if _captures_cuda_graphs():
            raise ValueError(f"TORCHINDUCTOR_CUDAGRAPHS=1: {NO_CUDA_GRAPHS}; unset it")
        for module in (network, *([ema.module] if ema else [])):
            module.compile()
    model = distribute(network, world_size, device, shard=sharded, grad_accum_steps=grad_accum_steps)
    options: dict[str, Any] = {"name": o.name, "betas": o.betas, "fused": not sharded}
    if isinstance(network, ProbeGrid):
        optimizers = build_probe_optimizers(network, probe_settings(cfg), **options)
    else:
        rates: dict[str, Any] = {"layer_decay": o.layer_decay, "backbone_lr_scale": o.backbone_lr_scale}
        optimizers = (build_optimizer(network, lr=o.lr, weight_decay=o.weight_decay, **rates, **options),)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    return TrainState(network, model, optimizers, scaler, ema)


def share_fixed_weights(network: nn.Module, average: nn.Module) -> None:
    """Let the average of a network have the tensors that are not trained, which would be a second copy of them."""
    for parameter, averaged in zip(network.parameters(), average.parameters(), strict=True):
        if not parameter.requires_grad:
            averaged.data = parameter.data


def is_compiled(cfg: Config, device: torch.device) -> bool:
    """Tell whether run.compile means that the network is compiled on a device."""
    return cfg.run.compile == "yes" or (cfg.run.compile == "auto" and device.type == "cuda")


def _captures_cuda_graphs() -> bool:
    """Tell whether the environment has torch.compile capture CUDA graphs."""
    from torch._inductor import config as inductor  # here: it takes a second to import, and compiling needs it anyway

    return bool(inductor.triton.cudagraphs)


def describe_network(name: str, network: nn.Module, dtype: torch.dtype) -> str:
    """Describe in one line what is trained, where and how precisely."""
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, is_trained in sizes if is_trained)
    adapter: dict[str, Any] | None = getattr(network, "adapter", None)
    how = f", {adapter['name']}" if adapter else ""
    of_which = f" ({trained / 1e3:.1f} k trained{how})" if trained < total else ""
    device = next(network.parameters()).device
    return f"{name}: {total / 1e6:.2f} M parameters{of_which}; {device}, {str(dtype).removeprefix('torch.')}"


def describe_step(schedule: Schedule, batch_size: int, world_size: int, grad_accum_steps: int) -> str:
    """Describe an optimizer step: its clips, the optimizer and the peak lr."""
    o, clips = schedule.optim, schedule.clips_per_step
    counts = ((batch_size, "clips"), (world_size, "processes"), (grad_accum_steps, "batches"))
    factors = " x ".join(f"{count} {what}" for count, what in counts if count > 1)
    scaled = f" = {o.lr:g} x {clips} / {o.lr_base_batch}" if o.lr_base_batch else ""
    made_of = f" ({factors})" if world_size * grad_accum_steps > 1 else ""
    return f"{clips} clip{'s' * (clips > 1)}{made_of}; {o.name}, lr {schedule.peak_lr:.3g}{scaled}"


def model_card(
    cfg: Config, classes: Sequence[str], num_train_videos: Sequence[int] = (), probe: ProbeSetting | None = None
) -> dict[str, Any]:
    """Return what one needs beside the weights to use them: the class names and how the input is made.

    With the number of training videos of each class, if there are classes. Of a probe also how it was trained, of a
    masked autoencoder what its loss is of.
    """
    data, is_mae = cfg.data, cfg.task.name == "mae"
    stride = {"frame_stride": data.frame_stride, "fps": data.fps} if data.sampling != "tsn" else {}
    return {
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "input": {
            "num_frames": data.num_frames,
            **stride,
            "image_size": data.image_size,
            "mean": list(data.mean),
            "std": list(data.std),
            **({"preset": cfg.eval.preset} if cfg.eval.preset else {}),
        },
        **({"multi_label": True} if data.multi_label else {}),
        **({"num_train_videos": list(num_train_videos)} if classes else {}),
        **({"probe": probe._asdict()} if probe else {}),
        **({"task": {key: getattr(cfg.task, key) for key in ("mask_ratio", "norm_pix_loss")}} if is_mae else {}),
    }
