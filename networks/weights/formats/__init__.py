"""The checkpoint formats that can be read, one file per project: tables from its keys to the names here.

`networks.weights.rename_keys` applies them. The keys of a file must fit exactly one format, so their order only decides
the order in which messages list them.
"""

from networks.weights.formats import (
    hiera,
    mae,
    mmaction2,
    pytorchvideo,
    scenic,
    slowfast,
    timesformer,
    timm,
    torchvision,
    transformers,
    transformers_videoprism,
    transformers_vjepa2,
    videomae,
    videotransformer_pytorch,
    vision_transformer,
    vjepa2,
)
from networks.weights.formats.format import Format

__all__ = ["FORMATS", "Format"]

FORMATS = (
    *timesformer.FORMATS,
    *mmaction2.FORMATS,
    *videotransformer_pytorch.FORMATS,
    *pytorchvideo.FORMATS,
    *slowfast.FORMATS,
    *torchvision.FORMATS,
    *transformers.FORMATS,
    *transformers_vjepa2.FORMATS,
    *transformers_videoprism.FORMATS,
    *videomae.FORMATS,
    *mae.FORMATS,
    *timm.FORMATS,
    *vision_transformer.FORMATS,
    *scenic.FORMATS,
    *vjepa2.FORMATS,
    *hiera.FORMATS,
)
