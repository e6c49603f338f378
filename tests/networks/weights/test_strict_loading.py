"""networks/weights: no key is missing unnoticed and no argument is lost, whatever the file or its config.json omits."""

import functools
import json

import pytest
import torch

import networks
from networks import weights
from networks.weights.__main__ import main
from networks.weights.adapt import adapt
from networks.weights.infer_architecture import infer_architecture
from networks.weights.rename_keys import rename_keys
from tests.helpers.foreign_checkpoints import ENTRIES, make_state, write_checkpoint
from tests.helpers.networks import SMALL, SMALL_MVIT, random_video, randomize, transformers_videomae

torch.set_num_threads(1)

KEPT_HEAD = "the head is kept: checkpoint and network have the same number of classes and the same names"


# ---- keys and shapes -------------------------------------------------------------------------------------------------


def one_key_of_each_kind(name):
    """Yield a key for each pattern: in blocks, that of the first or the last block."""
    for pattern, numbers, _ in ENTRIES[name]["keys"]:
        yield pattern.replace("*", str(numbers[len(pattern) % 2 - 1]) if numbers else "")


@functools.lru_cache(maxsize=4)  # most keys leave the architecture as it is
def build_once(architecture: str, kwargs: str) -> torch.nn.Module:
    """Build a network without drawing its weights."""
    with torch.device("meta"):
        return networks.build(architecture, **json.loads(kwargs))


@pytest.mark.parametrize("name", ENTRIES)
def test_missing_keys_are_refused(name, tmp_path):
    """A file without one key is refused by a network that fits the complete file, and by convert, unless the key would
    be dropped."""
    complete_state, given = make_state(name), ENTRIES[name]["given"]
    if given is None:  # an image model
        depth = len({key.split(".")[1] for key in rename_keys(complete_state).state if key.startswith("blocks.")})
        network = networks.build("timesformer_tiny", **SMALL | {"depth": depth})
    else:
        network = weights.convert(write_checkpoint(name, tmp_path), **given)[0]
    _, report = adapt(rename_keys(complete_state), network)
    dropped_keys = {key for record in report.with_status("dropped") for key in record.sources}
    for key in one_key_of_each_kind(name):
        state = {other: tensor for other, tensor in complete_state.items() if other != key}
        if key in dropped_keys or "gamma" in key or (given is None and "head" in key):
            continue
        if key.endswith("time_embed") and "joint" in name and not name.startswith("seed_vivit"):
            continue  # without it the file is one of space attention
        with pytest.raises(ValueError):
            renamed = rename_keys(state)
            adapt(renamed, network)
            pytest.fail(f"{key}: adapt did not miss it")
        if given is not None:
            try:
                renamed = rename_keys(state)
                architecture, kwargs, _ = infer_architecture(renamed, given)
                adapt(renamed, build_once(architecture, json.dumps(kwargs)))
            except ValueError:
                continue
            pytest.fail(f"{key}: infer_architecture did not miss it")


SHAPES = [(), (0,), (3,), (1, 0, 32), (1, 1, 32), (2, 2, 2, 2), (1, 3, 31)]
KEYS = ["pos_embed", "time_embed", "cls_token", "norm.weight", "patch_embed.proj.weight", "blocks.1.attn.qkv.weight"]
CORRECT = [("cls_token", (1, 1, 32)), ("time_embed", (1, 1, 32))]  # the shape of a class token, and that of one frame


