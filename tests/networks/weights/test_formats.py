"""networks/weights/formats: each public format, in files as its project writes them, gives the outputs of the project.

The expected outputs were computed by the code of the projects and are stored in tests/helpers/data/checkpoints.json
(see tests/helpers/foreign_checkpoints.py).
"""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import networks
from networks import weights
from networks.weights.formats import FORMATS
from networks.weights.key_rules import TOKEN, compile_pattern
from networks.weights.rename_keys import detect_format, matches_format, rename_keys
from tests.helpers.foreign_checkpoints import ENTRIES, draw_clip, make_state, write_checkpoint
from tests.helpers.networks import SMALL, random_video, randomize

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
    "seed_vivit_fe": "VideoTransformer-pytorch ViViT, factorized encoder",
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
    "scenic_vivit_fe": "scenic ViViT, factorized encoder",
    "scenic_vivit_fsa": "scenic ViViT, factorized self-attention",
    "vjepa2": "V-JEPA 2",
    "hiera_ft": "Hiera",
    "hiera_pt": "Hiera pre-training",
    "vjepa2_1": "V-JEPA 2.1",
}
VIDEO = [name for name in ENTRIES if ENTRIES[name]["given"] is not None]
IMAGE = [name for name in ENTRIES if ENTRIES[name]["given"] is None]


@pytest.mark.parametrize("name", ENTRIES)
def test_detect_format_from_keys_alone(name):
    state = make_state(name)
    assert detect_format(state).name == FORMAT_OF[name]
    assert [candidate.name for candidate in FORMATS if matches_format(state, candidate)] == [FORMAT_OF[name]]


@pytest.mark.parametrize("file_format", FORMATS, ids=lambda file_format: file_format.name)
def test_names_repeat_only_placeholders_of_their_patterns(file_format):
    for pattern, target in file_format.rules.items():
        name = target if isinstance(target, str) else target[0]
        placeholders = {token["name"] for token in TOKEN.finditer(name)}
        assert placeholders <= compile_pattern(pattern).groupindex.keys(), pattern


@pytest.mark.parametrize("name", [name for name in VIDEO if "logits" in ENTRIES[name]])
def test_convert_gives_the_outputs_of_the_projects_code(name, tmp_path):
    entry = ENTRIES[name]
    network, _, report = weights.convert(write_checkpoint(name, tmp_path), **entry["given"])
    network = getattr(network, "backbone", network)
    if name == "hiera_pt":  # its logits are those of the classifier, whose last stage is pooled
        kwargs = network.kwargs | {"q_pool": None, "pooling": "fc_norm"}
        network = networks.build("hiera_b", **kwargs).eval()
        report = weights.load_pretrained(network, write_checkpoint(name, tmp_path))
    expected = torch.tensor(entry["logits"])
    with torch.no_grad():
        logits = network(draw_clip(entry["clip"]))[:, : expected.shape[1]]
    if name == "videomae_pt":
        assert network.kwargs["pooling"] == "mean"  # of the normalized tokens, whose mean was stored
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.05
    created = {record.target for record in report.with_status("created")}
    assert created == ({"norm.weight", "norm.bias"} if name == "hiera_pt" else set())


def test_scenic_model_4_is_read_as_what_the_user_says(tmp_path):
    path, given = write_checkpoint("scenic_vivit_joint_gap", tmp_path), ENTRIES["scenic_vivit_joint_gap"]["given"]
    joint, _, report = weights.convert(path, **given)
    assert any("say attention=factorized_dot_product" in note for note in report.notes)
    factorized, _, _ = weights.convert(path, **given, attention="factorized_dot_product")
    assert factorized.kwargs["attention"] == "factorized_dot_product"
    video = draw_clip(ENTRIES["scenic_vivit_joint_gap"]["clip"])
    assert not torch.allclose(joint(video), factorized(video), atol=1e-3)
    assert all(torch.equal(tensor, factorized.state_dict()[key]) for key, tensor in joint.state_dict().items())


