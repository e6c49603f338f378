"""networks/weights: no key missing unnoticed, no setting lost, whatever the file or its config.json leaves out."""

import json

import pytest
import torch

import networks
from networks import weights
from networks.weights.__main__ import main
from networks.weights.adapt import transfer
from networks.weights.infer_architecture import architecture
from networks.weights.rename_keys import translate
from tests.helpers.foreign_checkpoints import ENTRIES, make_state, write_checkpoint
from tests.helpers.networks import SMALL, SMALL_MVIT, random_video, randomise

torch.set_num_threads(1)


# ---- keys and shapes -------------------------------------------------------------------------------------------------


def one_key_of_each_kind(name):
    """Of those in blocks the first one's or the last one's."""
    for pattern, numbers, _ in ENTRIES[name]["keys"]:
        yield pattern.replace("*", str(numbers[len(pattern) % 2 - 1]) if numbers else "")


@pytest.mark.parametrize("name", ENTRIES)
def test_no_key_can_be_missing_unnoticed(name, tmp_path):
    """Refused without it, in a network that fits the whole file and in one made for the rest, unless it is dropped."""
    whole, given = make_state(name), ENTRIES[name]["given"]
    if given is None:  # an image model
        depth = len({key.split(".")[1] for key in translate(whole).state if key.startswith("blocks.")})
        network = networks.build("timesformer_tiny", **SMALL | {"depth": depth})
    else:
        network = weights.convert(write_checkpoint(name, tmp_path), **given)[0]
    rows = transfer(translate(whole), network)[1].rows
    dropped = {key for row in rows if row.what == "dropped" for key in row.sources}
    for key in one_key_of_each_kind(name):
        state = {other: tensor for other, tensor in whole.items() if other != key}
        if key in dropped or "gamma" in key or (given is None and "head" in key):
            continue
        if key.endswith("time_embed") and "joint" in name and not name.startswith("seed_vivit"):
            continue  # without it these are the files of space attention
        with pytest.raises(ValueError):
            translated = translate(state)
            transfer(translated, network)
            pytest.fail(f"{key}: not missed by a network that has it")
        if given is not None:
            try:
                kind, kwargs, _ = architecture(translate(state), given)
                transfer(translate(state), networks.build(kind, **kwargs))
            except ValueError:
                continue
            pytest.fail(f"{key}: not missed by convert")


SHAPES = [(), (0,), (3,), (1, 0, 32), (1, 1, 32), (2, 2, 2, 2), (1, 3, 31)]
KEYS = ["pos_embed", "time_embed", "cls_token", "norm.weight", "patch_embed.proj.weight", "blocks.1.attn.qkv.weight"]
RIGHT = [("cls_token", (1, 1, 32)), ("time_embed", (1, 1, 32))]  # the class token's own shape, and that of one frame