@pytest.mark.parametrize(
    ("key", "shape"), [(key, shape) for key in KEYS for shape in SHAPES if (key, shape) not in CORRECT]
)
def test_wrong_shapes_are_refused(key, shape, tmp_path):
    state = make_state("timesformer_divided")
    state[f"model.{key}"] = torch.zeros(shape)
    torch.save({"model_state": state}, tmp_path / "file.pyth")
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    with pytest.raises(ValueError, match="file.pyth"):
        weights.load_pretrained(network, tmp_path / "file.pyth")
    with pytest.raises(ValueError, match="file.pyth"):
        weights.convert(tmp_path / "file.pyth", num_heads=4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_that_are_not_floating_point_are_refused(dtype):
    state = make_state("timesformer_divided")
    state["model.norm.bias"] = state["model.norm.bias"].to(dtype)
    with pytest.raises(ValueError, match=f"model.norm.bias: expected a floating-point tensor, got {dtype}"):
        rename_keys(state)


def test_rename_keys_notes_nonfinite_values():
    state = make_state("timesformer_divided")
    state["model.norm.bias"][3] = float("nan")
    assert rename_keys(state).notes == ["1 tensors with values that are not finite: model.norm.bias"]


def test_qkv_of_different_shapes_is_refused():
    state = make_state("pytorchvideo_mvit")
    q, k = (state[f"blocks.1.attn.{letter}.weight"] for letter in "qk")
    state["blocks.1.attn.q.weight"], state["blocks.1.attn.k.weight"] = torch.cat([q, k[:1]]), k[1:]
    with pytest.raises(ValueError, match="query, key and value have different shapes: "):
        rename_keys(state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("name", ["timesformer_divided", "mae_pt", "videomae_ft", "mmaction_timesformer"])
def test_rename_keys_removes_prefixes_of_wrappers(name, prefix):
    plain = rename_keys(make_state(name))
    wrapped = rename_keys({prefix + key: tensor for key, tensor in make_state(name).items()})
    assert wrapped.format == plain.format
    assert all(torch.equal(wrapped.state[key], tensor) for key, tensor in plain.state.items())


def test_image_model_of_mmaction2_starts_timesformer():
    """It has the names of the joint blocks of its TimeSformer, without the prefix backbone."""
    state = {key.removeprefix("backbone."): value for key, value in make_state("mmaction_timesformer_space").items()}
    state = {key: tensor for key, tensor in state.items() if not key.startswith("cls_head")}
    renamed = rename_keys(state)
    assert renamed.format.name == "mmaction2 ViT"
    loaded, _ = adapt(renamed, networks.build("timesformer_tiny", **SMALL))
    expected = state["transformer_layers.layers.1.attentions.0.attn.in_proj_weight"]
    assert torch.equal(loaded["blocks.1.temporal_attn.qkv.weight"], expected)


def test_timesformer_with_space_attention_is_noted_as_ambiguous():
    state = make_state("timesformer_space_only")
    assert "an image ViT of a trainer has the same keys" in rename_keys(state).notes[0]
    with pytest.raises(ValueError, match="not a known checkpoint format"):
        rename_keys(state | {"model.fc_norm.weight": torch.ones(32)})


# ---- arguments that shapes do not show -------------------------------------------------------------------------------


def test_num_heads_is_read_from_flax_kernels(tmp_path):
    network, _, _ = weights.convert(write_checkpoint("scenic_vivit_joint", tmp_path), num_frames=4, image_size=32)
    assert network.kwargs["num_heads"] == 4
    wrong_heads = networks.build("timesformer_tiny", **SMALL | {"depth": 3, "num_heads": 8})
    with pytest.raises(ValueError, match="the checkpoint has num_heads=4, the network num_heads=8"):
        weights.load_pretrained(wrong_heads, write_checkpoint("timm_vit_npz", tmp_path))


@pytest.mark.parametrize(("embed_dim", "num_heads"), [(384, 6), (768, 12), (1024, 16), (1280, 16)])
def test_num_heads_is_assumed_from_published_embed_dims(embed_dim, num_heads):
    with torch.device("meta"):
        network = networks.build("timesformer_b", num_classes=3, embed_dim=embed_dim, num_heads=num_heads, depth=1)
    state = {f"model.{key}": torch.zeros(tensor.shape) for key, tensor in network.state_dict().items()}
    state["model.patch_embed.proj.weight"] = state["model.patch_embed.proj.weight"][:, :, 0]
    _, kwargs, assumed = infer_architecture(rename_keys(state), {})
    assert kwargs["num_heads"] == num_heads and any("num_heads=" in assumption for assumption in assumed)


def test_different_arguments_with_equal_shapes_are_noted(tmp_path):
    weights.save_network(tmp_path / "a", networks.build("mvit_v2_tiny", **SMALL_MVIT), "mvit_v2_tiny")
    network = networks.build("mvit_v2_tiny", **SMALL_MVIT | {"residual_pooling": False, "pooling": "mean"})
    notes = weights.load_pretrained(network, tmp_path / "a").notes
    assert "residual_pooling is True in the checkpoint, False in the network: its outputs differ" in notes
    assert "pooling is cls in the checkpoint, mean in the network: its outputs differ" in notes
    notes = weights.load_pretrained(networks.build("mvit_v2_tiny", **SMALL_MVIT), tmp_path / "a").notes
    assert not [note for note in notes if "outputs differ" in note]


@pytest.mark.parametrize("same_names", [True, False])
def test_head_for_classes_of_other_names_is_replaced(same_names, tmp_path):
    names = ["riding a bike", "Diving", "c", "d", "e"]
    extra = {"id2label": {str(number): name for number, name in enumerate(names)}}
    weights.save_network(tmp_path, randomize(networks.build("vivit_tiny", **SMALL), 1), "vivit_tiny", extra)
    labels = ["riding_a_bike", "diving", "c", "d", "e" if same_names else "f"]
    network = networks.build("vivit_tiny", **SMALL)
    initial_head = network.head.weight.clone()
    report = weights.load_pretrained(network, tmp_path, labels=labels)
    assert torch.equal(network.head.weight, initial_head) != same_names
    assert (KEPT_HEAD in report.notes) == same_names


def test_convert_to_another_size_updates_the_config(tmp_path):
    extra = {
        "id2label": {str(i): f"c{i}" for i in range(5)},
        "input": {"num_frames": 4, "frame_stride": 3, "image_size": 32},
    }
    weights.save_network(tmp_path, networks.build("vivit_tiny", **SMALL), "vivit_tiny", extra)
    network, config, _ = weights.convert(tmp_path, num_classes=3, num_frames=8)
    assert network.head.out_features == 3 and "id2label" not in config["extra"]
    assert config["extra"]["input"]["num_frames"] == 8 and config["extra"]["input"]["frame_stride"] == 3


# ---- config.json of transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        {"image_size": "32"},
        {"image_size": None},
        {"num_frames": "4"},
        {"tubelet_size": [0, 8, 8]},
        {"kwargs": []},
        {"kwargs": {}},
        {"id2label": [1]},
        {"id2label": None},
        {"input": 5},
        {"name": ["a"], "kwargs": {}},
        {"num_attention_heads": 4.5},
        {"hidden_act": 3},
    ],
)
def test_damaged_config_is_one_clear_error(damage, tmp_path, capsys):
    weights.save_network(tmp_path / "ours", networks.build("vivit_tiny", **SMALL), "vivit_tiny")
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | damage))
    with pytest.raises(ValueError, match="config.json: "):
        weights.load_pretrained(networks.build("vivit_tiny", **SMALL), tmp_path / "hf")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "hf")]) == 2
    assert "config.json: " in capsys.readouterr().err


