"""The config.json of transformers for networks here, and the names of their weights there.

Each function raises ValueError for arguments that transformers does not have.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from networks.argument_checks import height_width
from networks.hiera import Hiera
from networks.hiera_mae import HieraMAE
from networks.jepa import JEPA
from networks.layers import NORM_EPS
from networks.timesformer import TimeSformer
from networks.videomae import VideoMAE
from networks.vivit import ViViT
from networks.vjepa2 import VJEPA2
from networks.weights.formats import transformers as hf
from networks.weights.formats.transformers_vjepa2 import CLASSIFIER, ENCODER, PREDICTOR
from networks.weights.key_rules import Rules, with_prefix

CLASSIFIER_HEAD: Rules = {"classifier.{param}": "head.{param}"}
ATTENTION_TYPES = {"divided": "divided_space_time", "joint": "joint_space_time"}
HIDDEN_ACT = {"exact": "gelu", "tanh": "gelu_fast"}


class HFModel(NamedTuple):
    """A class of transformers with its config.json, and rules from its names of weights to those here.

    `stages`: the numbers of blocks of each stage, where transformers numbers the blocks of a stage by themselves.
    `axes`: how einops rearranges the weights whose names begin so. `left_out`: what transformers has no place for.
    """

    config: dict[str, Any]
    rules: Rules
    has_key_bias: bool = True
    stages: tuple[int, ...] = ()
    axes: Mapping[str, str] = {}
    left_out: str = ""

    @property
    def name(self) -> str:
        """Return the name of the class."""
        return self.config["architectures"][0]


def describe_for_transformers(network: nn.Module) -> HFModel:
    """Return what transformers calls a network. Raises ValueError for a network that it cannot build."""
    kwargs: dict[str, Any] = network.kwargs  # type: ignore[assignment]
    if kwargs.get("num_classes") == 0:
        raise ValueError(f"num_classes=0: a {type(network).__name__} without classes is not exported")
    if isinstance(network, TimeSformer):
        return _timesformer(kwargs)
    if isinstance(network, ViViT) and kwargs["attention"] == "joint":
        is_videomae = not kwargs["cls_token"] and kwargs["pos_embed"] == "sincos"
        return _videomae(kwargs) if is_videomae else _vivit(kwargs)
    if isinstance(network, VideoMAE):
        return _videomae_pretraining(network)
    if isinstance(network, VJEPA2):
        return _vjepa2(kwargs)
    if isinstance(network, JEPA):
        return _jepa(network)
    if isinstance(network, Hiera):
        return _hiera(kwargs, network)
    if isinstance(network, HieraMAE):
        return _hiera_pretraining(network)
    attention = f" with attention={kwargs['attention']}" if "attention" in kwargs else ""
    raise ValueError(f"transformers has no {type(network).__name__}{attention}")


def describe_loss(network: nn.Module, task: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json of transformers tells of the loss of a masked autoencoder, {} for other networks.

    `task` has norm_pix_loss and mask_ratio, which may be "auto", or is empty. Only Hiera draws masks there; for
    VideoMAE the ratio is a note.
    """
    if not isinstance(network, VideoMAE | HieraMAE):
        return {}
    ratio = task.get("mask_ratio", "auto")
    key = "normalize_pixel_loss" if isinstance(network, HieraMAE) else "norm_pix_loss"
    return {
        key: task.get("norm_pix_loss", True),
        "mask_ratio": network.default_mask_ratio if ratio == "auto" else ratio,
    }


def _require(kind: str, kwargs: Mapping[str, Any], **supported: Any) -> None:
    """Raise ValueError that lists the arguments, as key=value, which transformers does not have."""
    differing = [f"{key}={kwargs[key]}" for key, value in supported.items() if kwargs.get(key, value) != value]
    if differing:
        raise ValueError(f"transformers has no {kind} with {', '.join(differing)}")