@pytest.mark.parametrize(
    ("key", "shape"), [(key, shape) for key in KEYS for shape in SHAPES if (key, shape) not in RIGHT]
)
def test_wrong_shapes_are_clear_errors(key, shape, tmp_path):
    state = make_state("timesformer_divided")
    state[f"model.{key}"] = torch.zeros(shape)
    torch.save({"model_state": state}, tmp_path / "file.pyth")
    network = networks.build("timesformer_tiny", **SMALL | {"depth": 4})
    with pytest.raises(ValueError, match="file.pyth"):
        weights.initialise(network, tmp_path / "file.pyth")
    with pytest.raises(ValueError, match="file.pyth"):
        weights.convert(tmp_path / "file.pyth", heads=4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_are_floating_point(dtype):
    state = make_state("timesformer_divided")
    state["model.norm.bias"] = state["model.norm.bias"].to(dtype)
    with pytest.raises(ValueError, match=f"model.norm.bias: {dtype} is no weight"):
        translate(state)


def test_values_that_are_not_finite_are_noted():
    state = make_state("timesformer_divided")
    state["model.norm.bias"][3] = float("nan")
    assert translate(state).notes == ["1 tensors with values that are not finite: model.norm.bias"]


def test_uneven_thirds_are_refused():
    state = make_state("pytorchvideo_mvit")
    q, k = (state[f"blocks.1.attn.{letter}.weight"] for letter in "qk")
    state["blocks.1.attn.q.weight"], state["blocks.1.attn.k.weight"] = torch.cat([q, k[:1]]), k[1:]
    with pytest.raises(ValueError, match="query, key and value of shapes"):
        translate(state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("name", ["timesformer_divided", "mae_pt", "videomae_ft", "mmaction_timesformer"])
def test_prefixes_of_wrappers_do_not_matter(name, prefix):
    plain = translate(make_state(name))
    wrapped = translate({prefix + key: tensor for key, tensor in make_state(name).items()})
    assert wrapped.format == plain.format
    assert all(torch.equal(wrapped.state[key], tensor) for key, tensor in plain.state.items())


def test_mmaction2s_image_model():
    """The file its TimeSformer starts from: the names of its joint blocks, without a backbone in front."""
    state = {key.removeprefix("backbone."): value for key, value in make_state("mmaction_timesformer_space").items()}
    state = {key: tensor for key, tensor in state.items() if not key.startswith("cls_head")}
    translated = translate(state)
    assert translated.format.name == "mmaction2 ViT"
    loaded, _ = transfer(translated, networks.build("timesformer_tiny", **SMALL))
    theirs = state["transformer_layers.layers.1.attentions.0.attn.in_proj_weight"]
    assert torch.equal(loaded["blocks.1.temporal_attn.qkv.weight"], theirs)


def test_an_image_model_of_a_trainer_is_not_taken_for_a_timesformer_unsaid():
    state = make_state("timesformer_space_only")
    assert "an image ViT of a trainer has the same keys" in translate(state).notes[0]
    with pytest.raises(ValueError, match="not a format that is known"):
        translate(state | {"model.fc_norm.weight": torch.ones(32)})


# ---- what shapes do not show -----------------------------------------------------------------------------------------


def test_flax_kernels_tell_the_number_of_heads(tmp_path):
    network, _, _ = weights.convert(write_checkpoint("scenic_vivit_joint", tmp_path), num_frames=4, image_size=32)
    assert network.kwargs["heads"] == 4
    other = networks.build("timesformer_tiny", **SMALL | {"depth": 3, "heads": 8})
    with pytest.raises(ValueError, match="its attention has heads=4, the network heads=8"):
        weights.initialise(other, write_checkpoint("timm_vit_npz", tmp_path))


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16), (1280, 16)])
def test_published_widths_have_their_heads(width, heads):
    with torch.device("meta"):
        network = networks.build("timesformer_b", num_classes=3, width=width, heads=heads, depth=1)
    state = {f"model.{key}": torch.zeros(tensor.shape) for key, tensor in network.state_dict().items()}
    state["model.patch_embed.proj.weight"] = state["model.patch_embed.proj.weight"][:, :, 0]
    _, kwargs, assumed = architecture(translate(state), {})
    assert kwargs["heads"] == heads and any("heads=" in line for line in assumed)


def test_settings_that_shapes_do_not_show_are_noted(tmp_path):
    weights.save(tmp_path / "a", networks.build("mvit_v2_tiny", **SMALL_MVIT), "mvit_v2_tiny")
    other = networks.build("mvit_v2_tiny", **SMALL_MVIT | {"residual_pooling": False, "pooling": "mean"})
    notes = weights.initialise(other, tmp_path / "a").notes
    assert "residual_pooling is True in the checkpoint and False here: other outputs" in notes
    assert "pooling is cls in the checkpoint and mean here: other outputs" in notes
    same = weights.initialise(networks.build("mvit_v2_tiny", **SMALL_MVIT), tmp_path / "a").notes
    assert not [note for note in same if "other outputs" in note]


@pytest.mark.parametrize("same", [True, False])
def test_a_head_for_as_many_other_classes_is_replaced(same, tmp_path):
    names = ["riding a bike", "Diving", "c", "d", "e"]
    extra = {"id2label": {str(number): name for number, name in enumerate(names)}}
    weights.save(tmp_path, randomise(networks.build("vivit_tiny", **SMALL), 1), "vivit_tiny", extra)
    labels = ["riding_a_bike", "diving", "c", "d", "e" if same else "f"]
    network = networks.build("vivit_tiny", **SMALL)
    before = network.head.weight.clone()
    report = weights.initialise(network, tmp_path, labels=labels)
    assert torch.equal(network.head.weight, before) != same
    assert ("the head is kept: as many classes there as here, of the same names" in report.notes) == same


def test_converting_to_another_size_says_so_in_the_config(tmp_path):
    extra = {"id2label": {str(i): f"c{i}" for i in range(5)}, "input": {"frames": 4, "stride": 3, "size": 32}}
    weights.save(tmp_path, networks.build("vivit_tiny", **SMALL), "vivit_tiny", extra)
    network, config, _ = weights.convert(tmp_path, num_classes=3, num_frames=8)
    assert network.head.out_features == 3 and "id2label" not in config["extra"]
    assert config["extra"]["input"]["frames"] == 8 and config["extra"]["input"]["stride"] == 3


