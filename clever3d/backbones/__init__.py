"""3D backbones: one architecture per file, all with the same ``extract``."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from clever3d.backbones.base import Backbone, PointFeatures
from clever3d.backbones.minkunet import MinkUNet, MinkUNetConfig
from clever3d.errors import InputError, UnknownNameError
from clever3d.points import InputSpec

__all__ = ["ARCHITECTURES", "Backbone", "InputSpec", "MinkUNet", "MinkUNetConfig", "PointFeatures", "create_backbone"]

#: Architecture names and their configurations.
ARCHITECTURES: dict[str, MinkUNetConfig] = {
    "minkunet18": MinkUNetConfig(blocks=(2, 2, 2, 2, 2, 2, 2, 2)),
    "minkunet34": MinkUNetConfig(blocks=(2, 3, 4, 6, 2, 2, 2, 2)),
    "minkunet_small": MinkUNetConfig(blocks=(2, 2, 2, 1, 1, 1, 1, 1), planes=(32, 64, 96, 128, 96, 96, 64, 96)),
}


def create_backbone(architecture: str, *, input_spec: InputSpec | None = None, **overrides: Any) -> Backbone:
    """A backbone with random weights, in training mode.

    Args:
        architecture: a key of :data:`ARCHITECTURES`.
        input_spec: input contract; the default is ``InputSpec()``.
        **overrides: fields of the architecture's configuration, e.g. ``width=0.5``.

    Raises:
        UnknownNameError: no such architecture; InputError: no such configuration field.
    """
    if architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(architecture, ARCHITECTURES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownNameError(f"unknown architecture {architecture!r}: {hint}there are {', '.join(ARCHITECTURES)}")
    base = ARCHITECTURES[architecture]
    known = {f.name for f in dataclasses.fields(base)}
    if unknown := sorted(set(overrides) - known):
        raise InputError(f"{architecture} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in overrides.items()}
    config = dataclasses.replace(base, **values)
    return MinkUNet(config, input_spec or InputSpec(), architecture=architecture)
