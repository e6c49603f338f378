"""The section `adapter` of the configuration: a few parameters that are trained in a network whose own are fixed."""

from __future__ import annotations

from typing import Any, Literal

from configs.section import Section, option

# The keys that each adapter uses.
USED_KEYS: dict[str, tuple[str, ...]] = {
    "": (),
    "lora": ("rank", "alpha", "dropout", "target_modules"),
    "bias": (),
    "prompt": ("num_tokens",),
    "st_adapter": ("dim", "position"),
    "aim": ("dim", "scale"),
}


class Adapter(Section):
    """The adapter: what is trained, beside the head, in a pretrained network whose own weights are fixed."""

    name: Literal["", "lora", "bias", "prompt", "st_adapter", "aim"] = option(
        "",
        "lora: low-rank matrices beside linear layers; bias: all biases (BitFit); prompt: tokens in each block; for "
        "image encoders on frames: st_adapter, aim (empty: no adapter, the whole network is trained)",
    )
    rank: int = option(8, "lora: rank of the matrices", ge=1)
    alpha: float = option(16, "lora: what is learned is scaled by alpha / rank", gt=0)
    dropout: float = option(0, "lora: dropout of the input of the matrices", ge=0, lt=1)
    target_modules: tuple[str, ...] = option(
        ("qkv", "proj"), "lora: which linear layers, by the ends of their names; with * and ?: qkv, mlp.fc1, attn.*"
    )
    num_tokens: int = option(10, "prompt: tokens in each block", ge=1)
    dim: int = option(
        0, "st_adapter, aim: dimension of the adapters (0: a half and a quarter of the network's, as published)", ge=0
    )
    position: Literal["attn", "mlp", "both"] = option(
        "mlp", "st_adapter: before which part of each block (mlp for Kinetics, both for Something-Something)"
    )
    scale: float = option(0.5, "aim: scale of the adapter beside the MLP (1 for Something-Something)", gt=0)

    @property
    def args(self) -> dict[str, Any]:
        """Return the arguments of the adapter that is named."""
        values = self.model_dump(mode="json")
        return {key: values[key] for key in USED_KEYS[self.name]}

    @property
    def unused(self) -> list[str]:
        """Return the keys that have another value than their default and are none of the adapter that is named."""
        if not self.name:  # an adapter that is switched off by one key
            return []
        defaults = Adapter().model_dump()
        changed = [key for key, value in self.model_dump().items() if key != "name" and value != defaults[key]]
        return [key for key in changed if key not in USED_KEYS[self.name]]