# ---- transformers' config.json ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        {"image_size": "32"}, {"image_size": None}, {"num_frames": "4"}, {"tubelet_size": [0, 8, 8]}, {"kwargs": []},
        {"kwargs": {}}, {"id2label": [1]}, {"id2label": None}, {"input": 5}, {"name": ["a"], "kwargs": {}},
        {"num_attention_heads": 4.5}, {"hidden_act": 3},
    ],
)  # fmt: skip
def test_a_damaged_config_is_one_clear_error(damage, tmp_path, capsys):
    weights.save(tmp_path / "ours", networks.build("vivit_tiny", **SMALL), "vivit_tiny")
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | damage))
    with pytest.raises(ValueError, match="config.json: "):
        weights.initialise(networks.build("vivit_tiny", **SMALL), tmp_path / "hf")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "hf")]) == 2
    assert "config.json: " in capsys.readouterr().err


def transformers_folder(model, folder, **options):
    import transformers

    sizes = dict(
        image_size=32, num_frames=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        num_labels=5,
    )  # fmt: skip
    sizes |= {"tubelet_size": (2, 8, 8)} if model == "Vivit" else {"patch_size": 8}
    config = getattr(transformers, f"{model}Config")(**sizes | options)
    theirs = randomise(getattr(transformers, f"{model}ForVideoClassification")(config), seed=1)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("Timesformer", {"hidden_act": "gelu_fast"}), ("Vivit", {"hidden_act": "gelu"}),
        ("Vivit", {"num_attention_heads": 8}), ("Timesformer", {"num_attention_heads": 1}),
    ],
)  # fmt: skip
def test_what_the_config_says_is_what_is_built(model, options, tmp_path):
    theirs = transformers_folder(model, tmp_path, **options)
    network, _, report = weights.convert(tmp_path)
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = theirs(pixel_values=video.transpose(1, 2)).logits
        torch.testing.assert_close(network(video), expected, atol=1e-5, rtol=1e-5)
    assert not [note for note in report.notes if "other outputs" in note]


def test_what_cannot_be_built_is_refused(tmp_path):
    transformers_folder("Vivit", tmp_path / "relu", hidden_act="relu")
    with pytest.raises(ValueError, match="hidden_act='relu': the networks here have GELU alone"):
        weights.convert(tmp_path / "relu")
    transformers_folder("VideoMAE", tmp_path / "first", use_mean_pooling=False)
    with pytest.raises(ValueError, match="not a format that is known"):
        weights.convert(tmp_path / "first")


@pytest.mark.parametrize("mean_pooling", [True, False])
def test_videomaes_pretraining_means_the_same_in_both_spellings(mean_pooling, tmp_path):
    import transformers

    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32, use_mean_pooling=mean_pooling,
    )  # fmt: skip
    randomise(transformers.VideoMAEForPreTraining(config), seed=1).save_pretrained(tmp_path)
    network = networks.build("videomae_tiny", **SMALL)
    report = weights.initialise(network, tmp_path)
    assert report.title.startswith("transformers VideoMAE pre-training")
    assert torch.equal(network.norm.weight, torch.ones(32))  # fine-tuning starts with a fresh norm
    encoder, _, _ = weights.convert(tmp_path)
    assert encoder.kwargs["pooling"] == "mean" and encoder.kwargs["num_classes"] == 0


def test_export_does_not_destroy_and_writes_nothing_unusable(tmp_path, capsys):
    weights.save(tmp_path / "a", networks.build("vivit_tiny", **SMALL), "vivit_tiny")
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "a"), "--to", "hf"]) == 2
    assert "holds a network of ours" in capsys.readouterr().err
    weights.load(tmp_path / "a")
    wide = networks.build("timesformer_tiny", **SMALL | {"image_size": (32, 64)})
    weights.save(tmp_path / "b", wide, "timesformer_tiny")
    assert main(["export", str(tmp_path / "b"), str(tmp_path / "c"), "--to", "hf"]) == 2
    assert "computes with squares" in capsys.readouterr().err
    weights.save(tmp_path / "d", networks.build("vivit_tiny", **SMALL), "vivit_tiny", {"id2label": {"0": "a"}})
    assert main(["export", str(tmp_path / "d"), str(tmp_path / "c"), "--to", "hf"]) == 2
    assert "id2label names 1 classes, the network has 5" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