@pytest.mark.parametrize("name", VIDEO)
def test_report_has_every_key_once(name, tmp_path):
    network, config, report = weights.convert(write_checkpoint(name, tmp_path), **ENTRIES[name]["given"])
    state = make_state(name)
    if name.startswith("vjepa2"):  # the mask tokens of the predictor are joined when the file is read
        stored = make_state("vjepa2", "predictor") | {"predictor_pos_embed": torch.zeros(1)}
        state |= {f"predictor.{'mask_tokens' if 'mask_tokens' in key else key}": stored[key] for key in stored}
    sources = [key for record in report.records for key in record.sources]
    assert sorted(set(sources)) == sorted(state)
    targets = [record.target for record in report.records if record.target]
    assert sorted(targets) == sorted(key.removeprefix("backbone.") for key in network.state_dict())
    repeated = {key for key in sources if sources.count(key) > 1}
    assert all("gamma" in key for key in repeated), repeated  # a LayerScale scales a weight and a bias
    assert all(record.detail for record in report.records if record.status != "mapped")
    assert config["extra"]["converted_from"]["format"] == FORMAT_OF[name]


@pytest.mark.parametrize(
    "target", ["timesformer_tiny", "vivit_tiny", "vivit_fe_tiny", "vivit_fsa_tiny", "videomae_tiny"]
)
@pytest.mark.parametrize("name", IMAGE)
def test_image_models_start_every_network_but_mvit(name, target, tmp_path):
    state = make_state(name)
    depth = len({key.split(".")[1] for key in rename_keys(state).state if key.startswith("blocks.")})
    network = randomize(networks.build(target, **SMALL | {"depth": depth}), seed=1)
    report = weights.load_pretrained(network, write_checkpoint(name, tmp_path))
    renamed = rename_keys(state).state
    for key in (f"blocks.{depth - 1}.attn.qkv.weight", "blocks.0.mlp.fc2.bias"):
        assert torch.equal(network.state_dict()[key], renamed[key])
    assert sorted(record.target for record in report.records if record.target) == sorted(network.state_dict())
    assert sorted({key for record in report.records for key in record.sources}) == sorted(state)
    assert torch.isfinite(network(random_video(1, 3, 4, 32, 32))).all()


def test_factorized_encoder_of_videotransformer_pytorch_is_noted_as_a_starting_point(tmp_path):
    network, _, report = weights.convert(write_checkpoint("seed_vivit_fe", tmp_path), num_heads=4)
    assert "not the same function" in report.text()
    assert sorted(record.target for record in report.with_status("created")) == [
        "norm.bias",
        "norm.weight",
        "temporal_cls_token",
    ]
    state = make_state("seed_vivit_fe")
    key = "model.transformer_layers.1.layers.3.attentions.0.attn.qkv.weight"
    assert torch.equal(network.temporal_blocks[3].attn.qkv.weight, state[key])


# ---- files that installed packages write -----------------------------------------------------------------------------


def timm_vit():
    from timm.models.vision_transformer import VisionTransformer

    return randomize(VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=5), 2)


def as_npz(state):
    """Names and shapes of timm -> those of the ViT in JAX, by their documented layout."""
    other_names = {"cls_token": "cls", "pos_embed": "Transformer/posembed_input/pos_embedding"}
    renamed = {}
    for key, tensor in state.items():
        module, _, param = key.rpartition(".")
        is_weight = param == "weight"
        flax_param = "kernel" if is_weight else "bias"
        flax_norm_param = "scale" if is_weight else "bias"
        if key in other_names:
            renamed[other_names[key]] = tensor
        elif module == "norm":
            renamed[f"Transformer/encoder_norm/{flax_norm_param}"] = tensor
        elif module == "patch_embed.proj":
            renamed[f"embedding/{flax_param}"] = tensor.permute(2, 3, 1, 0) if is_weight else tensor
        elif module == "head":
            renamed[f"head/{flax_param}"] = tensor.T if is_weight else tensor
        else:
            _, number, layer = module.split(".", 2)
            block = f"Transformer/encoderblock_{number}"
            if layer.startswith("norm"):
                flax_norm = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}[layer]
                renamed[f"{block}/{flax_norm}/{flax_norm_param}"] = tensor
            elif layer == "attn.qkv":
                for name, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    flax_third = third.T.reshape(32, 4, 8) if is_weight else third.reshape(4, 8)
                    renamed[f"{block}/MultiHeadDotProductAttention_1/{name}/{flax_param}"] = flax_third
            elif layer == "attn.proj":
                flax_tensor = tensor.T.reshape(4, 8, 32) if is_weight else tensor
                renamed[f"{block}/MultiHeadDotProductAttention_1/out/{flax_param}"] = flax_tensor
            else:
                dense = {"mlp.fc1": "Dense_0", "mlp.fc2": "Dense_1"}[layer]
                renamed[f"{block}/MlpBlock_3/{dense}/{flax_param}"] = tensor.T if is_weight else tensor
    return renamed


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_rename_keys_gives_the_same_for_npz_and_state_dict(prefix):
    state = timm_vit().state_dict()
    npz_state = {prefix + key: tensor for key, tensor in as_npz(state).items()}
    expected, actual = rename_keys(state).state, rename_keys(npz_state).state
    assert len(expected) == len(actual) == len(state)
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key


