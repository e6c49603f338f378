"""Adapters by the commands: trained, resumed, on two processes, tested, merged; what is fixed stays as it was."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from configs import loading
from networks import weights
from networks.adapters import merge_adapter
from tests.helpers.networks import random_video
from tests.helpers.runs import (
    ONE_EPOCH,
    TINY_RUN,
    assert_resumed_run_is_bit_identical,
    assert_two_processes_equal_one,
    evaluate,
    has_same_weights,
    last_checkpoint,
    losses,
    metrics,
    train,
)
from training.adapter import train_adapter_only
from training.setup import build_network, build_state

VIDEOMAE = ["model.name=videomae_tiny", "model.args={embed_dim: 32, depth: 2, num_heads: 2}"]
FRAMES = [
    "model.name=frame_encoder_tiny",
    "model.args={encoder_args: {patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}, temporal_depth: 1}",
]
NETWORKS = {"lora": VIDEOMAE, "bias": VIDEOMAE, "prompt": VIDEOMAE, "st_adapter": FRAMES, "aim": FRAMES}


@pytest.fixture
def base(arguments):
    """Return a function that trains the base of an adapter and returns the keys of a run that starts with it."""

    def make(adapter: str) -> list[str]:
        network = NETWORKS[adapter]
        folder = train(arguments, "base", *network, *ONE_EPOCH)
        return [*network, f"model.pretrained={folder}", f"adapter.name={adapter}"]

    return make


@pytest.mark.parametrize("adapter", NETWORKS)
def test_adapter_run_trains_little_and_is_tested_as_it_was_validated(arguments, base, adapter):
    run_dir = train(arguments, "a", *base(adapter), "optim.lr=1e-2")
    saved = load_file(run_dir / "best" / "adapter.safetensors")
    state, before = last_checkpoint(run_dir)["network"], last_checkpoint(run_dir.parent / "base")["network"]
    fixed = before.keys() - saved.keys()
    assert fixed and all(torch.equal(state[key], before[key]) for key in fixed)
    trained = last_checkpoint(run_dir)["adapter"]["keys"]
    assert set(trained) == set(saved) and {"head.weight", "head.bias"} <= set(trained)
    assert "M parameters (" in (run_dir / "log.txt").read_text() and " k trained, " in (run_dir / "log.txt").read_text()
    center = ["eval.num_clips=1", "eval.num_crops=1"]
    evaluate(run_dir, *center)
    summary = json.loads((run_dir / "eval" / "1x1" / "summary.json").read_text())
    assert summary["top1"] == max(row["top1"] for row in metrics(run_dir, "val"))
    network, _ = weights.load_network(run_dir / "best")
    assert network.adapter["name"] == adapter


@pytest.mark.parametrize("adapter", ["lora", pytest.param("aim", marks=pytest.mark.slow)])
def test_stopped_and_resumed_adapter_run_is_bit_identical(arguments, base, adapter, monkeypatch):
    options = ["adapter.dropout=0.2", "optim.layer_decay=0.7"] if adapter == "lora" else []
    keys = [*base(adapter), *options, "optim.ema_decay=0.9"]
    run_dir = assert_resumed_run_is_bit_identical(arguments, *keys, monkeypatch=monkeypatch)
    moved = (run_dir.parent / "base").rename(run_dir.parent / "moved")
    train(arguments, "parts", *keys, "optim.epochs=3")  # goes on without its base, and says so
    assert "the base of the adapter is not at" in (run_dir / "log.txt").read_text()
    evaluate(run_dir, status=2)
    evaluate(run_dir, f"model.pretrained={moved}")


def test_merged_adapter_is_trained_further_as_a_whole(arguments, base):
    run_dir = train(arguments, "a", *base("lora"), *ONE_EPOCH)
    options = ["optim.lr=0", "optim.min_lr=0", *ONE_EPOCH]
    more = train(arguments, "more", *VIDEOMAE, *options, f"model.pretrained={run_dir}")
    merged, _ = weights.load_network(run_dir / "best")
    merge_adapter(merged)
    again = last_checkpoint(more)["network"]
    assert all(torch.equal(again[key], value) for key, value in merged.state_dict().items())


def test_ema_of_an_adapter_shares_the_fixed_weights():
    cfg = loading.load_config(
        None, [*TINY_RUN, *VIDEOMAE, "adapter.name=bias", "model.pretrained=x", "optim.ema_decay=0.9"]
    )
    network = build_network(cfg, 4)
    trained = set(train_adapter_only(network, cfg))
    state = build_state(cfg, network, 1, torch.float32, 1)
    average = dict(state.ema.module.named_parameters())
    for name, parameter in network.named_parameters():
        assert (average[name].data_ptr() == parameter.data_ptr()) is (name not in trained), name


def test_ema_of_an_adapter_averages_what_is_trained(arguments, base):
    keys = base("lora")
    run_dir = train(arguments, "a", *keys, "optim.ema_decay=0.5", "optim.lr=1e-2")
    content = last_checkpoint(run_dir)
    trained = content["adapter"]["keys"]
    network, ema = content["network"], content["ema"]
    assert all(torch.equal(network[key], ema[key]) for key in network if key not in trained)
    assert all(not torch.equal(network[key], ema[key]) for key in trained if "lora" in key)


def test_recomputed_blocks_change_no_loss_of_an_adapter_run(arguments, base):
    keys = [key for key in base("lora") if not key.startswith("model.args")]
    args = "model.args={{embed_dim: 32, depth: 2, num_heads: 2, checkpoint_blocks: {}}}"
    plain, recomputed = (train(arguments, f"c{n}", *keys, args.format(n)) for n in (0, 2))
    assert losses(plain) == losses(recomputed) and has_same_weights(plain, recomputed)


@pytest.mark.slow
def test_compiled_adapter_run_has_the_same_losses(arguments, base):
    keys = base("lora")
    plain, compiled = (train(arguments, how, *keys, f"run.compile={how}") for how in ("no", "yes"))
    for (_, loss, _), (_, expected, _) in zip(losses(compiled), losses(plain), strict=True):
        assert loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("adapter", NETWORKS)
def test_adapter_run_of_two_processes_equals_one(arguments, base, adapter, parallel, tmp_path):
    assert_two_processes_equal_one(arguments, *base(adapter), parallel=parallel)
    one, two = (weights.load_network(tmp_path / name / "best")[0] for name in ("one", "two"))
    video = random_video(1, *one.patch_embed.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(two(video), one(video), rtol=1e-3, atol=1e-3)


def test_adapter_of_an_image_network_learns_time(arguments, tmp_path):
    """What starts as zeros is trained, too: otherwise the order of the frames would never matter."""
    image = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    save_file(image.state_dict(), tmp_path / "image.safetensors")
    keys = ["model.name=timesformer_tiny", "model.args={embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8}"]
    keys += ["optim.lr=1e-2", f"model.pretrained={tmp_path / 'image.safetensors'}", "adapter.name=lora"]
    run_dir = train(arguments, "a", *keys)
    trained = last_checkpoint(run_dir)["adapter"]["keys"]
    assert "blocks.0.temporal_fc.weight" in trained and "time_embed" in trained
    network, _ = weights.load_network(run_dir / "best")
    video = random_video(1, *network.patch_embed.input_shape)
    with torch.no_grad():
        assert (network(video) - network(video.flip(2))).abs().max() > 1e-5


def test_parts_that_the_checkpoint_does_not_give_are_trained(arguments):
    image = ["model.name=frame_encoder_tiny", FRAMES[1].replace(", temporal_depth: 1", "")]
    folder = train(arguments, "base", *image, *ONE_EPOCH)
    run_dir = train(arguments, "a", *FRAMES, f"model.pretrained={folder}", "adapter.name=lora")
    trained = last_checkpoint(run_dir)["adapter"]["keys"]
    assert "temporal_blocks.0.attn.qkv.weight" in trained and "temporal_pos_embed" in trained
    assert "backbone.blocks.0.attn.qkv.weight" not in trained
    merge_adapter(weights.load_network(run_dir / "best")[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.pretrained="], "model.pretrained=: expected a checkpoint with adapter.name=lora"),
        (["adapter.num_tokens=3"], "adapter.num_tokens=3: expected its default, as adapter.name=lora does not use it"),
        (["model.freeze=backbone"], "model.freeze=backbone: expected nothing with adapter.name=lora"),
        (["task.name=probe", "data.val=x"], "adapter.name=lora: expected none with task.name=probe"),
        (["adapter.name=aim"], "adapter.name=aim with model.name=videomae_tiny: expected an image encoder on frames"),
        (
            ["adapter.target_modules=query"],
            "adapter.name=lora with model.name=videomae_tiny: target_modules: no linear",
        ),
    ],
)
def test_wrong_adapter_keys_are_refused(arguments, base, capsys, overrides, message):
    train(arguments, "a", *base("lora"), *overrides, status=2)
    assert message in capsys.readouterr().err


def test_adapter_key_without_an_adapter_is_refused(arguments, capsys):
    train(arguments, "a", "adapter.rank=4", status=2)
    assert "adapter.rank: expected adapter.name as well" in capsys.readouterr().err


def test_resuming_with_another_adapter_is_refused(arguments, base, capsys):
    keys = base("lora")
    train(arguments, "a", *keys, *ONE_EPOCH)
    for override, message in (
        ("adapter.rank=4", "wrong shape"),
        ("adapter.name=bias", "the run that is resumed trains another one"),
    ):
        train(arguments, "a", *keys, override, status=2)
        err = capsys.readouterr().err
        assert message in err and "run.resume=no" in err
    train(arguments, "base", *keys, "run.resume=auto", status=2)
    assert "the run that is resumed trains no adapter" in capsys.readouterr().err
