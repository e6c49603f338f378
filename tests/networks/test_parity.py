"""Parity with independent implementations: the same random weights give the same outputs and gradients.

Weights and gradients of the other implementation pass through networks.weights, so its key tables are tested too.
"""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import networks
from networks.timesformer import TimeSformer
from networks.vivit import ViViT
from networks.weights.adapt import adapt
from networks.weights.rename_keys import rename_keys
from networks.weights.save_load import load_state
from tests.helpers.networks import SMALL, random_video, randomize

FORWARD, BACKWARD = 1e-5, 1e-4


def assert_same(network, reference, run_network, run_reference, names=()):
    """Compare outputs (within 1e-5) and gradients (within 1e-4 of the tensor's largest one).

    The network gets the weights of the reference, in whose keys the first of each pair in `names` is replaced by the
    second.

    The gradients of key biases are nothing but rounding errors, since softmax cancels what is added to all scores. So
    errors are relative to at least 1e-3 of the network's largest gradient.
    """

    def renamed(state):
        return rename_keys({replace_all(key, names): tensor for key, tensor in state.items()})

    grid = network.patch_embed.grid
    load_state(network, adapt(renamed(reference.state_dict()), network, source_grid=grid)[0])
    actual, expected = run_network(network), run_reference(reference)
    assert expected.detach().std() > 0.1
    torch.testing.assert_close(actual, expected, atol=FORWARD, rtol=FORWARD)

    direction = random_video(*actual.shape, seed=99)
    (actual * direction).sum().backward()
    (expected * direction).sum().backward()
    buffers = {key: torch.zeros_like(tensor) for key, tensor in reference.state_dict().items()}
    zeros = renamed(buffers).state  # not zero where 1 is added to a weight
    gradients = renamed(buffers | {key: p.grad for key, p in reference.named_parameters()}).state
    gradients = {key: gradient - zeros[key] for key, gradient in gradients.items()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for key, parameter in network.named_parameters():
        gradient = gradients[key]
        assert parameter.grad.shape == gradient.shape
        error = (parameter.grad - gradient).abs().max() / gradient.abs().max().clamp_min(1e-3 * largest)
        assert error < BACKWARD, (key, error.item())


def replace_all(text, pairs):
    for old, new in pairs:
        text = text.replace(old, new)
    return text


def frames_first(video):
    return rearrange(video, "B C T H W -> B T C H W")


# ---- transformers ----------------------------------------------------------------------------------------------------

HF = dict(
    image_size=32,
    patch_size=8,
    num_frames=4,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    num_labels=5,
)


@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_timesformer_equals_transformers(attention):
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    config = TimesformerConfig(**HF, attention_type=f"{attention}_space_time")
    reference = randomize(TimesformerForVideoClassification(config), seed=3)
    video = random_video(2, 3, 4, 32, 32)
    assert_same(
        TimeSformer(**SMALL, attention=attention).eval(),
        reference,
        lambda network: network(video),
        lambda reference: reference(pixel_values=frames_first(video)).logits,
    )


@pytest.mark.parametrize("image_size", [32, (16, 32)])
def test_vivit_joint_equals_transformers(image_size):
    from transformers import VivitConfig, VivitForVideoClassification

    settings = {key: value for key, value in HF.items() if key != "patch_size"} | {"image_size": image_size}
    reference = randomize(VivitForVideoClassification(VivitConfig(**settings, tubelet_size=(2, 8, 8))), seed=1)
    video = random_video(2, 3, 4, *(image_size if isinstance(image_size, tuple) else (image_size, image_size)))
    assert_same(
        ViViT(**SMALL | {"image_size": image_size}).eval(),
        reference,
        lambda network: network(video),
        lambda reference: reference(pixel_values=frames_first(video)).logits,
    )


def test_videomae_equals_transformers():
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    reference = VideoMAEForVideoClassification(VideoMAEConfig(**HF, layer_norm_eps=1e-6))
    reference.fc_norm.eps = 1e-6  # transformers has PyTorch's default here, unlike the original
    randomize(reference, seed=2)
    video = random_video(2, 3, 4, 32, 32)
    assert_same(
        networks.build("videomae_tiny", **SMALL).eval(),
        reference,
        lambda network: network(video),
        lambda reference: reference(pixel_values=frames_first(video)).logits,
    )


VJEPA2_SIZES = dict(
    hidden_size=40,  # heads of 10 dimensions: one pair per axis is turned, and four dimensions are not
    num_attention_heads=4,
    num_hidden_layers=2,
    patch_size=8,
    num_labels=5,
    pred_hidden_size=16,
    pred_num_attention_heads=2,
    pred_num_hidden_layers=1,
)


@pytest.mark.parametrize(("num_frames", "image_size", "pooler_depth"), [(4, 32, 2), (8, 32, 1), (2, 48, 4)])
def test_vjepa2_equals_transformers(num_frames, image_size, pooler_depth):
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification

    config = VJEPA2Config(
        **VJEPA2_SIZES, crop_size=image_size, frames_per_clip=num_frames, num_pooler_layers=pooler_depth - 1
    )
    reference = randomize(VJEPA2ForVideoClassification(config), seed=4)
    del reference.vjepa2.predictor  # it does not take part
    video = random_video(2, 3, num_frames, image_size, image_size)
    sizes = dict(num_frames=num_frames, image_size=image_size, embed_dim=40, pooler_depth=pooler_depth)
    assert_same(
        networks.build("vjepa2_tiny", **SMALL | sizes).eval(),
        reference,
        lambda network: network(video),
        lambda reference: reference(pixel_values_videos=frames_first(video)).logits,
    )


def videoprism_config(**options):
    from transformers import VideoPrismVisionConfig

    settings = dict(
        image_size=32,
        num_frames=4,
        tubelet_size=[1, 8, 8],
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=128,
        num_spatial_layers=2,
        num_temporal_layers=2,
        num_labels=5,
        attn_logit_softcapping=2.0,  # low, so that scores reach it
    )
    return VideoPrismVisionConfig(**settings | options)


@pytest.mark.parametrize(("num_frames", "image_size"), [(4, (32, 32)), (2, (16, 48)), (7, (24, 24))])
def test_videoprism_equals_transformers(num_frames, image_size):
    from transformers import VideoPrismForVideoClassification

    config = videoprism_config(num_frames=num_frames, image_size=list(image_size))
    reference = randomize(VideoPrismForVideoClassification(config), seed=4)
    video = random_video(2, 3, num_frames, *image_size)
    sizes = dict(num_frames=num_frames, image_size=image_size, attn_softcap=2.0)
    assert_same(
        networks.build("videoprism_tiny", **SMALL | sizes).eval(),
        reference,
        lambda network: network(video),
        lambda reference: reference(pixel_values_videos=frames_first(video)).logits[:, 0],
    )


@pytest.mark.slow
def test_whole_videoprism_equals_transformers():
    from transformers import VideoPrismForVideoClassification, VideoPrismVisionConfig

    config = VideoPrismVisionConfig(num_labels=174, num_frames=4)
    reference = randomize(VideoPrismForVideoClassification(config), seed=5, std=0.03)
    network = networks.build("videoprism_b", num_classes=174, num_frames=4).eval()
    load_state(network, adapt(rename_keys(reference.state_dict()), network)[0])
    video = random_video(1, 3, 4, 288, 288)
    with torch.no_grad():
        expected = reference(pixel_values_videos=frames_first(video)).logits[:, 0]
        torch.testing.assert_close(network(video), expected, atol=FORWARD * expected.abs().max().item(), rtol=0)


@pytest.mark.slow
def test_whole_vjepa2_equals_transformers():
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification

    config = VJEPA2Config(num_labels=174, frames_per_clip=4, pred_num_hidden_layers=1)
    reference = randomize(VJEPA2ForVideoClassification(config), seed=5, std=0.03)
    network = networks.build("vjepa2_l", num_classes=174, num_frames=4).eval()
    load_state(network, adapt(rename_keys(reference.state_dict()), network)[0])
    video = random_video(1, 3, 4, 256, 256)
    with torch.no_grad():
        expected = reference(pixel_values_videos=frames_first(video)).logits
        torch.testing.assert_close(network(video), expected, atol=FORWARD * expected.abs().max().item(), rtol=0)


# ---- torchvision -----------------------------------------------------------------------------------------------------


def torchvision_mvit(relative, residual, after_attention, pool_q, size):
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    # (input, output) width of each block: the width grows in the attention of block 1, or in the MLP of block 0
    widths = [(16, 16), (16, 32), (32, 32)] if after_attention else [(16, 32), (32, 32), (32, 32)]
    kernel, rest = [3, 3, 3], ([3, 3, 3], [1, 1, 1]) if pool_q else ([], [])
    blocks = [
        MSBlockConfig(1, *widths[0], rest[0], kernel, rest[1], [1, 4, 4]),
        MSBlockConfig(2, *widths[1], kernel, kernel, [1, 2, 2], [1, 2, 2]),
        MSBlockConfig(2, *widths[2], rest[0], kernel, rest[1], [1, 2, 2]),
    ]
    return MViT(
        spatial_size=size,
        temporal_size=4,
        block_setting=blocks,
        residual_pool=residual,
        residual_with_cls_embed=False,
        rel_pos_embed=relative,
        proj_after_attn=after_attention,
        num_classes=5,
    )


MVIT = dict(
    num_classes=5,
    num_frames=4,
    depths=(1, 2),
    embed_dims=(16, 32),
    num_heads=(1, 2),
    kv_stride=(1, 4, 4),
    q_strides=((1, 1, 1), (1, 2, 2)),
)


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (40, 40)])  # (40, 40): grids of 10 and 5, odd
@pytest.mark.parametrize(
    ("name", "options", "layout"),
    [
        ("mvit_v1_b", {}, dict(relative=False, residual=False, after_attention=False, pool_q=False)),
        ("mvit_v2_s", {}, dict(relative=True, residual=True, after_attention=True, pool_q=True)),
        ("mvit_v2_s", {"expand_attn": False}, dict(relative=True, residual=True, after_attention=False, pool_q=True)),
    ],
)
def test_mvit_equals_torchvision(name, options, layout, size):
    network = networks.build(name, **MVIT, image_size=size, **options).eval()
    reference = randomize(torchvision_mvit(**layout, size=size), seed=4)
    video = random_video(2, 3, 4, *size)
    if "v2" in name and size != (32, 32):
        # torchvision resamples its tables in every call, adapt() once: their gradients cannot be compared
        load_state(network, adapt(rename_keys(reference.state_dict()), network)[0])
        with torch.no_grad():
            torch.testing.assert_close(network(video), reference(video), atol=FORWARD, rtol=FORWARD)
        return
    assert_same(network, reference, lambda network: network(video), lambda reference: reference(video))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_full_size_mvit_equals_torchvision(name):
    import torchvision

    reference = randomize(getattr(torchvision.models.video, name)(), seed=5, std=0.05)
    network = networks.build(name, num_classes=400).eval()
    load_state(network, adapt(rename_keys(reference.state_dict()), network)[0])
    video = random_video(1, 3, 16, 224, 224)
    with torch.no_grad():
        expected = reference(video)
        torch.testing.assert_close(network(video), expected, atol=FORWARD * expected.abs().max().item(), rtol=0)


