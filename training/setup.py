"""What a configuration says of networks, made: the network, its weights to start from, the task."""

import difflib
import math
import re
from collections.abc import Sequence

import torch
from timm.layers import DropPath
from timm.utils import ModelEmaV3
from torch import nn

from configs.loading import Config
from configs.schema import NO_CUDA_GRAPHS, Optim
from networks import PRETRAINING, VARIANTS, build, weights
from networks.maskfeat import MaskFeat as MaskFeatNetwork
from training.optimizers import build_optimizer
from training.parallel import distribute
from training.schedule import decay_at, rate_at
from training.state import Learner
from training.tasks import Classify, MaskFeat


def build_network(cfg: Config, num_classes: int) -> nn.Module:
    """The network for the data's frames and size; a key of model.args that it does not take is a ValueError."""
    sizes = {"num_frames": cfg.data.frames, "image_size": cfg.data.size}
    if cfg.task.name == "classify":
        sizes["num_classes"] = num_classes
    known = VARIANTS if cfg.task.name == "classify" else PRETRAINING
    if cfg.model.name in (VARIANTS | PRETRAINING).keys() - known.keys():
        raise ValueError(
            f"model.name={cfg.model.name} is not for task.name={cfg.task.name}: expected one of {', '.join(known)}"
        )
    try:
        return build(cfg.model.name, **sizes | cfg.model.args)
    except TypeError as error:
        raise ValueError(f"model.args={cfg.model.args}: {error}") from None


def initialise(network: nn.Module, cfg: Config, classes: Sequence[str], whole: bool = False) -> str:
    """Fill the network from model.init; returns what became of every kind of key.

    `whole`: nothing may be left as it was initialised (ValueError), a head of other classes neither.
    """
    report = weights.initialise(network, cfg.model.init, classes, **cfg.model.init_args)
    fresh = [row.target for row in report.rows if row.what == "created" and "as initialised" in row.how]
    if whole and fresh:
        raise ValueError(f"{cfg.model.init}: gives no {', '.join(fresh[:3])}, which would be random\n{report.text()}")
    return report.text()


def build_task(cfg: Config, network: nn.Module, compiled: bool = False) -> Classify | MaskFeat:
    """What turns a batch into a loss."""
    t = cfg.task
    if t.name == "classify":
        return Classify(t.label_smoothing)
    if not isinstance(network, MaskFeatNetwork):
        raise ValueError("task.name=maskfeat: the network is a classifier")
    return MaskFeat(network, t.mask, t.mask_ratio, t.hog_window, t.hog_gradient, compiled)


