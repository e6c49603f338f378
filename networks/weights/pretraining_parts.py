"""What networks for pre-training add to their backbones: decoders, predictors, mask tokens, a teacher."""

import dataclasses

from networks.weights.rename_keys import RenamedWeights, Weights
from networks.weights.report import DROPPED, KeyRecord

# The layers by which networks for pre-training predict: each has one, which tells of which kind it is.
PREDICTION_WEIGHTS = ("predict.weight", "decoder_pred.weight", "predictor_proj.weight")


def is_of_pretraining(key: str) -> bool:
    """Tell whether a parameter is what a pre-training adds to its backbone."""
    part = key.split(".")[0]
    parts = ("mask_token", "mask_tokens", "predict", "multi_scale_fusion_heads", "teacher")
    return part in parts or part.startswith(("decoder_", "predictor_"))


def with_teacher_weights(source: RenamedWeights) -> RenamedWeights:
    """Return the weights of a JEPA's teacher, which is what V-JEPA evaluates, in the place of its encoder's."""
    teacher = {key.removeprefix("teacher."): key for key in source.state if key.startswith("teacher.")}
    if not teacher:
        return source
    replaced = [source.records[key] for key in teacher]
    reason = "the encoder of the pre-training, in the place of which its teacher is taken"
    dropped = [KeyRecord(status=DROPPED, sources=record.sources, detail=reason) for record in replaced]
    kept = {key: teacher.get(key, key) for key in source.state if not key.startswith("teacher.")}
    return dataclasses.replace(
        source,
        state=Weights({key: source.state[origin] for key, origin in kept.items()}),
        records={key: dataclasses.replace(source.records[origin], target=key) for key, origin in kept.items()},
        dropped=[*source.dropped, *dropped],
    )
