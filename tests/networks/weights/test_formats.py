"""networks/weights: every public format, read from files as its project writes them, gives that project's outputs.

What the outputs must be was computed by the projects' own code and is kept in data/checkpoints.json (see foreign.py).
"""

import json

import pytest
import torch

import networks
from networks import weights
from networks.weights.formats import FORMATS
from networks.weights.rename_keys import bears_marks, detect, translate
from tests.helpers.foreign_checkpoints import ENTRIES, draw_clip, make_state, write_checkpoint
from tests.helpers.networks import SMALL, random_video, randomise

torch.set_num_threads(1)

FORMAT_OF = {
    "timesformer_divided": "TimeSformer",
    "timesformer_joint": "TimeSformer",
    "timesformer_space_only": "TimeSformer",
    "mmaction_timesformer": "mmaction2 TimeSformer, divided",
    "mmaction_timesformer_joint": "mmaction2 TimeSformer, joint or space",
    "mmaction_timesformer_space": "mmaction2 TimeSformer, joint or space",
    "seed_timesformer": "VideoTransformer-pytorch TimeSformer, divided",
    "seed_timesformer_oldnames": "VideoTransformer-pytorch TimeSformer, divided",
    "seed_timesformer_joint_oldnames": "VideoTransformer-pytorch TimeSformer, joint or space",
    "seed_timesformer_space": "VideoTransformer-pytorch TimeSformer, joint or space",
    "seed_vivit_joint": "VideoTransformer-pytorch ViViT, joint",
    "seed_vivit_fe": "VideoTransformer-pytorch ViViT, factorised encoder",
    "seed_vivit_divided": "VideoTransformer-pytorch TimeSformer, divided",
    "seed_mvit_ft": "VideoTransformer-pytorch MViT",
    "seed_maskfeat": "VideoTransformer-pytorch MViT",
    "pytorchvideo_mvit": "pytorchvideo MViT",
    "slowfast_mvit_v1": "SlowFast MViT",
    "slowfast_mvit_v1_released": "SlowFast MViT",
    "slowfast_mvit_v1_sepqkv": "SlowFast MViT",
    "slowfast_mvit_v1_nokernel": "SlowFast MViT",
    "slowfast_mvit_v2": "SlowFast MViT",
    "slowfast_mvit_v2_odd": "SlowFast MViT",
    "slowfast_maskfeat_ft": "SlowFast MViT",
    "slowfast_maskfeat_pt": "SlowFast MaskFeat",
    "videomae_ft": "VideoMAE",
    "videomae_ft_gamma": "VideoMAE",
    "videomae_pt": "VideoMAE pre-training",
    "mae_pt": "MAE",
    "mae_ft": "timm ViT",
    "mae_pytorch": "MAE-pytorch",
    "timm_vit_npz": "ViT .npz",
    "scenic_vivit_joint": "scenic ViViT, joint",
    "scenic_vivit_joint_gap": "scenic ViViT, joint, mean-pooled",
    "scenic_vivit_fe": "scenic ViViT, factorised encoder",
    "scenic_vivit_fsa": "scenic ViViT, factorised self-attention",
}
VIDEO = [name for name in ENTRIES if ENTRIES[name]["given"] is not None]
IMAGE = [name for name in ENTRIES if ENTRIES[name]["given"] is None]


@pytest.mark.parametrize("name", ENTRIES)
def test_each_format_is_told_from_its_keys_alone(name):
    state = make_state(name)
    assert detect(state).name == FORMAT_OF[name]
    assert [other.name for other in FORMATS if bears_marks(state, other)] == [FORMAT_OF[name]]


@pytest.mark.parametrize("name", [name for name in VIDEO if "logits" in ENTRIES[name]])
def test_outputs_are_those_of_the_projects_own_code(name, tmp_path):
    entry = ENTRIES[name]
    network, _, report = weights.convert(write_checkpoint(name, tmp_path), **entry["given"])
    network = getattr(network, "backbone", network)
    expected = torch.tensor(entry["logits"])
    with torch.no_grad():
        logits = network(draw_clip(entry["clip"]))[:, : expected.shape[1]]
    if name == "videomae_pt":
        assert network.kwargs["pooling"] == "mean"  # of the normed tokens, which is what was kept
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.05
    assert report.count("created") == 0