def transformers_folder(model, folder, **options):
    import transformers

    sizes = dict(
        image_size=32,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=5,
    )
    sizes |= {"tubelet_size": (2, 8, 8)} if model == "Vivit" else {"patch_size": 8}
    config = getattr(transformers, f"{model}Config")(**sizes | options)
    hf_network = randomize(getattr(transformers, f"{model}ForVideoClassification")(config), seed=1)
    hf_network.save_pretrained(folder)
    return hf_network


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("Timesformer", {"hidden_act": "gelu_fast"}),
        ("Vivit", {"hidden_act": "gelu"}),
        ("Vivit", {"num_attention_heads": 8}),
        ("Timesformer", {"num_attention_heads": 1}),
    ],
)
def test_convert_follows_the_config(model, options, tmp_path):
    hf_network = transformers_folder(model, tmp_path, **options)
    network, _, report = weights.convert(tmp_path)
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = hf_network(pixel_values=video.transpose(1, 2)).logits
        torch.testing.assert_close(network(video), expected, atol=1e-5, rtol=1e-5)
    assert not [note for note in report.notes if "outputs differ" in note]


def test_convert_refuses_networks_that_cannot_be_built(tmp_path):
    transformers_folder("Vivit", tmp_path / "relu", hidden_act="relu")
    with pytest.raises(ValueError, match="hidden_act='relu': networks here use GELU only"):
        weights.convert(tmp_path / "relu")
    transformers_folder("VideoMAE", tmp_path / "first", use_mean_pooling=False)
    with pytest.raises(ValueError, match="not a known checkpoint format"):
        weights.convert(tmp_path / "first")


@pytest.mark.parametrize("mean_pooling", [True, False])
def test_videomae_pretraining_with_and_without_mean_pooling(mean_pooling, tmp_path):
    options = {"use_mean_pooling": mean_pooling, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 32}
    transformers_videomae(**options).save_pretrained(tmp_path)
    network = networks.build("videomae_tiny", **SMALL)
    report = weights.load_pretrained(network, tmp_path)
    assert report.title.startswith("transformers VideoMAE pre-training")
    assert torch.equal(network.norm.weight, torch.ones(32))  # fine-tuning starts with a fresh norm
    whole, config, report = weights.convert(tmp_path)
    assert config["name"] == "pretrain_videomae_b" and whole.kwargs["decoder_mlp_ratio"] == 2
    assert report.keys_as_initialized() == (["norm.weight", "norm.bias"] if mean_pooling else [])