@pytest.mark.parametrize("version_5_names", [False, True])
@pytest.mark.parametrize("model", ["Vivit", "VideoMAE", "Timesformer"])
def test_convert_folders_of_transformers(model, version_5_names, tmp_path):
    """As save_pretrained writes them, and as torch.save does with the names that live modules have since version 5."""
    import transformers

    sizes = dict(
        image_size=32,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        id2label={number: f"class {number}" for number in range(5)},
    )
    sizes |= {"tubelet_size": (2, 8, 8)} if model == "Vivit" else {"patch_size": 8}
    sizes |= {"layer_norm_eps": 1e-6} if model == "VideoMAE" else {}
    hf_network = getattr(transformers, f"{model}ForVideoClassification")(
        getattr(transformers, f"{model}Config")(**sizes)
    )
    if model == "VideoMAE":
        hf_network.fc_norm.eps = 1e-6
    randomize(hf_network, seed=3).save_pretrained(tmp_path)
    if version_5_names:
        (tmp_path / "model.safetensors").unlink()
        torch.save(hf_network.state_dict(), tmp_path / "pytorch_model.bin")
    network, config, _ = weights.convert(tmp_path)
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = hf_network(pixel_values=video.transpose(1, 2)).logits
        torch.testing.assert_close(network(video), expected, atol=1e-5, rtol=1e-5)
    assert config["extra"]["id2label"]["3"] == "class 3"