@pytest.mark.parametrize("name", VIDEO)
def test_every_key_is_accounted_for_once(name, tmp_path):
    network, config, report = weights.convert(write_checkpoint(name, tmp_path), **ENTRIES[name]["given"])
    state = make_state(name)
    sources = [key for row in report.rows for key in row.sources]
    assert sorted(set(sources)) == sorted(state)
    targets = [row.target for row in report.rows if row.target]
    assert sorted(targets) == sorted(key.removeprefix("backbone.") for key in network.state_dict())
    folded = {key for key in sources if sources.count(key) > 1}
    assert all("gamma" in key for key in folded), folded  # LayerScale goes into a weight and a bias
    assert all(row.how for row in report.rows if row.what != "mapped")
    assert config["extra"]["converted_from"]["format"] == FORMAT_OF[name]


@pytest.mark.parametrize(
    "target", ["timesformer_tiny", "vivit_tiny", "vivit_fe_tiny", "vivit_fsa_tiny", "videomae_tiny"]
)
@pytest.mark.parametrize("name", IMAGE)
def test_image_models_start_every_plain_video_network(name, target, tmp_path):
    state = make_state(name)
    depth = len({key.split(".")[1] for key in translate(state).state if key.startswith("blocks.")})
    network = randomise(networks.build(target, **SMALL | {"depth": depth}), seed=1)
    report = weights.initialise(network, write_checkpoint(name, tmp_path))
    ours = translate(state).state
    for key in (f"blocks.{depth - 1}.attn.qkv.weight", "blocks.0.mlp.fc2.bias"):
        assert torch.equal(network.state_dict()[key], ours[key])
    assert sorted(row.target for row in report.rows if row.target) == sorted(network.state_dict())
    assert sorted({key for row in report.rows for key in row.sources}) == sorted(state)
    assert torch.isfinite(network(random_video(1, 3, 4, 32, 32))).all()


def test_the_seeds_factorised_encoder_is_a_start_and_says_so(tmp_path):
    network, _, report = weights.convert(write_checkpoint("seed_vivit_fe", tmp_path), heads=4)
    assert "not the same function" in report.text()
    assert sorted(row.target for row in report.rows if row.what == "created") == [
        "norm.bias", "norm.weight", "temporal_cls_token",
    ]  # fmt: skip
    state = make_state("seed_vivit_fe")
    key = "model.transformer_layers.1.layers.3.attentions.0.attn.qkv.weight"
    assert torch.equal(network.temporal_blocks[3].attn.qkv.weight, state[key])


# ---- what only installed packages write ------------------------------------------------------------------------------


def timm_vit():
    from timm.models.vision_transformer import VisionTransformer

    return randomise(VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=5), 2)


def as_npz(state):
    """timm's names and shapes -> the JAX ViT's, by their documented layout."""
    norm = "Transformer/encoder_norm"
    ends = {"cls_token": "cls", "pos_embed": "Transformer/posembed_input/pos_embedding"}
    renamed = {}
    for key, tensor in state.items():
        path, _, kind = key.rpartition(".")
        flax_kind = {"weight": "kernel", "bias": "bias"}.get(kind)
        if key in ends:
            renamed[ends[key]] = tensor
        elif path == "norm":
            renamed[f"{norm}/{'scale' if kind == 'weight' else 'bias'}"] = tensor
        elif path == "patch_embed.proj":
            renamed[f"embedding/{flax_kind}"] = tensor.permute(2, 3, 1, 0) if kind == "weight" else tensor
        elif path == "head":
            renamed[f"head/{flax_kind}"] = tensor.T if kind == "weight" else tensor
        else:
            _, number, part = path.split(".", 2)
            layer = f"Transformer/encoderblock_{number}"
            if part.startswith("norm"):
                flax_norm = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}[part]
                renamed[f"{layer}/{flax_norm}/{'scale' if kind == 'weight' else 'bias'}"] = tensor
            elif part == "attn.qkv":
                for name, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    whole = third.T.reshape(32, 4, 8) if kind == "weight" else third.reshape(4, 8)
                    renamed[f"{layer}/MultiHeadDotProductAttention_1/{name}/{flax_kind}"] = whole
            elif part == "attn.proj":
                whole = tensor.T.reshape(4, 8, 32) if kind == "weight" else tensor
                renamed[f"{layer}/MultiHeadDotProductAttention_1/out/{flax_kind}"] = whole
            else:
                dense = {"mlp.fc1": "Dense_0", "mlp.fc2": "Dense_1"}[part]
                renamed[f"{layer}/MlpBlock_3/{dense}/{flax_kind}"] = tensor.T if kind == "weight" else tensor
    return renamed


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_npz_and_state_dict_of_one_model_are_the_same(prefix):
    state = timm_vit().state_dict()
    other = {prefix + key: tensor for key, tensor in as_npz(state).items()}
    assert {len(part) for part in (translate(state).state, translate(other).state)} == {len(state)}
    for key, tensor in translate(state).state.items():
        assert torch.equal(translate(other).state[key], tensor), key


