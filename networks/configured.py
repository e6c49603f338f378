"""What a configuration says of networks, made: the network, its weights to start from, the task."""

from collections.abc import Sequence

from torch import nn

from configs.schema import Config
from networks import PRETRAINING, VARIANTS, build, weights
from networks.maskfeat import MaskFeat as MaskFeatNetwork
from networks.tasks import Classify, MaskFeat


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


def freeze(network: nn.Module) -> None:
    """A linear probe: all but the head stays as it is. Raises ValueError if there is no head."""
    if not any(name.startswith("head.") for name, _ in network.named_parameters()):
        raise ValueError("model.freeze=backbone: the network has no head for classes to train")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