def test_convert_videomae_v2_folders_of_the_hub(tmp_path):
    """An encoder under model., whose config.json has the arguments of its own code under model_config."""
    state, given = make_state("videomae_ft"), ENTRIES["videomae_ft"]["given"]
    state = {f"model.{key}": tensor for key, tensor in state.items() if not key.startswith("head")}
    save_file(state, tmp_path / "model.safetensors")
    sizes = {"num_heads": given["num_heads"], "img_size": given["image_size"], "num_frames": given["num_frames"]}
    config = {"model_type": "VideoMAEv2_Base", "model_config": {**sizes, "layer_norm_eps": 1e-6, "num_classes": 0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    network, _, report = weights.convert(tmp_path)
    assert report.title == "VideoMAE -> ViViT" and network.kwargs["num_heads"] == given["num_heads"]
    expected, _, _ = weights.convert(write_checkpoint("videomae_ft", tmp_path), **given)
    video = draw_clip(ENTRIES["videomae_ft"]["clip"])
    with torch.no_grad():
        assert torch.equal(network(video), expected.forward_features(video))


@pytest.mark.parametrize("is_classifier", [True, False])
def test_convert_vjepa2_folders_of_transformers(is_classifier, tmp_path):
    import transformers

    config = transformers.VJEPA2Config(
        hidden_size=40,
        num_attention_heads=4,
        num_hidden_layers=2,
        num_pooler_layers=1,
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        pred_hidden_size=16,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        id2label={number: f"class {number}" for number in range(5)},
    )
    cls = transformers.VJEPA2ForVideoClassification if is_classifier else transformers.VJEPA2Model
    hf_network = randomize(cls(config), seed=3)
    hf_network.save_pretrained(tmp_path)
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(statistics))
    network, config, report = weights.convert(tmp_path)
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        output = hf_network(pixel_values_videos=video.transpose(1, 2))
        expected = output.logits if is_classifier else output.last_hidden_state.mean(1)
        torch.testing.assert_close(network(video), expected, atol=1e-5, rtol=1e-5)
    assert config["extra"]["input"]["mean"] == [0.4, 0.5, 0.6]
    assert is_classifier == (config["extra"].get("id2label", {}).get("3") == "class 3")
    dropped = {record.detail for record in report.with_status("dropped")}
    of_encoder = "mask token, decoder, predictor or HOG head of the pre-training"
    assert dropped == {"predictor of the pre-training" if is_classifier else of_encoder}
    probe = networks.build("vjepa2_tiny", **SMALL | {"embed_dim": 40, "pooler_depth": 2, "num_classes": 7})
    fresh = weights.load_pretrained(probe, tmp_path).keys_as_initialized()
    assert set(fresh) == {
        key for key in probe.state_dict() if key.startswith("head" if is_classifier else ("head", "pooler"))
    }


@pytest.mark.parametrize("kind", ["encoder", "classifier", "with text"])
def test_convert_videoprism_folders_of_transformers(kind, tmp_path):
    from transformers.models.videoprism import modeling_videoprism as videoprism

    sizes = dict(image_size=32, num_frames=4, tubelet_size=[1, 8, 8], num_spatial_layers=2, num_temporal_layers=1)
    widths = dict(hidden_size=32, num_attention_heads=4, intermediate_size=128, attn_logit_softcapping=2.0)
    labels = {} if kind == "with text" else {"id2label": {number: f"class {number}" for number in range(5)}}
    config = videoprism.VideoPrismVisionConfig(**sizes, **widths, **labels)
    if kind == "with text":
        text = dict(hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=1, vocab_size=9)
        both = videoprism.VideoPrismConfig(vision_config=config.to_dict(), text_config=text)
        hf_network = randomize(videoprism.VideoPrismClipModel(both), seed=3)
    elif kind == "classifier":
        hf_network = randomize(videoprism.VideoPrismForVideoClassification(config), seed=3)
    else:
        hf_network = randomize(videoprism.VideoPrismVisionModel(config), seed=3)
    hf_network.save_pretrained(tmp_path)
    network, config, report = weights.convert(tmp_path)
    assert network.kwargs["num_heads"] == 4 and network.kwargs["attn_softcap"] == 2.0
    assert config["extra"]["input"]["mean"] == [0, 0, 0] and config["extra"]["input"]["std"] == [1, 1, 1]
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        frames_first, actual = video.transpose(1, 2), network(video)
        if kind == "encoder":
            expected = hf_network(pixel_values_videos=frames_first).last_hidden_state.mean(1)
        elif kind == "classifier":
            expected = hf_network(pixel_values_videos=frames_first).logits[:, 0]
        else:  # the project compares directions
            expected = hf_network.get_video_features(pixel_values_videos=frames_first).pooler_output[:, 0]
            actual = F.normalize(actual, dim=-1)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert {record.detail for record in report.with_status("dropped")} == (
        {"encoder of text"} if kind == "with text" else set()
    )
    assert report.count("created") == 0


def test_mvitv2_l_has_its_own_published_input():
    with torch.device("meta"):
        state = networks.build("mvit_v2_l", num_classes=400).state_dict()
    names = [key.replace("head.", "head.projection.") for key in state]
    for last_block, stride, mean, preset in ((47, 3, 0.485, "videomae"), (23, 4, 0.45, "mvit")):
        keys = [key for key in names if not key.startswith("blocks.") or int(key.split(".")[1]) <= last_block]
        file_format = detect_format(dict.fromkeys(keys, torch.zeros(1, 1, 1, 1, 1)))
        assert file_format.frame_strides[40 if stride == 3 else 16] == stride
        assert (file_format.normalization["mean"][0], file_format.preset) == (mean, preset)
