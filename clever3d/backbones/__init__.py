"""3D backbones: one architecture per file, all with the same ``extract``."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from clever3d.backbones.base import Backbone, FeatureInfo, PointFeatures
from clever3d.backbones.minkunet import MinkUNet, MinkUNetConfig
from clever3d.backbones.waffleiron import WaffleIron, WaffleIronConfig
from clever3d.errors import InputError, UnknownNameError
from clever3d.points import InputSpec

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Backbone",
    "FeatureInfo",
    "InputSpec",
    "MinkUNet",
    "MinkUNetConfig",
    "PointFeatures",
    "WaffleIron",
    "WaffleIronConfig",
    "create_backbone",
]

_OURS = InputSpec()
#: What valeoai's WaffleIron takes: ``input_feat: [intensity, xyz, radius]`` in all of its configurations.
_FIVE = ("intensity", "x", "y", "z", "radius")


@dataclass(frozen=True)
class Architecture:
    """A network by name: its class, its configuration, and the input it expects unless it is told otherwise."""

    network: type[Any]
    config: Any
    input_spec: InputSpec


#: Architecture names. The WaffleIrons are configured as ``WaffleIron-48-256__kitti``, ``WaffleIron-48-384__nuscenes``
#: (valeoai/WaffleIron) and ``WI_768_pretrain`` (valeoai/ScaLR); ScaLR+ is the last one with ``activation="gelu"``.
ARCHITECTURES: dict[str, Architecture] = {
    "minkunet18": Architecture(MinkUNet, MinkUNetConfig(blocks=(2, 2, 2, 2, 2, 2, 2, 2)), _OURS),
    "minkunet34": Architecture(MinkUNet, MinkUNetConfig(blocks=(2, 3, 4, 6, 2, 2, 2, 2)), _OURS),
    "minkunet_small": Architecture(
        MinkUNet,
        MinkUNetConfig(blocks=(2, 2, 2, 1, 1, 1, 1, 1), planes=(32, 64, 96, 128, 96, 96, 64, 96)),
        _OURS,
    ),
    "waffleiron48_256": Architecture(
        WaffleIron,
        WaffleIronConfig(width=256, grids=((250, 250), (250, 12), (250, 12)), norm="batch", drop_path=0.2),
        InputSpec(channels=_FIVE, point_range=(-50.0, -50.0, -3.0, 50.0, 50.0, 2.0)),
    ),
    "waffleiron48_384": Architecture(
        WaffleIron,
        WaffleIronConfig(width=384, grids=((166, 166), (166, 16), (166, 16)), norm="batch", drop_path=0.2),
        InputSpec(  # intensity in nuScenes' 0..255, as it is
            channels=_FIVE,
            point_range=(-50.0, -50.0, -5.0, 50.0, 50.0, 5.0),
            ground_height=-1.84,
            intensity_std=1 / 255,
        ),
    ),
    "waffleiron48_768": Architecture(
        WaffleIron,
        WaffleIronConfig(width=768),
        InputSpec(  # statistics of nuScenes' 0..255 (ScaLR, datasets/nuscenes_for_scalr.py)
            channels=_FIVE,
            point_range=(-64.0, -64.0, -8.0, 64.0, 64.0, 8.0),
            ground_height=-1.84,
            intensity_mean=18.742355 / 255,
            intensity_std=22.04632 / 255,
        ),
    ),
}


def create_backbone(architecture: str, *, input_spec: InputSpec | None = None, **overrides: Any) -> Backbone:
    """A backbone with random weights, in training mode.

    Args:
        architecture: a key of :data:`ARCHITECTURES`.
        input_spec: input contract; the default is the architecture's.
        **overrides: fields of the architecture's configuration, e.g. ``width=0.5``.

    Raises:
        UnknownNameError: no such architecture; InputError: no such configuration field.
    """
    if architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(architecture, ARCHITECTURES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownNameError(f"unknown architecture {architecture!r}: {hint}there are {', '.join(ARCHITECTURES)}")
    base = ARCHITECTURES[architecture]
    known = {f.name for f in dataclasses.fields(base.config)}
    if unknown := sorted(set(overrides) - known):
        raise InputError(f"{architecture} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in overrides.items()}
    config = dataclasses.replace(base.config, **values)
    network: Backbone = base.network(config, input_spec or base.input_spec, architecture)
    return network
