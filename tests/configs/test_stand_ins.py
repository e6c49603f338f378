"""Recipes that start from published weights: two steps from a stand-in of toy size, then the multi-view test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from configs import loading
from networks import weights
from tests.configs.test_recipes import TINY_STEPS
from tests.helpers import ROOT
from tests.helpers.foreign_checkpoints import ENTRIES, write_checkpoint
from tests.helpers.networks import SMALL_VIT, randomize
from tests.helpers.runs import evaluate, metrics, train


def write_entry(name: str, folder: Path) -> tuple[Path, dict]:
    """Write a checkpoint as its project does; return it and what its shapes do not tell."""
    return write_checkpoint(name, folder), ENTRIES[name]["given"] or {}


def write_videoprism(_: str, folder: Path) -> tuple[Path, dict]:
    from transformers.models.videoprism import modeling_videoprism as videoprism

    sizes = dict(image_size=32, num_frames=4, tubelet_size=[1, 8, 8], num_spatial_layers=2, num_temporal_layers=1)
    widths = dict(hidden_size=32, num_attention_heads=4, intermediate_size=128)
    config = videoprism.VideoPrismVisionConfig(**sizes, **widths)
    randomize(videoprism.VideoPrismVisionModel(config), seed=3).save_pretrained(folder / "videoprism")
    return folder / "videoprism", {}


def write_timm(encoder: str, folder: Path) -> tuple[Path, dict]:
    network = randomize(timm.create_model(encoder, num_classes=0, img_size=32, **SMALL_VIT), seed=3)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3}}))
    return folder, {}


# The recipes of 2026's encoders; the writer of a stand-in and what it is called with.
STAND_INS = {
    "k400/vjepa2_l_16x4_k400": (write_entry, "vjepa2"),
    "ssv2/vjepa2_l_16x4_ssv2": (write_entry, "vjepa2"),
    "ssv2/vjepa2_g384_64x2_ssv2": (write_entry, "vjepa2"),
    "diving48/vjepa2_l_32x2_diving48": (write_entry, "vjepa2"),
    "jester/vjepa2_l_32x2_jester": (write_entry, "vjepa2"),
    "ucf101/vjepa2_l_16x4_ucf101": (write_entry, "vjepa2"),
    "hmdb51/vjepa2_l_16x4_hmdb51": (write_entry, "vjepa2"),
    "k400/videomae_v2_b_16x4_k400": (write_entry, "videomae_pt"),
    "ssv2/videomae_v2_b_16_ssv2": (write_entry, "videomae_pt"),
    "k400/hiera_b_16x4_k400": (write_entry, "hiera_pt"),
    "k400/videoprism_b_16x4_k400": (write_videoprism, ""),
    "ssv2/videoprism_b_16x4_ssv2": (write_videoprism, ""),
    "k400/dinov2_b_8_k400": (write_timm, "vit_base_patch14_dinov2"),
    "k400/dinov2_b_8x16_k400_st_adapter": (write_timm, "vit_base_patch14_dinov2"),
    "k400/videomae_l_16x4_k400_lora": (write_entry, "videomae_pt"),
    "k400/vjepa2_l_16x4_k400_lora": (write_entry, "vjepa2"),
    "charades/mvitv1b_32x3_charades": (write_entry, "slowfast_mvit_v1"),
    "ssv2/videomae_b_16_ssv2_lt": (write_entry, "videomae_pt"),
    "k400/mvitv2l_40x3_k400": (write_entry, "slowfast_mvit_v2"),
}
FAST = (
    "k400/dinov2_b_8_k400",
    "k400/dinov2_b_8x16_k400_st_adapter",
)  # the others have RandAugment, whose DALI graph takes seconds to build
PARAMS = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in STAND_INS]


@pytest.mark.parametrize("name", PARAMS)
def test_recipe_trains_from_a_stand_in_and_is_tested(name, clips_folder, tmp_path):
    write, argument = STAND_INS[name]
    recipe, video_list = ROOT / "configs" / f"{name}.yaml", clips_folder(tmp_path, 8)
    cfg = loading.load_config(recipe)
    (tmp_path / "stand_in").mkdir()
    checkpoint, given = write(argument, tmp_path / "stand_in")
    if write is write_timm:
        kwargs = {"encoder_args": SMALL_VIT}
        num_frames, image_size = 4, 32
    else:
        network = weights.convert(checkpoint, **given)[0]
        own = getattr(network, "backbone", network).kwargs  # of a pre-training the encoder
        num_frames, image_size = own["num_frames"], own["image_size"]
        image_size = image_size if isinstance(image_size, int) else image_size[0]
        unset = {
            "num_classes",
            "num_frames",
            "image_size",
            "pooling",
            "pooler_depth",
            "drop_path",
            "head_scale",
            "q_pool",
        }
        kwargs = {key: value for key, value in own.items() if key not in unset}
    overrides = [
        f"data.train={video_list}",
        f"data.val={video_list}",
        "data.root=",
        "data.class_names=",
        f"data.num_frames={num_frames}",
        f"data.image_size={image_size}",
        "eval.metric=auto",
        "data.batch_size=2",
        f"optim.global_batch_size={4 * cfg.data.aug_repeats}",
        "data.short_side_range=64,80",
        f"model.args={json.dumps(cfg.model.args | kwargs | {'checkpoint_blocks': 1})}",
        f"model.pretrained={checkpoint}",
    ]
    if cfg.probe.layers:
        overrides.append("probe.layers=blocks.0,blocks.1")
    if cfg.probe.num_heads:
        overrides.append("probe.num_heads=2")
    run_dir = train([str(recipe), f"run.output_dir={tmp_path}", *TINY_STEPS, *overrides], "x")
    rows = metrics(run_dir, "train")
    assert [row["step"] for row in rows] == [1, 2] and all(row["skipped_steps"] == 0 for row in rows)
    log = (run_dir / "log.txt").read_text()
    assert (" k trained" in log) == (bool(cfg.model.freeze or cfg.adapter.name) or cfg.task.name == "probe")
    evaluate(run_dir, "eval.batch_size=2", f"eval.num_clips={max(min(cfg.eval.num_clips, 3), cfg.data.num_clips)}")
    (summary,) = (run_dir / "eval").glob("*/summary.json")
    assert json.loads(summary.read_text())["scored"] == 8