# ---- timm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_frames", "image_size"), [(4, (32, 32)), (2, (64, 32)), (6, (32, 96))])
def test_hiera_equals_timm(num_frames, image_size):
    """timm's Hiera takes clips, although it has weights for images only."""
    from timm.models.hiera import Hiera

    unit = dict(q_stride=(1, 2, 2), mask_unit_size=(1, 4, 4), patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4))
    reference = Hiera(
        img_size=(num_frames, *image_size),
        num_classes=5,
        embed_dim=8,
        stages=(1, 2, 2),
        q_pool=2,
        mask_unit_attn=(True, False, False),
        patch_padding=(1, 3, 3),
        sep_pos_embed=True,
        **unit,
    )
    randomize(reference, seed=9)
    video = random_video(2, 3, num_frames, *image_size)
    sizes = dict(num_frames=num_frames, image_size=image_size, embed_dim=8, depths=(1, 2, 2))
    assert_same(
        networks.build("hiera_tiny", num_classes=5, **sizes).eval(),
        reference,
        lambda network: network(video),
        lambda reference: reference(video),
        names=[("head.norm.", "norm."), ("head.fc.", "head.projection.")],
    )


@pytest.mark.slow
def test_whole_hiera_equals_timm():
    from timm.models.hiera import Hiera

    clip = dict(q_stride=(1, 2, 2), mask_unit_size=(1, 8, 8), patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4))
    options = dict(patch_padding=(1, 3, 3), sep_pos_embed=True, stages=(2, 3, 16, 3), num_classes=400)
    reference = randomize(Hiera(img_size=(16, 224, 224), **clip, **options), seed=9, std=0.05)
    names = [("head.norm.", "norm."), ("head.fc.", "head.projection.")]
    state = {replace_all(key, names): tensor for key, tensor in reference.state_dict().items()}
    network = networks.build("hiera_b", num_classes=400).eval()
    load_state(network, adapt(rename_keys(state), network)[0])
    video = random_video(1, 3, 16, 224, 224)
    with torch.no_grad():
        expected = reference(video)
        torch.testing.assert_close(network(video), expected, atol=FORWARD * expected.abs().max().item(), rtol=0)