@pytest.mark.parametrize("version_5_names", [False, True])
@pytest.mark.parametrize("model", ["Vivit", "VideoMAE", "Timesformer"])
def test_folders_of_transformers(model, version_5_names, tmp_path):
    """As save_pretrained writes them and, for the names that live modules have since version 5, as torch.save does."""
    import transformers

    sizes = dict(
        image_size=32, num_frames=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        id2label={number: f"class {number}" for number in range(5)},
    )  # fmt: skip
    sizes |= {"tubelet_size": (2, 8, 8)} if model == "Vivit" else {"patch_size": 8}
    sizes |= {"layer_norm_eps": 1e-6} if model == "VideoMAE" else {}
    theirs = getattr(transformers, f"{model}ForVideoClassification")(getattr(transformers, f"{model}Config")(**sizes))
    if model == "VideoMAE":
        theirs.fc_norm.eps = 1e-6
    randomise(theirs, seed=3).save_pretrained(tmp_path)
    if version_5_names:
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    network, config, _ = weights.convert(tmp_path)
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = theirs(pixel_values=video.transpose(1, 2)).logits
        torch.testing.assert_close(network(video), expected, atol=1e-5, rtol=1e-5)
    assert config["extra"]["id2label"]["3"] == "class 3"


@pytest.mark.parametrize("attention", ["divided", "joint", "vivit"])
def test_export_is_what_transformers_loads(attention, tmp_path):
    import transformers

    name, options = ("vivit_tiny", {}) if attention == "vivit" else ("timesformer_tiny", {"attention": attention})
    network = randomise(networks.build(name, **SMALL, **options), seed=4)
    extra = {"id2label": {str(number): f"class {number}" for number in range(5)},
             "input": {"mean": [0.45] * 3, "std": [0.225] * 3}}  # fmt: skip
    weights.save(tmp_path / "ours", network, name, extra)
    from networks.weights.__main__ import main

    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "hf"]) == 0
    kind = "VivitForVideoClassification" if attention == "vivit" else "TimesformerForVideoClassification"
    theirs, loading = getattr(transformers, kind).from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = theirs.eval()(pixel_values=video.transpose(1, 2)).logits
        torch.testing.assert_close(network(video), expected, atol=1e-5, rtol=1e-5)
    assert theirs.config.id2label[2] == "class 2"
    assert json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())["image_mean"] == [0.45] * 3
    again, config, _ = weights.convert(tmp_path / "theirs")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))
    assert config["extra"]["id2label"]["2"] == "class 2"


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("mvit_v2_tiny", {}, "transformers has no MViT"),
        ("vivit_fe_tiny", SMALL, "attention=factorised_encoder"),
        ("timesformer_tiny", SMALL | {"attention": "space"}, "attention=space"),
        ("timesformer_tiny", SMALL | {"pooling": "mean"}, "pooling=mean"),
        ("videomae_tiny", SMALL, "cls_token=False"),
    ],
)
def test_export_refuses_what_transformers_lacks(name, options, reason, tmp_path, capsys):
    from networks.weights.__main__ import main

    weights.save(tmp_path / "ours", networks.build(name, **{"num_classes": 5} | options), name)
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "hf"]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "theirs").exists()