def freeze(network: nn.Module, what: str) -> None:
    """Leave parts of a network as they are: `backbone`, all but the head (a linear probe), or names of parameters'
    beginnings with commas between, blocks.0-5 for six of them. Nothing is dropped at random in them either.

    Raises ValueError for a part that there is not, and if nothing is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    heads = [name for name in names if name.startswith("head.")]
    if what == "backbone" and not heads:
        raise ValueError("model.freeze=backbone: the network has no head for classes to train")
    if what == "backbone":
        frozen = set(names) - set(heads)
    else:
        frozen = {name for part in _parts(what) for name in _beginning_with(part, names)}
    if len(frozen) == len(names):
        raise ValueError(f"model.freeze={what}: nothing is left to train")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for module in network.modules():
        of_it = [parameter.requires_grad for parameter in module.parameters()]
        if of_it and not any(of_it):
            for dropping in module.modules():
                if isinstance(dropping, DropPath):
                    dropping.drop_prob = 0.0
                elif isinstance(dropping, nn.Dropout):
                    dropping.p = 0.0


def _parts(what: str) -> list[str]:
    """patch_embed,blocks.0-2 -> patch_embed, blocks.0, blocks.1, blocks.2"""
    parts = []
    for part in filter(None, (part.strip() for part in what.split(","))):
        numbers = re.fullmatch(r"(.+\.)(\d+)-(\d+)", part)
        if numbers:
            parts += [f"{numbers[1]}{number}" for number in range(int(numbers[2]), int(numbers[3]) + 1)]
        else:
            parts.append(part)
    return parts


def _beginning_with(part: str, names: Sequence[str]) -> list[str]:
    found = [name for name in names if name == part or name.startswith(f"{part}.")]
    if not found:
        tops = list(dict.fromkeys(re.sub(r"(blocks\.\d+|[^.]+)\..*", r"\1", name) for name in names))
        near = difflib.get_close_matches(part, tops, n=1)
        raise ValueError(
            f"model.freeze: the network has no {part}"
            + (f"; did you mean {near[0]}?" if near else f": {', '.join(tops)}")
        )
    return found


def _captures_cuda_graphs() -> bool:
    """Tell whether the environment has torch.compile capture CUDA graphs."""
    from torch._inductor import config as inductor  # here: it takes a second to import, and compiling needs it anyway

    return bool(inductor.triton.cudagraphs)


def build_learner(
    cfg: Config, network: nn.Module, processes: int, dtype: torch.dtype, accumulate: int
) -> tuple[Learner, bool]:
    """Everything around a network that is trained, and whether it is compiled."""
    o, device = cfg.optim, next(network.parameters()).device
    sharded = cfg.run.shard == "full"
    if sharded and dtype is torch.float16:
        raise ValueError("run.amp=fp16: expected bf16 or fp32 with run.shard=full")
    ema = ModelEmaV3(network, o.ema) if o.ema else None
    compiled = cfg.run.compile == "yes" or (cfg.run.compile == "auto" and device.type == "cuda")
    if compiled and _captures_cuda_graphs():
        raise ValueError(f"TORCHINDUCTOR_CUDAGRAPHS=1: {NO_CUDA_GRAPHS}; unset it")
    if compiled:
        for module in (network, *([ema.module] if ema else [])):
            module.compile()
    model = distribute(network, processes, device, sharded, accumulate)
    optimizer = build_optimizer(network, o.name, o.lr, o.weight_decay, o.betas, not sharded, o.layer_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    return Learner(network, model, optimizer, scaler, ema), compiled


def describe(cfg: Config, network: nn.Module, dtype: torch.dtype) -> str:
    """What is going to be trained, where, and how precisely."""
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    whole, learned = sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
    frozen = f" ({learned / 1e6:.2f} M trained)" if learned < whole else ""
    device = next(network.parameters()).device
    return f"{cfg.model.name}: {whole / 1e6:.2f} M parameters{frozen}; {device}, {str(dtype).removeprefix('torch.')}"


def describe_step(o: Optim, clips: tuple[int, int, int]) -> str:
    """The clips of an optimiser step, (data.batch, processes, batches), and its rate."""
    named = zip(clips, ("clips", "processes", "batches"), strict=True)
    parts = " x ".join(f"{n} {what}" for n, what in named if n > 1)
    peak, scaled = peak_rate(o, clips), f" = {o.lr:g} x {math.prod(clips)} / {o.lr_per}" if o.lr_per != "none" else ""
    return f"{math.prod(clips)} clips ({parts or 'one clip'}); {o.name}, lr {peak:.3g}{scaled}"


def peak_rate(o: Optim, clips: tuple[int, int, int]) -> float:
    """optim.lr as it stands, or scaled from optim.lr_per clips to those of a step."""
    return o.lr * (math.prod(clips) / int(o.lr_per) if o.lr_per != "none" else 1)


def set_rates(optimizer: torch.optim.Optimizer, o: Optim, at: int, epoch_steps: int, peak: float) -> float:
    """Learning rate and weight decay of optimiser step `at`, counted from the first epoch; returns the rate."""
    total, drops = o.epochs * epoch_steps, [epoch * epoch_steps for epoch in o.drops]
    warmup = round(o.warmup_epochs * epoch_steps)
    least = o.min_lr * peak / o.lr if o.lr else 0.0
    rate = rate_at(at, total, warmup, peak, least, o.schedule, drops, o.gamma)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        if o.weight_decay_end >= 0:
            group["weight_decay"] = group["decays"] * decay_at(at, total, o.weight_decay, o.weight_decay_end)
    return rate