# ---- timm: video networks that start as image networks ---------------------------------------------------------------


def image_model(**options):
    from timm.models.vision_transformer import VisionTransformer

    settings = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=7)
    return randomize(VisionTransformer(**settings | options), seed=6)


@pytest.mark.parametrize("temporal", ["copy", "zero"])
@pytest.mark.parametrize("attention", ["divided", "space"])
def test_timesformer_from_an_image_model_computes_the_same(attention, temporal):
    reference = image_model()
    network = randomize(TimeSformer(**SMALL, attention=attention), seed=7)
    state, report = adapt(rename_keys(reference.state_dict()), network, temporal=temporal)
    load_state(network, state)
    images = random_video(2, 3, 32, 32)
    with torch.no_grad():
        expected = reference.forward_features(images)[:, 0]
        still = rearrange(images, "B C H W -> B C 1 H W").expand(-1, -1, 4, -1, -1)
        torch.testing.assert_close(network.forward_features(still), expected, atol=FORWARD, rtol=FORWARD)
    assert [record.sources for record in report.with_status("dropped")] == [("head.weight",), ("head.bias",)]
    if attention == "divided":
        source = reference.state_dict()["blocks.1.attn.qkv.weight"]
        assert torch.equal(state["blocks.1.temporal_attn.qkv.weight"], source) == (temporal == "copy")
        assert not state["blocks.1.temporal_fc.weight"].any() and not state["time_embed"].any()