def _vit_config(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the configs of TimeSformer, ViViT and VideoMAE have in common."""
    height, width = height_width(kwargs["image_size"])
    return {
        "image_size": height if height == width else [height, width],
        "patch_size": kwargs["patch_size"],
        "num_frames": kwargs["num_frames"],
        "num_channels": kwargs["in_chans"],
        "hidden_size": kwargs["embed_dim"],
        "num_hidden_layers": kwargs["depth"],
        "num_attention_heads": kwargs["num_heads"],
        "intermediate_size": int(kwargs["embed_dim"] * kwargs["mlp_ratio"]),
        "hidden_act": HIDDEN_ACT[kwargs["gelu"]],
        "layer_norm_eps": kwargs["norm_eps"],
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _timesformer(kwargs: dict[str, Any]) -> HFModel:
    height, width = height_width(kwargs["image_size"])
    if height != width:
        raise ValueError(f"image_size={kwargs['image_size']}: TimeSformer of transformers computes with squares")
    if kwargs["attention"] not in ATTENTION_TYPES:
        raise ValueError(f"attention={kwargs['attention']}: TimeSformer of transformers does not average over frames")
    same = dict(pooling="cls", pos_embed="learned", norm_eps=NORM_EPS, tubelet_size=1)
    _require("TimeSformer", kwargs, **same)
    config = {
        "architectures": ["TimesformerForVideoClassification"],
        "model_type": "timesformer",
        "attention_type": ATTENTION_TYPES[kwargs["attention"]],
        **_vit_config(kwargs),
    }
    return HFModel(config, CLASSIFIER_HEAD | with_prefix("timesformer.", hf.TIMESFORMER))


def _vivit(kwargs: dict[str, Any]) -> HFModel:
    same = dict(cls_token=True, pooling="cls", pos_embed="learned", norm_eps=NORM_EPS, rlt_threshold=0.0)
    _require("ViViT", kwargs, **same)
    config = {
        "architectures": ["VivitForVideoClassification"],
        "model_type": "vivit",
        "tubelet_size": [kwargs["tubelet_size"], kwargs["patch_size"], kwargs["patch_size"]],
    }
    return HFModel(config | _vit_config(kwargs), CLASSIFIER_HEAD | with_prefix("vivit.", hf.VIVIT))


def _videomae_config(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    config = {"model_type": "videomae", "tubelet_size": kwargs["tubelet_size"]}
    return config | _vit_config(kwargs)


def _videomae(kwargs: dict[str, Any]) -> HFModel:
    _require("VideoMAE", kwargs, pooling="fc_norm", rlt_threshold=0.0)
    config = {"architectures": ["VideoMAEForVideoClassification"], "use_mean_pooling": True}
    rules = hf.HEAD | with_prefix("videomae.", hf.VIDEOMAE_RULES)
    return HFModel(config | _videomae_config(kwargs), rules, has_key_bias=False)


def _videomae_pretraining(network: VideoMAE) -> HFModel:
    kwargs, decoder = network.backbone.kwargs, network.kwargs
    _require("pre-training of VideoMAE", kwargs, pos_embed="sincos", gelu="exact", norm_eps=NORM_EPS)
    config = {
        "architectures": ["VideoMAEForPreTraining"],
        "use_mean_pooling": False,
        **_videomae_config(kwargs),
        "decoder_hidden_size": decoder["decoder_embed_dim"],
        "decoder_num_hidden_layers": decoder["decoder_depth"],
        "decoder_num_attention_heads": decoder["decoder_num_heads"],
        "decoder_intermediate_size": int(decoder["decoder_embed_dim"] * decoder["decoder_mlp_ratio"]),
    }
    rules = with_prefix("videomae.", with_prefix("", hf.VIDEOMAE_RULES, "backbone.")) | hf.VIDEOMAE_DECODER
    return HFModel(config, rules, has_key_bias=False)


def _vjepa2_config(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    height, width = height_width(kwargs["image_size"])
    if height != width:
        raise ValueError(f"image_size={kwargs['image_size']}: V-JEPA 2 of transformers takes squares")
    same: dict[str, Any] = dict(rope_layout="tiled", ref_grid_size=0, modality_embed=False)
    _require("V-JEPA 2", kwargs, gelu="exact", rlt_threshold=0.0, **same)
    return {
        "model_type": "vjepa2",
        "crop_size": height,
        "frames_per_clip": kwargs["num_frames"],
        "patch_size": kwargs["patch_size"],
        "tubelet_size": kwargs["tubelet_size"],
        "in_chans": kwargs["in_chans"],
        "hidden_size": kwargs["embed_dim"],
        "num_hidden_layers": kwargs["depth"],
        "num_attention_heads": kwargs["num_heads"],
        "mlp_ratio": kwargs["mlp_ratio"],
        "layer_norm_eps": kwargs["norm_eps"],
    }


def _vjepa2(kwargs: dict[str, Any]) -> HFModel:
    _require("V-JEPA 2", kwargs, pooling="attentive")
    config = {
        "architectures": ["VJEPA2ForVideoClassification"],
        **_vjepa2_config(kwargs),
        "num_pooler_layers": kwargs["pooler_depth"] - 1,
        "pred_num_hidden_layers": 0,  # of the predictor of the pre-training, which classification does not use
    }
    return HFModel(config, CLASSIFIER)


def _jepa(network: JEPA) -> HFModel:
    predictor = network.kwargs
    config = {
        "architectures": ["VJEPA2Model"],
        **_vjepa2_config(network.backbone.kwargs),
        "pred_hidden_size": predictor["predictor_embed_dim"],
        "pred_num_hidden_layers": predictor["predictor_depth"],
        "pred_num_attention_heads": predictor["predictor_num_heads"],
        "pred_mlp_ratio": 4.0,
        "pred_num_mask_tokens": len(network.mask_tokens),
    }
    rules = with_prefix("encoder.", ENCODER, "teacher.") | with_prefix("predictor.", PREDICTOR)
    # The teacher is what is evaluated; transformers has no place for the encoder beside it.
    return HFModel(config, rules, axes={"mask_tokens": "M 1 D -> M 1 1 D"}, left_out="backbone.")


def _hiera_config(kwargs: Mapping[str, Any], q_pool: int) -> dict[str, Any]:
    """Return the config of a Hiera for images; raises ValueError for clips of several frames."""
    stride, kernel, q_stride = kwargs["patch_stride"], kwargs["patch_kernel"], kwargs["q_stride"]
    if kwargs["num_frames"] != 1 or stride[0] != 1 or kernel[0] != 1 or q_stride[0] != 1:
        raise ValueError(
            f"num_frames={kwargs['num_frames']}: transformers has Hiera for images only, clips of one frame"
        )
    stages = range(len(kwargs["depths"]))
    return {
        "model_type": "hiera",
        "embed_dim": kwargs["embed_dim"],
        "image_size": list(height_width(kwargs["image_size"])),
        "patch_size": kernel[1:],
        "patch_stride": stride[1:],
        "patch_padding": [size // 2 for size in kernel[1:]],
        "mlp_ratio": kwargs["mlp_ratio"],
        "depths": kwargs["depths"],
        "num_heads": [kwargs["num_heads"] * 2**stage for stage in stages],
        "num_query_pool": q_pool,
        "query_stride": q_stride[1:],
        "masked_unit_size": [size ** (len(stages) - 1) for size in q_stride[1:]],
        "masked_unit_attention": kwargs["mask_unit_attn"],
        "num_channels": kwargs["in_chans"],
        "hidden_act": HIDDEN_ACT[kwargs["gelu"]],
        "layer_norm_eps": NORM_EPS,
    }


def _hiera(kwargs: dict[str, Any], network: Hiera) -> HFModel:
    _require("Hiera", kwargs, pooling="fc_norm")
    config = {"architectures": ["HieraForImageClassification"], **_hiera_config(kwargs, network.q_pool)}
    rules: Rules = {**CLASSIFIER_HEAD, **hf.HIERA, "hiera.pooler.layernorm.{param}": "norm.{param}"}
    return HFModel(config, rules, stages=tuple(kwargs["depths"]))


def _hiera_pretraining(network: HieraMAE) -> HFModel:
    kwargs, decoder = network.backbone.kwargs, network.kwargs
    _require("pre-training of Hiera", decoder, decoder_mlp_ratio=kwargs["mlp_ratio"])
    config = {
        "architectures": ["HieraForPreTraining"],
        **_hiera_config(kwargs, network.backbone.q_pool),
        "decoder_hidden_size": decoder["decoder_embed_dim"],
        "decoder_depth": decoder["decoder_depth"],
        "decoder_num_heads": decoder["decoder_num_heads"],
    }
    rules = {**with_prefix("", hf.HIERA, "backbone."), **hf.HIERA_DECODER}
    # Published video networks have (row, column, channel), those for images (channel, row, column).
    pixel_order = {"decoder_pred.": "(pixels C) ... -> (C pixels) ..."}
    return HFModel(config, rules, stages=tuple(kwargs["depths"]), axes=pixel_order)
