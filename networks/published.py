"""Published weights that fit the networks: what `model.pretrained` takes, their license, and their accuracy.

Accuracies are top-1 as published, with the clips x crops of the test; "probe" is an attentive or linear one on a frozen
encoder. Files without a prefix are downloaded from their project by hand. The licenses are those that the projects
state for the weights: read them before you use the weights commercially.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """Weights for one network."""

    weights: str
    license: str
    accuracy: str


NON_COMMERCIAL = "CC-BY-NC 4.0"
VIDEOMAE = "K400 {}, 5x3"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "timesformer_b": (
        Published("hf:facebook/timesformer-base-finetuned-k400", NON_COMMERCIAL, "K400 77.9, 1x3"),
        Published("hf:facebook/timesformer-base-finetuned-k600", NON_COMMERCIAL, "K600 79.1, 1x3"),
        Published("hf:facebook/timesformer-base-finetuned-ssv2", NON_COMMERCIAL, "SSv2 59.1, 1x3"),
        Published("timm:vit_base_patch16_224.orig_in21k", "Apache-2.0", "image model to start from"),
    ),
    "timesformer_hr": (Published("hf:facebook/timesformer-hr-finetuned-k400", NON_COMMERCIAL, "K400 79.6, 1x3"),),
    "timesformer_l": (Published("TimeSformer_divST_96x4_224_K400.pyth", NON_COMMERCIAL, "K400 80.6, 1x3"),),
    "vivit_b": (Published("hf:google/vivit-b-16x2-kinetics400", "MIT", "K400 79.9, 4x3"),),
    "vivit_fe_b": (Published("scenic's ViViT-B/16x2 FE", "Apache-2.0", "K400 78.4, 4x3"),),
    "vivit_fe_l": (Published("scenic's ViViT-L/16x2 FE", "Apache-2.0", "K400 80.3, 4x3"),),
    "videomae_s": (
        Published("hf:MCG-NJU/videomae-small-finetuned-kinetics", NON_COMMERCIAL, VIDEOMAE.format(79.0)),
        Published("vit_s_k710_dl_from_giant.pth", NON_COMMERCIAL, "VideoMAE v2, distilled: K400 83.7, 5x3"),
    ),
    "videomae_b": (
        Published("hf:MCG-NJU/videomae-base", NON_COMMERCIAL, "pre-training; " + VIDEOMAE.format(81.5)),
        Published("hf:MCG-NJU/videomae-base-finetuned-kinetics", NON_COMMERCIAL, VIDEOMAE.format(81.5)),
        Published("hf:OpenGVLab/VideoMAEv2-Base", NON_COMMERCIAL, "encoder of VideoMAE v2"),
        Published("vit_b_k710_dl_from_giant.pth", NON_COMMERCIAL, "VideoMAE v2, distilled: K400 86.6, 5x3"),
    ),
    "videomae_l": (
        Published("hf:MCG-NJU/videomae-large-finetuned-kinetics", NON_COMMERCIAL, VIDEOMAE.format(85.2)),
        Published("hf:OpenGVLab/VideoMAEv2-Large", NON_COMMERCIAL, "encoder of VideoMAE v2"),
    ),
    "videomae_h": (
        Published("hf:MCG-NJU/videomae-huge-finetuned-kinetics", NON_COMMERCIAL, VIDEOMAE.format(86.6)),
        Published("hf:OpenGVLab/VideoMAEv2-Huge", NON_COMMERCIAL, "encoder of VideoMAE v2"),
    ),
    "videomae_g": (
        Published("hf:OpenGVLab/VideoMAEv2-giant", NON_COMMERCIAL, "encoder of VideoMAE v2; K400 88.4, SSv2 77.0"),
    ),
    "mvit_v1_b": (Published("SlowFast's or torchvision's MViT-B 16x4", "Apache-2.0, BSD-3", "K400 78.4, 5x1"),),
    "mvit_v2_s": (
        Published("MViTv2_S_16x4_k400_f302660347.pyth", "Apache-2.0", "K400 81.0, 5x1"),
        Published("SlowFast's MaskFeat MViTv2-S", "Apache-2.0", "K400 82.2, 10x1"),
    ),
    "mvit_v2_b": (Published("MViTv2_B_32x3_k400_f304025456.pyth", "Apache-2.0", "K400 82.9, 5x1"),),
    "mvit_v2_l": (Published("MViTv2_L_40x3_k400_f306903192.pyth", "Apache-2.0", "K400 86.1, 5x3"),),
    "hiera_b": (
        Published("hf:facebook/hiera_base_16x224.mae_k400", NON_COMMERCIAL, "masked autoencoder"),
        Published("hf:facebook/hiera_base_16x224.mae_k400_ft_k400", NON_COMMERCIAL, "K400 84.0, 5x3"),
    ),
    "hiera_b_plus": (
        Published("hf:facebook/hiera_base_plus_16x224.mae_k400_ft_k400", NON_COMMERCIAL, "K400 85.0, 5x3"),
    ),
    "hiera_l": (Published("hf:facebook/hiera_large_16x224.mae_k400_ft_k400", NON_COMMERCIAL, "K400 87.3, 5x3"),),
    "hiera_h": (Published("hf:facebook/hiera_huge_16x224.mae_k400_ft_k400", NON_COMMERCIAL, "K400 87.8, 5x3"),),
    "vjepa2_l": (
        Published("hf:facebook/vjepa2-vitl-fpc64-256", "Apache-2.0", "probe: K400 85.1, 8x3; SSv2 73.7, 2x3"),
        Published("hf:facebook/vjepa2-vitl-fpc16-256-ssv2", "Apache-2.0", "probe: SSv2 73.7, 2x3"),
        Published("vitl.pt", "Apache-2.0", "the same encoder with its predictor"),
    ),
    "vjepa2_h": (
        Published("hf:facebook/vjepa2-vith-fpc64-256", "Apache-2.0", "probe: K400 85.3, 8x3; SSv2 74.0, 2x3"),
    ),
    "vjepa2_g": (
        Published("hf:facebook/vjepa2-vitg-fpc64-256", "Apache-2.0", "probe: K400 86.6, 8x3; SSv2 75.3, 2x3"),
        Published("hf:facebook/vjepa2-vitg-fpc64-384", "Apache-2.0", "384x384; probe: K400 87.3, SSv2 77.3"),
    ),
    "vjepa2_1_b": (Published("vjepa2_1_vitb_dist_vitG_384.pt", "MIT (code)", "distilled from ViT-G"),),
    "vjepa2_1_l": (Published("vjepa2_1_vitl_dist_vitG_384.pt", "MIT (code)", "distilled from ViT-G"),),
    "vjepa2_1_g": (Published("vjepa2_1_vitg_384.pt", "MIT (code)", "pre-training"),),
    "videoprism_b": (
        Published("hf:google/videoprism-base-f16r288", "Apache-2.0", "probe: K400 82.9, SSv2 62.2"),
        Published("hf:google/videoprism-lvt-base-f16r288", "Apache-2.0", "with text"),
    ),
    "videoprism_l": (
        Published("hf:google/videoprism-large-f8r288", "Apache-2.0", "probe: K400 85.0, SSv2 64.6"),
        Published("hf:google/videoprism-lvt-large-f8r288", "Apache-2.0", "with text"),
    ),
    "dinov2_b": (Published("timm:vit_base_patch14_dinov2.lvd142m", "Apache-2.0", "linear probe: K400 73.2, 8 frames"),),
    "dinov3_b": (Published("timm:vit_base_patch16_dinov3.lvd1689m", "DINOv3 License", "image encoder"),),
    "siglip2_b": (Published("timm:vit_base_patch16_siglip_224.v2_webli", "Apache-2.0", "image encoder"),),
    "clip_b": (Published("timm:vit_base_patch16_clip_224.laion2b", "Apache-2.0", "image encoder"),),
}


def markdown_table() -> str:
    """Return the table of docs/networks.md."""
    rows = ["| network | weights | license | published top-1 |", "|---|---|---|---|"]
    for name, published in PUBLISHED.items():
        rows += [f"| `{name}` | `{item.weights}` | {item.license} | {item.accuracy} |" for item in published]
    return "\n".join(rows)


def describe(name: str) -> list[str]:
    """Return a line for each of the weights of a network, for the terminal."""
    return [f"    {item.weights:<50} {item.license:<18} {item.accuracy}" for item in PUBLISHED.get(name, ())]