def test_timesformer_with_space_attention_averages_frames_before_the_norm():
    reference = image_model()
    network = randomize(TimeSformer(**SMALL, attention="space"), seed=8)
    load_state(network, adapt(rename_keys(reference.state_dict()), network)[0])
    video = random_video(2, 3, 4, 32, 32)
    with torch.no_grad():
        tokens = reference._pos_embed(reference.patch_embed(rearrange(video, "B C T H W -> (B T) C H W")))
        for block in reference.blocks:
            tokens = block(tokens)
        expected = reference.norm(rearrange(tokens[:, 0], "(B T) D -> B T D", T=4).mean(1))
        torch.testing.assert_close(network.forward_features(video), expected, atol=FORWARD, rtol=FORWARD)


@pytest.mark.parametrize("inflation", ["central", "average"])
@pytest.mark.parametrize("tubelet_size", [2, 4])
def test_vivit_from_an_image_model_computes_the_same_on_a_still_video(inflation, tubelet_size):
    reference = image_model()
    network = ViViT(**SMALL, tubelet_size=tubelet_size, attention="factorized_encoder", gelu="exact").eval()
    load_state(network, adapt(rename_keys(reference.state_dict()), network, inflation=inflation)[0])
    images = random_video(2, 3, 32, 32)
    still = rearrange(images, "B C H W -> B C 1 H W").expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        frames = rearrange(network.patch_embed(still), "B t n D -> (B t) n D")
        actual = rearrange(network.encode(frames), "(B t) D -> B t D", B=2)
        expected = reference.forward_features(images)[:, 0]
    for frame in range(4 // tubelet_size):
        torch.testing.assert_close(actual[:, frame], expected, atol=FORWARD, rtol=FORWARD)


# ---- references composed of PyTorch's own layers ---------------------------------------------------------------------


def reference_attention(tokens, attention):
    """(B, N, D) -> (B, N, D) by nn.MultiheadAttention."""
    layer = nn.MultiheadAttention(attention.embed_dim, attention.num_heads, batch_first=True)
    state = {f"in_proj_{key}": value for key, value in attention.qkv.state_dict().items()}
    layer.load_state_dict(state | {f"out_proj.{key}": value for key, value in attention.proj.state_dict().items()})
    return layer(tokens, tokens, tokens, need_weights=False)[0]


def reference_mlp(tokens, mlp):
    hidden = F.gelu(tokens @ mlp.fc1.weight.T + mlp.fc1.bias, approximate="tanh")
    return hidden @ mlp.fc2.weight.T + mlp.fc2.bias


def reference_norm(tokens, norm):
    return F.layer_norm(tokens, norm.normalized_shape, norm.weight, norm.bias, 1e-6)


def reference_tubelets(pixels, patch_embed):
    """(C, T, H, W) of one clip -> (t, n, D)."""
    kernel = patch_embed.proj.weight.flatten(1)
    patches = rearrange(pixels, "C (t s) (h p) (w q) -> t (h w) (C s p q)", s=2, p=8, q=8)
    return patches @ kernel.T + patch_embed.proj.bias


def reference_encoder(tokens, cls_token, pos_embed, blocks, norm, pooling):
    """(N, D) -> (D,)."""
    tokens = torch.cat([cls_token[0], tokens])[None] + pos_embed
    for block in blocks:
        tokens = tokens + reference_attention(reference_norm(tokens, block.norm1), block.attn)
        tokens = tokens + reference_mlp(reference_norm(tokens, block.norm2), block.mlp)
    tokens = reference_norm(tokens[0], norm)
    return tokens[0] if pooling == "cls" else tokens[1:].mean(0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_factorized_encoder_equals_two_reference_encoders(pooling):
    settings = SMALL | {"image_size": (16, 32)}
    network = ViViT(**settings, attention="factorized_encoder", temporal_depth=3, pooling=pooling)
    randomize(network, seed=4)
    video = random_video(3, 3, 4, 16, 32)
    logits = []
    with torch.no_grad():
        for clip in video:
            n = network
            frames = [
                reference_encoder(tokens, n.cls_token, n.pos_embed, n.blocks, n.norm, pooling)
                for tokens in reference_tubelets(clip, n.patch_embed)
            ]
            feature = reference_encoder(
                torch.stack(frames),
                n.temporal_cls_token,
                n.temporal_pos_embed,
                n.temporal_blocks,
                n.temporal_norm,
                pooling,
            )
            logits.append(n.head(feature))
        torch.testing.assert_close(network(video), torch.stack(logits), atol=FORWARD, rtol=FORWARD)


def test_factorized_dot_product_equals_a_reference():
    """The first half of the heads attends over time, the second over space (scenic's order)."""
    network = networks.build("vivit_fdp_tiny", **SMALL)
    randomize(network, seed=6)
    video = random_video(2, 3, 4, 32, 32)
    logits = []
    with torch.no_grad():
        for clip in video:
            tokens = reference_tubelets(clip, network.patch_embed)  # (t, n, D)
            tokens = tokens + rearrange(network.pos_embed, "one (t n) D -> (one t) n D", t=2)
            for block in network.blocks:
                qkv = reference_norm(tokens, block.norm1) @ block.attn.qkv.weight.T + block.attn.qkv.bias
                q, k, v = rearrange(qkv, "t n (three h d) -> three h t n d", three=3, h=4)
                time = torch.einsum("htnd,hsnd->hnts", q[:2], k[:2]) / 8**0.5
                time = torch.einsum("hnts,hsnd->htnd", time.softmax(-1), v[:2])
                space = torch.einsum("htnd,htmd->htnm", q[2:], k[2:]) / 8**0.5
                space = torch.einsum("htnm,htmd->htnd", space.softmax(-1), v[2:])
                mixed = rearrange(torch.cat([time, space]), "h t n d -> t n (h d)")
                tokens = tokens + mixed @ block.attn.proj.weight.T + block.attn.proj.bias
                tokens = tokens + reference_mlp(reference_norm(tokens, block.norm2), block.mlp)
            logits.append(network.head(reference_norm(tokens, network.norm).mean((0, 1))))
        torch.testing.assert_close(network(video), torch.stack(logits), atol=FORWARD, rtol=FORWARD)


def test_factorized_attention_equals_a_reference():
    network = ViViT(**SMALL, attention="factorized_attention", cls_token=False, pooling="mean")
    randomize(network, seed=5)
    video = random_video(2, 3, 4, 32, 32)
    logits = []
    with torch.no_grad():
        for clip in video:
            tokens = reference_tubelets(clip, network.patch_embed)  # (t, n, D)
            tokens = tokens + rearrange(network.pos_embed, "one (t n) D -> (one t) n D", t=2)
            for block in network.blocks:
                positions = reference_norm(tokens, block.temporal_norm1).transpose(0, 1)  # (n, t, D)
                tokens = tokens + reference_attention(positions, block.temporal_attn).transpose(0, 1)
                tokens = tokens + reference_attention(reference_norm(tokens, block.norm1), block.attn)
                tokens = tokens + reference_mlp(reference_norm(tokens, block.norm2), block.mlp)
            logits.append(network.head(reference_norm(tokens, network.norm).mean((0, 1))))
        torch.testing.assert_close(network(video), torch.stack(logits), atol=FORWARD, rtol=FORWARD)
