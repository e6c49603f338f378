"""What all sections of the configuration have in common: how a key is declared, and how text becomes its value."""

from __future__ import annotations

import re
import typing
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

# Arguments that are passed on as they are: YAML's types, and 1e-3 is a number.
Arguments = dict[str, Any]


def option(default: Any, meaning: str, **bounds: float) -> Any:
    """Declare a key with its default, its meaning and its bounds (`ge`, `gt`, `le`, `lt`)."""
    if isinstance(default, dict):
        return Field(default_factory=dict, description=meaning)
    return Field(default, description=meaning, **bounds)  # type: ignore[call-overload]


class Section(BaseModel):
    """A section of the configuration. Values may come as text, as YAML and the command line have them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Split the text of a tuple, and refuse text such as 8.0 for a whole number."""
        assert info.field_name
        hint = cls.model_fields[info.field_name].annotation
        if typing.get_origin(hint) is tuple:
            return _split(value, typing.get_args(hint))
        if hint is int and isinstance(value, str) and not re.fullmatch(r"\s*[-+]?\d+\s*", value):
            raise PydanticCustomError("int_parsing", "a whole number")
        return value


def _split(value: Any, types: tuple[Any, ...]) -> Any:
    """Return the parts of "0.5,1", of "[0.5, 1.0]" or of a sequence, as many as the tuple has."""
    parts = [p.strip() for p in value.strip("[]() ").split(",") if p.strip()] if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or (types[1:] != (...,) and len(parts) != len(types)):
        raise PydanticCustomError("tuple_length", f"{len(types)} numbers, for instance [0.5, 1.0]")
    return tuple(parts)
