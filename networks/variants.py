"""The networks that classify clips, by name."""

from collections.abc import Callable

from torch import nn

from networks.frame_encoder import clip_b, dinov2_b, dinov3_b, frame_encoder_tiny, siglip2_b
from networks.hiera import hiera_b, hiera_b_plus, hiera_h, hiera_l, hiera_tiny
from networks.mvit import mvit_v1_b, mvit_v1_tiny, mvit_v2_b, mvit_v2_l, mvit_v2_s, mvit_v2_tiny
from networks.timesformer import timesformer_b, timesformer_hr, timesformer_l, timesformer_s, timesformer_tiny
from networks.videomae import videomae_b, videomae_g, videomae_h, videomae_l, videomae_s, videomae_tiny
from networks.videoprism import videoprism_b, videoprism_l, videoprism_tiny
from networks.vivit import (
    vivit_b,
    vivit_fdp_b,
    vivit_fdp_tiny,
    vivit_fe_b,
    vivit_fe_l,
    vivit_fe_tiny,
    vivit_fsa_b,
    vivit_fsa_tiny,
    vivit_l,
    vivit_s,
    vivit_tiny,
)
from networks.vjepa2 import (
    vjepa2_1_b,
    vjepa2_1_g,
    vjepa2_1_l,
    vjepa2_1_tiny,
    vjepa2_g,
    vjepa2_h,
    vjepa2_l,
    vjepa2_tiny,
)

VARIANTS: dict[str, Callable[..., nn.Module]] = {
    variant.__name__: variant
    for variant in (
        timesformer_tiny,
        timesformer_s,
        timesformer_b,
        timesformer_hr,
        timesformer_l,
        vivit_tiny,
        vivit_s,
        vivit_b,
        vivit_l,
        vivit_fe_tiny,
        vivit_fe_b,
        vivit_fe_l,
        vivit_fsa_tiny,
        vivit_fsa_b,
        vivit_fdp_tiny,
        vivit_fdp_b,
        videomae_tiny,
        videomae_s,
        videomae_b,
        videomae_l,
        videomae_h,
        videomae_g,
        mvit_v1_tiny,
        mvit_v1_b,
        mvit_v2_tiny,
        mvit_v2_s,
        mvit_v2_b,
        mvit_v2_l,
        hiera_tiny,
        hiera_b,
        hiera_b_plus,
        hiera_l,
        hiera_h,
        vjepa2_tiny,
        vjepa2_l,
        vjepa2_h,
        vjepa2_g,
        vjepa2_1_tiny,
        vjepa2_1_b,
        vjepa2_1_l,
        vjepa2_1_g,
        videoprism_tiny,
        videoprism_b,
        videoprism_l,
        frame_encoder_tiny,
        dinov2_b,
        dinov3_b,
        siglip2_b,
        clip_b,
    )
}
